//! `run`: the rollout of every feature of a file.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use attention_rollout::QueriesKeys;
use attention_rollout::device::Device;
use clap::Args;
use serde_json::json;

use crate::backend::{self, DeviceArgs};
use crate::error::{Error, Result, shown_path};
use crate::heatmap::{self, HeatmapArgs};
use crate::job::{Job, jobs};
use crate::options::{ConfigArgs, OutputKind, SelectArgs};
use crate::output::TensorFile;
use crate::pending::Destination;
use crate::progress::MapProgress;
use crate::relevance::RelevanceArgs;
use crate::report;
use crate::sink::{Outputs, ResultSink};
use crate::tensors::{InputFile, Tensors};

/// Compute the rollout of attention maps saved in a safetensors file.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// File with tensors layer.<l> or <feature>/layer.<l>, [batch, heads, tokens, tokens] or [batch, tokens, tokens]; or
    /// query.<l> and key.<l>, [batch, heads, tokens, head size], with or without lse.<l>, [batch, heads, tokens]
    pub input: PathBuf,

    /// File to write: [<feature>/]relevance, rollout or rollout.<l>, in f32
    #[arg(long, short, value_name = "FILE", required_unless_present = "heatmap")]
    pub output: Option<PathBuf>,

    #[command(flatten)]
    pub select: SelectArgs,

    /// What comes out: relevance of start rows, the whole rollout, or the rollout after each layer
    #[arg(long, value_enum, default_value_t = OutputKind::Rows)]
    pub output_kind: OutputKind,

    #[command(flatten)]
    pub config: ConfigArgs,

    #[command(flatten)]
    pub relevance: RelevanceArgs,

    #[command(flatten)]
    pub device: DeviceArgs,

    /// Stop at the first entry that is not finite or is negative, or row whose sum is off 1 by more than TOLERANCE
    /// (1e-5 for f32, 1e-3 for f16, 8e-3 for bf16 unless given)
    #[arg(long, value_name = "TOLERANCE", num_args = 0..=1, require_equals = true)]
    pub validate: Option<Option<f64>>,

    /// Also write attribution: relevance repeated to the shape of [<feature>/]value
    #[arg(long)]
    pub expand: bool,

    /// Print a summary as JSON on stdout
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub heatmap: HeatmapArgs,
}

impl RunArgs {
    /// Refuses options that do not go together, whatever the file holds.
    pub fn check(&self) -> Result<()> {
        if self.expand && self.output_kind != OutputKind::Rows {
            return Err(Error::argument(
                "--expand",
                "--output-kind rows",
                format!("{:?}", self.output_kind).to_lowercase(),
            ));
        }
        let draws_patches = self.heatmap.draws_patches() && self.output_kind == OutputKind::Rows;
        self.relevance
            .check_heeded(self.output_kind, draws_patches)?;
        let patches = draws_patches || self.relevance.upsample.is_some();
        let after_special = patches && self.relevance.keeps_columns();
        self.config
            .check_heeded(Some(self.output_kind), after_special)
    }
}

/// What one feature took.
struct Done {
    outputs: Outputs,
    time: Duration,
    /// `None` where there was nothing to compute.
    variant: Option<String>,
}

/// Runs the subcommand.
pub fn run(args: &RunArgs) -> Result<()> {
    let started = Instant::now();
    args.check()?;
    let file = InputFile::open(&args.input)?;
    check_paths(args)?;
    let tensors = file.tensors()?;
    let jobs = jobs(&tensors, &args.select, &args.config, args.output_kind)?;
    note_ignored_gradients(args, &tensors, &jobs);
    note_unknown_mass(&jobs);
    let device = backend::open_for(&args.device, jobs.iter().map(|job| &job.problem))?;
    let special_tokens = args.config.special_tokens();
    let outputs: Vec<Outputs> = jobs
        .iter()
        .map(|job| {
            args.relevance.check(job, special_tokens)?;
            Outputs::new(&args.relevance, args.expand, &tensors, job)
        })
        .collect::<Result<_>>()?;
    let drawing = heatmap::prepare(&args.heatmap, &args.relevance, special_tokens, &jobs)?;
    let file = match &args.output {
        Some(path) => {
            let specs = outputs.iter().flat_map(Outputs::specs);
            Some(TensorFile::create(path, specs)?)
        }
        None => None,
    };

    let total = jobs.iter().map(|job| job.problem.map_bytes() as u64).sum();
    let mut sink = ResultSink {
        relevance: &args.relevance,
        special_tokens,
        file,
        drawing,
        drawn: None,
        progress: MapProgress::start(total),
    };
    let mut done = Vec::with_capacity(jobs.len());
    for (job, outputs) in jobs.iter().zip(outputs) {
        let (time, variant) = sink.run_job(&device, job, &outputs, args.validate)?;
        done.push(Done {
            outputs,
            time,
            variant,
        });
    }
    sink.commit()?;
    summarize(args, &device, &jobs, &done, started.elapsed())
}

