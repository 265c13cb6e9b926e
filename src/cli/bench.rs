//! `bench`: how long a rollout takes on a device, beside the time it takes to read its maps.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use attention_rollout::device::Device;
use attention_rollout::measure::{self, Case, Inputs, Products, Times};
use attention_rollout::{DType, Problem, Shape};
use clap::Args;
use serde_json::json;

use crate::backend::{self, DeviceArg, DeviceArgs};
use crate::error::{Error, Result};
use crate::input::FeatureLayer;
use crate::job::{Job, jobs, problem};
use crate::options::{ConfigArgs, OutputKind, SelectArgs};
use crate::report;
use crate::scores::ScoreExtentsArgs;
use crate::tensors::{InputFile, Tensors};

/// Time a rollout on a device and compare it with reading its maps once, the least any rollout must do.
///
/// The answer is checked against the f64 reference first. Maps lie in the device's own memory, and small ones are
/// repeated there, so that no run finds its maps in a cache. On a GPU the times are those of CUDA events around a run
/// that follows straight after another.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Maps to measure with, as `run` reads them (all features together are one run); random maps unless given
    #[arg(conflicts_with_all = ["shape", "dtype", "queries_keys"])]
    input: Option<PathBuf>,

    /// Extents of random maps: LAYERS,BATCH,HEADS,TOKENS
    #[arg(long, default_value = "12,8,12,197")]
    shape: ShapeArg,

    /// Element type of random maps: f32 | f16 | bf16
    #[arg(long, default_value = "f32")]
    dtype: DType,

    #[command(flatten)]
    scores: ScoreExtentsArgs,

    #[command(flatten)]
    select: SelectArgs,

    /// What comes out: relevance of start rows, the whole rollout, or the rollout after each layer
    #[arg(long, value_enum, default_value_t = OutputKind::Rows)]
    output_kind: OutputKind,

    #[command(flatten)]
    config: ConfigArgs,

    #[command(flatten)]
    device: DeviceArgs,

    /// Timed runs, after a warm-up
    #[arg(long, default_value = "21")]
    runs: NonZeroUsize,

    /// Do not check the answer first
    #[arg(long)]
    no_check: bool,

    /// On a GPU, time every way of computing it that `plan --explain` lists; prints CSV, times in microseconds
    #[arg(long, conflicts_with = "json")]
    pipelines: bool,

    /// Print the times as JSON on stdout
    #[arg(long)]
    json: bool,
}

/// `--shape`.
#[derive(Clone, Copy, Debug)]
struct ShapeArg(Shape);

impl FromStr for ShapeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let extents: Result<Vec<usize>, _> = text.split(',').map(|n| n.trim().parse()).collect();
        match extents.as_deref() {
            Ok(&[layers, batch, heads, tokens]) => Ok(ShapeArg(Shape {
                layers,
                batch,
                heads,
                tokens,
            })),
            _ => Err("expected LAYERS,BATCH,HEADS,TOKENS as 12,8,12,197".to_owned()),
        }
    }
}

/// Runs the subcommand.
pub fn run(args: &BenchArgs) -> Result<()> {
    if args.device.device == DeviceArg::CudaAll {
        return Err(Error::argument(
            "--device",
            "one device: auto, cpu, cuda or cuda:N",
            args.device.device.to_string(),
        ));
    }
    args.config.check_heeded(Some(args.output_kind), false)?;
    let (device, members) = match &args.input {
        Some(path) => file_members(args, path)?,
        None => random_member(args)?,
    };
    if members.iter().all(|(problem, _)| problem.map_bytes() == 0) {
        return Err(Error::argument("bench", "maps to read", "none"));
    }
    if args.pipelines {
        return time_pipelines(args, &device, members);
    }
    let mut case = device.case(members).map_err(Error::rollout("bench"))?;
    let times = checked_times(args, &device, &mut case)?;
    if let Some(reason) = &times.no_replays {
        report::note(format_args!("not measured as a graph: {reason}"));
    }
    let products = time_products(args, &device, &case)?;
    match args.json {
        true => print_json(args, &device, &case, (&times, &products)),
        false => print_lines(&device, &case, (&times, &products)),
    }
}

