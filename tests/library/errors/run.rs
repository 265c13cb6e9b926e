//! Runs whose inputs or outputs do not fit, and machines that lack something.

use std::num::NonZeroUsize;

use attention_rollout::cpu::{GroupItem, GroupPlan, Options, Plan, StreamingPlan};
use attention_rollout::{
    DType, Error, GradientRule, HeadFusion, HostLayer, HostTensor, Layer, Output, Problem,
    RolloutConfig, Shape, reference,
};

use super::SHAPE;

/// A problem and the length of one of its layers.
fn valid() -> (Problem, usize) {
    let problem = Problem::new(SHAPE, DType::F32, RolloutConfig::default()).unwrap();
    (problem, 2 * 3 * 4 * 4)
}

#[test]
fn a_batch_of_zero_is_an_empty_result() {
    let shape = Shape { batch: 0, ..SHAPE };
    for output in [Output::default(), Output::Matrix, Output::Cumulative] {
        let config = RolloutConfig {
            output,
            ..RolloutConfig::default()
        };
        let problem = Problem::new(shape, DType::F32, config).unwrap();
        let layers = [HostLayer::from(&[0.0f32; 0][..]); 2];
        Plan::new(&problem, &Options::default())
            .unwrap()
            .run(&layers, &mut [])
            .unwrap();
        let mut stream = StreamingPlan::new(&problem, &Options::default()).unwrap();
        for layer in layers {
            stream.push_layer(layer).unwrap();
        }
        stream.finish(&mut []).unwrap();
        assert_eq!(reference::rollout(&problem, &layers).unwrap(), [0.0; 0]);
    }
}

#[test]
fn gradients_that_do_not_fit_their_maps() {
    let (plain, len) = valid();
    let config = RolloutConfig {
        gradients: Some(GradientRule::Heads),
        ..RolloutConfig::default()
    };
    let weighed = Problem::new(SHAPE, DType::F32, config).unwrap();
    assert_eq!(weighed.growth_bound(), f64::INFINITY);
    assert_eq!(weighed.map_bytes(), 2 * plain.map_bytes());
    let tensors = [vec![0.25_f32; len], vec![0.25; len - 1]];
    let halves = vec![half::f16::ONE; len];
    let maps = HostTensor::from(&tensors[0][..]);
    let with = |gradients| Layer::Gradients { maps, gradients };
    let error = |problem: &Problem, layer| {
        let mut out = vec![7.0; problem.output_len()];
        let mut plan = Plan::new(problem, &Options::default()).unwrap();
        let error = plan.run(&[Layer::from(maps), layer], &mut out).unwrap_err();
        assert!(out.iter().all(|&v| v == 7.0), "nothing is written");
        let error = match problem.config().gradients {
            Some(_) => problem.check_layer(1, &layer).unwrap_err(),
            None => error,
        };
        error.to_string()
    };
    assert_eq!(
        error(&weighed, Layer::Maps(maps)),
        "layer 1: expected maps and gradients, got maps"
    );
    assert_eq!(
        error(&weighed, with(HostTensor::from(&tensors[1][..]))),
        "layer 1, gradients: its extents and strides reach 96 elements, got 95"
    );
    assert_eq!(
        error(&weighed, with(HostTensor::from(&halves[..]))),
        "layer 1, gradients: expected f32 elements, got f16"
    );
    assert_eq!(
        error(&plain, with(maps)),
        "layer 1: expected maps, got maps and gradients"
    );
}

#[test]
fn tokens_that_are_not_there_cannot_be_excluded() {
    let config = RolloutConfig {
        exclude_from_attention: vec![3, 4],
        ..RolloutConfig::default()
    };
    let error = Problem::new(SHAPE, DType::F32, config.clone()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "token 4, excluded from attention, is not among the 4 tokens"
    );
    let config = RolloutConfig {
        exclude_from_attention: vec![3, 0, 3],
        head_fusion: HeadFusion::Max,
        ..config
    };
    let problem = Problem::new(SHAPE, DType::F32, config).unwrap();
    assert_eq!(problem.config().exclude_from_attention, [0, 3]);
    // Rows sum to 1 again, whatever the fusion made of them.
    assert_eq!(problem.growth_bound(), 1.0);
}

