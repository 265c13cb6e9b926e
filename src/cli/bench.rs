//! `bench`: how long a rollout takes on this machine, beside the time it takes to read its maps.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use attention_rollout::measure::{self, Case, HostRead, Inputs, Times};
use attention_rollout::{DType, Problem, Shape};
use clap::Args;
use serde_json::json;

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::input::{Feature, InputFile, Maps, Tensors};
use crate::job::{jobs, problem};
use crate::options::{ConfigArgs, DeviceArg, DeviceArgs, OutputKind, SelectArgs};
use crate::report;

/// Time a rollout on this machine and compare it with reading its maps once, the least any rollout must do.
///
/// The answer is checked against the f64 reference first. Inputs smaller than a cache are repeated in memory, so
/// that every run reads them from there.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Maps to measure with, as `run` reads them (all features together are one run); random maps unless given
    #[arg(conflicts_with_all = ["shape", "dtype"])]
    input: Option<PathBuf>,

    /// Extents of random maps: LAYERS,BATCH,HEADS,TOKENS
    #[arg(long, default_value = "12,8,12,197")]
    shape: ShapeArg,

    /// Element type of random maps: f32 | f16 | bf16
    #[arg(long, default_value = "f32")]
    dtype: DType,

    #[command(flatten)]
    select: SelectArgs,

    /// What comes out: relevance of start rows, the whole rollout, or the rollout after each layer
    #[arg(long, value_enum, default_value_t = OutputKind::Rows)]
    output_kind: OutputKind,

    #[command(flatten)]
    config: ConfigArgs,

    #[command(flatten)]
    device: DeviceArgs,

    /// Timed runs, after one that is not timed
    #[arg(long, default_value = "21")]
    runs: NonZeroUsize,

    /// Do not check the answer first
    #[arg(long)]
    no_check: bool,

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
    if !matches!(args.device.device, DeviceArg::Auto | DeviceArg::Cpu) {
        return Err(Error::argument(
            "--device",
            "cpu, the only device that bench measures",
            args.device.device.to_string(),
        ));
    }
    let backend = Backend::cpu(&args.device)?;
    let mut cases = match &args.input {
        Some(path) => file_cases(args, &backend, path)?,
        None => vec![random_case(args, &backend)?],
    };
    if !args.no_check {
        for case in &mut cases {
            case.check().map_err(|reason| Error::Device {
                device: backend.device().to_owned(),
                reason,
            })?;
        }
    }
    let floor = HostRead::new(backend.threads()).map_err(Error::rollout("bench"))?;
    let times =
        measure::time(&mut cases, &floor, args.runs.get()).map_err(Error::rollout("bench"))?;
    summarize(args, &backend, &cases, &times);
    Ok(())
}

fn file_cases(args: &BenchArgs, backend: &Backend, path: &Path) -> Result<Vec<Case>> {
    let file = InputFile::open(path)?;
    let tensors = file.tensors()?;
    jobs(&tensors, &args.select, &args.config, args.output_kind)?
        .iter()
        .map(|job| {
            let maps = job.feature.maps(0..job.feature.shape.batch);
            let layers: Vec<_> = maps.iter().map(Maps::host_layer).collect();
            new_case(&job.problem, Inputs::copied(&layers), backend)
        })
        .collect()
}

fn random_case(args: &BenchArgs, backend: &Backend) -> Result<Case> {
    let ShapeArg(shape) = args.shape;
    let feature = Feature::without_maps(shape, args.dtype);
    let problem = problem(
        &Tensors::none(),
        &feature,
        &args.select,
        &args.config,
        args.output_kind,
    )?;
    let inputs = Inputs::random(&shape, args.dtype, args.config.causal, 0);
    new_case(&problem, inputs, backend)
}

fn new_case(problem: &Problem, inputs: Inputs, backend: &Backend) -> Result<Case> {
    Case::new(problem, inputs, backend.threads()).map_err(Error::rollout("bench"))
}

fn summarize(args: &BenchArgs, backend: &Backend, cases: &[Case], times: &Times) {
    let bytes: usize = cases.iter().map(|case| case.problem().map_bytes()).sum();
    let (run, floor) = (
        measure::minimum(&times.runs),
        measure::minimum(&times.floor),
    );
    let ratio = run.as_secs_f64() / floor.as_secs_f64();
    let threads = backend.threads();
    if args.json {
        let micros = |times: &[Duration]| -> Vec<f64> {
            times.iter().map(|time| time.as_secs_f64() * 1e6).collect()
        };
        report::line(json!({
            "device": backend.device(),
            "threads": threads,
            "checked": !args.no_check,
            "shapes": cases.iter().map(|case| {
                let shape = case.problem().shape();
                [shape.layers, shape.batch, shape.heads, shape.tokens]
            }).collect::<Vec<_>>(),
            "map_bytes": bytes,
            "runs_us": micros(&times.runs),
            "floor_us": micros(&times.floor),
            "floor_ratio": ratio,
        }));
        return;
    }
    for case in cases {
        let (shape, dtype) = (case.problem().shape(), case.problem().dtype());
        report::line(format_args!("maps     {shape} {dtype}"));
    }
    let row = |name: &str, times: &[Duration]| {
        let (minimum, median) = (measure::minimum(times), measure::median(times));
        report::line(format_args!(
            "{name} {:10.3} ms, median {:10.3} ms, {:6.1} GB/s of {:.1} MB",
            minimum.as_secs_f64() * 1e3,
            median.as_secs_f64() * 1e3,
            measure::gb_per_s(bytes, minimum),
            bytes as f64 * 1e-6,
        ));
    };
    row("rollout ", &times.runs);
    row("map read", &times.floor);
    let device = backend.device();
    let runs = times.runs.len();
    report::line(format_args!(
        "{ratio:.2} times the read, {runs} runs on {device}, {threads} threads"
    ));
}
