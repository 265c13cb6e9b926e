//! Rollout from queries and keys, against the f64 reference, and this against the maps that they give.

use crate::common::compare::check_close;
use crate::common::generate::Case;
use crate::common::queries_keys::{ScoresCase, ScoresGenerated, scores_case};
use crate::ways::{both_forms, streams_groups_and_chunks, threads};
use attention_rollout::cpu::{Choice, Form, Plan, Prefetch, Simd, StreamingPlan, TopDownPlan};
use attention_rollout::{
    DType, Error, HostLayer, HostTensor, Layer, LogBase, Lse, Output, Problem, QueriesKeys, Shape,
    StartRows, reference,
};
use proptest::prelude::*;

fn check(what: &str, generated: &ScoresGenerated, got: &[f32]) -> Result<(), TestCaseError> {
    let problem = &generated.problem;
    let want = reference::rollout(problem, &generated.layers()).unwrap();
    let largest = want.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
    let tolerance = generated.tolerance() * largest + f64::from(f32::MIN_POSITIVE);
    check_close(what, &problem.output_shape(), got, &want, |_| tolerance)
        .map_err(TestCaseError::fail)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_reference_is_that_of_the_maps(case in scores_case(12)) {
        let generated = case.settled().generate();
        let want = reference::rollout(&generated.problem, &generated.layers()).unwrap();
        let (problem, maps) = generated.as_maps();
        let layers: Vec<_> = maps.iter().map(|maps| HostLayer::from(&maps[..])).collect();
        let got = reference::rollout(&problem, &layers).unwrap();
        let got: Vec<f32> = got.iter().map(|&v| v as f32).collect();
        let largest = want.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
        let tolerance = 5e-6 * largest + 1e-30;
        check_close("maps", &problem.output_shape(), &got, &want, |_| tolerance)
            .map_err(TestCaseError::fail)?;
    }

    #[test]
    fn both_forms_agree_with_the_reference(
        case in scores_case(40),
        count in 1..=3usize,
        share_rest: bool,
    ) {
        let generated = case.settled().generate();
        let problem = &generated.problem;
        let layers = generated.layers();
        both_forms(problem, &layers, (count, share_rest), |what, got| check(what, &generated, got))?;
    }

    #[test]
    fn streams_groups_and_chunks_agree_with_the_reference(case in scores_case(24), chunk in 1..=3usize) {
        let generated = case.settled().generate();
        let (problem, layers) = (&generated.problem, generated.layers());
        let checked = |what: &str, got: &[f32]| check(what, &generated, got);
        streams_groups_and_chunks(problem, &layers, chunk, checked)?;

        match TopDownPlan::new(problem, &threads(2)) {
            Ok(mut plan) => {
                for layer in problem.layers().rev() {
                    plan.push_layer(layers[layer]).unwrap();
                }
                let mut got = vec![f32::NAN; problem.output_len()];
                plan.finish(&mut got).unwrap();
                check("from the top", &generated, &got)?;
            }
            Err(error) => {
                prop_assert!(!matches!(problem.config().output, Output::Rows(_)), "{}", error);
            }
        }
    }
}

/// More keys than are taken at a time, whose LSE is given or not.
fn long(lse: Lse) -> ScoresGenerated {
    let shape = Shape {
        layers: 1,
        batch: 1,
        heads: 1,
        tokens: 1100,
    };
    let mut case = Case::new(shape, 5);
    // All rows, not the first alone.
    case.config.output = Output::Rows(StartRows::Mean);
    let source = QueriesKeys {
        lse,
        ..QueriesKeys::new(&shape, 8)
    };
    ScoresCase { case, source }.generate()
}

#[test]
fn more_keys_than_are_taken_at_a_time() {
    for lse in [Lse::Recomputed, Lse::Given(LogBase::E)] {
        let generated = long(lse);
        let mut plan = Plan::new(&generated.problem, &threads(2)).unwrap();
        let got = plan.run_to_vec(&generated.layers()).unwrap();
        check(&format!("{lse:?}"), &generated, &got).unwrap();
    }
}

