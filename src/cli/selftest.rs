//! `selftest`: every kernel variant on a GPU, by both of its entries, against the f64 reference.

use std::sync::Arc;

use attention_rollout::cuda::cudarc::driver::{CudaSlice, CudaStream, DriverError};
use attention_rollout::cuda::kernel::{self, Arithmetic, Kernel};
use attention_rollout::cuda::variant::Entry;
use attention_rollout::cuda::{
    DeviceLayer, DeviceTensor, GroupItem, GroupPlan, Options, Plan, Runtime,
};
use attention_rollout::{DType, HostLayer, HostTensor, Layer, Problem, measure::Inputs, reference};
use clap::Args;
use half::{bf16, f16};

use crate::backend;
use crate::error::{Error, Result};
use crate::options::{DeviceArg, DeviceArgs, PrecisionArg};
use crate::report;
use crate::verify::{self, half_budget};

/// Run every kernel that the GPU can run on random maps, alone and grouped, and compare with the f64 reference.
///
/// Exit status 1 where a kernel fails or exceeds its error budget.
#[derive(Args, Debug)]
pub struct SelftestArgs {
    /// cuda | cuda:N
    #[arg(long, default_value = "cuda")]
    device: DeviceArg,

    /// Only kernels whose symbol contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
}

/// Absolute error allowed on entries of at most 1, except where operands are rounded to f16.
const BUDGET: f64 = 1e-6;

/// Tokens of the problems, unless the kernel asks for others; and of those whose rows are divided among blocks, on
/// devices that have clusters among one of them.
const TOKENS: usize = 61;
const DIVIDED_TOKENS: usize = 125;

/// Runs the subcommand.
pub fn run(args: &SelftestArgs) -> Result<()> {
    let device = |error: attention_rollout::Error| Error::Device {
        device: args.device.to_string(),
        reason: error.to_string(),
    };
    let gpu = DeviceArgs {
        device: args.device,
        precision: PrecisionArg::F32,
        threads: None,
    };
    let (runtimes, options) = backend::cuda_runtimes(&gpu).map_err(device)?;
    let runtime = &runtimes[0];
    let (mut total, mut failed) = (0, 0);
    let kernels = kernel::all();
    let entered = |kernel| Entry::ALL.map(|entry| (entry, kernel));
    for (entry, kernel) in kernels.iter().flat_map(entered) {
        let variant = kernel.variant();
        let symbol = entry.symbol(&variant);
        if !symbol.contains(&args.only) || !variant.runs_on(runtime.limits()) {
            continue;
        }
        total += 1;
        let verdict = match max_error(runtime, &options, entry, kernel.as_ref()) {
            Ok((error, budget)) if error <= budget => format!("{error:.2e}  ok"),
            Ok((error, budget)) => format!("{error:.2e}  FAILED, the budget is {budget:.2e}"),
            Err(error) => format!("FAILED: {error}"),
        };
        failed += usize::from(verdict.contains("FAILED"));
        report::line(format_args!("{symbol:62}  {verdict}"))?;
    }
    if total == 0 {
        return Err(Error::argument(
            "--only",
            "part of a kernel's symbol",
            args.only.clone(),
        ));
    }
    let ordinal = runtime.context().ordinal();
    report::line(format_args!(
        "cuda:{ordinal}: {} of {total} kernels are right",
        total - failed
    ))?;
    match failed {
        0 => Ok(()),
        failed => Err(Error::Verify { failed, total }),
    }
}

