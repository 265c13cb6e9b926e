//! What plans share, and with whom: a runtime, the plans of a cache, threads, and the streams of other libraries.

use std::num::NonZeroUsize;

use attention_rollout::cuda::cudarc::driver::{result, sys};
use attention_rollout::cuda::nvrtc::Cache;
use attention_rollout::cuda::{self, Compiler, DeviceLayer, Options, Plan, PlanCache, Runtime};
use attention_rollout::{Error, Problem, Shape};

use crate::generate::{Case, Generated};
use crate::machine::{
    Buffer, Machine, assert_passes, compiler, directed, download, machine, process_of, real_gpu,
    skip,
};
use crate::problems::{assert_right, bits, buffers, cases};

fn case(tokens: usize) -> Generated {
    let shape = Shape {
        layers: 2,
        batch: 2,
        heads: 2,
        tokens,
    };
    Case::new(shape, tokens as u64).generate()
}

/// Runs `plan` over `layers` and checks what it gives.
fn run(machine: &Machine, plan: &mut Plan, generated: &Generated) {
    let got = machine.run(plan, &generated.layers());
    assert_right("shared", generated, &got);
}

#[test]
fn a_runtime_loads_each_kernel_once() {
    let Some(machine) = directed("sm_90") else {
        return;
    };
    let vcuda = machine.vcuda();
    let runtime = machine.runtime();
    let generated: Vec<Generated> = [9, 12, 12, 20].map(case).into();
    let plan = |runtime: &Runtime, problem: &Problem| {
        Plan::on(runtime, problem, &Options::default()).unwrap()
    };
    let mut first = plan(&runtime, &generated[0].problem);
    let loaded = vcuda.counters().modules_loaded;
    // And the kernel that takes windows, which this problem has.
    assert_eq!(loaded as usize, first.schedule().variants().len() + 1);
    run(&machine, &mut first, &generated[0]);
    drop(first);
    // On a clone, on other threads, when the first plan is gone.
    let plans: Vec<Plan> = std::thread::scope(|scope| {
        let made: Vec<_> = generated[1..]
            .iter()
            .map(|generated| {
                let runtime = runtime.clone();
                scope.spawn(move || plan(&runtime, &generated.problem))
            })
            .collect();
        made.into_iter().map(|plan| plan.join().unwrap()).collect()
    });
    assert_eq!(vcuda.counters().modules_loaded, loaded);
    for (mut plan, generated) in plans.into_iter().zip(&generated[1..]) {
        run(&machine, &mut plan, generated);
    }
    // Another runtime loads its own.
    let before = vcuda.usage();
    let other = plan(&machine.runtime(), &generated[0].problem);
    assert_eq!(vcuda.counters().modules_loaded, 2 * loaded);
    drop(other);
    assert_eq!(vcuda.usage().objects, before.objects);
}

/// In a process of its own, whose environment names a compiler that goes while the process runs.
#[test]
fn a_warm_runtime_looks_for_no_file() {
    const LINK: &str = "ROLLOUT_NVRTC";
    const CHILD: &str = "ROLLOUT_TEST_WARM_RUNTIME";
    if let Some(directory) = std::env::var_os(CHILD) {
        let _vcuda = vcuda::client::install("sm_90").unwrap();
        let context = cuda::context(0).unwrap();
        let cache = std::path::Path::new(&directory).join("kernels");
        let compiler = Compiler {
            image: cuda::ImageKind::Ptx,
            nvrtc: None,
            cache: Some(Cache::at(&cache)),
        };
        let runtime = Runtime::new(&context, &compiler).unwrap();
        let plan = |runtime: &Runtime| Plan::on(runtime, &case(9).problem, &Options::default());
        drop(plan(&runtime).unwrap());
        assert!(cache.read_dir().unwrap().next().is_some());
        // Neither the compiler nor its directory, nor anything that was compiled, is there any more.
        std::fs::remove_dir_all(&directory).unwrap();
        let cold = Runtime::new(&context, &compiler).unwrap();
        assert!(matches!(plan(&cold).err(), Some(Error::Nvrtc(_))));
        drop(plan(&runtime).unwrap_or_else(|error| panic!("{error}")));
        assert!(!cache.exists(), "a warm plan wrote to the cache");
        return;
    }
    if real_gpu() {
        return skip("it needs a machine without a GPU");
    }
    let Some(nvrtc) = compiler() else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("libnvrtc.so");
    std::os::unix::fs::symlink(nvrtc.path(), &link).unwrap();
    let mut process = process_of("sharing::a_warm_runtime_looks_for_no_file");
    assert_passes(process.env(CHILD, directory.path()).env(LINK, link));
}

#[test]
fn a_cache_keeps_the_plans_used_last() {
    let Some(machine) = directed("sm_90") else {
        return;
    };
    let vcuda = machine.vcuda();
    let two = NonZeroUsize::new(2).unwrap();
    let mut plans = PlanCache::new(&machine.runtime(), &Options::default(), two);
    assert!(plans.is_empty());
    // Shapes by tokens, and whether the plan has to be made.
    let wanted = [
        (9, true),
        (20, true),
        (9, false),
        (31, true),
        (9, false),
        (20, true),
    ];
    for (tokens, makes) in wanted {
        let generated = case(tokens);
        let before = vcuda.counters().device_allocations;
        let plan = plans.get(&generated.problem).unwrap();
        let made = vcuda.counters().device_allocations > before;
        assert_eq!(made, makes, "{tokens} tokens");
        run(&machine, plan, &generated);
    }
    assert_eq!(plans.len(), 2);
    let held = vcuda.usage().bytes;
    plans.clear();
    assert!(plans.is_empty() && vcuda.usage().bytes < held);
}

