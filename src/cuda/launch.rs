//! The only launches of the crate.

use std::ffi::c_void;

use cudarc::driver::sys;

use super::driver::code_name;
use super::geometry::Geometry;
use super::handles::Kernel;
use crate::error::{Error, Result};

/// Blocks along y as a cluster.
fn cluster_attribute(blocks: u32) -> sys::CUlaunchAttribute {
    let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
    value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 {
        x: 1,
        y: blocks,
        z: 1,
    };
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value,
    }
}

/// Submits one kernel.
///
/// # Safety
/// - `params` is the parameter struct of `kernel`, and `geometry` is what its variant gives for their extents;
/// - the context of `kernel` and `stream` is bound to this thread;
/// - until the kernel has run, every address in `params` stays valid for what the kernel reads and writes there, and
///   nothing else writes what it reads or touches what it writes.
pub(super) unsafe fn kernel(
    kernel: &Kernel,
    geometry: &Geometry,
    stream: sys::CUstream,
    params: &[u8],
) -> Result<()> {
    let Geometry {
        grid: [x, y, z],
        block,
        shared_bytes,
        cluster,
    } = *geometry;
    let mut arguments: [*mut c_void; 1] = [params.as_ptr().cast_mut().cast()];
    let mut attribute = cluster_attribute(cluster);
    let config = sys::CUlaunchConfig {
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: block,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: shared_bytes,
        hStream: stream,
        attrs: &raw mut attribute,
        numAttrs: u32::from(cluster > 1),
    };
    // SAFETY: the function is that of a loaded module; it takes one argument, a struct by value, which the driver has
    // copied when the call returns. The rest is the caller's to keep.
    unsafe {
        sys::cuLaunchKernelEx(
            &raw const config,
            kernel.function(),
            arguments.as_mut_ptr(),
            std::ptr::null_mut(),
        )
    }
    .result()
    .map_err(|error| Error::Launch {
        variant: kernel.symbol().to_owned(),
        code: error.0 as u32,
        name: code_name(error),
    })
}
