//! Seeded problems with inputs that mean something: softmax rows with real spread inside the windows, NaN in every
//! element that must not be read.

use std::ops::{Range, RangeInclusive};

use attention_rollout::{
    DType, Discard, DiscardScope, Element, GradientRule, HeadFusion, HostLayer, HostTensor, Layer,
    Output, Problem, Residual, ResidualWeights, RolloutConfig, Shape, StartRows, Strides, Window,
};
use half::{bf16, f16};
use proptest::prelude::*;

/// SplitMix64 (Steele et al. 2014): small, seeded, the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// `0..bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }
}

/// How a layer's elements lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[B, H, N, N]`.
    Contiguous,
    /// `[H, B, N, N]`.
    HeadMajor,
    /// Views into one `[B, L, H, N, N]`.
    LayersInside,
    /// Rows of `N + 3` elements, three of them unused.
    PaddedRows,
    /// One map read as every head.
    HeadStrideZero,
}

/// What the maps hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// Softmax of normal-like scores with a spread of several units; rows sum to 1.
    Softmax,
    /// Multiples of 1/8, so that many entries are equal.
    Ties,
}

/// A problem described by values that shrink well. Everything else follows from them.
#[derive(Clone, Debug)]
pub struct Case {
    pub shape: Shape,
    pub dtype: DType,
    pub config: RolloutConfig,
    pub layout: Layout,
    pub windows: Vec<Window>,
    pub values: Values,
    pub seed: u64,
}

/// The maps of a case.
pub enum Storage {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

/// A problem with its maps.
pub struct Generated {
    pub problem: Problem,
    /// One buffer per layer, or one for all.
    pub storage: Vec<Storage>,
    /// As many buffers of gradients, where the maps are weighed by them.
    pub gradients: Vec<Storage>,
    /// Where each layer starts: buffer and element.
    pub places: Vec<(usize, usize)>,
}

impl Storage {
    /// All of it.
    pub fn whole(&self) -> HostTensor<'_> {
        match self {
            Storage::F32(values) => HostTensor::from(&values[..]),
            Storage::F16(values) => HostTensor::from(&values[..]),
            Storage::Bf16(values) => HostTensor::from(&values[..]),
        }
    }

    fn tensor(&self, elements: Range<usize>) -> HostTensor<'_> {
        match self {
            Storage::F32(values) => HostTensor::from(&values[elements]),
            Storage::F16(values) => HostTensor::from(&values[elements]),
            Storage::Bf16(values) => HostTensor::from(&values[elements]),
        }
    }
}

impl Generated {
    /// The layers as the backends take them, each no longer than it must be.
    pub fn layers(&self) -> Vec<HostLayer<'_>> {
        let shape = self.problem.shape();
        let layer = |(layer, &(buffer, first)): (usize, &(usize, usize))| {
            let span = self.problem.strides(layer).span(shape).expect("checked");
            let maps = self.storage[buffer].tensor(first..first + span);
            match self.gradients.get(buffer) {
                None => Layer::Maps(maps),
                Some(gradients) => Layer::Gradients {
                    maps,
                    gradients: gradients.tensor(first..first + span),
                },
            }
        };
        self.places.iter().enumerate().map(layer).collect()
    }
}

/// The maps of a layer.
pub fn maps_of<T>(layer: &Layer<T>) -> &T {
    layer.operands().next().expect("a layer has operands")
}

impl Case {
    /// PyHealth's rollout of f32 softmax maps.
    pub fn new(shape: Shape, seed: u64) -> Self {
        Case {
            shape,
            dtype: DType::F32,
            config: RolloutConfig::default(),
            layout: Layout::Contiguous,
            windows: vec![Window::full(shape.tokens); shape.batch],
            values: Values::Softmax,
            seed,
        }
    }