/// The largest absolute error of `kernel` over problems that it takes part in, one by one or two as a group, NaN where
/// it left NaN, and the most it may be.
fn max_error(
    runtime: &Runtime,
    options: &Options,
    entry: Entry,
    kernel: &dyn Kernel,
) -> Result<(f64, f64), Box<dyn std::error::Error>> {
    let mut problems = vec![kernel.example(3, TOKENS)?];
    let another = match entry {
        Entry::Alone => kernel.example(3, DIVIDED_TOKENS)?,
        Entry::Grouped => kernel.example(2, TOKENS)?,
    };
    // Some kernels ask for tokens of their own.
    if another.shape() != problems[0].shape() {
        problems.push(another);
    }
    let random = |problem: &Problem| Inputs::random(problem, 1);
    let inputs: Vec<Inputs> = problems.iter().map(random).collect::<Result<_, _>>()?;
    let options = Options {
        variant: Some(kernel.variant().symbol),
        ..options.clone()
    };
    let stream = runtime.context().default_stream();
    let upload = |inputs: &Inputs| {
        let layers = inputs.layers();
        let buffers = layers.iter().map(|layer| upload_layer(&stream, layer));
        buffers.collect::<Result<Vec<_>, DriverError>>()
    };
    let buffers = inputs.iter().map(upload).collect::<Result<Vec<_>, _>>()?;
    let layers: Vec<Vec<_>> = buffers
        .iter()
        .map(|buffers| buffers.iter().map(|layer| device_layer(layer)).collect())
        .collect();
    // What a kernel forgets to write stays NaN.
    let mut outs = problems
        .iter()
        .map(|problem| stream.clone_htod(&vec![f32::NAN; problem.output_len()]))
        .collect::<Result<Vec<_>, DriverError>>()?;
    match entry {
        Entry::Alone => {
            for ((problem, layers), out) in problems.iter().zip(&layers).zip(&mut outs) {
                let mut plan = Plan::on(runtime, problem, &options)?;
                plan.run(&stream, layers, out)?;
            }
        }
        Entry::Grouped => {
            let mut plan = GroupPlan::on(runtime, &problems, &options)?;
            let items = layers.iter().zip(&mut outs);
            let mut items: Vec<_> = items
                .map(|(layers, out)| GroupItem {
                    layers,
                    out: out.into(),
                })
                .collect();
            plan.run(&stream, &mut items)?;
        }
    }
    let mut worst = (0.0, BUDGET);
    for ((problem, inputs), out) in problems.iter().zip(&inputs).zip(&outs) {
        let got = stream.clone_dtoh(out)?;
        let want = reference::rollout(problem, &inputs.layers())?;
        let error = verify::max_error(&got, &want);
        let is_half = kernel.variant().symbol.contains(Arithmetic::F16x2.name());
        let budget = if is_half {
            half_budget(problem, &want)
        } else {
            BUDGET
        };
        // NaN is worse than anything.
        if error.is_nan() || error / budget > worst.0 / worst.1 {
            worst = (error, budget);
        }
    }
    Ok(worst)
}

/// A tensor in device memory.
enum Buffer {
    F32(CudaSlice<f32>),
    F16(CudaSlice<f16>),
    Bf16(CudaSlice<bf16>),
}

impl Buffer {
    fn upload(stream: &Arc<CudaStream>, tensor: &HostTensor<'_>) -> Result<Self, DriverError> {
        match tensor.dtype() {
            DType::F32 => stream
                .clone_htod(tensor.as_slice().unwrap_or_default())
                .map(Buffer::F32),
            DType::F16 => stream
                .clone_htod(tensor.as_slice().unwrap_or_default())
                .map(Buffer::F16),
            DType::Bf16 => stream
                .clone_htod(tensor.as_slice().unwrap_or_default())
                .map(Buffer::Bf16),
        }
    }

    fn tensor(&self) -> DeviceTensor<'_> {
        match self {
            Buffer::F32(elements) => elements.into(),
            Buffer::F16(elements) => elements.into(),
            Buffer::Bf16(elements) => elements.into(),
        }
    }
}

fn upload_layer(
    stream: &Arc<CudaStream>,
    layer: &HostLayer<'_>,
) -> Result<Vec<Buffer>, DriverError> {
    let tensors = layer.operands();
    tensors
        .map(|tensor| Buffer::upload(stream, tensor))
        .collect()
}

/// The layer of which these are the tensors.
fn device_layer(tensors: &[Buffer]) -> DeviceLayer<'_> {
    match tensors {
        [maps, gradients] => Layer::Gradients {
            maps: maps.tensor(),
            gradients: gradients.tensor(),
        },
        tensors => tensors[0].tensor().into(),
    }
}
