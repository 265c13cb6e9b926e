//! Which pipeline computes a problem: a pure function of the problem, the device's limits and the options.
//!
//! Every pipeline that can compute the problem, and every way of dividing the rows of an item among blocks that is worth
//! a look, is given an [estimate] of its time by the [rates] of the device, and the one of least time is taken.

mod candidates;
mod cuts;
mod estimate;
mod figure;
mod matrix;
mod rates;
mod ring;
mod scores;

use super::address::Base;
use super::kernel::{self, Arithmetic, RolloutRows, SCORES_ARCH, padded};
use super::limits::DeviceLimits;
use super::options::{LayerOrder, Options, Precision};
use super::pipeline::{Common, Pipeline, matrix_reads_fused, rows_read_fused};
use super::schedule::Schedule;
use crate::config::Output;
use crate::error::{Error, Result};
use crate::layer::Operand;
use crate::problem::Problem;

use rates::Rates;

pub use figure::Origin;
pub(super) use matrix::fastest_product;

/// Estimates that differ by less tell nothing: then launches count.
const NEAR: f64 = 1.1;

/// Chooses how `problem` is computed on a device with these limits.
///
/// Reads no environment and asks no driver.
///
/// # Errors
/// [`Error::Architecture`] where the device is too old, for queries and keys older than sm_80; [`Error::SizeOverflow`] where an extent does not fit a launch;
/// [`Error::Variant`] where `options.variant` names a kernel that
/// does not exist, or that no way of computing this problem on this device uses, or `options.pipeline` is no such way.
pub fn choose(problem: &Problem, limits: &DeviceLimits, options: &Options) -> Result<Schedule> {
    choose_for(problem, problem.shape().batch, limits, options)
}

/// A way of computing a problem, with the times that are known before it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// What a plan would launch.
    pub schedule: Schedule,
    /// The time of a run in microseconds, as it is estimated: within about 1.5 of what a model of an H200 or an H100 predicts,
    /// and scaled to other devices by their multiprocessors and memory.
    pub estimate_us: f64,
    /// The weakest origin of the rates that the estimate goes by.
    pub estimate_origin: Origin,
    /// What memory takes at its peak to move the maps and the output once, in microseconds; NaN where the peak is unknown.
    pub floor_us: f64,
}

/// Every way of computing `problem` that [`choose`] looks at: first the one that it takes, then the others, by their
/// estimates.
///
/// # Errors
/// As [`choose`].
pub fn candidates(
    problem: &Problem,
    limits: &DeviceLimits,
    options: &Options,
) -> Result<Vec<Candidate>> {
    candidates_for(problem, problem.shape().batch, limits, options)
}

/// As [`candidates`], for runs of `batch` items of the problem at a time.
pub(super) fn candidates_for(
    problem: &Problem,
    batch: usize,
    limits: &DeviceLimits,
    options: &Options,
) -> Result<Vec<Candidate>> {
    let chosen = choose_for(problem, batch, limits, options)?;
    let work = Workload::new(problem, batch, limits, rows_read_fused(problem));
    let peak = match limits.memory_bytes_per_us {
        0 => f64::NAN,
        peak => f64::from(peak),
    };
    let candidate = |schedule: Schedule| {
        let estimate = work.microseconds(schedule.pipeline);
        Candidate {
            estimate_us: estimate.value,
            estimate_origin: estimate.origin,
            floor_us: schedule.floor_bytes() as f64 / peak,
            schedule,
        }
    };
    let mut others = work.candidates(options.precision);
    others.retain(|&(_, pipeline)| pipeline != chosen.pipeline);
    others.sort_by(|a, b| a.0.total_cmp(&b.0));
    others.dedup_by_key(|&mut (_, pipeline)| pipeline);
    let others = others
        .into_iter()
        .map(|(_, pipeline)| pipeline.schedule(problem, batch, limits));
    Ok(std::iter::once(chosen)
        .chain(others)
        .map(candidate)
        .collect())
}

/// As [`choose`], for runs of `batch` items of the problem at a time.
pub(super) fn choose_for(
    problem: &Problem,
    batch: usize,
    limits: &DeviceLimits,
    options: &Options,
) -> Result<Schedule> {
    let work = Workload::new(problem, batch, limits, rows_read_fused(problem));
    work.choose(options, |pipeline| {
        pipeline.schedule(problem, batch, limits)
    })
}

/// As [`choose`], for launches that are shared with other problems; `sharing` blocks of a queue of rows share a multiprocessor.
pub(super) fn choose_grouped(
    problem: &Problem,
    limits: &DeviceLimits,
    options: &Options,
    sharing: u32,
) -> Result<Schedule> {
    let batch = problem.shape().batch;
    let work = Workload {
        grouped: true,
        sharing: Some(sharing),
        ..Workload::new(problem, batch, limits, rows_read_fused(problem))
    };
    // The blocks of several problems lie between those of one.
    let apart = DeviceLimits {
        clusters: false,
        ..limits.clone()
    };
    work.choose(options, |pipeline| {
        pipeline.schedule(problem, batch, &apart)
    })
}

