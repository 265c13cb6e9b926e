//! Attention rollout of candle's tensors, on the CPU and, with the feature `cuda`, on NVIDIA GPUs: the maps are read where
//! they lie, views included, and the output is a tensor beside them. Nothing is copied in or out.
//!
//! ```
//! use attention_rollout_candle::{RolloutConfig, candle_core, rollout};
//! use candle_core::{Device, Tensor};
//!
//! let device = Device::cuda_if_available(0)?;
//! // What a model kept: per layer `[batch, heads, tokens, tokens]`, after the softmax.
//! let maps: Vec<Tensor> = (0..3)
//!     .map(|_| Tensor::full(0.25f32, (2, 4, 4, 4), &device))
//!     .collect::<Result<_, _>>()?;
//! let relevance = rollout(&maps, &RolloutConfig::default())?;
//! assert_eq!(relevance.dims(), [2, 4]);
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! A pipeline keeps a [`Rollout`], which makes its plan once, and takes queries and keys, too, of models that never write
//! their maps: [`Rollout::run_layers`]. The output is no part of candle's graph: nothing flows back
//! through it.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

pub use attention_rollout::{
    Discard, DiscardScope, GradientRule, HeadFusion, Layer, LogBase, Lse, Output, QueriesKeys,
    Residual, ResidualWeights, RolloutConfig, Shape, StartRows, Window,
};
pub use candle_core;

use std::num::NonZeroUsize;

use attention_rollout::{DType, Problem, QueriesKeysStrides, Strides, TokenStrides};
use candle_core::{Device, Error, Result, Tensor};

/// The rollout of `maps`, one tensor `[batch, heads, tokens, tokens]` or `[batch, tokens, tokens]` per layer, first to last:
/// f32, shaped as the configuration's output, on the device of the maps.
///
/// Makes a plan, which on a GPU compiles kernels where no cache has them; see [`Rollout`].
///
/// # Errors
/// As [`Rollout::run`].
pub fn rollout(maps: &[Tensor], config: &RolloutConfig) -> Result<Tensor> {
    Rollout::new(config.clone()).run(maps)
}

/// Plans that are kept: those of the shapes, types and strides that maps had last.
const PLANS: NonZeroUsize = NonZeroUsize::new(4).unwrap();

/// Rollouts of one configuration, run again and again: the plans of the shapes, types and strides that maps had last are
/// kept, and serve any windows.
pub struct Rollout {
    config: RolloutConfig,
    windows: Option<Vec<Window>>,
    scores: Option<QueriesKeys>,
    cpu: Option<attention_rollout::cpu::PlanCache>,
    #[cfg(feature = "cuda")]
    cuda: Option<cuda::DevicePlans>,
}

impl Rollout {
    /// Rollouts as `config` says, of maps whose tokens are all valid.
    pub fn new(config: RolloutConfig) -> Self {
        Rollout {
            config,
            windows: None,
            scores: None,
            cpu: None,
            #[cfg(feature = "cuda")]
            cuda: None,
        }
    }

    /// The valid tokens of each item in the runs from now on; all of them where it is `None`.
    pub fn set_windows(&mut self, windows: Option<Vec<Window>>) {
        self.windows = windows;
    }

    /// How scores follow from queries and keys in the runs from now on: the scale, sliding windows, soft caps, slopes, sinks,
    /// the base of an LSE that is given, and how far sums may be off. Heads, sizes and strides are those of the tensors. Unless
    /// it is said, scores are products over the square root of the head's size, and an LSE is natural.
    pub fn set_scores(&mut self, scores: Option<QueriesKeys>) {
        self.scores = scores;
    }

    /// The rollout of `maps`, as [`rollout`]. On a GPU it is submitted to the stream of the maps' device, as candle's own
    /// operations are.
    ///
    /// # Errors
    /// As [`run_layers`](Rollout::run_layers).
    pub fn run(&mut self, maps: &[Tensor]) -> Result<Tensor> {
        let layers: Vec<_> = maps.iter().cloned().map(Layer::Maps).collect();
        self.run_layers(&layers)
    }

