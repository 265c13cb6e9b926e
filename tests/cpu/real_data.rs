//! Outputs of other systems on real attention maps (`tests/data`), through the reference and the CPU backend.

use crate::common::compare::assert_close;
use crate::common::scores_data::samples;
use crate::common::tensors::{Values, read, tensor};
use attention_rollout::cpu::{Choice, Form, Options, Plan};
use attention_rollout::{
    DType, Discard, DiscardScope, GradientRule, HeadFusion, HostLayer, HostTensor, Layer, Output,
    Problem, Residual, ResidualWeights, RolloutConfig, Shape, StartRows, Window, reference,
};
use safetensors::SafeTensors;

/// PyHealth in f32 is within 3.4e-7 of f64.
const TOLERANCE: f64 = 1e-6;

/// Rows of a minimum over heads sum to much less than 1, and normalising them magnifies their errors.
const MIN_TOLERANCE: f64 = 5e-6;

struct Maps {
    shape: Shape,
    layers: Vec<Vec<f32>>,
    /// As many as layers, or none.
    gradients: Vec<Vec<f32>>,
}

impl Maps {
    fn read(file: &SafeTensors<'_>, prefix: &str) -> Self {
        let mut shape = Vec::new();
        let mut stack = |kind: &str| -> Vec<Vec<f32>> {
            let names = (0..).map(|layer| format!("{prefix}{kind}.{layer}"));
            let there = names.take_while(|name| file.tensor(name).is_ok());
            there
                .map(|name| match tensor(file, &name) {
                    (extents, Values::F32(values)) => {
                        shape = extents;
                        values
                    }
                    _ => panic!("{name} is f32"),
                })
                .collect()
        };
        let (gradients, layers) = (stack("gradient"), stack("layer"));
        Maps {
            shape: Shape {
                layers: layers.len(),
                batch: shape[0],
                heads: shape[1],
                tokens: shape[2],
            },
            layers,
            gradients,
        }
    }

    /// Only item `item`.
    fn item(self, item: usize) -> Self {
        let Shape { heads, tokens, .. } = self.shape;
        let len = heads * tokens * tokens;
        let one = |layer: Vec<f32>| layer[item * len..][..len].to_vec();
        Maps {
            shape: Shape {
                batch: 1,
                ..self.shape
            },
            layers: self.layers.into_iter().map(one).collect(),
            gradients: Vec::new(),
        }
    }

    /// Asserts that both backends give `want`.
    fn check(
        &self,
        what: &str,
        config: &RolloutConfig,
        windows: Vec<Window>,
        want: &[f64],
        tolerance: f64,
    ) {
        let problem = Problem::builder(self.shape, DType::F32)
            .config(config.clone())
            .windows(windows)
            .build()
            .unwrap();
        let maps = self.layers.iter().map(|maps| HostTensor::from(&maps[..]));
        let gradients = self.gradients.iter().map(|g| HostTensor::from(&g[..]));
        let layers: Vec<_> = match config.gradients {
            None => maps.map(Layer::Maps).collect(),
            Some(_) => maps
                .zip(gradients)
                .map(|(maps, gradients)| Layer::Gradients { maps, gradients })
                .collect(),
        };
        let shape = problem.output_shape();
        let exact = reference::rollout(&problem, &layers).unwrap();
        let exact: Vec<f32> = exact.iter().map(|&v| v as f32).collect();
        assert_close(&format!("{what}, reference"), &shape, &exact, want, |_| {
            tolerance
        });
        let mut out = vec![f32::NAN; problem.output_len()];
        let mut plan = Plan::new(&problem, &Options::default()).unwrap();
        plan.run(&layers, &mut out).unwrap();
        assert_close(&format!("{what}, cpu"), &shape, &out, want, |_| tolerance);
    }

    /// As `check`, for the matrix and for each of its rows.
    fn check_matrix(&self, what: &str, config: &RolloutConfig, want: &[f64], tolerance: f64) {
        let Shape { batch, tokens, .. } = self.shape;
        let windows = vec![Window::full(tokens); batch];
        let matrix = RolloutConfig {
            output: Output::Matrix,
            ..config.clone()
        };
        self.check(what, &matrix, windows.clone(), want, tolerance);
        let rows = RolloutConfig {
            output: Output::Rows(StartRows::Rows((0..tokens).collect())),
            ..config.clone()
        };
        self.check(what, &rows, windows.clone(), want, tolerance);
        let first = want
            .chunks(tokens * tokens)
            .flat_map(|m| &m[..tokens])
            .copied()
            .collect::<Vec<_>>();
        let row = RolloutConfig {
            output: Output::default(),
            ..config.clone()
        };
        self.check(what, &row, windows, &first, tolerance);
    }

