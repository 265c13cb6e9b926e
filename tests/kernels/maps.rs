//! Attention maps for tests: softmax rows with real spread, strided and misaligned, NaN wherever nothing may look.

use attention_rollout::{DType, HostLayer, HostTensor, Problem, Strides};
use half::{bf16, f16};

use crate::cases::Entry;

/// One layer: its maps, and the gradients where the problem weighs by them.
pub struct Layer {
    pub maps: Tensor,
    pub gradients: Option<Tensor>,
}

impl Layer {
    pub fn host(&self) -> HostLayer<'_> {
        let maps = self.maps.host();
        match &self.gradients {
            None => maps.into(),
            Some(gradients) => HostLayer::Gradients {
                maps,
                gradients: gradients.host(),
            },
        }
    }
}

/// The layers as the reference takes them.
pub fn hosts(layers: &[Layer]) -> Vec<HostLayer<'_>> {
    layers.iter().map(Layer::host).collect()
}

/// Elements in their own type.
pub enum Tensor {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Tensor {
    fn from_f32(dtype: DType, values: &[f32]) -> Self {
        match dtype {
            DType::F32 => Tensor::F32(values.to_vec()),
            DType::F16 => Tensor::F16(values.iter().map(|&v| f16::from_f32(v)).collect()),
            DType::Bf16 => Tensor::Bf16(values.iter().map(|&v| bf16::from_f32(v)).collect()),
        }
    }

    fn host(&self) -> HostTensor<'_> {
        match self {
            Tensor::F32(v) => v.as_slice().into(),
            Tensor::F16(v) => v.as_slice().into(),
            Tensor::Bf16(v) => v.as_slice().into(),
        }
    }
}

/// A small xorshift generator: uniform in [0, 1).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }
}

/// Every layer of `problem`. Each row of a window is a softmax of scores in [0, 6); values are rounded to
/// multiples of 1 / `levels` where that is not 0, so that ties occur; `entries` come last.
pub fn layers(problem: &Problem, seed: u64, levels: u32, entries: &[Entry]) -> Vec<Layer> {
    let shape = problem.shape();
    let weighs = problem.config().gradients.is_some();
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (seed + 1));
    (0..shape.layers)
        .map(|layer| {
            let strides = problem.strides(layer);
            let mut values = vec![f32::NAN; strides.span(shape).unwrap()];
            let mut gradients = values.clone();
            for (item, window) in problem.windows().iter().enumerate() {
                for head in 0..shape.heads {
                    for i in 0..window.len {
                        let end = if problem.config().causal {
                            i + 1
                        } else {
                            window.len
                        };
                        let mut row: Vec<f32> =
                            (0..end).map(|_| (random.next() * 6.0).exp()).collect();
                        let sum: f32 = row.iter().sum();
                        for value in &mut row {
                            *value /= sum;
                            if levels > 0 {
                                *value = (*value * levels as f32).round() / levels as f32;
                            }
                        }
                        let first = first_element(strides, item, head, window.start, i);
                        values[first..first + end].copy_from_slice(&row);
                        if weighs {
                            // Of either sign, and not bounded by 1.
                            let gradients = &mut gradients[first..first + end];
                            gradients.fill_with(|| 4.0 * random.next() - 1.5);
                        }
                    }
                }
            }
            for entry in entries.iter().filter(|entry| entry.at[0] == layer) {
                let [_, item, head, row, column] = entry.at;
                let start = problem.windows()[item].start;
                values[first_element(strides, item, head, start, row) + column] = entry.value;
            }
            let gradients = weighs.then(|| Tensor::from_f32(problem.dtype(), &gradients));
            Layer {
                maps: Tensor::from_f32(problem.dtype(), &values),
                gradients,
            }
        })
        .collect()
}

fn first_element(strides: &Strides, item: usize, head: usize, start: usize, row: usize) -> usize {
    item * strides.batch + head * strides.head + (start + row) * strides.row + start
}
