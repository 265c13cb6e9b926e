//! Rollouts on the CPU, on one thread and on all, and on a GPU where there is one, each with its floor: reading the same
//! bytes once on the same device.
//!
//! `cargo bench -- 'matrix/vit-b16'` runs what matches, `cargo bench -- cuda` what runs on a GPU. A benchmark's answer is
//! checked against the f64 reference before it is timed, and its inputs are repeated in memory until they exceed the
//! device's caches. Whole matrices on the CPU are also compared with reading the maps and multiplying the fused ones by the
//! `gemm` crate, and nothing else.

mod common;

use std::num::NonZeroUsize;
use std::sync::LazyLock;
use std::time::Duration;

use attention_rollout::cpu;
#[cfg(feature = "cuda")]
use attention_rollout::cuda;
use attention_rollout::device::Device;
use attention_rollout::measure::{Case, Inputs, Products, gb_per_s, minimum};
use attention_rollout::{DType, HostLayer, LogBase, Lse, Problem, QueriesKeys, Shape, Window};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Runs from which the ratio to the floor is taken.
const RATIO_RUNS: usize = 7;

fn options(threads: Option<NonZeroUsize>) -> cpu::Options {
    cpu::Options {
        threads,
        ..cpu::Options::default()
    }
}

/// The CPU with one thread and with all.
static CPU: LazyLock<Vec<Device>> = LazyLock::new(|| {
    let all = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let mut counts = vec![NonZeroUsize::MIN, all];
    counts.dedup();
    let with = |threads| {
        let threads = Some(threads);
        Device::cpu(&options(threads))
    };
    counts.into_iter().map(with).collect()
});

/// The first GPU; none, said aloud, where there is none that can compute.
#[cfg(feature = "cuda")]
static GPU: LazyLock<Vec<Device>> = LazyLock::new(|| {
    let open = || {
        let context = cuda::context(0)?;
        cuda::nvrtc::Nvrtc::load_for_driver(cuda::driver_version()?)?;
        Device::cuda(&[context], &cuda::Options::default())
    };
    match open() {
        Ok(device) => vec![device],
        Err(error) => {
            eprintln!("SKIPPED: every benchmark on a GPU: {error}");
            Vec::new()
        }
    }
});

/// Every device.
fn devices() -> impl Iterator<Item = &'static Device> {
    #[cfg(feature = "cuda")]
    return CPU.iter().chain(GPU.iter());
    #[cfg(not(feature = "cuda"))]
    CPU.iter()
}

/// The device's part of a benchmark's name.
fn name_of(device: &Device) -> String {
    match device.name() {
        cpu if cpu == "cpu" => format!("t{}", device.threads()),
        gpu => gpu,
    }
}

/// Benchmarks the problems of `members` as one run on `device`. Nothing is made unless the filter selects the benchmark.
fn bench(
    criterion: &mut Criterion,
    name: &str,
    map_bytes: usize,
    device: &Device,
    members: impl Fn() -> Vec<(Problem, Inputs)>,
) {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Bytes(map_bytes as u64));
    let mut prepared = None;
    group.bench_function(name_of(device), |bencher| {
        let case = prepared.get_or_insert_with(|| {
            let mut case = device.case(members()).expect("the plan is made");
            case.check().expect("the answer is right");
            report_floor(name, device, &mut case);
            case
        });
        bencher.iter_custom(|iterations| case.run(iterations).expect("the plan runs"));
    });
    group.finish();
}

/// Prints the time of reading the maps once, and how many times that the rollout takes; the same with the products, where
/// the case has any to compare with.
fn report_floor(name: &str, device: &Device, case: &mut Case) {
    let times = case.time(RATIO_RUNS).expect("the plan runs");
    let (run, read) = (minimum(&times.runs), minimum(&times.floor));
    println!(
        "\n{name}/{}: {run:.1?}, {:.1} GB/s of maps; reading them takes {read:.1?} ({:.1} GB/s): ratio {:.2}",
        name_of(device),
        gb_per_s(case.map_bytes(), run),
        gb_per_s(case.setup().floor_bytes, read),
        run.as_secs_f64() / read.as_secs_f64(),
    );
    if let Some(mut products) = products(device, case) {
        let (mut runs, mut floors) = (Vec::new(), Vec::new());
        for _ in 0..RATIO_RUNS {
            runs.push(case.run(1).expect("the plan runs"));
            floors.push(case.read(1).expect("the inputs are read") + products.time());
        }
        let (run, floor) = (minimum(&runs), minimum(&floors));
        println!(
            "{run:.1?}; reading them and the gemm crate's own products take {floor:.1?}: ratio {:.2}",
            run.as_secs_f64() / floor.as_secs_f64()
        );
    }
}

