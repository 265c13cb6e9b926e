//! The C interface of `attention-rollout`. The header beside this crate is what C programs read; it is written from here,
//! and says who owns what, from which threads, and on which streams.
//!
//! The functions check what they can of what they are given, and no panic leaves them.

mod error;
mod given;
mod plan;
mod problem;
mod queries_keys;
mod types;

use std::ffi::{c_char, c_void};
use std::sync::{Mutex, TryLockError};

pub use error::ArStatus;
pub use types::{
    ArDeviceKind, ArDeviceOptions, ArDiscardScope, ArDtype, ArGradients, ArHeadFusion, ArInputs,
    ArLayer, ArLse, ArMemory, ArOutput, ArPlanInfo, ArPrecision, ArProblem, ArQueriesKeys,
    ArQueriesKeysStrides, ArResidual, ArRows, ArRun, ArStrides, ArTokenStrides, ArWindow,
};

use error::{Error, Result, guard};
use given::{checked, list, sized};
use plan::{Place, Ready};

/// Something that computes.
pub struct ArDevice(Place);

/// A problem made ready to run.
pub struct ArPlan(Mutex<Ready>);

/// Hands a new object to the caller.
///
/// # Safety
/// `handle` may be written.
unsafe fn give<T>(handle: *mut *mut T, made: T) {
    // SAFETY: the caller's promise.
    unsafe { handle.write(Box::into_raw(Box::new(made))) }
}

/// Takes an object back; null is none.
///
/// # Safety
/// `object` is null, or was given by [`give`] and not taken back.
unsafe fn take_back<T>(object: *mut T) {
    if !object.is_null() {
        guard(|| {
            // SAFETY: the caller's promise.
            drop(unsafe { Box::from_raw(object) });
            Ok(())
        });
    }
}

/// Calls `call` with a plan that no other thread is using.
///
/// # Safety
/// `plan` is null, or was given and not taken back.
unsafe fn with_plan(plan: *const ArPlan, call: impl FnOnce(&mut Ready) -> Result<()>) -> ArStatus {
    guard(|| {
        let plan = checked("plan", plan)?;
        // SAFETY: the caller's promise.
        let mut ready = unsafe { &*plan }
            .0
            .try_lock()
            .map_err(|error| match error {
                TryLockError::WouldBlock => Error::Busy,
                TryLockError::Poisoned(_) => Error::Poisoned,
            })?;
        call(&mut ready)
    })
}

/// Opens a device and writes its handle to `device`. A GPU's primary context is retained, as the CUDA runtime does.
///
/// # Safety
/// `options` is NULL or points to `options->size` bytes, `device` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ar_device_new(
    options: *const ArDeviceOptions,
    device: *mut *mut ArDevice,
) -> ArStatus {
    guard(|| {
        checked("device", device)?;
        // SAFETY: the caller's promise; of the size that the struct has.
        let options = unsafe { &*sized(options)? };
        let made = ArDevice(Place::new(options)?);
        // SAFETY: the caller's promise.
        unsafe { give(device, made) };
        Ok(())
    })
}

/// Gives a device back; NULL is none. Its plans stay usable.
///
/// # Safety
/// `device` is NULL or was given by `ar_device_new` and not given back; no other thread uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ar_device_free(device: *mut ArDevice) {
    // SAFETY: the caller's promise.
    unsafe { take_back(device) }
}

/// Makes `problem` ready on `device` and writes the plan's handle to `plan`: checks, chooses, compiles, allocates.
///
/// # Safety
/// `device` is NULL or alive. `problem` is NULL or points to `problem->size` bytes, whose pointers are NULL or point to as
/// many elements as the counts beside them say, as do those of its queries and keys. `plan` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ar_plan_new(
    device: *const ArDevice,
    problem: *const ArProblem,
    plan: *mut *mut ArPlan,
) -> ArStatus {
    guard(|| {
        checked("plan", plan)?;
        let device = checked("device", device)?;
        // SAFETY: the caller's promise; the problem is of the size that the struct has.
        let ready = unsafe { Ready::new(&(*device).0, &*sized(problem)?)? };
        // SAFETY: the caller's promise.
        unsafe { give(plan, ArPlan(Mutex::new(ready))) };
        Ok(())
    })
}

