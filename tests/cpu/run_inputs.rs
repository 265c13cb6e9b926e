//! One plan for runs of different windows and start rows: the bits of a plan made for them.

use std::num::NonZeroUsize;

use attention_rollout::cpu::{
    Choice, Form, GroupItem, GroupPlan, Options, Plan, PlanCache, RunInputs, StreamingPlan,
};
use attention_rollout::device::Device;
use attention_rollout::{
    DType, Error, HostLayer, Output, Problem, Progress, RolloutConfig, Shape, StartRows, Window,
};
use proptest::prelude::*;

use crate::common::generate::{Case, Generated, Layout, Random, case};

/// The case with other windows and rows per item, as far as the start rows that items share allow.
fn other(case: &Case, seed: u64) -> Case {
    let mut random = Random::new(seed);
    let mut other = case.clone();
    let tokens = case.shape.tokens;
    let (least, may_be_empty) = match &case.config.output {
        Output::Rows(StartRows::Rows(rows)) => (rows.iter().max().map_or(1, |row| row + 1), false),
        Output::Rows(StartRows::PerItem(_)) => (1, false),
        _ => (1, true),
    };
    other.windows = (0..case.shape.batch)
        .map(|_| {
            if may_be_empty && random.below(5) == 0 {
                return Window { start: 0, len: 0 };
            }
            let len = least + random.below(tokens - least + 1);
            let start = random.below(tokens - len + 1);
            Window { start, len }
        })
        .collect();
    if let Output::Rows(StartRows::PerItem(rows)) = &mut other.config.output {
        let count = rows.len().checked_div(other.windows.len()).unwrap_or(1);
        for (rows, window) in rows.chunks_exact_mut(count.max(1)).zip(&other.windows) {
            rows.iter_mut()
                .for_each(|row| *row = random.below(window.len));
        }
    }
    other.seed = seed;
    other
}

/// The problem of a case whose runs may have any windows.
fn open(generated: &Generated) -> Problem {
    let problem = &generated.problem;
    let strides = (0..problem.shape().layers).map(|layer| *problem.strides(layer));
    Problem::builder(*problem.shape(), problem.dtype())
        .config(problem.config().clone())
        .layer_strides(strides.collect())
        .windows(problem.windows().to_vec())
        .max_window(problem.shape().tokens)
        .build()
        .unwrap()
}

fn rows(problem: &Problem) -> Option<&[usize]> {
    match &problem.config().output {
        Output::Rows(StartRows::PerItem(rows)) => Some(rows),
        _ => None,
    }
}

