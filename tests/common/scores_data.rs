//! Queries and keys of models, with the rollouts of the maps that these had (`tests/data`).

use std::rc::Rc;

use attention_rollout::{
    HostLayer, HostTensor, Layer, LogBase, Lse, Output, Problem, QueriesKeys, RolloutConfig, Shape,
    StartRows, Window,
};
use safetensors::SafeTensors;

use super::tensors::{Values, read, tensor};

/// A problem, and what the maps of its queries and keys give.
pub struct Sample {
    pub name: String,
    pub problem: Problem,
    pub want: Vec<f64>,
    /// By how much the rounding of the LSE may move the largest entry. Of LSE that were rounded to f32, PyTorch's is off by
    /// 5e-8 in the result.
    pub rounding: f64,
    scores: Rc<Scores>,
}

/// Queries, keys and LSE of a file, layer by layer.
struct Scores {
    shape: Shape,
    head_dim: usize,
    key_heads: usize,
    queries: Vec<Values>,
    keys: Vec<Values>,
    lse: Vec<Values>,
}

fn host(values: &Values) -> HostTensor<'_> {
    match values {
        Values::F32(values) => HostTensor::from(&values[..]),
        Values::F16(values) => HostTensor::from(&values[..]),
        _ => panic!("f32 or f16"),
    }
}

impl Sample {
    /// The layers of the problem.
    pub fn layers(&self) -> Vec<HostLayer<'_>> {
        let Scores {
            queries, keys, lse, ..
        } = &*self.scores;
        let has_lse = self.problem.queries_keys().unwrap().has_lse();
        (0..queries.len())
            .map(|layer| Layer::QueriesKeys {
                queries: host(&queries[layer]),
                keys: host(&keys[layer]),
                lse: has_lse.then(|| host(&lse[layer])),
            })
            .collect()
    }
}

impl Scores {
    fn read(file: &SafeTensors<'_>) -> Rc<Self> {
        let stack = |kind: &str| {
            let names = (0..).map(|layer| format!("{kind}.{layer}"));
            let there = names.take_while(|name| file.tensor(name).is_ok());
            let stack = there.map(|name| tensor(file, &name));
            stack.collect::<Vec<_>>()
        };
        let (queries, keys, lse) = (stack("query"), stack("key"), stack("lse"));
        let [batch, heads, tokens, head_dim] = queries[0].0[..] else {
            panic!("[batch, heads, tokens, head_dim]");
        };
        let values = |stack: Vec<(Vec<usize>, Values)>| stack.into_iter().map(|it| it.1).collect();
        Rc::new(Scores {
            shape: Shape {
                layers: queries.len(),
                batch,
                heads,
                tokens,
            },
            head_dim,
            key_heads: keys[0].0[1],
            queries: values(queries),
            keys: values(keys),
            lse: values(lse),
        })
    }

    /// With the LSE given and recomputed.
    fn samples(
        self: &Rc<Self>,
        name: &str,
        config: &RolloutConfig,
        windows: &[Window],
        want: &[f64],
    ) -> [Sample; 2] {
        [Lse::Given(LogBase::E), Lse::Recomputed].map(|lse| Sample {
            name: format!("{name}, {lse:?}"),
            problem: Problem::builder(self.shape, host(&self.queries[0]).dtype())
                .config(config.clone())
                .windows(windows.to_vec())
                .queries_keys(QueriesKeys {
                    key_heads: self.key_heads,
                    lse,
                    ..QueriesKeys::new(&self.shape, self.head_dim)
                })
                .build()
                .unwrap(),
            want: want.to_vec(),
            rounding: if lse == Lse::Recomputed { 0.0 } else { 4e-7 },
            scores: self.clone(),
        })
    }
}

/// All there are: rows and matrices of sentences of several lengths, and of grouped causal heads.
pub fn samples() -> Vec<Sample> {
    let mut samples = Vec::new();
    sentences(&mut samples);
    grouped_causal(&mut samples);
    samples
}

fn sentences(samples: &mut Vec<Sample>) {
    let bytes = read("qk_minilm_batch4.f32.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let scores = Scores::read(&file);
    let mask = tensor(&file, "attention_mask").1.to_f64();
    let mask: Vec<bool> = mask.iter().map(|&v| v != 0.0).collect();
    let windows = Window::from_mask(&mask, 4, 17).unwrap();
    let inside = |want: Vec<f64>| -> Vec<f64> {
        let rows = want.len() / 4 / 17;
        let place = |at: usize| (at / 17 / rows, at / 17 % rows, at % 17);
        let is_matrix = rows == 17;
        (want.iter().enumerate())
            .map(|(at, &value)| {
                let (item, row, column) = place(at);
                let valid = mask[item * 17 + column] && (!is_matrix || mask[item * 17 + row]);
                if valid { value } else { 0.0 }
            })
            .collect()
    };
    let matrix = RolloutConfig {
        output: Output::Matrix,
        ..RolloutConfig::default()
    };
    let want = inside(tensor(&file, "rollout.matrix").1.to_f64());
    samples.extend(scores.samples("minilm matrix", &matrix, &windows, &want));
    let start: Vec<Vec<f64>> = ["start_0", "start_1"]
        .map(|name| tensor(&file, name).1.to_f64())
        .into();
    let rows = (0..4).flat_map(|item| [start[0][item] as usize, start[1][item] as usize]);
    let rows = RolloutConfig {
        output: Output::Rows(StartRows::PerItem(rows.collect())),
        ..RolloutConfig::default()
    };
    let want = inside(tensor(&file, "rollout.rows").1.to_f64());
    samples.extend(scores.samples("minilm rows", &rows, &windows, &want));
}

fn grouped_causal(samples: &mut Vec<Sample>) {
    for (name, has_matrix) in [("f32", true), ("f16", false)] {
        let bytes = read(&format!("qk_gqa_causal_64.{name}.safetensors"));
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let scores = Scores::read(&file);
        let start = ["start_0", "start_1"].map(|name| tensor(&file, name).1.to_f64()[0] as usize);
        let config = RolloutConfig {
            causal: true,
            output: Output::Rows(StartRows::PerItem(start.to_vec())),
            ..RolloutConfig::default()
        };
        let want = tensor(&file, "rollout.rows").1.to_f64();
        let windows = [Window::full(64)];
        let what = format!("grouped causal {name} rows");
        samples.extend(scores.samples(&what, &config, &windows, &want));
        if has_matrix {
            let config = RolloutConfig {
                output: Output::Matrix,
                ..config
            };
            let want = tensor(&file, "rollout.matrix").1.to_f64();
            let what = format!("grouped causal {name} matrix");
            samples.extend(scores.samples(&what, &config, &windows, &want));
        }
    }
}
