//! Lazy execution: memory that is read late, freed early, or not there yet.

use crate::{code, kernels, machine, pair::Pair};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys::CUresult};
use std::sync::Arc;
use vcuda::client::Ordering;

#[test]
fn pinned_sources_are_read_late_and_pageable_ones_at_once() -> Result<(), DriverError> {
    let pair = Pair::new(Ordering::Lazy)?;
    let stream = &pair.producer;
    let context = stream.context();
    let mut device = stream.alloc_zeros::<f32>(4)?;
    let mut pageable = vec![1f32; 4];
    stream.memcpy_htod(&pageable, &mut device)?;
    pageable.fill(2.0);
    assert_eq!(stream.clone_dtoh(&device)?, [1.0; 4]);

    // SAFETY: filled before it is read.
    let mut pinned = unsafe { context.alloc_pinned::<f32>(4) }?;
    pinned.as_mut_slice()?.fill(1.0);
    let pointer = pinned.as_mut_ptr()?;
    // SAFETY: the copy reads the four values when it is executed, at the synchronisation.
    unsafe {
        let source = std::slice::from_raw_parts(pointer.cast_const(), 4);
        let (address, _guard) = cudarc::driver::DevicePtrMut::device_ptr_mut(&mut device, stream);
        result::memcpy_htod_async(address, source, stream.cu_stream())?;
        pointer.write(9.0);
    }
    assert_eq!(
        stream.clone_dtoh(&device)?,
        [9.0, 1.0, 1.0, 1.0],
        "reused too early"
    );

    // The other way, a pinned destination is written late.
    // SAFETY: as above.
    unsafe {
        let (address, _guard) = cudarc::driver::DevicePtr::device_ptr(&device, stream);
        pointer.write(5.0);
        let destination = std::slice::from_raw_parts_mut(pointer, 4);
        result::memcpy_dtoh_async(destination, address, stream.cu_stream())?;
        assert_eq!(pointer.read_volatile(), 5.0, "not yet");
    }
    stream.synchronize()?;
    assert_eq!(pinned.as_slice()?[0], 9.0);
    Ok(())
}

/// Has pinned bytes freed while a copy of them is under way, and says what became of the copy.
fn freed_under(
    copy: impl FnOnce(&CudaStream, *mut u8, u64) -> Result<(), DriverError>,
) -> CUresult {
    let outcome = || {
        let stream = CudaContext::new(0)?.default_stream();
        let device = stream.alloc_zeros::<u8>(4)?;
        // SAFETY: the stand-in checks that the range is still pinned before it touches it.
        unsafe {
            let pinned = result::malloc_host(4, 0)?;
            let (address, _guard) = cudarc::driver::DevicePtr::device_ptr(&device, &stream);
            copy(&stream, pinned.cast(), address)?;
            result::free_host(pinned)?;
        }
        stream.synchronize()
    };
    code(outcome())
}

#[test]
fn a_pinned_source_freed_too_early_is_a_fault() {
    let vcuda = machine("sm_90");
    vcuda.set_ordering(Ordering::Lazy);
    // SAFETY: four bytes.
    let outcome = freed_under(|stream, pinned, device| unsafe {
        let source = std::slice::from_raw_parts(pinned, 4);
        result::memcpy_htod_async(device, source, stream.cu_stream())
    });
    assert_eq!(outcome, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
}

#[test]
fn a_pinned_destination_freed_too_early_is_a_fault() {
    let vcuda = machine("sm_90");
    vcuda.set_ordering(Ordering::Lazy);
    // SAFETY: four bytes.
    let outcome = freed_under(|stream, pinned, device| unsafe {
        let destination = std::slice::from_raw_parts_mut(pinned, 4);
        result::memcpy_dtoh_async(destination, device, stream.cu_stream())
    });
    assert_eq!(outcome, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(
        vcuda.message().contains("pinned bytes"),
        "{}",
        vcuda.message()
    );
}

#[test]
fn freed_in_stream_order_and_used_elsewhere_is_a_fault() -> Result<(), DriverError> {
    let mut pair = Pair::new(Ordering::Lazy)?;
    pair.consume()?;
    let (address, _) = cudarc::driver::DevicePtr::device_ptr(&pair.buffer, &pair.producer);
    // SAFETY: the free that comes too early is the point.
    unsafe { result::free_async(address, pair.producer.cu_stream()) }?;
    pair.producer.synchronize()?;
    assert_eq!(
        code(pair.consumer.synchronize()),
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
    );
    Ok(())
}

#[test]
fn allocated_in_stream_order_and_used_elsewhere_is_a_fault() -> Result<(), DriverError> {
    let pair = Pair::new(Ordering::Lazy)?;
    // SAFETY: the use that comes too early is the point, and is noticed.
    unsafe {
        let address = result::malloc_async(pair.producer.cu_stream(), 16)?;
        result::memset_d8_async(address, 0, 16, pair.producer.cu_stream())?;
        result::memset_d8_async(address, 0, 16, pair.consumer.cu_stream())?;
    }
    let early = code(pair.consumer.synchronize());
    assert_eq!(early, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(pair.vcuda.message().contains("not allocated yet"));
    Ok(())
}

#[test]
fn a_kernel_that_uses_what_is_not_allocated_yet_is_a_fault() -> Result<(), DriverError> {
    let pair = Pair::new(Ordering::Lazy)?;
    // SAFETY: as above.
    let mut early = unsafe { pair.producer.alloc::<f32>(64) }?;
    kernels::add(&pair.consumer, &pair.kernel, &mut early, &pair.ones, 1.0)?;
    let code = code(pair.consumer.synchronize());
    assert_eq!(code, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(
        pair.vcuda
            .message()
            .contains("not allocated yet in stream order")
    );
    Ok(())
}

#[test]
fn a_synchronous_copy_from_pageable_memory_may_still_be_on_its_way() -> Result<(), DriverError> {
    let pair = Pair::new(Ordering::Lazy)?;
    let (address, _) = cudarc::driver::DevicePtr::device_ptr(&pair.out, &pair.producer);
    let read = |stream: &Arc<CudaStream>| stream.clone_dtoh(&pair.out).map(|out| out[0]);
    let mut host = [7f32; 64];
    // SAFETY: in bounds.
    unsafe { result::memcpy_htod_sync(address, &host) }?;
    host.fill(8.0);
    assert_eq!(
        read(&pair.consumer),
        Ok(0.0),
        "a non-blocking stream need not see it yet"
    );
    assert_eq!(read(&pair.producer.context().default_stream()), Ok(7.0));
    assert_eq!(read(&pair.consumer), Ok(7.0));

    // What the legacy stream held before is done, though, and so is a copy from pinned memory.
    let context = pair.producer.context();
    // SAFETY: in bounds; written before it is read.
    let mut pinned = unsafe { context.alloc_pinned::<f32>(64) }?;
    pinned.as_mut_slice()?.fill(9.0);
    // SAFETY: as above.
    unsafe {
        result::memset_d8_async(address, 0, 4, std::ptr::null_mut())?;
        result::memcpy_htod_sync(address + 4, &host[..1])?;
        assert_eq!(read(&pair.consumer), Ok(0.0));
        result::memcpy_htod_sync(address, pinned.as_slice()?)?;
        assert_eq!(read(&pair.consumer), Ok(9.0));
    }
    Ok(())
}
