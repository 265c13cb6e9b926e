//! Batched attention rollout (Abnar & Zuidema 2020, arXiv 2005.00928), on CPUs and NVIDIA GPUs.
//!
//! *What* to compute is a [`RolloutConfig`]; *of what*, a [`Problem`]: extents, element type, strides and windows, checked
//! once when it is built. *How* is a plan of a backend: making it allocates, and on a GPU compiles; running it does
//! neither.
//!
//! | I have | I call |
//! |---|---|
//! | maps in host memory | [`cpu::Plan`]; [`cuda::HostPlan`] to send them through GPUs |
//! | queries and keys, no maps | [`cpu::Plan`] of a problem with [`QueriesKeys`] |
//! | maps in device memory, in cudarc's slices | [`cuda::Plan`] with [`cuda::DeviceLayer`] |
//! | addresses and a stream of another framework | [`cuda::DeviceLayer::from_raw`], as below |
//! | tensors of candle | the crate `attention-rollout-candle`: [`guide::hosts`] |
//! | a program in C or C++ | the header `attention_rollout.h`: [`guide::hosts`] |
//! | sessions of ort, tensors of burn or tch | their addresses and streams: [`guide::hosts`] |
//! | a model that runs just now, layer by layer | [`cpu::StreamingPlan`], [`cuda::StreamingPlan`] |
//! | layers from disk, the last one first | [`cpu::TopDownPlan`] |
//! | a machine that may have a GPU or not | [`device::Device`] |
//! | many problems of different sizes at once | [`cpu::GroupPlan`], [`cuda::GroupPlan`] |
//! | one problem after the other, of changing sizes | [`cpu::PlanCache`], [`cuda::PlanCache`] on a [`cuda::Runtime`] |
//! | a model that can hand out its attention | [`mod@model`]: it runs, and is explained feature by feature |
//! | a file of maps | the binary: [`guide::command_line`] |
//! | maps that may not be attention | [`validate()`] |
//! | relevance to be shown or compared | [`post`] |
//! | a result to be checked | [`mod@reference`], the definition in plain f64 loops |
//!
//! From device pointers of any framework, on its own stream, with no copy and no wait ([`guide::hosts`] tells more):
//!
//! ```no_run
//! # #[cfg(feature = "cuda")] fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use attention_rollout::cuda::{self, DeviceLayer, DeviceOutput, Options, Plan};
//! use attention_rollout::{DType, Problem, RolloutConfig, Shape};
//! # let (addresses, output, their_stream) = ([0u64; 12], 0u64, std::ptr::null_mut());
//!
//! let shape = Shape { layers: 12, batch: 8, heads: 12, tokens: 197 };
//! let problem = Problem::new(shape, DType::F16, RolloutConfig::default())?;
//! let context = cuda::context(0)?;
//! let mut plan = Plan::new(&context, &problem, &Options::default())?; // once: compiles and allocates
//!
//! // SAFETY: each address has so many f16 elements, and the output its f32, until the stream has come past the run.
//! let layers = addresses.map(|address| unsafe { DeviceLayer::from_raw(address, 8 * 12 * 197 * 197, DType::F16) });
//! let out = unsafe { DeviceOutput::from_raw(output, problem.output_len()) };
//! let stream = unsafe { context.wrap_borrowed_stream(their_stream) };
//! plan.run(&stream, &layers, out)?; // again and again: launches only
//! # Ok(()) }
//! # #[cfg(not(feature = "cuda"))] fn main() {}
//! ```
//!
//! Features: `cpu` and `cuda` are the backends, independent of each other and both default; neither needs a CUDA toolkit.
//! `cuda-12080`, default too, pins cudarc's bindings: beside a crate that chooses them itself, such as candle with its
//! `cuda`, take `default-features = false, features = ["cpu", "cuda"]`. `cli` adds the binary, `measure` what it and the
//! benchmarks time with.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(any(feature = "cpu", feature = "cuda"))]
mod chunk;
mod config;
#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(any(feature = "cpu", feature = "cuda"))]
pub mod device;
mod dtype;
mod error;
mod fusion;
#[cfg(any(doc, doctest))]
pub mod guide;
mod layer;
mod layout;
#[cfg(feature = "measure")]
#[doc(hidden)]
pub mod measure;
#[doc(hidden)]
pub mod memory;
#[cfg(any(feature = "cpu", feature = "cuda"))]
pub mod model;
pub mod post;
mod problem;
mod queries_keys;
#[cfg(any(feature = "cpu", feature = "cuda"))]
mod recent;
#[cfg(feature = "cpu")]
pub mod reference;
mod validate;

#[cfg(any(feature = "cpu", feature = "cuda"))]
pub use chunk::{Chunk, Progress};
pub use config::{
    Discard, DiscardScope, GradientRule, HeadFusion, Output, Residual, ResidualWeights,
    RolloutConfig, StartRows,
};
pub use dtype::{DType, Element};
pub use error::{Error, Result};
pub use layer::{HostLayer, HostTensor, Layer, OwnedTensor};
pub use layout::{Shape, Strides, Window};
pub use problem::{Problem, ProblemBuilder};
pub use queries_keys::{LogBase, Lse, QueriesKeys, QueriesKeysStrides, TokenStrides};
pub use validate::{Defect, DefectKind, first_not_finite, validate};

// Compiles the examples of the README, and runs that of the CPU.
#[cfg(all(doctest, feature = "cpu", feature = "cuda"))]
#[doc = include_str!("../README.md")]
struct Readme;
