//! Seeded problems over queries and keys, with NaN in every element that must not be read, and the maps that they give.

use attention_rollout::{
    DType, HeadFusion, HostLayer, HostTensor, Layer, LogBase, Lse, Output, Problem, QueriesKeys,
    QueriesKeysStrides, Residual, ResidualWeights, RolloutConfig, Shape, TokenStrides, reference,
};
use half::{bf16, f16};
use proptest::prelude::*;

use super::generate::{Case, Random, Storage, weighed_case};

/// A case of maps, and what makes it one of queries and keys.
#[derive(Clone, Debug)]
pub struct ScoresCase {
    pub case: Case,
    pub source: QueriesKeys,
}

/// A problem with its queries, keys and LSE, layer by layer.
pub struct ScoresGenerated {
    pub problem: Problem,
    queries: Vec<Storage>,
    keys: Vec<Storage>,
    lse: Vec<Vec<f32>>,
    /// The maps `[layers, batch, heads, tokens, tokens]`, in f64, 0 outside the windows.
    pub maps: Vec<f64>,
}

/// Any case with up to `tokens` tokens: sizes, layouts and masks of every kind.
pub fn scores_case(tokens: usize) -> impl Strategy<Value = ScoresCase> {
    let how = (0..3usize, 0..3usize, any::<bool>(), 0..3usize);
    let what = (0..3usize, 0..3usize, 0..3usize, 0..3usize);
    (weighed_case(tokens), how, what).prop_map(|(mut case, how, what)| {
        case.config.gradients = None;
        let (dim, sharing, tokens_first, lse) = how;
        let (sliding, caps, slopes, sinks) = what;
        let shape = case.shape;
        let mut random = Random::new(case.seed ^ 0x91);
        let divisors: Vec<usize> = (1..=shape.heads).filter(|h| shape.heads % h == 0).collect();
        let mut source = QueriesKeys::new(&shape, [8, 32, 72][dim]);
        source.key_heads = divisors[sharing % divisors.len()];
        source.lse = [
            Lse::Recomputed,
            Lse::Given(LogBase::E),
            Lse::Given(LogBase::Two),
        ][lse];
        source.scale = (lse == 2).then_some(0.2);
        // None, as many as a layer has, or those of every layer.
        let mut values = |kind: usize, width: usize, least: f64, most: f64| -> Vec<f32> {
            let count = [0, width, width * shape.layers][kind];
            let value = |random: &mut Random| (least + (most - least) * random.unit()) as f32;
            (0..count).map(|_| value(&mut random)).collect()
        };
        source.soft_caps = values(caps, 1, 2.0, 20.0);
        source.alibi_slopes = values(slopes, shape.heads, 0.0, 0.5);
        source.sinks = values(sinks, shape.heads, -2.0, 2.0);
        let windows = values(sliding, 1, 0.0, shape.tokens as f64 + 1.0);
        source.sliding_windows = windows.iter().map(|&window| window as usize).collect();
        source.strides = match tokens_first {
            false => Vec::new(),
            true => vec![tokens_first_with_gaps(&shape, &source)],
        };
        ScoresCase { case, source }
    })
}

/// `[batch, tokens, heads, head_dim]`, queries with a few elements between tokens, and LSE `[batch, tokens, heads]`.
pub fn tokens_first_with_gaps(shape: &Shape, source: &QueriesKeys) -> QueriesKeysStrides {
    let dense = TokenStrides::tokens_first(shape.heads, shape.tokens, source.head_dim);
    QueriesKeysStrides {
        queries: TokenStrides {
            batch: dense.batch + 3 * shape.tokens,
            token: dense.token + 3,
            ..dense
        },
        keys: TokenStrides::tokens_first(source.key_heads, shape.tokens, source.head_dim),
        lse: TokenStrides::tokens_first(shape.heads, shape.tokens, 1),
    }
}

fn at(strides: &TokenStrides, item: usize, head: usize, token: usize) -> usize {
    item * strides.batch + head * strides.head + token * strides.token
}