/// The times of the matrix products alone, for what is made of products on the CPU.
fn time_products(args: &BenchArgs, device: &Device, case: &Case) -> Result<Vec<Duration>> {
    let [problem] = case.problems() else {
        return Ok(Vec::new());
    };
    if device.name() != "cpu" {
        return Ok(Vec::new());
    }
    let products = Products::of(problem, device.threads()).map_err(Error::rollout("bench"))?;
    let times =
        products.map(|mut products| (0..args.runs.get()).map(|_| products.time()).collect());
    Ok(times.unwrap_or_default())
}

/// The times of a case whose answer has been checked.
fn checked_times(args: &BenchArgs, device: &Device, case: &mut Case) -> Result<Times> {
    if !args.no_check {
        case.check().map_err(|reason| Error::Device {
            device: device.name(),
            reason,
        })?;
    }
    case.time(args.runs.get()).map_err(Error::rollout("bench"))
}

/// Prints estimated and measured times of every way of computing a problem on a GPU.
#[cfg(feature = "cuda")]
fn time_pipelines(
    args: &BenchArgs,
    device: &Device,
    members: Vec<(Problem, Inputs)>,
) -> Result<()> {
    use attention_rollout::cuda::{self, Options};

    let place = "--pipelines";
    let [(problem, inputs)] = &members[..] else {
        let got = format!("{} features", members.len());
        return Err(Error::argument(place, "one feature", got));
    };
    if device.name() == "cpu" {
        return Err(Error::argument(place, "a GPU", "the CPU"));
    }
    let (runtimes, options) =
        backend::cuda_runtimes(&args.device).map_err(Error::rollout("bench"))?;
    let runtime = &runtimes[0];
    let candidates = cuda::candidates(problem, runtime.limits(), &options);
    report::line("pipeline,launches,estimate_us,measured_us,graph_us")?;
    for candidate in candidates.map_err(Error::rollout("bench"))? {
        let options = Options {
            pipeline: Some(candidate.schedule.pipeline()),
            ..options.clone()
        };
        let member = vec![(problem.clone(), inputs.clone())];
        let case = Case::cuda(member, runtime, &options);
        let mut case = case.map_err(Error::rollout("bench"))?;
        let times = checked_times(args, device, &mut case)?;
        let micros = |times: &[Duration]| measure::minimum(times).as_secs_f64() * 1e6;
        let graph_us = match times.replays.is_empty() {
            true => String::new(),
            false => format!("{:.2}", micros(&device_times(&times))),
        };
        report::line(format_args!(
            "\"{}\",{},{:.2},{:.2},{graph_us}",
            candidate.schedule.pipeline(),
            candidate.schedule.launches(),
            candidate.estimate_us,
            micros(&times.runs),
        ))?;
    }
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn time_pipelines(
    _args: &BenchArgs,
    _device: &Device,
    _members: Vec<(Problem, Inputs)>,
) -> Result<()> {
    let expected = "a binary with the CUDA backend";
    Err(Error::argument("--pipelines", expected, "one without"))
}

/// Every feature of a file.
fn file_members(args: &BenchArgs, path: &Path) -> Result<(Device, Vec<(Problem, Inputs)>)> {
    let file = InputFile::open(path)?;
    let tensors = file.tensors()?;
    let jobs = jobs(&tensors, &args.select, &args.config, args.output_kind)?;
    let device = backend::open_for(&args.device, jobs.iter().map(|job| &job.problem))?;
    let member = |job: Job<'_>| {
        let place = || Error::rollout(job.feature.place());
        let maps = job
            .feature
            .layers(0..job.feature.shape.batch)
            .map_err(place())?;
        let layers: Vec<_> = maps.iter().map(FeatureLayer::host_layer).collect();
        let inputs = Inputs::copied(&layers).map_err(place())?;
        Ok((job.problem, inputs))
    };
    let members: Result<_> = jobs.into_iter().map(member).collect();
    Ok((device, members?))
}

