//! Tier 0: what a run on the CPU allocates, counted by an allocator that only this binary has.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use attention_rollout::cpu::{GroupItem, GroupPlan, Options, Plan, StreamingPlan};
use attention_rollout::{
    DType, Discard, DiscardScope, Error, Layer, Output, Problem, QueriesKeys, RolloutConfig, Shape,
    StartRows,
};
use common::generate::Case;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);
/// Bytes from which on there is no memory.
static NONE_OF: AtomicUsize = AtomicUsize::new(usize::MAX);

struct Counting;

// SAFETY: hands everything to the system's allocator, or nothing out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        if layout.size() >= NONE_OF.load(Ordering::Relaxed) {
            return std::ptr::null_mut();
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations in `work`, and the size of the largest in bytes. Threads of plans that are gone may still be ending, and
/// allocate; they are waited for.
fn allocations(work: impl FnOnce()) -> (usize, usize) {
    let quiet = || {
        let before = COUNT.load(Ordering::Relaxed);
        std::thread::sleep(std::time::Duration::from_millis(50));
        COUNT.load(Ordering::Relaxed) == before
    };
    while !quiet() {}
    COUNT.store(0, Ordering::Relaxed);
    LARGEST.store(0, Ordering::Relaxed);
    work();
    (
        COUNT.load(Ordering::Relaxed),
        LARGEST.load(Ordering::Relaxed),
    )
}

fn threads(count: usize) -> Options {
    Options {
        threads: NonZeroUsize::new(count),
        ..Options::default()
    }
}

fn case(output: Output, discard: bool, tokens: usize) -> Case {
    let mut case = Case::new(
        Shape {
            layers: 3,
            batch: 5,
            heads: 3,
            tokens,
        },
        7,
    );
    case.config = RolloutConfig {
        output,
        discard: discard.then_some(Discard {
            ratio: 0.5,
            scope: DiscardScope::Map,
        }),
        normalize_rows: true,
        ..RolloutConfig::default()
    };
    case
}

/// What waking the other threads takes inside rayon.
const WAKE: usize = 8;

/// One test, since the counters belong to the process.
#[test]
fn what_runs_allocate() {
    first_products_without_memory();
    runs_allocate_nothing_of_their_own();
    match cfg!(target_os = "linux") {
        true => long_sequences_take_little_memory(),
        false => {
            eprintln!("SKIPPED: what_runs_allocate: only Linux says what a peak of memory was")
        }
    }
}

/// A map of as many tokens would take a GiB.
fn long_sequences_take_little_memory() {
    const MOST: usize = 64 << 20;
    let (tokens, head_dim) = (16_384, 64);
    let shape = Shape {
        layers: 2,
        batch: 1,
        heads: 1,
        tokens,
    };
    let config = RolloutConfig {
        causal: true,
        output: Output::Rows(StartRows::Mean),
        ..RolloutConfig::default()
    };
    // Every row, of keys enough for several blocks of them; more would take longer, and nothing else.
    let source = QueriesKeys {
        sliding_windows: vec![1024],
        ..QueriesKeys::new(&shape, head_dim)
    };
    let problem = Problem::builder(shape, DType::F32)
        .config(config)
        .queries_keys(source)
        .build()
        .unwrap();
    let elements: Vec<f32> = (0..tokens * head_dim).map(|i| (i as f32).sin()).collect();
    let layer = Layer::QueriesKeys {
        queries: elements[..].into(),
        keys: elements[..].into(),
        lse: None,
    };
    let mut relevance = vec![0.0; tokens];
    // From here on, the peak is that of what follows.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = peak_resident_bytes();
    let mut plan = Plan::new(&problem, &threads(2)).unwrap();
    plan.run(&[layer; 2], &mut relevance).unwrap();
    let taken = peak_resident_bytes() - before;
    assert!(taken < MOST, "{taken} bytes");
    let sum: f64 = relevance.iter().map(|&value| f64::from(value)).sum();
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");
}

/// The most physical memory that this process has had.
fn peak_resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|peak| peak.trim().strip_suffix(" kB"));
    kib.unwrap().parse::<usize>().unwrap() << 10
}

