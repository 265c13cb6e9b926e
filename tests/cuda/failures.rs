//! Everything that can go wrong with driver, device and compiler: a typed error, nothing left behind, no panic.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use attention_rollout::cuda::cudarc::driver::{CudaSlice, CudaStream};
use attention_rollout::cuda::nvrtc::{Nvrtc, NvrtcError};
use attention_rollout::cuda::{self, HostPlan, ImageKind, Options, Plan, run_host};
use attention_rollout::{Error, Output, Problem, Shape};
use vcuda::{Code, client::Vcuda};

use crate::generate::{Case, Generated};
use crate::machine::{Buffer, Machine, assert_passes, directed, process_of, real_gpu, skip};
use crate::problems::{assert_right, buffers};

/// A case of the tree pipeline, which allocates workspace.
fn case() -> Case {
    let mut case = Case::new(
        Shape {
            layers: 3,
            batch: 2,
            heads: 1,
            tokens: 260,
        },
        6,
    );
    case.config.output = Output::Matrix;
    case
}

/// Why a plan cannot be made.
fn refusal(machine: &Machine, problem: &Problem) -> Error {
    match Plan::on(&machine.runtime(), problem, &Options::default()) {
        Ok(plan) => panic!("made: {plan}"),
        Err(error) => error,
    }
}

/// Bytes, pinned ranges and objects that are alive.
fn alive(vcuda: &Vcuda) -> (u64, u64, BTreeMap<String, u64>) {
    let usage = vcuda.usage();
    (usage.bytes, usage.host_ranges, usage.objects)
}

/// A plan, and all that a run of it takes.
struct Ready {
    // Dropped in this order: nothing of the driver may outlive the stand-in, which the machine holds.
    out: CudaSlice<f32>,
    buffers: Vec<Buffer>,
    stream: Arc<CudaStream>,
    plan: Plan,
    generated: Generated,
    machine: Machine,
}

impl Ready {
    /// `None`, said aloud, where there is no stand-in.
    fn new() -> Option<Self> {
        let machine = directed("sm_90")?;
        let generated = case().generate();
        let stream = machine.context.default_stream();
        let len = generated.problem.output_len();
        Some(Ready {
            out: stream.alloc_zeros(len).unwrap(),
            buffers: buffers(&machine, &generated),
            plan: machine.plan(&generated.problem, |_| {}),
            stream,
            generated,
            machine,
        })
    }

    /// Why a run fails.
    fn failure(&mut self) -> Error {
        let layers: Vec<_> = self.buffers.iter().map(Buffer::layer).collect();
        self.plan
            .run(&self.stream, &layers, &mut self.out)
            .unwrap_err()
    }

    fn assert_works(&mut self) {
        let got = self.machine.run(&mut self.plan, &self.generated.layers());
        assert_right("after the failure", &self.generated, &got);
    }
}

#[test]
fn machines_without_a_device_are_told_so() {
    if real_gpu() {
        skip("it needs a machine without a GPU");
        return;
    }
    let vcuda = vcuda::client::install("").unwrap();
    assert!(matches!(cuda::available(), Err(Error::NoDevice)));
    assert!(matches!(cuda::context(0), Err(Error::NoDevice)));
    vcuda.set_devices("sm_90,sm_75");
    let devices = cuda::available().unwrap();
    assert_eq!(devices.len(), 2);
    assert_eq!((devices[0].limits.arch, devices[1].limits.arch), (90, 75));
    assert!(devices.iter().all(|device| device.supported().is_ok()));
    assert!(
        devices[1]
            .to_string()
            .starts_with("1: Tesla T4 (sm_75, 40 multiprocessors")
    );
    assert!(matches!(
        cuda::context(2),
        Err(Error::DeviceOrdinal {
            ordinal: 2,
            available: 2
        })
    ));
    vcuda.set_driver_version(12040);
    let version = cuda::driver_version().unwrap();
    assert_eq!((version.major, version.minor), (12, 4));
}

