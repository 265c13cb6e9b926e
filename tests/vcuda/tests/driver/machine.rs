//! Which machine the driver claims to be.

use crate::{
    code,
    kernels::{self, Module},
    machine,
};
use cudarc::driver::{
    CudaContext, DriverError, result,
    sys::{self, CUdevice_attribute, CUresult},
};
use std::{env, process::Command};

#[test]
fn a_machine_without_a_gpu_has_no_device() {
    let vcuda = machine("");
    // SAFETY: opens the library that is installed.
    assert!(unsafe { cudarc::driver::sys::is_culib_present() });
    assert_eq!(code(CudaContext::new(0)), CUresult::CUDA_ERROR_NO_DEVICE);
    assert_eq!(
        code(CudaContext::device_count()),
        CUresult::CUDA_ERROR_NO_DEVICE
    );
    vcuda.set_devices("sm_80");
    assert_eq!(CudaContext::device_count().unwrap(), 1);
}

#[test]
fn devices_are_what_was_chosen() -> Result<(), DriverError> {
    let _vcuda = machine("sm_75, sm_90, sm_120");
    assert_eq!(CudaContext::device_count()?, 3);
    let expected = [((7, 5), 64, 0), ((9, 0), 227, 1), ((12, 0), 99, 1)];
    for (ordinal, (capability, kib, clusters)) in expected.into_iter().enumerate() {
        let context = CudaContext::new(ordinal)?;
        assert_eq!(context.compute_capability()?, capability);
        let optin = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        assert_eq!(context.attribute(optin)?, kib << 10);
        let cluster = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH;
        assert_eq!(context.attribute(cluster)?, clusters);
        assert!(context.has_async_alloc());
        assert!(!context.name()?.is_empty());
        let (free, total) = context.mem_get_info()?;
        assert_eq!((free, total), (context.total_mem()?, context.total_mem()?));
    }
    assert_eq!(
        code(CudaContext::new(3)),
        CUresult::CUDA_ERROR_INVALID_DEVICE
    );
    assert_ne!(
        CudaContext::new(0)?.uuid()?.bytes,
        CudaContext::new(1)?.uuid()?.bytes
    );
    Ok(())
}

#[test]
fn a_child_process_is_given_the_library() {
    let library = vcuda::client::library_path().unwrap_or_else(|error| panic!("{error}"));
    let child = Command::new(env::current_exe().expect("this program"))
        .args(["--exact", "machine::the_child", "--nocapture"])
        .env("LD_PRELOAD", library)
        .env("VCUDA_DEVICES", "sm_75,sm_89")
        .output()
        .expect("this program runs");
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(text.contains("2 devices, the last (8, 9)"), "{text}");
}

/// Does nothing unless the test above runs it.
#[test]
fn the_child() -> Result<(), DriverError> {
    if env::var_os("VCUDA_DEVICES").is_none() {
        return Ok(());
    }
    let count = CudaContext::device_count()?;
    let last = CudaContext::new(count as usize - 1)?;
    println!("{count} devices, the last {:?}", last.compute_capability()?);
    Ok(())
}

#[test]
fn a_thread_does_not_wait_for_itself() {
    use vcuda::client::{InstallError, install};
    let vcuda = machine("sm_90");
    assert!(matches!(install("sm_80"), Err(InstallError::Nested)));
    drop(vcuda);
    assert!(matches!(
        install("sm_81"),
        Err(InstallError::UnknownModel { .. })
    ));
    assert!(install("sm_80").is_ok());
}

#[test]
fn unknown_models_are_refused() {
    let vcuda = machine("sm_90");
    let refused =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| vcuda.set_devices("sm_91")));
    assert!(refused.is_err());
    assert_eq!(
        code(CudaContext::device_count()),
        CUresult::CUDA_SUCCESS,
        "the machine is unchanged"
    );
}

#[test]
fn primary_contexts_are_counted_per_thread_and_device() -> Result<(), DriverError> {
    let vcuda = machine("sm_90,sm_80");
    let first = CudaContext::new(0)?;
    let again = CudaContext::new(0)?;
    let other = CudaContext::new(1)?;
    assert_eq!(first.cu_ctx(), again.cu_ctx());
    assert_ne!(first.cu_ctx(), other.cu_ctx());
    first.bind_to_thread()?;
    assert_eq!(result::ctx::get_current()?, Some(first.cu_ctx()));
    std::thread::scope(|scope| {
        let none = || matches!(result::ctx::get_current(), Ok(None));
        assert!(
            scope.spawn(none).join().expect("no panic"),
            "a new thread has no context"
        );
    });
    drop(first);
    assert_eq!(vcuda.usage().objects["contexts"], 2, "retained twice");
    drop((again, other));
    assert_eq!(vcuda.usage().objects["contexts"], 0);
    Ok(())
}

