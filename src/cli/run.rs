//! `run`: the rollout of every feature of a file.

use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use attention_rollout::device::{Device, Next};
use attention_rollout::{DType, HostLayer, Output, Problem, post, validate};
use clap::Args;
use serde_json::json;

use crate::backend;
use crate::error::{Error, Result, shown_path};
use crate::heatmap::{self, Drawing, HeatmapArgs};
use crate::input::{InputFile, Maps, Tensors};
use crate::job::{Job, check_leading_shape, jobs};
use crate::options::{ConfigArgs, DeviceArgs, OutputKind, SelectArgs};
use crate::output::{TensorFile, TensorSpec};
use crate::pending::{self, PendingFile, Target};
use crate::progress::Progress;
use crate::relevance::RelevanceArgs;
use crate::report;

/// Compute the rollout of attention maps saved in a safetensors file.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// File with tensors layer.<l> or <feature>/layer.<l>, [batch, heads, tokens, tokens] or [batch, tokens, tokens]
    input: PathBuf,

    /// File to write: [<feature>/]relevance, rollout or rollout.<l>, in f32
    #[arg(long, short, value_name = "FILE", required_unless_present = "heatmap")]
    output: Option<PathBuf>,

    #[command(flatten)]
    select: SelectArgs,

    /// What comes out: relevance of start rows, the whole rollout, or the rollout after each layer
    #[arg(long, value_enum, default_value_t = OutputKind::Rows)]
    output_kind: OutputKind,

    #[command(flatten)]
    config: ConfigArgs,

    #[command(flatten)]
    relevance: RelevanceArgs,

    #[command(flatten)]
    device: DeviceArgs,

    /// Stop at the first entry that is not finite or is negative, or row whose sum is off 1 by more than TOLERANCE
    /// (1e-5 for f32, 1e-3 for f16, 8e-3 for bf16 unless given)
    #[arg(long, value_name = "TOLERANCE", num_args = 0..=1, require_equals = true)]
    validate: Option<Option<f64>>,

    /// Also write attribution: relevance repeated to the shape of [<feature>/]value
    #[arg(long)]
    expand: bool,

    /// Print a summary as JSON on stdout
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    heatmap: HeatmapArgs,
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
    if args.expand && args.output_kind != OutputKind::Rows {
        return Err(Error::argument(
            "--expand",
            "--output-kind rows",
            format!("{:?}", args.output_kind).to_lowercase(),
        ));
    }
    let draws_patches = args.heatmap.draws_patches() && args.output_kind == OutputKind::Rows;
    args.relevance
        .check_heeded(args.output_kind, draws_patches)?;
    let patches = draws_patches || args.relevance.upsample.is_some();
    let after_special = patches && args.relevance.keeps_columns();
    args.config
        .check_heeded(Some(args.output_kind), after_special)?;
    let file = InputFile::open(&args.input)?;
    check_paths(args)?;
    let tensors = file.tensors()?;
    let jobs = jobs(&tensors, &args.select, &args.config, args.output_kind)?;
    note_ignored_gradients(args, &tensors, &jobs);
    let device = backend::open(&args.device)?;
    let special_tokens = args.config.special_tokens();
    let outputs: Vec<Outputs> = jobs
        .iter()
        .map(|job| {
            args.relevance.check(job, special_tokens)?;
            Outputs::new(args, &tensors, job)
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
    let mut sink = Sink {
        relevance: &args.relevance,
        special_tokens,
        file,
        drawing,
        drawn: None,
        progress: Progress::start(total),
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

/// Refuses to write over a file that is being read, and one file over another.
fn check_paths(args: &RunArgs) -> Result<()> {
    let inputs = [
        Some(&args.input),
        args.heatmap.image.as_ref(),
        args.heatmap.tokens.as_ref(),
    ];
    // An input that is not there is told of when it is opened.
    let mut taken: Vec<Target> = inputs
        .into_iter()
        .flatten()
        .filter_map(|path| Target::resolve(path).ok())
        .collect();
    let outputs = [
        ("--output", &args.output),
        ("--heatmap", &args.heatmap.heatmap),
    ];
    for (option, path) in outputs {
        let Some(path) = path else { continue };
        let target = Target::resolve(path).map_err(Error::output(path, "cannot create"))?;
        if let Some(other) = taken.iter().find(|other| other.is_same(&target)) {
            let got = other.path().display().to_string();
            return Err(Error::argument(option, "a file of its own", got));
        }
        taken.push(target);
    }
    Ok(())
}

/// The tensors a job writes.
struct Outputs {
    /// Relevance, or what else comes out: one, or one for each layer.
    rollout: Vec<TensorSpec>,
    /// The first of them, repeated to the shape of a value.
    attribution: Option<TensorSpec>,
    /// The pictures of its patches.
    upsampled: Option<TensorSpec>,
}

impl Outputs {
    fn new(args: &RunArgs, tensors: &Tensors<'_>, job: &Job<'_>) -> Result<Self> {
        let prefix = &job.feature.prefix;
        let shape = args.relevance.shape(&job.problem);
        let spec = |name: &str, shape: &[usize]| TensorSpec {
            name: format!("{prefix}{name}"),
            shape: shape.to_vec(),
        };
        let rollout = match job.problem.config().output {
            Output::Rows(_) => vec![spec("relevance", &shape)],
            Output::Matrix => vec![spec("rollout", &shape)],
            Output::Cumulative => job
                .problem
                .layers()
                .map(|layer| spec(&format!("rollout.{layer}"), &shape[1..]))
                .collect(),
        };
        let attribution = match args.expand {
            false => None,
            true => {
                let value = value_shape(args, tensors, job, &shape)?;
                Some(spec("attribution", value))
            }
        };
        let upsampled = args.relevance.upsample.map(|to| {
            let rows = &shape[..shape.len() - 1];
            spec("upsampled", &[rows, &[to.height, to.width]].concat())
        });
        Ok(Outputs {
            rollout,
            attribution,
            upsampled,
        })
    }

    fn specs(&self) -> impl Iterator<Item = &TensorSpec> {
        let derived = self.attribution.iter().chain(&self.upsampled);
        self.rollout.iter().chain(derived)
    }
}

/// The shape that `--expand` repeats relevance of `shape` to.
fn value_shape<'t>(
    args: &RunArgs,
    tensors: &'t Tensors<'_>,
    job: &Job<'_>,
    shape: &[usize],
) -> Result<&'t [usize]> {
    let [batch, tokens] = shape[..] else {
        return Err(Error::argument(
            "--expand",
            "one start row",
            format!("{} in {}", job.problem.start_rows(), job.feature.place()),
        ));
    };
    if !args.relevance.keeps_columns() {
        return Err(Error::argument("--expand", "all columns", "--columns"));
    }
    let name = format!("{}value", job.feature.prefix);
    let value = tensors.require(&name, "--expand")?;
    check_leading_shape(&name, value, batch, tokens)?;
    Ok(value.shape())
}

/// Where results go.
struct Sink<'a> {
    relevance: &'a RelevanceArgs,
    special_tokens: usize,
    file: Option<TensorFile>,
    drawing: Option<Drawing>,
    drawn: Option<PendingFile>,
    progress: Progress,
}

