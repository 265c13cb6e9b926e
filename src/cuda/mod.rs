//! The CUDA backend.
//!
//! Building it needs no CUDA toolkit: the driver and NVRTC are opened at run time, and a machine that lacks either gets
//! a typed error that says what to install.
//!
//! | to | use |
//! |---|---|
//! | run one problem over maps in device memory, again and again | [`Plan`] |
//! | fuse layers as a model produces them, and free their maps | [`StreamingPlan`] |
//! | run many problems of different shapes together, in as many launches as one of them | [`GroupPlan`] |
//! | run over host memory, in chunks, on one or several GPUs | [`HostPlan`], [`run_host`] |
//! | share the compiler and loaded kernels among plans | [`Runtime`] |
//! | keep the plans of many shapes | [`PlanCache`] |
//! | see what would be launched, without any GPU | [`choose`] |
//! | time every way of computing a problem, and keep to the fastest | [`tune`], [`Options::tune`] |
//!
//! ```no_run
//! use attention_rollout::cuda::{self, DeviceLayer, Options, Plan};
//! use attention_rollout::{DType, Problem, RolloutConfig, Shape};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let shape = Shape { layers: 12, batch: 64, heads: 12, tokens: 197 };
//! let problem = Problem::new(shape, DType::F32, RolloutConfig::default())?;
//! let context = cuda::context(0)?;
//! let mut plan = Plan::new(&context, &problem, &Options::default())?;
//! println!("{plan}");
//!
//! let stream = context.default_stream();
//! let maps = (0..12)
//!     .map(|_| stream.alloc_zeros::<f32>(64 * 12 * 197 * 197))
//!     .collect::<Result<Vec<_>, _>>()?;
//! let layers: Vec<DeviceLayer> = maps.iter().map(DeviceLayer::from).collect();
//! let mut relevance = stream.alloc_zeros::<f32>(problem.output_len())?;
//! plan.run(&stream, &layers, &mut relevance)?;
//! # Ok(())
//! # }
//! ```
//!
//! From a problem to the driver:
//!
//! 1. [`choose()`] takes the pipeline of least estimated time, and the pipeline lays out its launches as a [`Schedule`].
//! 2. Each launch is a value, made by its kernel: what to compile, the grid, the parameters with symbolic addresses.
//!    A variant's name is its kernel's symbol, and its stem the file in `kernels/`.
//! 3. A [`Runtime`] compiles and loads the kernels; a plan allocates the schedule's buffers and tables.
//! 4. A run adds to each address where its memory begins, and submits. A group does so in launches that the steps of many
//!    problems share.

#[doc(hidden)]
pub mod address;
mod choose;
pub(crate) mod driver;
mod evidence;
#[doc(hidden)]
pub mod kernel;
#[doc(hidden)]
pub mod launch;
mod limits;
pub mod nvrtc;
mod options;
#[doc(hidden)]
pub mod parameters;
#[doc(hidden)]
pub mod pipeline;
mod plan;
mod runtime;
mod schedule;
#[doc(hidden)]
pub mod variant;

pub use choose::{Candidate, Origin, candidates, choose, choose_streaming};
pub use cudarc;
pub use driver::{DeviceInfo, available, context, driver_version, limits, memory};
pub use limits::DeviceLimits;
pub use options::{Compiler, ImageKind, LayerOrder, Options, Precision};
#[doc(hidden)]
pub use plan::pack;
pub use plan::{
    DeviceIndices, DeviceLayer, DeviceOutput, DeviceTensor, GroupItem, GroupPlan, HostPlan, Pass,
    Plan, PlanCache, RunInputs, StreamingPlan, Timed, Workspace, run_host, tune,
};
pub use runtime::Runtime;
pub use schedule::Schedule;
