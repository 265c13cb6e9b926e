//! Explaining models: the attributions of PyHealth's interpreters, and readout that is off whatever happens.

mod queries_keys;

use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use attention_rollout::device::Device;
use attention_rollout::model::{
    AttentionModel, AttentionRollout, Attributions, Capture, CheferRelevance, Feature, Readout,
};
use attention_rollout::{
    Error, HeadFusion, HostTensor, Output, RolloutConfig, StartRows, Strides, cpu,
};
use safetensors::SafeTensors;

use crate::common::compare::assert_close;
use crate::common::tensors::{Values, read, tensor};

/// PyHealth in f32 is within 3.4e-7 of f64.
const TOLERANCE: f64 = 1e-6;

/// What a model has saved of one feature: its maps lie in memory as its forward pass left them.
#[derive(Clone, Default)]
struct Saved {
    name: String,
    extents: [usize; 3],
    layers: Vec<Vec<f32>>,
    gradients: Vec<Vec<f32>>,
    rows: Vec<usize>,
    input_shape: Vec<usize>,
    want: Vec<f64>,
}

fn on_cpu() -> Device {
    Device::cpu(&cpu::Options::default())
}

/// How a forward pass ends.
#[derive(Clone, Copy, PartialEq)]
enum Ending {
    Well,
    Failing,
    Panicking,
}

/// A model whose forward pass was made long ago: it hands out what it kept then, where it is told to keep it.
struct Replay {
    saved: Vec<Saved>,
    capture: Rc<Cell<Capture>>,
    /// What the last forward pass ran with.
    kept: Capture,
    /// The class of the last backward pass.
    class: Option<Option<usize>>,
    ending: Ending,
}

#[derive(Debug)]
struct OutOfInk;

impl fmt::Display for OutOfInk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("out of ink")
    }
}

impl std::error::Error for OutOfInk {}

impl Replay {
    fn new(saved: Vec<Saved>) -> Self {
        Replay {
            saved,
            capture: Rc::default(),
            kept: Capture::Off,
            class: None,
            ending: Ending::Well,
        }
    }
}

/// A layer's tensor, where it was kept and is not left out.
fn kept(tensors: &[Vec<f32>], layer: usize, wanted: bool) -> Option<HostTensor<'_>> {
    let tensor = tensors
        .get(layer)
        .filter(|tensor| wanted && !tensor.is_empty());
    tensor.map(|tensor| HostTensor::from(&tensor[..]))
}

impl AttentionModel for Replay {
    type Input = str;
    type Error = OutOfInk;

    fn capture(&mut self, capture: Capture) {
        self.capture.set(capture);
    }

    fn forward(&mut self, _input: &str) -> Result<(), OutOfInk> {
        self.kept = self.capture.get();
        match self.ending {
            Ending::Well => Ok(()),
            Ending::Failing => Err(OutOfInk),
            Ending::Panicking => panic!("out of paper"),
        }
    }

    fn backward(&mut self, class: Option<usize>) -> Result<(), OutOfInk> {
        self.class = Some(class);
        Ok(())
    }

    fn features(&self) -> Vec<Feature<'_>> {
        self.saved
            .iter()
            .map(|saved| {
                let layers = (0..saved.layers.len())
                    .map(|layer| Readout {
                        maps: kept(&saved.layers, layer, self.kept != Capture::Off),
                        gradients: kept(&saved.gradients, layer, self.kept == Capture::Gradients),
                        ..Readout::default()
                    })
                    .collect();
                Feature {
                    start_rows: StartRows::PerItem(saved.rows.clone()),
                    input_shape: saved.input_shape.clone(),
                    ..Feature::new(&saved.name, saved.extents, layers)
                }
            })
            .collect()
    }
}

