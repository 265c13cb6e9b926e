//! Rollout from queries and keys.

use std::num::NonZeroUsize;

use attention_rollout::cuda::cudarc::driver::sys;
use attention_rollout::cuda::{
    DeviceLayer, DeviceLimits, DeviceOutput, GroupItem, GroupPlan, HostPlan, LayerOrder, Options,
    Plan, StreamingPlan, choose, choose_streaming,
};
use attention_rollout::{
    DType, Error, HostLayer, HostTensor, Layer, LogBase, Lse, Output, Problem, QueriesKeys, Shape,
    StartRows, Window, reference,
};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use crate::common::queries_keys::{ScoresCase, ScoresGenerated, scores_case};
use crate::common::scores_data::samples;
use crate::compare::{assert_close, check_close};
use crate::generate::Case;
use crate::machine::{Buffer, Machine, download, machine, upload};

/// What a run may be off by, relative to the largest entry.
fn check(what: &str, generated: &ScoresGenerated, got: &[f32]) -> Result<(), String> {
    let problem = &generated.problem;
    let want = reference::rollout(problem, &generated.layers()).unwrap();
    let largest = want.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
    let tolerance = generated.tolerance() * largest + f64::from(f32::MIN_POSITIVE);
    check_close(what, &problem.output_shape(), got, &want, |_| tolerance)
}

fn scores(
    [layers, batch, heads, tokens]: [usize; 4],
    head_dim: usize,
    output: Output,
) -> ScoresCase {
    let shape = Shape {
        layers,
        batch,
        heads,
        tokens,
    };
    let mut case = Case::new(shape, 11);
    case.dtype = DType::F16;
    case.config.output = output;
    let source = QueriesKeys {
        lse: Lse::Given(LogBase::E),
        ..QueriesKeys::new(&shape, head_dim)
    };
    ScoresCase { case, source }
}

fn streamed(machine: &Machine, generated: &ScoresGenerated, layer_order: LayerOrder) -> Vec<f32> {
    let options = Options {
        layer_order,
        ..Options::default()
    };
    streamed_with(machine, generated, &options)
}

fn streamed_with(machine: &Machine, generated: &ScoresGenerated, options: &Options) -> Vec<f32> {
    let (problem, layer_order) = (&generated.problem, options.layer_order);
    let mut plan = StreamingPlan::on(&machine.runtime(), problem, options).unwrap();
    let stream = machine.context.default_stream();
    let len = problem.output_len();
    let mut out = stream.clone_htod(&vec![f32::NAN; len.max(1)]).unwrap();
    let mut view = out.slice_mut(..len);
    let mut pass = plan.begin(&stream, &mut view).unwrap();
    let layers = generated.layers();
    let mut order: Vec<usize> = problem.layers().collect();
    if layer_order == LayerOrder::TopDown {
        order.reverse();
    }
    for layer in order {
        // The tensors are gone as soon as the layer has been pushed.
        pass.push_layer(upload(&stream, &layers[layer]).layer())
            .unwrap();
    }
    pass.finish().unwrap();
    let mut values = download(&stream, &out);
    values.truncate(len);
    values
}

fn in_chunks(machine: &Machine, generated: &ScoresGenerated) -> Vec<f32> {
    let problem = &generated.problem;
    let chunk = NonZeroUsize::new(2);
    let runtimes = [machine.runtime()];
    let mut plan = HostPlan::on(&runtimes, problem, &Options::default(), chunk).unwrap();
    let mut out = vec![f32::NAN; problem.output_len()];
    plan.run(&generated.layers(), &mut out, &mut |_| {})
        .unwrap();
    out
}

#[test]
fn random_problems_agree_with_the_reference() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let mut runner = TestRunner::deterministic();
    let mut failures = Vec::new();
    for _ in 0..12 {
        let case = scores_case(21).new_tree(&mut runner).unwrap().current();
        let generated = case.settled().generate();
        let mut plan = machine.plan(&generated.problem, |_| {});
        let got = machine.run(&mut plan, &generated.layers());
        failures.extend(check(&format!("{plan}"), &generated, &got).err());
        let got = streamed(&machine, &generated, LayerOrder::Forward);
        failures.extend(check("streamed", &generated, &got).err());
        if matches!(generated.problem.config().output, Output::Rows(_)) {
            let got = streamed(&machine, &generated, LayerOrder::TopDown);
            failures.extend(check("streamed from the top", &generated, &got).err());
        }
        let got = in_chunks(&machine, &generated);
        failures.extend(check("in chunks", &generated, &got).err());
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn layers_from_the_last_one_need_no_maps() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    for lse in [Lse::Given(LogBase::E), Lse::Recomputed] {
        let mut case = scores([3, 2, 2, 21], 16, Output::default());
        case.source.lse = lse;
        let generated = case.generate();
        let options = Options {
            layer_order: LayerOrder::TopDown,
            variant: Some("score_rows_f16_mean_held".to_owned()),
            ..Options::default()
        };
        let got = streamed_with(&machine, &generated, &options);
        check("from the last one", &generated, &got).unwrap();
    }
}