#[test]
fn a_context_of_its_own_and_two_devices_do_not_mix() -> Result<(), DriverError> {
    let vcuda = machine("sm_90,sm_90");
    let contexts = [CudaContext::new(0)?, CudaContext::new(1)?];
    let own = CudaContext::new_non_primary(0, 0)?;
    assert_ne!(own.cu_ctx(), contexts[0].cu_ctx());
    drop(own);
    let streams = [contexts[0].default_stream(), contexts[1].default_stream()];
    for (ordinal, context) in contexts.iter().enumerate() {
        context.bind_to_thread()?;
        let mut device = -1;
        // SAFETY: a valid pointer.
        unsafe { sys::cuCtxGetDevice(&mut device) }.result()?;
        assert_eq!(device, ordinal as i32);
    }
    let invalid = CUresult::CUDA_ERROR_INVALID_HANDLE;
    let kernel = kernels::bounded_kernel(&contexts[0])?;
    // SAFETY: the kernel takes no arguments.
    let launched = unsafe { kernel.launch(&streams[1], kernels::shape(1, 1), &mut []) };
    assert_eq!(
        code(launched),
        invalid,
        "a kernel of one context on a stream of another"
    );
    let event = contexts[0].new_event(None)?;
    contexts[1].bind_to_thread()?;
    // SAFETY: both are alive; the default stream is the bound context's.
    let recorded = unsafe { result::event::record(event.cu_event(), streams[1].cu_stream()) };
    assert_eq!(code(recorded), invalid, "an event likewise");
    let here = streams[0].clone_htod(&[1f32; 8])?;
    let there = streams[1].clone_dtod(&here)?;
    assert_eq!(streams[1].clone_dtoh(&there)?, [1.0; 8]);

    let kernel = kernels::add_kernel(&contexts[0])?;
    let mut out = streams[0].alloc_zeros::<f32>(8)?;
    let result = kernels::add(&streams[0], &kernel, &mut out, &there, 1.0);
    assert_eq!(code(result), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(
        vcuda.message().contains("belongs to another device"),
        "{}",
        vcuda.message()
    );
    Ok(())
}

#[test]
fn modules_are_refused_as_a_driver_does() -> Result<(), DriverError> {
    let vcuda = machine("sm_80");
    let context = CudaContext::new(0)?;
    let load = |ptx: &str| code(Module::load(&context, ptx));
    assert_eq!(load(kernels::ADD), CUresult::CUDA_SUCCESS);
    let newer = kernels::ADD.replace("sm_75", "sm_90");
    assert_eq!(load(&newer), CUresult::CUDA_ERROR_INVALID_PTX);
    assert!(
        vcuda.message().contains("sm_90 does not run on sm_80"),
        "{}",
        vcuda.message()
    );
    assert_eq!(
        load(&kernels::ADD.replace("add.f32", "sub.nonsense")),
        CUresult::CUDA_ERROR_INVALID_PTX
    );
    assert_eq!(load("not PTX"), CUresult::CUDA_ERROR_INVALID_PTX);

    vcuda.set_driver_version(12040);
    assert_eq!(
        load(&kernels::ADD.replace("8.0", "8.4")),
        CUresult::CUDA_SUCCESS
    );
    assert_eq!(
        load(&kernels::ADD.replace("8.0", "8.5")),
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
    );
    let cubin = "\x7fELF\x02\x01\x01 machine code";
    assert_eq!(load(cubin), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);

    let module = Module::load(&context, kernels::ADD)?;
    assert_eq!(
        code(module.kernel("subtract")),
        CUresult::CUDA_ERROR_NOT_FOUND
    );
    assert!(vcuda.message().contains("`subtract`"));
    Ok(())
}

#[test]
fn memory_is_as_large_as_said() -> Result<(), DriverError> {
    let vcuda = machine("sm_90");
    vcuda.set_memory_limit(0, 1000);
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    let first = stream.alloc_zeros::<u8>(600)?;
    assert_eq!(context.mem_get_info()?.0, 400);
    assert_eq!(
        code(stream.alloc_zeros::<u8>(401)),
        CUresult::CUDA_ERROR_OUT_OF_MEMORY
    );
    assert!(
        vcuda.message().contains("401 bytes on top of 600"),
        "{}",
        vcuda.message()
    );
    let second = stream.alloc_zeros::<u8>(400)?;
    drop(first);
    assert_eq!(context.mem_get_info()?.0, 600);
    drop(second);
    let third = stream.alloc_zeros::<u8>(600)?;
    vcuda.set_ordering(vcuda::client::Ordering::Lazy);
    drop(third);
    stream.alloc_zeros::<u8>(600)?;
    vcuda.set_memory_limit(0, u64::MAX);
    // SAFETY: never used.
    let huge = unsafe { stream.alloc::<u8>(64 << 30) };
    assert_eq!(
        code(huge),
        CUresult::CUDA_ERROR_OUT_OF_MEMORY,
        "the stand-in's own ceiling"
    );
    Ok(())
}