fn two() -> Options {
    Options {
        threads: NonZeroUsize::new(2),
        ..Options::default()
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// What a plan made for exactly this gives.
fn wanted(generated: &Generated, choice: Choice) -> Vec<u32> {
    let mut plan = Plan::with_choice(&generated.problem, &two(), choice).unwrap();
    bits(&plan.run_to_vec(&generated.layers()).unwrap())
}

fn choices(problem: &Problem, share_rest: bool) -> [Choice; 2] {
    [Form::Rows, Form::Product].map(|form| Choice {
        form,
        share_rest,
        ..Choice::of(problem)
    })
}

/// `count` items of the case from item `first` on, by themselves.
fn items_of(case: &Case, first: usize, count: usize) -> Case {
    let batch = case.shape.batch;
    let mut part = case.clone();
    part.shape.batch = count;
    part.windows = case.windows[first..first + count].to_vec();
    if let Output::Rows(rows) = &mut part.config.output {
        match rows {
            StartRows::PerItem(rows) => {
                let each = rows.len() / batch;
                *rows = rows[first * each..(first + count) * each].to_vec();
            }
            StartRows::Weights { rows, weights } if weights.len() > *rows * case.shape.tokens => {
                let each = weights.len() / batch;
                *weights = weights[first * each..(first + count) * each].to_vec();
            }
            _ => {}
        }
    }
    part
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn a_run_takes_any_items(case in case(24), seed: u64, share_rest: bool) {
        // Strides that do not depend on the batch.
        let case = Case { layout: Layout::Contiguous, ..case };
        let batch = case.shape.batch;
        prop_assume!(batch > 0);
        let problem = open(&case.generate());
        let mut random = Random::new(seed);
        let first = random.below(batch);
        let count = 1 + random.below(batch - first);
        let mine = items_of(&case, first, count);
        let other = other(&mine, seed);
        for choice in choices(&problem, share_rest) {
            let mut plan = Plan::with_choice(&problem, &two(), choice).unwrap();
            let items = first..first + count;
            let mine = mine.generate();
            let mut out = vec![f32::NAN; mine.problem.output_len()];
            plan.run_items(items.clone(), &mine.layers(), &mut out).unwrap();
            prop_assert_eq!(&bits(&out), &wanted(&mine, plan.choice()), "{:?}", choice);
            let other = other.generate();
            let inputs = RunInputs {
                windows: Some(other.problem.windows()),
                rows: rows(&other.problem),
            };
            out.fill(f32::NAN);
            plan.run_items_with(items.clone(), &other.layers(), &mut out, inputs).unwrap();
            prop_assert_eq!(&bits(&out), &wanted(&other, plan.choice()), "{:?}, with", choice);
            prop_assert_eq!(plan.problem(), &problem);
            let beyond = first..batch + 1;
            let refused = plan.run_items(beyond, &mine.layers(), &mut out).unwrap_err();
            let as_told = matches!(
                refused,
                Error::Items { start, end, batch: of } if (start, end, of) == (first, batch + 1, batch)
            );
            prop_assert!(as_told, "{}", refused);
            // The same through a device, chunk by chunk.
            let mut any = Device::cpu(&two()).plan_chunked(&problem, NonZeroUsize::new(2)).unwrap();
            let mut done = Vec::new();
            out.fill(f32::NAN);
            any.run_items(items, &mine.layers(), &mut out, &mut |progress| done.push(progress)).unwrap();
            let last = Progress { done: count, total: count };
            prop_assert_eq!((done.len(), done.last()), (count.div_ceil(2), Some(&last)));
            let alone = Plan::new(&mine.problem, &two()).unwrap().run_to_vec(&mine.layers()).unwrap();
            prop_assert_eq!(bits(&out), bits(&alone));
        }
    }
}

#[test]
fn all_is_looked_at_before_anything_is_computed() {
    let generated = Case::new(Shape { batch: 3, ..SHAPE }, 4).generate();
    let (problem, layers) = (&generated.problem, generated.layers());
    let mut any = Device::cpu(&two())
        .plan_chunked(problem, NonZeroUsize::new(1))
        .unwrap();
    let HostLayer::Maps(last) = layers[layers.len() - 1] else {
        panic!("{:?}", layers[0]);
    };
    // Of the last item one entry is missing.
    let entries = last.as_slice::<f32>().unwrap();
    let mut short = layers.clone();
    short[layers.len() - 1] = HostLayer::from(&entries[..entries.len() - 1]);
    let len = problem.output_len();
    for (layers, len) in [
        (&short[..], len),
        (&layers[1..], len),
        (&layers[..], len + 1),
    ] {
        let mut out = vec![7.0; len];
        any.run(layers, &mut out, &mut |_| {}).unwrap_err();
        assert!(out.iter().all(|&value| value == 7.0), "{out:?}");
    }
}

#[test]
fn plans_of_any_device_take_windows_and_rows_of_each_run() {
    let rows = Output::Rows(StartRows::PerItem(vec![0, 1, 2, 3, 3, 0]));
    let shape = Shape { batch: 3, ..SHAPE };
    let mut case = Case::new(shape, 4);
    case.config.output = rows;
    let problem = open(&case.generate());
    let mut any = Device::cpu(&two())
        .plan_chunked(&problem, NonZeroUsize::new(2))
        .unwrap();
    case.windows = vec![window(0, 2), window(1, 3), window(2, 0)];
    // An item without tokens has no row to look for, and gives zeros.
    let rows = [1, 0, 2, 2, 3, 0];
    any.set_windows(&case.windows).unwrap();
    any.set_rows(&rows).unwrap();
    assert_eq!(any.problem().windows(), case.windows);
    case.config.output = Output::Rows(StartRows::PerItem(rows.to_vec()));
    let generated = case.generate();
    let mut out = vec![f32::NAN; problem.output_len()];
    any.run(&generated.layers(), &mut out, &mut |_| {}).unwrap();
    assert_eq!(problem.output_shape(), [3, 2, shape.tokens]);
    assert_eq!(bits(&out), wanted(&generated, Choice::of(&problem)));
    let last = &out[2 * 2 * shape.tokens..];
    assert!(last.iter().all(|&value| value == 0.0));
    any.set_rows(&[1, 2, 0, 0, 0, 0]).unwrap();
    let refused = any
        .run(&generated.layers(), &mut out, &mut |_| {})
        .unwrap_err();
    assert!(
        matches!(
            refused,
            Error::StartRow {
                item: 0,
                row: 2,
                len: 2
            }
        ),
        "{refused}"
    );
    // It lies among the items that are not asked for.
    let part = items_of(&case, 1, 2).generate();
    let mut out = vec![f32::NAN; part.problem.output_len()];
    any.run_items(1..3, &part.layers(), &mut out, &mut |_| {})
        .unwrap();
    let few = any.set_rows(&[0; 5]).unwrap_err();
    assert!(
        matches!(
            few,
            Error::Count {
                expected: 6,
                got: 5,
                ..
            }
        ),
        "{few}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn a_plan_gives_what_one_made_for_the_run_gives(case in case(40), seed: u64, share_rest: bool) {
        let turns = [case.generate(), other(&case, seed).generate(), other(&case, !seed).generate()];
        let problem = open(&turns[0]);
        for choice in choices(&problem, share_rest) {
            let mut plan = Plan::with_choice(&problem, &two(), choice).unwrap();
            let mut out = vec![f32::NAN; problem.output_len()];
            for turn in turns.iter().chain(&turns[..1]) {
                let want = wanted(turn, plan.choice());
                let (layers, windows) = (turn.layers(), turn.problem.windows());
                let inputs = RunInputs { windows: Some(windows), rows: rows(&turn.problem) };
                let before = plan.problem().clone();
                out.fill(f32::NAN);
                plan.run_with(&layers, &mut out, inputs).unwrap();
                prop_assert_eq!(&bits(&out), &want, "{:?}, run_with", choice);
                prop_assert_eq!(plan.problem(), &before);
                plan.set_windows(windows).unwrap();
                if let Some(rows) = rows(&turn.problem) {
                    plan.set_rows(rows).unwrap();
                }
                out.fill(f32::NAN);
                plan.run(&layers, &mut out).unwrap();
                prop_assert_eq!(&bits(&out), &want, "{:?}, set_windows", choice);
                out.fill(f32::NAN);
                plan.run_chunked(&layers, &mut out, NonZeroUsize::MIN, &mut |_| {}).unwrap();
                prop_assert_eq!(&bits(&out), &want, "{:?}, chunked", choice);
            }
        }
    }

    #[test]
    fn streams_and_groups_do_too(case in case(30), seed: u64) {
        let turns = [case.generate(), other(&case, seed).generate(), other(&case, !seed).generate()];
        let problem = open(&turns[0]);
        for choice in choices(&problem, false) {
            let mut stream = StreamingPlan::with_choice(&problem, &two(), choice).unwrap();
            for turn in turns.iter().chain(&turns[..1]) {
                stream.set_windows(turn.problem.windows()).unwrap();
                if let Some(rows) = rows(&turn.problem) {
                    stream.set_rows(rows).unwrap();
                }
                let mut fresh = StreamingPlan::with_choice(&turn.problem, &two(), choice).unwrap();
                let mut outs = [vec![f32::NAN; problem.output_len()], vec![f32::NAN; problem.output_len()]];
                for (stream, out) in [&mut stream, &mut fresh].into_iter().zip(&mut outs) {
                    for layer in problem.layers() {
                        stream.push_layer(turn.layers()[layer]).unwrap();
                    }
                    stream.finish(out).unwrap();
                }
                prop_assert_eq!(bits(&outs[0]), bits(&outs[1]), "{:?}", choice);
            }
        }
        let mut group = GroupPlan::new(&[problem.clone(), problem.clone()], &two()).unwrap();
        let choice = Plan::new(&problem, &two()).unwrap().choice();
        // For one run alone: what the plan was told stays.
        for turn in &turns {
            let (first, layers) = (turns[0].layers(), turn.layers());
            let inputs = RunInputs {
                windows: Some(turn.problem.windows()),
                rows: rows(&turn.problem),
            };
            let mut outs = [vec![f32::NAN; problem.output_len()], vec![f32::NAN; problem.output_len()]];
            let [left, right] = &mut outs;
            let mut items = [GroupItem::new(&layers, left).with(inputs), GroupItem::new(&first, right)];
            group.run(&mut items).unwrap();
            prop_assert_eq!(bits(&outs[0]), wanted(turn, choice));
            prop_assert_eq!(bits(&outs[1]), wanted(&turns[0], choice));
        }
        for turn in &turns {
            group.set_windows(1, turn.problem.windows()).unwrap();
            if let Some(rows) = rows(&turn.problem) {
                group.set_rows(1, rows).unwrap();
            }
            let (first, layers) = (turns[0].layers(), turn.layers());
            let mut outs = [vec![f32::NAN; problem.output_len()], vec![f32::NAN; problem.output_len()]];
            let [left, right] = &mut outs;
            let mut items = [GroupItem::new(&first, left), GroupItem::new(&layers, right)];
            group.run(&mut items).unwrap();
            prop_assert_eq!(bits(&outs[0]), wanted(&turns[0], choice));
            prop_assert_eq!(bits(&outs[1]), wanted(turn, choice));
        }
    }
}

const SHAPE: Shape = Shape {
    layers: 1,
    batch: 2,
    heads: 1,
    tokens: 4,
};

fn config(rows: StartRows) -> RolloutConfig {
    RolloutConfig {
        output: Output::Rows(rows),
        ..RolloutConfig::default()
    }
}

fn window(start: usize, len: usize) -> Window {
    Window { start, len }
}

#[test]
fn what_a_plan_does_not_take_is_refused_and_changes_nothing() {
    let fixed = Problem::new(SHAPE, DType::F32, RolloutConfig::default()).unwrap();
    let mut plan = Plan::new(&fixed, &two()).unwrap();
    assert!(matches!(
        plan.set_windows(&[window(0, 4); 2]),
        Err(Error::FixedInput {
            what: "windows",
            ..
        })
    ));
    assert!(matches!(
        plan.set_rows(&[0, 0]),
        Err(Error::FixedInput {
            what: "start rows",
            ..
        })
    ));
    let problem = Problem::builder(SHAPE, DType::F32)
        .config(config(StartRows::PerItem(vec![2, 0])))
        .max_window(3)
        .build()
        .unwrap();
    assert_eq!(problem.windows(), [window(0, 3); 2]);
    let mut plan = Plan::new(&problem, &two()).unwrap();
    assert!(matches!(
        plan.set_windows(&[window(0, 3)]),
        Err(Error::Count {
            expected: 2,
            got: 1,
            ..
        })
    ));
    assert!(matches!(
        plan.set_windows(&[window(0, 3), window(2, 3)]),
        Err(Error::Window {
            item: 1,
            start: 2,
            len: 3,
            tokens: 4
        })
    ));
    assert!(matches!(
        plan.set_windows(&[window(0, 4), window(0, 1)]),
        Err(Error::WindowLen {
            item: 0,
            len: 4,
            max: 3
        })
    ));
    assert!(matches!(
        plan.set_rows(&[0]),
        Err(Error::Count {
            expected: 2,
            got: 1,
            ..
        })
    ));
    assert_eq!(plan.problem(), &problem);
    // In either order; a run says what does not fit together, and writes nothing.
    plan.set_windows(&[window(0, 3), window(3, 1)]).unwrap();
    plan.set_rows(&[1, 1]).unwrap();
    let maps = [0.25_f32; 32];
    let layers = [HostLayer::from(&maps[..])];
    let mut out = [f32::NAN; 8];
    assert!(matches!(
        plan.run(&layers, &mut out),
        Err(Error::StartRow {
            item: 1,
            row: 1,
            len: 1
        })
    ));
    let inputs = RunInputs {
        rows: Some(&[0, 4]),
        ..RunInputs::default()
    };
    assert!(plan.run_with(&layers, &mut out, inputs).is_err());
    assert!(out.iter().all(|value| value.is_nan()));
    plan.set_rows(&[1, 0]).unwrap();
    plan.run(&layers, &mut out).unwrap();
    // Rows that all items share are looked at with the windows.
    let shared = Problem::builder(SHAPE, DType::F32)
        .config(config(StartRows::Rows(vec![2])))
        .max_window(4)
        .build()
        .unwrap();
    let mut plan = Plan::new(&shared, &two()).unwrap();
    assert!(matches!(
        plan.set_windows(&[window(0, 3), window(0, 2)]),
        Err(Error::StartRow {
            item: 1,
            row: 2,
            len: 2
        })
    ));
    let mut stream = StreamingPlan::new(&shared, &two()).unwrap();
    stream.push_layer(layers[0]).unwrap();
    assert!(matches!(
        stream.set_windows(&[window(0, 3); 2]),
        Err(Error::StreamedLayers {
            expected: 0,
            got: 1
        })
    ));
    let mut group = GroupPlan::new(&[shared, fixed], &two()).unwrap();
    assert!(matches!(
        group.set_windows(2, &[window(0, 3); 2]),
        Err(Error::Count {
            expected: 2,
            got: 3,
            ..
        })
    ));
    assert!(matches!(
        group.set_windows(1, &[window(0, 3); 2]),
        Err(Error::Member { member: 1, .. })
    ));
    let longer = Problem::builder(SHAPE, DType::F32).max_window(5).build();
    assert!(matches!(longer, Err(Error::Parameter { .. })));
}

#[test]
fn a_cache_has_one_plan_for_all_windows() {
    let problem = |windows: [Window; 2], max| {
        Problem::builder(SHAPE, DType::F32)
            .windows(windows.into())
            .max_window(max)
            .build()
            .unwrap()
    };
    let mut plans = PlanCache::new(&two(), NonZeroUsize::new(4).unwrap()).unwrap();
    let maps = [0.25_f32; 32];
    let layers = [HostLayer::from(&maps[..])];
    for windows in [[window(0, 4), window(1, 2)], [window(2, 1), window(0, 3)]] {
        let problem = problem(windows, 4);
        let plan = plans.get(&problem).unwrap();
        assert_eq!(plan.problem(), &problem);
        let got = plan.run_to_vec(&layers).unwrap();
        let want = Plan::new(&problem, &two()).unwrap().run_to_vec(&layers);
        assert_eq!(got, want.unwrap());
    }
    assert_eq!(plans.len(), 1);
    plans.get(&problem([window(0, 1); 2], 2)).unwrap();
    assert_eq!(plans.len(), 2);
}
