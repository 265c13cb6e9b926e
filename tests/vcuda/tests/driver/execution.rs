//! Memory, copies, kernels, events and threads, everything in order.

use crate::{
    code,
    kernels::{self, Adder},
    machine,
};
use cudarc::driver::{
    CudaContext, DevicePtr, DriverError, result,
    sys::{self, CUevent_flags, CUresult},
};
use std::thread;

#[test]
fn a_traced_launch_runs_a_sample() -> Result<(), DriverError> {
    let vcuda = machine("sm_90");
    vcuda.trace(2);
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    let kernel = kernels::add_kernel(&context)?;
    let len = 300 * 64;
    // SAFETY: f32 may hold anything.
    let (input, mut out) = unsafe { (stream.alloc::<f32>(len)?, stream.alloc::<f32>(len)?) };
    kernels::add(&stream, &kernel, &mut out, &input, 1.0)?;
    let [trace] = &vcuda.traces()[..] else {
        panic!("one trace");
    };
    assert_eq!((trace.kernel.as_str(), trace.grid), ("add", [300, 1, 1]));
    assert_eq!(trace.blocks.len(), 2);
    assert!(vcuda.launches().is_empty());
    let (got, was) = (stream.clone_dtoh(&out)?, stream.clone_dtoh(&input)?);
    // Of the blocks of the first multiprocessor, 0 and 132, and no others.
    for (block, (got, was)) in got.chunks(64).zip(was.chunks(64)).enumerate() {
        let computed = got.iter().zip(was).all(|(got, was)| *got == was + 1.0);
        assert_eq!(computed, [0, 132].contains(&block), "block {block}");
    }
    assert!(
        was.iter().all(|x| (0.0..1.0).contains(x)),
        "plausible numbers"
    );
    Ok(())
}

#[test]
fn a_kernel_computes_and_is_reported() -> Result<(), DriverError> {
    let vcuda = machine("sm_90");
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    let kernel = kernels::add_kernel(&context)?;
    let host: Vec<f32> = (0..100).map(|i| i as f32).collect();
    let input = stream.clone_htod(&host)?;
    let mut out = stream.alloc_zeros::<f32>(100)?;
    kernels::add(&stream, &kernel, &mut out, &input, 0.5)?;
    let got = stream.clone_dtoh(&out)?;
    assert!(
        got.iter().zip(&host).all(|(got, host)| *got == host + 0.5),
        "{got:?}"
    );

    let [launch] = &vcuda.launches()[..] else {
        panic!("one launch");
    };
    assert_eq!(
        (launch.kernel.as_str(), launch.arch.as_str()),
        ("add", "sm_90")
    );
    assert_eq!(
        (launch.grid, launch.block, launch.cluster),
        ([2, 1, 1], [64, 1, 1], [1, 1, 1])
    );
    assert!(launch.counts.warp_instructions > 0);
    assert!(launch.counts.lane_instructions > launch.counts.warp_instructions);
    let traffic = |buffer| {
        let (address, _guard) = DevicePtr::<f32>::device_ptr(buffer, &stream);
        let traffic = launch.traffic_at(address);
        (
            traffic.bytes,
            traffic.read.bytes,
            traffic.written.distinct_bytes,
        )
    };
    assert_eq!(
        (traffic(&input), traffic(&out)),
        ((400, 400, 0), (400, 0, 400))
    );
    // Four warps, the last of which has four threads with work: a load and a store each.
    assert_eq!((launch.class("global"), launch.class("mma")), (8, 0));
    Ok(())
}

#[test]
fn a_module_has_variables() -> Result<(), DriverError> {
    let vcuda = machine("sm_90");
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    let module = kernels::Module::load(&context, kernels::COUNT)?;
    let kernel = module.kernel("count")?;
    let (mut address, mut bytes) = (0, 0);
    // SAFETY: valid pointers; the module is loaded.
    unsafe {
        let (module, name) = (module.handle, c"counter");
        sys::cuModuleGetGlobal_v2(&mut address, &mut bytes, module, name.as_ptr()).result()?;
    }
    let variable = address;
    let value = || {
        let mut value = [0u8; 4];
        // SAFETY: in bounds.
        unsafe { result::memcpy_dtoh_sync(&mut value, variable) }?;
        Ok::<_, DriverError>(u32::from_le_bytes(value))
    };
    assert_eq!(bytes, 4);
    assert_eq!(value()?, 5, "as the text says");
    for _ in 0..2 {
        // SAFETY: the kernel takes no arguments.
        unsafe { kernel.launch(&stream, kernels::shape(1, 1), &mut []) }?;
    }
    assert_eq!(value()?, 7);

    // Unloading waits for the work that needs the variable.
    vcuda.set_ordering(vcuda::client::Ordering::Lazy);
    // SAFETY: as above.
    unsafe { kernel.launch(&stream, kernels::shape(1, 1), &mut []) }?;
    assert_eq!(vcuda.counters().kernels_run, 2);
    assert_eq!(
        vcuda.usage().allocations,
        0,
        "a variable is not the program's allocation"
    );
    // SAFETY: as above.
    let missing = unsafe {
        sys::cuModuleGetGlobal_v2(&mut address, &mut bytes, module.handle, c"other".as_ptr())
    };
    assert_eq!(missing, CUresult::CUDA_ERROR_NOT_FOUND);
    drop((kernel, module));
    assert_eq!(vcuda.counters().kernels_run, 3);
    Ok(())
}