    /// The problem and its maps.
    pub fn generate(&self) -> Generated {
        let Shape {
            layers,
            batch,
            heads,
            tokens,
        } = self.shape;
        let square = tokens * tokens;
        let contiguous = Strides::contiguous(&self.shape);
        let strides = match self.layout {
            Layout::Contiguous => contiguous,
            Layout::HeadMajor => Strides {
                batch: square,
                head: batch * square,
                row: tokens,
            },
            Layout::LayersInside => Strides {
                batch: layers * heads * square,
                ..contiguous
            },
            Layout::PaddedRows => Strides {
                batch: heads * tokens * (tokens + 3),
                head: tokens * (tokens + 3),
                row: tokens + 3,
            },
            Layout::HeadStrideZero => Strides {
                batch: square,
                head: 0,
                row: tokens,
            },
        };
        let problem = Problem::builder(self.shape, self.dtype)
            .config(self.config.clone())
            .strides(strides)
            .windows(self.windows.clone())
            .build()
            .expect("the case is valid");
        let span = strides.span(&self.shape).expect("the case is valid");
        let inside = self.layout == Layout::LayersInside;
        let step = heads * square;
        let (buffers, len) = if inside {
            (1, span + (layers - 1) * step)
        } else {
            (layers, span)
        };
        let places: Vec<_> = (0..layers)
            .map(|layer| {
                if inside {
                    (0, layer * step)
                } else {
                    (layer, 0)
                }
            })
            .collect();
        let mut random = Random::new(self.seed);
        let mut fill = |row: fn(&mut Random, Values, &mut [f32])| {
            let mut values = vec![vec![f32::NAN; len]; buffers];
            for &(buffer, first) in &places {
                for item in 0..batch {
                    for head in 0..heads {
                        let map = first + item * strides.batch + head * strides.head;
                        let map = &mut values[buffer][map.min(len)..];
                        self.fill(&mut random, row, item, strides.row, map);
                    }
                }
            }
            values
        };
        let maps = fill(map_row);
        let gradients = match self.config.gradients {
            Some(_) => fill(gradient_row),
            None => Vec::new(),
        };
        let store = |values: Vec<f32>| match self.dtype {
            DType::F32 => Storage::F32(values),
            DType::F16 => Storage::F16(values.into_iter().map(f16::from_f32).collect()),
            DType::Bf16 => Storage::Bf16(values.into_iter().map(bf16::from_f32).collect()),
        };
        Generated {
            problem,
            storage: maps.into_iter().map(store).collect(),
            gradients: gradients.into_iter().map(store).collect(),
            places,
        }
    }

    /// Fills one map inside the item's window.
    fn fill(
        &self,
        random: &mut Random,
        fill_row: fn(&mut Random, Values, &mut [f32]),
        item: usize,
        stride: usize,
        map: &mut [f32],
    ) {
        let window = self.windows[item];
        for i in 0..window.len {
            let present = if self.config.causal {
                i + 1
            } else {
                window.len
            };
            let row = &mut map[(window.start + i) * stride + window.start..][..present];
            fill_row(random, self.values, row);
        }
    }
}

fn map_row(random: &mut Random, values: Values, row: &mut [f32]) {
    match values {
        Values::Softmax => softmax_row(random, row),
        Values::Ties => row.fill_with(|| random.below(9) as f32 / 8.0),
    }
}

/// Gradients of both signs.
fn gradient_row(random: &mut Random, values: Values, row: &mut [f32]) {
    row.fill_with(|| match values {
        Values::Softmax => (random.unit() - 0.4) as f32,
        Values::Ties => random.below(9) as f32 / 8.0 - 0.5,
    });
}

/// One row of attention: softmax of scores with a standard deviation of about 2.
pub fn softmax_row(random: &mut Random, row: &mut [f32]) {
    let scores: Vec<f64> = row
        .iter()
        .map(|_| (2.0 * (0..4).map(|_| 2.0 * random.unit() - 1.0).sum::<f64>() / 1.155).exp())
        .collect();
    let sum: f64 = scores.iter().sum();
    for (entry, score) in row.iter_mut().zip(scores) {
        *entry = (score / sum) as f32;
    }
}

/// `len` elements of `T` from f32 values.
pub fn convert<T: Element>(values: &[f32]) -> Vec<T> {
    values.iter().map(|&v| T::from_f32(v)).collect()
}

/// Any case with up to `tokens` tokens.
pub fn case(tokens: usize) -> impl Strategy<Value = Case> {
    case_in(1..=4, 0..=4, 1..=tokens)
}

/// Any case with so many layers, items and tokens.
pub fn case_in(
    layers: RangeInclusive<usize>,
    batch: RangeInclusive<usize>,
    tokens: RangeInclusive<usize>,
) -> impl Strategy<Value = Case> {
    let extents = (layers, batch, 1..=5usize, tokens);
    let how = (
        0..4usize,
        0..5usize,
        any::<bool>(),
        0..6usize,
        any::<bool>(),
    );
    let what = (0..8usize, 0..5usize, 0..3usize, 0..3usize, 0..5usize);
    (extents, how, what, any::<bool>(), any::<u64>()).prop_map(build)
}

