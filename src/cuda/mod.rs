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
//! | see what would be launched, without any GPU | [`choose`] |
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
//! From a problem to kernels: the heuristics choose a pipeline and lay out its steps as a [`Schedule`], a value without
//! addresses; the plan compiles the schedule's [variants](variant::Variant), allocates its workspace, and gives the steps
//! their addresses when it runs. A variant's name is its kernel's symbol, and its stem the file in `kernels/`. A group
//! merges the schedules of its problems into launches that enter the same kernels [grouped](entry::Entry).

mod bind;
mod buffers;
mod chain;
mod compile;
mod constants;
mod device;
mod driver;
mod engine;
pub mod entry;
pub mod geometry;
mod group;
mod handles;
mod heuristics;
mod host;
mod launch;
mod limits;
pub mod nvrtc;
mod options;
pub mod params;
mod pipelines;
mod plan;
mod schedule;
mod streaming;
pub mod variant;

#[cfg(feature = "cpu")]
pub(crate) use compile::target as compile_target;
#[cfg(feature = "cpu")]
pub(crate) use driver::driver_error;

pub use buffers::{DeviceLayer, DeviceOutput};
pub use cudarc;
pub use device::{DeviceInfo, available, context, driver_version, limits, memory};
pub use group::{GroupItem, GroupPlan};
pub use heuristics::{choose, choose_streaming};
pub use host::{HostPlan, run_host};
pub use limits::DeviceLimits;
pub use options::{ImageKind, Options, Precision};
pub use plan::Plan;
pub use schedule::Schedule;
pub use streaming::{Pass, StreamingPlan};
