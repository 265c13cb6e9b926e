//! The CPU backend against the f64 reference, over everything that can be asked of it.

use std::num::NonZeroUsize;

use crate::common::compare::{Budget, check_close};
use crate::common::generate::{Case, Generated, case, case_in, maps_of};
use attention_rollout::cpu::{
    Choice, Form, GroupItem, GroupPlan, Options, Plan, Progress, Simd, StreamingPlan,
};
use attention_rollout::device::{Device, Next};
use attention_rollout::{
    Discard, DiscardScope, HostLayer, HostTensor, Output, Problem, Shape, StartRows, reference,
};
use proptest::prelude::*;

fn threads(count: usize) -> Options {
    Options {
        threads: NonZeroUsize::new(count),
        ..Options::default()
    }
}

fn poisoned(problem: &Problem) -> Vec<f32> {
    vec![f32::NAN; problem.output_len()]
}

pub fn run(problem: &Problem, layers: &[HostLayer<'_>], count: usize, choice: Choice) -> Vec<f32> {
    let mut plan = Plan::with_choice(problem, &threads(count), choice).unwrap();
    let mut out = poisoned(problem);
    plan.run(layers, &mut out).unwrap();
    out
}

/// Compares with the reference, within the budget of f32.
pub fn check(what: &str, generated: &Generated, got: &[f32]) -> Result<(), TestCaseError> {
    let (problem, layers) = (&generated.problem, generated.layers());
    let want = reference::rollout(problem, &layers).unwrap();
    let budget = Budget::new(problem, &layers);
    check_close(what, &problem.output_shape(), got, &want, |i| {
        budget.tolerance(i)
    })
    .map_err(TestCaseError::fail)
}

/// Both forms on every instruction set of this machine.
fn choices(problem: &Problem, share_rest: bool) -> impl Iterator<Item = Choice> {
    let choice = Choice {
        share_rest,
        ..Choice::of(problem)
    };
    Simd::available()
        .flat_map(|simd| [(simd, Form::Rows), (simd, Form::Product)])
        .map(move |(simd, form)| Choice {
            form,
            simd,
            ..choice
        })
}

/// Bits, so that NaN equals itself and -0 does not equal 0.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn cases(count: u32) -> ProptestConfig {
    ProptestConfig::with_cases(count)
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn agrees_with_the_reference(case in case(40), count in 1..=3usize, share_rest: bool) {
        let generated = case.generate();
        for choice in choices(&generated.problem, share_rest) {
            let got = run(&generated.problem, &generated.layers(), count, choice);
            check(&format!("{choice:?}, {count} threads"), &generated, &got)?;
        }
    }
}

