//! The pipelines that a problem can be computed by, each as a list of steps.
//!
//! - rows: `rollout_rows`, up to 8 start rows, one pass over the maps from the last layer to the first;
//! - chain: `rollout_chain`, the matrix of short windows, one block per item;
//! - product: `head_fusion`, then `rollout_product` layer by layer, anything.
//!
//! Discard selects over whole fused maps, so with it the first two read fused maps instead of the caller's.

mod product;
mod streaming;

use std::ops::Range;

use super::constants::Constants;
use super::limits::DeviceLimits;
use super::params::MAX_LAYERS_PER_LAUNCH;
use super::schedule::{
    Common, Fused, Lane, Matrix, Place, Region, Schedule, Source, Step, Work, l2_budget,
};
use super::variant::{Arithmetic, Fusion, Variant};
use crate::dtype::DType;
use crate::layout::Shape;
use crate::problem::Problem;

/// Workspace buffers start at multiples of this: a cache line, and more than any load asks for.
const BUFFER_ALIGNMENT: usize = 256;

/// Elements of f32 in 16 bytes: rows of fused maps and states are padded to it.
const ROW_ALIGNMENT: usize = 4;

/// A pipeline with its open choices made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pipeline {
    /// `rollout_rows` holding `rows` start rows, each layer's rows divided among `splits` blocks.
    Rows { rows: u32, splits: u32 },
    /// `rollout_chain` for windows of up to `tokens` tokens.
    Chain { arithmetic: Arithmetic, tokens: u32 },
    /// `head_fusion` and `rollout_product`.
    Product { arithmetic: Arithmetic },
}

/// The schedule of `batch` items of `problem` at a time by `pipeline`. The constants are those of all items.
pub(super) fn schedule(
    problem: &Problem,
    batch: usize,
    limits: &DeviceLimits,
    pipeline: Pipeline,
) -> Schedule {
    let mut builder = Builder::new(problem, batch, limits, pipeline);
    if batch == 0 || builder.common.window_len == 0 {
        builder.zero_output();
        return builder.finish();
    }
    match pipeline {
        Pipeline::Rows { rows, splits } => builder.each_chunk(|builder, items, source, cuts| {
            builder.rows(items, source, cuts, rows, splits);
        }),
        Pipeline::Chain { arithmetic, tokens } => {
            builder.each_chunk(|builder, items, source, cuts| {
                builder.chain(items, source, cuts, arithmetic, tokens);
            });
        }
        Pipeline::Product { arithmetic } => builder.product(arithmetic),
    }
    builder.finish()
}

pub(super) use streaming::streaming;

/// Padded length of a row of fused maps or states.
pub(super) fn padded(len: usize) -> usize {
    len.next_multiple_of(ROW_ALIGNMENT)
}

/// Collects steps and workspace.
struct Builder<'a> {
    problem: &'a Problem,
    /// Items of one run.
    batch: usize,
    limits: &'a DeviceLimits,
    common: Common,
    pipeline: Pipeline,
    fusion: Fusion,
    normalize: bool,
    discard: bool,
    variants: Vec<Variant>,
    steps: Vec<Step>,
    workspace_bytes: usize,
    events: usize,
    pushes: Vec<usize>,
    constants: Constants,
}

impl<'a> Builder<'a> {
    fn new(
        problem: &'a Problem,
        batch: usize,
        limits: &'a DeviceLimits,
        pipeline: Pipeline,
    ) -> Self {
        let tokens = problem.shape().tokens;
        Builder {
            problem,
            batch,
            limits,
            common: common(problem),
            pipeline,
            fusion: Fusion::from(&problem.config().head_fusion),
            normalize: problem.config().normalize_rows,
            discard: problem.config().discard.is_some(),
            variants: Vec::new(),
            steps: Vec::new(),
            workspace_bytes: 0,
            events: 0,
            pushes: Vec::new(),
            constants: Constants::new(
                problem,
                match pipeline {
                    Pipeline::Product { .. } => padded(tokens),
                    _ => tokens,
                },
            ),
        }
    }

    fn finish(self) -> Schedule {
        let problem = self.problem;
        let shape = Shape {
            batch: self.batch,
            ..*problem.shape()
        };
        let share = self.batch as f64 / problem.shape().batch.max(1) as f64;
        let output_bytes = size_of::<f32>() * self.output_len();
        let spilled_bytes = self.spilled_bytes();
        Schedule {
            title: format!("{shape} {}", problem.dtype()),
            pipeline: self.pipeline,
            batch: self.batch,
            common: self.common,
            variants: self.variants,
            steps: self.steps,
            workspace_bytes: self.workspace_bytes,
            constants: self.constants,
            map_bytes: (problem.map_bytes() as f64 * share) as usize,
            output_bytes,
            spilled_bytes,
            events: self.events,
            pushes: self.pushes,
        }
    }

