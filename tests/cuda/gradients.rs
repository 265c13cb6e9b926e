//! Maps weighed by gradients, and tokens excluded from attention, through the CUDA backend.

use std::convert::Infallible;
use std::num::NonZeroUsize;

use attention_rollout::cuda::{
    DeviceLayer, DeviceLimits, DeviceOutput, DeviceTensor, GroupItem, GroupPlan, HostPlan, Options,
    StreamingPlan, choose, choose_streaming,
};
use attention_rollout::device::Device;
use attention_rollout::model::{
    AttentionModel, AttentionRollout, Capture, CheferRelevance, Feature, Readout,
};
use attention_rollout::{
    DType, Error, GradientRule, HeadFusion, HostTensor, Layer, Output, Problem, Residual,
    ResidualWeights, RolloutConfig, Shape, StartRows, post,
};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use safetensors::SafeTensors;

use crate::common::compare::assert_close;
use crate::common::tensors::{Values, read, tensor};
use crate::generate::{Case, Generated, weighed_case};
use crate::machine::{Buffer, download, machine, upload};
use crate::problems::{assert_right, bits, buffers};

/// PyHealth in f32 is within 3.4e-7 of f64.
const TOLERANCE: f64 = 1e-6;

/// PyHealth's `CheferRelevance`.
fn chefer(output: Output) -> RolloutConfig {
    RolloutConfig {
        gradients: Some(GradientRule::Heads),
        residual: ResidualWeights::Uniform(Residual::new(1.0, 1.0)),
        output,
        ..RolloutConfig::default()
    }
}

#[test]
fn chefer_relevance_end_to_end() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let bytes = read("chefer_cases.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut checked = 0;
    for feature in file
        .names()
        .iter()
        .filter_map(|name| name.strip_suffix("rollout"))
    {
        let f32s = |stack: &str| -> Vec<Vec<f32>> {
            let names = (0..).map(|layer| format!("{feature}{stack}.{layer}"));
            let there = names.take_while(|name| file.tensor(name).is_ok());
            let values = there.map(|name| match tensor(&file, &name).1 {
                Values::F32(values) => values,
                _ => panic!("{name} is not f32"),
            });
            values.collect()
        };
        let (maps, gradients) = (f32s("layer"), f32s("gradient"));
        let layers: Vec<_> = maps
            .iter()
            .zip(&gradients)
            .map(|(maps, gradients)| Layer::Gradients {
                maps: HostTensor::from(&maps[..]),
                gradients: HostTensor::from(&gradients[..]),
            })
            .collect();
        let (extents, _) = tensor(&file, &format!("{feature}layer.0"));
        let shape = Shape {
            layers: layers.len(),
            batch: extents[0],
            heads: extents[1],
            tokens: extents[2],
        };
        let (_, rows) = tensor(&file, &format!("{feature}row"));
        let rows = rows.to_f64().iter().map(|&row| row as usize).collect();
        let outputs = [
            (Output::Matrix, "rollout"),
            (Output::Rows(StartRows::PerItem(rows)), "relevance"),
        ];
        for (output, name) in outputs {
            let problem = Problem::new(shape, DType::F32, chefer(output)).unwrap();
            let mut plan = machine.plan(&problem, |_| {});
            let got = machine.run(&mut plan, &layers);
            let (_, want) = tensor(&file, &format!("{feature}{name}"));
            let what = format!("{feature}{name}\n{plan}");
            let shape = problem.output_shape();
            assert_close(&what, &shape, &got, &want.to_f64(), |_| TOLERANCE);
            if name == "relevance" {
                let (value, _) = tensor(&file, &format!("{feature}value"));
                let got = post::expand(&got, &shape, &value).unwrap();
                let (shape, want) = tensor(&file, &format!("{feature}attribution"));
                assert_close(&what, &shape, &got, &want.to_f64(), |_| TOLERANCE);
            }
        }
        checked += 1;
    }
    assert_eq!(checked, 6, "every feature of the file");
}

#[test]
fn random_problems_agree_with_the_reference() {
    let mut runner = TestRunner::deterministic();
    for (model, tokens, count) in [("sm_90", 30, 10), ("sm_90", 6, 40), ("sm_75", 9, 15)] {
        let Some(machine) = machine(model) else {
            return;
        };
        for _ in 0..count {
            let case = weighed_case(tokens)
                .new_tree(&mut runner)
                .unwrap()
                .current();
            let generated = case.generate();
            let mut plan = machine.plan(&generated.problem, |_| {});
            let got = machine.run(&mut plan, &generated.layers());
            let what = format!("{case:?}\n{plan}");
            assert_right(&what, &generated, &got);
        }
    }
}