proptest! {
    #![proptest_config(cases(24))]

    /// Several blocks of rows, and discard by sample.
    #[test]
    fn larger_maps_agree_with_the_reference(
        case in case_in(1..=2, 1..=2, 65..=140),
        count in 1..=3usize,
        share_rest: bool,
    ) {
        let generated = case.generate();
        for choice in choices(&generated.problem, share_rest) {
            let got = run(&generated.problem, &generated.layers(), count, choice);
            check(&format!("{choice:?}, {count} threads"), &generated, &got)?;
        }
    }
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn streams_agree_with_the_reference(case in case(40), count in 1..=3usize, share_rest: bool) {
        let generated = case.generate();
        let (problem, layers) = (&generated.problem, generated.layers());
        for choice in choices(problem, share_rest) {
            let mut stream = StreamingPlan::with_choice(problem, &threads(count), choice).unwrap();
            // Twice: finishing starts anew.
            for _ in 0..2 {
                for layer in problem.layers() {
                    stream.push_layer(layers[layer]).unwrap();
                }
                let mut got = poisoned(problem);
                stream.finish(&mut got).unwrap();
                check(&format!("{choice:?}"), &generated, &got)?;
            }
        }
    }

    #[test]
    fn chunks_change_nothing(case in case(24), chunk in 1..=5usize, share_rest: bool) {
        let generated = case.generate();
        let (problem, layers) = (&generated.problem, generated.layers());
        let choice = Choice { share_rest, ..Choice::of(problem) };
        let mut plan = Plan::with_choice(problem, &threads(2), choice).unwrap();
        let mut got = poisoned(problem);
        let mut seen = Vec::new();
        let chunk_items = NonZeroUsize::new(chunk).unwrap();
        plan.run_chunked(&layers, &mut got, chunk_items, &mut |p| seen.push(p)).unwrap();
        check("chunked", &generated, &got)?;
        let total = problem.shape().batch;
        let want: Vec<_> = (1..=total.div_ceil(chunk))
            .map(|chunks| Progress { done: total.min(chunks * chunk), total })
            .collect();
        prop_assert_eq!(seen, want);
    }

    #[test]
    fn a_device_takes_and_gives_a_chunk_at_a_time(case in case(24), chunk in 1..=5usize) {
        let generated = case.generate();
        let (problem, layers) = (&generated.problem, generated.layers());
        let total = problem.shape().batch;
        let chunk_items = NonZeroUsize::new(chunk);
        for device in Device::cpu(&threads(2)).candidates(problem).unwrap() {
            let mut plan = device.plan_chunked(problem, chunk_items).unwrap();
            // A run that is given up leaves nothing behind.
            plan.restart().unwrap();
            if let Some(Next::Push(items)) = plan.step().unwrap() {
                prop_assert_eq!(items, 0..total.min(chunk));
                plan.push(&layers).unwrap();
            }
            let mut got = poisoned(problem);
            let mut seen = Vec::new();
            plan.run(&layers, &mut got, &mut |p| seen.push(p)).unwrap();
            check(&format!("{device}: {}", plan.variant()), &generated, &got)?;
            let want: Vec<_> = (1..=total.div_ceil(chunk))
                .map(|chunks| Progress { done: total.min(chunks * chunk), total })
                .collect();
            prop_assert_eq!(seen, want);
        }
    }

    #[test]
    fn groups_compute_each_problem(cases in prop::collection::vec(case(16), 0..5), count in 1..=3usize) {
        let generated: Vec<_> = cases.iter().map(Case::generate).collect();
        let problems: Vec<_> = generated.iter().map(|g| g.problem.clone()).collect();
        let mut group = GroupPlan::new(&problems, &threads(count)).unwrap();
        let layers: Vec<_> = generated.iter().map(Generated::layers).collect();
        let mut outs: Vec<_> = problems.iter().map(poisoned).collect();
        let mut members: Vec<_> = layers
            .iter()
            .zip(&mut outs)
            .map(|(layers, out)| GroupItem::new(layers, out))
            .collect();
        group.run(&mut members).unwrap();
        for (at, (generated, out)) in generated.iter().zip(&outs).enumerate() {
            check(&format!("problem {at}"), generated, out)?;
        }
    }

    #[test]
    fn results_repeat_to_the_bit(case in case_in(1..=3, 1..=3, 1..=140), share_rest: bool) {
        let generated = case.generate();
        let (problem, layers) = (&generated.problem, generated.layers());
        let choice = Choice { share_rest, ..Choice::of(problem) };
        let mut plan = Plan::with_choice(problem, &threads(2), choice).unwrap();
        let [mut first, mut second] = [poisoned(problem), poisoned(problem)];
        plan.run(&layers, &mut first).unwrap();
        plan.run(&layers, &mut second).unwrap();
        prop_assert_eq!(bits(&first), bits(&second));
        if plan.choice().form == Form::Rows {
            for count in [1, 3] {
                let other = run(problem, &layers, count, choice);
                prop_assert_eq!(bits(&first), bits(&other), "{} threads", count);
            }
        }
    }

    #[test]
    fn items_do_not_influence_each_other(case in case(24)) {
        let generated = case.generate();
        let (problem, layers) = (&generated.problem, generated.layers());
        if matches!(problem.config().output, Output::Cumulative) {
            return Ok(());
        }
        let choice = Choice { share_rest: false, ..Choice::of(problem) };
        let whole = run(problem, &layers, 1, choice);
        let item_len = problem.output_len() / problem.shape().batch.max(1);
        for item in 0..problem.shape().batch {
            let part = problem.slice_batch(item..item + 1);
            let layers: Vec<_> = (0..layers.len())
                .map(|layer| from_item(layers[layer], problem.strides(layer).batch * item))
                .collect();
            let alone = run(&part, &layers, 1, choice);
            prop_assert_eq!(bits(&whole[item * item_len..][..item_len]), bits(&alone));
        }
    }
}

