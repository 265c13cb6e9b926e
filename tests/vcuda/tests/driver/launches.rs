//! What a launch must obey.

use crate::{
    code,
    kernels::{self, Kernel, pointer},
    machine,
};
use cudarc::driver::{
    CudaContext, CudaStream, DriverError, LaunchConfig,
    sys::{self, CUfunction_attribute, CUresult},
};
use std::ffi::c_void;

fn launch(stream: &CudaStream, kernel: &Kernel, shape: LaunchConfig) -> CUresult {
    // SAFETY: the kernel takes no arguments.
    code(unsafe { kernel.launch(stream, shape, &mut []) })
}

#[test]
fn extents_have_limits() -> Result<(), DriverError> {
    let vcuda = machine("sm_90");
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    let bounded = kernels::bounded_kernel(&context)?;
    let accepts = |grid_dim, block_dim| {
        let shape = LaunchConfig {
            grid_dim,
            block_dim,
            shared_mem_bytes: 0,
        };
        launch(&stream, &bounded, shape) == CUresult::CUDA_SUCCESS
    };
    assert!(accepts((1, 1, 1), (64, 1, 1)));
    assert!(accepts((3, 2, 1), (4, 4, 4)));
    assert!(!accepts((0, 1, 1), (64, 1, 1)));
    assert!(!accepts((1, 1, 1), (0, 1, 1)));
    assert!(!accepts((1, 65536, 1), (1, 1, 1)));
    assert!(!accepts((1, 1, 1), (1, 1, 65)));
    assert!(!accepts((1, 1, 1), (65, 1, 1)), "the kernel's own bound");
    assert!(
        vcuda
            .message()
            .contains("65 threads in a block, at most 64"),
        "{}",
        vcuda.message()
    );
    let add = kernels::add_kernel(&context)?;
    assert_eq!(
        add.get(CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        1024
    );
    assert_eq!(
        launch(&stream, &add, kernels::shape(1, 1025)),
        CUresult::CUDA_ERROR_INVALID_VALUE
    );
    assert_eq!(vcuda.launches().len(), 2, "refused launches do not run");
    Ok(())
}

#[test]
fn more_than_48_kib_of_shared_memory_must_be_asked_for() -> Result<(), DriverError> {
    let vcuda = machine("sm_80");
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    let kernel = kernels::bounded_kernel(&context)?;
    let with = |shared_mem_bytes| {
        launch(
            &stream,
            &kernel,
            LaunchConfig {
                shared_mem_bytes,
                ..kernels::shape(1, 32)
            },
        )
    };
    let opt_in = |bytes| {
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        code(kernel.set(attribute, bytes))
    };
    // The kernel has 1 KiB of static shared memory, which counts.
    assert_eq!(with(47 << 10), CUresult::CUDA_SUCCESS);
    assert_eq!(with((47 << 10) + 1), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert!(
        vcuda.message().contains("cuFuncSetAttribute"),
        "{}",
        vcuda.message()
    );
    assert_eq!(
        opt_in((162 << 10) + 1),
        CUresult::CUDA_ERROR_INVALID_VALUE,
        "163 KiB on sm_80"
    );
    assert_eq!(opt_in(-1), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(opt_in(162 << 10), CUresult::CUDA_SUCCESS);
    assert_eq!(with(162 << 10), CUresult::CUDA_SUCCESS);
    assert_eq!(with((162 << 10) + 1), CUresult::CUDA_ERROR_INVALID_VALUE);
    let shared = vcuda
        .launches()
        .last()
        .map(|launch| (launch.static_shared_bytes, launch.dynamic_shared_bytes));
    assert_eq!(shared, Some((1 << 10, 162 << 10)));
    // 164 KiB per multiprocessor: one block of 163 KiB, three of 48 and a little.
    assert_eq!(kernel.occupancy(32, 162 << 10)?, 1);
    assert_eq!(kernel.occupancy(32, 47 << 10)?, 3);
    assert_eq!(kernel.occupancy(65, 0)?, 0);
    Ok(())
}

/// Calls `then` with a configuration of 32 threads per block, a cluster and the cooperative flag.
fn configured<T>(
    stream: &CudaStream,
    grid: u32,
    cluster: u32,
    cooperative: bool,
    then: impl FnOnce(&sys::CUlaunchConfig) -> T,
) -> T {
    use sys::CUlaunchAttributeID::{
        CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION as CLUSTER,
        CU_LAUNCH_ATTRIBUTE_COOPERATIVE as COOPERATIVE,
    };
    let cluster_dim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 {
        x: cluster,
        y: 1,
        z: 1,
    };
    let values = [
        (
            CLUSTER,
            sys::CUlaunchAttributeValue {
                clusterDim: cluster_dim,
            },
        ),
        (
            COOPERATIVE,
            sys::CUlaunchAttributeValue {
                cooperative: cooperative.into(),
            },
        ),
    ];
    let mut attributes = values.map(|(id, value)| sys::CUlaunchAttribute {
        id,
        pad: [0; 4],
        value,
    });
    then(&sys::CUlaunchConfig {
        gridDimX: grid,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: 32,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        hStream: stream.cu_stream(),
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    })
}

/// Launches a kernel without arguments through `cuLaunchKernelEx`.
fn launch_ex(
    stream: &CudaStream,
    kernel: &Kernel,
    grid: u32,
    cluster: u32,
    cooperative: bool,
) -> CUresult {
    // SAFETY: the configuration lives for the call.
    configured(stream, grid, cluster, cooperative, |config| unsafe {
        sys::cuLaunchKernelEx(
            config,
            kernel.function,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    })
}

#[test]
fn occupancy_of_clusters_and_shared_memory() -> Result<(), DriverError> {
    let _vcuda = machine("sm_90,sm_75");
    let context = CudaContext::new(0)?;
    let kernel = kernels::bounded_kernel(&context)?;
    let stream = context.default_stream();
    let clusters = |cluster| {
        let mut number = 0;
        // SAFETY: valid pointers.
        let result = configured(&stream, cluster, cluster, false, |config| unsafe {
            sys::cuOccupancyMaxActiveClusters(&mut number, kernel.function, config)
        });
        (result, number)
    };
    // 32 blocks on each of 132 multiprocessors.
    assert_eq!(clusters(1), (CUresult::CUDA_SUCCESS, 4224));
    assert_eq!(clusters(8), (CUresult::CUDA_SUCCESS, 528));
    assert_eq!(clusters(16).0, CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE);

    let (mut size, mut bytes) = (0, 0);
    // SAFETY: valid pointers.
    let sizes = configured(&stream, 1, 1, false, |config| unsafe {
        sys::cuOccupancyMaxPotentialClusterSize(&mut size, kernel.function, config)
    });
    assert_eq!((sizes, size), (CUresult::CUDA_SUCCESS, 8));
    // SAFETY: as above. Two blocks on 228 KiB: 114 each, of which 1 is reserved and 1 static.
    let room =
        unsafe { sys::cuOccupancyAvailableDynamicSMemPerBlock(&mut bytes, kernel.function, 2, 32) };
    assert_eq!((room, bytes), (CUresult::CUDA_SUCCESS, 112 << 10));

    let old = CudaContext::new(1)?;
    let (kernel, stream) = (kernels::bounded_kernel(&old)?, old.default_stream());
    // SAFETY: as above.
    let none = configured(&stream, 1, 1, false, |config| unsafe {
        sys::cuOccupancyMaxPotentialClusterSize(&mut size, kernel.function, config)
    });
    assert_eq!(none, CUresult::CUDA_ERROR_NOT_SUPPORTED);
    Ok(())
}

#[test]
fn clusters_need_a_device_with_clusters_and_a_fitting_grid() -> Result<(), DriverError> {
    use CUresult::{CUDA_ERROR_INVALID_CLUSTER_SIZE as BAD, CUDA_SUCCESS as OK};
    let vcuda = machine("sm_80,sm_90");
    let old = CudaContext::new(0)?;
    let kernel = kernels::bounded_kernel(&old)?;
    let stream = old.default_stream();
    assert_eq!(
        launch_ex(&stream, &kernel, 4, 2, false),
        CUresult::CUDA_ERROR_INVALID_VALUE
    );
    assert!(
        vcuda.message().contains("sm_80 has no clusters"),
        "{}",
        vcuda.message()
    );
    assert_eq!(
        launch_ex(&stream, &kernel, 4, 1, false),
        OK,
        "a cluster of one block is none"
    );

    let new = CudaContext::new(1)?;
    let kernel = kernels::bounded_kernel(&new)?;
    let stream = new.default_stream();
    assert_eq!(launch_ex(&stream, &kernel, 4, 2, false), OK);
    assert_eq!(
        vcuda.launches().last().map(|launch| launch.cluster),
        Some([2, 1, 1])
    );
    assert_eq!(
        launch_ex(&stream, &kernel, 5, 2, false),
        BAD,
        "the grid is not a multiple"
    );
    assert_eq!(
        launch_ex(&stream, &kernel, 16, 16, false),
        BAD,
        "more than is portable"
    );
    let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED;
    kernel.set(attribute, 1)?;
    assert_eq!(launch_ex(&stream, &kernel, 16, 16, false), OK);
    assert_eq!(launch_ex(&stream, &kernel, 32, 32, false), BAD);
    Ok(())
}

#[test]
fn a_kernel_can_bring_its_cluster() -> Result<(), DriverError> {
    let vcuda = machine("sm_90");
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    let kernel = kernels::Module::load(&context, kernels::CLUSTERED)?.kernel("clustered")?;
    let width = CUfunction_attribute::CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH;
    assert_eq!(kernel.get(width)?, 2);
    assert_eq!(
        launch(&stream, &kernel, kernels::shape(4, 32)),
        CUresult::CUDA_SUCCESS
    );
    assert_eq!(vcuda.launches()[0].cluster, [2, 1, 1]);
    let bad = CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE;
    assert_eq!(launch(&stream, &kernel, kernels::shape(5, 32)), bad);
    assert_eq!(
        launch_ex(&stream, &kernel, 8, 4, false),
        bad,
        "another cluster than compiled"
    );
    Ok(())
}

#[test]
fn cooperative_blocks_must_fit_the_device() -> Result<(), DriverError> {
    let vcuda = machine("sm_75");
    let context = CudaContext::new(0)?;
    let kernel = kernels::bounded_kernel(&context)?;
    let stream = context.default_stream();
    assert_eq!(
        launch_ex(&stream, &kernel, 8, 1, true),
        CUresult::CUDA_SUCCESS
    );
    assert!(
        vcuda
            .launches()
            .last()
            .is_some_and(|launch| launch.cooperative)
    );
    // 40 multiprocessors with 16 blocks each.
    let too_large = CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
    assert_eq!(launch_ex(&stream, &kernel, 641, 1, true), too_large);
    assert_eq!(
        launch_ex(&stream, &kernel, 641, 1, false),
        CUresult::CUDA_SUCCESS
    );
    Ok(())
}

/// Launches the add kernel with raw argument pointers.
fn launch_raw(
    stream: &CudaStream,
    kernel: &Kernel,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> CUresult {
    // SAFETY: the wrong pointers of this test are noticed by the stand-in.
    unsafe {
        sys::cuLaunchKernel(
            kernel.function,
            1,
            1,
            1,
            32,
            1,
            1,
            0,
            stream.cu_stream(),
            params,
            extra,
        )
    }
}

#[test]
fn arguments_must_be_there() -> Result<(), DriverError> {
    use CUresult::{CUDA_ERROR_INVALID_VALUE as INVALID, CUDA_SUCCESS as OK};
    let vcuda = machine("sm_90");
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    let kernel = kernels::add_kernel(&context)?;
    let null = std::ptr::null_mut();
    assert_eq!(launch_raw(&stream, &kernel, null, null), INVALID);
    assert!(
        vcuda
            .message()
            .contains("argument 0 (`add_param_0`, 8 bytes) of 4"),
        "{}",
        vcuda.message()
    );

    let (address, count, value) = (0u64, 0u32, 1f32);
    let mut params: [*mut c_void; 4] = [
        pointer(&address),
        pointer(&address),
        pointer(&count),
        pointer(&value),
    ];
    assert_eq!(launch_raw(&stream, &kernel, params.as_mut_ptr(), null), OK);
    params[3] = null.cast();
    assert_eq!(
        launch_raw(&stream, &kernel, params.as_mut_ptr(), null),
        INVALID
    );
    assert!(
        vcuda.message().contains("argument 3"),
        "{}",
        vcuda.message()
    );

    // The same by buffer: two pointers, a count and a value are 24 bytes.
    let buffer = [0u64; 3];
    let pack = |bytes: &mut usize| {
        let (pointer, size) = (
            (&raw const buffer).cast_mut().cast(),
            (&raw mut *bytes).cast(),
        );
        let mut extra: [*mut c_void; 5] = [
            std::ptr::without_provenance_mut(1),
            pointer,
            std::ptr::without_provenance_mut(2),
            size,
            null.cast(),
        ];
        launch_raw(&stream, &kernel, null, extra.as_mut_ptr())
    };
    assert_eq!(pack(&mut 24), OK);
    assert_eq!(pack(&mut 20), INVALID, "too few bytes");
    assert!(
        vcuda.message().contains("takes 24 bytes of arguments, 20"),
        "{}",
        vcuda.message()
    );
    assert_eq!(pack(&mut 28), INVALID, "too many bytes");
    assert_eq!(vcuda.launches().len(), 2);
    Ok(())
}
