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
//! A pipeline keeps a [`Rollout`], which makes its plan once. The output is no part of candle's graph: nothing flows back
//! through it.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

pub use attention_rollout::{
    Discard, DiscardScope, HeadFusion, Output, Residual, ResidualWeights, RolloutConfig, StartRows,
    Window,
};
pub use candle_core;

use std::num::NonZeroUsize;

use attention_rollout::{DType, Problem, Shape, Strides};
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
            cpu: None,
            #[cfg(feature = "cuda")]
            cuda: None,
        }
    }

    /// The valid tokens of each item in the runs from now on; all of them where it is `None`.
    pub fn set_windows(&mut self, windows: Option<Vec<Window>>) {
        self.windows = windows;
    }

    /// The rollout of `maps`, as [`rollout`]. On a GPU it is submitted to the stream of the maps' device, as candle's own
    /// operations are.
    ///
    /// # Errors
    /// [`Error::DeviceMismatchBinaryOp`] and [`Error::UnsupportedDTypeForOp`] for tensors that do not go together or have
    /// an element type that is not f32, f16 or bf16; a wrapped [`attention_rollout::Error`] for the rest: shapes, a last
    /// axis whose stride is not 1, and what the backend reports.
    pub fn run(&mut self, maps: &[Tensor]) -> Result<Tensor> {
        let problem = self.problem(maps)?;
        match maps[0].device() {
            Device::Cpu => cpu::run(&mut self.cpu, PLANS, &problem, maps),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => cuda::run(&mut self.cuda, PLANS, device, &problem, maps),
            other => Err(Error::Msg(format!(
                "rollout: expected tensors on the CPU or, with the feature `cuda`, on a CUDA device, got {:?}",
                other.location()
            ))
            .bt()),
        }
    }

    /// What there is to compute. There is at least one map, and all are on one device.
    fn problem(&self, maps: &[Tensor]) -> Result<Problem> {
        let first = maps
            .first()
            .ok_or_else(|| Error::wrap(attention_rollout::Error::ZeroExtent { what: "layers" }))?;
        for map in maps {
            if !map.device().same_device(first.device()) {
                return Err(Error::DeviceMismatchBinaryOp {
                    lhs: first.device().location(),
                    rhs: map.device().location(),
                    op: "rollout",
                }
                .bt());
            }
            if map.dtype() != first.dtype() {
                return Err(Error::DTypeMismatchBinaryOp {
                    lhs: first.dtype(),
                    rhs: map.dtype(),
                    op: "rollout",
                }
                .bt());
            }
        }
        let dtype = match first.dtype() {
            candle_core::DType::F32 => DType::F32,
            candle_core::DType::F16 => DType::F16,
            candle_core::DType::BF16 => DType::Bf16,
            other => return Err(Error::UnsupportedDTypeForOp(other, "rollout").bt()),
        };
        let (batch, heads, tokens) = extents(first.dims())?;
        let shape = Shape {
            layers: maps.len(),
            batch,
            heads,
            tokens,
        };
        let mut strides = Vec::with_capacity(maps.len());
        for map in maps {
            if map.dims() != first.dims() {
                return Err(refused(
                    "layer",
                    format!("{:?} as the first layer", first.dims()),
                    map.dims(),
                ));
            }
            strides.push(Strides::of(map.dims(), map.stride()).map_err(Error::wrap)?);
        }
        let mut builder = Problem::builder(shape, dtype)
            .config(self.config.clone())
            .layer_strides(strides);
        if let Some(windows) = &self.windows {
            builder = builder.windows(windows.clone()).max_window(tokens);
        }
        builder.build().map_err(Error::wrap)
    }
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