fn from_item(layer: HostLayer<'_>, first: usize) -> HostLayer<'_> {
    let maps = maps_of(&layer);
    let bytes = &maps.bytes()[first * maps.dtype().size_bytes()..];
    let rest = HostTensor::from_bytes(maps.dtype(), bytes);
    rest.expect("aligned and whole").into()
}

#[test]
fn the_form_follows_the_work() {
    let shape = attention_rollout::Shape {
        layers: 3,
        batch: 1,
        heads: 1,
        tokens: 10,
    };
    let form = |output: Output| {
        let config = attention_rollout::RolloutConfig {
            output,
            ..Default::default()
        };
        Form::of(&Problem::new(shape, attention_rollout::DType::F32, config).unwrap())
    };
    let rows = |count| Output::Rows(StartRows::Rows(vec![0; count]));
    // Row form: layers * rows * tokens^2; product form: (layers - 1) * tokens^3 + rows * tokens^2.
    assert_eq!(form(rows(1)), Form::Rows);
    assert_eq!(form(rows(10)), Form::Rows);
    assert_eq!(form(rows(11)), Form::Product);
    assert_eq!(form(Output::Matrix), Form::Product);
    assert_eq!(form(Output::Cumulative), Form::Product);
}

#[test]
fn plans_print_what_they_decided() {
    let generated = Case::new(
        attention_rollout::Shape {
            layers: 2,
            batch: 3,
            heads: 4,
            tokens: 5,
        },
        1,
    )
    .generate();
    let choice = Choice {
        simd: Simd::Portable,
        ..Choice::of(&generated.problem)
    };
    let plan = Plan::with_choice(&generated.problem, &threads(2), choice).unwrap();
    let printed = plan.to_string();
    for part in [
        "row form",
        "portable",
        "2 threads",
        "2 layers of [3, 4, 5, 5]",
        "f32",
    ] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
}

#[test]
fn one_layer_is_written_as_it_is_made() {
    let shape = Shape {
        layers: 1,
        batch: 3,
        heads: 2,
        tokens: 300,
    };
    for (output, discards) in [
        (Output::Matrix, false),
        (Output::Cumulative, false),
        (Output::Matrix, true),
    ] {
        let mut case = Case::new(shape, 7);
        case.config.output = output;
        case.config.discard = discards.then_some(Discard {
            ratio: 0.5,
            scope: DiscardScope::Map,
        });
        let generated = case.generate();
        for count in [1, 2, 4] {
            let mut plan = Plan::new(&generated.problem, &threads(count)).unwrap();
            // To select from: candidates of every member, and a whole fused map of each who computes alone, and of all.
            let maps = if discards { 2 * count + 1 } else { 0 };
            let most = maps * 4 * shape.tokens * shape.tokens + count * (160 << 10);
            assert!(plan.workspace_bytes() <= most, "{}", plan.workspace_bytes());
            let mut out = poisoned(&generated.problem);
            plan.run(&generated.layers(), &mut out).unwrap();
            check("one layer", &generated, &out).unwrap();
        }
    }
}
