//! Tier 0: what a run on the CPU allocates, counted by an allocator that only this binary has.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use attention_rollout::cpu::{GroupItem, GroupPlan, Options, Plan, StreamingPlan};
use attention_rollout::{Discard, DiscardScope, Output, RolloutConfig, Shape};
use common::generate::Case;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: hands everything to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
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

/// Allocations in `work`, and the size of the largest in bytes.
fn allocations(work: impl FnOnce()) -> (usize, usize) {
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
