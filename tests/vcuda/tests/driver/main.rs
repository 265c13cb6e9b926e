//! The stand-in driver seen through cudarc, unmodified.

mod capture;
mod execution;
mod faults;
mod kernels;
mod launches;
mod machine;
mod memory;
mod ordering;
mod pair;
mod raw;

use cudarc::driver::{DriverError, sys::CUresult};
use vcuda::client::{Vcuda, install};

/// A stand-in of the given devices, this test's alone.
fn machine(models: &str) -> Vcuda {
    install(models).unwrap_or_else(|error| panic!("{error}"))
}

/// The code of a call that must fail.
fn code<T>(result: Result<T, DriverError>) -> CUresult {
    match result {
        Ok(_) => CUresult::CUDA_SUCCESS,
        Err(DriverError(code)) => code,
    }
}