/// Two features that differ in everything but that they are weighed, one also without a token.
fn features() -> Vec<Generated> {
    let feature = |layers, tokens, output| {
        let shape = Shape {
            layers,
            batch: 5,
            heads: 3,
            tokens,
        };
        let mut case = Case::new(shape, 31);
        case.config = chefer(output);
        case
    };
    let rows = feature(3, 21, Output::Rows(StartRows::Rows(vec![3])));
    let mut matrix = feature(2, 11, Output::Matrix);
    matrix.config.gradients = Some(GradientRule::Fused);
    matrix.config.exclude_from_attention = vec![4];
    vec![rows.generate(), matrix.generate()]
}

#[test]
fn groups_streams_and_chunks_give_what_a_plan_gives() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let stream = machine.context.default_stream();
    let features = features();
    let poison = |generated: &Generated| vec![f32::NAN; generated.problem.output_len()];

    let problems: Vec<Problem> = features
        .iter()
        .map(|feature| feature.problem.clone())
        .collect();
    let mut group = GroupPlan::on(&machine.runtime(), &problems, &Options::default()).unwrap();
    let of_features: Vec<Vec<Buffer>> = features.iter().map(|f| buffers(&machine, f)).collect();
    let layers: Vec<Vec<DeviceLayer<'_>>> = of_features
        .iter()
        .map(|buffers| buffers.iter().map(Buffer::layer).collect())
        .collect();
    let mut outs: Vec<_> = features
        .iter()
        .map(|f| stream.clone_htod(&poison(f)).unwrap())
        .collect();
    let mut items: Vec<_> = layers
        .iter()
        .zip(&mut outs)
        .map(|(layers, out)| GroupItem::new(layers, out))
        .collect();
    group.run(&stream, &mut items).unwrap();
    drop(items);
    for (feature, out) in features.iter().zip(&outs) {
        assert_right(&format!("{group}"), feature, &download(&stream, out));
    }

    for feature in &features {
        let layers = feature.layers();
        let problem = &feature.problem;
        let mut plan = StreamingPlan::on(&machine.runtime(), problem, &Options::default()).unwrap();
        let mut out = stream.clone_htod(&poison(feature)).unwrap();
        let mut pass = plan.begin(&stream, &mut out).unwrap();
        for layer in &layers {
            pass.push_layer(upload(&stream, layer).layer()).unwrap();
        }
        pass.finish().unwrap();
        assert_right("streamed", feature, &download(&stream, &out));

        let mut whole = machine.plan(problem, |_| {});
        let whole = machine.run(&mut whole, &layers);
        let mut chunked = poison(feature);
        let items = NonZeroUsize::new(2);
        let plan = HostPlan::on(&[machine.runtime()], problem, &Options::default(), items);
        plan.unwrap()
            .run(&layers, &mut chunked, &mut |_| ())
            .unwrap();
        assert_right("in chunks", feature, &chunked);
        assert_eq!(whole.len(), bits(&chunked).len());
    }
}

#[test]
fn layers_that_do_not_fit_are_refused() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let generated = features().swap_remove(0);
    let stream = machine.context.default_stream();
    let mut plan = machine.plan(&generated.problem, |_| {});
    let buffers = buffers(&machine, &generated);
    let mut out = stream
        .alloc_zeros::<f32>(generated.problem.output_len())
        .unwrap();
    let (address, out_len) = (DeviceOutput::from(&mut out).address(), out.len());
    let len = 5 * 3 * 21 * 21;
    let layer = |index: usize| buffers[index].layer();
    let mut refused = |first: DeviceLayer<'_>| {
        // SAFETY: the buffer lives to the end of the test, and everything is on one stream.
        let out = unsafe { DeviceOutput::from_raw(address, out_len) };
        plan.run(&stream, &[first, layer(1), layer(2)], out)
            .unwrap_err()
    };
    // SAFETY: never read.
    let raw = |address, len, dtype| unsafe { DeviceTensor::from_raw(address, len, dtype) };
    let weighed_by = |gradients| match layer(0) {
        Layer::Gradients { maps, .. } => Layer::Gradients { maps, gradients },
        _ => panic!("the case has gradients"),
    };
    let gradients = match layer(0) {
        Layer::Gradients { gradients, .. } => gradients.address(),
        _ => panic!("the case has gradients"),
    };
    let missing = match layer(0) {
        Layer::Gradients { maps, .. } => refused(maps.into()),
        _ => panic!("the case has gradients"),
    };
    assert!(
        matches!(missing, Error::LayerSource { layer: 0, .. }),
        "{missing}"
    );
    let error = refused(weighed_by(raw(gradients, len, DType::F16)));
    assert!(
        matches!(error, Error::LayerDType { layer: 0, .. }),
        "{error}"
    );
    let error = refused(weighed_by(raw(gradients, len - 1, DType::F32)));
    assert!(matches!(error, Error::LayerLen { layer: 0, .. }), "{error}");
    let error = refused(weighed_by(raw(gradients + 2, len, DType::F32)));
    assert!(
        matches!(error, Error::Misaligned { required: 4, .. }),
        "{error}"
    );
    let error = refused(weighed_by(raw(address, len, DType::F32)));
    assert!(matches!(error, Error::Overlap { layer: 0, .. }), "{error}");
}

