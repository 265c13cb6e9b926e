//! Stream capture and graphs.

use crate::{
    code,
    kernels::{self, Kernel},
    machine,
};
use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr, DriverError, result,
    sys::{
        CUgraphInstantiate_flags as Flags, CUresult, CUstreamCaptureMode as Mode,
        CUstreamCaptureStatus as Status,
    },
};
use std::sync::Arc;
use vcuda::client::{Ordering, Vcuda};

/// What every test here needs; event tracking of cudarc is off, since waits for events from before the
/// capture are refused.
struct Bench {
    stream: Arc<CudaStream>,
    kernel: Kernel,
    input: CudaSlice<f32>,
    out: CudaSlice<f32>,
    vcuda: Vcuda,
}

impl Bench {
    fn new() -> Result<Bench, DriverError> {
        let vcuda = machine("sm_90");
        let context = CudaContext::new(0)?;
        // SAFETY: one stream, or streams ordered by the test.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream()?;
        Ok(Bench {
            kernel: kernels::add_kernel(&context)?,
            input: stream.clone_htod(&[1f32; 64])?,
            out: stream.alloc_zeros(64)?,
            stream,
            vcuda,
        })
    }

    fn add(&mut self) -> Result<(), DriverError> {
        kernels::add(&self.stream, &self.kernel, &mut self.out, &self.input, 1.0)
    }