    /// As [`run`](Rollout::run), of layers of any kind, all of one: maps and gradients of one layout, as
    /// [`RolloutConfig::gradients`] says; or queries `[batch, heads, tokens, head size]`, keys `[batch, key heads, tokens, head
    /// size]` and, where it is given, the LSE `[batch, heads, tokens]` in f32: then no map is ever in memory where rows are
    /// asked for.
    ///
    /// # Errors
    /// [`Error::DeviceMismatchBinaryOp`] and [`Error::UnsupportedDTypeForOp`] for tensors that do not go together or have
    /// an element type that is not f32, f16 or bf16; a wrapped [`attention_rollout::Error`] for the rest: shapes, a last
    /// axis whose stride is not 1, and what the backend reports.
    pub fn run_layers(&mut self, layers: &[Layer<Tensor>]) -> Result<Tensor> {
        let (problem, first) = self.problem(layers)?;
        match first.device() {
            Device::Cpu => cpu::run(&mut self.cpu, PLANS, &problem, layers),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => cuda::run(&mut self.cuda, PLANS, device, &problem, layers),
            other => Err(Error::Msg(format!(
                "rollout: expected tensors on the CPU or, with the feature `cuda`, on a CUDA device, got {:?}",
                other.location()
            ))
            .bt()),
        }
    }

    /// What there is to compute, and the first tensor of all, which are on one device.
    fn problem<'a>(&self, layers: &'a [Layer<Tensor>]) -> Result<(Problem, &'a Tensor)> {
        let nothing = || Error::wrap(attention_rollout::Error::ZeroExtent { what: "layers" });
        let first = layers.first().ok_or_else(nothing)?;
        // Its maps, or its queries.
        let tensor = first.operands().next().ok_or_else(nothing)?;
        for (number, layer) in layers.iter().enumerate() {
            if layer.source() != first.source() {
                return Err(Error::wrap(attention_rollout::Error::LayerSource {
                    layer: number,
                    expected: first.source(),
                    got: layer.source(),
                }));
            }
            one_place_and_type(tensor, layer)?;
        }
        let dtype = match tensor.dtype() {
            candle_core::DType::F32 => DType::F32,
            candle_core::DType::F16 => DType::F16,
            candle_core::DType::BF16 => DType::Bf16,
            other => return Err(Error::UnsupportedDTypeForOp(other, "rollout").bt()),
        };
        let (batch, heads, tokens) = extents(tensor.dims())?;
        let shape = Shape {
            layers: layers.len(),
            batch,
            heads,
            tokens,
        };
        let mut builder = Problem::builder(shape, dtype).config(self.config.clone());
        builder = match first {
            Layer::QueriesKeys { queries, keys, .. } => {
                builder.queries_keys(self.source(&shape, layers, queries, keys)?)
            }
            _ => builder.layer_strides(strides(tensor, layers)?),
        };
        if let Some(windows) = &self.windows {
            builder = builder.windows(windows.clone()).max_window(tokens);
        }
        Ok((builder.build().map_err(Error::wrap)?, tensor))
    }

    /// The source of layers that are all shaped as these queries and keys.
    fn source(
        &self,
        shape: &Shape,
        layers: &[Layer<Tensor>],
        queries: &Tensor,
        keys: &Tensor,
    ) -> Result<QueriesKeys> {
        let (batch, heads, tokens) = (shape.batch, shape.heads, shape.tokens);
        let head_dim = queries.dims()[queries.rank() - 1];
        let key_heads = keys.dims().get(1).copied().unwrap_or(0);
        let (mut strides, mut has_lse) = (Vec::with_capacity(layers.len()), false);
        for layer in layers {
            let Layer::QueriesKeys { queries, keys, lse } = layer else {
                continue;
            };
            has_lse = lse.is_some();
            let of_lse = lse
                .as_ref()
                .map(|lse| token_strides("LSE", lse, &[batch, heads, tokens]));
            strides.push(QueriesKeysStrides {
                queries: token_strides("queries", queries, &[batch, heads, tokens, head_dim])?,
                keys: token_strides("keys", keys, &[batch, key_heads, tokens, head_dim])?,
                lse: of_lse.unwrap_or(Ok(TokenStrides::heads_first(heads, tokens, 1)))?,
            });
        }
        let said = self.scores.clone();
        let source = said.unwrap_or_else(|| QueriesKeys::new(shape, head_dim));
        let lse = match (has_lse, source.lse) {
            (false, _) => Lse::Recomputed,
            (true, Lse::Recomputed) => Lse::Given(LogBase::E),
            (true, given) => given,
        };
        Ok(QueriesKeys {
            head_dim,
            key_heads,
            lse,
            strides,
            ..source
        })
    }
}

