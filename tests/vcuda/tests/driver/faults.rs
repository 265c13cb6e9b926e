//! Failures, real and ordered.

use crate::{code, kernels, machine};
use cudarc::driver::{CudaContext, DriverError, sys::CUresult};
use vcuda::{Code, client::Ordering};

#[test]
fn a_kernel_out_of_bounds_spoils_the_context_until_a_reset() -> Result<(), DriverError> {
    let vcuda = machine("sm_90");
    {
        let context = CudaContext::new(0)?;
        let stream = context.default_stream();
        let kernel = kernels::add_kernel(&context)?;
        let input = stream.clone_htod(&[1f32; 65])?;
        let mut short = stream.alloc_zeros::<f32>(64)?;
        let result = kernels::add(&stream, &kernel, &mut short, &input, 1.0);
        assert_eq!(
            code(result),
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
            "eager: the launch itself says it"
        );
        assert!(
            vcuda.message().contains("256-byte allocation #2"),
            "{}",
            vcuda.message()
        );
        let later = [
            code(stream.synchronize()),
            code(stream.alloc_zeros::<u8>(1)),
            code(context.synchronize()),
        ];
        assert_eq!(later, [CUresult::CUDA_ERROR_ILLEGAL_ADDRESS; 3], "sticky");
    }
    vcuda.reset();
    let context = CudaContext::new(0)?;
    context.default_stream().alloc_zeros::<u8>(1)?;
    Ok(())
}

#[test]
fn a_lazy_fault_shows_when_the_host_waits() -> Result<(), DriverError> {
    let vcuda = machine("sm_90");
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    let kernel = kernels::add_kernel(&context)?;
    let input = stream.clone_htod(&[1f32; 65])?;
    let mut short = stream.alloc_zeros::<f32>(64)?;
    let mut long = stream.alloc_zeros::<f32>(65)?;
    vcuda.set_ordering(Ordering::Lazy);
    kernels::add(&stream, &kernel, &mut short, &input, 1.0)?;
    kernels::add(&stream, &kernel, &mut long, &input, 1.0)?;
    assert_eq!(
        code(stream.synchronize()),
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
    );
    assert_eq!(
        vcuda.counters().kernels_run,
        0,
        "nothing queued behind a fault runs"
    );
    Ok(())
}