/// Fills `info`, whose size is set, with what the plan is.
///
/// # Safety
/// `plan` is NULL or alive, `info` is NULL or points to `info->size` bytes that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ar_plan_info(plan: *const ArPlan, info: *mut ArPlanInfo) -> ArStatus {
    // SAFETY: the caller's promise; the info is of the size that the struct has.
    unsafe {
        with_plan(plan, |ready| {
            sized(info)?;
            info.write(ready.info());
            Ok(())
        })
    }
}

/// Computes the rollout of `layers`, every layer of the problem from the first to the last, into the `out_count` floats at
/// `out`. In host memory `stream` is NULL and the output is there when the call returns. In device memory the call
/// submits to `stream` and returns: it allocates nothing on the device, compiles nothing and waits for nothing.
///
/// # Safety
/// `plan` is NULL or alive. `layers` is NULL or points to `layers_count` structs, whose tensors are as long as they say, in
/// the memory that the problem names, as is `out`. `stream` is NULL or a stream of the device's primary context. Device
/// memory: nothing writes the layers, and nothing uses the output, from the run's place in the stream until it is done.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ar_plan_run(
    plan: *const ArPlan,
    layers: *const ArLayer,
    layers_count: usize,
    out: *mut f32,
    out_count: usize,
    stream: *mut c_void,
) -> ArStatus {
    // SAFETY: the caller's promise.
    unsafe {
        with_plan(plan, |ready| {
            let layers = list("layers", layers, layers_count)?;
            ready.run(layers, out, out_count, stream.cast(), None)
        })
    }
}

/// As `ar_plan_run`, with what `run` says beside the layers: of which items, whose layers and output are then those of these
/// items alone; and, in device memory, their windows and start rows for this run alone.
///
/// # Safety
/// As `ar_plan_run`; `run` is NULL or points to `run->size` bytes, whose addresses are NULL or hold as many numbers in the
/// device's memory as it says, which nothing writes from the run's place in the stream until it is done.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ar_plan_run_with(
    plan: *const ArPlan,
    layers: *const ArLayer,
    layers_count: usize,
    out: *mut f32,
    out_count: usize,
    stream: *mut c_void,
    run: *const ArRun,
) -> ArStatus {
    // SAFETY: the caller's promise; the run is of the size that the struct has.
    unsafe {
        with_plan(plan, |ready| {
            let layers = list("layers", layers, layers_count)?;
            let run = &*sized(run)?;
            ready.run(layers, out, out_count, stream.cast(), Some(run))
        })
    }
}

/// Waits for the last run in device memory, and fails with AR_STATUS_MISMATCH where its queries, keys and LSE do not belong
/// together, as far as that is looked at (`ArQueriesKeys`). Of other sources it checks nothing and waits for nothing; nor does
/// it in host memory, where `stream` is NULL and a run fails so itself. A stream that is being captured is refused.
///
/// # Safety
/// `plan` is NULL or alive. `stream` is NULL or a stream of the device's primary context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ar_plan_check(plan: *const ArPlan, stream: *mut c_void) -> ArStatus {
    // SAFETY: the caller's promise.
    unsafe { with_plan(plan, |ready| ready.check(stream.cast())) }
}

/// Gives the runs to come other windows and start rows, which are copied. In device memory the next run sends them to the
/// device on its stream, without a wait.
///
/// # Safety
/// `plan` is NULL or alive. `inputs` is NULL or points to `inputs->size` bytes, whose pointers are NULL or point to as many
/// elements as the counts beside them say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ar_plan_set_inputs(
    plan: *const ArPlan,
    inputs: *const ArInputs,
) -> ArStatus {
    // SAFETY: the caller's promise; the inputs are of the size that the struct has.
    unsafe { with_plan(plan, |ready| ready.set_inputs(&*sized(inputs)?)) }
}

/// Gives a plan back; NULL is none. Runs that were submitted are waited for.
///
/// # Safety
/// `plan` is NULL or was given by `ar_plan_new` and not given back; no other thread uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ar_plan_free(plan: *mut ArPlan) {
    // SAFETY: the caller's promise.
    unsafe { take_back(plan) }
}

/// What the last call of this thread that failed has to say, in UTF-8; empty where none has. Valid until the next one
/// fails or the thread ends.
#[unsafe(no_mangle)]
pub extern "C" fn ar_last_error() -> *const c_char {
    error::message()
}
