//! Layers to measure with: random ones, or a user's own.

use rayon::prelude::*;

use crate::dtype::{Element, with_element};
use crate::error::{Error, Result};
use crate::layer::{HostLayer, HostTensor, Layer, OwnedTensor};
use crate::layout::product;
use crate::problem::Problem;
use crate::queries_keys::Lse;
use crate::reference::HeadScores;

/// The layers of one problem, in host memory.
#[derive(Clone)]
pub struct Inputs {
    layers: Vec<Layer<OwnedTensor>>,
}

impl Inputs {
    /// Contiguous random layers for `problem`, whatever its strides. Rows of maps sum to 1 and are peaked (fourth powers of
    /// uniform numbers: a few tokens draw most of the attention); where maps are causal, what lies above the diagonal is
    /// 0. Gradients, where the problem takes them, are uniform from -1 to 1. The same `seed` gives the same on every machine.
    ///
    /// # Errors
    /// [`Error::HostMemory`](crate::Error::HostMemory).
    pub fn random(problem: &Problem, seed: u64) -> Result<Self> {
        let (shape, dtype) = (problem.shape(), problem.dtype());
        if problem.queries_keys().is_some() {
            return Inputs::random_scores(problem, seed);
        }
        let elements = product(
            "random maps",
            &[shape.batch, shape.heads, shape.tokens, shape.tokens],
        )?;
        let layer = |layer: usize| {
            let seed = mix(seed ^ (layer as u64 + 1));
            let causal = problem.config().causal;
            let mut maps = OwnedTensor::zeroed(dtype, elements)?;
            with_element!(dtype, T => {
                fill::<T>(maps.as_mut_slice().unwrap_or_default(), shape.tokens, causal, seed);
            });
            if problem.config().gradients.is_none() {
                return Ok(Layer::Maps(maps));
            }
            let mut gradients = OwnedTensor::zeroed(dtype, elements)?;
            with_element!(dtype, T => {
                fill_signed::<T>(gradients.as_mut_slice().unwrap_or_default(), !seed);
            });
            Ok(Layer::Gradients { maps, gradients })
        };
        Ok(Inputs {
            layers: (0..shape.layers).map(layer).collect::<Result<_>>()?,
        })
    }

    /// Queries and keys, uniform from -1 to 1, and their LSE where the problem is given it.
    fn random_scores(problem: &Problem, seed: u64) -> Result<Self> {
        let layer = |layer: usize| {
            let mut operand = 0;
            let mut operands = problem.operands(layer)?.try_map(|wanted| {
                operand += 1;
                let mut tensor = OwnedTensor::zeroed(wanted.dtype, wanted.len)?;
                with_element!(wanted.dtype, T => {
                    let elements = tensor.as_mut_slice().unwrap_or_default();
                    fill_signed::<T>(elements, mix(seed ^ (3 * layer + operand) as u64));
                });
                Ok::<_, Error>(tensor)
            })?;
            if let Layer::QueriesKeys {
                queries,
                keys,
                lse: Some(lse),
            } = &mut operands
            {
                fill_lse(problem, layer, (queries.tensor(), keys.tensor()), lse);
            }
            Ok(operands)
        };
        Ok(Inputs {
            layers: (0..problem.shape().layers)
                .map(layer)
                .collect::<Result<_>>()?,
        })
    }

    /// A copy of `layers`.
    ///
    /// # Errors
    /// [`Error::HostMemory`](crate::Error::HostMemory).
    pub fn copied(layers: &[HostLayer<'_>]) -> Result<Self> {
        let copy = |tensor: &HostTensor<'_>| OwnedTensor::copied(tensor.dtype(), tensor.bytes());
        let layer = |layer: &HostLayer<'_>| layer.try_map(copy);
        Ok(Inputs {
            layers: layers.iter().map(layer).collect::<Result<_>>()?,
        })
    }

    /// The layers, first to last.
    pub fn layers(&self) -> Vec<HostLayer<'_>> {
        let layers = self.layers.iter();
        layers.map(|layer| layer.map(OwnedTensor::tensor)).collect()
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

fn fill_signed<T: Element>(gradients: &mut [T], seed: u64) {
    gradients
        .par_iter_mut()
        .enumerate()
        .for_each(|(index, gradient)| {
            let uniform = (mix(seed ^ index as u64) >> 40) as f32 / (1 << 23) as f32;
            *gradient = T::from_f32(uniform - 1.0);
        });
}

/// Writes the LSE of `queries` and `keys`, in the base that the problem says, as the reference has it.
fn fill_lse(
    problem: &Problem,
    layer: usize,
    (queries, keys): (HostTensor<'_>, HostTensor<'_>),
    lse: &mut OwnedTensor,
) {
    let shape = problem.shape();
    let base = match problem.queries_keys().map(|source| source.lse) {
        Some(Lse::Given(base)) => base.ln(),
        _ => 1.0,
    };
    let of_row = |row: usize| {
        let (head, i) = (row / shape.tokens, row % shape.tokens);
        let of = (head / shape.heads, head % shape.heads);
        let scores = HeadScores::new(problem, layer, (queries, keys), of)?;
        (i < scores.len()).then(|| (scores.lse_at(i), (scores.lse(i) / base) as f32))
    };
    let rows = (0..shape.batch * shape.heads * shape.tokens).into_par_iter();
    let computed: Vec<(usize, f32)> = rows.filter_map(of_row).collect();
    let elements: &mut [f32] = lse.as_mut_slice().unwrap_or_default();
    for (at, value) in computed {
        elements[at] = value;
    }
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
    use crate::config::RolloutConfig;
    use crate::dtype::DType;
    use crate::layout::Shape;

    #[test]
    fn random_rows_are_distributions_and_causal_where_asked() {
        let shape = Shape {
            layers: 2,
            batch: 1,
            heads: 2,
            tokens: 9,
        };
        let config = RolloutConfig {
            causal: true,
            ..RolloutConfig::default()
        };
        let problem = Problem::new(shape, DType::F32, config).unwrap();
        let inputs = Inputs::random(&problem, 7).unwrap();
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
