//! `plan`: how a problem would be computed here, without any maps.

use std::num::NonZeroUsize;

use attention_rollout::measure::HostRead;
use attention_rollout::memory::filled;
use attention_rollout::{HostLayer, Problem};
use clap::Args;
use serde_json::json;

use crate::backend::{self, DeviceArgs};
use crate::error::{Error, Result};
use crate::problem::ProblemArgs;
use crate::report;

/// Show how a problem would be computed on this machine: the form chosen, the workspace, the bytes to move, and the
/// floor on a CPU, the time it takes to read the maps once.
#[derive(Args, Debug)]
pub struct PlanArgs {
    #[command(flatten)]
    problem: ProblemArgs,

    #[command(flatten)]
    device: DeviceArgs,

    /// Plan for a GPU that need not be here: t4 | a100 | l4 | l40s | rtx4090 | h100 | h200 | b200 | rtx5090
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["device", "threads", "tune", "sample"])]
    gpu: Option<String>,

    /// List every way of computing it that is looked at, with its estimated time; the first one is taken
    #[arg(long, requires = "gpu")]
    explain: bool,

    /// Memory to read for measuring the floor, in MiB; more than the caches hold
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u16).range(1..))]
    sample: u16,

    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
pub fn run(args: &PlanArgs) -> Result<()> {
    let problem = args.problem.problem()?;
    if let Some(model) = &args.gpu {
        return plan_for(model, args, &problem);
    }
    let device = backend::open_for(&args.device, std::iter::once(&problem))?;
    let plan = device.plan(&problem).map_err(Error::rollout("plan"))?;

    let (map_bytes, output_bytes) = (problem.map_bytes(), 4 * problem.output_len());
    // What a GPU reads at, `bench` tells: it needs maps there.
    let is_cpu = device.name() == "cpu";
    let bandwidth = match is_cpu {
        true => Some(read_bandwidth(
            device.threads(),
            usize::from(args.sample) << 20,
        )?),
        false => None,
    };
    let floor = bandwidth.map(|bandwidth| map_bytes as f64 / bandwidth);
    let (variant, workspace) = (plan.variant(), plan.workspace_bytes());
    let (device, threads) = (device.name(), device.threads());
    let items = plan.items_per_chunk();
    if args.json {
        report::line(json!({
            "device": device,
            "threads": threads,
            "variant": variant,
            "items_per_chunk": items,
            "map_bytes": map_bytes,
            "output_bytes": output_bytes,
            "workspace_bytes": workspace,
            "read_bytes_per_second": bandwidth,
            "floor_seconds": floor,
        }))?;
        return Ok(());
    }
    let (shape, dtype) = (problem.shape(), problem.dtype());
    report::line(format_args!("problem    {shape}, {dtype}"))?;
    report::line(format_args!("device     {device}, {threads} threads"))?;
    report::line(format_args!("variant    {variant}"))?;
    report::line(format_args!("workspace  {}", bytes(workspace)))?;
    report::line(format_args!(
        "to move    {} of maps, {} of output",
        bytes(map_bytes),
        bytes(output_bytes)
    ))?;
    if let (Some(floor), Some(bandwidth)) = (floor, bandwidth) {
        report::line(format_args!(
            "floor      {:.3} ms to read the maps once from memory, at {:.1} GB/s (measured just now)",
            1e3 * floor,
            bandwidth / 1e9
        ))?;
    }
    if !is_cpu {
        report::line(format_args!("launches   of {items} items: {plan}"))?;
    }
    Ok(())
}

/// Shows how a GPU of a model would compute the problem.
#[cfg(feature = "cuda")]
fn plan_for(model: &str, args: &PlanArgs, problem: &Problem) -> Result<()> {
    use attention_rollout::cuda::{self, Candidate, DeviceLimits};

    let models = || DeviceLimits::MODELS.map(|(name, _)| name).join(" | ");
    let limits =
        DeviceLimits::of_model(model).ok_or_else(|| Error::argument("--gpu", models(), model))?;
    let options = backend::cuda_options(&args.device);
    let candidates = cuda::candidates(problem, &limits, &options);
    let candidates = candidates.map_err(Error::rollout("--gpu"))?;
    let listed = if args.explain { candidates.len() } else { 1 };
    let variants = |candidate: &Candidate| -> Vec<String> {
        let variants = candidate.schedule.variants().iter();
        variants.map(|variant| variant.symbol.clone()).collect()
    };
    if args.json {
        let candidates = candidates[..listed].iter().map(|candidate| {
            json!({
                "pipeline": candidate.schedule.pipeline().to_string(),
                "variants": variants(candidate),
                "launches": candidate.schedule.launches(),
                "workspace_bytes": candidate.schedule.workspace_bytes(),
                "estimate_us": candidate.estimate_us,
                "estimate_origin": candidate.estimate_origin.to_string(),
                "estimate_source": candidate.estimate_origin.source(),
                "floor_us": candidate.floor_us,
            })
        });
        let candidates: Vec<_> = candidates.collect();
        return report::line(json!({"gpu": model, "candidates": candidates}));
    }
    report::line(format_args!(
        "problem    {}, {}",
        problem.shape(),
        problem.dtype()
    ))?;
    report::line(format_args!(
        "gpu        {model}, whether or not it is here"
    ))?;
    let Candidate {
        schedule, floor_us, ..
    } = &candidates[0];
    report::line(format_args!(
        "floor      {floor_us:.1} us to move maps and output once, at the peak of its memory"
    ))?;
    report::line(format_args!(
        "workspace  {}",
        bytes(schedule.workspace_bytes())
    ))?;
    report::line(
        "estimates, each with the weakest origin of the rates that it goes by: assumed, published, predicted or measured",
    )?;
    for candidate in &candidates[..listed] {
        report::line(format_args!(
            "{:8.1} us  {:9}  launches: {:2}  {} ({})",
            candidate.estimate_us,
            candidate.estimate_origin,
            candidate.schedule.launches(),
            candidate.schedule.pipeline(),
            variants(candidate).join(", ")
        ))?;
    }
    if !args.explain {
        report::line(format_args!("launches   {schedule}"))?;
    }
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn plan_for(model: &str, _args: &PlanArgs, _problem: &Problem) -> Result<()> {
    let expected = "a binary with the CUDA backend";
    Err(Error::argument("--gpu", expected, model))
}

/// Bytes per second at which this machine reads memory: the best of a few reads.
fn read_bandwidth(threads: NonZeroUsize, sample_bytes: usize) -> Result<f64> {
    let place = "reading memory";
    let read = HostRead::new(threads).map_err(Error::rollout(place))?;
    let sample = filled("the memory to read", sample_bytes / 4, 1.0f32);
    let sample = sample.map_err(Error::rollout(place))?;
    let times = (0..3).map(|_| read.time(&[HostLayer::from(&sample[..])], sample_bytes));
    let best = times.min().unwrap_or_default();
    Ok(sample_bytes as f64 / best.as_secs_f64())
}

/// A size for people.
fn bytes(bytes: usize) -> String {
    indicatif::DecimalBytes(bytes as u64).to_string()
}
