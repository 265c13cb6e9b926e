//! The driver library: whether it is there and complete, and what its result codes become.
//!
//! cudarc panics where `libcuda` or one of its functions is missing. [`ready`] finds that out first, so that no call
//! behind it can. It opens the library by itself: an application may have cudarc link to it, and then cudarc has nothing
//! to ask.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::sync::OnceLock;

use cudarc::driver::{result, sys};
use libloading::Library;

use crate::cuda::nvrtc::Version;
use crate::error::{Error, Result};

/// The function behind [`result::event::elapsed`]: the only one here whose name depends on the bindings that cudarc was
/// built with.
const EVENT_ELAPSED_TIME: &str = match sys::CUDA_VERSION {
    ..13000 => "cuEventElapsedTime",
    _ => "cuEventElapsedTime_v2",
};

/// Every driver function this crate or the parts of cudarc it uses may call.
const SYMBOLS: &[&str] = &[
    "cuCtxGetCurrent",
    "cuCtxGetDevice",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    EVENT_ELAPSED_TIME,
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphUpload",
    "cuInit",
    "cuLaunchKernelEx",
    "cuMemAllocAsync",
    "cuMemAlloc_v2",
    "cuMemFreeAsync",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamGetCtx",
    "cuStreamIsCapturing",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// Checks that the driver is installed, has every function in [`SYMBOLS`] and starts.
///
/// # Errors
/// [`Error::NoDriver`], [`Error::DriverTooOld`], [`Error::NoDevice`], [`Error::Driver`].
pub(super) fn ready() -> Result<()> {
    // Only a complete driver is remembered: a process may bring one in later.
    static COMPLETE: OnceLock<Library> = OnceLock::new();
    if COMPLETE.get().is_none() {
        let library = open().ok_or(Error::NoDriver)?;
        check_symbols(|symbol| {
            // SAFETY: the address is only asked for, never called by this type.
            unsafe { library.get::<unsafe extern "C" fn()>(symbol) }.is_ok()
        })?;
        COMPLETE.get_or_init(|| library);
    }
    result::init().map_err(|error| match error.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => Error::NoDevice,
        _ => driver_error("cuInit")(error),
    })
}

/// The driver library that cudarc will find.
fn open() -> Option<Library> {
    // SAFETY: loading the driver library runs its initialisers, which have no requirements.
    file_names().find_map(|name| unsafe { Library::new(name) }.ok())
}

/// The file names under which cudarc looks for the driver, in its order.
fn file_names() -> impl Iterator<Item = String> {
    let (major, minor) = (sys::CUDA_VERSION / 1000, sys::CUDA_VERSION % 1000 / 10);
    let bits = usize::BITS;
    ["cuda", "nvcuda"].into_iter().flat_map(move |library| {
        let library = format!("{DLL_PREFIX}{library}");
        let plain = format!("{library}{DLL_SUFFIX}");
        let versions = [
            format!("_{major}"),
            format!("_{major}{minor}"),
            format!("_{major}{minor}_0"),
            format!("_{major}0_{minor}"),
            "_10".to_owned(),
            "_11".to_owned(),
            "_12".to_owned(),
            format!("_{major}0_0"),
            "_9".to_owned(),
        ];
        let of_windows = versions.map(|version| format!("{library}{bits}{version}{DLL_SUFFIX}"));
        let of_unix = [major, 12, 11, 10, 9, 1].map(|version| format!("{plain}.{version}"));
        [plain, format!("{library}{bits}{DLL_SUFFIX}")]
            .into_iter()
            .chain(of_windows)
            .chain(of_unix)
    })
}

/// Checks that a driver has every function that is needed.
fn check_symbols(has: impl Fn(&str) -> bool) -> Result<()> {
    match SYMBOLS.iter().find(|symbol| !has(symbol)) {
        Some(symbol) => Err(Error::DriverTooOld { symbol }),
        None => Ok(()),
    }
}

/// The newest CUDA version the driver supports.
///
/// # Errors
/// As [`ready`].
pub(crate) fn version() -> Result<Version> {
    ready()?;
    let mut number = 0;
    // SAFETY: the pointer is to an integer that lives through the call.
    unsafe { sys::cuDriverGetVersion(&mut number) }
        .result()
        .map_err(driver_error("cuDriverGetVersion"))?;
    let number = u32::try_from(number).unwrap_or(0);
    Ok(Version {
        major: number / 1000,
        minor: number % 1000 / 10,
    })
}

/// Turns a failure of the driver function `call` into an error.
pub(crate) fn driver_error(call: &'static str) -> impl Fn(result::DriverError) -> Error {
    move |error| Error::Driver {
        call,
        code: error.0 as u32,
        name: code_name(error),
    }
}

/// The name of a result code, as in `cuda.h`.
pub(super) fn code_name(error: result::DriverError) -> String {
    format!("{:?}", error.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_is_looked_for_as_cudarc_looks_for_it() {
        let names = ["cuda", "nvcuda"].map(cudarc::get_lib_name_candidates);
        assert!(file_names().eq(names.concat()));
    }

    #[test]
    fn a_driver_that_lacks_a_function_is_named_with_the_function() {
        assert!(check_symbols(|_| true).is_ok());
        let error = check_symbols(|symbol| symbol != "cuMemAllocAsync").unwrap_err();
        assert!(matches!(
            error,
            Error::DriverTooOld {
                symbol: "cuMemAllocAsync"
            }
        ));
        assert!(error.to_string().contains("cuMemAllocAsync"));
    }
}