#[test]
fn vendored_queries_and_keys_give_the_rollout_of_their_maps() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    for sample in samples() {
        let problem = &sample.problem;
        // Rows without a map, or by way of one.
        let by_rows = problem.start_rows() > 0 && problem.queries_keys().unwrap().has_lse();
        let stem = if by_rows {
            "score_rows"
        } else {
            "score_fusion"
        };
        let one = if by_rows && problem.start_rows() == 1 {
            "_one"
        } else {
            ""
        };
        let variant = format!("{stem}_{}_mean{one}", problem.dtype());
        let largest = sample
            .want
            .iter()
            .fold(0.0, |most: f64, v| most.max(v.abs()));
        let tolerance = (1e-6 + sample.rounding) * largest;
        let mut plan = machine.plan(problem, |options| options.variant = Some(variant));
        let got = machine.run(&mut plan, &sample.layers());
        let what = format!("{}\n{plan}", sample.name);
        assert_close(&what, &problem.output_shape(), &got, &sample.want, |_| {
            tolerance
        });
        plan.check(&machine.context.default_stream()).unwrap();
    }
}

#[test]
fn problems_of_both_sources_share_a_group() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let stream = machine.context.default_stream();
    let mut windowed = scores([2, 2, 2, 19], 8, Output::Rows(StartRows::Last));
    windowed.case.windows = vec![Window { start: 3, len: 12 }, Window { start: 0, len: 19 }];
    windowed.source.lse = Lse::Recomputed;
    let scores = [
        scores([3, 2, 2, 33], 16, Output::default()),
        windowed,
        scores([2, 1, 2, 9], 16, Output::Matrix),
    ];
    let generated: Vec<ScoresGenerated> = scores.iter().map(ScoresCase::generate).collect();
    let maps = Case::new(scores[0].case.shape, 4).generate();
    let mut problems: Vec<Problem> = generated.iter().map(|g| g.problem.clone()).collect();
    problems.push(maps.problem.clone());
    let hosts = generated.iter().map(ScoresGenerated::layers);
    let hosts: Vec<_> = hosts.chain([maps.layers()]).collect();
    let buffers: Vec<Vec<Buffer>> = hosts
        .iter()
        .map(|layers| layers.iter().map(|layer| upload(&stream, layer)).collect())
        .collect();
    let layers: Vec<Vec<DeviceLayer<'_>>> = buffers
        .iter()
        .map(|buffers| buffers.iter().map(Buffer::layer).collect())
        .collect();
    let poison = |problem: &Problem| stream.clone_htod(&vec![f32::NAN; problem.output_len()]);
    let mut outs: Vec<_> = problems.iter().map(|p| poison(p).unwrap()).collect();
    let mut plan = GroupPlan::on(&machine.runtime(), &problems, &Options::default()).unwrap();
    let mut items: Vec<_> = layers
        .iter()
        .zip(&mut outs)
        .map(|(layers, out)| GroupItem::new(layers, out))
        .collect();
    plan.run(&stream, &mut items)
        .unwrap_or_else(|error| panic!("{error}: {}", machine.message()));
    for (generated, out) in generated.iter().zip(&outs) {
        check(&format!("{plan}"), generated, &download(&stream, out)).unwrap();
    }
    crate::problems::assert_right("maps", &maps, &download(&stream, &outs[3]));
}

#[test]
fn runs_are_captured_and_replayed() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    for (output, variant) in [
        (Output::default(), "score_rows_f16_mean_held"),
        (Output::default(), "score_stream_f16_mean"),
        (Output::default(), "rollout_rows_f32_f32_m1_mean"),
        (Output::Matrix, "score_fusion_f16_mean"),
        (Output::Cumulative, "score_fusion_f16_mean"),
    ] {
        let what = format!("{output:?} by {variant}, captured");
        let generated = scores([3, 2, 2, 21], 16, output).generate();
        let mut plan = machine.plan(&generated.problem, |options| {
            options.variant = Some(variant.to_owned());
        });
        let stream = machine.context.new_stream().unwrap();
        let hosts = generated.layers();
        let buffers: Vec<Buffer> = hosts.iter().map(|layer| upload(&stream, layer)).collect();
        let poison = vec![f32::NAN; generated.problem.output_len()];
        let mut out = stream.clone_htod(&poison).unwrap();
        let layers: Vec<DeviceLayer<'_>> = buffers.iter().map(Buffer::layer).collect();
        let target = DeviceOutput::from(&mut out);
        machine.context.synchronize().unwrap();
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).unwrap();
        plan.run(&stream, &layers, target).unwrap();
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
        let graph = graph.unwrap().unwrap();
        for _ in 0..2 {
            stream.memcpy_htod(&poison, &mut out).unwrap();
            graph.launch().unwrap();
            check(&what, &generated, &download(&stream, &out)).unwrap();
        }
        plan.check(&stream).unwrap();
    }
}