/// Rows that weigh differently, in several blocks of queries, which are taken head by head.
#[test]
fn more_queries_than_are_taken_at_a_time() {
    let shape = Shape {
        layers: 3,
        batch: 2,
        heads: 3,
        tokens: 150,
    };
    for (lse, rows) in [
        (Lse::Recomputed, vec![70]),
        (Lse::Given(LogBase::Two), vec![3, 149]),
    ] {
        let mut case = Case::new(shape, 5);
        case.config.output = Output::Rows(StartRows::Rows(rows));
        let source = QueriesKeys {
            lse,
            ..QueriesKeys::new(&shape, 8)
        };
        let generated = ScoresCase { case, source }.generate();
        for count in [1, 2, 3] {
            let mut plan = Plan::new(&generated.problem, &threads(count)).unwrap();
            let got = plan.run_to_vec(&generated.layers()).unwrap();
            check(&format!("{lse:?}, {count} threads"), &generated, &got).unwrap();
        }
    }
}

/// A problem whose rows of attention must sum to 1.
fn sound(base: LogBase) -> ScoresCase {
    let shape = Shape {
        layers: 3,
        batch: 2,
        heads: 4,
        tokens: 40,
    };
    let mut case = Case::new(shape, 11);
    case.config.causal = true;
    case.config.output = Output::Rows(StartRows::Last);
    let source = QueriesKeys {
        lse: Lse::Given(base),
        ..QueriesKeys::new(&shape, 16)
    };
    ScoresCase { case, source }
}

