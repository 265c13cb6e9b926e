//! Batched attention rollout.

mod config;
#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dtype;
mod error;
mod input;
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
pub use input::HostLayer;
pub use layout::{Shape, Strides, Window};
pub use problem::{Problem, ProblemBuilder};
#[cfg(any(feature = "cpu", feature = "cuda"))]
pub use progress::Progress;
pub use validate::{Defect, DefectKind, validate};

// Compiles and runs the example of the README.
#[cfg(all(doctest, feature = "cpu"))]
#[doc = include_str!("../README.md")]
struct Readme;