#[test]
fn fresh_memory_is_poisoned_and_fills_fill() -> Result<(), DriverError> {
    let _vcuda = machine("sm_80");
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    // SAFETY: the test is about the contents of memory that was never set.
    let fresh = unsafe { stream.alloc::<f32>(10) }?;
    assert!(
        stream
            .clone_dtoh(&fresh)?
            .iter()
            .all(|value| value.is_nan())
    );
    let mut part = stream.clone_htod(&[7u8; 8])?;
    stream.memset_zeros(&mut part.slice_mut(2..5))?;
    assert_eq!(stream.clone_dtoh(&part)?, [7, 7, 0, 0, 0, 7, 7, 7]);
    let copy = stream.clone_dtod(&part.slice(1..6))?;
    assert_eq!(stream.clone_dtoh(&copy)?, [7, 0, 0, 0, 7]);
    Ok(())
}

#[test]
fn counters_and_usage_tell_what_was_asked_of_the_driver() -> Result<(), DriverError> {
    let vcuda = machine("sm_90");
    let mut adder = Adder::new(64, 64)?;
    let before = vcuda.counters();
    assert_eq!(
        (
            before.device_allocations,
            before.modules_loaded,
            before.fills
        ),
        (2, 1, 1)
    );
    assert_eq!((before.copies_to_device, before.launches), (1, 0));
    assert_eq!((vcuda.usage().allocations, vcuda.usage().bytes), (2, 512));

    adder.add()?;
    let after = vcuda.counters();
    assert_eq!((after.launches, after.kernels_run), (1, 1));
    assert_eq!(
        after.host_waits, before.host_waits,
        "a launch waits for nothing"
    );
    assert_eq!(after.device_allocations, before.device_allocations);
    assert_eq!(after.calls["cuLaunchKernel"], 1);

    adder.stream.synchronize()?;
    assert_eq!(vcuda.counters().host_waits, before.host_waits + 1);
    drop(adder);
    let usage = vcuda.usage();
    assert_eq!(
        (usage.allocations, usage.bytes, usage.peak_bytes),
        (0, 0, 512)
    );
    assert_eq!(vcuda.counters().device_frees, 2);
    assert!(usage.leaked.is_empty(), "{:?}", usage.leaked);
    Ok(())
}

#[test]
fn what_a_context_takes_with_it_counts_as_leaked() -> Result<(), DriverError> {
    let vcuda = machine("sm_90");
    let context = CudaContext::new(0)?;
    let stream = context.new_stream()?;
    let forgotten = stream.alloc_zeros::<u8>(1000)?;
    let module = kernels::Module::load(&context, kernels::ADD)?;
    let usage = vcuda.usage();
    assert_eq!(
        (
            usage.allocations,
            usage.objects["streams"],
            usage.objects["modules"]
        ),
        (1, 1, 1)
    );
    assert_eq!(
        usage.objects["events"], 2,
        "cudarc tracks reads and writes of the buffer"
    );
    // SAFETY: nothing uses the context afterwards; what cudarc then frees is gone, and told so.
    unsafe { result::primary_ctx::release(context.cu_device()) }?;
    let usage = vcuda.usage();
    let leaked = |kind: &str| usage.leaked.get(kind).copied();
    assert_eq!(leaked("allocations"), Some(1));
    assert_eq!(
        (leaked("streams"), leaked("events"), leaked("modules")),
        (Some(1), Some(2), Some(1))
    );
    assert_eq!((usage.allocations, usage.objects["contexts"]), (0, 0));
    drop((forgotten, module));
    Ok(())
}

