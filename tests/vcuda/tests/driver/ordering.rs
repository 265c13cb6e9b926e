//! Lazy and shuffled execution: what a program without the right dependencies gets to see.

use crate::{kernels, machine, pair::Pair};
use cudarc::driver::{CudaContext, DriverError, result, sys};
use vcuda::client::Ordering;

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

    let read_behind_legacy = |kind| -> Result<u8, DriverError> {
        vcuda.set_ordering(Ordering::Eager);
        let stream = result::stream::create(kind)?;
        let mut host = [0u8];
        // SAFETY: as above.
        unsafe {
            result::memset_d8_sync(address, 3, 1)?;
            vcuda.set_ordering(Ordering::Lazy);
            result::memset_d8_async(address, 4, 1, legacy.cu_stream())?;
            result::memcpy_dtoh_async(&mut host, address, stream)?;
            legacy.synchronize()?;
            result::stream::destroy(stream)?;
        }
        Ok(host[0])
    };
    assert_eq!(read_behind_legacy(result::stream::StreamKind::Default)?, 4);
    assert_eq!(
        read_behind_legacy(result::stream::StreamKind::NonBlocking)?,
        3
    );
    Ok(())
}

#[test]
fn an_event_recorded_anew_has_no_time_until_then() -> Result<(), DriverError> {
    let mut pair = Pair::new(Ordering::Lazy)?;
    let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let (start, end) = (
        pair.producer.record_event(timed)?,
        pair.producer.record_event(timed)?,
    );
    let first = pair.producer.record_event(None)?;
    pair.produce()?;
    end.record(&pair.producer)?;
    first.synchronize()?;
    // SAFETY: both events are alive.
    let elapsed = || unsafe { result::event::elapsed(start.cu_event(), end.cu_event()) };
    assert_eq!(
        elapsed(),
        Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY))
    );
    end.synchronize()?;
    assert!(elapsed()? > 0.0);
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
    pair.produce()?;
    // SAFETY: a live stream.
    let query = || unsafe { sys::cuStreamQuery(pair.producer.cu_stream()) };
    let codes = [query(), query()];
    assert_eq!(
        codes,
        [
            sys::CUresult::CUDA_ERROR_NOT_READY,
            sys::CUresult::CUDA_SUCCESS
        ]
    );
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
