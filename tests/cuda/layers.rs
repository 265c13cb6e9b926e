//! More layers than one launch takes.

use attention_rollout::cuda::kernel::MAX_LAYERS_PER_LAUNCH;
use attention_rollout::cuda::{Options, StreamingPlan};
use attention_rollout::{
    Discard, DiscardScope, Output, Residual, ResidualWeights, Shape, StartRows, Window,
};

use crate::generate::Case;
use crate::machine::{directed, download, upload};
use crate::problems::assert_right;

const LAYERS: usize = 2 * MAX_LAYERS_PER_LAUNCH + 2;

/// So little attention per layer that each of them shows in the result.
fn case(output: Output) -> Case {
    let shape = Shape {
        layers: LAYERS,
        batch: 2,
        heads: 2,
        tokens: 7,
    };
    let weight = |l: usize| (1.0 + 2.0 * l as f32 / LAYERS as f32) / LAYERS as f32;
    let residual = |l| Residual::new(weight(l), 1.0 - weight(l));
    let mut case = Case::new(shape, 23);
    case.config.residual = ResidualWeights::PerLayer((0..LAYERS).map(residual).collect());
    case.config.output = output;
    case.windows[1] = Window { start: 1, len: 5 };
    case
}

/// Name, case, and the kernel that must be launched three times.
fn cases() -> Vec<(&'static str, Case, &'static str)> {
    let rows = || Output::Rows(StartRows::Rows(vec![4, 1]));
    let discarding = |output| {
        let mut case = case(output);
        case.config.discard = Some(Discard {
            ratio: 0.5,
            scope: DiscardScope::Patches { special_tokens: 1 },
        });
        case
    };
    let mut normalized = case(Output::Matrix);
    normalized.config.normalize_rows = true;
    vec![
        ("one row", case(Output::default()), "rows_stream"),
        ("two rows", case(rows()), "rows_stream"),
        ("matrix", case(Output::Matrix), "head_fusion"),
        ("normalised matrix", normalized, "head_fusion"),
        ("cumulative", case(Output::Cumulative), "head_fusion"),
        ("rows, discard", discarding(rows()), "rows_stream"),
        ("matrix, discard", discarding(Output::Matrix), "head_fusion"),
    ]
}

#[test]
fn all_at_once() {
    let Some(machine) = directed("sm_90") else {
        return;
    };
    for (what, case, stem) in cases() {
        let generated = case.generate();
        let mut plan = machine.plan(&generated.problem, |_| {});
        let before = machine.vcuda().launches().len();
        let got = machine.run(&mut plan, &generated.layers());
        assert_right(what, &generated, &got);
        let launches = machine.vcuda().launches().split_off(before);
        let of_stem = launches.iter().filter(|l| l.kernel.starts_with(stem));
        assert_eq!(of_stem.count(), 3, "{what}: {plan}");
    }
}

#[test]
fn one_by_one() {
    let Some(machine) = directed("sm_90") else {
        return;
    };
    let stream = machine.context.default_stream();
    for (what, case, _) in cases() {
        let generated = case.generate();
        let problem = &generated.problem;
        let mut plan = StreamingPlan::on(&machine.runtime(), problem, &Options::default()).unwrap();
        let poison = vec![f32::NAN; problem.output_len()];
        let mut out = stream.clone_htod(&poison).unwrap();
        let mut pass = plan.begin(&stream, &mut out).unwrap();
        for maps in &generated.layers() {
            pass.push_layer(upload(&stream, maps).layer()).unwrap();
        }
        pass.finish().unwrap();
        assert_right(what, &generated, &download(&stream, &out));
    }
}
