//! The CUDA backend.
//!
//! Building it needs no CUDA toolkit: the driver and NVRTC are opened at run time, and a machine that lacks either gets
//! a typed error that says what to install.

mod bind;
mod buffers;
mod compile;
mod constants;
mod device;
mod driver;
mod engine;
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