#[test]
fn failing_calls_are_named() {
    if real_gpu() {
        skip("it needs a machine without a GPU");
        return;
    }
    let vcuda = vcuda::client::install("sm_90").unwrap();
    for call in [
        "cuInit",
        "cuDeviceGetCount",
        "cuDeviceGetName",
        "cuDeviceTotalMem_v2",
    ] {
        vcuda.fail_call(call, 1, Code::SystemNotReady);
        let error = cuda::available().unwrap_err();
        assert!(
            matches!(error, Error::Driver { call: named, code: 802, .. } if named == call),
            "{call}: {error:?}"
        );
        assert!(
            error.to_string().contains("CUDA_ERROR_SYSTEM_NOT_READY"),
            "{error}"
        );
    }
    cuda::available().unwrap();
}

#[test]
fn out_of_memory_leaves_nothing_behind_and_other_plans_usable() {
    let Some(mut ready) = Ready::new() else {
        return;
    };
    let problem = ready.generated.problem.clone();
    let vcuda = ready.machine.vcuda();
    let before = alive(vcuda);
    for allocation in 1..=2 {
        vcuda.fail_allocation(allocation);
        let error = refusal(&ready.machine, &problem);
        assert!(
            matches!(error, Error::OutOfDeviceMemory { required, .. } if required > 0),
            "{error:?}"
        );
        assert_eq!(alive(vcuda), before);
    }
    vcuda.set_memory_limit(0, before.0 + 1000);
    match refusal(&ready.machine, &problem) {
        Error::OutOfDeviceMemory {
            required,
            available,
            ..
        } => {
            assert_eq!(available, 1000);
            assert!(required > available);
        }
        other => panic!("{other:?}"),
    }
    vcuda.set_memory_limit(0, u64::MAX);
    ready.assert_works();
}

#[test]
fn every_step_of_making_a_plan_may_fail() {
    let Some(machine) = directed("sm_75") else {
        return;
    };
    let vcuda = machine.vcuda();
    let mut case = case();
    // Enough for two streams on a device with this little L2.
    case.shape.batch = 16;
    case.windows = vec![case.windows[0]; 16];
    let generated = case.generate();
    let before = alive(vcuda);
    for call in [
        "cuMemAlloc_v2",
        "cuMemcpyHtoDAsync_v2",
        "cuModuleLoadData",
        "cuModuleGetFunction",
        "cuStreamCreate",
        "cuEventCreate",
    ] {
        vcuda.fail_call(call, 1, Code::NotPermitted);
        let error = refusal(&machine, &generated.problem);
        assert!(
            matches!(error, Error::Driver { call: named, .. } if named == call),
            "{call}: {error:?}"
        );
        assert_eq!(alive(vcuda), before, "{call}");
    }
}

#[test]
fn refused_launches_name_their_kernel_and_the_plan_lives_on() {
    let Some(mut ready) = Ready::new() else {
        return;
    };
    for (launch, stem) in [
        // The problem has windows, outside of which there are zeros.
        (1, "zero_fill"),
        (2, "head_fusion"),
        (3, "split_product"),
    ] {
        let vcuda = ready.machine.vcuda();
        vcuda.fail_launch(launch, Code::LaunchOutOfResources);
        let error = ready.failure();
        assert!(
            matches!(&error, Error::Launch { variant, code: 701, .. } if variant.starts_with(stem)),
            "{error:?}"
        );
    }
    ready.assert_works();
}

#[test]
fn a_lost_device_is_an_error_of_the_next_call() {
    let Some(mut ready) = Ready::new() else {
        return;
    };
    ready.machine.vcuda().lose_device(0, Code::EccUncorrectable);
    let error = ready.failure();
    assert!(error.to_string().contains("ECC"), "{error}");
    refusal(&ready.machine, &ready.generated.problem);
}

