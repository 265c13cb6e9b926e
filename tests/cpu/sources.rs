//! Maps weighed by gradients, and tokens excluded from attention, against the f64 reference.

use crate::common::compare::{Budget, check_close};
use crate::common::generate::{Generated, weighed_case};
use crate::ways::{both_forms, streams_groups_and_chunks, threads};
use attention_rollout::cpu::Plan;
use attention_rollout::{
    DType, GradientRule, HeadFusion, HostTensor, Layer, Output, Problem, Residual, ResidualWeights,
    RolloutConfig, Shape, Window, reference,
};
use proptest::prelude::*;

fn check(what: &str, generated: &Generated, got: &[f32]) -> Result<(), TestCaseError> {
    let (problem, layers) = (&generated.problem, generated.layers());
    let want = reference::rollout(problem, &layers).unwrap();
    let budget = Budget::new(problem, &layers);
    let tolerance = |at| budget.tolerance(at);
    check_close(what, &problem.output_shape(), got, &want, tolerance).map_err(TestCaseError::fail)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn both_forms_agree_with_the_reference(
        case in weighed_case(40),
        count in 1..=3usize,
        share_rest: bool,
    ) {
        let generated = case.generate();
        let problem = &generated.problem;
        let layers = generated.layers();
        both_forms(problem, &layers, (count, share_rest), |what, got| check(what, &generated, got))?;
    }

    #[test]
    fn streams_groups_and_chunks_agree_with_the_reference(case in weighed_case(24), chunk in 1..=3usize) {
        let generated = case.generate();
        let (problem, layers) = (&generated.problem, generated.layers());
        let checked = |what: &str, got: &[f32]| check(what, &generated, got);
        streams_groups_and_chunks(problem, &layers, chunk, checked)?;
    }
}

/// One map of two tokens and two heads, and its gradients.
const MAPS: [f32; 8] = [0.5, 0.5, 0.25, 0.75, 0.5, 0.5, 1.0, 0.0];
const GRADIENTS: [f32; 8] = [1.0, -1.0, 2.0, 4.0, 3.0, -2.0, -1.0, 8.0];

fn matrix(config: RolloutConfig, maps: &[f32], gradients: &[f32]) -> Vec<f32> {
    let shape = Shape {
        layers: 1,
        batch: 1,
        heads: 2,
        tokens: 2,
    };
    let config = RolloutConfig {
        residual: ResidualWeights::Uniform(Residual::new(1.0, 0.0)),
        output: Output::Matrix,
        ..config
    };
    let problem = Problem::new(shape, DType::F32, config).unwrap();
    let (maps, gradients) = (HostTensor::from(maps), HostTensor::from(gradients));
    let layer = match problem.config().gradients {
        Some(_) => Layer::Gradients { maps, gradients },
        None => Layer::Maps(maps),
    };
    let mut out = [f32::NAN; 4];
    let mut plan = Plan::new(&problem, &threads(1)).unwrap();
    plan.run(&[layer], &mut out).unwrap();
    let want = reference::rollout(&problem, &[layer]).unwrap();
    for (got, want) in out.iter().zip(want) {
        assert!((f64::from(*got) - want).abs() < 1e-6 || (got.is_nan() && want.is_nan()));
    }
    out.to_vec()
}

#[test]
fn the_rules_rectify_before_and_after_the_fusion() {
    let weighed = |rule, head_fusion| {
        let config = RolloutConfig {
            gradients: Some(rule),
            head_fusion,
            ..RolloutConfig::default()
        };
        matrix(config, &MAPS, &GRADIENTS)
    };
    // G * A: [0.5, -0.5, 0.5, 3] and [1.5, -1, -1, 0].
    let heads = |fusion| weighed(GradientRule::Heads, fusion);
    assert_eq!(heads(HeadFusion::Mean), [1.0, 0.0, 0.25, 1.5]);
    assert_eq!(heads(HeadFusion::Max), [1.5, 0.0, 0.5, 3.0]);
    assert_eq!(heads(HeadFusion::Min), [0.5, 0.0, 0.0, 0.0]);
    let weights = HeadFusion::Weighted(vec![1.0, -1.0]);
    assert_eq!(heads(weights.clone()), [-1.0, 0.0, 0.5, 3.0]);
    let fused = |fusion| weighed(GradientRule::Fused, fusion);
    assert_eq!(fused(HeadFusion::Mean), [1.0, 0.0, 0.0, 1.5]);
    assert_eq!(fused(HeadFusion::Max), [1.5, 0.0, 0.5, 3.0]);
    assert_eq!(fused(weights), [0.0, 0.5, 1.5, 3.0]);
}

#[test]
fn gradients_that_are_not_numbers_propagate() {
    for rule in [GradientRule::Heads, GradientRule::Fused] {
        for head_fusion in [HeadFusion::Mean, HeadFusion::Max, HeadFusion::Min] {
            let mut gradients = GRADIENTS;
            gradients[6] = f32::NAN;
            let config = RolloutConfig {
                gradients: Some(rule),
                head_fusion,
                ..RolloutConfig::default()
            };
            let got = matrix(config, &MAPS, &gradients);
            assert!(got[2].is_nan(), "{rule:?}: {got:?}");
            assert!([0, 1, 3].iter().all(|&at| !got[at].is_nan()), "{got:?}");
        }
    }
}

#[test]
fn rows_without_excluded_tokens_sum_to_one() {
    let excluding = |tokens: &[usize]| {
        let config = RolloutConfig {
            exclude_from_attention: tokens.to_vec(),
            ..RolloutConfig::default()
        };
        matrix(config, &MAPS, &GRADIENTS)
    };
    assert_eq!(excluding(&[]), [0.5, 0.5, 0.625, 0.375]);
    assert_eq!(excluding(&[1]), [1.0, 0.0, 1.0, 0.0]);
    // What is excluded need not be a number.
    let mut maps = MAPS;
    maps[1] = f32::NAN;
    let config = RolloutConfig {
        exclude_from_attention: vec![1],
        ..RolloutConfig::default()
    };
    assert_eq!(matrix(config, &maps, &GRADIENTS), [1.0, 0.0, 1.0, 0.0]);
    assert_eq!(excluding(&[1, 0, 1]), [0.0; 4], "nothing is left");
}

#[test]
fn excluded_tokens_are_counted_from_the_window() {
    let shape = Shape {
        layers: 1,
        batch: 2,
        heads: 1,
        tokens: 3,
    };
    let config = RolloutConfig {
        exclude_from_attention: vec![1],
        output: Output::Matrix,
        ..RolloutConfig::default()
    };
    // Token 1 of the first window is token 2; the second window has but one token, which sums to 1 then.
    let problem = Problem::builder(shape, DType::F32)
        .config(config)
        .windows(vec![
            Window { start: 1, len: 2 },
            Window { start: 2, len: 1 },
        ])
        .build()
        .unwrap();
    let maps = [0.25_f32; 18];
    let layer = Layer::from(&maps[..]);
    let mut out = [f32::NAN; 18];
    let mut plan = Plan::new(&problem, &threads(1)).unwrap();
    plan.run(&[layer], &mut out).unwrap();
    let first = [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.5, 0.5];
    let second = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0];
    assert_eq!(out, *[first, second].concat());
}
