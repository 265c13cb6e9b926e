//! Lazy and shuffled execution: what a program without the right dependencies gets to see.

use crate::{
    code,
    kernels::{self, Kernel},
    machine,
};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DriverError, result, sys};
use std::sync::Arc;
use vcuda::client::{Ordering, Vcuda};

/// Two streams on one buffer: `producer` writes 1 into it, `consumer` adds 1 into `out`. Event tracking
/// of cudarc is off, so the test says what depends on what.
struct Pair {
    producer: Arc<CudaStream>,
    consumer: Arc<CudaStream>,
    kernel: Kernel,
    ones: CudaSlice<f32>,
    buffer: CudaSlice<f32>,
    out: CudaSlice<f32>,
    vcuda: Vcuda,
}

impl Pair {
    fn new(ordering: Ordering) -> Result<Pair, DriverError> {
        let vcuda = machine("sm_90");
        let context = CudaContext::new(0)?;
        // SAFETY: the tests order the streams themselves, or fail to on purpose.
        unsafe { context.disable_event_tracking() };
        let (producer, consumer) = (context.new_stream()?, context.new_stream()?);
        let pair = Pair {
            kernel: kernels::add_kernel(&context)?,
            ones: producer.clone_htod(&[1f32; 64])?,
            buffer: producer.alloc_zeros(64)?,
            out: producer.alloc_zeros(64)?,
            vcuda,
            producer,
            consumer,
        };
        context.synchronize()?;
        pair.vcuda.set_ordering(ordering);
        Ok(pair)
    }

    fn produce(&mut self) -> Result<(), DriverError> {
        kernels::add(
            &self.producer,
            &self.kernel,
            &mut self.buffer,
            &self.ones,
            4.0,
        )
    }

    fn consume(&mut self) -> Result<(), DriverError> {
        kernels::add(
            &self.consumer,
            &self.kernel,
            &mut self.out,
            &self.buffer,
            1.0,
        )
    }

    fn result(&self) -> Result<f32, DriverError> {
        Ok(self.consumer.clone_dtoh(&self.out)?[0])
    }
}

#[test]
fn a_missing_dependency_shows_in_lazy_order() -> Result<(), DriverError> {
    let mut pair = Pair::new(Ordering::Eager)?;
    pair.produce()?;
    pair.consume()?;
    assert_eq!(pair.result()?, 6.0, "eager order hides it");
    drop(pair);
    let mut pair = Pair::new(Ordering::Lazy)?;
    pair.produce()?;
    pair.consume()?;
    assert_eq!(pair.result()?, 1.0, "the consumer ran before the producer");
    Ok(())
}

#[test]
fn an_event_orders_the_streams_in_every_mode() -> Result<(), DriverError> {
    let orderings = [Ordering::Eager, Ordering::Lazy]
        .into_iter()
        .chain((0..8).map(Ordering::Shuffled));
    for ordering in orderings {
        let mut pair = Pair::new(ordering)?;
        pair.produce()?;
        pair.consumer.join(&pair.producer)?;
        pair.consume()?;
        assert_eq!(pair.result()?, 6.0, "{ordering:?}");
    }
    Ok(())
}

#[test]
fn shuffled_order_finds_an_overwritten_input() -> Result<(), DriverError> {
    // The consumer comes first; without a dependency the producer may overwrite what it still has to
    // read. Waiting for the consumer alone never shows that, a shuffle does under some seed.
    let mut seen = Vec::new();
    for seed in 0..8 {
        let mut pair = Pair::new(Ordering::Shuffled(seed))?;
        pair.consume()?;
        pair.produce()?;
        seen.push(pair.result()?);
    }
    assert!(seen.contains(&1.0) && seen.contains(&6.0), "{seen:?}");
    let mut pair = Pair::new(Ordering::Lazy)?;
    pair.consume()?;
    pair.produce()?;
    assert_eq!(pair.result()?, 1.0);
    Ok(())
}