    fn begin(&self) -> Result<(), DriverError> {
        self.stream
            .begin_capture(Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
    }

    /// Ends the capture and says with what.
    fn end(&self) -> CUresult {
        code(self.stream.end_capture(Flags(0)))
    }
}

#[test]
fn a_capture_runs_nothing_and_replays_run_everything() -> Result<(), DriverError> {
    for ordering in [Ordering::Eager, Ordering::Lazy, Ordering::Shuffled(1)] {
        let mut bench = Bench::new()?;
        bench.vcuda.set_ordering(ordering);
        bench.stream.synchronize()?;
        assert_eq!(
            bench.stream.capture_status()?,
            Status::CU_STREAM_CAPTURE_STATUS_NONE
        );
        bench.begin()?;
        assert_eq!(
            bench.stream.capture_status()?,
            Status::CU_STREAM_CAPTURE_STATUS_ACTIVE
        );
        bench.add()?;
        let (stream, out) = (bench.stream.clone(), bench.out.as_view());
        stream.memcpy_dtod(&out, &mut bench.input)?;
        let graph = stream.end_capture(Flags(0))?.expect("a graph");
        assert_eq!(bench.vcuda.counters().kernels_run, 0);
        graph.upload()?;
        for replay in 1..=3 {
            graph.launch()?;
            assert_eq!(
                stream.clone_dtoh(&bench.input)?,
                [1.0 + replay as f32; 64],
                "{ordering:?}"
            );
        }
        let counters = bench.vcuda.counters();
        assert_eq!(
            (
                counters.launches,
                counters.graph_launches,
                counters.kernels_run
            ),
            (1, 3, 3)
        );
        assert!(
            bench
                .vcuda
                .launches()
                .iter()
                .all(|launch| launch.from_graph)
        );
        drop(graph);
        assert_eq!(bench.vcuda.usage().objects["executable_graphs"], 0);
        assert_eq!(bench.vcuda.usage().objects["graphs"], 0);
    }
    Ok(())
}

#[test]
fn another_stream_joins_by_events() -> Result<(), DriverError> {
    for ordering in [Ordering::Eager, Ordering::Lazy, Ordering::Shuffled(3)] {
        let mut bench = Bench::new()?;
        let side = bench.stream.context().new_stream()?;
        bench.stream.context().synchronize()?;
        bench.vcuda.set_ordering(ordering);
        bench.begin()?;
        bench.add()?;
        side.join(&bench.stream)?;
        assert_eq!(
            side.capture_status()?,
            Status::CU_STREAM_CAPTURE_STATUS_ACTIVE
        );
        side.memcpy_dtod(&bench.out.as_view(), &mut bench.input)?;
        bench.stream.join(&side)?;
        bench.add()?;
        let graph = bench.stream.end_capture(Flags(0))?.expect("a graph");
        assert_eq!(
            side.capture_status()?,
            Status::CU_STREAM_CAPTURE_STATUS_NONE
        );
        graph.launch()?;
        assert_eq!(
            bench.stream.clone_dtoh(&bench.out)?,
            [3.0; 64],
            "{ordering:?}"
        );
    }
    Ok(())
}

#[test]
fn a_missing_join_inside_a_graph_shows_in_lazy_order() -> Result<(), DriverError> {
    let mut bench = Bench::new()?;
    let side = bench.stream.context().new_stream()?;
    bench.stream.context().synchronize()?;
    bench.vcuda.set_ordering(Ordering::Lazy);
    bench.begin()?;
    let start = bench.stream.record_event(None)?;
    side.wait(&start)?;
    kernels::add(&side, &bench.kernel, &mut bench.out, &bench.input, 1.0)?;
    // This reads what `side` writes and waits for it only afterwards.
    let (stream, out) = (bench.stream.clone(), bench.out.as_view());
    stream.memcpy_dtod(&out, &mut bench.input)?;
    stream.join(&side)?;
    let graph = stream.end_capture(Flags(0))?.expect("a graph");
    graph.launch()?;
    assert_eq!(
        stream.clone_dtoh(&bench.input)?,
        [0.0; 64],
        "not the 2.0 that the order of calls suggests"
    );
    Ok(())
}

#[test]
fn unjoined_work_fails_the_capture() -> Result<(), DriverError> {
    let mut bench = Bench::new()?;
    let side = bench.stream.context().new_stream()?;
    bench.begin()?;
    side.join(&bench.stream)?;
    side.memset_zeros(&mut bench.out)?;
    assert_eq!(
        code(side.end_capture(Flags(0))),
        CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED
    );
    assert_eq!(bench.end(), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    bench.add()?;
    assert_eq!(
        bench.vcuda.counters().kernels_run,
        1,
        "the stream works again"
    );
    Ok(())
}

#[test]
fn forbidden_calls_fail_and_break_the_capture() -> Result<(), DriverError> {
    let mut bench = Bench::new()?;
    let stream = bench.stream.clone();
    let context = stream.context().clone();
    let (address, _) = bench.out.device_ptr(&stream);
    let legacy = context.default_stream();
    type Call<'a> = Box<dyn Fn() -> CUresult + 'a>;
    // SAFETY (all of them): the arguments are valid; the calls are refused for the capture alone.
    let calls: [(&str, Call); 9] = [
        (
            "cuStreamSynchronize",
            Box::new(|| code(stream.synchronize())),
        ),
        ("cuCtxSynchronize", Box::new(|| code(context.synchronize()))),
        (
            "cuMemAlloc",
            Box::new(|| code(unsafe { result::malloc_sync(16) })),
        ),
        (
            "cuMemAllocAsync",
            Box::new(|| code(unsafe { result::malloc_async(stream.cu_stream(), 16) })),
        ),
        (
            "cuMemFree",
            Box::new(|| code(unsafe { result::free_sync(address) })),
        ),
        (
            "cuMemcpyDtoH",
            Box::new(|| code(unsafe { result::memcpy_dtoh_sync(&mut [0u8; 4], address) })),
        ),
        (
            "cuMemsetD8",
            Box::new(|| code(unsafe { result::memset_d8_sync(address, 0, 4) })),
        ),
        (
            "cuMemHostAlloc",
            Box::new(|| code(unsafe { result::malloc_host(16, 0) })),
        ),
        (
            "cuModuleLoadData",
            Box::new(|| code(kernels::bounded_kernel(&context))),
        ),
    ];
    for (name, call) in &calls {
        bench.begin()?;
        assert_eq!(
            call(),
            CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
            "{name}"
        );
        let status = stream.capture_status()?;
        assert_eq!(
            status,
            Status::CU_STREAM_CAPTURE_STATUS_INVALIDATED,
            "{name}"
        );
        // SAFETY: as above.
        let later = unsafe { result::memset_d8_async(address, 0, 4, stream.cu_stream()) };
        assert_eq!(
            code(later),
            CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
            "{name}"
        );
        assert_eq!(
            bench.end(),
            CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
            "{name}"
        );
        stream.synchronize()?;
    }
    drop(calls);
    // Without the capture's own stream or thread in it: relaxed captures forbid neither.
    stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_RELAXED)?;
    drop(legacy.alloc_zeros::<u8>(16)?);
    bench.add()?;
    assert_eq!(bench.end(), CUresult::CUDA_SUCCESS);
    Ok(())
}

#[test]
fn a_global_capture_forbids_other_threads_too() -> Result<(), DriverError> {
    let bench = Bench::new()?;
    let allocate_elsewhere = || {
        let context = bench.stream.context().clone();
        let allocate = move || {
            context.bind_to_thread()?;
            // SAFETY: never used, freed at once.
            unsafe { result::malloc_sync(16).and_then(|address| result::free_sync(address)) }
        };
        code(std::thread::spawn(allocate).join().expect("no panic"))
    };
    bench.begin()?;
    assert_eq!(allocate_elsewhere(), CUresult::CUDA_SUCCESS, "thread-local");
    assert_eq!(bench.end(), CUresult::CUDA_SUCCESS);
    bench
        .stream
        .begin_capture(Mode::CU_STREAM_CAPTURE_MODE_GLOBAL)?;
    assert_eq!(
        allocate_elsewhere(),
        CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
    );
    let stream = bench.stream.clone();
    let elsewhere = std::thread::spawn(move || code(stream.end_capture(Flags(0))));
    let elsewhere = elsewhere.join().expect("no panic");
    assert_eq!(elsewhere, CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
    assert_eq!(bench.end(), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    Ok(())
}

#[test]
fn captures_are_isolated_from_other_work() -> Result<(), DriverError> {
    let bench = Bench::new()?;
    let context = bench.stream.context();
    let before = bench.stream.record_event(None)?;
    bench.begin()?;
    assert_eq!(
        code(bench.stream.wait(&before)),
        CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION
    );
    assert_eq!(bench.end(), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);

    bench.begin()?;
    let inside = bench.stream.record_event(None)?;
    assert_eq!(
        code(inside.synchronize()),
        CUresult::CUDA_ERROR_CAPTURED_EVENT
    );
    assert_eq!(bench.end(), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    assert_eq!(
        code(bench.stream.wait(&inside)),
        CUresult::CUDA_ERROR_CAPTURED_EVENT
    );

    let other = context.new_stream()?;
    bench.begin()?;
    other.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    inside.record(&bench.stream)?;
    assert_eq!(
        code(other.wait(&inside)),
        CUresult::CUDA_ERROR_STREAM_CAPTURE_MERGE
    );
    assert_eq!(
        code(other.end_capture(Flags(0))),
        CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    );
    assert_eq!(bench.end(), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);

    let legacy = context.default_stream();
    let mode = Mode::CU_STREAM_CAPTURE_MODE_RELAXED;
    assert_eq!(
        code(legacy.begin_capture(mode)),
        CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
    );
    Ok(())
}

#[test]
fn the_legacy_stream_is_off_limits_while_a_blocking_stream_captures() -> Result<(), DriverError> {
    let bench = Bench::new()?;
    let (address, _) = bench.out.device_ptr(&bench.stream);
    let blocking = result::stream::create(result::stream::StreamKind::Default)?;
    // SAFETY: valid arguments; the stream is destroyed at the end and not used afterwards.
    unsafe {
        result::stream::begin_capture(blocking, Mode::CU_STREAM_CAPTURE_MODE_RELAXED)?;
        let legacy = result::memset_d8_async(address, 0, 4, std::ptr::null_mut());
        assert_eq!(code(legacy), CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
        let ended = result::stream::end_capture(blocking);
        assert_eq!(code(ended), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        result::memset_d8_async(address, 0, 4, std::ptr::null_mut())?;
        result::stream::destroy(blocking)
    }
}

#[test]
fn graphs_read_their_host_source_at_every_replay() -> Result<(), DriverError> {
    let mut bench = Bench::new()?;
    let mut source = vec![1f32; 64];
    let address = source.as_mut_ptr();
    bench.begin()?;
    bench.stream.memcpy_htod(&source, &mut bench.out)?;
    let graph = bench.stream.end_capture(Flags(0))?.expect("a graph");
    for value in [3.0, 4.0] {
        // SAFETY: `source` lives until the end of the test and nothing is queued.
        unsafe { address.write(value) };
        graph.launch()?;
        assert_eq!(bench.stream.clone_dtoh(&bench.out)?[..2], [value, 1.0]);
    }
    drop(source);
    Ok(())
}

#[test]
fn instantiation_checks_its_flags() -> Result<(), DriverError> {
    let bench = Bench::new()?;
    bench.begin()?;
    let both = Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH
        | Flags::CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH;
    assert_eq!(
        code(bench.stream.end_capture(both)),
        CUresult::CUDA_ERROR_INVALID_VALUE
    );
    assert_eq!(
        bench.vcuda.usage().objects["graphs"],
        0,
        "cudarc destroys what it cannot use"
    );
    bench.begin()?;
    assert_eq!(bench.end(), CUresult::CUDA_SUCCESS, "an empty graph is one");
    Ok(())
}
