//! Plans: problems made ready on a device.

mod buffers;
mod engine;
mod group;
mod host;
mod one;
mod streaming;

pub use buffers::{DeviceLayer, DeviceOutput, DeviceTensor};
pub use group::{GroupItem, GroupPlan, pack};
pub use host::{HostPlan, run_host};
pub use one::Plan;
pub use streaming::{Pass, StreamingPlan};
