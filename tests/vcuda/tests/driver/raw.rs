//! Functions that cudarc's safe layer has no use for, called as C programs call them.

use crate::{kernels, machine};
use cudarc::driver::{CudaContext, CudaStream, DevicePtr, DriverError, result, sys};
use std::{ffi::c_void, sync::Arc};
use sys::CUresult::{self, CUDA_SUCCESS as OK};

/// A device, a stream and 64 zero bytes.
fn bench() -> Result<(Arc<CudaStream>, cudarc::driver::CudaSlice<u8>), DriverError> {
    let stream = CudaContext::new(0)?.default_stream();
    let buffer = stream.alloc_zeros::<u8>(64)?;
    Ok((stream, buffer))
}

#[test]
fn fills_of_every_width() -> Result<(), DriverError> {
    let _vcuda = machine("sm_90");
    let (stream, buffer) = bench()?;
    let (address, _guard) = buffer.device_ptr(&stream);
    // SAFETY: in bounds; the misaligned one is refused.
    unsafe {
        assert_eq!(sys::cuMemsetD8_v2(address, 1, 2), OK);
        assert_eq!(
            sys::cuMemsetD16Async(address + 2, 0x0203, 2, stream.cu_stream()),
            OK
        );
        assert_eq!(sys::cuMemsetD32_v2(address + 8, 0x0405_0607, 1), OK);
        assert_eq!(
            sys::cuMemsetD32_v2(address + 2, 0, 1),
            CUresult::CUDA_ERROR_INVALID_VALUE
        );
        assert_eq!(
            sys::cuMemsetD8_v2(address + 60, 0, 5),
            CUresult::CUDA_ERROR_INVALID_VALUE
        );
    }
    let bytes = stream.clone_dtoh(&buffer)?;
    assert_eq!(bytes[..13], [1, 1, 3, 2, 3, 2, 0, 0, 7, 6, 5, 4, 0]);
    Ok(())
}

