//! Batched attention rollout (Abnar & Zuidema 2020, arXiv 2005.00928), on CPUs and NVIDIA GPUs.
//!
//! - *What* to compute is a [`RolloutConfig`]; *of what*, a [`Problem`]: shape, element type, strides and windows, checked
//!   once when it is built.
//! - *How* is a plan of a backend: `cpu::Plan` or `cuda::Plan`. Making it allocates; running it does not.
//! - [`validate()`] checks that maps are attention, and [`post`] makes relevance into what is shown or compared.
//! - `reference::rollout` is the definition in plain f64 loops that everything else is tested against.
//!
//! Features: `cpu` and `cuda` are the backends, independent of each other and both default; `cli` adds the binary.

mod config;
#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dtype;
mod error;
mod layer;
mod layout;
#[cfg(feature = "cpu")]
#[doc(hidden)]
pub mod measure;
pub mod post;
mod problem;
#[cfg(any(feature = "cpu", feature = "cuda"))]
mod progress;
#[cfg(feature = "cpu")]
pub mod reference;
mod validate;

pub use config::{
    Discard, DiscardScope, HeadFusion, Output, Residual, ResidualWeights, RolloutConfig, StartRows,
};
pub use dtype::{DType, Element};
pub use error::{Error, Result};
pub use layer::{HostLayer, HostTensor, Layer, OwnedTensor};
pub use layout::{Shape, Strides, Window};
pub use problem::{Problem, ProblemBuilder};
#[cfg(any(feature = "cpu", feature = "cuda"))]
pub use progress::Progress;
pub use validate::{Defect, DefectKind, validate};

// Compiles the examples of the README, and runs that of the CPU.
#[cfg(all(doctest, feature = "cpu", feature = "cuda"))]
#[doc = include_str!("../README.md")]
struct Readme;
