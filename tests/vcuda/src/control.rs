//! The exported functions by which a test directs the library; [`crate::client`] wraps them.
//!
//! None of them counts as a driver call, and all work whatever state the driver is in. Each returns 0, or
//! `CUDA_ERROR_INVALID_VALUE` for an argument it does not understand, unless it says otherwise.

use crate::{
    codes::Code,
    driver::{Driver, with_driver},
    models::Model,
    schedule::Ordering,
};
use serde::Serialize;
use std::{
    borrow::Cow,
    ffi::{CStr, c_char},
};

/// Changes with every change of the exported functions or of the records: client and library must agree.
pub const INTERFACE: u32 = 2;

/// The interface version of the library.
#[unsafe(no_mangle)]
pub extern "C" fn vcuda_interface() -> u32 {
    INTERFACE
}

/// Back to the state of a fresh process with the same devices: contexts, memory, orders, counters and
/// reports are gone, ordering is eager, race checks are on.
#[unsafe(no_mangle)]
pub extern "C" fn vcuda_reset() -> u32 {
    direct(|driver| {
        driver.reset();
        Ok(())
    })
}

/// Makes the machine one of the named models: architectures separated by commas (`sm_90,sm_80`), or the
/// empty string for a machine without a GPU.
///
/// # Safety
/// `models` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vcuda_set_devices(models: *const c_char) -> u32 {
    // SAFETY: the caller's promise.
    let names = unsafe { text(models) };
    direct(|driver| {
        let models = Model::parse(&names?).ok_or(Code::InvalidValue)?;
        driver.set_devices(&models);
        Ok(())
    })
}

/// The version that `cuDriverGetVersion` answers (12080 is 12.8); it bounds the PTX versions accepted.
#[unsafe(no_mangle)]
pub extern "C" fn vcuda_set_driver_version(version: u32) -> u32 {
    direct(|driver| {
        driver.version = version;
        Ok(())
    })
}

/// Most bytes that may be alive on a device.
#[unsafe(no_mangle)]
pub extern "C" fn vcuda_set_memory_limit(device: u32, bytes: u64) -> u32 {
    direct(|driver| {
        let device = driver
            .devices
            .get_mut(device as usize)
            .ok_or(Code::InvalidValue)?;
        device.limit = bytes;
        Ok(())
    })
}

/// 0: eager; 1: lazy; 2: shuffled by `seed`. Work queued before keeps its place.
#[unsafe(no_mangle)]
pub extern "C" fn vcuda_set_ordering(mode: u32, seed: u64) -> u32 {
    direct(|driver| {
        let ordering = match mode {
            0 => Ordering::Eager,
            1 => Ordering::Lazy,
            2 => Ordering::Shuffled(seed),
            _ => return Err(Code::InvalidValue),
        };
        driver.schedule.set_ordering(ordering);
        Ok(())
    })
}

/// Race checks of the interpreter: 0 off, else on.
#[unsafe(no_mangle)]
pub extern "C" fn vcuda_set_race_checks(on: u32) -> u32 {
    direct(|driver| {
        driver.check_races = on != 0;
        Ok(())
    })
}

/// Threads of the interpreter; 0 for its own choice.
#[unsafe(no_mangle)]
pub extern "C" fn vcuda_set_threads(threads: u32) -> u32 {
    direct(|driver| {
        driver.threads = threads as usize;
        Ok(())
    })
}

/// From now on launches run only a sample of at most so many blocks, of those that one multiprocessor would get, and are
/// traced; 0: they run as ever. What is allocated meanwhile holds plausible numbers, since the other blocks write nothing.
#[unsafe(no_mangle)]
pub extern "C" fn vcuda_trace(blocks: u32) -> u32 {
    direct(|driver| {
        driver.traces.sample = blocks.into();
        driver.memory.memory.set_plausible(blocks > 0);
        Ok(())
    })
}

/// The `k`-th device allocation from now fails with `CUDA_ERROR_OUT_OF_MEMORY` (1: the next; 0: none).
#[unsafe(no_mangle)]
pub extern "C" fn vcuda_fail_allocation(k: u64) -> u32 {
    direct(|driver| {
        driver.orders.fail_allocation(k);
        Ok(())
    })
}