#[test]
fn a_plan_and_its_layers_move_to_another_thread() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    for (what, case) in cases() {
        let generated = case.generate();
        let mut plan = machine.plan(&generated.problem, |_| {});
        let stream = machine.context.default_stream();
        let buffers = buffers(&machine, &generated);
        let layers: Vec<_> = buffers.iter().map(Buffer::layer).collect();
        let here = download(&stream, &plan.run_alloc(&stream, &layers).unwrap());
        let there = std::thread::scope(|scope| {
            let moved = || {
                let mut plan = plan;
                download(&stream, &plan.run_alloc(&stream, &layers).unwrap())
            };
            scope.spawn(moved).join().unwrap()
        });
        assert_right(what, &generated, &there);
        assert_eq!(bits(&here), bits(&there), "{what}");
    }
}

#[test]
fn a_foreign_stream_is_used_as_it_is() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    if let Some(vcuda) = &machine.vcuda {
        vcuda.set_ordering(vcuda::client::Ordering::Lazy);
    }
    let generated = case(19);
    let mut plan = machine.plan(&generated.problem, |_| {});
    let buffers = buffers(&machine, &generated);
    machine.context.synchronize().unwrap();
    let layers: Vec<_> = buffers.iter().map(Buffer::layer).collect();
    let foreign = result::stream::create(result::stream::StreamKind::NonBlocking).unwrap();
    // SAFETY: the stream is of this context and is destroyed last.
    let stream = unsafe { machine.context.wrap_borrowed_stream(foreign) };
    let out = plan.run_alloc(&stream, &layers).unwrap();
    assert_right("foreign stream", &generated, &download(&stream, &out));
    drop((out, stream, plan));
    // The plan and the wrapper left it to its owner.
    // SAFETY: nobody uses the stream any more.
    unsafe {
        result::stream::synchronize(foreign).unwrap();
        result::stream::destroy(foreign).unwrap();
    }
}

#[test]
fn a_foreign_stream_of_another_device_is_refused() {
    let Some(machine) = directed("sm_90,sm_80") else {
        return;
    };
    let vcuda = machine.vcuda();
    let generated = case(19);
    let mut plan = machine.plan(&generated.problem, |_| {});
    let buffers = buffers(&machine, &generated);
    machine.context.synchronize().unwrap();
    let layers: Vec<_> = buffers.iter().map(Buffer::layer).collect();
    let mut out = machine
        .context
        .default_stream()
        .alloc_zeros::<f32>(generated.problem.output_len())
        .unwrap();
    let other = cuda::context(1).unwrap();
    other.bind_to_thread().unwrap();
    let foreign = result::stream::create(result::stream::StreamKind::NonBlocking).unwrap();
    let launched = vcuda.counters().launches;
    // SAFETY: what is told of the stream is wrong, and nothing is submitted to it.
    let stream = unsafe { machine.context.wrap_borrowed_stream(foreign) };
    for _ in 0..2 {
        let refused = plan.run(&stream, &layers, &mut out).unwrap_err();
        assert!(
            matches!(
                refused,
                Error::WrongDevice {
                    expected: 0,
                    got: 1,
                    ..
                }
            ),
            "{refused}"
        );
    }
    assert_eq!(vcuda.counters().launches, launched);
    // The thread is where it would be after any run.
    let stream = machine.context.default_stream();
    plan.run(&stream, &layers, &mut out).unwrap();
    assert_right("refused before", &generated, &download(&stream, &out));
    other.bind_to_thread().unwrap();
    // SAFETY: nobody uses the stream any more.
    unsafe { result::stream::destroy(foreign).unwrap() };
}

#[test]
fn what_cannot_be_allocated_for_is_refused() {
    let Some(machine) = directed("sm_90,sm_80") else {
        return;
    };
    let vcuda = machine.vcuda();
    let generated = case(9);
    let mut plan = machine.plan(&generated.problem, |_| {});
    let buffers = buffers(&machine, &generated);
    let layers: Vec<DeviceLayer<'_>> = buffers.iter().map(Buffer::layer).collect();
    let launched = vcuda.counters().launches;
    let other = cuda::context(1).unwrap().default_stream();
    let wrong = plan.run_alloc(&other, &layers).unwrap_err();
    assert!(matches!(
        wrong,
        Error::WrongDevice {
            expected: 0,
            got: 1,
            ..
        }
    ));
    let stream = machine.context.new_stream().unwrap();
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).unwrap();
    let captured = plan.run_alloc(&stream, &layers).unwrap_err();
    assert!(matches!(captured, Error::Capturing { .. }), "{captured}");
    stream
        .end_capture(sys::CUgraphInstantiate_flags(0))
        .unwrap();
    vcuda.fail_allocation(1);
    let full = plan.run_alloc(&stream, &layers).unwrap_err();
    assert!(
        matches!(full, Error::OutOfDeviceMemory { required: 72, .. }),
        "{full}"
    );
    assert_eq!(vcuda.counters().launches, launched);
}
