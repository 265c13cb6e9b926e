//! The only launches of the crate.

use cudarc::driver::{result, sys};

use super::driver::code_name;
use super::geometry::Geometry;
use super::handles::Kernel;
use crate::error::{Error, Result};

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
            &mut [params.as_ptr().cast_mut().cast()],
        )
    }
    .map_err(|error| Error::Launch {
        variant: kernel.symbol().to_owned(),
        code: error.0 as u32,
        name: code_name(error),
    })
}