#[test]
fn compilers_that_are_missing_or_too_new_say_what_to_do() {
    let error = Nvrtc::open("/nowhere/libnvrtc.so.12").unwrap_err();
    assert!(matches!(error, NvrtcError::Open { .. }));
    let Some(mut machine) = directed("sm_90") else {
        return;
    };
    // The stand-in takes PTX only: a cubin is refused as on a device of another architecture.
    let generated = case().generate();
    machine.compiler.image = ImageKind::Cubin;
    let error = refusal(&machine, &generated.problem);
    assert!(
        matches!(
            error,
            Error::Driver {
                call: "cuModuleLoadData",
                code: 209,
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn host_memory_and_device_memory_of_chunks_may_run_out() {
    let Some(machine) = directed("sm_90") else {
        return;
    };
    let vcuda = machine.vcuda();
    let generated = case().generate();
    let before = alive(vcuda);
    vcuda.fail_call("cuMemHostAlloc", 2, Code::OutOfMemory);
    let error = HostPlan::on(
        &[machine.runtime()],
        &generated.problem,
        &Options::default(),
        None,
    )
    .err();
    assert!(matches!(error, Some(Error::HostMemory { .. })), "{error:?}");
    vcuda.fail_allocation(4);
    let error = HostPlan::on(
        &[machine.runtime()],
        &generated.problem,
        &Options::default(),
        None,
    )
    .err();
    assert!(
        matches!(error, Some(Error::OutOfDeviceMemory { .. })),
        "{error:?}"
    );
    assert_eq!(alive(vcuda), before);
    // And a copy that fails half way leaves everything given back too.
    vcuda.fail_call("cuMemcpyDtoHAsync_v2", 1, Code::NotPermitted);
    let mut out = vec![0.0; generated.problem.output_len()];
    let error = run_host(
        &[machine.runtime()],
        &generated.problem,
        &generated.layers(),
        &mut out,
        &Options::default(),
        None,
        &mut |_| {},
    );
    assert!(matches!(
        error,
        Err(Error::Driver {
            call: "cuMemcpyDtoHAsync_v2",
            ..
        })
    ));
    assert_eq!(vcuda.usage().bytes, before.0);
    // A plan whose run failed runs again, and what the failed run left under way is forgotten.
    let one = NonZeroUsize::new(1);
    let mut plan = HostPlan::on(
        &[machine.runtime()],
        &generated.problem,
        &Options::default(),
        one,
    )
    .unwrap();
    vcuda.fail_call("cuMemcpyDtoHAsync_v2", 2, Code::NotPermitted);
    let layers = generated.layers();
    assert!(plan.run(&layers, &mut out, &mut |_| {}).is_err());
    out.fill(f32::NAN);
    let mut done = Vec::new();
    plan.run(&layers, &mut out, &mut |progress| done.push(progress.done))
        .unwrap();
    assert_eq!(done, [1, 2]);
    assert_right("after a failed run", &generated, &out);
    let nowhere = run_host(
        &[],
        &generated.problem,
        &layers,
        &mut out,
        &Options::default(),
        None,
        &mut |_| {},
    );
    assert!(matches!(
        nowhere,
        Err(Error::ZeroExtent { what: "devices" })
    ));
}

/// In a process of its own, where no driver and no compiler can be found.
#[test]
fn without_a_driver_nothing_panics() {
    const CHILD: &str = "ROLLOUT_TEST_WITHOUT_A_DRIVER";
    if std::env::var_os(CHILD).is_some() {
        assert!(matches!(cuda::available(), Err(Error::NoDriver)));
        assert!(matches!(cuda::context(0), Err(Error::NoDriver)));
        let message = cuda::driver_version().unwrap_err().to_string();
        assert!(message.contains("Install the NVIDIA driver"), "{message}");
        return;
    }
    if real_gpu() {
        skip("it needs a machine without a GPU");
        return;
    }
    let mut process = process_of("failures::without_a_driver_nothing_panics");
    assert_passes(process.env(CHILD, "1").env_remove("LD_LIBRARY_PATH"));
}

/// In a process of its own, whose environment names a compiler that is not there.
#[test]
fn without_a_compiler_the_error_says_where_it_was_looked_for() {
    const NOWHERE: &str = "/nowhere/libnvrtc.so.12";
    if std::env::var("ROLLOUT_NVRTC").is_ok_and(|path| path == NOWHERE) {
        let _vcuda = vcuda::client::install("sm_90").unwrap();
        let context = cuda::context(0).unwrap();
        let generated = case().generate();
        let error = Plan::new(&context, &generated.problem, &Options::default()).err();
        assert!(matches!(error, Some(Error::Nvrtc(_))), "{error:?}");
        assert!(error.unwrap().to_string().contains(NOWHERE));
        return;
    }
    if real_gpu() {
        skip("it needs a machine without a GPU");
        return;
    }
    let mut process =
        process_of("failures::without_a_compiler_the_error_says_where_it_was_looked_for");
    assert_passes(process.env("ROLLOUT_NVRTC", NOWHERE));
}
