//! The choice of kernels for devices, real and made up: no driver, no compiler.

use attention_rollout::cuda::kernel::Arithmetic;
use attention_rollout::cuda::{
    Candidate, DeviceLimits, GroupPlan, HostPlan, Options, Origin, Plan, Precision, Schedule,
    StreamingPlan, candidates, choose, choose_streaming,
};
use attention_rollout::{
    DType, Discard, DiscardScope, Error, HeadFusion, Output, Problem, Residual, ResidualWeights,
    RolloutConfig, Shape, StartRows, Window,
};

fn problem(layers: usize, batch: usize, heads: usize, tokens: usize, output: Output) -> Problem {
    let shape = Shape {
        layers,
        batch,
        heads,
        tokens,
    };
    let config = RolloutConfig {
        output,
        ..RolloutConfig::default()
    };
    Problem::new(shape, DType::F16, config).unwrap()
}

fn rows() -> Output {
    Output::default()
}

fn chosen(problem: &Problem, limits: &DeviceLimits) -> Schedule {
    choose(problem, limits, &Options::default()).unwrap()
}

fn stems(schedule: &Schedule) -> Vec<&'static str> {
    schedule.variants().iter().map(|v| v.stem).collect()
}

fn product_arithmetic(schedule: &Schedule) -> Option<Arithmetic> {
    schedule
        .variants()
        .iter()
        .filter(|variant| ["rollout_product", "matrix_stream"].contains(&variant.stem))
        .find_map(|variant| {
            let name = variant.symbol.split('_').nth(3)?;
            let mut all = Arithmetic::ALL.into_iter();
            all.find(|arithmetic| arithmetic.name() == name)
        })
}

#[test]
fn rows_of_large_batches_are_one_launch_of_one_kernel() {
    for (batch, tokens) in [(64, 197), (1024, 197), (4096, 128)] {
        let schedule = chosen(&problem(12, batch, 12, tokens, rows()), &DeviceLimits::H200);
        assert_eq!(stems(&schedule), ["rows_stream"], "{schedule}");
        assert_eq!(
            (schedule.launches(), schedule.workspace_bytes()),
            (1, 0),
            "{schedule}"
        );
    }
}

/// A GPU that is too old for a ring, and otherwise as large as an H200.
fn without_ring() -> DeviceLimits {
    DeviceLimits {
        arch: 75,
        clusters: false,
        ..DeviceLimits::H200
    }
}

#[test]
fn few_items_are_divided_among_all_multiprocessors() {
    for (batch, tokens, grid) in [(8, 197, "8x16x1"), (1, 197, "1x132x1"), (1, 577, "1x132x1")] {
        let schedule = chosen(&problem(12, batch, 12, tokens, rows()), &DeviceLimits::H200);
        assert_eq!(stems(&schedule), ["rows_stream"], "{schedule}");
        assert_eq!(schedule.launches(), 1, "{schedule}");
        let printed = schedule.to_string();
        assert!(printed.contains(&format!("grid {grid}")), "{schedule}");
    }
}

#[test]
fn without_a_ring_few_items_are_divided_until_partial_sums_cost_what_rows_save() {
    let schedule = chosen(&problem(12, 8, 12, 197, rows()), &without_ring());
    // One launch per layer and a reduction, each layer's rows divided among many blocks.
    assert_eq!(stems(&schedule), ["rollout_rows"], "{schedule}");
    assert_eq!(schedule.launches(), 13, "{schedule}");
    let printed = schedule.to_string();
    let grid = printed.split("grid 8x").nth(1).unwrap();
    let splits: u32 = grid.split('x').next().unwrap().parse().unwrap();
    assert!((9..=33).contains(&splits), "{schedule}");
}

#[test]
fn without_a_ring_rows_of_one_long_item_take_the_product() {
    for tokens in [577, 1374] {
        let schedule = chosen(&problem(24, 1, 16, tokens, rows()), &without_ring());
        assert_eq!(
            stems(&schedule),
            ["head_fusion", "rollout_product"],
            "{schedule}"
        );
    }
}

#[test]
fn a_batch_that_leaves_room_is_divided_among_clusters_where_there_are_any() {
    let problem = problem(12, 64, 12, 197, rows());
    let schedule = chosen(&problem, &DeviceLimits::H200);
    assert!(
        schedule.to_string().contains(" in clusters of "),
        "{schedule}"
    );
    assert_eq!(
        (schedule.launches(), schedule.workspace_bytes()),
        (1, 0),
        "{schedule}"
    );
    let without = DeviceLimits {
        clusters: false,
        ..DeviceLimits::H200
    };
    let schedule = chosen(&problem, &without).to_string();
    assert!(!schedule.contains("clusters"), "{schedule}");
}