/// The features of each case of a file, by the case's name, in the order of the file.
fn cases(name: &str) -> Vec<(String, Vec<Saved>)> {
    let file = read(name);
    let file = SafeTensors::deserialize(&file).unwrap();
    let mut names: Vec<&str> = file.names().into_iter().collect();
    names.sort_unstable();
    let mut cases: Vec<(String, Vec<Saved>)> = Vec::new();
    for prefix in names.iter().filter_map(|name| name.strip_suffix("rollout")) {
        let (case, _) = prefix.split_once('/').unwrap();
        let stack = |kind: &str| -> Vec<Vec<f32>> {
            (0..)
                .map(|layer| format!("{prefix}{kind}.{layer}"))
                .take_while(|name| names.contains(&name.as_str()))
                .map(|name| match tensor(&file, &name).1 {
                    Values::F32(values) => values,
                    _ => panic!("{name} is f32"),
                })
                .collect()
        };
        let (extents, _) = tensor(&file, &format!("{prefix}layer.0"));
        let (input_shape, value) = tensor(&file, &format!("{prefix}value"));
        let (batch, tokens) = (extents[0], extents[2]);
        let rows = match names.contains(&format!("{prefix}row").as_str()) {
            true => {
                let rows = tensor(&file, &format!("{prefix}row")).1.to_f64();
                rows.into_iter().map(|row| row as usize).collect()
            }
            // Transformer reads row 0; StageAttentionNet the row of the last code.
            false if case.starts_with("stageattn") => {
                let value = value.to_f64();
                let per_item = value.len() / batch;
                let last = |item: &[f64]| {
                    let present = |codes: &&[f64]| codes.iter().any(|&code| code != 0.0);
                    let codes = item.chunks(per_item / tokens);
                    codes.filter(present).count().saturating_sub(1)
                };
                value.chunks(per_item).map(last).collect()
            }
            false => vec![0; batch],
        };
        let saved = Saved {
            name: prefix.trim_end_matches('/').to_owned(),
            extents: [extents[0], extents[1], extents[2]],
            layers: stack("layer"),
            gradients: stack("gradient"),
            rows,
            input_shape,
            want: tensor(&file, &format!("{prefix}attribution")).1.to_f64(),
        };
        match cases.last_mut() {
            Some((last, features)) if last == case => features.push(saved),
            _ => cases.push((case.to_owned(), vec![saved])),
        }
    }
    cases
}

fn assert_attributions(attributions: &Attributions, saved: &[Saved]) {
    let features: Vec<_> = attributions.iter().map(|a| a.feature.as_str()).collect();
    let wanted: Vec<_> = saved.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(features, wanted, "in the model's order");
    for saved in saved {
        let got = attributions.get(&saved.name).unwrap();
        assert_close(&saved.name, &got.shape, &got.values, &saved.want, |_| {
            TOLERANCE
        });
        assert_eq!(got.shape, saved.input_shape, "{}", saved.name);
    }
}

#[test]
fn rollout_of_flat_and_nested_features_is_pyhealths() {
    let mut explainer = AttentionRollout::drop_in(HeadFusion::Mean, on_cpu()).unwrap();
    let cases = cases("pyhealth_cases.safetensors");
    assert_eq!(
        cases
            .iter()
            .map(|(_, features)| features.len())
            .sum::<usize>(),
        6
    );
    for (case, saved) in cases {
        let mut model = Replay::new(saved.clone());
        // Twice, with the plan of the first time; the class does not matter.
        for class in [None, Some(1)] {
            let attributions = explainer.attribute(&mut model, "a batch", class).unwrap();
            assert_attributions(&attributions, &saved);
            assert_eq!(
                model.kept,
                Capture::Attention,
                "{case}: kept during the forward pass"
            );
            assert_eq!(model.capture.get(), Capture::Off, "{case}: and no longer");
            assert_eq!(model.class, None, "{case}: no gradients are needed");
        }
        let features = AttentionRollout::default()
            .attribute(&mut model, "a batch", None)
            .unwrap();
        assert_eq!(features.into_iter().count(), saved.len());
    }
}

#[test]
fn relevance_of_flat_and_nested_features_is_pyhealths() {
    let mut explainer = CheferRelevance::default();
    let cases = cases("chefer_cases.safetensors");
    assert_eq!(
        cases
            .iter()
            .map(|(case, saved)| (case.as_str(), saved.len()))
            .collect::<Vec<_>>(),
        [
            ("stageattn_nested", 1),
            ("transformer_L1H1", 2),
            ("transformer_L3H4", 2),
            ("transformer_nested", 1),
        ]
    );
    for (case, saved) in cases {
        let mut model = Replay::new(saved.clone());
        let attributions = explainer.attribute(&mut model, "", Some(1)).unwrap();
        assert_attributions(&attributions, &saved);
        assert_eq!(model.kept, Capture::Gradients, "{case}");
        assert_eq!(model.capture.get(), Capture::Off, "{case}");
        assert_eq!(model.class, Some(Some(1)), "{case}: the class asked for");
    }
}

#[test]
fn a_layer_without_gradients_is_named() {
    let mut saved = uniform();
    saved.layers.push(vec![0.5; 4]);
    let mut model = Replay::new(vec![saved]);
    let error = CheferRelevance::default()
        .attribute(&mut model, "", None)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "feature visit/codes: layer 1: expected the model to keep the gradient, got none"
    );
    assert_eq!(model.capture.get(), Capture::Off);
    model.ending = Ending::Failing;
    assert!(
        CheferRelevance::default()
            .attribute(&mut model, "", None)
            .is_err()
    );
    assert_eq!(
        (model.capture.get(), model.class),
        (Capture::Off, Some(None))
    );
}

#[test]
fn the_drop_in_knows_the_mean_alone() {
    for fusion in [
        HeadFusion::Max,
        HeadFusion::Min,
        HeadFusion::Weighted(vec![1.0]),
    ] {
        assert!(matches!(
            AttentionRollout::drop_in(fusion.clone(), on_cpu()),
            Err(Error::HeadFusion { got, .. }) if got == fusion
        ));
    }
}