/// What a run of `problem` by itself takes, in microseconds, as it is estimated.
///
/// # Errors
/// As [`choose`].
pub(super) fn alone_us(problem: &Problem, limits: &DeviceLimits, options: &Options) -> Result<f64> {
    let batch = problem.shape().batch;
    let pipeline = choose_for(problem, batch, limits, options)?.pipeline;
    let work = Workload::new(problem, batch, limits, rows_read_fused(problem));
    Ok(work.microseconds(pipeline).value)
}

/// What a problem takes in a queue of rows, in microseconds, as it is estimated.
pub(super) struct Queued {
    /// One item, by a block that reads no more than its part of what memory brings.
    pub item_us: f64,
    /// Memory, to bring the maps of all items.
    pub memory_us: f64,
}

/// What `problem` takes in a queue of rows, where it joins one.
pub(super) fn queued(problem: &Problem, limits: &DeviceLimits) -> Option<Queued> {
    let work = |batch, limits| Workload {
        grouped: true,
        ..Workload::new(problem, batch, limits, rows_read_fused(problem))
    };
    let part = DeviceLimits {
        memory_bytes_per_us: limits.memory_bytes_per_us / limits.multiprocessors.max(1),
        multiprocessors: 1,
        ..limits.clone()
    };
    let mut candidates = work(1, &part).candidates(Precision::F32).into_iter();
    let (item_us, _) = candidates.find(|(_, way)| matches!(way, Pipeline::RingRows(_)))?;
    let memory_us = work(problem.shape().batch, limits).memory_us().value;
    Some(Queued { item_us, memory_us })
}

/// Chooses how `problem` is computed on a device with these limits when its layers are pushed one by one.
///
/// # Errors
/// As [`choose`]; [`Error::Conflict`] where the last layer comes first and the output is not relevance rows.
pub fn choose_streaming(
    problem: &Problem,
    limits: &DeviceLimits,
    options: &Options,
) -> Result<Schedule> {
    let batch = problem.shape().batch;
    let order = options.layer_order;
    let is_rows = matches!(problem.config().output, Output::Rows(_));
    if order == LayerOrder::TopDown && !is_rows {
        return Err(Error::Conflict {
            what: "layers from the last to the first",
            with: "a matrix",
        });
    }
    let work = Workload {
        order: Some(order),
        ..Workload::new(problem, batch, limits, true)
    };
    work.choose(options, |pipeline| {
        pipeline.streaming(problem, batch, batch, limits, order)
    })
}

/// The cheapest of candidates in ascending order, or rows in one launch that are estimated to cost little more.
fn preferred(candidates: &[(f64, Pipeline)]) -> Option<Pipeline> {
    let &(least_us, cheapest) = candidates.first()?;
    let near = candidates
        .iter()
        .take_while(|(us, _)| *us <= NEAR * least_us);
    let one_launch = |pipeline: &Pipeline| match pipeline {
        Pipeline::Rows { splits, .. } => splits.parts() == 1,
        Pipeline::RingRows(_) => true,
        // Writes no map, which is worth as much.
        Pipeline::ScoreRows(_) | Pipeline::ScoreStream(_) | Pipeline::ShortRows(_) => true,
        Pipeline::RingMatrix(_) | Pipeline::Product { .. } | Pipeline::Tree(_) => false,
    };
    let mut near = near.map(|&(_, pipeline)| pipeline).filter(one_launch);
    Some(near.next().unwrap_or(cheapest))
}

/// A problem on a device, with what every estimate asks for.
#[derive(Clone, Copy)]
struct Workload<'a> {
    problem: &'a Problem,
    limits: &'a DeviceLimits,
    rates: &'a Rates,
    common: Common,
    /// Items of one run.
    batch: f64,
    /// Bytes of the maps of one item, on average.
    item_bytes: f64,
    growth_bound: f64,
    /// `rollout_rows` and `rows_stream` read fused maps instead of the caller's.
    fused_first: bool,
    /// The same of `matrix_stream`.
    matrix_fused_first: bool,
    /// Its launches are shared with other problems.
    grouped: bool,
    /// Blocks of a queue of rows that share a multiprocessor, where there is one.
    sharing: Option<u32>,
    /// Its layers come one by one.
    order: Option<LayerOrder>,
}

