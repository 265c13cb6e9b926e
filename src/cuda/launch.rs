//! The only launches of the crate.

use std::ffi::c_void;

use cudarc::driver::{result, sys};

use super::bind::Params;
use super::driver::{code_name, driver_error};
use super::geometry::Geometry;
use super::handles::Kernel;
use super::variant::Variant;
use crate::error::{Error, Result};

/// Submits one kernel.
///
/// # Safety
/// - `kernel` was compiled from `variant`, `params` are that kernel's, and `geometry` is what the variant gives for
///   their extents;
/// - the context of `kernel` and `stream` is bound to this thread;
/// - until the kernel has run, every address in `params` stays valid for what the kernel reads and writes there, and
///   nothing else writes what it reads or touches what it writes.
pub(super) unsafe fn kernel(
    kernel: &Kernel,
    variant: &Variant,
    geometry: &Geometry,
    stream: sys::CUstream,
    params: &Params,
) -> Result<()> {
    let argument: *const c_void = match params {
        Params::RolloutRows(params) => (&raw const *params).cast(),
        Params::RolloutChain(params) => (&raw const *params).cast(),
        Params::HeadFusion(params) => (&raw const *params).cast(),
        Params::Discard(params) => (&raw const *params).cast(),
        Params::RowScales(params) => (&raw const *params).cast(),
        Params::RolloutFirst(params) => (&raw const *params).cast(),
        Params::RolloutProduct(params) => (&raw const *params).cast(),
    };
    let [x, y, z] = geometry.grid;
    // SAFETY: the function is that of a loaded module; it takes one argument, a struct by value, which the driver has
    // copied when the call returns. The rest is the caller's to keep.
    unsafe {
        result::launch_kernel(
            kernel.function(),
            (x, y, z),
            (geometry.block, 1, 1),
            geometry.shared_bytes,
            stream,
            &mut [argument.cast_mut()],
        )
    }
    .map_err(|error| Error::Launch {
        variant: variant.symbol(),
        code: error.0 as u32,
        name: code_name(error),
    })
}

/// Submits a fill with zeros.
///
/// # Safety
/// The context of `stream` is bound to this thread; `bytes` bytes from `address` on stay valid, and nothing else
/// touches them, until the fill is done.
pub(super) unsafe fn zero(address: u64, bytes: usize, stream: sys::CUstream) -> Result<()> {
    // SAFETY: the caller's to keep.
    unsafe { result::memset_d8_async(address, 0, bytes, stream) }
        .map_err(driver_error("cuMemsetD8Async"))
}
