//! The pipelines that a problem can be computed by, each as a list of steps.
//!
//! - rows: `rollout_rows`, up to 8 start rows, one pass over the maps from the last layer to the first;
//! - chain: `rollout_chain`, the matrix of short windows, one block per item;
//! - product: `head_fusion`, then `rollout_product` layer by layer, anything.
//!
//! Discard selects over whole fused maps, so with it the first two read fused maps instead of the caller's.

mod one_pass;
mod product;
mod streaming;

use std::ops::Range;

use super::constants::Constants;
use super::geometry::Splits;
use super::limits::DeviceLimits;
use super::params::MAX_LAYERS_PER_LAUNCH;
use super::schedule::{
    Common, Fused, Lane, Matrix, Place, Region, Schedule, Step, Work, l2_budget,
};
use super::variant::{Arithmetic, Fusion, Variant};
use crate::layout::Shape;
use crate::problem::Problem;

/// Workspace buffers start at multiples of this: a cache line, and more than any load asks for.
const BUFFER_ALIGNMENT: usize = 256;

/// Elements of f32 in 16 bytes: rows of fused maps and states are padded to it.
const ROW_ALIGNMENT: usize = 4;

/// A pipeline with its open choices made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pipeline {
    /// `rollout_rows` holding `rows` start rows, each layer's rows divided as `splits` says.
    Rows { rows: u32, splits: Splits },
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
            Work::ZeroFill { .. } | Work::RolloutRows { .. } | Work::RolloutChain { .. } => 0,
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
        self.steps.push(Step {
            variant,
            work,
            items: items.clone(),
            rows,
            splits: Splits::ONE,
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
        let (out, len, items) = (output(0), self.output_len(), 0..self.batch);
        if len > 0 {
            self.step(Variant::ZeroFill, Work::ZeroFill { out, len }, &items, 0);
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