#[test]
fn copies_are_bounds_checked() -> Result<(), DriverError> {
    let vcuda = machine("sm_90");
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    let buffer = stream.alloc_zeros::<u8>(16)?;
    let (address, _guard) = cudarc::driver::DevicePtr::device_ptr(&buffer, &stream);
    let mut host = [0u8; 17];
    // SAFETY: `host` has 17 bytes; the device side is what is wrong.
    let result = unsafe { result::memcpy_dtoh_sync(&mut host, address) };
    assert_eq!(code(result), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert!(
        vcuda.message().contains("overrun the 16 bytes"),
        "{}",
        vcuda.message()
    );
    // SAFETY: as above.
    let result = unsafe { result::memcpy_htod_sync(address + 16, &host[..1]) };
    assert_eq!(code(result), CUresult::CUDA_ERROR_INVALID_VALUE);
    // SAFETY: in bounds.
    unsafe { result::memcpy_dtoh_sync(&mut host[..16], address) }?;
    Ok(())
}

#[test]
fn events_time_and_query() -> Result<(), DriverError> {
    let _vcuda = machine("sm_90");
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    let timed = || context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
    let (start, end) = (timed()?, timed()?);
    assert!(start.is_complete(), "never recorded");
    assert_eq!(
        code(start.elapsed_ms(&end)),
        CUresult::CUDA_ERROR_INVALID_HANDLE
    );
    start.record(&stream)?;
    Adder::new(64, 64)?.add()?;
    end.record(&stream)?;
    assert!(start.elapsed_ms(&end)? > 0.0);
    assert!(end.elapsed_ms(&start)? < 0.0);
    // SAFETY: refused.
    let unknown = unsafe { sys::cuEventCreate(&mut std::ptr::null_mut(), 8) };
    assert_eq!(unknown, CUresult::CUDA_ERROR_INVALID_VALUE);
    let untimed = stream.record_event(None)?;
    assert_eq!(
        code(start.elapsed_ms(&untimed)),
        CUresult::CUDA_ERROR_INVALID_HANDLE
    );
    Ok(())
}

#[test]
fn pinned_memory_round_trips_and_is_recognised() -> Result<(), DriverError> {
    let vcuda = machine("sm_90,sm_90");
    let context = CudaContext::new(1)?;
    let stream = context.default_stream();
    // SAFETY: filled before it is read.
    let mut pinned = unsafe { context.alloc_pinned::<f32>(32) }?;
    assert!(
        pinned.as_slice()?.iter().all(|value| value.is_nan()),
        "poisoned"
    );
    pinned.as_mut_slice()?.fill(2.5);
    let device = stream.clone_htod(&pinned)?;
    assert_eq!(stream.clone_dtoh(&device)?, [2.5; 32]);
    assert_eq!(
        (vcuda.usage().host_ranges, vcuda.counters().host_allocations),
        (1, 1)
    );

    let attribute = |attribute, pointer: u64| {
        let mut value = 0u32;
        // SAFETY: both attributes asked for here are 32 bits wide.
        unsafe { sys::cuPointerGetAttribute((&raw mut value).cast(), attribute, pointer) }
            .result()
            .map(|()| value)
    };
    let (address, _guard) = cudarc::driver::DevicePtr::device_ptr(&device, &stream);
    let kind = sys::CUpointer_attribute_enum::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
    let ordinal = sys::CUpointer_attribute_enum::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL;
    assert_eq!(
        (attribute(kind, address + 4)?, attribute(ordinal, address)?),
        (2, 1)
    );
    assert_eq!(attribute(kind, pinned.as_ptr()?.addr() as u64)?, 1);
    let pageable = 0u8;
    let unknown = attribute(kind, (&raw const pageable).addr() as u64);
    assert_eq!(code(unknown), CUresult::CUDA_ERROR_INVALID_VALUE);
    drop(pinned);
    assert_eq!(vcuda.usage().host_ranges, 0);
    Ok(())
}

#[test]
fn threads_share_the_driver() -> Result<(), DriverError> {
    let vcuda = machine("sm_90");
    let context = CudaContext::new(0)?;
    let kernel = kernels::add_kernel(&context)?;
    thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let (context, kernel) = (context.clone(), kernel.clone());
                scope.spawn(move || -> Result<(), DriverError> {
                    let stream = context.new_stream()?;
                    let mut value = stream.clone_htod(&[worker as f32; 50])?;
                    for _ in 0..5 {
                        let mut next = stream.alloc_zeros::<f32>(50)?;
                        kernels::add(&stream, &kernel, &mut next, &value, 1.0)?;
                        value = next;
                    }
                    assert_eq!(stream.clone_dtoh(&value)?, [worker as f32 + 5.0; 50]);
                    Ok(())
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("no panic"))
    })?;
    assert_eq!((vcuda.launches().len(), vcuda.usage().allocations), (20, 0));
    Ok(())
}