/// `work` where nothing as large as a second-level cache can be had.
fn without_memory<T>(work: impl FnOnce() -> T) -> T {
    NONE_OF.store(128 << 10, Ordering::Relaxed);
    let result = work();
    NONE_OF.store(usize::MAX, Ordering::Relaxed);
    result
}

/// Each thread's first product takes a buffer: where there is none, that is an error, and the next try goes on.
fn first_products_without_memory() {
    let generated = case(Output::Matrix, false, 33).generate();
    let (problem, layers) = (&generated.problem, generated.layers());
    for count in [1, 3] {
        let made = without_memory(|| Plan::new(problem, &threads(count)).err());
        assert!(matches!(made, Some(Error::HostMemory { .. })), "{made:?}");
    }
    let mut plan = Plan::new(problem, &threads(1)).unwrap();
    let mut stream = StreamingPlan::new(problem, &threads(1)).unwrap();
    let mut out = vec![0.0; problem.output_len()];
    plan.run(&layers, &mut out).unwrap();
    let elsewhere = || {
        let mut again = vec![0.0; problem.output_len()];
        let refused = without_memory(|| plan.run(&layers, &mut again));
        assert!(matches!(refused, Err(Error::HostMemory { .. })));
        let refused = without_memory(|| stream.push_layer(layers[0]));
        assert!(matches!(refused, Err(Error::HostMemory { .. })));
        plan.run(&layers, &mut again).unwrap();
        assert_eq!(again, out);
        for &layer in &layers {
            without_memory(|| stream.push_layer(layer)).unwrap();
        }
        without_memory(|| stream.finish(&mut again)).unwrap();
        assert_eq!(again, out);
    };
    std::thread::scope(|scope| scope.spawn(elsewhere).join().unwrap());
}

fn runs_allocate_nothing_of_their_own() {
    for discard in [false, true] {
        let generated = case(Output::default(), discard, 33).generate();
        let layers = generated.layers();
        let mut out = vec![0.0; generated.problem.output_len()];
        let mut plan = Plan::new(&generated.problem, &threads(1)).unwrap();
        let (taken, largest) = allocations(|| plan.run(&layers, &mut out).unwrap());
        assert_eq!(taken, 0, "up to {largest} bytes");
        let mut group =
            GroupPlan::new(std::slice::from_ref(&generated.problem), &threads(1)).unwrap();
        let mut members = [GroupItem::new(&layers, &mut out)];
        group.run(&mut members).unwrap();
        let (taken, _) = allocations(|| group.run(&mut members).unwrap());
        assert_eq!(taken, 0, "group");
        let mut stream = StreamingPlan::new(&generated.problem, &threads(1)).unwrap();
        let (taken, _) = allocations(|| stream.push_layer(layers[0]).unwrap());
        assert_eq!(taken, 0, "push");
    }
    // The GEMM crate notes in a few bytes of its own which operands it has packed: none. A product is made in ten parts.
    let generated = case(Output::Matrix, true, 200).generate();
    let layers = generated.layers();
    let mut out = vec![0.0; generated.problem.output_len()];
    let mut plan = Plan::new(&generated.problem, &threads(1)).unwrap();
    plan.run(&layers, &mut out).unwrap();
    let (taken, largest) = allocations(|| plan.run(&layers, &mut out).unwrap());
    let products = 2 * 5;
    assert!(
        taken <= 3 * 10 * products,
        "{taken} allocations in {products} products"
    );
    if cfg!(target_arch = "x86_64") {
        assert!(largest < 48 * 200 * 4, "{largest} bytes");
    }
    // Last, since threads that end may allocate.
    let generated = case(Output::default(), true, 33).generate();
    let layers = generated.layers();
    let mut out = vec![0.0; generated.problem.output_len()];
    let mut plan = Plan::new(&generated.problem, &threads(3)).unwrap();
    plan.run(&layers, &mut out).unwrap();
    let (taken, largest) = allocations(|| plan.run(&layers, &mut out).unwrap());
    assert!(taken <= WAKE, "{taken} allocations, up to {largest} bytes");
}
