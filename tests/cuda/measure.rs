//! The measuring side: what is timed is right, reads each byte once, and is made of what the plan says.

use std::collections::HashSet;
use std::path::Path;

use attention_rollout::cuda::nvrtc::{self, Cache, Source, Target};
use attention_rollout::cuda::{self, DeviceLimits, Options};
use attention_rollout::measure::{Case, Inputs};
use attention_rollout::{DType, Output, Problem, RolloutConfig, Shape};

use crate::machine::{Machine, machine, skip};

fn case(machine: &Machine, shape: Shape, dtype: DType, output: Output) -> Case {
    let config = RolloutConfig {
        output,
        ..Default::default()
    };
    let problem = Problem::new(shape, dtype, config).unwrap();
    let inputs = Inputs::random(&problem, 1).unwrap();
    let member = vec![(problem, inputs)];
    Case::cuda(member, &machine.runtime(), &Options::default())
        .unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_floor_reads_the_bytes_of_a_run_once_and_rotates() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let Some(vcuda) = &machine.vcuda else {
        return skip("it directs the stand-in driver, and this is a GPU");
    };
    // Many tiles of the kernel, and a last granule that is not whole.
    let shape = Shape {
        layers: 3,
        batch: 1,
        heads: 2,
        tokens: 131,
    };
    for dtype in [DType::F32, DType::F16] {
        let mut case = case(&machine, shape, dtype, Output::Matrix);
        let floor_bytes = case.setup().floor_bytes as u64;
        assert_eq!(floor_bytes, case.map_bytes() as u64 / 16 * 16);
        let before = vcuda.launches().len();
        case.read(1).unwrap();
        case.read(2).unwrap();
        let launches = vcuda.launches();
        let reads = &launches[before..];
        assert_eq!(reads.len(), 2 + 3, "each read follows another");
        for read in reads {
            assert_eq!(read.kernel, "read_floor");
            let traffic = &read.counts.traffic;
            assert_eq!(
                traffic.len(),
                1,
                "it writes nothing, and reads nothing else"
            );
            assert_eq!(traffic[0].read.bytes, floor_bytes, "{dtype}");
            assert_eq!(traffic[0].read.distinct_bytes, floor_bytes, "{dtype}");
            assert_eq!(traffic[0].written.bytes, 0);
            // 32 lanes of 16 bytes a request, but for the last one.
            assert_eq!(traffic[0].read.requests, floor_bytes.div_ceil(512));
        }
        let copies = case.setup().copies;
        let l2_bytes = cuda::limits(&machine.context).unwrap().l2_bytes;
        assert!(copies == 256 || copies * case.map_bytes() >= 2 * l2_bytes);
    }
}

#[test]
fn the_peak_of_memory_is_told_by_the_driver() {
    for arch in ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"] {
        let Some(machine) = machine(arch) else {
            return;
        };
        let limits = cuda::limits(&machine.context).unwrap();
        let peak = |limits: &DeviceLimits| limits.memory_bytes_per_us;
        match machine.vcuda {
            None => assert!(peak(&limits) > 100_000, "{limits:?}"),
            Some(_) => {
                let mut models = DeviceLimits::MODELS.into_iter().map(|(_, model)| model);
                let is_alike = |model: &DeviceLimits| {
                    (model.arch, model.multiprocessors, peak(model))
                        == (limits.arch, limits.multiprocessors, peak(&limits))
                };
                assert!(models.any(|model| is_alike(&model)), "{limits:?}");
            }
        }
    }
}

/// As `tests/kernels/compile.rs` has it of every variant.
#[test]
fn the_floor_compiles_for_every_architecture_without_spills() {
    for nvrtc in crate::nvrtc::nvrtcs() {
        for arch in [75, 80, 86, 89, 90, 100, 120] {
            let cache = Cache::at(Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels"));
            let source = Source::embedded("read_floor.cu").unwrap();
            let options = nvrtc::Options::new(Target::Cubin(arch.into())).label("read_floor");
            let compiled = cache.compile(&nvrtc, &source, &options).unwrap();
            let kernel = compiled.kernel("read_floor").unwrap();
            let spilled = kernel.spill_store_bytes + kernel.spill_load_bytes + kernel.stack_bytes;
            assert_eq!(spilled, 0, "sm_{arch}");
            // 4 blocks of 256 threads on a multiprocessor.
            assert!(kernel.registers <= 64, "sm_{arch}: {kernel:?}");
            assert!(!compiled.log.contains("warning"), "{}", compiled.log);
        }
    }
}

#[test]
fn what_is_timed_is_right_and_runs_as_a_graph_too() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let shape = Shape {
        layers: 2,
        batch: 2,
        heads: 2,
        tokens: 9,
    };
    for output in [Output::default(), Output::Matrix, Output::Cumulative] {
        let mut case = case(&machine, shape, DType::F32, output);
        case.check().unwrap_or_else(|error| panic!("{error}"));
        let times = case.time(3).unwrap();
        assert_eq!(times.no_replays, None);
        assert_eq!(
            [times.runs.len(), times.floor.len(), times.replays.len()],
            [3; 3]
        );
        if let Some(vcuda) = &machine.vcuda {
            let replayed: HashSet<String> = vcuda
                .launches()
                .into_iter()
                .filter(|launch| launch.from_graph)
                .map(|launch| launch.kernel)
                .collect();
            for variant in case.setup().variants {
                assert!(replayed.contains(&variant), "{variant}: {replayed:?}");
            }
        }
    }
}

#[test]
fn groups_are_one_run() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let member = |(layers, tokens)| {
        let shape = Shape {
            layers,
            batch: 3,
            heads: 2,
            tokens,
        };
        let problem = Problem::new(shape, DType::F32, RolloutConfig::default()).unwrap();
        let inputs = Inputs::random(&problem, 2).unwrap();
        (problem, inputs)
    };
    let members: Vec<_> = [(3, 12), (1, 3), (2, 40)].map(member).into();
    let bytes: usize = members.iter().map(|(problem, _)| problem.map_bytes()).sum();
    let mut case = Case::cuda(members, &machine.runtime(), &Options::default()).unwrap();
    assert_eq!(case.map_bytes(), bytes);
    case.check().unwrap_or_else(|error| panic!("{error}"));
    let times = case.time(2).unwrap();
    assert_eq!(times.no_replays, None);
    assert_eq!([times.runs.len(), times.replays.len()], [2; 2]);
}

#[test]
fn maps_that_do_not_fit_are_an_error() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let Some(vcuda) = &machine.vcuda else {
        return skip("it directs the stand-in driver, and this is a GPU");
    };
    vcuda.set_memory_limit(0, 1 << 20);
    let shape = Shape {
        layers: 2,
        batch: 4,
        heads: 4,
        tokens: 128,
    };
    let problem = Problem::new(shape, DType::F32, RolloutConfig::default()).unwrap();
    let inputs = Inputs::random(&problem, 1).unwrap();
    let result = Case::cuda(
        vec![(problem, inputs)],
        &machine.runtime(),
        &Options::default(),
    );
    let error = result.err().expect("the maps have 2 MiB").to_string();
    assert!(error.contains("attention maps"), "{error}");
}