    /// As `check`, for one row of each item.
    fn check_rows(
        &self,
        what: &str,
        config: &RolloutConfig,
        rows: Vec<usize>,
        want: &[f64],
        tolerance: f64,
    ) {
        let config = RolloutConfig {
            output: Output::Rows(StartRows::PerItem(rows)),
            ..config.clone()
        };
        let windows = vec![Window::full(self.shape.tokens); self.shape.batch];
        self.check(what, &config, windows, want, tolerance);
    }
}

fn normalized(head_fusion: HeadFusion) -> RolloutConfig {
    RolloutConfig {
        head_fusion,
        normalize_rows: true,
        ..RolloutConfig::default()
    }
}

#[test]
fn minilm_agrees_with_other_systems() {
    let maps = read("minilm_batch4.safetensors");
    let maps = SafeTensors::deserialize(&maps).unwrap();
    let expected = read("minilm_batch4_expected.safetensors");
    let expected = SafeTensors::deserialize(&expected).unwrap();
    let mut checked = 0;
    for name in expected.names() {
        let parts: Vec<&str> = name.split('/').collect();
        let head_fusion = match parts[1] {
            "mean" => HeadFusion::Mean,
            "max" => HeadFusion::Max,
            "min" => HeadFusion::Min,
            other => panic!("{name}: fusion {other}"),
        };
        let tolerance = if head_fusion == HeadFusion::Min {
            MIN_TOLERANCE
        } else {
            TOLERANCE
        };
        let config = RolloutConfig {
            normalize_rows: match parts[2] {
                "half" => false,
                "normalized" => true,
                other => panic!("{name}: residual {other}"),
            },
            layers: parts.contains(&"from_layer_2").then_some(2..6),
            discard: parts.contains(&"discard_map_0.9").then_some(Discard {
                ratio: 0.9,
                scope: DiscardScope::Map,
            }),
            head_fusion,
            ..RolloutConfig::default()
        };
        let maps = Maps::read(&maps, "");
        let maps = match parts.last() {
            Some(&"item_3") => maps.item(3),
            _ => maps,
        };
        let want = tensor(&expected, name).1.to_f64();
        maps.check_matrix(name, &config, &want, tolerance);
        checked += 1;
    }
    assert_eq!(checked, 10, "every tensor of the file");
}

#[test]
fn padding_is_absent() {
    let file = read("minilm_batch4.safetensors");
    let file = SafeTensors::deserialize(&file).unwrap();
    let expected = read("minilm_batch4_expected.safetensors");
    let expected = SafeTensors::deserialize(&expected).unwrap();
    let maps = Maps::read(&file, "");
    let Shape { batch, tokens, .. } = maps.shape;
    let mask: Vec<bool> = tensor(&file, "attention_mask")
        .1
        .to_f64()
        .iter()
        .map(|&v| v != 0.0)
        .collect();
    let windows = Window::from_mask(&mask, batch, tokens).unwrap();
    assert_eq!(
        windows.iter().map(|w| w.len).collect::<Vec<_>>(),
        [9, 14, 17, 28]
    );
    for (name, config) in [
        ("float64/mean/half", RolloutConfig::default()),
        ("float64/mean/normalized", normalized(HeadFusion::Mean)),
        ("float64/max/normalized", normalized(HeadFusion::Max)),
    ] {
        let mut want = tensor(&expected, name).1.to_f64();
        for (at, entry) in want.iter_mut().enumerate() {
            let (item, i, j) = (at / (tokens * tokens), at / tokens % tokens, at % tokens);
            if i >= windows[item].len || j >= windows[item].len {
                *entry = 0.0;
            }
        }
        let config = RolloutConfig {
            output: Output::Matrix,
            ..config
        };
        maps.check(name, &config, windows.clone(), &want, TOLERANCE);
    }
}

/// The features of a file, each under its prefix: its maps, and the rollout that another system made of them.
fn features(file: &SafeTensors<'_>) -> Vec<(String, Maps, Vec<f64>)> {
    let prefixes = file.names().into_iter();
    let prefixes = prefixes.filter_map(|name| name.strip_suffix("rollout"));
    let feature = |prefix: &str| {
        let rollout = tensor(file, &format!("{prefix}rollout")).1.to_f64();
        (prefix.to_owned(), Maps::read(file, prefix), rollout)
    };
    let features: Vec<_> = prefixes.map(feature).collect();
    assert_eq!(features.len(), 6, "every feature of the file");
    features
}

