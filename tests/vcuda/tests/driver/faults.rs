//! Failures, real and ordered.

use crate::{
    code,
    kernels::{self, Adder},
    machine,
};
use cudarc::driver::{CudaContext, DriverError, sys::CUresult};
use vcuda::{Code, client::Ordering};

#[test]
fn a_kernel_out_of_bounds_spoils_the_context_until_a_reset() -> Result<(), DriverError> {
    let vcuda = machine("sm_90");
    {
        let mut short = Adder::new(65, 64)?;
        let stream = short.stream.clone();
        assert_eq!(
            code(short.add()),
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
            code(stream.context().synchronize()),
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
    let (mut short, mut long) = (Adder::new(65, 64)?, Adder::new(65, 65)?);
    vcuda.set_ordering(Ordering::Lazy);
    short.add()?;
    long.add()?;
    assert_eq!(
        code(short.stream.synchronize()),
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
    let mut adder = Adder::new(8, 8)?;
    let stream = adder.stream.clone();
    vcuda.fail_launch(2, Code::LaunchOutOfResources);
    let mut launch = || code(adder.add());
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
    let other = CudaContext::new(1)?.default_stream();
    let mut adder = Adder::new(8, 8)?;
    vcuda.lose_device(0, Code::EccUncorrectable);
    let lost = CUresult::CUDA_ERROR_ECC_UNCORRECTABLE;
    assert_eq!(code(adder.add()), lost);
    assert_eq!(code(adder.stream.synchronize()), lost);
    assert_eq!(code(adder.stream.clone_dtoh(&adder.out)), lost);
    assert_eq!(code(CudaContext::new(0)), lost);
    drop(adder);
    other.context().check_err()?;
    assert_eq!(
        other.clone_dtoh(&other.clone_htod(&[3u8])?)?,
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
