//! What is asked of a stream that the caller brings.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, sys};

use super::handles::bind;
use super::library::driver_error;
use crate::error::Result;

/// `CU_STREAM_PER_THREAD`, the last of the handles that stand for streams of the bound context; null is the first.
const LAST_DEFAULT_STREAM: usize = 2;

/// The device of the context that `stream` belongs to, where that is not `expected`, which is bound to this thread.
pub(crate) fn foreign_device(
    expected: &Arc<CudaContext>,
    stream: sys::CUstream,
) -> Result<Option<usize>> {
    // The default streams have no context of their own: they are those of whichever is bound.
    if stream.addr() <= LAST_DEFAULT_STREAM {
        return Ok(None);
    }
    let mut context = std::ptr::null_mut();
    // SAFETY: the pointer is to a handle that lives through the call. That the stream is one, whoever made it promised.
    unsafe { sys::cuStreamGetCtx(stream, &mut context) }
        .result()
        .map_err(driver_error("cuStreamGetCtx"))?;
    if context == expected.cu_ctx() {
        return Ok(None);
    }
    let mut device = 0;
    // SAFETY: the driver has just named the context; the pointer is to an integer that lives through the call.
    let found = unsafe {
        sys::cuCtxSetCurrent(context)
            .result()
            .and_then(|()| sys::cuCtxGetDevice(&mut device).result())
    };
    bind(expected)?;
    found.map_err(driver_error("cuCtxGetDevice"))?;
    Ok(Some(usize::try_from(device).unwrap_or_default()))
}

/// Whether work submitted to `stream` is captured into a graph instead of run.
pub(crate) fn is_capturing(stream: &CudaStream) -> Result<bool> {
    let status = stream
        .capture_status()
        .map_err(driver_error("cuStreamIsCapturing"))?;
    Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}