#[test]
fn values_without_a_bound_take_an_arithmetic_without_one() {
    let shape = |batch, tokens| Shape {
        layers: 12,
        batch,
        heads: 12,
        tokens,
    };
    let problem = |shape, change: &dyn Fn(&mut RolloutConfig)| {
        let mut config = chefer(Output::Matrix);
        change(&mut config);
        Problem::new(shape, DType::F16, config).unwrap()
    };
    let chosen =
        |problem: &Problem, options: &Options| choose(problem, &DeviceLimits::H200, options);
    let mut schedules = Vec::new();
    for (batch, tokens) in [(1, 64), (64, 197), (2, 577)] {
        for output in [Output::Matrix, Output::Cumulative, Output::default()] {
            let problem = problem(shape(batch, tokens), &|config| {
                config.output = output.clone()
            });
            schedules.push(chosen(&problem, &Options::default()).unwrap());
            let streamed = choose_streaming(&problem, &DeviceLimits::H200, &Options::default());
            schedules.push(streamed.unwrap());
        }
    }
    for schedule in &schedules {
        for variant in schedule.variants() {
            assert!(!variant.symbol.contains("f16x"), "{}", variant.symbol);
        }
    }
    let forced = |name: &str| Options {
        variant: Some(name.to_owned()),
        ..Options::default()
    };
    // A kernel that weighs nothing cannot be forced for maps with gradients; without any it can.
    let name = "rows_stream_f16_f32_m1_k7_mean";
    let rows = |gradients| {
        let change = move |config: &mut RolloutConfig| {
            config.output = Output::default();
            config.gradients = gradients;
        };
        problem(shape(1, 197), &change)
    };
    let refused = chosen(&rows(Some(GradientRule::Heads)), &forced(name));
    assert!(matches!(refused, Err(Error::Variant { .. })));
    assert!(chosen(&rows(None), &forced(name)).is_ok());
    // One pass over maps and gradients where the heads are averaged; else fused maps come between.
    let large = |head_fusion: HeadFusion| {
        let change = |config: &mut RolloutConfig| {
            config.output = Output::default();
            config.head_fusion = head_fusion.clone();
        };
        chosen(&problem(shape(64, 197), &change), &Options::default()).unwrap()
    };
    let stems = |fusion| -> Vec<&str> { large(fusion).variants().iter().map(|v| v.stem).collect() };
    assert_eq!(stems(HeadFusion::Mean), ["rows_stream"]);
    assert_eq!(stems(HeadFusion::Max)[0], "head_fusion");
}

/// A model whose passes were made long ago.
struct Kept<'a>(&'a Generated);

impl AttentionModel for Kept<'_> {
    type Input = ();
    type Error = Infallible;

    fn capture(&mut self, _: Capture) {}

    fn forward(&mut self, _: &()) -> Result<(), Infallible> {
        Ok(())
    }

    fn features(&self) -> Vec<Feature<'_>> {
        let layers = self.0.layers();
        let layers = layers.iter().map(|layer| match *layer {
            Layer::Gradients { maps, gradients } => Readout {
                maps: Some(maps),
                gradients: Some(gradients),
                ..Readout::default()
            },
            _ => panic!("the case has gradients"),
        });
        let shape = self.0.problem.shape();
        let extents = [shape.batch, shape.heads, shape.tokens];
        vec![Feature::new("text", extents, layers.collect())]
    }
}

#[test]
fn models_are_explained_on_a_gpu_as_on_the_cpu() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let generated = features().swap_remove(0);
    let gpu = Device::on(&[machine.runtime()], &Options::default()).unwrap();
    let attributions = [Device::cpu(&Default::default()), gpu].map(|device| {
        let mut chefer = CheferRelevance::drop_in(device.clone());
        let weighed = chefer.attribute(&mut Kept(&generated), &(), None).unwrap();
        let mut rollout = AttentionRollout::drop_in(HeadFusion::Mean, device).unwrap();
        let plain = rollout.attribute(&mut Kept(&generated), &(), None).unwrap();
        [weighed, plain].map(|attributions| attributions.get("text").unwrap().clone())
    });
    let [on_cpu, on_gpu] = attributions;
    for (want, got) in on_cpu.iter().zip(&on_gpu) {
        let values: Vec<f64> = want.values.iter().map(|&value| value.into()).collect();
        let largest = values.iter().copied().fold(1.0, f64::max);
        assert_close("model", &want.shape, &got.values, &values, |_| {
            TOLERANCE * largest
        });
    }
    assert_ne!(on_cpu[0], on_cpu[1]);
}
