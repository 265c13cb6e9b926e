//! Plans: problems made ready on a device.

mod buffers;
mod cache;
mod engine;
mod group;
mod handover;
mod host;
mod inputs;
mod one;
mod prepared;
mod streaming;
mod tune;
mod workspace;

// Plans are made on one thread and run on another, and tensors and outputs are handed over with them. A run takes its
// plan exclusively, so that what threads can share of one is what it tells.
const _: () = {
    const fn moves_and_is_shared<T: Send + Sync>() {}
    moves_and_is_shared::<crate::cuda::Runtime>();
    moves_and_is_shared::<Plan>();
    moves_and_is_shared::<PlanCache>();
    moves_and_is_shared::<StreamingPlan>();
    moves_and_is_shared::<GroupPlan>();
    moves_and_is_shared::<HostPlan>();
    moves_and_is_shared::<DeviceLayer<'_>>();
    moves_and_is_shared::<DeviceOutput<'_>>();
    moves_and_is_shared::<RunInputs<'_>>();
    moves_and_is_shared::<GroupItem<'_>>();
};

pub use buffers::{DeviceLayer, DeviceOutput, DeviceTensor};
pub use cache::PlanCache;
pub use group::{GroupItem, GroupPlan, pack};
pub use host::{HostPlan, run_host};
pub use inputs::{DeviceIndices, RunInputs};
pub use one::Plan;
pub use streaming::{Pass, StreamingPlan};
pub use tune::{Timed, tune};
pub use workspace::Workspace;