    /// Bytes of fused maps and states that leave L2 and come back, where the workspace is more than L2 holds.
    fn spilled_bytes(&self) -> usize {
        if self.workspace_bytes <= l2_budget(self.limits) {
            return 0;
        }
        let map = size_of::<f32>() * self.fused_floats();
        let state = size_of::<f32>() * padded(self.common.tokens as usize);
        let bytes = |step: &Step| match &step.work {
            Work::HeadFusion { layers, .. } => 2 * layers.len() * map,
            Work::Discard { layers, .. } => layers * map,
            Work::RowScales { .. } => map,
            Work::RolloutFirst { .. } | Work::RolloutProduct { .. } => {
                2 * step.rows as usize * state
            }
            Work::Zero { .. } | Work::RolloutRows { .. } | Work::RolloutChain { .. } => 0,
        };
        let steps = self.steps.iter();
        steps.map(|step| step.items.len() * bytes(step)).sum()
    }

    /// Takes `floats` f32 values of workspace.
    fn buffer(&mut self, floats: usize) -> Place {
        let offset = self.workspace_bytes.next_multiple_of(BUFFER_ALIGNMENT);
        self.workspace_bytes = offset + size_of::<f32>() * floats;
        Place {
            region: Region::Workspace,
            offset,
        }
    }

    fn step(&mut self, variant: Variant, work: Work, items: &Range<usize>, rows: u32) -> &mut Step {
        if !self.variants.contains(&variant) {
            self.variants.push(variant);
        }
        self.push(Some(variant), work, items, rows)
    }

    fn push(
        &mut self,
        variant: Option<Variant>,
        work: Work,
        items: &Range<usize>,
        rows: u32,
    ) -> &mut Step {
        self.steps.push(Step {
            variant,
            work,
            items: items.clone(),
            rows,
            splits: 1,
            lane: Lane::Main,
            wait: None,
            signal: None,
        });
        self.steps.last_mut().expect("a step was just pushed")
    }

    /// Elements of the output of one run.
    fn output_len(&self) -> usize {
        output_len(self.problem, self.batch)
    }

    fn zero_output(&mut self) {
        let bytes = size_of::<f32>() * self.output_len();
        if bytes > 0 {
            let place = output(0);
            let batch = self.batch;
            self.push(None, Work::Zero { place, bytes }, &(0..batch), 0);
        }
    }

    /// Bytes of one item's fused map.
    fn fused_floats(&self) -> usize {
        let len = self.common.window_len as usize;
        len * padded(len)
    }

    /// Room for fused maps `[layers, items, len, len]`.
    fn fused_buffer(&mut self, layers: usize, items: usize) -> Fused {
        let stride_batch = self.fused_floats();
        Fused {
            maps: Matrix {
                place: self.buffer(layers * items * stride_batch),
                stride_batch,
                stride_row: padded(self.common.window_len as usize),
            },
            stride_layer: items * stride_batch,
        }
    }

    /// Room for one `u64` cut per layer and item.
    fn cuts_buffer(&mut self, layers: usize, items: usize) -> Option<Place> {
        self.discard.then(|| self.buffer(2 * layers * items))
    }

    /// Fuses `layers` into `fused` and finds their cuts.
    fn fuse(
        &mut self,
        items: &Range<usize>,
        layers: Range<usize>,
        fused: Fused,
        cuts: Option<Place>,
    ) -> &mut Step {
        let variant = Variant::HeadFusion {
            dtype: self.problem.dtype(),
            fusion: self.fusion,
        };
        let count = layers.len();
        self.step(variant, Work::HeadFusion { layers, fused }, items, 0);
        if let Some(cuts) = cuts {
            let work = Work::Discard {
                fused,
                layers: count,
                cuts,
            };
            self.step(Variant::Discard, work, items, 0);
        }
        self.steps.last_mut().expect("a step was just pushed")
    }

    /// Calls `run` for the whole batch and the caller's layers; or, with discard, chunk by chunk for fused maps of all
    /// layers that stay in L2.
    fn each_chunk(&mut self, run: impl Fn(&mut Self, &Range<usize>, Source, Option<Place>)) {
        let batch = self.batch;
        if !self.discard {
            return run(self, &(0..batch), Source::Layers, None);
        }
        let layers = self.problem.layers();
        let item_bytes = size_of::<f32>() * layers.len() * self.fused_floats();
        let chunk = (l2_budget(self.limits) / item_bytes).clamp(1, batch);
        let fused = self.fused_buffer(layers.len(), chunk);
        let cuts = self.cuts_buffer(layers.len(), chunk);
        let buffers = self.workspace_bytes;
        for items in chunks(batch, chunk) {
            // Chunks follow one another in one stream: each may use the workspace of the one before.
            let largest = std::mem::replace(&mut self.workspace_bytes, buffers);
            for group in groups(layers.clone()) {
                let first = group.start - layers.start;
                let part = Fused {
                    maps: fused.layer(first),
                    ..fused
                };
                let cuts = cuts.map(|cuts| cuts_of(cuts, first, items.len()));
                self.fuse(&items, group, part, cuts);
            }
            run(self, &items, Source::Fused(fused), cuts);
            self.workspace_bytes = self.workspace_bytes.max(largest);
        }
    }