#[test]
fn devices_without_the_products_are_refused() {
    let problem = scores([2, 1, 2, 9], 64, Output::Matrix).generate().problem;
    let options = Options::default();
    for refused in [
        choose(&problem, &DeviceLimits::T4, &options),
        choose_streaming(&problem, &DeviceLimits::T4, &options),
    ] {
        assert!(matches!(
            refused,
            Err(Error::Architecture {
                required: 80,
                got: 75
            })
        ));
    }
    choose(&problem, &DeviceLimits::A100, &options).unwrap();
}

/// The layers with another LSE.
fn with_lse<'a>(
    layers: &[HostLayer<'a>],
    lse: impl Fn(usize) -> HostTensor<'a>,
) -> Vec<HostLayer<'a>> {
    let layer = |(index, layer): (usize, &HostLayer<'a>)| match *layer {
        Layer::QueriesKeys { queries, keys, .. } => Layer::QueriesKeys {
            queries,
            keys,
            lse: Some(lse(index)),
        },
        other => other,
    };
    layers.iter().enumerate().map(layer).collect()
}

fn lse_of<'a>(layer: &HostLayer<'a>) -> HostTensor<'a> {
    match layer {
        Layer::QueriesKeys { lse: Some(lse), .. } => *lse,
        _ => panic!("without an LSE"),
    }
}

#[test]
fn what_does_not_belong_together_is_seen() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let runtime = machine.runtime();
    let stream = machine.context.default_stream();
    let run_by = |variant: Option<&str>, problem: &Problem, layers: &[HostLayer<'_>]| {
        let options = Options {
            variant: variant.map(str::to_owned),
            ..Options::default()
        };
        let mut plan = Plan::on(&runtime, problem, &options).unwrap();
        machine.run(&mut plan, layers);
        plan.check(&stream)
    };
    let run = |problem: &Problem, layers: &[HostLayer<'_>]| run_by(None, problem, layers);
    let run_host = |problem: &Problem, layers: &[HostLayer<'_>]| {
        let (runtimes, chunk) = ([runtime.clone()], NonZeroUsize::new(2));
        let mut plan = HostPlan::on(&runtimes, problem, &Options::default(), chunk).unwrap();
        let mut out = vec![f32::NAN; problem.output_len()];
        plan.run(layers, &mut out, &mut |_| {})
    };
    for output in [Output::default(), Output::Matrix] {
        let case = scores([3, 3, 2, 20], 16, output.clone());
        let generated = case.generate();
        let (problem, layers) = (&generated.problem, generated.layers());
        run(problem, &layers).unwrap();
        run_host(problem, &layers).unwrap();
        // The LSE of another layer, of all items or of the second alone.
        let swapped = with_lse(&layers, |layer| lse_of(&layers[2 - layer]));
        assert!(matches!(run(problem, &swapped), Err(Error::Lse { .. })));
        let (own, other) = (lse_of(&layers[1]), lse_of(&layers[0]));
        let (own, other) = (own.as_slice().unwrap(), other.as_slice().unwrap());
        let item = 2 * 20;
        let mixed: Vec<f32> = [&own[..item], &other[item..2 * item], &own[2 * item..]].concat();
        let mixed = with_lse(&layers, |layer| match layer {
            1 => mixed[..].into(),
            _ => lse_of(&layers[layer]),
        });
        for refused in [run(problem, &mixed), run_host(problem, &mixed)] {
            assert!(matches!(
                refused,
                Err(Error::Lse {
                    layer: 1,
                    item: 1,
                    ..
                })
            ));
        }
        // Wherever the scale, the base or the mask is another.
        let another = |change: &dyn Fn(&mut ScoresCase)| {
            let mut case = case.clone();
            change(&mut case);
            case.generate().problem
        };
        let unseen = another(&|case| case.source.mass_tolerance = None);
        run(&unseen, &swapped).unwrap();
        if output == Output::Matrix {
            continue;
        }
        for wrong in [
            another(&|case| case.source.scale = Some(0.225)),
            another(&|case| case.source.lse = Lse::Given(LogBase::Two)),
            another(&|case| case.case.config.causal = true),
            another(&|case| case.source.sliding_windows = vec![9]),
        ] {
            assert!(run(&wrong, &layers).is_err());
        }
    }
    // A row that no probe looks at: of a fused map, and of relevance that it has a part in.
    let rows = Output::Rows(StartRows::Rows(vec![9, 5]));
    for (output, variant, seen) in [
        (Output::Matrix, "score_masses_f32", 5),
        (rows.clone(), "score_masses_f32", 5),
        (rows, "score_residual_f32", 1),
    ] {
        let long = scores([1, 1, 2, 80], 16, output).generate();
        let mut few: Vec<f32> = lse_of(&long.layers()[0]).as_slice().unwrap().to_vec();
        few[5] += 0.1;
        let wrong = with_lse(&long.layers(), |_| few[..].into());
        let refused = run_by(Some(variant), &long.problem, &wrong);
        assert!(
            matches!(refused, Err(Error::Mass { layer: 0, item: 0, row, .. }) if row == seen),
            "{refused:?}"
        );
    }
}
