//! Rollouts on this machine, each with its floor: reading the same bytes once with as many threads.
//!
//! `cargo bench --features cpu -- 'matrix/vit-b16'` runs what matches. A benchmark's answer is checked against the
//! f64 reference before it is timed, and its inputs are repeated in memory until they exceed any cache.

mod common;

use std::num::NonZeroUsize;
use std::time::Duration;

use attention_rollout::measure::{Case, HostRead, Inputs, minimum, time};
use attention_rollout::{DType, HostLayer, Problem, Shape};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Runs after which the ratio to the floor is taken.
const RATIO_RUNS: usize = 5;

fn thread_counts() -> Vec<NonZeroUsize> {
    let all = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let mut counts = vec![NonZeroUsize::MIN, all];
    counts.dedup();
    counts
}

/// Benchmarks the problems made by `cases` as one run. Nothing is made unless the filter selects the benchmark.
fn bench(
    criterion: &mut Criterion,
    name: &str,
    map_bytes: usize,
    cases: impl Fn(NonZeroUsize) -> Vec<Case>,
) {
    for threads in thread_counts() {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(map_bytes as u64));
        let mut prepared = None;
        group.bench_function(format!("t{threads}"), |bencher| {
            let cases = prepared.get_or_insert_with(|| {
                let mut cases = cases(threads);
                for case in &mut cases {
                    case.check().expect("the answer is right");
                }
                report_floor(name, &mut cases, threads, map_bytes);
                cases
            });
            bencher.iter_custom(|iterations| {
                (0..iterations)
                    .flat_map(|_| cases.iter_mut().map(Case::run).collect::<Vec<_>>())
                    .map(|elapsed| elapsed.expect("the plan runs"))
                    .sum::<Duration>()
            });
        });
        group.finish();
    }
}

/// Prints the time of reading the maps once, and how many times that the rollout takes.
fn report_floor(name: &str, cases: &mut [Case], threads: NonZeroUsize, map_bytes: usize) {
    let floor = HostRead::new(threads).expect("threads start");
    let times = time(cases, &floor, RATIO_RUNS).expect("the plan runs");
    let (run, read) = (minimum(&times.runs), minimum(&times.floor));
    println!(
        "\n{name}/t{threads}: {:.1} GB/s of maps; reading them takes {read:.1?} ({:.1} GB/s): ratio {:.2}",
        attention_rollout::measure::gb_per_s(map_bytes, run),
        attention_rollout::measure::gb_per_s(map_bytes, read),
        run.as_secs_f64() / read.as_secs_f64(),
    );
}

fn models(criterion: &mut Criterion) {
    for spec in common::specs() {
        let (shape, config) = (spec.model.shape(spec.batch), common::config(spec.config));
        let problem = Problem::new(shape, spec.dtype, config).expect("the problem is valid");
        bench(criterion, &spec.name(), problem.map_bytes(), |threads| {
            let inputs = Inputs::random(&shape, spec.dtype, problem.config().causal, 1);
            vec![Case::new(&problem, inputs, threads).expect("the plan is made")]
        });
    }
}

/// The features of a small clinical model, one rollout each.
fn clinical(criterion: &mut Criterion) {
    let problems = common::CLINICAL.map(|(layers, tokens)| {
        let shape = Shape {
            layers,
            batch: common::CLINICAL_BATCH,
            heads: common::CLINICAL_HEADS,
            tokens,
        };
        Problem::new(shape, DType::F32, common::config("rows")).expect("the problem is valid")
    });
    let map_bytes = problems.iter().map(Problem::map_bytes).sum();
    bench(criterion, "rows/clinical/b256/f32", map_bytes, |threads| {
        let case = |problem: &Problem| {
            let inputs = Inputs::random(problem.shape(), DType::F32, false, 1);
            Case::new(problem, inputs, threads).expect("the plan is made")
        };
        problems.iter().map(case).collect()
    });
}

/// Real maps: all-MiniLM-L6-v2 on four sentences.
fn minilm(criterion: &mut Criterion) {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/data/minilm_batch4.safetensors"
    );
    let file = std::fs::read(path).expect("the test data is there");
    let tensors = safetensors::SafeTensors::deserialize(&file).expect("the test data is valid");
    let layers: Vec<Vec<f32>> = (0..6)
        .map(|layer| {
            let tensor = tensors
                .tensor(&format!("layer.{layer}"))
                .expect("six layers");
            let elements = tensor.data().as_chunks::<4>().0;
            elements
                .iter()
                .map(|&bytes| f32::from_le_bytes(bytes))
                .collect()
        })
        .collect();
    let shape = Shape {
        layers: 6,
        batch: 4,
        heads: 12,
        tokens: 28,
    };
    for config in ["rows", "matrix"] {
        let problem =
            Problem::new(shape, DType::F32, common::config(config)).expect("the problem is valid");
        let name = format!("{config}/minilm/b4/f32");
        bench(criterion, &name, problem.map_bytes(), |threads| {
            let layers: Vec<_> = layers.iter().map(|l| HostLayer::from(&l[..])).collect();
            let inputs = Inputs::copied(&layers);
            vec![Case::new(&problem, inputs, threads).expect("the plan is made")]
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_secs(1))
        .without_plots();
    targets = models, clinical, minilm
}
criterion_main!(benches);
