//! Attention maps to measure with: random ones, or a user's own.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::dtype::{DType, Element};
use crate::input::HostLayer;
use crate::layout::Shape;

/// The attention maps of one problem, in host memory.
#[derive(Clone)]
pub struct Inputs {
    layers: Vec<Maps>,
}

/// One layer's maps.
#[derive(Clone)]
enum Maps {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Maps {
    fn of(layer: &HostLayer<'_>) -> Self {
        match layer {
            HostLayer::F32(maps) => Maps::F32(maps.to_vec()),
            HostLayer::F16(maps) => Maps::F16(maps.to_vec()),
            HostLayer::Bf16(maps) => Maps::Bf16(maps.to_vec()),
        }
    }

    fn layer(&self) -> HostLayer<'_> {
        match self {
            Maps::F32(maps) => HostLayer::F32(maps),
            Maps::F16(maps) => HostLayer::F16(maps),
            Maps::Bf16(maps) => HostLayer::Bf16(maps),
        }
    }
}

impl Inputs {
    /// Contiguous random maps. Rows sum to 1 and are peaked (fourth powers of uniform numbers: a few tokens draw
    /// most of the attention); with `causal` what lies above the diagonal is 0. The same `seed` gives the same
    /// maps on every machine.
    pub fn random(shape: &Shape, dtype: DType, causal: bool, seed: u64) -> Self {
        let layers = (0..shape.layers).map(|layer| {
            let seed = mix(seed ^ (layer as u64 + 1));
            match dtype {
                DType::F32 => Maps::F32(random_maps(shape, causal, seed)),
                DType::F16 => Maps::F16(random_maps(shape, causal, seed)),
                DType::Bf16 => Maps::Bf16(random_maps(shape, causal, seed)),
            }
        });
        Inputs {
            layers: layers.collect(),
        }
    }

    /// A copy of the maps in `layers`.
    pub fn copied(layers: &[HostLayer<'_>]) -> Self {
        Inputs {
            layers: layers.iter().map(Maps::of).collect(),
        }
    }

    /// The maps, first layer to last.
    pub fn layers(&self) -> Vec<HostLayer<'_>> {
        self.layers.iter().map(Maps::layer).collect()
    }

    /// The bytes of each layer.
    #[cfg(feature = "cuda")]
    pub(super) fn layer_bytes(&self) -> impl Iterator<Item = &[u8]> {
        self.layers.iter().map(|maps| match maps {
            Maps::F32(maps) => bytemuck::cast_slice(maps),
            Maps::F16(maps) => bytemuck::cast_slice(maps),
            Maps::Bf16(maps) => bytemuck::cast_slice(maps),
        })
    }
}

fn random_maps<T: Element>(shape: &Shape, causal: bool, seed: u64) -> Vec<T> {
    let tokens = shape.tokens;
    let mut maps = vec![T::from_f32(0.0); shape.batch * shape.heads * tokens * tokens];
    maps.par_chunks_mut(tokens)
        .enumerate()
        .for_each(|(row, entries)| {
            let valid = if causal { row % tokens + 1 } else { tokens };
            let mut state = mix(seed ^ mix(row as u64));
            let mut weights = vec![0.0f32; valid];
            for weight in &mut weights {
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let uniform = (mix(state) >> 40) as f32 / (1 << 24) as f32;
                *weight = uniform.powi(4) + f32::MIN_POSITIVE;
            }
            let scale = 1.0 / weights.iter().sum::<f32>();
            for (entry, weight) in entries.iter_mut().zip(weights) {
                *entry = T::from_f32(weight * scale);
            }
        });
    maps
}

/// The finaliser of SplitMix64: any two seeds give unrelated numbers.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_rows_are_distributions_and_causal_where_asked() {
        let shape = Shape {
            layers: 2,
            batch: 1,
            heads: 2,
            tokens: 9,
        };
        let inputs = Inputs::random(&shape, DType::F32, true, 7);
        let layers = inputs.layers();
        assert_eq!(layers.len(), 2);
        assert_ne!(layers[0].get(9), layers[1].get(9));
        for layer in layers {
            for (row, entries) in layer.as_slice::<f32>().unwrap().chunks(9).enumerate() {
                assert!((entries.iter().sum::<f32>() - 1.0).abs() < 1e-6);
                assert!(entries[row % 9 + 1..].iter().all(|&v| v == 0.0));
            }
        }
    }
}