#[test]
fn an_event_stands_for_the_work_before_it_only() -> Result<(), DriverError> {
    let mut pair = Pair::new(Ordering::Lazy)?;
    let event = pair.producer.record_event(None)?;
    pair.produce()?;
    pair.consumer.wait(&event)?;
    pair.consume()?;
    assert_eq!(pair.result()?, 1.0);
    // Recording anew does not change what was waited for before.
    event.record(&pair.producer)?;
    pair.consumer.wait(&event)?;
    pair.consume()?;
    event.record(&pair.consumer)?;
    assert_eq!(pair.result()?, 6.0);
    Ok(())
}

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

#[test]
fn of_several_streams_the_newest_goes_first() -> Result<(), DriverError> {
    let mut pair = Pair::new(Ordering::Lazy)?;
    pair.produce()?;
    pair.consume()?;
    pair.consumer.context().synchronize()?;
    assert_eq!(pair.result()?, 1.0);
    Ok(())
}

#[test]
fn every_way_to_wait_counts_as_one() -> Result<(), DriverError> {
    let mut pair = Pair::new(Ordering::Lazy)?;
    let mut before = pair.vcuda.counters();
    let mut waited_and_ran = |pair: &Pair| {
        let after = pair.vcuda.counters();
        let difference = (
            after.host_waits - before.host_waits,
            after.kernels_run - before.kernels_run,
        );
        before = after;
        difference
    };
    pair.produce()?;
    pair.producer.synchronize()?;
    assert_eq!(waited_and_ran(&pair), (1, 1), "cuStreamSynchronize");
    pair.produce()?;
    pair.producer.context().synchronize()?;
    assert_eq!(waited_and_ran(&pair), (1, 1), "cuCtxSynchronize");
    pair.produce()?;
    pair.producer.record_event(None)?.synchronize()?;
    assert_eq!(waited_and_ran(&pair), (1, 1), "cuEventSynchronize");
    // SAFETY: allocated and freed once.
    let unused = unsafe { result::malloc_sync(4) }?;
    pair.produce()?;
    let frees = pair.vcuda.counters().device_frees;
    // SAFETY: as above.
    unsafe { result::free_sync(unused) }?;
    assert_eq!(waited_and_ran(&pair), (1, 1), "cuMemFree");
    assert_eq!(pair.vcuda.counters().device_frees, frees + 1);
    pair.produce()?;
    pair.producer.clone_dtoh(&pair.out)?;
    assert_eq!(waited_and_ran(&pair), (1, 1), "a copy into pageable memory");
    Ok(())
}

#[test]
fn a_pinned_source_freed_too_early_is_a_fault() -> Result<(), DriverError> {
    let vcuda = machine("sm_90");
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    let device = stream.alloc_zeros::<u8>(4)?;
    vcuda.set_ordering(Ordering::Lazy);
    // SAFETY: the stand-in checks that the range is still pinned before it touches it.
    unsafe {
        let pinned = result::malloc_host(4, 0)?;
        let (address, _guard) = cudarc::driver::DevicePtr::device_ptr(&device, &stream);
        let source = std::slice::from_raw_parts(pinned.cast::<u8>(), 4);
        result::memcpy_htod_async(address, source, stream.cu_stream())?;
        result::free_host(pinned)?;
    }
    assert_eq!(
        code(stream.synchronize()),
        sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
    );
    Ok(())
}