/// Tells of gradients beside layers that are taken as they are.
fn note_ignored_gradients(args: &RunArgs, tensors: &Tensors<'_>, jobs: &[Job<'_>]) {
    let has_gradients = |job: &&Job<'_>| {
        let first = format!("{}gradient.0", job.feature.prefix);
        tensors.get(&first).is_some()
    };
    if args.config.gradients.is_none() && jobs.iter().any(|job| has_gradients(&job)) {
        report::note(format_args!(
            "the gradients in {} are ignored; --gradients heads or fused takes them into account",
            shown_path(&args.input)
        ));
    }
}

/// Tells where a given LSE is not held to the sums of relevance.
fn note_unknown_mass(jobs: &[Job<'_>]) {
    let is_unknown = |job: &&Job<'_>| {
        let source = job.problem.queries_keys();
        let is_looked_at =
            |source: &&QueriesKeys| source.has_lse() && source.mass_tolerance.is_some();
        source.filter(is_looked_at).is_some() && job.problem.mass_tolerance().is_none()
    };
    if let Some(job) = jobs.iter().find(is_unknown) {
        report::note(format_args!(
            "{}: what relevance sums to is not known with these options, so only some rows of the LSE are looked at",
            job.feature.place()
        ));
    }
}

/// Refuses to write over a file that is being read, and one file over another.
fn check_paths(args: &RunArgs) -> Result<()> {
    let inputs = [
        Some(&args.input),
        args.heatmap.image.as_ref(),
        args.heatmap.tokens.as_ref(),
    ];
    // An input that is not there is told of when it is opened.
    let mut taken: Vec<Destination> = inputs
        .into_iter()
        .flatten()
        .filter_map(|path| Destination::resolve(path).ok())
        .collect();
    let outputs = [
        ("--output", &args.output),
        ("--heatmap", &args.heatmap.heatmap),
    ];
    for (option, path) in outputs {
        let Some(path) = path else { continue };
        let target = Destination::resolve(path).map_err(Error::output(path, "cannot create"))?;
        if let Some(other) = taken.iter().find(|other| other.is_same(&target)) {
            let got = other.path().display().to_string();
            return Err(Error::argument(option, "a file of its own", got));
        }
        taken.push(target);
    }
    Ok(())
}

fn summarize(
    args: &RunArgs,
    device: &Device,
    jobs: &[Job<'_>],
    done: &[Done],
    elapsed: Duration,
) -> Result<()> {
    if !args.json {
        let (features, seconds) = (jobs.len(), elapsed.as_secs_f64());
        let device = device.name();
        let plural = if features == 1 { "" } else { "s" };
        report::line(format_args!(
            "rollout of {features} feature{plural} on {device} in {seconds:.3} s"
        ))?;
        for path in [&args.output, &args.heatmap.heatmap].into_iter().flatten() {
            report::line(format_args!("wrote {}", shown_path(path)))?;
        }
        return Ok(());
    }
    let features: Vec<_> = jobs
        .iter()
        .zip(done)
        .map(|(job, done)| {
            let shape = job.problem.shape();
            let outputs: serde_json::Map<_, _> = done
                .outputs
                .specs()
                .map(|spec| (spec.name.clone(), json!(spec.shape)))
                .collect();
            json!({
                "feature": job.feature.name(),
                "layers": shape.layers,
                "batch": shape.batch,
                "heads": shape.heads,
                "tokens": shape.tokens,
                "dtype": job.feature.dtype.name(),
                "map_bytes": job.problem.map_bytes(),
                "variant": done.variant,
                "seconds": done.time.as_secs_f64(),
                "outputs": outputs,
            })
        })
        .collect();
    // JSON is Unicode, paths need not be.
    let lossy = |path: &Option<PathBuf>| {
        path.as_ref()
            .map(|path| path.to_string_lossy().into_owned())
    };
    report::line(json!({
        "input": args.input.to_string_lossy(),
        "output": lossy(&args.output),
        "heatmap": lossy(&args.heatmap.heatmap),
        "device": device.name(),
        "threads": device.threads(),
        "precision": if device.is_half() { "half" } else { "f32" },
        "seconds": elapsed.as_secs_f64(),
        "features": features,
    }))
}
