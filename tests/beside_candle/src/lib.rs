//! Shows that the crate builds with cudarc linked to the driver, with bindings of any version, and that its types are the
//! application's.

use std::sync::Arc;

use attention_rollout::cuda::{DeviceLayer, Plan};
use cudarc::driver::{CudaSlice, CudaStream};

/// Runs a plan on the application's own stream and buffers.
pub fn relevance(
    plan: &mut Plan,
    stream: &Arc<CudaStream>,
    maps: &[CudaSlice<half::f16>],
    out: &mut CudaSlice<f32>,
) -> attention_rollout::Result<()> {
    let layers: Vec<DeviceLayer> = maps.iter().map(DeviceLayer::from).collect();
    plan.run(stream, &layers, out)
}