    /// The launch's share of fused maps and cuts that hold all layers.
    fn share(
        &self,
        source: Source,
        cuts: Option<Place>,
        first: usize,
        items: usize,
    ) -> (Source, Option<Place>) {
        let index = first - self.problem.layers().start;
        let source = match source {
            Source::Layers => Source::Layers,
            Source::Fused(fused) => Source::Fused(Fused {
                maps: fused.layer(index),
                ..fused
            }),
        };
        (source, cuts.map(|cuts| cuts_of(cuts, index, items)))
    }
}

impl Builder<'_> {
    /// Start rows times all layers, from the last to the first.
    fn rows(
        &mut self,
        items: &Range<usize>,
        source: Source,
        cuts: Option<Place>,
        rows: u32,
        splits: u32,
    ) {
        let start_rows = self.problem.start_rows();
        let variant = Variant::RolloutRows {
            dtype: self.source_dtype(source),
            rows,
            fusion: self.source_fusion(source),
            normalize: self.normalize,
            discard: self.discard,
        };
        let one_layer = splits > 1 || self.common.columns(source, false).tiles > 1;
        let launches: Vec<Range<usize>> = if one_layer {
            // After the first layer one more launch, of no layers, adds up the partial sums.
            let first = self.problem.layers().start;
            let layers = self.problem.layers().rev().map(|layer| layer..layer + 1);
            layers.chain(std::iter::once(first..first)).collect()
        } else {
            groups(self.problem.layers()).into_iter().rev().collect()
        };
        let floats = items.len() * splits as usize * start_rows * self.common.tokens as usize;
        let partials = match launches.len() {
            1 => Vec::new(),
            _ => vec![self.buffer(floats), self.buffer(floats)],
        };
        let last = launches.len() - 1;
        for (index, layers) in launches.into_iter().enumerate() {
            let (source, cuts) = self.share(source, cuts, layers.start, items.len());
            let work = Work::RolloutRows {
                source,
                layers,
                cuts,
                partials_in: (index > 0).then(|| (partials[(index - 1) % 2], splits)),
                partials_out: (index < last).then(|| partials[index % 2]),
            };
            let step = self.step(variant, work, items, start_rows as u32);
            step.splits = if index < last { splits } else { 1 };
        }
    }

    /// The matrix, one block per item.
    fn chain(
        &mut self,
        items: &Range<usize>,
        source: Source,
        cuts: Option<Place>,
        arithmetic: Arithmetic,
        tokens: u32,
    ) {
        let variant = Variant::RolloutChain {
            dtype: self.source_dtype(source),
            arithmetic,
            tokens,
            fusion: self.source_fusion(source),
            normalize: self.normalize,
            discard: self.discard,
        };
        for (index, layers) in groups(self.problem.layers()).into_iter().rev().enumerate() {
            let (source, cuts) = self.share(source, cuts, layers.start, items.len());
            let work = Work::RolloutChain {
                source,
                layers,
                cuts,
                resumes: index > 0,
            };
            self.step(variant, work, items, self.common.window_len);
        }
    }

    fn source_dtype(&self, source: Source) -> DType {
        match source {
            Source::Layers => self.problem.dtype(),
            Source::Fused(_) => DType::F32,
        }
    }

    /// Fused maps are the mean over their one head.
    fn source_fusion(&self, source: Source) -> Fusion {
        match source {
            Source::Layers => self.fusion,
            Source::Fused(_) => Fusion::Mean,
        }
    }
}

/// Extents and alignment that all launches of `problem` share.
pub(super) fn common(problem: &Problem) -> Common {
    let dtype = problem.dtype();
    let granule = 16 / dtype.size_bytes();
    let strides_aligned = problem.layers().all(|layer| {
        let strides = problem.strides(layer);
        [strides.batch, strides.head, strides.row]
            .iter()
            .all(|stride| stride.is_multiple_of(granule))
    });
    let windows = problem.windows();
    let starts_aligned = windows
        .iter()
        .all(|window| window.start.is_multiple_of(granule));
    Common {
        dtype,
        tokens: problem.shape().tokens as u32,
        window_len: windows.iter().map(|window| window.len).max().unwrap_or(0) as u32,
        aligned: strides_aligned && starts_aligned,
    }
}

/// Elements of the output of `batch` items of `problem`.
pub(super) fn output_len(problem: &Problem, batch: usize) -> usize {
    problem.output_len() / problem.shape().batch.max(1) * batch
}

fn output(offset: usize) -> Place {
    Place {
        region: Region::Output,
        offset,
    }
}

/// Cuts `[layers, items]` from layer `index` on.
fn cuts_of(mut cuts: Place, index: usize, items: usize) -> Place {
    cuts.offset += size_of::<u64>() * index * items;
    cuts
}

/// `layers` in groups that one launch can take.
fn groups(layers: Range<usize>) -> Vec<Range<usize>> {
    split(layers, MAX_LAYERS_PER_LAUNCH)
}

/// The batch in chunks.
fn chunks(batch: usize, chunk: usize) -> Vec<Range<usize>> {
    split(0..batch, chunk)
}

fn split(range: Range<usize>, part: usize) -> Vec<Range<usize>> {
    range
        .clone()
        .step_by(part)
        .map(|start| start..range.end.min(start + part))
        .collect()
}