impl Sink<'_> {
    /// Computes a job chunk by chunk; returns the time spent computing, and what computed it.
    fn run_job(
        &mut self,
        device: &Device,
        job: &Job<'_>,
        outputs: &Outputs,
        validate: Option<Option<f64>>,
    ) -> Result<(Duration, Option<String>)> {
        let all = match (&self.file, &self.drawing) {
            (None, Some(drawing)) => drawing.item..drawing.item + 1,
            _ => 0..job.problem.shape().batch,
        };
        if all.is_empty() {
            return Ok((Duration::ZERO, None));
        }
        let place = || Error::rollout(job.feature.place());
        let problem = job.problem.slice_batch(all.clone());
        let map_bytes = problem.map_bytes() as u64 / all.len() as u64;
        let mut started = Instant::now();
        let mut plan = device.plan(&problem).map_err(place())?;
        let variant = plan.variant();
        plan.restart().map_err(place())?;
        let mut time = started.elapsed();
        loop {
            started = Instant::now();
            let next = plan.step().map_err(place())?;
            time += started.elapsed();
            match next {
                None => return Ok((time, Some(variant))),
                Some(Next::Push(items)) => {
                    let of_batch = all.start + items.start..all.start + items.end;
                    let maps = job.feature.maps(of_batch.clone()).map_err(place())?;
                    let layers: Vec<_> = maps.iter().map(Maps::host_layer).collect();
                    if let Some(tolerance) = validate {
                        let part = problem.slice_batch(items);
                        check_maps(job, &part, &layers, of_batch.start, tolerance)?;
                    }
                    started = Instant::now();
                    plan.push(&layers).map_err(place())?;
                    time += started.elapsed();
                }
                Some(Next::Done(chunk)) => {
                    let items = all.start + chunk.items().start..all.start + chunk.items().end;
                    let out = match job.problem.config().output {
                        Output::Rows(_) => {
                            let left = self.relevance.apply(&job.problem, &items, chunk.out());
                            left.map_err(place())?
                        }
                        Output::Matrix | Output::Cumulative => chunk.out().into(),
                    };
                    self.draw(&items, &out)?;
                    self.write(job, &items, &out, outputs)?;
                    self.progress.add(map_bytes * items.len() as u64);
                }
            }
        }
    }

    /// Draws the picture where `out`, the results of `items`, holds its item.
    fn draw(&mut self, items: &Range<usize>, out: &[f32]) -> Result<()> {
        let is_here = |drawing: &mut Drawing| items.contains(&drawing.item);
        if let Some(drawing) = self.drawing.take_if(is_here) {
            let item = out.len() / items.len();
            let first = (drawing.item - items.start) * item;
            self.drawn = Some(drawing.draw(&out[first..first + item])?);
        }
        Ok(())
    }

    /// Writes the results of `items` to where they belong in each output tensor.
    fn write(
        &mut self,
        job: &Job<'_>,
        items: &Range<usize>,
        out: &[f32],
        outputs: &Outputs,
    ) -> Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let layer = out.len() / outputs.rollout.len();
        for (spec, layer) in outputs.rollout.iter().zip(out.chunks_exact(layer.max(1))) {
            file.write_items(spec, items, layer)?;
        }
        if let Some(attribution) = &outputs.attribution {
            // [B, N] to [B, N, ...]: each token's relevance for everything the token holds.
            let relevance = [items.len(), out.len() / items.len()];
            let value = [&[items.len()], &attribution.shape[1..]].concat();
            let expanded = post::expand(out, &relevance, &value)
                .map_err(Error::rollout(job.feature.place()))?;
            file.write_items(attribution, items, &expanded)?;
        }
        if let Some(upsampled) = &outputs.upsampled {
            // They may be much larger than what they are made of.
            let rows = out.chunks_exact(out.len() / items.len());
            for (item, rows) in items.clone().zip(rows) {
                let special_tokens = self.special_tokens;
                let pictures = self
                    .relevance
                    .pictures(&job.problem, item, rows, special_tokens)?;
                file.write_items(upsampled, &(item..item + 1), &pictures)?;
            }
        }
        Ok(())
    }

    /// Gives the finished files their names.
    fn commit(self) -> Result<()> {
        let files = [self.file.map(TensorFile::into_pending), self.drawn];
        pending::commit(files.into_iter().flatten())
    }
}

/// Checks that the maps of the items from `first_item` on are attention.
fn check_maps(
    job: &Job<'_>,
    part: &Problem,
    layers: &[HostLayer<'_>],
    first_item: usize,
    tolerance: Option<f64>,
) -> Result<()> {
    // Rounding the entries of a row to f16 or bf16 moves their sum by up to half a unit in the last place of 1.
    let tolerance = tolerance.unwrap_or(match job.feature.dtype {
        DType::F32 => 1e-5,
        DType::F16 => 1e-3,
        DType::Bf16 => 8e-3,
    });
    let defect = validate(part, layers, tolerance).map_err(Error::rollout("--validate"))?;
    defect.map_or(Ok(()), |mut defect| {
        defect.item += first_item;
        let expected = "rows of probabilities (--validate)";
        Err(job.feature.refuse(expected, &defect))
    })
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