#[test]
fn every_other_fusion_is_computed_where_it_is_asked_for() {
    // Two heads, one layer: the largest entries are those of head 1, twice those of head 0.
    let saved = Saved {
        name: "text".to_owned(),
        extents: [1, 2, 2],
        layers: vec![vec![0.1, 0.2, 0.3, 0.4, 0.2, 0.4, 0.6, 0.8]],
        rows: vec![1],
        input_shape: vec![1, 2],
        ..Saved::default()
    };
    let config = RolloutConfig {
        head_fusion: HeadFusion::Max,
        // Start rows are the model's.
        output: Output::Matrix,
        ..RolloutConfig::default()
    };
    let mut explainer = AttentionRollout::new(config, on_cpu());
    let mut model = Replay::new(vec![saved]);
    let attributions = explainer.attribute(&mut model, "", None).unwrap();
    assert_eq!(attributions.get("text").unwrap().values, [0.3, 0.9]);
}

/// One feature of one layer with uniform maps.
fn uniform() -> Saved {
    Saved {
        name: "visit/codes".to_owned(),
        extents: [1, 1, 2],
        layers: vec![vec![0.5; 4]],
        gradients: vec![vec![1.0; 4]],
        rows: vec![0],
        input_shape: vec![1, 2],
        want: Vec::new(),
    }
}

#[test]
fn readout_is_off_after_an_error_and_a_panic() {
    let mut model = Replay::new(vec![uniform()]);
    let capture = Rc::clone(&model.capture);
    model.ending = Ending::Failing;
    let error = AttentionRollout::default()
        .attribute(&mut model, "", None)
        .unwrap_err();
    assert_eq!(error.to_string(), "the model failed: out of ink");
    assert!(matches!(error, Error::Model(source) if source.is::<OutOfInk>()));
    assert_eq!(
        (model.kept, capture.get()),
        (Capture::Attention, Capture::Off)
    );

    model.ending = Ending::Panicking;
    model.kept = Capture::Off;
    let explained = AssertUnwindSafe(|| {
        let _ = AttentionRollout::default().attribute(&mut model, "", None);
    });
    catch_unwind(explained).expect_err("the panic goes on");
    assert_eq!(
        (model.kept, capture.get()),
        (Capture::Attention, Capture::Off)
    );
}

/// The error of explaining a model with `saved`.
fn refused(saved: Vec<Saved>) -> String {
    let mut model = Replay::new(saved);
    let error = AttentionRollout::default()
        .attribute(&mut model, "", None)
        .unwrap_err();
    assert_eq!(model.capture.get(), Capture::Off);
    error.to_string()
}

#[test]
fn what_is_missing_is_named_with_feature_and_layer() {
    assert_eq!(
        refused(Vec::new()),
        "the model hands out no feature with attention layers"
    );
    let with = |change: fn(&mut Saved)| {
        let mut saved = uniform();
        change(&mut saved);
        refused(vec![uniform(), saved])
    };
    assert_eq!(
        with(|saved| saved.layers.clear()),
        "feature visit/codes: layers must be at least 1, got 0"
    );
    assert_eq!(
        with(|saved| saved.layers.push(Vec::new())),
        "feature visit/codes: layer 1: expected the model to keep the attention map, got none"
    );
    assert_eq!(
        with(|saved| saved.layers.push(vec![0.5; 3])),
        "feature visit/codes: layer 1, maps: its extents and strides reach 4 elements, got 3"
    );
    assert_eq!(
        with(|saved| saved.rows = vec![2]),
        "feature visit/codes: item 0: start row 2 lies outside its window of 2 tokens"
    );
    assert_eq!(
        with(|saved| saved.input_shape = vec![1, 3, 4]),
        "feature visit/codes: value: expected first extents [1, 2], got [1, 3, 4]"
    );
}

#[test]
fn a_feature_has_one_start_row() {
    struct Two;
    impl AttentionModel for Two {
        type Input = ();
        type Error = OutOfInk;
        fn capture(&mut self, _capture: Capture) {}
        fn forward(&mut self, _input: &()) -> Result<(), OutOfInk> {
            Ok(())
        }
        fn features(&self) -> Vec<Feature<'_>> {
            let maps = Some(HostTensor::from(&[0.5_f32; 6][..]));
            let layer = Readout {
                maps,
                ..Readout::default()
            };
            vec![Feature {
                start_rows: StartRows::Rows(vec![0, 1]),
                strides: Strides {
                    batch: 0,
                    head: 0,
                    row: 3,
                },
                ..Feature::new("text", [1, 1, 2], vec![layer])
            }]
        }
    }
    let error = AttentionRollout::default()
        .attribute(&mut Two, &(), None)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "feature text: start rows of a feature: expected 1, got 2"
    );
}