/// Any case with up to `tokens` tokens whose maps are weighed by gradients, or from which tokens are excluded, or both.
pub fn weighed_case(tokens: usize) -> impl Strategy<Value = Case> {
    let how = (0..3usize, prop::collection::vec(0..tokens, 0..3));
    (case(tokens), how).prop_map(|(mut case, (rule, excluded))| {
        case.config.gradients = [None, Some(GradientRule::Heads), Some(GradientRule::Fused)][rule];
        let tokens = case.shape.tokens;
        case.config.exclude_from_attention = excluded.iter().map(|token| token % tokens).collect();
        if case.config.gradients == Some(GradientRule::Fused) {
            // Sums of entries of both signs are compared with 0. Multiples of 1/512 add up without rounding.
            case.values = Values::Ties;
            if let HeadFusion::Weighted(weights) = &mut case.config.head_fusion {
                for weight in weights {
                    *weight = (*weight * 8.0).round() / 8.0;
                }
            }
        }
        case
    })
}

type Knobs = (
    (usize, usize, usize, usize),
    (usize, usize, bool, usize, bool),
    (usize, usize, usize, usize, usize),
    bool,
    u64,
);

fn build(knobs: Knobs) -> Case {
    let (
        (layers, batch, heads, tokens),
        (fusion, residual, normalize_rows, discard, causal),
        (output, layout, windowed, dtype, range),
        ties,
        seed,
    ) = knobs;
    let shape = Shape {
        layers,
        batch,
        heads,
        tokens,
    };
    let mut random = Random::new(seed ^ 0x5eed);
    let windows: Vec<_> = (0..batch)
        .map(|_| match windowed {
            0 => Window::full(tokens),
            1 => Window {
                start: 0,
                len: 1 + random.below(tokens),
            },
            _ => {
                let start = random.below(tokens);
                Window {
                    start,
                    len: 1 + random.below(tokens - start),
                }
            }
        })
        .collect();
    let shortest = windows.iter().map(|w| w.len).min().unwrap_or(1);
    let weights = |random: &mut Random, count: usize| -> Vec<f32> {
        (0..count).map(|_| random.unit() as f32).collect()
    };
    let scope = match discard {
        1..=3 => DiscardScope::Map,
        _ => DiscardScope::Patches {
            special_tokens: (1 + random.below(2)).min(tokens),
        },
    };
    let config = RolloutConfig {
        head_fusion: match fusion {
            0 => HeadFusion::Mean,
            1 => HeadFusion::Max,
            2 => HeadFusion::Min,
            _ => HeadFusion::Weighted(weights(&mut random, heads)),
        },
        residual: match residual {
            0 => ResidualWeights::default(),
            1 => ResidualWeights::Uniform(Residual::new(1.0, 1.0)),
            2 => ResidualWeights::Uniform(Residual::new(1.0, 0.0)),
            3 => ResidualWeights::Uniform(Residual::new(0.75, 0.25)),
            _ => ResidualWeights::PerLayer(
                (0..layers)
                    .map(|l| Residual::new(0.25 + 0.1 * l as f32, 0.9 - 0.2 * l as f32))
                    .collect(),
            ),
        },
        normalize_rows,
        discard: (discard > 0).then(|| Discard {
            ratio: [0.0, 0.3, 0.9, 0.999, 0.5, 0.95][discard],
            scope,
        }),
        layers: (range == 0 && layers > 1).then(|| {
            let start = random.below(layers - 1);
            start..start + 1 + random.below(layers - start)
        }),
        causal,
        gradients: None,
        exclude_from_attention: Vec::new(),
        output: match output {
            0 => Output::Matrix,
            1 => Output::Cumulative,
            2 => Output::Rows(StartRows::Last),
            3 => Output::Rows(StartRows::Mean),
            4 => {
                let count = 1 + random.below(3);
                let windows = windows.iter().flat_map(|w| std::iter::repeat_n(w, count));
                Output::Rows(StartRows::PerItem(
                    windows.map(|w| random.below(w.len)).collect(),
                ))
            }
            5 => Output::Rows(StartRows::Weights {
                rows: 3,
                weights: weights(&mut random, batch * 3 * tokens),
            }),
            6 => Output::Rows(StartRows::Weights {
                rows: 2,
                weights: weights(&mut random, 2 * tokens),
            }),
            _ => {
                let count = 1 + random.below(2 * tokens);
                Output::Rows(StartRows::Rows(
                    (0..count).map(|_| random.below(shortest)).collect(),
                ))
            }
        },
    };
    Case {
        shape,
        dtype: DType::ALL[dtype],
        config,
        layout: [
            Layout::Contiguous,
            Layout::HeadMajor,
            Layout::LayersInside,
            Layout::PaddedRows,
            Layout::HeadStrideZero,
        ][layout],
        windows,
        values: if ties { Values::Ties } else { Values::Softmax },
        seed,
    }
}
