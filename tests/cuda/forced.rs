//! Forced variants: the named kernel runs, and what it computes is right.

use attention_rollout::cuda::kernel::{self, Kernel};
use attention_rollout::cuda::{Options, Plan, candidates};
use attention_rollout::{
    DType, Error, HeadFusion, Output, Residual, ResidualWeights, Shape, reference,
};

use crate::compare::{Budget, check_close};
use crate::generate::Case;
use crate::machine::{assert_passes, machine, process_of};

/// The kernels of a plan.
fn symbols(plan: &Plan) -> Vec<&str> {
    let variants = plan.schedule().variants().iter();
    variants.map(|variant| variant.symbol.as_str()).collect()
}

/// A case that `kernel` can take part in.
fn case(kernel: &dyn Kernel) -> Case {
    let example = kernel.example(3, 27).unwrap();
    let mut case = Case::new(*example.shape(), 13);
    case.dtype = example.dtype();
    case.config = example.config().clone();
    case.windows = example.windows().to_vec();
    case
}

#[test]
fn the_forced_variant_is_the_one_that_ran() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    for name in [
        "rollout_rows_f32_f32_m1_mean",
        "rollout_rows_f16_f32_m8_mean",
        "rollout_rows_bf16_f32_m1_mean_normalize",
        "rollout_rows_f32_f32_m1_mean_discard",
        "rollout_rows_bf16_f32_m1_mean_gradients",
        "rows_stream_f16_f32_m1_k1_mean",
        "rows_stream_bf16_f32_m8_k4_max",
        "matrix_stream_f32_f16x3_n128_mean",
        "matrix_stream_f16_f16x3_n208_mean",
        "matrix_stream_f16_tf32x3_n64_mean",
        "head_fusion_bf16_mean",
        "head_fusion_f16_weighted_gradients",
        "head_fusion_bf16_max_split",
        "exclusion_f32",
        "zero_fill_f32",
        "discard_f32",
        "row_scales_f32",
        "rollout_first_f32",
        "rollout_product_f32_f32_rows",
        "rollout_product_f32_f32_matrix_discard",
        "rollout_product_f32_f16x3_rows",
        "rollout_product_f32_tf32x3_matrix",
        "split_product_f32_f16x3_t32",
        "split_product_f32_f16x3_t64",
    ] {
        let kernel = kernel::find(name).unwrap();
        let generated = case(kernel.as_ref()).generate();
        let mut plan = machine.plan(&generated.problem, |options| {
            options.variant = Some(name.to_owned());
        });
        assert!(symbols(&plan).contains(&name), "{name}: {plan}");
        let layers = generated.layers();
        let got = machine.run(&mut plan, &layers);
        if let Some(vcuda) = &machine.vcuda {
            let ran = vcuda.launches();
            assert!(
                ran.iter().any(|launch| launch.kernel == name),
                "{name}: {ran:?}"
            );
        }
        let budget = Budget::new(&generated.problem, &layers);
        let want = reference::rollout(&generated.problem, &layers).unwrap();
        check_close(
            name,
            &generated.problem.output_shape(),
            &got,
            &want,
            |index| budget.tolerance(index),
        )
        .unwrap();
    }
}

#[test]
fn half_precision_is_within_its_own_error() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    for (output, stem) in [
        (Output::Matrix, "matrix_stream_f16_f16x2"),
        (Output::Cumulative, "rollout_product_f32_f16x2"),
    ] {
        let mut case = Case::new(
            Shape {
                layers: 4,
                batch: 1,
                heads: 2,
                tokens: 40,
            },
            17,
        );
        case.dtype = DType::F16;
        case.config.output = output;
        let generated = case.generate();
        let layers = generated.layers();
        let name = match stem {
            "matrix_stream_f16_f16x2" => "matrix_stream_f16_f16x2_n64_mean",
            _ => "rollout_product_f32_f16x2_matrix",
        };
        let mut plan = machine.plan(&generated.problem, |options| {
            options.variant = Some(name.to_owned());
        });
        let got = machine.run(&mut plan, &layers);
        let want = reference::rollout(&generated.problem, &layers).unwrap();
        // Each layer rounds one factor of sums of products of non-negative terms to f16: 2^-11, relative; what is below
        // the smallest normal f16 over the scale 2^11 is rounded absolutely.
        let relative = 4.0 / f64::from(1 << 11);
        check_close(
            name,
            &generated.problem.output_shape(),
            &got,
            &want,
            |index| relative * want[index].abs() + 1e-6,
        )
        .unwrap();
    }
}