/// The `k`-th launch from now fails with the code. A code that a running kernel causes
/// (`CUDA_ERROR_ILLEGAL_ADDRESS`, `CUDA_ERROR_LAUNCH_FAILED`, ...) is raised when the launch is executed
/// and spoils the context; any other is the launch call's answer.
#[unsafe(no_mangle)]
pub extern "C" fn vcuda_fail_launch(k: u64, code: u32) -> u32 {
    direct(|driver| {
        driver
            .orders
            .fail_launch(k, Code::from_raw(code).ok_or(Code::InvalidValue)?);
        Ok(())
    })
}

/// The `k`-th call from now of the named driver function fails with the code before it does anything.
///
/// # Safety
/// `name` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vcuda_fail_call(name: *const c_char, k: u64, code: u32) -> u32 {
    // SAFETY: the caller's promise.
    let name = unsafe { text(name) };
    direct(|driver| {
        let code = Code::from_raw(code).ok_or(Code::InvalidValue)?;
        driver.orders.fail_call(&name?, k, code);
        Ok(())
    })
}

/// Every later call that needs the device answers the code, until a reset.
#[unsafe(no_mangle)]
pub extern "C" fn vcuda_lose_device(device: u32, code: u32) -> u32 {
    direct(|driver| {
        let code = Code::from_raw(code).ok_or(Code::InvalidValue)?;
        let device = driver
            .devices
            .get_mut(device as usize)
            .ok_or(Code::InvalidValue)?;
        device.lost = Some(code);
        Ok(())
    })
}

/// One record per kernel executed since the last reset, as JSON: `[LaunchReport]`. This and the three that
/// follow write what fits of the text into `buffer`, without a terminator, and return its whole length.
///
/// # Safety
/// `buffer` has room for `room` bytes, or is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vcuda_launches(buffer: *mut u8, room: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe { answer(buffer, room, |driver| json(&driver.reports)) }
}

/// The counters since the last reset, as JSON: `Counters`.
///
/// # Safety
/// As for [`vcuda_launches`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vcuda_counters(buffer: *mut u8, room: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe { answer(buffer, room, |driver| json(&driver.counters)) }
}

/// What is alive and what leaked, as JSON: `Usage`.
///
/// # Safety
/// As for [`vcuda_launches`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vcuda_usage(buffer: *mut u8, room: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe { answer(buffer, room, |driver| json(&driver.usage())) }
}

/// Why the last call that failed with a reason did so, as plain text; empty if none did since the last
/// reset.
///
/// # Safety
/// As for [`vcuda_launches`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vcuda_message(buffer: *mut u8, room: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        answer(buffer, room, |driver| {
            driver
                .message
                .as_deref()
                .unwrap_or_default()
                .as_bytes()
                .into()
        })
    }
}

/// The traces since the last reset, in order of execution: those of `ptxemu::trace`, one after the other.
///
/// # Safety
/// As for [`vcuda_launches`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vcuda_traces(buffer: *mut u8, room: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe { answer(buffer, room, |driver| driver.traces.bytes.as_slice().into()) }
}

fn direct(body: impl FnOnce(&mut Driver) -> Result<(), Code>) -> u32 {
    match with_driver(body) {
        Some(Ok(())) => 0,
        Some(Err(code)) => code as u32,
        None => Code::NotPermitted as u32,
    }
}

fn json(value: &impl Serialize) -> Cow<'static, [u8]> {
    serde_json::to_vec(value).unwrap_or_default().into()
}

/// # Safety
/// `text` is null or a C string.
unsafe fn text(text: *const c_char) -> Result<String, Code> {
    if text.is_null() {
        return Err(Code::InvalidValue);
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str()
        .map(str::to_owned)
        .map_err(|_| Code::InvalidValue)
}

/// # Safety
/// `buffer` has room for `room` bytes, or is null.
unsafe fn answer(
    buffer: *mut u8,
    room: usize,
    body: impl FnOnce(&mut Driver) -> Cow<'_, [u8]>,
) -> usize {
    let length = with_driver(|driver| {
        let bytes = body(driver);
        if !buffer.is_null() {
            // SAFETY: the caller's promise; no more than fits is copied.
            unsafe { buffer.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len().min(room)) };
        }
        bytes.len()
    });
    length.unwrap_or(0)
}
