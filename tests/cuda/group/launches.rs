//! How often a group launches.

use attention_rollout::cuda::{GroupPlan, Options};
use attention_rollout::{
    DType, Discard, DiscardScope, Output, Problem, RolloutConfig, Shape, StartRows, Window,
};
use vcuda::client::Ordering;

use super::{Features, discard, features};
use crate::generate::Case;
use crate::machine::machine;
use crate::problems::cases;

#[test]
fn launches_do_not_grow_with_the_number_of_problems() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    type Change = fn(usize, &mut Case);
    let forms: [(&str, usize, Change); 5] = [
        ("rows", 1, |_, _| ()),
        ("rows with discard", 3, |_, case| discard(case)),
        ("matrix", 1, |_, case| case.config.output = Output::Matrix),
        ("matrix with discard", 3, |_, case| {
            case.config.output = Output::Matrix;
            discard(case);
        }),
        // Of four layers: fill, fusion, and two levels of products.
        ("cumulative windows", 4, |_, case| {
            case.config.output = Output::Cumulative;
            case.windows[1] = Window { start: 2, len: 3 };
        }),
    ];
    for (what, launches, change) in forms {
        for count in [2, 12] {
            let mut group = Features::new(&machine, &features(count, change));
            let got = group.check(&machine);
            assert_eq!(got, launches, "{what} of {count}: {}", group.plan);
        }
    }
}

#[test]
fn a_clinical_model_takes_one_launch_with_discard_three() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    // Layers and tokens of each feature; batch 256, 4 heads.
    let features = [(3, 100), (2, 60), (3, 40), (2, 24), (1, 48), (1, 3)];
    let launches = |output: Output, discard| {
        let problems = features.map(|(layers, tokens)| {
            let shape = Shape {
                layers,
                batch: 256,
                heads: 4,
                tokens,
            };
            let config = RolloutConfig {
                output: output.clone(),
                discard,
                ..RolloutConfig::default()
            };
            Problem::new(shape, DType::F32, config).unwrap()
        });
        let group = GroupPlan::on(&machine.runtime(), &problems, &Options::default()).unwrap();
        assert!(group.to_string().contains("_group: grid "), "{group}");
        group.launches()
    };
    let scope = DiscardScope::Map;
    let nine_tenths = Some(Discard { ratio: 0.9, scope });
    assert_eq!(launches(Output::default(), None), 1);
    assert_eq!(launches(Output::default(), nine_tenths), 3);
    // Features of up to 64 tokens, and of more.
    assert_eq!(launches(Output::Matrix, None), 2);
}

#[test]
fn problems_of_every_kind_run_together() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    for ordering in [Ordering::Eager, Ordering::Shuffled(5)] {
        if let Some(vcuda) = &machine.vcuda {
            vcuda.set_ordering(ordering);
        }
        let cases: Vec<Case> = cases().into_iter().map(|(_, case)| case).collect();
        let mut group = Features::new(&machine, &cases);
        let stream = machine.context.default_stream();
        group.submit(&stream);
        group.assert_results(&machine, &stream);
    }
}

#[test]
fn different_kernels_take_launches_of_their_own() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    // Three element types, each a kernel, which normalises or not.
    let mut group = Features::new(
        &machine,
        &features(8, |index, case| {
            case.dtype = DType::ALL[index % 3];
            case.config.normalize_rows = index == 4;
            case.config.causal = index % 2 == 1;
            case.config.output = Output::Rows(StartRows::Last);
            case.windows[2] = Window { start: 1, len: 4 };
        }),
    );
    assert_eq!(group.check(&machine), 3, "{}", group.plan);
}

#[test]
fn more_layers_or_addresses_than_one_launch_has_room_for() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    // 66 layers take two launches, the second of which the short ones join.
    let deep = |index: usize, case: &mut Case| {
        (case.shape.batch, case.shape.tokens) = (1, 3 + index);
        case.windows = vec![Window::full(3 + index)];
        case.shape.layers = [66, 2][index % 2];
    };
    let mut group = Features::new(&machine, &features(3, deep));
    assert_eq!(group.check(&machine), 2, "{}", group.plan);
    // 12 layers and an output each: 39 fit 508 addresses, 40 do not.
    for (count, launches) in [(39, 1), (40, 2)] {
        let mut group = Features::new(
            &machine,
            &features(count, |_, case| {
                case.shape = Shape {
                    layers: 12,
                    batch: 1,
                    heads: 1,
                    tokens: 4,
                };
                case.windows = vec![Window::full(4)];
            }),
        );
        assert_eq!(group.check(&machine), launches, "{}", group.plan);
    }
}

#[test]
fn groups_of_nothing_and_problems_without_items() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    assert_eq!(Features::new(&machine, &[]).check(&machine), 0);
    let without_items = |index: usize, case: &mut Case| {
        case.config.output = Output::Matrix;
        match index {
            1 => {
                case.shape.batch = 0;
                case.windows.clear();
            }
            2 => case.windows.fill(Window { start: 0, len: 0 }),
            _ => {}
        }
    };
    // Matrices, and a fill, also where no window has a token.
    let mut group = Features::new(&machine, &features(4, without_items));
    assert_eq!(group.check(&machine), 2, "{}", group.plan);
    let mut group = Features::new(&machine, &features(2, |_, case| without_items(1, case)));
    assert_eq!(group.check(&machine), 0, "{}", group.plan);
}