#[test]
fn a_pinned_destination_freed_too_early_is_a_fault() -> Result<(), DriverError> {
    let vcuda = machine("sm_90");
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    let device = stream.alloc_zeros::<u8>(4)?;
    vcuda.set_ordering(Ordering::Lazy);
    // SAFETY: the stand-in checks that the range is still pinned before it touches it.
    unsafe {
        let pinned = result::malloc_host(4, 0)?;
        let (address, _guard) = cudarc::driver::DevicePtr::device_ptr(&device, &stream);
        let destination = std::slice::from_raw_parts_mut(pinned.cast::<u8>(), 4);
        result::memcpy_dtoh_async(destination, address, stream.cu_stream())?;
        result::free_host(pinned)?;
    }
    assert_eq!(
        code(stream.synchronize()),
        sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
    );
    assert!(
        vcuda.message().contains("pinned bytes"),
        "{}",
        vcuda.message()
    );
    Ok(())
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
        sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
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
    assert_eq!(early, sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(pair.vcuda.message().contains("not allocated yet"));
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
    Ok(())
}

#[test]
fn the_legacy_stream_orders_blocking_streams_and_no_others() -> Result<(), DriverError> {
    let vcuda = machine("sm_90");
    let context = CudaContext::new(0)?;
    let legacy = context.default_stream();
    let device = legacy.alloc_zeros::<u8>(1)?;
    let (address, _guard) = cudarc::driver::DevicePtr::device_ptr(&device, &legacy);
    let read_after_fill = |kind| -> Result<u8, DriverError> {
        vcuda.set_ordering(Ordering::Eager);
        let stream = result::stream::create(kind)?;
        let mut host = [0u8];
        // SAFETY: in bounds, and the host buffers outlive the copies, which pageable memory makes early.
        unsafe {
            result::memset_d8_sync(address, 1, 1)?;
            vcuda.set_ordering(Ordering::Lazy);
            result::memset_d8_async(address, 2, 1, stream)?;
            result::memcpy_dtoh_async(&mut host, address, legacy.cu_stream())?;
            result::stream::synchronize(stream)?;
            result::stream::destroy(stream)?;
        }
        Ok(host[0])
    };
    assert_eq!(read_after_fill(result::stream::StreamKind::Default)?, 2);
    assert_eq!(read_after_fill(result::stream::StreamKind::NonBlocking)?, 1);
    Ok(())
}

#[test]
fn polling_gets_there() -> Result<(), DriverError> {
    let mut pair = Pair::new(Ordering::Lazy)?;
    pair.produce()?;
    pair.produce()?;
    let event = pair.producer.record_event(None)?;
    let polls = (1..).find(|_| event.is_complete());
    assert_eq!(
        polls,
        Some(4),
        "two kernels and the record itself, one for each poll"
    );
    assert_eq!(pair.vcuda.counters().kernels_run, 2);
    Ok(())
}

#[test]
fn a_destroyed_stream_finishes_its_work() -> Result<(), DriverError> {
    let pair = Pair::new(Ordering::Lazy)?;
    let short_lived = pair.producer.context().new_stream()?;
    let mut buffer = pair.buffer.clone();
    pair.producer.synchronize()?;
    kernels::add(&short_lived, &pair.kernel, &mut buffer, &pair.ones, 4.0)?;
    let done = short_lived.record_event(None)?;
    drop(short_lived);
    assert_eq!(pair.vcuda.counters().kernels_run, 0);
    done.synchronize()?;
    assert_eq!(pair.vcuda.counters().kernels_run, 1);
    Ok(())
}

#[test]
fn host_functions_run_in_order_and_may_not_call_the_driver() -> Result<(), DriverError> {
    use std::ffi::c_void;
    unsafe extern "C" fn note(data: *mut c_void) {
        // SAFETY: the test passes a `(kernels, code)` that outlives the call.
        let seen = unsafe { &mut *data.cast::<Vec<sys::CUresult>>() };
        // SAFETY: the stand-in refuses the call.
        seen.push(unsafe { sys::cuCtxSynchronize() });
    }
    let mut pair = Pair::new(Ordering::Lazy)?;
    let mut seen: Vec<sys::CUresult> = Vec::new();
    pair.produce()?;
    // SAFETY: `seen` outlives the synchronisation below.
    unsafe {
        result::stream::launch_host_function(
            pair.producer.cu_stream(),
            note,
            (&raw mut seen).cast(),
        )?;
    }
    pair.producer.synchronize()?;
    assert_eq!(seen, [sys::CUresult::CUDA_ERROR_NOT_PERMITTED]);
    Ok(())
}