/// Rounded to the element type.
fn store(dtype: DType, values: Vec<f32>) -> (Storage, Vec<f32>) {
    match dtype {
        DType::F32 => (Storage::F32(values.clone()), values),
        DType::F16 => {
            let halves: Vec<f16> = values.into_iter().map(f16::from_f32).collect();
            let rounded = halves.iter().map(|v| v.to_f32()).collect();
            (Storage::F16(halves), rounded)
        }
        DType::Bf16 => {
            let halves: Vec<bf16> = values.into_iter().map(bf16::from_f32).collect();
            let rounded = halves.iter().map(|v| v.to_f32()).collect();
            (Storage::Bf16(halves), rounded)
        }
    }
}

impl ScoresCase {
    /// The problem and its tensors.
    pub fn generate(&self) -> ScoresGenerated {
        let ScoresCase { case, source } = self;
        let shape = case.shape;
        let mut random = Random::new(case.seed);
        let mut made = ScoresGenerated {
            problem: self.problem(case.config.clone()),
            queries: Vec::new(),
            keys: Vec::new(),
            lse: Vec::new(),
            maps: Vec::new(),
        };
        for layer in 0..shape.layers {
            let strides = source.strides(&shape, layer);
            let mut tensor = |strides: &TokenStrides, heads: usize| {
                let last = at(strides, shape.batch.max(1) - 1, heads - 1, shape.tokens - 1);
                let len = if shape.batch == 0 {
                    0
                } else {
                    last + source.head_dim
                };
                let mut values = vec![f32::NAN; len];
                for (item, window) in case.windows.iter().enumerate() {
                    for head in 0..heads {
                        for token in window.start..window.end() {
                            let first = at(strides, item, head, token);
                            for value in &mut values[first..first + source.head_dim] {
                                *value = (4.0 * random.unit() - 2.0) as f32;
                            }
                        }
                    }
                }
                store(case.dtype, values)
            };
            let (queries, q) = tensor(&strides.queries, shape.heads);
            let (keys, k) = tensor(&strides.keys, source.key_heads);
            made.queries.push(queries);
            made.keys.push(keys);
            let (maps, lse) = self.attention(layer, &q, &k);
            made.maps.extend(maps);
            made.lse.push(lse);
        }
        made
    }

    fn problem(&self, config: RolloutConfig) -> Problem {
        Problem::builder(self.case.shape, self.case.dtype)
            .config(config)
            .windows(self.case.windows.clone())
            .queries_keys(self.source.clone())
            .build()
            .expect("the case is valid")
    }

    /// The maps of one layer, and the LSE as a forward pass would return it.
    fn attention(&self, layer: usize, q: &[f32], k: &[f32]) -> (Vec<f64>, Vec<f32>) {
        let ScoresCase { case, source } = self;
        let (shape, tokens) = (case.shape, case.shape.tokens);
        let strides = source.strides(&shape, layer);
        let pick = |values: &[f32], width: usize, index: usize| match values.len() {
            0 => None,
            len if len == width => Some(f64::from(values[index])),
            _ => Some(f64::from(values[layer * width + index])),
        };
        let window_of: Vec<f32> = source.sliding_windows.iter().map(|&w| w as f32).collect();
        let sliding = pick(&window_of, 1, 0).filter(|&window| window != 0.0);
        let base = match source.lse {
            Lse::Given(LogBase::Two) => std::f64::consts::LN_2,
            _ => 1.0,
        };
        let mut maps = vec![0.0; shape.batch * shape.heads * tokens * tokens];
        let mut all_lse = vec![f32::NAN; shape.batch * shape.heads * tokens];
        for (item, window) in case.windows.iter().enumerate() {
            for head in 0..shape.heads {
                for i in window.start..window.end() {
                    let mut row = vec![None; tokens];
                    for j in window.start..window.end() {
                        let far = sliding.is_some_and(|w| i.abs_diff(j) as f64 >= w);
                        if far || (case.config.causal && j > i) {
                            continue;
                        }
                        let q = &q[at(&strides.queries, item, head, i)..][..source.head_dim];
                        let key_head = head * source.key_heads / shape.heads;
                        let k = &k[at(&strides.keys, item, key_head, j)..][..source.head_dim];
                        let dot: f64 = q
                            .iter()
                            .zip(k)
                            .map(|(&q, &k)| f64::from(q) * f64::from(k))
                            .sum();
                        let mut score = dot * f64::from(source.scale());
                        if let Some(cap) = pick(&source.soft_caps, 1, 0).filter(|&cap| cap != 0.0) {
                            score = cap * (score / cap).tanh();
                        }
                        if let Some(slope) = pick(&source.alibi_slopes, shape.heads, head) {
                            score -= slope * i.abs_diff(j) as f64;
                        }
                        row[j] = Some(score);
                    }
                    let sink = pick(&source.sinks, shape.heads, head).map_or(0.0, f64::exp);
                    let sum = row.iter().flatten().map(|s: &f64| s.exp()).sum::<f64>() + sink;
                    let to = ((item * shape.heads + head) * tokens + i) * tokens;
                    for (j, score) in row.iter().enumerate() {
                        maps[to + j] = score.map_or(0.0, |score| score.exp() / sum);
                    }
                    let lse = at(&strides.lse, item, head, i);
                    all_lse[lse] = (sum.ln() / base) as f32;
                }
            }
        }
        (maps, all_lse)
    }