#[test]
fn short_windows_of_a_large_batch_are_chained_in_one_launch() {
    let schedule = chosen(
        &problem(12, 1024, 4, 60, Output::Matrix),
        &DeviceLimits::H200,
    );
    assert_eq!(stems(&schedule), ["matrix_stream"], "{schedule}");
    assert_eq!(schedule.launches(), 1);
    // The tokens that count are those of the windows.
    let shape = Shape {
        layers: 12,
        batch: 1024,
        heads: 4,
        tokens: 512,
    };
    let padded = Problem::builder(shape, DType::F16)
        .config(RolloutConfig {
            output: Output::Matrix,
            ..RolloutConfig::default()
        })
        .windows(vec![Window { start: 3, len: 60 }; 1024])
        .build()
        .unwrap();
    let schedule = chosen(&padded, &DeviceLimits::H200);
    assert_eq!(stems(&schedule), ["matrix_stream"], "{schedule}");
}

#[test]
fn matrices_of_few_items_are_multiplied_in_pairs() {
    for (output, tokens) in [
        (Output::Matrix, 28),
        (Output::Matrix, 197),
        (Output::Cumulative, 197),
    ] {
        for limits in [DeviceLimits::H200, DeviceLimits::A100] {
            let schedule = chosen(&problem(12, 1, 12, tokens, output.clone()), &limits);
            assert_eq!(
                stems(&schedule)[..2],
                ["head_fusion", "split_product"],
                "{schedule}"
            );
            assert_eq!(schedule.launches(), 1 + 4, "{schedule}");
        }
    }
    // What the tree does not take.
    let too_old = DeviceLimits::T4;
    let schedule = chosen(&problem(12, 1, 12, 197, Output::Matrix), &too_old);
    assert_eq!(stems(&schedule)[2], "rollout_product", "{schedule}");
    let normalized = |config: RolloutConfig| RolloutConfig {
        normalize_rows: true,
        ..config
    };
    let unbounded = |config: RolloutConfig| RolloutConfig {
        residual: ResidualWeights::Uniform(Residual::new(1.0, 1.0)),
        ..config
    };
    for change in [normalized, unbounded] {
        let problem = problem(12, 1, 12, 197, Output::Matrix);
        let config = change(problem.config().clone());
        let problem = Problem::new(*problem.shape(), DType::F16, config).unwrap();
        let schedule = chosen(&problem, &DeviceLimits::H200);
        assert!(!stems(&schedule).contains(&"split_product"), "{schedule}");
    }
}

#[test]
fn long_matrices_are_fused_and_multiplied_within_l2() {
    for limits in [DeviceLimits::H200, DeviceLimits::A100, DeviceLimits::T4] {
        let schedule = chosen(&problem(24, 64, 16, 577, Output::Matrix), &limits);
        assert_eq!(stems(&schedule)[0], "head_fusion", "{schedule}");
        let item = 4 * 4 * 577 * 580;
        assert!(
            schedule.workspace_bytes() <= (limits.l2_bytes / 5 * 4).max(item) + 1024,
            "{schedule}"
        );
    }
}

#[test]
fn the_arithmetic_follows_device_range_and_precision() {
    // Short enough for a block, and many.
    let matrix = problem(12, 1024, 4, 60, Output::Matrix);
    let with = |problem: &Problem, limits: &DeviceLimits, precision| {
        let options = Options {
            precision,
            ..Options::default()
        };
        product_arithmetic(&choose(problem, limits, &options).unwrap()).unwrap()
    };
    assert_eq!(
        with(&matrix, &DeviceLimits::H200, Precision::F32),
        Arithmetic::F16x3
    );
    assert_eq!(
        with(&matrix, &DeviceLimits::H200, Precision::Half),
        Arithmetic::F16x2
    );
    assert_eq!(
        with(&matrix, &DeviceLimits::T4, Precision::Half),
        Arithmetic::F32
    );
    // `R = A + I` doubles row sums in every layer.
    let config = RolloutConfig {
        residual: ResidualWeights::Uniform(Residual::new(1.0, 1.0)),
        ..matrix.config().clone()
    };
    let unbounded = Problem::new(*matrix.shape(), DType::F16, config.clone()).unwrap();
    assert_eq!(unbounded.growth_bound(), 4096.0);
    assert_eq!(
        with(&unbounded, &DeviceLimits::H200, Precision::Half),
        Arithmetic::Tf32x3
    );
    // Normalised rows are bounded again.
    let config = RolloutConfig {
        normalize_rows: true,
        ..config
    };
    let normalized = Problem::new(*matrix.shape(), DType::F16, config.clone()).unwrap();
    assert_eq!(
        with(&normalized, &DeviceLimits::H200, Precision::F32),
        Arithmetic::F16x3
    );
    // Unless a negative weight lets a row sum vanish.
    let config = RolloutConfig {
        head_fusion: HeadFusion::Weighted([vec![-0.1], vec![0.1; 3]].concat()),
        ..config
    };
    let negative = Problem::new(*matrix.shape(), DType::F16, config).unwrap();
    assert_eq!(
        with(&negative, &DeviceLimits::H200, Precision::F32),
        Arithmetic::Tf32x3
    );
}

