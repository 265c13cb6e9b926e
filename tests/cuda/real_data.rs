//! Outputs of other systems on real attention maps (`tests/data`), through the CUDA backend.

use std::collections::BTreeMap;

use attention_rollout::cuda::Precision;
use attention_rollout::{
    DType, HeadFusion, HostLayer, Output, Problem, RolloutConfig, Shape, StartRows, Window,
    reference,
};
use safetensors::SafeTensors;

use crate::common::compare::assert_close;
use crate::common::tensors::{Values, read, tensor};
use crate::machine::{Machine, machine};

/// PyHealth in f32 is within 3.4e-7 of f64.
const TOLERANCE: f64 = 1e-6;

/// What half precision is held to on real maps, far within its budget of 2^-11 of an entry per layer.
const HALF_TOLERANCE: f64 = 2e-4;

struct Maps {
    shape: Shape,
    dtype: DType,
    layers: Vec<Values>,
}

impl Maps {
    fn read(file: &SafeTensors<'_>, prefix: &str) -> Self {
        let names = (0..).map(|layer| format!("{prefix}layer.{layer}"));
        let tensors: Vec<_> = names
            .take_while(|name| file.tensor(name).is_ok())
            .map(|name| tensor(file, &name))
            .collect();
        let extents = tensors[0].0.clone();
        let layers: Vec<Values> = tensors.into_iter().map(|(_, values)| values).collect();
        Maps {
            shape: Shape {
                layers: layers.len(),
                batch: extents[0],
                heads: extents[1],
                tokens: extents[2],
            },
            dtype: match layers[0] {
                Values::F16(_) => DType::F16,
                _ => DType::F32,
            },
            layers,
        }
    }

    fn layers(&self) -> Vec<HostLayer<'_>> {
        self.layers
            .iter()
            .map(|values| match values {
                Values::F32(values) => HostLayer::from(&values[..]),
                Values::F16(values) => HostLayer::from(&values[..]),
                _ => panic!("maps are f32 or f16"),
            })
            .collect()
    }

    fn problem(&self, config: RolloutConfig, windows: Option<Vec<Window>>) -> Problem {
        let full = vec![Window::full(self.shape.tokens); self.shape.batch];
        Problem::builder(self.shape, self.dtype)
            .config(config)
            .windows(windows.unwrap_or(full))
            .build()
            .unwrap()
    }

    fn check(&self, machine: &Machine, what: &str, problem: &Problem, want: &[f64]) {
        let mut plan = machine.plan(problem, |_| {});
        let got = machine.run(&mut plan, &self.layers());
        let shape = problem.output_shape();
        assert_close(&format!("{what}\n{plan}"), &shape, &got, want, |_| {
            TOLERANCE
        });
    }
}

#[test]
fn other_systems_on_sentences() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let bytes = read("minilm_batch4.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let expected = read("minilm_batch4_expected.safetensors");
    let expected = SafeTensors::deserialize(&expected).unwrap();
    let maps = Maps::read(&file, "");
    let mut compared = 0;
    for (fusion, head_fusion) in [("mean", HeadFusion::Mean), ("max", HeadFusion::Max)] {
        for (residual, normalize_rows) in [("half", false), ("normalized", true)] {
            let names: Vec<String> = expected
                .names()
                .into_iter()
                .filter(|name| name.ends_with(&format!("/{fusion}/{residual}")))
                .map(str::to_owned)
                .collect();
            compared += names.len();
            for name in names {
                let config = RolloutConfig {
                    head_fusion: head_fusion.clone(),
                    normalize_rows,
                    output: Output::Matrix,
                    ..RolloutConfig::default()
                };
                let (_, want) = tensor(&expected, &name);
                maps.check(&machine, &name, &maps.problem(config, None), &want.to_f64());
            }
        }
    }
    assert!(compared >= 4, "{compared} outputs of other systems");
    // In half precision, against the reference.
    let matrix = maps.problem(
        RolloutConfig {
            output: Output::Matrix,
            ..RolloutConfig::default()
        },
        None,
    );
    let want = reference::rollout(&matrix, &maps.layers()).unwrap();
    for precision in [Precision::F32, Precision::Half] {
        let mut plan = machine.plan(&matrix, |options| options.precision = precision);
        let got = machine.run(&mut plan, &maps.layers());
        let worst = got
            .iter()
            .zip(&want)
            .map(|(&got, want)| (f64::from(got) - want).abs());
        let worst = worst.fold(0.0, f64::max);
        println!("{precision:?}: {worst:.1e} from f64");
        assert_close(
            "half",
            &matrix.output_shape(),
            &got,
            &want,
            |_| match precision {
                Precision::F32 => TOLERANCE,
                Precision::Half => HALF_TOLERANCE,
            },
        );
    }
    // With the mask, against the reference.
    let (_, mask) = tensor(&file, "attention_mask");
    let mask: Vec<bool> = mask.to_f64().iter().map(|&valid| valid != 0.0).collect();
    let windows = Window::from_mask(&mask, 4, maps.shape.tokens).unwrap();
    let problem = maps.problem(RolloutConfig::default(), Some(windows));
    let want = reference::rollout(&problem, &maps.layers()).unwrap();
    maps.check(&machine, "masked", &problem, &want);
}

#[test]
fn pyhealth_cases_end_to_end() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let bytes = read("pyhealth_cases.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let prefixes: BTreeMap<String, ()> = file
        .names()
        .into_iter()
        .filter_map(|name| Some((name.strip_suffix("layer.0")?.to_owned(), ())))
        .collect();
    assert!(prefixes.len() > 1);
    for prefix in prefixes.keys() {
        let maps = Maps::read(&file, prefix);
        let config = |output| RolloutConfig {
            output,
            ..RolloutConfig::default()
        };
        let (_, want) = tensor(&file, &format!("{prefix}rollout"));
        let problem = maps.problem(config(Output::Matrix), None);
        maps.check(&machine, prefix, &problem, &want.to_f64());
        // The relevance is the rollout's row of each item: find which, since the rule is the model's.
        let (_, relevance) = tensor(&file, &format!("{prefix}relevance"));
        let (rollout, relevance) = (want.to_f64(), relevance.to_f64());
        let tokens = maps.shape.tokens;
        let rows = rollout
            .chunks_exact(tokens * tokens)
            .zip(relevance.chunks_exact(tokens))
            .map(|(rollout, relevance)| {
                let rows = rollout.chunks_exact(tokens);
                let distance = |row: &[f64]| {
                    let differences = row.iter().zip(relevance).map(|(a, b)| (a - b).abs());
                    differences.fold(0.0, f64::max)
                };
                rows.enumerate()
                    .min_by(|a, b| distance(a.1).total_cmp(&distance(b.1)))
                    .map(|(index, _)| index)
                    .unwrap()
            })
            .collect();
        let problem = maps.problem(config(Output::Rows(StartRows::PerItem(rows))), None);
        maps.check(&machine, prefix, &problem, &relevance);
    }
}
