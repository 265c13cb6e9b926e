//! Allocation, pinned memory and pools.

use super::{Out, exports};
use crate::{codes::Code, driver::Driver, work::Op};
use std::ffi::c_void;

exports! {
    /// Allocates device memory.
    fn cuMemAlloc_v2(driver, address: Out<u64>, bytes: usize) {
        let context = driver.current()?;
        driver.forbid_while_capturing("cuMemAlloc")?;
        if bytes == 0 {
            return Err(Code::InvalidValue);
        }
        let base = driver.allocate(context, bytes, true)?;
        address.set(base)
    }

    /// Frees device memory after all work of the context, as real drivers do.
    fn cuMemFree_v2(driver, address: u64) {
        let context = driver.current()?;
        if address == 0 {
            return Ok(());
        }
        driver.forbid_while_capturing("cuMemFree")?;
        driver.counters.device_frees += 1;
        driver.wait_for_context(context)?;
        match driver.memory.free(address) {
            true => Ok(()),
            false => driver.refuse(Code::InvalidValue, format!("{address:#x} is no allocation")),
        }
    }

    /// Allocates device memory in stream order. An empty allocation is null.
    fn cuMemAllocAsync(driver, address: Out<u64>, bytes: usize, stream: u64) {
        allocate_in_order(driver, address, bytes, stream)
    }

    /// The same; there is only one pool.
    fn cuMemAllocFromPoolAsync(driver, address: Out<u64>, bytes: usize, pool: u64, stream: u64) {
        if pool != DEFAULT_POOL {
            return Err(Code::InvalidValue);
        }
        allocate_in_order(driver, address, bytes, stream)
    }

    /// Frees device memory in stream order.
    fn cuMemFreeAsync(driver, address: u64, stream: u64) {
        let stream = driver.stream_of(stream)?;
        driver.forbid_on_capturing(stream, "cuMemFreeAsync")?;
        if address == 0 {
            return Ok(());
        }
        driver.counters.device_frees += 1;
        match driver.memory.find(address) {
            Some((base, _)) if base == address => driver.submit(stream, Op::Free(address)),
            _ => driver.refuse(Code::InvalidValue, format!("{address:#x} is no allocation")),
        }
    }

    /// Free and total memory of the current device.
    fn cuMemGetInfo_v2(driver, free: Out<usize>, total: Out<usize>) {
        let current = driver.current()?;
        let device = driver.contexts.get(&current).map_or(0, |context| context.device);
        let limit = driver.devices[device].limit;
        let used = driver.memory.device_bytes(device);
        free.set(limit.saturating_sub(used) as usize)?;
        total.set(driver.devices[device].model.memory_bytes as usize)
    }

    /// Base and size of the allocation around an address.
    fn cuMemGetAddressRange_v2(driver, base: Out<u64>, bytes: Out<usize>, address: u64) {
        driver.current()?;
        let found = driver.memory.find(address).map(|(base, found)| (base, found.bytes));
        let (start, length) = found.ok_or(Code::NotFound)?;
        base.set_if_wanted(start);
        bytes.set_if_wanted(length as usize);
        Ok(())
    }

    /// Allocates pinned host memory.
    fn cuMemHostAlloc(driver, pointer: Out<usize>, bytes: usize, _flags: u32) {
        allocate_pinned(driver, pointer, bytes)
    }

    /// The same without flags.
    fn cuMemAllocHost_v2(driver, pointer: Out<usize>, bytes: usize) {
        allocate_pinned(driver, pointer, bytes)
    }

    /// Frees pinned host memory. Work that still needs it then faults: nothing waits for it here.
    fn cuMemFreeHost(driver, pointer: usize) {
        driver.current()?;
        if pointer == 0 {
            return Ok(());
        }
        driver.forbid_while_capturing("cuMemFreeHost")?;
        match driver.host.free(pointer) {
            true => Ok(()),
            false => driver.refuse(Code::InvalidValue, format!("{pointer:#x} is not pinned memory")),
        }
    }

    /// Pins the caller's memory.
    fn cuMemHostRegister_v2(driver, pointer: usize, bytes: usize, _flags: u32) {
        let context = driver.current()?;
        driver.forbid_while_capturing("cuMemHostRegister")?;
        driver.counters.host_allocations += 1;
        if pointer == 0 || bytes == 0 {
            return Err(Code::InvalidValue);
        }
        driver.host.register(context, pointer, bytes)
    }

    /// Unpins the caller's memory.
    fn cuMemHostUnregister(driver, pointer: usize) {
        driver.current()?;
        driver.forbid_while_capturing("cuMemHostUnregister")?;
        match driver.host.unregister(pointer) {
            true => Ok(()),
            false => Err(Code::HostMemoryNotRegistered),
        }
    }

    /// Flags of pinned memory: always portable.
    fn cuMemHostGetFlags(driver, flags: Out<u32>, pointer: usize) {
        const PORTABLE: u32 = 1;
        driver.current()?;
        driver.host.find(pointer).ok_or(Code::InvalidValue)?;
        flags.set(PORTABLE)
    }

    /// Kernels cannot reach host memory here.
    fn cuMemHostGetDevicePointer_v2(driver, _address: Out<u64>, _pointer: usize, _flags: u32) {
        driver.current()?;
        Err(Code::NotSupported)
    }

    /// The device's one pool.
    fn cuDeviceGetDefaultMemPool(driver, pool: Out<u64>, device: i32) {
        driver.device(device)?;
        pool.set(DEFAULT_POOL)
    }

    /// The device's one pool.
    fn cuDeviceGetMemPool(driver, pool: Out<u64>, device: i32) {
        driver.device(device)?;
        pool.set(DEFAULT_POOL)
    }

    /// Accepts the one pool there is.
    fn cuDeviceSetMemPool(driver, device: i32, pool: u64) {
        driver.device(device)?;
        if pool == DEFAULT_POOL { Ok(()) } else { Err(Code::InvalidValue) }
    }

    /// Accepted without effect: freed memory is never kept.
    fn cuMemPoolTrimTo(_driver, _pool: u64, _keep: usize) {
        Ok(())
    }

    /// Accepted without effect: freed memory is never kept.
    fn cuMemPoolSetAttribute(_driver, _pool: u64, _attribute: u32, _value: *const c_void) {
        Ok(())
    }
}

/// The handle of every device's only pool.
const DEFAULT_POOL: u64 = 0x706f_6f6c;

fn allocate_in_order(
    driver: &mut Driver,
    address: Out<u64>,
    bytes: usize,
    stream: u64,
) -> Result<(), Code> {
    let stream = driver.stream_of(stream)?;
    driver.forbid_on_capturing(stream, "cuMemAllocAsync")?;
    let context = driver.stream(stream)?.context;
    if bytes == 0 {
        return address.set(0);
    }
    let base = driver.allocate(context, bytes, false)?;
    address.set(base)?;
    driver.submit(stream, Op::Allocate(base))
}

fn allocate_pinned(driver: &mut Driver, pointer: Out<usize>, bytes: usize) -> Result<(), Code> {
    let context = driver.current()?;
    driver.forbid_while_capturing("cuMemHostAlloc")?;
    driver.counters.host_allocations += 1;
    if bytes == 0 {
        return Err(Code::InvalidValue);
    }
    let base = driver.host.allocate(context, bytes)?;
    pointer.set(base)
}
