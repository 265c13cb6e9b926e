//! The only launches of the crate.

use std::ffi::c_void;

use cudarc::driver::sys;

use super::handles::Function;
use super::library::code_name;
use crate::cuda::launch::{Geometry, MAX_WORDS};
use crate::error::{Error, Result};

/// Arguments that a kernel can have.
const MAX_ARGUMENTS: usize = 4;

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

/// All blocks at the same time.
fn cooperative_attribute() -> sys::CUlaunchAttribute {
    let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
    value.cooperative = 1;
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
        pad: [0; 4],
        value,
    }
}

/// Submits one launch of `function`.
///
/// # Safety
/// - `params` begins with the parameters of the function's kernel, and `geometry` is what the kernel gives for it;
/// - the context of `function` and `stream` is bound to this thread;
/// - until the kernel has run, every address in `params` stays valid for what the kernel reads and writes there, and
///   nothing else writes what it reads or touches what it writes.
pub(crate) unsafe fn launch(
    function: &Function,
    geometry: &Geometry,
    stream: sys::CUstream,
    params: &[u64; MAX_WORDS],
) -> Result<()> {
    let Geometry {
        grid: [x, y, z],
        block,
        shared_bytes,
        cluster,
        cooperative,
    } = *geometry;
    let mut arguments = [std::ptr::null_mut::<c_void>(); MAX_ARGUMENTS];
    for (argument, &word) in arguments.iter_mut().zip(function.arguments()) {
        *argument = (&raw const params[word]).cast_mut().cast();
    }
    let wanted = [
        (cluster > 1).then(|| cluster_attribute(cluster)),
        cooperative.then(cooperative_attribute),
    ];
    let mut attributes: [sys::CUlaunchAttribute; 2] =
        std::array::from_fn(|_| cooperative_attribute());
    let mut count = 0;
    for attribute in wanted.into_iter().flatten() {
        attributes[count] = attribute;
        count += 1;
    }
    let config = sys::CUlaunchConfig {
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: block,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: shared_bytes,
        hStream: stream,
        attrs: attributes.as_mut_ptr(),
        numAttrs: count as u32,
    };
    // SAFETY: the function is that of a loaded module; its arguments, which lie in `params`, are copied by the driver before
    // the call returns. The rest is the caller's to keep.
    unsafe {
        sys::cuLaunchKernelEx(
            &raw const config,
            function.raw(),
            arguments.as_mut_ptr(),
            std::ptr::null_mut(),
        )
    }
    .result()
    .map_err(|error| Error::Launch {
        variant: function.symbol().to_owned(),
        code: error.0 as u32,
        name: code_name(error),
    })
}