#[test]
fn values_beyond_the_range_of_f16_are_computed_in_another_arithmetic() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let mut case = Case::new(
        Shape {
            layers: 12,
            batch: 1,
            heads: 2,
            tokens: 20,
        },
        19,
    );
    case.config.output = Output::Matrix;
    case.config.head_fusion = HeadFusion::Max;
    case.config.residual = ResidualWeights::Uniform(Residual::new(1.0, 1.0));
    let generated = case.generate();
    let layers = generated.layers();
    let mut plan = machine.plan(&generated.problem, |_| {});
    let want = reference::rollout(&generated.problem, &layers).unwrap();
    assert!(
        want.iter().any(|value| *value > 100.0),
        "the case is unbounded"
    );
    let budget = Budget::new(&generated.problem, &layers);
    let got = machine.run(&mut plan, &layers);
    check_close(
        "unbounded",
        &generated.problem.output_shape(),
        &got,
        &want,
        |index| budget.tolerance(index),
    )
    .unwrap();
    // And the narrow one is refused.
    let options = Options {
        variant: Some("matrix_stream_f32_f16x3_n64_max".to_owned()),
        ..Options::default()
    };
    assert!(matches!(
        Plan::on(&machine.runtime(), &generated.problem, &options).err(),
        Some(Error::Variant { .. })
    ));
}

/// In a process of its own, since the environment is one per process.
#[test]
fn the_environment_forces_a_variant() {
    const NAME: &str = "rollout_product_f32_f32_rows";
    if std::env::var("ROLLOUT_VARIANT").is_ok_and(|name| name == NAME) {
        let Some(machine) = machine("sm_90") else {
            return;
        };
        let shape = Shape {
            layers: 1,
            batch: 1,
            heads: 1,
            tokens: 4,
        };
        let generated = Case::new(shape, 1).generate();
        let plan = machine.plan(&generated.problem, |_| {});
        assert!(symbols(&plan).contains(&NAME), "{plan}");
        return;
    }
    let mut process = process_of("forced::the_environment_forces_a_variant");
    assert_passes(process.env("ROLLOUT_VARIANT", NAME));
}

#[test]
fn every_candidate_can_be_forced_and_computes_the_same() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let shape = Shape {
        layers: 3,
        batch: 2,
        heads: 2,
        tokens: 27,
    };
    let mut foreign = None;
    for output in [Output::default(), Output::Matrix] {
        let mut case = Case::new(shape, 14);
        case.config.output = output;
        let generated = case.generate();
        let problem = &generated.problem;
        let layers = generated.layers();
        let expected = reference::rollout(problem, &layers).unwrap();
        let budget = Budget::new(problem, &layers);
        let limits = machine.runtime().limits().clone();
        let all = candidates(problem, &limits, &Options::default()).unwrap();
        assert!(all.len() >= 3, "{} ways", all.len());
        for candidate in all {
            let pipeline = candidate.schedule.pipeline();
            let mut plan = machine.plan(problem, |options| options.pipeline = Some(pipeline));
            assert_eq!(*plan.schedule(), candidate.schedule, "{pipeline}");
            let got = machine.run(&mut plan, &layers);
            let what = pipeline.to_string();
            let tolerance = |index| budget.tolerance(index);
            check_close(&what, &problem.output_shape(), &got, &expected, tolerance).unwrap();
            foreign = Some(pipeline);
        }
    }
    // Of the matrix, for rows.
    let rows = Case::new(shape, 14).generate().problem;
    let options = Options {
        pipeline: foreign,
        ..Options::default()
    };
    let error = Plan::on(&machine.runtime(), &rows, &options).err().unwrap();
    assert!(matches!(error, Error::Variant { .. }), "{error}");
}
