//! Attention maps for tests: softmax rows with real spread, strided and misaligned, NaN wherever nothing may look.

use attention_rollout::{DType, HostLayer, Problem, Strides};
use half::{bf16, f16};

use crate::cases::Entry;

/// One layer's elements in their own type.
pub enum Layer {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Layer {
    fn from_f32(dtype: DType, values: &[f32]) -> Self {
        match dtype {
            DType::F32 => Layer::F32(values.to_vec()),
            DType::F16 => Layer::F16(values.iter().map(|&v| f16::from_f32(v)).collect()),
            DType::Bf16 => Layer::Bf16(values.iter().map(|&v| bf16::from_f32(v)).collect()),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            Layer::F32(v) => bytemuck::cast_slice(v),
            Layer::F16(v) => bytemuck::cast_slice(v),
            Layer::Bf16(v) => bytemuck::cast_slice(v),
        }
    }

    pub fn host(&self) -> HostLayer<'_> {
        match self {
            Layer::F32(v) => v.as_slice().into(),
            Layer::F16(v) => v.as_slice().into(),
            Layer::Bf16(v) => v.as_slice().into(),
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

/// Maps of every layer of `problem`. Each row of a window is a softmax of scores in [0, 6); values are rounded to
/// multiples of 1 / `levels` where that is not 0, so that ties occur; `entries` come last.
pub fn layers(problem: &Problem, seed: u64, levels: u32, entries: &[Entry]) -> Vec<Layer> {
    let shape = problem.shape();
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (seed + 1));
    (0..shape.layers)
        .map(|layer| {
            let strides = problem.strides(layer);
            let mut values = vec![f32::NAN; strides.span(shape).unwrap()];
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
                    }
                }
            }
            for entry in entries.iter().filter(|entry| entry.at[0] == layer) {
                let [_, item, head, row, column] = entry.at;
                let start = problem.windows()[item].start;
                values[first_element(strides, item, head, start, row) + column] = entry.value;
            }
            Layer::from_f32(problem.dtype(), &values)
        })
        .collect()
}

fn first_element(strides: &Strides, item: usize, head: usize, start: usize, row: usize) -> usize {
    item * strides.batch + head * strides.head + (start + row) * strides.row + start
}
