//! Attention maps to measure with: random ones, or a user's own.

use rayon::prelude::*;

use crate::dtype::{DType, Element, with_element};
use crate::error::Result;
use crate::layer::{HostLayer, HostTensor, Layer, OwnedTensor};
use crate::layout::{Shape, product};

/// The attention maps of one problem, in host memory.
#[derive(Clone)]
pub struct Inputs {
    layers: Vec<OwnedTensor>,
}

impl Inputs {
    /// Contiguous random maps. Rows sum to 1 and are peaked (fourth powers of uniform numbers: a few tokens draw
    /// most of the attention); with `causal` what lies above the diagonal is 0. The same `seed` gives the same
    /// maps on every machine.
    ///
    /// # Errors
    /// [`Error::HostMemory`](crate::Error::HostMemory).
    pub fn random(shape: &Shape, dtype: DType, causal: bool, seed: u64) -> Result<Self> {
        let elements = product(
            "random maps",
            &[shape.batch, shape.heads, shape.tokens, shape.tokens],
        )?;
        let layer = |layer: usize| {
            let seed = mix(seed ^ (layer as u64 + 1));
            let mut maps = OwnedTensor::zeroed(dtype, elements)?;
            with_element!(dtype, T => {
                fill::<T>(maps.as_mut_slice().unwrap_or_default(), shape.tokens, causal, seed);
            });
            Ok(maps)
        };
        Ok(Inputs {
            layers: (0..shape.layers).map(layer).collect::<Result<_>>()?,
        })
    }

    /// A copy of the maps in `layers`.
    ///
    /// # Errors
    /// [`Error::HostMemory`](crate::Error::HostMemory).
    pub fn copied(layers: &[HostLayer<'_>]) -> Result<Self> {
        let copy = |layer: &HostLayer<'_>| {
            let (Layer::Maps(maps) | Layer::Gradients { maps, .. }) = layer;
            OwnedTensor::copied(maps.dtype(), maps.bytes())
        };
        Ok(Inputs {
            layers: layers.iter().map(copy).collect::<Result<_>>()?,
        })
    }

    /// The maps, first layer to last.
    pub fn layers(&self) -> Vec<HostLayer<'_>> {
        self.maps().map(HostLayer::from).collect()
    }

    /// The maps of each layer.
    pub(super) fn maps(&self) -> impl Iterator<Item = HostTensor<'_>> {
        self.layers.iter().map(OwnedTensor::tensor)
    }
}

fn fill<T: Element>(maps: &mut [T], tokens: usize, causal: bool, seed: u64) {
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
        let inputs = Inputs::random(&shape, DType::F32, true, 7).unwrap();
        let layers = inputs.layers();
        let [Layer::Maps(first), Layer::Maps(second)] = layers[..] else {
            panic!("two layers");
        };
        assert_ne!(first.get(9), second.get(9));
        for maps in [first, second] {
            for (row, entries) in maps.as_slice::<f32>().unwrap().chunks(9).enumerate() {
                assert!((entries.iter().sum::<f32>() - 1.0).abs() < 1e-6);
                assert!(entries[row % 9 + 1..].iter().all(|&v| v == 0.0));
            }
        }
    }
}