impl<'a> Workload<'a> {
    fn new(
        problem: &'a Problem,
        batch: usize,
        limits: &'a DeviceLimits,
        fused_first: bool,
    ) -> Self {
        Workload {
            problem,
            limits,
            rates: Rates::of(limits),
            common: Common::new(problem),
            batch: batch as f64,
            item_bytes: problem.map_bytes() as f64 / problem.shape().batch.max(1) as f64,
            growth_bound: problem.growth_bound(),
            fused_first,
            matrix_fused_first: fused_first || matrix_reads_fused(problem),
            grouped: false,
            sharing: None,
            order: None,
        }
    }

    /// The schedule of the cheapest pipeline, or of the cheapest with the forced variant.
    fn choose(&self, options: &Options, build: impl Fn(Pipeline) -> Schedule) -> Result<Schedule> {
        self.check()?;
        let mut candidates = self.candidates(options.precision);
        if let Some(forced) = options.pipeline {
            let is_one = candidates.iter().any(|&(_, pipeline)| pipeline == forced);
            return is_one.then(|| build(forced)).ok_or_else(|| Error::Variant {
                name: forced.to_string(),
                reason: "is no way of computing this problem on this device".to_owned(),
            });
        }
        // Rows of a group are one queue where that can be: predicted 2.5 times faster for all members together, whatever
        // each alone would take. Matrices take the tree, whose levels they share; of one layer, and short, what a block has on
        // chip. A product of layers in turn would take launches in which nobody else has a part.
        let rank = |pipeline| match pipeline {
            _ if !self.grouped => 0,
            Pipeline::RingRows(_) | Pipeline::RingMatrix(_) => 0,
            Pipeline::Tree(_) => 1,
            Pipeline::Product { .. } => 3,
            _ => 2,
        };
        candidates.sort_by(|a, b| rank(a.1).cmp(&rank(b.1)).then(a.0.total_cmp(&b.0)));
        let Some(name) = &options.variant else {
            let pipeline = preferred(&candidates);
            return Ok(build(pipeline.unwrap_or(self.product(Arithmetic::F32))));
        };
        let unusable = |reason: &str| Error::Variant {
            name: name.clone(),
            reason: reason.to_owned(),
        };
        if kernel::find(name).is_none() {
            return Err(unusable("does not exist"));
        }
        let has_forced = |schedule: &Schedule| {
            let mut variants = schedule.variants().iter();
            variants.any(|variant| variant.symbol == *name)
        };
        let candidates = candidates.into_iter().map(|(_, pipeline)| pipeline);
        candidates
            .chain(self.siblings())
            .map(build)
            .find(has_forced)
            .ok_or_else(|| {
                unusable("takes no part in any way of computing this problem on this device")
            })
    }

    /// Checks that there is a way to launch anything for the problem on the device.
    fn check(&self) -> Result<()> {
        let required = match self.problem.queries_keys() {
            Some(_) => SCORES_ARCH,
            None => DeviceLimits::OLDEST_ARCH,
        };
        if self.limits.arch < required {
            return Err(Error::Architecture {
                required,
                got: self.limits.arch,
            });
        }
        let shape = self.problem.shape();
        let extents = [
            shape.batch,
            shape.heads,
            shape.tokens,
            self.problem.start_rows(),
        ];
        if extents.iter().any(|&extent| extent > i32::MAX as usize) {
            return Err(Error::SizeOverflow {
                what: "an extent of a launch",
            });
        }
        if shape.layers > Base::MOST {
            return Err(Error::SizeOverflow {
                what: "the layers of a launch",
            });
        }
        if !self.fits_addresses()? {
            return Err(Error::SizeOverflow {
                what: "a buffer of a launch",
            });
        }
        Ok(())
    }

    /// Whether addresses can count the bytes of every layer, of the output and of every buffer. No buffer is larger than
    /// the f32 maps of all layers, each row of which has as many partial sums as `rollout_rows` holds start rows.
    fn fits_addresses(&self) -> Result<bool> {
        let shape = self.problem.shape();
        let mut sizes = vec![
            vec![size_of::<f32>(), self.problem.output_len()],
            vec![
                size_of::<f32>() * RolloutRows::ROWS[1] as usize,
                shape.layers,
                shape.batch,
                shape.tokens,
                padded(shape.tokens),
            ],
        ];
        for layer in self.problem.layers() {
            let operands = self.problem.operands(layer)?;
            let bytes = |operand: &Operand| vec![operand.dtype.size_bytes(), operand.len];
            sizes.extend(operands.operands().map(bytes));
        }
        let product = |factors: &Vec<usize>| {
            let mut factors = factors.iter();
            factors.try_fold(1u64, |product, &factor| product.checked_mul(factor as u64))
        };
        let mut sizes = sizes.iter().map(product);
        Ok(sizes.all(|bytes| bytes.is_some_and(|bytes| bytes < Base::MOST_BYTES)))
    }
}