/// Checks that the tensors of `layer` are where `first` is, and of its type but for the LSE, which is f32.
fn one_place_and_type(first: &Tensor, layer: &Layer<Tensor>) -> Result<()> {
    for (at, tensor) in layer.operands().enumerate() {
        if !tensor.device().same_device(first.device()) {
            return Err(Error::DeviceMismatchBinaryOp {
                lhs: first.device().location(),
                rhs: tensor.device().location(),
                op: "rollout",
            }
            .bt());
        }
        let expected = match at {
            2 => candle_core::DType::F32,
            _ => first.dtype(),
        };
        if tensor.dtype() != expected {
            return Err(Error::DTypeMismatchBinaryOp {
                lhs: expected,
                rhs: tensor.dtype(),
                op: "rollout",
            }
            .bt());
        }
    }
    Ok(())
}

/// The strides of maps, which gradients share.
fn strides(first: &Tensor, layers: &[Layer<Tensor>]) -> Result<Vec<Strides>> {
    let mut all = Vec::with_capacity(layers.len());
    for layer in layers {
        let Some(maps) = layer.operands().next() else {
            continue;
        };
        for tensor in layer.operands() {
            if tensor.dims() != first.dims() {
                return Err(refused(
                    "layer",
                    format!("{:?} as the first layer", first.dims()),
                    tensor.dims(),
                ));
            }
            if tensor.stride() != maps.stride() {
                let expected = format!("strides {:?} as its maps", maps.stride());
                return Err(refused("gradients", expected, tensor.stride()));
            }
        }
        all.push(Strides::of(maps.dims(), maps.stride()).map_err(Error::wrap)?);
    }
    Ok(all)
}

/// The strides of a tensor of what each token has, of which these extents are expected.
fn token_strides(what: &'static str, tensor: &Tensor, expected: &[usize]) -> Result<TokenStrides> {
    if tensor.dims() != expected {
        return Err(refused(what, format!("{expected:?}"), tensor.dims()));
    }
    let strides = tensor.stride();
    // That of one element does not matter.
    let is_apart = |(&stride, &len): (&usize, &usize)| len > 1 && stride != 1;
    if strides.iter().zip(expected).skip(3).any(is_apart) {
        return Err(refused(
            what,
            "a last axis whose stride is 1".to_owned(),
            strides,
        ));
    }
    Ok(TokenStrides {
        batch: strides[0],
        head: strides[1],
        token: strides[2],
    })
}

/// Batch, heads and tokens of a layer, whose tokens [`Strides::of`] compares.
fn extents(dims: &[usize]) -> Result<(usize, usize, usize)> {
    match *dims {
        [batch, heads, tokens, _] => Ok((batch, heads, tokens)),
        [batch, tokens, _] => Ok((batch, 1, tokens)),
        _ => {
            let expected = "[batch, heads, tokens, tokens] or [batch, tokens, tokens]";
            Err(refused("layer", expected.to_owned(), dims))
        }
    }
}

fn refused(what: &'static str, expected: String, got: &[usize]) -> Error {
    Error::wrap(attention_rollout::Error::Shape {
        what,
        expected,
        got: got.to_vec(),
    })
}