    /// The case without a discard that hangs on the last bits of an entry: where the smallest entry that is kept is hardly
    /// larger than the largest that is not.
    pub fn settled(mut self) -> Self {
        let Some(discard) = self.case.config.discard else {
            return self;
        };
        let made = self.generate();
        let (shape, first) = (self.case.shape, discard.scope.first());
        for layer in 0..shape.layers {
            let alone = RolloutConfig {
                head_fusion: self.case.config.head_fusion.clone(),
                residual: ResidualWeights::Uniform(Residual::new(1.0, 0.0)),
                causal: self.case.config.causal,
                layers: Some(layer..layer + 1),
                output: Output::Matrix,
                ..RolloutConfig::default()
            };
            let fused = reference::rollout(&self.problem(alone), &made.layers()).unwrap();
            for (item, window) in self.case.windows.iter().enumerate() {
                let side = window.start + first.min(window.len)..window.end();
                let row = |i: usize| (item * shape.tokens + i) * shape.tokens;
                let mut entries: Vec<f64> = side
                    .clone()
                    .flat_map(|i| fused[row(i)..][side.clone()].to_vec())
                    .collect();
                entries.sort_by(f64::total_cmp);
                let count = made.problem.discard_count(item);
                if count == 0 || count >= entries.len() || entries[count] == 0.0 {
                    continue;
                }
                if entries[count] - entries[count - 1] < 2e-5 * entries[count] {
                    self.case.config.discard = None;
                    return self;
                }
            }
        }
        self
    }
}

impl ScoresGenerated {
    /// The layers as the backends take them.
    pub fn layers(&self) -> Vec<HostLayer<'_>> {
        let has_lse = self.problem.queries_keys().unwrap().has_lse();
        let all = self.queries.iter().zip(&self.keys).zip(&self.lse);
        all.map(|((queries, keys), lse)| Layer::QueriesKeys {
            queries: queries.whole(),
            keys: keys.whole(),
            lse: has_lse.then_some(HostTensor::from(&lse[..])),
        })
        .collect()
    }

    /// The problem over the maps, rounded to f32, and these, `[batch, heads, tokens, tokens]` per layer.
    pub fn as_maps(&self) -> (Problem, Vec<Vec<f32>>) {
        let shape = *self.problem.shape();
        let problem = Problem::builder(shape, DType::F32)
            .config(self.problem.config().clone())
            .windows(self.problem.windows().to_vec())
            .build()
            .unwrap();
        let len = self.maps.len() / shape.layers;
        let layer = |l: usize| {
            self.maps[l * len..][..len]
                .iter()
                .map(|&v| v as f32)
                .collect()
        };
        (problem, (0..shape.layers).map(layer).collect())
    }

    /// How far an evaluation in f32 may be from one in f64, relative to the largest entry: the LSE given is rounded, of a
    /// minimum over heads little is left, and of a row that is divided by a small sum each rounding weighs more.
    pub fn tolerance(&self) -> f64 {
        let config = self.problem.config();
        let is_divided = config.normalize_rows || !config.exclude_from_attention.is_empty();
        let loose = matches!(config.head_fusion, HeadFusion::Min) || is_divided;
        match self.problem.queries_keys().unwrap().has_lse() || loose {
            true => 5e-6,
            false => 1e-6,
        }
    }
}