#[test]
fn races_are_faults_unless_the_checks_are_off() -> Result<(), DriverError> {
    let vcuda = machine("sm_90");
    let run = || -> Result<(), DriverError> {
        let context = CudaContext::new(0)?;
        let kernel = kernels::Module::load(&context, kernels::RACE)?.kernel("race")?;
        // SAFETY: the race is the point.
        unsafe { kernel.launch(&context.default_stream(), kernels::shape(1, 64), &mut []) }
    };
    assert_eq!(code(run()), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    assert!(vcuda.message().contains("race"), "{}", vcuda.message());
    vcuda.reset();
    vcuda.set_race_checks(false);
    run()
}

#[test]
fn the_kth_allocation_fails_once() -> Result<(), DriverError> {
    let vcuda = machine("sm_90");
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    vcuda.fail_allocation(2);
    let allocate = || code(stream.alloc_zeros::<u8>(10));
    let out_of_memory = CUresult::CUDA_ERROR_OUT_OF_MEMORY;
    assert_eq!(
        [allocate(), allocate(), allocate()],
        [
            CUresult::CUDA_SUCCESS,
            out_of_memory,
            CUresult::CUDA_SUCCESS
        ]
    );
    assert_eq!(
        (
            vcuda.usage().allocations,
            vcuda.counters().device_allocations
        ),
        (0, 3)
    );
    Ok(())
}

#[test]
fn the_kth_launch_fails_as_ordered() -> Result<(), DriverError> {
    let vcuda = machine("sm_90");
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    let kernel = kernels::add_kernel(&context)?;
    let input = stream.clone_htod(&[1f32; 8])?;
    let mut out = stream.alloc_zeros::<f32>(8)?;
    vcuda.fail_launch(2, Code::LaunchOutOfResources);
    let mut launch = || code(kernels::add(&stream, &kernel, &mut out, &input, 1.0));
    let refused = CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    assert_eq!(
        [launch(), launch(), launch()],
        [CUresult::CUDA_SUCCESS, refused, CUresult::CUDA_SUCCESS]
    );

    vcuda.set_ordering(Ordering::Lazy);
    vcuda.fail_launch(1, Code::LaunchFailed);
    assert_eq!(
        launch(),
        CUresult::CUDA_SUCCESS,
        "the kernel fails, not the call"
    );
    let failed = CUresult::CUDA_ERROR_LAUNCH_FAILED;
    assert_eq!([code(stream.synchronize()), launch()], [failed, failed]);
    assert_eq!(vcuda.launches().len(), 2);
    Ok(())
}

#[test]
fn any_call_can_be_made_to_fail() -> Result<(), DriverError> {
    let vcuda = machine("sm_90");
    let context = CudaContext::new(0)?;
    vcuda.fail_call("cuEventCreate", 1, Code::OutOfMemory);
    vcuda.fail_call("cuModuleLoadData", 1, Code::UnsupportedPtxVersion);
    assert_eq!(
        code(context.new_event(None)),
        CUresult::CUDA_ERROR_OUT_OF_MEMORY
    );
    assert_eq!(
        code(kernels::add_kernel(&context)),
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
    );
    context.new_event(None)?;
    kernels::add_kernel(&context)?;
    vcuda.fail_call("cuInit", 1, Code::SystemNotReady);
    assert_eq!(
        code(CudaContext::new(0)),
        CUresult::CUDA_ERROR_SYSTEM_NOT_READY
    );
    Ok(())
}

#[test]
fn a_lost_device_stays_lost() -> Result<(), DriverError> {
    let vcuda = machine("sm_90,sm_90");
    let contexts = [CudaContext::new(0)?, CudaContext::new(1)?];
    let streams = [contexts[0].default_stream(), contexts[1].default_stream()];
    let kernel = kernels::add_kernel(&contexts[0])?;
    let input = streams[0].clone_htod(&[1f32; 8])?;
    let mut out = streams[0].alloc_zeros::<f32>(8)?;
    vcuda.lose_device(0, Code::EccUncorrectable);
    let lost = CUresult::CUDA_ERROR_ECC_UNCORRECTABLE;
    assert_eq!(
        code(kernels::add(&streams[0], &kernel, &mut out, &input, 1.0)),
        lost
    );
    assert_eq!(code(streams[0].synchronize()), lost);
    assert_eq!(code(streams[0].clone_dtoh(&out)), lost);
    assert_eq!(code(CudaContext::new(0)), lost);
    drop((input, out));
    contexts[1].check_err()?;
    assert_eq!(
        streams[1].clone_dtoh(&streams[1].clone_htod(&[3u8])?)?,
        [3],
        "the other device works on"
    );
    Ok(())
}

#[test]
fn handles_from_before_a_reset_mean_nothing_after_it() -> Result<(), DriverError> {
    use cudarc::driver::result::stream::{StreamKind, create, synchronize};
    let vcuda = machine("sm_90");
    let before = CudaContext::new(0)?;
    let old = create(StreamKind::NonBlocking)?;
    vcuda.reset();
    let after = CudaContext::new(0)?;
    assert_ne!(before.cu_ctx(), after.cu_ctx());
    let new = create(StreamKind::NonBlocking)?;
    // SAFETY: the stand-in refuses the handle that is no more.
    unsafe {
        assert_eq!(code(synchronize(old)), CUresult::CUDA_ERROR_INVALID_HANDLE);
        synchronize(new)
    }
}

#[test]
fn destroyed_things_are_refused() -> Result<(), DriverError> {
    use cudarc::driver::result;
    let _vcuda = machine("sm_90");
    let context = CudaContext::new(0)?;
    let stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
    // SAFETY: using what was destroyed is the point; the stand-in never reuses a handle or an address.
    unsafe {
        result::stream::destroy(stream)?;
        assert_eq!(
            code(result::stream::synchronize(stream)),
            CUresult::CUDA_ERROR_INVALID_HANDLE
        );
        let address = result::malloc_sync(16)?;
        result::free_sync(address)?;
        assert_eq!(
            code(result::free_sync(address)),
            CUresult::CUDA_ERROR_INVALID_VALUE
        );
        let buffer = result::malloc_sync(16)?;
        let inside = result::free_async(buffer + 4, std::ptr::null_mut());
        assert_eq!(code(inside), CUresult::CUDA_ERROR_INVALID_VALUE);
        result::free_async(buffer, std::ptr::null_mut())?;
        let freed = result::memset_d8_sync(address, 0, 16);
        assert_eq!(code(freed), CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    drop(context);
    Ok(())
}
