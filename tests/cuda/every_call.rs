//! Every driver call failed in turn, in making, running and dropping each kind of plan: a typed error or a right result,
//! never a panic, nothing kept that could be given back, and a context that works afterwards.

use std::error::Error as AnyError;
use std::num::NonZeroUsize;
use std::sync::Arc;

use attention_rollout::cuda::cudarc::driver::{CudaStream, DriverError};
use attention_rollout::cuda::{
    GroupItem, GroupPlan, HostPlan, Options, Plan, Runtime, StreamingPlan,
};
use attention_rollout::{HostLayer, Shape};
use vcuda::Code;

use crate::generate::{Case, Generated};
use crate::machine::{Buffer, Machine, directed};
use crate::problems::assert_right;

/// The driver functions that plans and the copies around them may call.
const CALLS: [&str; 38] = [
    "cuCtxGetCurrent",
    "cuCtxGetDevice",
    "cuCtxPopCurrent_v2",
    "cuCtxPushCurrent_v2",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "cuMemAllocAsync",
    "cuMemAlloc_v2",
    "cuMemFreeAsync",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

type Attempt = Result<Vec<f32>, Box<dyn AnyError>>;

/// A way to compute a rollout, from nothing to a result on the host.
type Pipeline = fn(&Machine, &Generated) -> Attempt;

const PIPELINES: [(&str, Pipeline); 4] = [
    ("plan", plan),
    ("stream", stream),
    ("group", group),
    ("host", host),
];

fn upload(stream: &Arc<CudaStream>, maps: &HostLayer<'_>) -> Result<Buffer, DriverError> {
    let HostLayer::Maps(maps) = maps else {
        unreachable!("the case has maps");
    };
    let maps = maps.as_slice().expect("the case has f32 maps");
    stream.clone_htod(maps).map(Buffer::F32)
}

fn runtime(machine: &Machine) -> Result<Runtime, attention_rollout::Error> {
    Runtime::new(&machine.context, &machine.compiler)
}

fn plan(machine: &Machine, generated: &Generated) -> Attempt {
    let stream = machine.context.default_stream();
    let buffers: Vec<Buffer> = generated
        .layers()
        .iter()
        .map(|maps| upload(&stream, maps))
        .collect::<Result<_, _>>()?;
    let layers: Vec<_> = buffers.iter().map(Buffer::layer).collect();
    let mut out = stream.alloc_zeros(generated.problem.output_len())?;
    let mut plan = Plan::on(&runtime(machine)?, &generated.problem, &Options::default())?;
    plan.run(&stream, &layers, &mut out)?;
    Ok(stream.clone_dtoh(&out)?)
}

fn stream(machine: &Machine, generated: &Generated) -> Attempt {
    let stream = machine.context.default_stream();
    let mut out = stream.alloc_zeros(generated.problem.output_len())?;
    let mut plan = StreamingPlan::on(&runtime(machine)?, &generated.problem, &Options::default())?;
    let mut pass = plan.begin(&stream, &mut out)?;
    for maps in &generated.layers() {
        pass.push_layer(upload(&stream, maps)?.layer())?;
    }
    pass.finish()?;
    Ok(stream.clone_dtoh(&out)?)
}

fn group(machine: &Machine, generated: &Generated) -> Attempt {
    let stream = machine.context.default_stream();
    let buffers: Vec<Buffer> = generated
        .layers()
        .iter()
        .map(|maps| upload(&stream, maps))
        .collect::<Result<_, _>>()?;
    let layers: Vec<_> = buffers.iter().map(Buffer::layer).collect();
    let len = generated.problem.output_len();
    let mut outs = [stream.alloc_zeros(len)?, stream.alloc_zeros(len)?];
    let problems = [generated.problem.clone(), generated.problem.clone()];
    let mut plan = GroupPlan::on(&runtime(machine)?, &problems, &Options::default())?;
    let items = outs.iter_mut().map(|out| GroupItem::new(&layers, out));
    let mut items: Vec<_> = items.collect();
    plan.run(&stream, &mut items)?;
    drop(items);
    Ok(stream.clone_dtoh(&outs[1])?)
}

fn host(machine: &Machine, generated: &Generated) -> Attempt {
    let mut out = vec![f32::NAN; generated.problem.output_len()];
    let one = NonZeroUsize::new(1);
    let mut plan = HostPlan::on(
        &[runtime(machine)?],
        &generated.problem,
        &Options::default(),
        one,
    )?;
    plan.run(&generated.layers(), &mut out, &mut |_| {})?;
    Ok(out)
}

#[test]
fn every_driver_call_may_fail() {
    let shape = Shape {
        layers: 2,
        batch: 2,
        heads: 2,
        tokens: 9,
    };
    let generated = Case::new(shape, 6).generate();
    let mut failed = Vec::new();
    for (kind, run) in PIPELINES {
        for call in CALLS {
            for k in 1..=2 {
                let Some(machine) = directed("sm_90") else {
                    return;
                };
                let what = format!("{kind}, {call} {k}");
                let vcuda = machine.vcuda();
                let before = vcuda.usage();
                vcuda.fail_call(call, k, Code::NotPermitted);
                let attempt = run(&machine, &generated);
                let after = vcuda.usage();
                let was_right = attempt.is_ok();
                match attempt {
                    Ok(got) => assert_right(&what, &generated, &got),
                    Err(error) => {
                        let error = error.to_string();
                        assert!(error.contains("NOT_PERMITTED"), "{what}: {error}");
                        failed.push((kind, call));
                    }
                }
                // A failing destroy keeps what it should have given back, and nothing else is kept. (cudarc's own
                // slices, in which all but `host` hold their maps, keep more.)
                let may_keep = match kind {
                    "host" => &["Destroy", "Free", "Unload"][..],
                    _ => &["Destroy", "Free", "Unload", "cuCtx", "cuEvent", "cuStream"],
                };
                if !may_keep.iter().any(|name| call.contains(name)) {
                    assert_eq!(after.bytes, before.bytes, "{what}");
                    assert_eq!(after.host_ranges, before.host_ranges, "{what}");
                    assert_eq!(after.objects, before.objects, "{what}");
                }
                if kind != "host" {
                    // cudarc keeps what its own slices meet when they are dropped for whoever comes next.
                    let _ = machine.context.check_err();
                }
                let again = match run(&machine, &generated) {
                    // What the first run did not reach.
                    Err(_) if was_right => run(&machine, &generated),
                    again => again,
                };
                let again = again.unwrap_or_else(|error| panic!("after {what}: {error}"));
                assert_right(&what, &generated, &again);
            }
        }
    }
    // A list of names that are never called would show nothing.
    for (kind, _) in PIPELINES {
        for call in ["cuMemAlloc_v2", "cuLaunchKernelEx", "cuModuleLoadData"] {
            assert!(failed.contains(&(kind, call)), "{kind}, {call}");
        }
    }
}