#[test]
fn discard_selects_on_fused_maps_first() {
    let config = RolloutConfig {
        discard: Some(Discard {
            ratio: 0.9,
            scope: DiscardScope::Map,
        }),
        ..RolloutConfig::default()
    };
    let shape = Shape {
        layers: 12,
        batch: 8,
        heads: 12,
        tokens: 197,
    };
    let schedule = chosen(
        &Problem::new(shape, DType::F16, config).unwrap(),
        &DeviceLimits::H200,
    );
    assert_eq!(
        stems(&schedule),
        ["head_fusion", "discard", "rows_stream"],
        "{schedule}"
    );
}

#[test]
fn many_rows_and_rows_too_long_to_normalise_take_the_product() {
    let rows = |count| Output::Rows(StartRows::Rows((0..count).collect()));
    let schedule = chosen(&problem(6, 4, 8, 300, rows(9)), &DeviceLimits::H200);
    assert_eq!(
        stems(&schedule),
        ["head_fusion", "rollout_product"],
        "{schedule}"
    );
    let long = problem(2, 1, 2, 3000, rows(1));
    assert_eq!(stems(&chosen(&long, &without_ring())), ["rollout_rows"]);
    assert_eq!(stems(&chosen(&long, &DeviceLimits::H200)), ["rows_stream"]);
    let config = RolloutConfig {
        normalize_rows: true,
        ..long.config().clone()
    };
    let schedule = chosen(
        &Problem::new(*long.shape(), DType::F16, config).unwrap(),
        &without_ring(),
    );
    assert_eq!(
        stems(&schedule),
        ["head_fusion", "row_scales", "rollout_product"],
        "{schedule}"
    );
}

#[test]
fn every_schedule_stays_within_the_limits_of_its_device() {
    let tiny = DeviceLimits {
        multiprocessors: 1,
        shared_bytes_per_block: 16 << 10,
        l2_bytes: 1 << 20,
        ..DeviceLimits::T4
    };
    for limits in [
        tiny,
        DeviceLimits::T4,
        DeviceLimits::A100,
        DeviceLimits::H200,
    ] {
        for tokens in [1, 64, 65, 128, 129, 577, 2500] {
            for output in [rows(), Output::Matrix, Output::Cumulative] {
                let problem = problem(3, 5, 2, tokens, output);
                for schedule in [
                    chosen(&problem, &limits),
                    choose_streaming(&problem, &limits, &Options::default()).unwrap(),
                ] {
                    let mut variants = schedule.variants().iter();
                    assert!(variants.all(|v| v.runs_on(&limits)), "{schedule}");
                    for line in schedule
                        .to_string()
                        .lines()
                        .filter(|l| l.contains("shared"))
                    {
                        let bytes = line.rsplit(", ").next().unwrap();
                        let bytes = bytes.split(' ').next().unwrap().parse::<usize>().unwrap();
                        assert!(bytes <= limits.shared_bytes_per_block, "{schedule}");
                    }
                }
            }
        }
    }
}

#[test]
fn printed_schedules_name_kernels_geometry_and_bytes() {
    let schedule = chosen(&problem(12, 4096, 12, 197, rows()), &DeviceLimits::H200);
    let printed = schedule.to_string();
    // Per item 11 layers of 12 x 197 x 197 and one row of 12 x 197 in f16, and 197 f32 out.
    let maps = 4096usize * 2 * (11 * 12 * 197 * 197 + 12 * 197);
    let output = 4096 * 4 * 197;
    for part in [
        "12 layers of [4096, 12, 197, 197] f16".to_owned(),
        "1 x rows_stream_f16_f32_m1_k7_mean: grid 66x2x1 in clusters of 2".to_owned(),
        format!(
            "floor {} B ({maps} B maps, {output} B output)",
            maps + output
        ),
        "launches 1, workspace 0 B".to_owned(),
    ] {
        assert!(printed.contains(&part), "no {part:?} in\n{printed}");
    }
}

