//! Every kernel variant compiles, by both of its entries, for every architecture it runs on, with every NVRTC there is to
//! test with, without warnings or spills and within its stated registers and shared memory.
//!
//! A kernel takes one to two seconds, and there are hundreds, two entries, seven architectures and two versions. So the
//! variants of a file are dealt out: each is compiled once, by one entry, with one version, for one architecture, and each of
//! these gets its share of every file. `ROLLOUT_COMPILE=all` compiles everything for everything, in less than an hour on two cores. What was
//! compiled once is kept in `kernels/` of the target directory, so that only changed kernels cost time.

use attention_rollout::cuda::kernel::{self, SHARED_PARAMS};
use attention_rollout::cuda::nvrtc::{Cache, KernelResources, Nvrtc, Options, Source, Target};
use attention_rollout::cuda::variant::{Entry, Variant};
use libtest_mimic::{Failed, Trial};

/// Turing, Ampere (data centre and consumer), Ada, Hopper, Blackwell (data centre and consumer).
const ARCHS: [u32; 7] = [75, 80, 86, 89, 90, 100, 120];

/// Files with at most this many variants are not dealt out: all are compiled for all architectures.
const FEW: usize = 1;

/// A variant and how it is entered.
type Kernel = (Entry, Variant);

/// Static shared memory that every architecture has, in bytes.
const STATIC_SHARED_BYTES: u32 = 48 << 10;

/// Registers per thread and bytes of static shared memory per block that a kernel may use at most.
fn ceilings((entry, variant): &Kernel) -> (u32, u32) {
    let shared_bytes = match entry {
        Entry::Alone => variant.static_shared_bytes,
        // Parameters lie there.
        Entry::Grouped => variant.static_shared_bytes + SHARED_PARAMS as u32,
    };
    (
        entry.registers(variant),
        shared_bytes.min(STATIC_SHARED_BYTES),
    )
}

/// One test per file of `kernels/`, architecture and library.
pub fn trials(nvrtcs: &[Nvrtc]) -> Vec<Trial> {
    let everything = std::env::var_os("ROLLOUT_COMPILE").is_some_and(|value| value == "all");
    let kernels = kernel::all();
    let mut variants: Vec<Variant> = kernels.iter().map(|kernel| kernel.variant()).collect();
    variants.push(kernel::TakeInputs.variant());
    let mut stems: Vec<&str> = variants.iter().map(|variant| variant.stem).collect();
    stems.sort_unstable();
    stems.dedup();
    let mut trials = Vec::new();
    let versions = nvrtcs.len();
    for (turn, nvrtc) in nvrtcs.iter().enumerate() {
        for arch in ARCHS {
            for stem in &stems {
                let of_stem = || variants.iter().filter(|variant| variant.stem == *stem);
                let all = everything || of_stem().count() <= FEW;
                let dealt: Vec<Kernel> = of_stem()
                    .enumerate()
                    .flat_map(|(index, variant)| {
                        let archs = archs(variant);
                        let arch_turn = archs[index % archs.len()] == arch;
                        let version_turn = index / archs.len() % versions == turn;
                        let entry_turn = Entry::ALL[index / (archs.len() * versions) % 2];
                        let takes = move |entry: &Entry| {
                            archs.contains(&arch)
                                && (all || arch_turn && version_turn && entry_turn == *entry)
                        };
                        let entries = variant.entries().iter().copied().filter(takes);
                        entries.map(|entry| (entry, variant.clone()))
                    })
                    .collect();
                if dealt.is_empty() {
                    continue;
                }
                let nvrtc = nvrtc.clone();
                let name = format!("compile::{stem} sm_{arch} (NVRTC {})", nvrtc.version());
                trials.push(Trial::test(name, move || check(&nvrtc, arch, &dealt)));
            }
        }
    }
    trials
}

/// The architectures that a variant runs on. Blocks of a cluster hold more than the 99 KB of shared memory of sm_120.
fn archs(variant: &Variant) -> Vec<u32> {
    let runs = |arch: u32| arch >= variant.arch && (variant.cluster == 1 || arch != 120);
    ARCHS.into_iter().filter(|&arch| runs(arch)).collect()
}

/// Compiles kernels and holds them to their ceilings; fails with all that is wrong.
fn check(nvrtc: &Nvrtc, arch: u32, kernels: &[Kernel]) -> Result<(), Failed> {
    let cache = Cache::at(concat!(env!("CARGO_TARGET_TMPDIR"), "/kernels"));
    let problems: Vec<String> = kernels
        .iter()
        .filter_map(|kernel| {
            let (entry, variant) = kernel;
            let problem = problem(nvrtc, &cache, arch, kernel)?;
            Some(format!("{}: {problem}", entry.symbol(variant)))
        })
        .collect();
    if problems.is_empty() {
        return Ok(());
    }
    Err(problems.join("\n").into())
}

/// Bytes of the stack that `matrix_stream` may use, entered grouped: some compilers for some architectures keep a few
/// addresses there that are wanted when a block takes its next item. No loop over slabs touches them.
const KEPT_FROM_ITEM_TO_ITEM: u32 = 24;

/// What is wrong with a kernel.
fn problem(nvrtc: &Nvrtc, cache: &Cache, arch: u32, kernel: &Kernel) -> Option<String> {
    let (entry, variant) = kernel;
    let (registers, shared_bytes) = ceilings(kernel);
    let symbol = entry.symbol(variant);
    let file = format!("{}.cu", variant.stem);
    let Some(source) = Source::embedded(&file) else {
        return Some(format!("there is no kernels/{file}"));
    };
    let mut options = Options::new(Target::Cubin(arch.into())).label(&symbol);
    for (name, value) in entry.defines(variant) {
        options = options.define(name, value);
    }
    let compiled = match cache.compile(nvrtc, &source, &options) {
        Ok(compiled) => compiled,
        Err(error) => return Some(error.to_string()),
    };
    let Some(kernel) = compiled.kernel(&symbol) else {
        return Some(format!("no kernel of that name: {}", compiled.log));
    };
    let allowed = match (entry, variant.stem) {
        (Entry::Grouped, "matrix_stream") => KEPT_FROM_ITEM_TO_ITEM,
        _ => 0,
    };
    let spills = |kernel: &KernelResources| {
        let some = kernel.spill_store_bytes + kernel.spill_load_bytes + kernel.stack_bytes > 0;
        some && kernel.stack_bytes > allowed
    };
    if let Some(kernel) = compiled.resources.iter().find(|kernel| spills(kernel)) {
        return Some(format!(
            "spills, or indexes an array in local memory: {kernel:?}"
        ));
    }
    if compiled.log.lines().any(|line| line.contains("warning")) {
        return Some(format!("warnings: {}", compiled.log));
    }
    if kernel.registers > registers || kernel.shared_bytes > shared_bytes {
        return Some(format!(
            "at most {registers} registers and {shared_bytes} bytes of shared memory: {kernel:?}"
        ));
    }
    None
}