fn random_member(args: &BenchArgs) -> Result<(Device, Vec<(Problem, Inputs)>)> {
    let ShapeArg(shape) = args.shape;
    args.config.check_rows_for([""].into_iter())?;
    let feature = args.scores.feature(shape, args.dtype, &args.config.scores);
    let problem = problem(
        &Tensors::none(),
        &feature,
        &args.select,
        &args.config,
        args.output_kind,
    )?;
    // Before random maps are made, by the threads that it says.
    let device = backend::open_for(&args.device, std::iter::once(&problem))?;
    let inputs = Inputs::random(&problem, 0).map_err(Error::rollout("bench"))?;
    Ok((device, vec![(problem, inputs)]))
}

/// How many times as long as reading the maps a rollout takes.
fn floor_ratio(times: &Times) -> f64 {
    measure::minimum(&times.runs).as_secs_f64() / measure::minimum(&times.floor).as_secs_f64()
}

fn print_json(
    args: &BenchArgs,
    device: &Device,
    case: &Case,
    (times, products): (&Times, &[Duration]),
) -> Result<()> {
    let setup = case.setup();
    let micros = |times: &[Duration]| -> Vec<f64> {
        times.iter().map(|time| time.as_secs_f64() * 1e6).collect()
    };
    let shape = |problem: &Problem| {
        let shape = problem.shape();
        [shape.layers, shape.batch, shape.heads, shape.tokens]
    };
    let dtype = |problem: &Problem| problem.dtype().to_string();
    report::line(json!({
        "device": device.name(),
        "device_name": device.model(),
        "threads": device.threads(),
        "checked": !args.no_check,
        "shapes": case.problems().iter().map(shape).collect::<Vec<_>>(),
        "dtypes": case.problems().iter().map(dtype).collect::<Vec<_>>(),
        "variants": setup.variants,
        "workspace_bytes": setup.workspace_bytes,
        "copies": setup.copies,
        "map_bytes": case.map_bytes(),
        "floor_bytes": setup.floor_bytes,
        "repeats": times.repeats,
        "runs_us": micros(&times.runs),
        "floor_us": micros(&times.floor),
        "floor_ratio": floor_ratio(times),
        "products_us": micros(products),
        "graph_us": micros(&device_times(times)),
        "graph_latency_us": micros(&latencies(times)),
    }))
}

fn print_lines(
    device: &Device,
    case: &Case,
    (times, products): (&Times, &[Duration]),
) -> Result<()> {
    let setup = case.setup();
    for problem in case.problems() {
        let (shape, dtype) = (problem.shape(), problem.dtype());
        report::line(format_args!("maps       {shape} {dtype}"))?;
    }
    report::line(format_args!("variants   {}", setup.variants.join(" + ")))?;
    let row = |name: &str, times: &[Duration], bytes: usize| {
        let (minimum, median) = (measure::minimum(times), measure::median(times));
        report::line(format_args!(
            "{name:<10} {:10.4} ms, median {:10.4} ms, {:7.1} GB/s of {:.1} MB",
            minimum.as_secs_f64() * 1e3,
            median.as_secs_f64() * 1e3,
            measure::gb_per_s(bytes, minimum),
            bytes as f64 * 1e-6,
        ))
    };
    row("rollout", &times.runs, case.map_bytes())?;
    row("map read", &times.floor, setup.floor_bytes)?;
    if !times.replays.is_empty() {
        row("as a graph", &device_times(times), case.map_bytes())?;
        let latency = measure::minimum(&latencies(times));
        report::line(format_args!(
            "latency    {:10.4} ms, launching the graph and waiting for it",
            latency.as_secs_f64() * 1e3
        ))?;
    }
    if !products.is_empty() {
        let (run, alone) = (measure::minimum(&times.runs), measure::minimum(products));
        report::line(format_args!(
            "products   {:10.4} ms by themselves, of which it takes {:.2} times as long",
            alone.as_secs_f64() * 1e3,
            run.as_secs_f64() / alone.as_secs_f64(),
        ))?;
    }
    report::line(format_args!(
        "{:.2} times the read, {} runs on {} ({})",
        floor_ratio(times),
        times.runs.len(),
        device,
        device.model(),
    ))
}

fn device_times(times: &Times) -> Vec<Duration> {
    times.replays.iter().map(|replay| replay.device).collect()
}

fn latencies(times: &Times) -> Vec<Duration> {
    times.replays.iter().map(|replay| replay.latency).collect()
}