#[test]
fn a_forced_variant_is_taken_or_refused_by_name() {
    let forced = |problem: &Problem, name: &str| {
        let options = Options {
            variant: Some(name.to_owned()),
            ..Options::default()
        };
        choose(problem, &DeviceLimits::H200, &options)
    };
    let one_row = problem(12, 4, 12, 100, rows());
    for name in [
        "rollout_rows_f16_f32_m8_mean",
        "head_fusion_f16_mean",
        "rollout_product_f32_tf32x3_rows",
        "rollout_product_f32_f32_rows",
    ] {
        let schedule = forced(&one_row, name).unwrap();
        assert!(
            schedule.variants().iter().any(|v| v.symbol == name),
            "{schedule}"
        );
    }
    for (name, reason) in [
        ("rollout_fast", "does not exist"),
        ("rollout_rows_f32_f32_m1_mean", "takes no part"),
        ("rollout_product_f32_f16x3_matrix", "takes no part"),
    ] {
        let error = forced(&one_row, name).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(reason), "{error}");
    }
}

#[test]
fn devices_too_old_are_refused_with_their_architecture() {
    let limits = DeviceLimits {
        arch: 70,
        ..DeviceLimits::T4
    };
    let error = choose(&problem(1, 1, 1, 4, rows()), &limits, &Options::default()).unwrap_err();
    assert!(matches!(
        error,
        Error::Architecture {
            required: 75,
            got: 70
        }
    ));
}

#[test]
fn nothing_to_do_launches_nothing() {
    let schedule = chosen(&problem(12, 0, 12, 197, rows()), &DeviceLimits::H200);
    assert_eq!((schedule.launches(), schedule.workspace_bytes()), (0, 0));
}

#[test]
fn extents_that_no_launch_takes_are_an_error() {
    let huge = problem(1, 1, 1 << 33, 1, Output::Matrix);
    let error = choose(&huge, &DeviceLimits::H200, &Options::default());
    assert!(matches!(error, Err(Error::SizeOverflow { .. })));
}

#[test]
fn plans_may_move_between_threads() {
    fn movable<T: Send>() {}
    movable::<Plan>();
    movable::<StreamingPlan>();
    movable::<GroupPlan>();
    movable::<HostPlan>();
}

#[test]
fn every_model_has_a_way_whose_estimate_is_no_less_than_the_floor() {
    let options = Options::default();
    for (name, limits) in DeviceLimits::MODELS {
        assert_eq!(DeviceLimits::of_model(name), Some(limits.clone()));
        for output in [rows(), Output::Matrix, Output::Cumulative] {
            for (batch, tokens) in [(1, 28), (8, 197), (256, 128), (2, 577)] {
                let problem = problem(12, batch, 12, tokens, output.clone());
                let all = candidates(&problem, &limits, &options).unwrap();
                let what = format!("{name}, batch {batch}, {tokens} tokens, {output:?}");
                assert_eq!(all[0].schedule, chosen(&problem, &limits), "{what}");
                let estimates = || all.iter().map(|candidate| candidate.estimate_us);
                assert!(estimates().skip(1).is_sorted(), "{what}");
                for Candidate {
                    schedule,
                    estimate_us,
                    estimate_origin,
                    floor_us,
                } in &all
                {
                    let peak = f64::from(limits.memory_bytes_per_us);
                    assert_eq!(*floor_us, schedule.floor_bytes() as f64 / peak, "{what}");
                    assert!(
                        estimate_us.is_finite() && estimate_us >= floor_us,
                        "{what}: {estimate_us} us, floor {floor_us} us: {schedule}"
                    );
                    let is_assumed = matches!(estimate_origin, Origin::Assumed(_));
                    assert!(is_assumed || name == "h200", "{what}: {estimate_origin:?}");
                }
                let pipelines: Vec<_> = all.iter().map(|one| one.schedule.pipeline()).collect();
                for (index, pipeline) in pipelines.iter().enumerate() {
                    assert!(!pipelines[..index].contains(pipeline), "{what}: {pipeline}");
                }
            }
        }
    }
}

#[test]
fn memory_that_is_slower_takes_longer() {
    let problem = problem(12, 64, 12, 197, rows());
    let estimate_us = |memory_bytes_per_us| {
        let limits = DeviceLimits {
            memory_bytes_per_us,
            ..DeviceLimits::H200
        };
        candidates(&problem, &limits, &Options::default()).unwrap()[0].estimate_us
    };
    let [h200, half] = [4_916_736, 2_458_368].map(estimate_us);
    assert!((1.8..2.1).contains(&(half / h200)), "{half} and {h200} us");
    // What a driver does not tell is taken to be as an H200's.
    assert!((estimate_us(0) / h200 - 1.0).abs() < 0.01);
}