#[test]
fn layers_and_outputs_that_do_not_fit_a_run() {
    let (problem, len) = valid();
    let maps = vec![0.25_f32; len];
    let halves = vec![half::f16::ONE; len];
    let good = HostLayer::from(&maps[..]);
    let mut plan = Plan::new(&problem, &Options::default()).unwrap();
    let chunk = NonZeroUsize::MIN;
    let mut both = |layers: &[HostLayer<'_>], out_len: usize| {
        let mut out = vec![7.0; out_len];
        let chunked = plan.run_chunked(layers, &mut out, chunk, &mut |_| panic!("progress"));
        let error = plan.run(layers, &mut out).unwrap_err();
        assert_eq!(chunked.unwrap_err().to_string(), error.to_string());
        assert!(out.iter().all(|&v| v == 7.0), "nothing is written");
        error
    };
    assert_error!(
        both(&[good], 8),
        Error::Count {
            what: "layers",
            expected: 2,
            got: 1
        }
    );
    assert_error!(
        both(&[good, HostLayer::from(&halves[..])], 8),
        Error::LayerDType {
            layer: 1,
            operand: "maps",
            expected: DType::F32,
            got: DType::F16
        }
    );
    assert_error!(
        both(&[HostLayer::from(&maps[1..]), good], 8),
        Error::LayerLen {
            layer: 0,
            operand: "maps",
            expected: 96,
            got: 95
        }
    );
    assert_error!(
        both(&[good, good], 9),
        Error::Len {
            what: "output",
            expected: 8,
            got: 9
        }
    );
}

#[test]
fn streams_that_are_given_too_little_or_too_much() {
    let (problem, len) = valid();
    let maps = vec![0.25_f32; len];
    let layer = HostLayer::from(&maps[..]);
    let mut stream = StreamingPlan::new(&problem, &Options::default()).unwrap();
    let mut out = vec![f32::NAN; problem.output_len()];
    stream.push_layer(layer).unwrap();
    assert_error!(
        stream.finish(&mut out).unwrap_err(),
        Error::StreamedLayers {
            expected: 2,
            got: 1
        }
    );
    assert_error!(
        stream.push_layer(HostLayer::from(&maps[1..])).unwrap_err(),
        Error::LayerLen {
            layer: 1,
            operand: "maps",
            expected: 96,
            got: 95
        }
    );
    assert_eq!(stream.pushed(), 1);
    stream.push_layer(layer).unwrap();
    assert_error!(
        stream.push_layer(layer).unwrap_err(),
        Error::StreamedLayers {
            expected: 2,
            got: 3
        }
    );
    assert_error!(
        stream.finish(&mut out[1..]).unwrap_err(),
        Error::Len {
            expected: 8,
            got: 7,
            ..
        }
    );
    // Errors have changed nothing: uniform maps give 1/4 + 1/4 off the start row.
    stream.finish(&mut out).unwrap();
    assert_eq!(out[1], 0.1875);
}

#[test]
fn groups_name_the_problem_at_fault() {
    let (problem, len) = valid();
    let maps = vec![0.25_f32; len];
    let layers = [HostLayer::from(&maps[..]); 2];
    let mut group =
        GroupPlan::new(&[problem.clone(), problem.clone()], &Options::default()).unwrap();
    let mut out = vec![7.0; 2 * problem.output_len() - 1];
    let (first, second) = out.split_at_mut(problem.output_len());
    let mut members = [
        GroupItem::new(&layers, first),
        GroupItem::new(&layers, second),
    ];
    let error = group.run(&mut members).unwrap_err();
    assert_error!(
        error,
        Error::Member { member: 1, source } if matches!(**source, Error::Len { expected: 8, got: 7, .. })
    );
    assert_error!(
        group.run(&mut members[..1]).unwrap_err(),
        Error::Count {
            expected: 2,
            got: 1,
            ..
        }
    );
    assert!(out.iter().all(|&v| v == 7.0), "nothing is written");
}

#[test]
fn machines_that_lack_threads_or_memory() {
    let (problem, _) = valid();
    let options = Options {
        threads: NonZeroUsize::new(usize::MAX),
        ..Options::default()
    };
    assert_error!(
        Plan::new(&problem, &options).unwrap_err(),
        Error::Threads {
            threads: usize::MAX,
            ..
        }
    );
    let shape = Shape {
        layers: 2,
        batch: 1,
        heads: 1,
        tokens: 1 << 28,
    };
    let config = RolloutConfig {
        output: Output::Matrix,
        ..RolloutConfig::default()
    };
    let problem = Problem::new(shape, DType::F32, config).unwrap();
    let options = Options {
        threads: NonZeroUsize::new(1),
        ..Options::default()
    };
    assert_error!(
        Plan::new(&problem, &options).unwrap_err(),
        Error::HostMemory { .. }
    );
}