/// What a run in row form, a run in product form and a stream say.
fn errors(generated: &ScoresGenerated, layers: &[HostLayer<'_>]) -> [Option<Error>; 3] {
    let problem = &generated.problem;
    let simd = Simd::detect();
    let run = |form| {
        let choice = Choice {
            form,
            simd,
            share_rest: false,
            prefetch: Prefetch::Near,
        };
        let mut plan = Plan::with_choice(problem, &threads(2), choice).unwrap();
        plan.run_to_vec(layers).err()
    };
    let mut stream = StreamingPlan::new(problem, &threads(2)).unwrap();
    let pushed = layers
        .iter()
        .try_for_each(|&layer| stream.push_layer(layer));
    [run(Form::Rows), run(Form::Product), pushed.err()]
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let all_refuse = |what: &str, case: &ScoresCase, layers: &[HostLayer<'_>]| {
        let generated = case.generate();
        for error in errors(&generated, layers) {
            let error = error.unwrap_or_else(|| panic!("{what}: nothing is noticed"));
            assert!(
                matches!(error, Error::Lse { .. } | Error::Mass { .. }),
                "{what}: {error}"
            );
            assert!(error.to_string().contains("another layer"), "{error}");
        }
    };
    let case = sound(LogBase::E);
    let generated = case.generate();
    let layers = generated.layers();
    assert!(errors(&generated, &layers).iter().all(Option::is_none));

    let mut scaled = case.clone();
    scaled.source.scale = Some(0.9 * case.source.scale());
    all_refuse("scale", &scaled, &layers);
    let two = sound(LogBase::Two);
    all_refuse("base", &two, &layers);
    let mut full = case.clone();
    full.case.config.causal = false;
    all_refuse("mask", &full, &layers);
    let lse = |layer: &HostLayer<'_>| -> Vec<f32> {
        match layer {
            Layer::QueriesKeys { lse: Some(lse), .. } => lse.as_slice::<f32>().unwrap().to_vec(),
            _ => panic!("the LSE is given"),
        }
    };
    let mut swapped = layers.clone();
    let first = lse(&layers[0]);
    if let Layer::QueriesKeys { lse, .. } = &mut swapped[1] {
        *lse = Some(HostTensor::from(&first[..]));
    }
    all_refuse("layer", &case, &swapped);
    for error in errors(&generated, &swapped).into_iter().flatten() {
        assert!(
            matches!(
                error,
                Error::Lse {
                    layer: 1,
                    item: 0,
                    head: 0,
                    ..
                }
            ),
            "{error}"
        );
    }

    // Where nothing is looked at, everything passes.
    scaled.source.mass_tolerance = None;
    assert!(
        errors(&scaled.generate(), &layers)
            .iter()
            .all(Option::is_none)
    );
    // What no probed row shows, the sum of relevance does.
    let mut holed = lse(&layers[2]);
    holed[38] += 1.0;
    let mut layers = layers.clone();
    if let Layer::QueriesKeys { lse, .. } = &mut layers[2] {
        *lse = Some(HostTensor::from(&holed[..]));
    }
    let mut mean = case.clone();
    mean.case.config.output = Output::Rows(StartRows::Mean);
    let generated = mean.generate();
    for (error, row) in errors(&generated, &layers).into_iter().zip([0, 38, 38]) {
        match error {
            Some(Error::Mass {
                layer: 2,
                item: 0,
                row: got,
                ..
            }) => assert_eq!(got, row),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn queries_and_keys_that_were_rounded_afterwards_are_refused() {
    let mut case = sound(LogBase::E);
    case.source.scale = Some(1.0);
    let exact = case.generate();
    case.case.dtype = DType::Bf16;
    let rounded = case.generate();
    let layers: Vec<_> = rounded
        .layers()
        .into_iter()
        .zip(exact.layers())
        .map(|layers| match layers {
            (Layer::QueriesKeys { queries, keys, .. }, Layer::QueriesKeys { lse, .. }) => {
                Layer::QueriesKeys { queries, keys, lse }
            }
            _ => panic!("queries and keys"),
        })
        .collect();
    assert!(
        errors(&rounded, &rounded.layers())
            .iter()
            .all(Option::is_none)
    );
    for error in errors(&rounded, &layers) {
        assert!(matches!(error, Some(Error::Lse { .. })), "{error:?}");
    }
}

#[test]
fn rows_whose_lse_is_infinite_are_empty() {
    let case = sound(LogBase::E);
    let generated = case.generate();
    for infinite in [f32::INFINITY, f32::NEG_INFINITY] {
        let layers = generated.layers();
        let Layer::QueriesKeys {
            queries,
            keys,
            lse: Some(lse),
        } = layers[2]
        else {
            panic!("the LSE is given");
        };
        // Of the first item every head of the last row.
        let mut values = lse.as_slice::<f32>().unwrap().to_vec();
        (0..4).for_each(|head| values[head * 40 + 39] = infinite);
        let lse = Some(HostTensor::from(&values[..]));
        let layers = [
            layers[0],
            layers[1],
            Layer::QueriesKeys { queries, keys, lse },
        ];
        let mut plan = Plan::new(&generated.problem, &threads(1)).unwrap();
        let got = plan.run_to_vec(&layers).unwrap();
        check(
            "empty",
            &generated,
            &plan.run_to_vec(&generated.layers()).unwrap(),
        )
        .unwrap();
        assert!((got[..40].iter().sum::<f32>() - 0.5).abs() < 1e-5);
        assert!((got[40..].iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }
}

#[test]
fn layers_from_the_top_are_those_of_one_run() {
    let generated = sound(LogBase::E).generate();
    let (problem, layers) = (&generated.problem, generated.layers());
    for count in [1, 2, 3] {
        let mut whole = Plan::new(problem, &threads(count)).unwrap();
        let want = whole.run_to_vec(&layers).unwrap();
        let mut plan = TopDownPlan::new(problem, &threads(count)).unwrap();
        let mut got = vec![f32::NAN; want.len()];
        // Twice, and once from an error on.
        for _ in 0..2 {
            for layer in layers.iter().rev() {
                plan.push_layer(*layer).unwrap();
            }
            let more = plan.push_layer(layers[0]).unwrap_err();
            assert!(matches!(
                more,
                Error::StreamedLayers {
                    expected: 3,
                    got: 4
                }
            ));
            plan.finish(&mut got).unwrap();
            assert_eq!(got, want, "{count} threads");
            plan.push_layer(layers[2]).unwrap();
            let few = plan.finish(&mut got).unwrap_err();
            assert!(matches!(
                few,
                Error::StreamedLayers {
                    expected: 3,
                    got: 1
                }
            ));
            // The first layer is not the second.
            let Layer::QueriesKeys { queries, keys, .. } = layers[0] else {
                unreachable!()
            };
            let Layer::QueriesKeys { lse, .. } = layers[1] else {
                unreachable!()
            };
            let wrong = plan
                .push_layer(Layer::QueriesKeys { queries, keys, lse })
                .unwrap_err();
            assert!(matches!(wrong, Error::Lse { layer: 1, .. }), "{wrong}");
            assert_eq!(plan.pushed(), 0);
        }
    }
}

#[test]
fn memory_grows_with_the_tokens_alone() {
    let shape = Shape {
        layers: 6,
        batch: 1,
        heads: 8,
        tokens: 16_384,
    };
    let problem = Problem::builder(shape, DType::F16)
        .queries_keys(QueriesKeys::new(&shape, 64))
        .build()
        .unwrap();
    let plan = Plan::new(&problem, &threads(2)).unwrap();
    // The maps of one head would take 512 MiB.
    assert!(plan.workspace_bytes() < 64 << 20, "{plan}");
}
