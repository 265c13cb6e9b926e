//! Where `run` puts what it computes: tensors of a file, a picture, the progress bar.

use std::ops::Range;
use std::time::{Duration, Instant};

use attention_rollout::device::{Device, Next};
use attention_rollout::{DType, HostLayer, Output, Problem, post, validate};

use crate::error::{Error, Result};
use crate::heatmap::Drawing;
use crate::input::FeatureLayer;
use crate::job::{Job, check_leading_shape};
use crate::output::{TensorFile, TensorSpec};
use crate::pending::{self, PendingFile};
use crate::progress::MapProgress;
use crate::relevance::RelevanceArgs;
use crate::tensors::Tensors;

/// The tensors a job writes.
pub struct Outputs {
    /// Relevance, or what else comes out: one, or one for each layer.
    pub rollout: Vec<TensorSpec>,
    /// The first of them, repeated to the shape of a value.
    pub attribution: Option<TensorSpec>,
    /// The pictures of its patches.
    pub upsampled: Option<TensorSpec>,
}

impl Outputs {
    pub fn new(
        relevance: &RelevanceArgs,
        expand: bool,
        tensors: &Tensors<'_>,
        job: &Job<'_>,
    ) -> Result<Self> {
        let prefix = &job.feature.prefix;
        let shape = relevance.shape(&job.problem);
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
        let attribution = match expand {
            false => None,
            true => {
                let value = value_shape(relevance, tensors, job, &shape)?;
                Some(spec("attribution", value))
            }
        };
        let upsampled = relevance.upsample.map(|to| {
            let rows = &shape[..shape.len() - 1];
            spec("upsampled", &[rows, &[to.height, to.width]].concat())
        });
        Ok(Outputs {
            rollout,
            attribution,
            upsampled,
        })
    }

    pub fn specs(&self) -> impl Iterator<Item = &TensorSpec> {
        let derived = self.attribution.iter().chain(&self.upsampled);
        self.rollout.iter().chain(derived)
    }
}

/// The shape that `--expand` repeats relevance of `shape` to.
fn value_shape<'t>(
    relevance: &RelevanceArgs,
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
    if !relevance.keeps_columns() {
        return Err(Error::argument("--expand", "all columns", "--columns"));
    }
    let name = format!("{}value", job.feature.prefix);
    let value = tensors.require(&name, "--expand")?;
    check_leading_shape(&name, value, batch, tokens)?;
    Ok(value.shape())
}

/// Where results go.
pub struct ResultSink<'a> {
    pub relevance: &'a RelevanceArgs,
    pub special_tokens: usize,
    pub file: Option<TensorFile>,
    pub drawing: Option<Drawing>,
    pub drawn: Option<PendingFile>,
    pub progress: MapProgress,
}

impl ResultSink<'_> {
    /// Computes a job chunk by chunk; returns the time spent computing, and what computed it.
    pub fn run_job(
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
                    let maps = job.feature.layers(of_batch.clone()).map_err(place())?;
                    let layers: Vec<_> = maps.iter().map(FeatureLayer::host_layer).collect();
                    if let Some(tolerance) = validate {
                        let part = problem.slice_batch(items);
                        check_maps(job, &part, &layers, of_batch.start, tolerance)?;
                    }
                    started = Instant::now();
                    let pushed = plan.push(&layers);
                    pushed.map_err(|error| place()(error.in_batch(all.start)))?;
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
    pub fn commit(self) -> Result<()> {
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
