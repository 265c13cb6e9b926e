//! `selftest`: every kernel variant on a GPU, against the f64 reference.

use std::sync::Arc;

use attention_rollout::cuda::cudarc::driver::{CudaSlice, CudaStream, DriverError};
use attention_rollout::cuda::variant::{Form, Fusion, Variant};
use attention_rollout::cuda::{self, DeviceLayer, Plan};
use attention_rollout::{
    DType, Discard, DiscardScope, HeadFusion, HostLayer, Output, Problem, RolloutConfig, Shape,
    StartRows, measure::Inputs, reference,
};
use clap::Args;
use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::gpu::Gpus;
use crate::options::{DeviceArg, PrecisionArg};
use crate::report;
use crate::verify::{self, half_budget};

/// Run every kernel variant of the GPU's architecture on random maps and compare it with the f64 reference.
///
/// Exit status 1 where a variant fails or exceeds its error budget.
#[derive(Args, Debug)]
pub struct SelftestArgs {
    /// cuda | cuda:N
    #[arg(long, default_value = "cuda")]
    device: DeviceArg,

    /// Only variants whose symbol contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
}

/// Absolute error allowed on entries of at most 1, except where operands are rounded to f16.
const BUDGET: f64 = 1e-6;

/// Runs the subcommand.
pub fn run(args: &SelftestArgs) -> Result<()> {
    let device = |error: attention_rollout::Error| Error::Device {
        device: args.device.to_string(),
        reason: error.to_string(),
    };
    let gpus = Gpus::open(args.device, PrecisionArg::F32).map_err(device)?;
    let arch = cuda::limits(gpus.context()).map_err(device)?.arch;
    let (mut total, mut failed) = (0, 0);
    for variant in Variant::all() {
        let (major, minor) = variant.compute_capability();
        if !variant.symbol().contains(&args.only) || arch < 10 * major + minor {
            continue;
        }
        total += 1;
        let verdict = match max_error(&gpus, &variant) {
            Ok((error, budget)) if error <= budget => format!("{error:.2e}  ok"),
            Ok((error, budget)) => format!("{error:.2e}  FAILED, the budget is {budget:.2e}"),
            Err(error) => format!("FAILED: {error}"),
        };
        failed += usize::from(verdict.contains("FAILED"));
        report::line(format_args!("{variant:56}  {verdict}"));
    }
    if total == 0 {
        return Err(Error::argument(
            "--only",
            "part of a kernel's symbol",
            args.only.clone(),
        ));
    }
    let name = gpus.name();
    report::line(format_args!(
        "{name}: {} of {total} variants are right",
        total - failed
    ));
    match failed {
        0 => Ok(()),
        failed => Err(Error::Verify { failed, total }),
    }
}

/// The largest absolute error of `variant` over a problem that it takes part in, NaN where it left NaN, and the most it
/// may be.
fn max_error(gpus: &Gpus, variant: &Variant) -> Result<(f64, f64), Box<dyn std::error::Error>> {
    let problem = problem(variant)?;
    let inputs = Inputs::random(problem.shape(), problem.dtype(), false, 1);
    let layers = inputs.layers();
    let context = gpus.context();
    let gpus = gpus.forcing(variant);
    let mut plan = Plan::new(context, &problem, gpus.options())?;
    let stream = context.default_stream();
    let buffers = layers
        .iter()
        .map(|maps| Buffer::upload(&stream, maps))
        .collect::<Result<Vec<_>, DriverError>>()?;
    let device_layers: Vec<_> = buffers.iter().map(Buffer::layer).collect();
    // What a kernel forgets to write stays NaN.
    let mut out = stream.clone_htod(&vec![f32::NAN; problem.output_len()])?;
    plan.run(&stream, &device_layers, &mut out)?;
    let got = stream.clone_dtoh(&out)?;
    let want = reference::rollout(&problem, &layers)?;
    let budget = if gpus.is_half() {
        half_budget(&problem, &want)
    } else {
        BUDGET
    };
    Ok((verify::max_error(&got, &want), budget))
}

/// A problem that `variant` can take part in.
fn problem(variant: &Variant) -> attention_rollout::Result<Problem> {
    let mut config = RolloutConfig::default();
    let mut shape = Shape {
        layers: 3,
        batch: 2,
        heads: 3,
        tokens: 61,
    };
    let mut dtype = DType::F32;
    let discard = |on: bool| {
        let scope = DiscardScope::Map;
        on.then_some(Discard { ratio: 0.4, scope })
    };
    let head_fusion = |fusion: Fusion| match fusion {
        Fusion::Mean => HeadFusion::Mean,
        Fusion::Max => HeadFusion::Max,
        Fusion::Min => HeadFusion::Min,
        Fusion::Weighted => HeadFusion::Weighted(vec![0.5, 0.3, 0.2]),
    };
    match *variant {
        Variant::RolloutRows {
            dtype: of,
            rows,
            fusion,
            normalize,
            discard: discards,
        } => {
            (dtype, config.normalize_rows) = (of, normalize);
            config.head_fusion = head_fusion(fusion);
            config.discard = discard(discards);
            config.output = Output::Rows(StartRows::Rows((0..rows as usize).collect()));
        }
        Variant::RolloutChain {
            dtype: of,
            tokens,
            fusion,
            normalize,
            discard: discards,
            ..
        } => {
            (dtype, config.normalize_rows) = (of, normalize);
            config.head_fusion = head_fusion(fusion);
            config.discard = discard(discards);
            config.output = Output::Matrix;
            shape.tokens = tokens as usize - 3;
        }
        Variant::HeadFusion { dtype: of, fusion } => {
            dtype = of;
            config.head_fusion = head_fusion(fusion);
            config.output = Output::Cumulative;
        }
        Variant::Discard => config.discard = discard(true),
        Variant::RowScales => {
            config.normalize_rows = true;
            config.output = Output::Cumulative;
        }
        Variant::RolloutFirst => config.output = Output::Cumulative,
        Variant::RolloutProduct {
            form,
            discard: discards,
            ..
        } => {
            config.discard = discard(discards);
            config.output = match form {
                Form::Rows => Output::Rows(StartRows::Rows((0..9).collect())),
                Form::Matrix => Output::Cumulative,
            };
        }
    }
    Problem::new(shape, dtype, config)
}

/// A layer in device memory.
enum Buffer {
    F32(CudaSlice<f32>),
    F16(CudaSlice<f16>),
    Bf16(CudaSlice<bf16>),
}

impl Buffer {
    fn upload(stream: &Arc<CudaStream>, maps: &HostLayer<'_>) -> Result<Self, DriverError> {
        match maps.dtype() {
            DType::F32 => stream
                .clone_htod(maps.as_slice().unwrap_or_default())
                .map(Buffer::F32),
            DType::F16 => stream
                .clone_htod(maps.as_slice().unwrap_or_default())
                .map(Buffer::F16),
            DType::Bf16 => stream
                .clone_htod(maps.as_slice().unwrap_or_default())
                .map(Buffer::Bf16),
        }
    }

    fn layer(&self) -> DeviceLayer<'_> {
        match self {
            Buffer::F32(maps) => maps.into(),
            Buffer::F16(maps) => maps.into(),
            Buffer::Bf16(maps) => maps.into(),
        }
    }
}
