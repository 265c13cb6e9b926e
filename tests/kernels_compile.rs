//! Tier 1: kernel variants compile to machine code, without spills, for every architecture from sm_75 on.
//!
//! There are some 240 variants, 7 architectures and 2 versions of NVRTC. A test run takes a share of the variants, each
//! for one architecture; `ROLLOUT_COMPILE_ALL=1` takes all of them for every architecture.
#![cfg(feature = "cuda")]

#[path = "common/nvrtc.rs"]
mod common;

use attention_rollout::cuda::nvrtc::{Cache, Options, Source, Target};
use attention_rollout::cuda::variant::Variant;

const ARCHS: [u32; 7] = [75, 80, 86, 89, 90, 100, 120];
/// Every how many variants one is compiled.
const SAMPLE: usize = 7;

#[test]
fn variants_compile_without_spills() {
    let all = std::env::var_os("ROLLOUT_COMPILE_ALL").is_some_and(|value| value == "1");
    let cache = Cache::at(concat!(env!("CARGO_TARGET_TMPDIR"), "/kernels"));
    let mut failures = Vec::new();
    for (turn, nvrtc) in common::nvrtcs().into_iter().enumerate() {
        for (number, variant) in Variant::all().into_iter().enumerate() {
            if !all && number % SAMPLE != turn {
                continue;
            }
            let (major, minor) = variant.compute_capability();
            let archs: Vec<u32> = ARCHS
                .into_iter()
                .filter(|&arch| {
                    arch >= major * 10 + minor && nvrtc.supported_archs().contains(&arch)
                })
                .collect();
            let chosen = if all {
                &archs[..]
            } else {
                &archs[number / SAMPLE % archs.len()..][..1]
            };
            for &arch in chosen {
                let symbol = variant.symbol();
                let what = format!("{symbol}, sm_{arch}, NVRTC {}", nvrtc.version());
                let source = Source::embedded(&format!("{}.cu", variant.stem())).unwrap();
                let mut options = Options::new(Target::Cubin(arch.into()));
                for (name, value) in variant.defines() {
                    options = options.define(name, value);
                }
                match cache.compile(&nvrtc, &source, &options) {
                    Err(error) => failures.push(format!("{what}: {error}")),
                    Ok(compiled) => {
                        let used = compiled.kernel(&symbol).expect("the kernel's symbol");
                        println!(
                            "{what}: {} registers, {} B shared",
                            used.registers, used.shared_bytes
                        );
                        let spilt = used.spill_store_bytes + used.spill_load_bytes;
                        // A stack without spills is an array indexed at run time.
                        if spilt + used.stack_bytes > 0 || compiled.log.contains("warning") {
                            failures.push(format!("{what}: {used:?}\n{}", compiled.log));
                        }
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