/// The products alone, for what is made of them on the CPU.
fn products(device: &Device, case: &Case) -> Option<Products> {
    match (case.problems(), device.name().as_str()) {
        ([problem], "cpu") => Products::of(problem, device.threads()).expect("threads start"),
        _ => None,
    }
}

fn models(criterion: &mut Criterion) {
    let mut on = |device: &Device, specs: Vec<common::Spec>| {
        for spec in specs {
            let (shape, config) = (spec.model.shape(spec.batch), common::config(spec.config));
            let problem = Problem::new(shape, spec.dtype, config).expect("the problem is valid");
            let map_bytes = problem.map_bytes();
            bench(criterion, &spec.name(), map_bytes, device, || {
                let inputs = Inputs::random(&problem, 1).expect("there is memory for the maps");
                vec![(problem.clone(), inputs)]
            });
        }
    };
    for device in CPU.iter() {
        on(device, common::cpu_specs());
    }
    #[cfg(feature = "cuda")]
    for device in GPU.iter() {
        on(device, common::gpu_specs());
    }
}

/// The features of a small clinical model, all in one run.
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
    for device in devices() {
        bench(
            criterion,
            "group/clinical/b256/f32",
            map_bytes,
            device,
            || {
                let member = |problem: &Problem| {
                    let inputs = Inputs::random(problem, 1).expect("there is memory for the maps");
                    (problem.clone(), inputs)
                };
                problems.iter().map(member).collect()
            },
        );
    }
}

/// One row of queries and keys with heads of 64 elements, the LSE recomputed and given.
fn queries_keys(criterion: &mut Criterion) {
    for model in [&common::BERT_512, &common::SEQUENCE_2K] {
        for (name, lse) in [
            ("recomputed", Lse::Recomputed),
            ("given", Lse::Given(LogBase::E)),
        ] {
            let shape = model.shape(1);
            let source = QueriesKeys {
                lse,
                ..QueriesKeys::new(&shape, 64)
            };
            let problem = Problem::builder(shape, DType::F32).queries_keys(source);
            let problem = problem.build().expect("the problem is valid");
            let name = format!("scores/{}/b1/f32/{name}", model.name);
            for device in devices() {
                bench(criterion, &name, problem.map_bytes(), device, || {
                    let inputs = Inputs::random(&problem, 1).expect("there is memory for them");
                    vec![(problem.clone(), inputs)]
                });
            }
        }
    }
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
    for (config, device) in ["rows", "matrix"]
        .into_iter()
        .flat_map(|config| devices().map(move |device| (config, device)))
    {
        let problem =
            Problem::new(shape, DType::F32, common::config(config)).expect("the problem is valid");
        let name = format!("{config}/minilm/b4/f32");
        bench(criterion, &name, problem.map_bytes(), device, || {
            let layers: Vec<_> = layers.iter().map(|l| HostLayer::from(&l[..])).collect();
            let inputs = Inputs::copied(&layers).expect("there is memory for the maps");
            vec![(problem.clone(), inputs)]
        });
    }
}

/// What new windows cost the host: the same small run on the CPU with windows that stay, and with others every time.
fn windows(criterion: &mut Criterion) {
    let shape = Shape {
        layers: 1,
        batch: 64,
        heads: 1,
        tokens: 8,
    };
    let problem = Problem::builder(shape, DType::F32).max_window(shape.tokens);
    let problem = problem.build().expect("the problem is valid");
    let threads = Some(NonZeroUsize::MIN);
    let mut plan = cpu::Plan::new(&problem, &options(threads)).expect("the plan is made");
    let maps = vec![0.125f32; shape.batch * shape.tokens * shape.tokens];
    let layers = [HostLayer::from(&maps[..])];
    let mut out = vec![0.0; problem.output_len()];
    let windows = vec![Window::full(shape.tokens); shape.batch];
    let mut group = criterion.benchmark_group("windows/b64/f32");
    for (name, told) in [("stay", false), ("new", true)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                if told {
                    plan.set_windows(&windows).expect("the windows fit");
                }
                plan.run(&layers, &mut out).expect("the plan runs");
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_secs(1))
        .without_plots();
    targets = models, queries_keys, clinical, minilm, windows
}
criterion_main!(benches);
