//! Contexts.

use super::{Out, exports};
use crate::{
    codes::Code,
    driver::{Driver, current_handle, pop_current, push_current, set_current},
};
use std::ffi::c_void;

exports! {
    /// Retains the device's primary context.
    fn cuDevicePrimaryCtxRetain(driver, context: Out<u64>, device: i32) {
        let handle = driver.retain_primary(device)?;
        context.set(handle)
    }

    /// Gives one retention back.
    fn cuDevicePrimaryCtxRelease_v2(driver, device: i32) {
        driver.release_primary(device)
    }

    /// Destroys the primary context whatever its retentions, and with it a sticky error.
    fn cuDevicePrimaryCtxReset_v2(driver, device: i32) {
        if let Some(primary) = driver.primary(device)? {
            driver.destroy_context(primary);
        }
        Ok(())
    }

    /// Accepted without effect: the flags are about how a host thread waits.
    fn cuDevicePrimaryCtxSetFlags_v2(driver, device: i32, _flags: u32) {
        driver.device(device).map(drop)
    }

    /// Whether the primary context exists.
    fn cuDevicePrimaryCtxGetState(driver, device: i32, flags: Out<u32>, active: Out<i32>) {
        let primary = driver.primary(device)?;
        flags.set(0)?;
        active.set(i32::from(primary.is_some()))
    }

    /// Makes a context of its own and the current one.
    fn cuCtxCreate_v2(driver, context: Out<u64>, _flags: u32, device: i32) {
        create(driver, context, device)
    }

    /// The same; execution affinities are not modelled.
    fn cuCtxCreate_v3(
        driver,
        context: Out<u64>,
        _affinities: *const c_void,
        _count: i32,
        _flags: u32,
        device: i32,
    ) {
        create(driver, context, device)
    }

    /// The same; creation parameters are not modelled.
    fn cuCtxCreate_v4(
        driver,
        context: Out<u64>,
        _params: *const c_void,
        _flags: u32,
        device: i32,
    ) {
        create(driver, context, device)
    }

    /// Destroys a context of `cuCtxCreate`.
    fn cuCtxDestroy_v2(driver, context: u64) {
        if !driver.contexts.contains_key(&context) {
            return Err(Code::InvalidContext);
        }
        driver.destroy_context(context);
        if current_handle() == Some(context) {
            pop_current();
        }
        Ok(())
    }

    /// Makes the context the calling thread's.
    fn cuCtxSetCurrent(driver, context: u64) {
        if context != 0 && !driver.contexts.contains_key(&context) {
            return Err(Code::InvalidContext);
        }
        set_current((context != 0).then_some(context));
        Ok(())
    }

    /// The calling thread's context, null if it has none.
    fn cuCtxGetCurrent(driver, context: Out<u64>) {
        if !driver.initialised {
            return Err(Code::NotInitialized);
        }
        context.set(current_handle().unwrap_or(0))
    }

    /// Makes the context the calling thread's and remembers the one before.
    fn cuCtxPushCurrent_v2(driver, context: u64) {
        if !driver.contexts.contains_key(&context) {
            return Err(Code::InvalidContext);
        }
        push_current(context);
        Ok(())
    }

    /// Takes the calling thread's context away and brings the one before back.
    fn cuCtxPopCurrent_v2(_driver, context: Out<u64>) {
        let popped = pop_current().ok_or(Code::InvalidContext)?;
        context.set_if_wanted(popped);
        Ok(())
    }

    /// The device of the calling thread's context.
    fn cuCtxGetDevice(driver, device: Out<i32>) {
        let current = driver.current()?;
        device.set(driver.contexts.get(&current).map_or(0, |context| context.device as i32))
    }

    /// The host waits for all work of the current context.
    fn cuCtxSynchronize(driver) {
        let current = driver.current()?;
        driver.forbid_in_capturing_context(current, "cuCtxSynchronize")?;
        driver.wait_for_context(current)
    }

    /// Accepted without effect: the flags are about how a host thread waits.
    fn cuCtxSetFlags(driver, _flags: u32) {
        driver.current().map(drop)
    }

    /// Always 0.
    fn cuCtxGetFlags(driver, flags: Out<u32>) {
        driver.current()?;
        flags.set(0)
    }

    /// What `cuCtxSetLimit` set, else 0: limits are kept, not enforced.
    fn cuCtxGetLimit(driver, value: Out<usize>, limit: u32) {
        let current = driver.current()?;
        let limits = driver.contexts.get(&current).map(|context| &context.limits);
        value.set(limits.and_then(|limits| limits.get(&limit)).copied().unwrap_or(0))
    }

    /// Keeps a limit.
    fn cuCtxSetLimit(driver, limit: u32, value: usize) {
        const LIMITS: u32 = 10;
        let current = driver.current()?;
        if limit >= LIMITS {
            return Err(Code::InvalidValue);
        }
        if let Some(context) = driver.contexts.get_mut(&current) {
            context.limits.insert(limit, value);
        }
        Ok(())
    }

    /// Always "no preference".
    fn cuCtxGetCacheConfig(driver, config: Out<u32>) {
        driver.current()?;
        config.set(0)
    }

    /// Accepted without effect.
    fn cuCtxSetCacheConfig(driver, _config: u32) {
        driver.current().map(drop)
    }

    /// Priorities 0 (least) to -5 (greatest), as on recent GPUs.
    fn cuCtxGetStreamPriorityRange(driver, least: Out<i32>, greatest: Out<i32>) {
        driver.current()?;
        least.set_if_wanted(0);
        greatest.set_if_wanted(-5);
        Ok(())
    }

    /// Peer access is neither needed nor modelled: each device sees its own memory only.
    fn cuDeviceCanAccessPeer(driver, able: Out<i32>, device: i32, peer: i32) {
        driver.device(device)?;
        driver.device(peer)?;
        able.set(0)
    }

    /// Accepted without effect.
    fn cuProfilerStart(driver) {
        driver.current().map(drop)
    }

    /// Accepted without effect.
    fn cuProfilerStop(driver) {
        driver.current().map(drop)
    }
}

fn create(driver: &mut Driver, context: Out<u64>, device: i32) -> Result<(), Code> {
    if let Some(code) = driver.device(device)?.lost {
        return Err(code);
    }
    let handle = driver.create_context(device as usize, None);
    push_current(handle);
    context.set(handle)
}