#[test]
fn copies_find_their_direction() -> Result<(), DriverError> {
    let vcuda = machine("sm_90");
    let (stream, buffer) = bench()?;
    let (address, _guard) = buffer.device_ptr(&stream);
    let source = [9u8; 8];
    let mut destination = [0u8; 8];
    let host = |bytes: &[u8]| bytes.as_ptr().addr() as u64;
    // SAFETY: in bounds; host to host is refused.
    unsafe {
        assert_eq!(sys::cuMemcpy(address, host(&source), 8), OK);
        assert_eq!(
            sys::cuMemcpyAsync(address + 8, address, 8, stream.cu_stream()),
            OK
        );
        assert_eq!(
            sys::cuMemcpy(destination.as_mut_ptr().addr() as u64, address + 8, 8),
            OK
        );
        let between = sys::cuMemcpy(destination.as_mut_ptr().addr() as u64, host(&source), 8);
        assert_eq!(between, CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    assert_eq!(destination, source);
    let counters = vcuda.counters();
    let copies = [
        counters.copies_to_device,
        counters.copies_within_device,
        counters.copies_to_host,
    ];
    assert_eq!(copies, [1; 3]);
    Ok(())
}

#[test]
fn pointers_have_ranges_and_attributes() -> Result<(), DriverError> {
    use sys::CUpointer_attribute_enum as Attribute;
    let _vcuda = machine("sm_90");
    let (stream, buffer) = bench()?;
    let (address, _guard) = buffer.device_ptr(&stream);
    let (mut base, mut bytes) = (0u64, 0usize);
    // SAFETY: the answers have the widths that the attributes have.
    unsafe {
        assert_eq!(
            sys::cuMemGetAddressRange_v2(&mut base, &mut bytes, address + 63),
            OK
        );
        assert_eq!((base, bytes), (address, 64));
        let outside = sys::cuMemGetAddressRange_v2(&mut base, &mut bytes, address + 64);
        assert_eq!(outside, CUresult::CUDA_ERROR_NOT_FOUND);

        let mut wanted = [
            Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
            Attribute::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR,
            Attribute::CU_POINTER_ATTRIBUTE_RANGE_SIZE,
            Attribute::CU_POINTER_ATTRIBUTE_CONTEXT,
        ];
        let mut ask = |pointer: u64| {
            let (mut kind, mut start, mut size, mut context) = (9u32, 9u64, 9usize, 9usize);
            let mut places: [*mut c_void; 4] = [
                (&raw mut kind).cast(),
                (&raw mut start).cast(),
                (&raw mut size).cast(),
                (&raw mut context).cast(),
            ];
            let (attributes, places) = (wanted.as_mut_ptr(), places.as_mut_ptr());
            assert_eq!(
                sys::cuPointerGetAttributes(4, attributes, places, pointer),
                OK
            );
            (kind, start, size, context)
        };
        let context = stream.context().cu_ctx().addr();
        assert_eq!(ask(address + 5), (2, address, 64, context));
        assert_eq!(
            ask((&raw const bytes).addr() as u64),
            (0, 0, 0, 0),
            "unknown to the driver"
        );
    }
    Ok(())
}

#[test]
fn registered_memory_counts_as_pinned() -> Result<(), DriverError> {
    let vcuda = machine("sm_90");
    let (stream, buffer) = bench()?;
    let (address, _guard) = buffer.device_ptr(&stream);
    vcuda.set_ordering(vcuda::client::Ordering::Lazy);
    let mut own = vec![1u8; 64];
    let pointer: *mut c_void = own.as_mut_ptr().cast();
    // SAFETY: `own` outlives everything; the copy reads it when the stream is waited for.
    unsafe {
        assert_eq!(sys::cuMemHostRegister_v2(pointer, 64, 0), OK);
        let again = sys::cuMemHostRegister_v2(pointer.byte_add(32), 64, 0);
        assert_eq!(again, CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
        let copy = sys::cuMemcpyHtoDAsync_v2(address, pointer, 64, stream.cu_stream());
        assert_eq!(copy, OK);
        pointer.cast::<u8>().write(2);
        stream.synchronize()?;
        assert_eq!(sys::cuMemHostUnregister(pointer), OK);
        let again = sys::cuMemHostUnregister(pointer);
        assert_eq!(again, CUresult::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
    }
    assert_eq!(stream.clone_dtoh(&buffer)?[..2], [2, 1]);
    Ok(())
}

#[test]
fn the_compiler_log_is_handed_over() -> Result<(), DriverError> {
    let _vcuda = machine("sm_75");
    let (_stream, _buffer) = bench()?;
    let ptx = std::ffi::CString::new(kernels::ADD.replace("sm_75", "sm_90")).expect("no zero byte");
    let mut log = [1u8; 40];
    let mut options = [
        sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
        sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
    ];
    let mut values: [*mut c_void; 2] = [
        log.as_mut_ptr().cast(),
        std::ptr::without_provenance_mut(log.len()),
    ];
    let mut module = std::ptr::null_mut();
    // SAFETY: the buffer is as long as said.
    let result = unsafe {
        let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
        sys::cuModuleLoadDataEx(&mut module, ptx.as_ptr().cast(), 2, options, values)
    };
    assert_eq!(result, CUresult::CUDA_ERROR_INVALID_PTX);
    assert_eq!(
        log[..39],
        *b"PTX for sm_90 does not run on sm_75\0\x01\x01\x01"
    );
    Ok(())
}

#[test]
fn modules_load_from_files() -> Result<(), DriverError> {
    let _vcuda = machine("sm_90");
    let (_stream, _buffer) = bench()?;
    let path = std::env::temp_dir().join(format!("vcuda-{}.ptx", std::process::id()));
    let load = || {
        let path = std::ffi::CString::new(path.to_str().expect("UTF-8")).expect("no zero byte");
        result::module::load(path)
    };
    assert_eq!(
        load(),
        Err(DriverError(CUresult::CUDA_ERROR_FILE_NOT_FOUND))
    );
    std::fs::write(&path, kernels::ADD).expect("a writable directory for temporary files");
    let module = load();
    std::fs::remove_file(&path).expect("it was just written");
    // SAFETY: loaded, and unloaded once.
    unsafe {
        let module = module?;
        let function = result::module::get_function(module, c"add".into())?;
        assert_eq!(
            result::module::get_function(module, c"add".into())?,
            function
        );
        result::module::unload(module)?;
        let gone = result::module::unload(module);
        assert_eq!(gone, Err(DriverError(CUresult::CUDA_ERROR_INVALID_HANDLE)));
        let mut value = 0;
        let gone = sys::cuFuncGetAttribute(
            &mut value,
            sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS,
            function,
        );
        assert_eq!(gone, CUresult::CUDA_ERROR_INVALID_HANDLE);
    }
    Ok(())
}

#[test]
fn streams_tell_about_themselves() -> Result<(), DriverError> {
    let _vcuda = machine("sm_90");
    let (legacy, _buffer) = bench()?;
    let context = legacy.context().clone();
    let stream = context.new_stream_with_priority(-3)?;
    let (mut flags, mut priority, mut owner) = (9, 9, std::ptr::null_mut());
    let (mut least, mut greatest, mut id, mut other) = (9, 9, 0, 0);
    // SAFETY: valid pointers.
    unsafe {
        assert_eq!(sys::cuStreamGetFlags(stream.cu_stream(), &mut flags), OK);
        assert_eq!(
            sys::cuStreamGetPriority(stream.cu_stream(), &mut priority),
            OK
        );
        assert_eq!(sys::cuStreamGetCtx(stream.cu_stream(), &mut owner), OK);
        assert_eq!(
            sys::cuCtxGetStreamPriorityRange(&mut least, &mut greatest),
            OK
        );
        assert_eq!(sys::cuStreamGetId(stream.cu_stream(), &mut id), OK);
        assert_eq!(sys::cuStreamGetId(legacy.cu_stream(), &mut other), OK);
        assert_eq!(sys::cuStreamQuery(stream.cu_stream()), OK);
    }
    assert_eq!((flags, priority, owner), (1, -3, context.cu_ctx()));
    assert_eq!((least, greatest), (0, -5));
    assert_ne!(id, other);
    Ok(())
}

#[test]
fn per_thread_streams_belong_to_their_thread() -> Result<(), DriverError> {
    let vcuda = machine("sm_90");
    let context = CudaContext::new(0)?;
    let id = |stream: &CudaStream| {
        let mut id = 0;
        // SAFETY: a valid pointer; the context is bound before.
        assert_eq!(
            unsafe { sys::cuStreamGetId(stream.cu_stream(), &mut id) },
            OK
        );
        id
    };
    let stream = context.per_thread_stream();
    assert_ne!(id(&stream), id(&context.default_stream()));
    let elsewhere = std::thread::scope(|scope| {
        let there = scope.spawn(|| context.bind_to_thread().map(|()| id(&stream)));
        there.join().expect("no panic")
    })?;
    assert_ne!(id(&stream), elsewhere);
    assert_eq!(
        vcuda.usage().objects["streams"],
        0,
        "default streams are not the program's"
    );
    Ok(())
}

#[test]
fn graphs_count_their_nodes_and_captures_have_ids() -> Result<(), DriverError> {
    let _vcuda = machine("sm_90");
    let (legacy, buffer) = bench()?;
    let (address, _guard) = buffer.device_ptr(&legacy);
    let stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
    let (mut status, mut id, mut nodes) = (
        sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE,
        0,
        0,
    );
    use std::ptr::null_mut;
    // SAFETY: valid arguments; the stream is destroyed last.
    unsafe {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        result::stream::begin_capture(stream, mode)?;
        result::memset_d8_async(address, 1, 64, stream)?;
        result::memset_d8_async(address, 2, 32, stream)?;
        let info = sys::cuStreamGetCaptureInfo_v2(
            stream,
            &mut status,
            &mut id,
            null_mut(),
            null_mut(),
            null_mut(),
        );
        assert_eq!(info, OK);
        assert_eq!(
            status,
            sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE
        );
        assert_ne!(id, 0);
        let graph = result::stream::end_capture(stream)?;
        assert_eq!(sys::cuGraphGetNodes(graph, null_mut(), &mut nodes), OK);
        assert_eq!(nodes, 2);

        // A graph launched into a capture becomes a node of the new graph.
        let inner = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0))?;
        result::stream::begin_capture(stream, mode)?;
        result::graph::launch(inner, stream)?;
        result::memset_d8_async(address, 3, 16, stream)?;
        let outer = result::stream::end_capture(stream)?;
        let both = result::graph::instantiate(outer, sys::CUgraphInstantiate_flags(0))?;
        for graph in [graph, outer] {
            result::graph::destroy(graph)?;
        }
        result::graph::launch(both, stream)?;
        result::stream::synchronize(stream)?;
        for executable in [inner, both] {
            result::graph::exec_destroy(executable)?;
        }
        result::stream::destroy(stream)?;
    }
    let bytes = legacy.clone_dtoh(&buffer)?;
    assert_eq!([bytes[0], bytes[16], bytes[32]], [3, 2, 1]);
    Ok(())
}

#[test]
fn what_is_not_modelled_says_so() -> Result<(), DriverError> {
    let vcuda = machine("sm_90");
    let (_stream, _buffer) = bench()?;
    let mut address = 0;
    // SAFETY: refused.
    let managed = unsafe { sys::cuMemAllocManaged(&mut address, 64, 1) };
    assert_eq!(managed, CUresult::CUDA_ERROR_NOT_SUPPORTED);
    assert_eq!(vcuda.message(), "cuMemAllocManaged is not modelled");
    Ok(())
}

#[test]
fn codes_have_names_and_texts() {
    let _vcuda = machine("");
    let error = DriverError(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    let name = error.error_name().expect("known").to_str().expect("ASCII");
    assert_eq!(name, "CUDA_ERROR_ILLEGAL_ADDRESS");
    assert!(
        error
            .error_string()
            .expect("known")
            .to_str()
            .expect("ASCII")
            .contains("illegal memory")
    );
    assert!(
        DriverError(CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE)
            .error_name()
            .is_err()
    );
}