#[test]
fn pyhealth_attributions_are_reproduced() {
    let file = read("pyhealth_cases.safetensors");
    let file = SafeTensors::deserialize(&file).unwrap();
    for (feature, maps, rollout) in features(&file) {
        let Shape { batch, tokens, .. } = maps.shape;
        let config = RolloutConfig::default();
        maps.check_matrix(&feature, &config, &rollout, TOLERANCE);
        // Transformer reads row 0; StageAttentionNet the row of the last code.
        let rows = match feature.starts_with("stageattn") {
            false => vec![0; batch],
            true => {
                let (shape, value) = tensor(&file, &format!("{feature}value"));
                let per_token: usize = shape[2..].iter().product();
                let value = value.to_f64();
                let present = |codes: &&[f64]| codes.iter().any(|&c| c != 0.0);
                value
                    .chunks(per_token * tokens)
                    .map(|item| {
                        item.chunks(per_token)
                            .filter(present)
                            .count()
                            .saturating_sub(1)
                    })
                    .collect()
            }
        };
        let want = tensor(&file, &format!("{feature}relevance")).1.to_f64();
        maps.check_rows(&feature, &config, rows, &want, TOLERANCE);
    }
}

#[test]
fn chefer_relevance_is_reproduced() {
    let file = read("chefer_cases.safetensors");
    let file = SafeTensors::deserialize(&file).unwrap();
    for (feature, maps, rollout) in features(&file) {
        assert_eq!(maps.gradients.len(), maps.layers.len(), "{feature}");
        let config = RolloutConfig {
            gradients: Some(GradientRule::Heads),
            residual: ResidualWeights::Uniform(Residual::new(1.0, 1.0)),
            ..RolloutConfig::default()
        };
        maps.check_matrix(&feature, &config, &rollout, TOLERANCE);
        let rows = tensor(&file, &format!("{feature}row")).1.to_f64();
        let rows = rows.iter().map(|&row| row as usize).collect();
        let want = tensor(&file, &format!("{feature}relevance")).1.to_f64();
        maps.check_rows(&feature, &config, rows, &want, TOLERANCE);
    }
}

#[test]
fn fused_f16_maps_of_a_photo_give_row_stochastic_rollouts() {
    let file = read("vit_s14_grace_hopper_fused.safetensors");
    let file = SafeTensors::deserialize(&file).unwrap();
    let layers: Vec<_> = (0..12)
        .map(|layer| match tensor(&file, &format!("layer.{layer}")) {
            (shape, Values::F16(values)) if shape == [1, 1, 257, 257] => values,
            _ => panic!("layer {layer} is [1, 1, 257, 257] in f16"),
        })
        .collect();
    let layers: Vec<_> = layers.iter().map(|l| HostLayer::from(&l[..])).collect();
    let shape = Shape {
        layers: 12,
        batch: 1,
        heads: 1,
        tokens: 257,
    };
    // The last four: the reference multiplies matrices.
    let config = RolloutConfig {
        layers: Some(8..12),
        ..normalized(HeadFusion::Mean)
    };
    let problem = Problem::new(shape, DType::F16, config).unwrap();
    let mut out = vec![f32::NAN; 257];
    Plan::new(&problem, &Options::default())
        .unwrap()
        .run(&layers, &mut out)
        .unwrap();
    let want = reference::rollout(&problem, &layers).unwrap();
    assert_close("relevance", &[1, 257], &out, &want, |_| TOLERANCE);
    let sum: f64 = out.iter().map(|&v| f64::from(v)).sum();
    assert!((sum - 1.0).abs() <= TOLERANCE, "sum {sum}");
}

#[test]
fn queries_and_keys_give_the_rollout_of_their_maps() {
    for sample in samples() {
        let (problem, layers) = (&sample.problem, sample.layers());
        let shape = problem.output_shape();
        let largest = sample
            .want
            .iter()
            .fold(0.0, |most: f64, v| most.max(v.abs()));
        let most = |tolerance: f64| move |_| (tolerance + sample.rounding) * largest;
        let exact = reference::rollout(problem, &layers).unwrap();
        let exact: Vec<f32> = exact.iter().map(|&v| v as f32).collect();
        let what = format!("{}, reference", sample.name);
        assert_close(&what, &shape, &exact, &sample.want, most(1e-7));
        for form in [Form::Rows, Form::Product] {
            let choice = Choice {
                form,
                ..Choice::of(problem)
            };
            let mut plan = Plan::with_choice(problem, &Options::default(), choice).unwrap();
            let got = plan.run_to_vec(&layers).unwrap();
            let what = format!("{}, {form}", sample.name);
            assert_close(&what, &shape, &got, &sample.want, most(1e-6));
        }
    }
}
