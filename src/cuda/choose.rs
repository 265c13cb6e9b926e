//! Which pipeline computes a problem: a pure function of the problem, the device's limits and the options.
//!
//! Every pipeline that can compute the problem, and every way of dividing the rows of an item among blocks that is worth
//! a look, is given an [estimate] of its time, and the one of least time is taken.

mod estimate;

use super::address::Base;
use super::kernel::{
    self, Arithmetic, Columns, Exchange, Form, Fusion, Kernel, RingRows, RolloutChain, RolloutRows,
    RowsStream, Sets, Splits, padded,
};
use super::limits::DeviceLimits;
use super::options::{Options, Precision};
use super::pipeline::{Common, Pipeline, chain_reads_fused, cuts_when_read, rows_read_fused};
use super::schedule::Schedule;
use crate::config::Output;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::problem::Problem;

/// Blocks of a cluster that may share an item's rows. More than 8 need not be available.
const ROWS_CLUSTERS: [u32; 3] = [2, 4, 8];
/// Estimates that differ by less tell nothing: then launches count.
const NEAR: f64 = 1.1;
/// Largest entry that the scaled f16 arithmetics take: `2^11 * 31` is below the largest f16.
const F16_RANGE: f64 = 31.0;

/// Chooses how `problem` is computed on a device with these limits.
///
/// Reads no environment and asks no driver.
///
/// # Errors
/// [`Error::Architecture`] where the device is too old; [`Error::SizeOverflow`] where an extent does not fit a launch;
/// [`Error::Variant`] where `options.variant` names a kernel that
/// does not exist, or that no way of computing this problem on this device uses.
pub fn choose(problem: &Problem, limits: &DeviceLimits, options: &Options) -> Result<Schedule> {
    let (_, schedule) = choose_for(problem, problem.shape().batch, limits, options)?;
    Ok(schedule)
}

/// As [`choose`], for runs of `batch` items of the problem at a time; and the pipeline.
pub(super) fn choose_for(
    problem: &Problem,
    batch: usize,
    limits: &DeviceLimits,
    options: &Options,
) -> Result<(Pipeline, Schedule)> {
    let work = Workload::new(problem, batch, limits, rows_read_fused(problem));
    work.choose(options, |pipeline| {
        pipeline.schedule(problem, batch, limits)
    })
}

/// As [`choose`], for launches that are shared with other problems.
pub(super) fn choose_grouped(
    problem: &Problem,
    limits: &DeviceLimits,
    options: &Options,
) -> Result<Schedule> {
    let batch = problem.shape().batch;
    let work = Workload {
        grouped: true,
        ..Workload::new(problem, batch, limits, rows_read_fused(problem))
    };
    let chosen = work.choose(options, |pipeline| {
        pipeline.schedule(problem, batch, limits)
    });
    chosen.map(|(_, schedule)| schedule)
}

/// Chooses how `problem` is computed on a device with these limits when its layers are pushed one by one.
///
/// # Errors
/// As [`choose`].
pub fn choose_streaming(
    problem: &Problem,
    limits: &DeviceLimits,
    options: &Options,
) -> Result<Schedule> {
    let work = Workload::new(problem, problem.shape().batch, limits, true);
    let chosen = work.choose(options, |pipeline| pipeline.streaming(problem, limits));
    chosen.map(|(_, schedule)| schedule)
}

/// The cheapest of candidates in ascending order, or rows in one launch that are estimated to cost little more.
fn preferred(candidates: &[(f64, Pipeline)]) -> Option<Pipeline> {
    let &(least_us, cheapest) = candidates.first()?;
    let near = candidates
        .iter()
        .take_while(|(us, _)| *us <= NEAR * least_us);
    let one_launch = |pipeline: &Pipeline| matches!(pipeline, Pipeline::Rows { splits, .. } if splits.parts() == 1);
    let mut near = near.map(|&(_, pipeline)| pipeline).filter(one_launch);
    Some(near.next().unwrap_or(cheapest))
}

/// A problem on a device, with what every estimate asks for.
struct Workload<'a> {
    problem: &'a Problem,
    limits: &'a DeviceLimits,
    common: Common,
    /// Items of one run.
    batch: f64,
    /// Bytes of the maps of one item, on average.
    item_bytes: f64,
    growth_bound: f64,
    /// `rollout_rows` and `rows_stream` read fused maps instead of the caller's.
    fused_first: bool,
    /// The same of `rollout_chain`.
    chain_fused_first: bool,
    /// Its launches are shared with other problems.
    grouped: bool,
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
            common: Common::new(problem),
            batch: batch as f64,
            item_bytes: problem.map_bytes() as f64 / problem.shape().batch.max(1) as f64,
            growth_bound: problem.growth_bound(),
            fused_first,
            chain_fused_first: fused_first || chain_reads_fused(problem),
            grouped: false,
        }
    }

    /// The cheapest pipeline, or the cheapest with the forced variant, and its schedule.
    fn choose(
        &self,
        options: &Options,
        build: impl Fn(Pipeline) -> Schedule,
    ) -> Result<(Pipeline, Schedule)> {
        self.check()?;
        let mut candidates = self.candidates(options.precision);
        // In a group the product of few rows would take launches in which nobody else has a part.
        let few = self.problem.start_rows() > 0 && self.grouped;
        let last = |pipeline| few && matches!(pipeline, Pipeline::Product { .. });
        candidates.sort_by(|a, b| last(a.1).cmp(&last(b.1)).then(a.0.total_cmp(&b.0)));
        let build = |pipeline| (pipeline, build(pipeline));
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
        let has_forced = |(_, schedule): &(Pipeline, Schedule)| {
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
        if self.limits.arch < DeviceLimits::OLDEST_ARCH {
            return Err(Error::Architecture {
                required: DeviceLimits::OLDEST_ARCH,
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
            let span = self.problem.strides(layer).span(shape)?;
            sizes.push(vec![self.problem.dtype().size_bytes(), span]);
        }
        let product = |factors: &Vec<usize>| {
            let mut factors = factors.iter();
            factors.try_fold(1u64, |product, &factor| product.checked_mul(factor as u64))
        };
        let mut sizes = sizes.iter().map(product);
        Ok(sizes.all(|bytes| bytes.is_some_and(|bytes| bytes < Base::MOST_BYTES)))
    }

    /// Every sensible pipeline with its estimated time in microseconds. The product pipeline is always among them.
    fn candidates(&self, precision: Precision) -> Vec<(f64, Pipeline)> {
        let arithmetic = self.arithmetic(precision);
        let mut pipelines = vec![self.product(arithmetic)];
        if let Some(rows) = self.rows_held() {
            let splits = self.rows_splits();
            pipelines.extend(splits.map(|splits| Pipeline::Rows { rows, splits }));
        }
        if let Some(tokens) = self.chain_tokens() {
            pipelines.push(Pipeline::Chain { arithmetic, tokens });
        }
        pipelines.retain(|&pipeline| self.can_launch(pipeline));
        pipelines
            .into_iter()
            .map(|pipeline| (self.microseconds(pipeline), pipeline))
            .collect()
    }

    /// The candidates with any compile-time choices that would do.
    fn siblings(&self) -> impl Iterator<Item = Pipeline> {
        let in_range = |&arithmetic: &Arithmetic| {
            !arithmetic.needs_bounded_entries() || self.growth_bound <= F16_RANGE
        };
        let arithmetics = move || Arithmetic::ALL.into_iter().filter(in_range);
        let rows = RolloutRows::ROWS.into_iter().flat_map(|rows| {
            let splits = self.rows_splits();
            splits.map(move |splits| Pipeline::Rows { rows, splits })
        });
        let tokens = RolloutChain::TOKENS.into_iter();
        let tokens =
            tokens.filter(|&tokens| self.chain_tokens().is_some_and(|least| least <= tokens));
        let chains = tokens.flat_map(move |tokens| {
            arithmetics().map(move |arithmetic| Pipeline::Chain { arithmetic, tokens })
        });
        let products = arithmetics().map(|arithmetic| self.product(arithmetic));
        let all = rows.chain(self.ring_rows()).chain(chains).chain(products);
        all.filter(|&pipeline| self.can_launch(pipeline))
    }

    /// Every way of streaming rows, the one of least time first. None weighs maps by their gradients.
    fn ring_rows(&self) -> impl Iterator<Item = Pipeline> {
        let (dtype, fusion) = self.read_as(self.fused_first);
        let weighs = self.problem.config().gradients.is_some() && !self.fused_first;
        let shape = self.problem.shape();
        let heads = if self.fused_first { 1 } else { shape.heads };
        let start_rows = self.problem.start_rows();
        let extents = [self.common.tokens, heads as u32, start_rows as u32];
        let mut all = Vec::new();
        for kernel in RowsStream::all_of(dtype, fusion) {
            let held = (1..=kernel.rows as usize).contains(&start_rows);
            if weighs || !held || !kernel.variant().runs_on(self.limits) {
                continue;
            }
            for sets in self.ring_sets() {
                let shared_bytes = self.limits.shared_bytes_per_block;
                let ring = kernel.ring(extents, sets, shared_bytes, self.grouped);
                all.extend(ring.map(|ring| Pipeline::RingRows(RingRows { kernel, sets, ring })));
            }
        }
        all.sort_by(|&a, &b| self.microseconds(a).total_cmp(&self.microseconds(b)));
        all.into_iter()
    }

    /// Ways to divide items among blocks, of which a multiprocessor has one: one for each item; clusters; as many as
    /// there are. Grouped, every item is a block by itself.
    fn ring_sets(&self) -> Vec<Sets> {
        let (batch, multiprocessors) = (self.batch as u32, self.limits.multiprocessors);
        let sets = |blocks: u32, exchange| Sets {
            sets: batch.min(multiprocessors / blocks).max(1),
            blocks,
            exchange,
        };
        if self.grouped {
            return vec![Sets {
                sets: batch,
                blocks: 1,
                exchange: Exchange::Cluster,
            }];
        }
        let mut all = vec![sets(1, Exchange::Cluster)];
        if self.limits.clusters {
            let clusters = ROWS_CLUSTERS.into_iter();
            let clusters = clusters.filter(|&blocks| blocks <= multiprocessors);
            all.extend(clusters.map(|blocks| sets(blocks, Exchange::Cluster)));
        }
        let blocks = multiprocessors / batch.clamp(1, multiprocessors);
        let blocks = blocks.min(self.common.window_len);
        if blocks > 1 {
            all.push(sets(blocks, Exchange::Words));
        }
        all
    }

    fn product(&self, arithmetic: Arithmetic) -> Pipeline {
        let form = match self.problem.config().output {
            Output::Rows(_) => Form::Rows,
            Output::Matrix | Output::Cumulative => Form::Matrix,
        };
        Pipeline::Product { arithmetic, form }
    }

    /// How products are computed unless a variant is forced.
    fn arithmetic(&self, precision: Precision) -> Arithmetic {
        let bounded = self.growth_bound <= F16_RANGE;
        match (self.limits.arch >= 80, bounded, precision) {
            (false, ..) => Arithmetic::F32,
            (true, false, _) => Arithmetic::Tf32x3,
            (true, true, Precision::F32) => Arithmetic::F16x3,
            (true, true, Precision::Half) => Arithmetic::F16x2,
        }
    }

    /// The start rows that the smallest fitting `rollout_rows` variant holds.
    fn rows_held(&self) -> Option<u32> {
        let rows = self.problem.start_rows();
        let mut held = RolloutRows::ROWS.into_iter();
        held.find(|&held| rows <= held as usize)
    }

    /// The token limit of the smallest fitting `rollout_chain` variant.
    fn chain_tokens(&self) -> Option<u32> {
        if self.problem.config().output != Output::Matrix {
            return None;
        }
        let len = self.common.window_len;
        let mut limits = RolloutChain::TOKENS.into_iter();
        limits.find(|&limit| len <= limit)
    }

    /// Element type and fusion of the maps that a kernel reads, which are fused or not.
    fn read_as(&self, fused: bool) -> (DType, Fusion) {
        match fused {
            true => (DType::F32, Fusion::Mean),
            false => {
                let fusion = Fusion::from(&self.problem.config().head_fusion);
                (self.common.dtype, fusion)
            }
        }
    }

    fn rows(&self, rows: u32) -> RolloutRows {
        let (dtype, fusion) = self.read_as(self.fused_first);
        RolloutRows {
            dtype,
            rows,
            fusion,
            gradients: self.problem.config().gradients.is_some() && !self.fused_first,
            normalize: self.problem.config().normalize_rows,
            discard: cuts_when_read(self.problem),
        }
    }

    fn chain(&self, arithmetic: Arithmetic, tokens: u32) -> RolloutChain {
        let (dtype, fusion) = self.read_as(self.chain_fused_first);
        RolloutChain {
            dtype,
            arithmetic,
            tokens,
            fusion,
            normalize: self.problem.config().normalize_rows,
            discard: cuts_when_read(self.problem),
        }
    }

    /// Whether the kernels of `pipeline` can be launched for the problem on the device at all.
    fn can_launch(&self, pipeline: Pipeline) -> bool {
        match pipeline {
            Pipeline::Rows { rows, splits } => {
                let one_tile = self.rows_columns().tiles == 1;
                let start_rows = self.problem.start_rows();
                (1..=rows as usize).contains(&start_rows)
                    && (rows == 1 || !self.rows(rows).gradients)
                    && (one_tile || !self.problem.config().normalize_rows)
                    && (!splits.clustered || one_tile && self.limits.clusters && !self.grouped)
                    && self.rows_shared_bytes(rows, splits) <= self.limits.shared_bytes_per_block
            }
            Pipeline::Chain { arithmetic, tokens } => {
                let chain = self.chain(arithmetic, tokens);
                arithmetic != Arithmetic::F32
                    && chain.variant().runs_on(self.limits)
                    && self.batch * f64::from(chain.cluster()) <= f64::from(i32::MAX)
            }
            Pipeline::RingRows(ring_rows) => ring_rows.kernel.variant().runs_on(self.limits),
            Pipeline::Product { arithmetic, .. } => self.limits.arch >= arithmetic.arch(),
        }
    }

    /// The columns of `rollout_rows`. The caller's addresses are not known yet, so the worst is assumed.
    fn rows_columns(&self) -> Columns {
        self.columns(false)
    }

    fn columns(&self, bases_aligned: bool) -> Columns {
        match self.fused_first {
            true => self.common.fused_columns(),
            false => self.common.layer_columns(bases_aligned),
        }
    }

    fn rows_shared_bytes(&self, rows: u32, splits: Splits) -> usize {
        let kernel = self.rows(rows);
        let (start_rows, tokens) = (self.problem.start_rows() as u32, self.common.tokens);
        // Either may be launched, by the addresses of a run.
        let shared_bytes = [false, true].map(|bases_aligned| {
            kernel.shared_bytes(start_rows, tokens, self.columns(bases_aligned), splits)
        });
        shared_bytes.into_iter().max().unwrap_or(0) as usize
    }

    /// Ways to divide an item's rows: not at all; among the fewest blocks that do with 1, 2, 3, 4, 6, 8, 12, ... steps of
    /// their warps each; among clusters.
    fn rows_splits(&self) -> impl Iterator<Item = Splits> + use<> {
        let len = self.common.window_len.max(1);
        // Addresses are multiples of 16 bytes, as those of allocations are.
        let groups = self.columns(true).row_groups();
        let steps = (0..).flat_map(|power: u32| [2 << power, 3 << power]);
        let apart = std::iter::once(1)
            .chain(steps)
            .map(move |steps: u32| len.div_ceil(groups * steps))
            .take_while(|&blocks| blocks > 1);
        let apart = apart.chain([1]).map(|blocks| (blocks, false));
        let together = ROWS_CLUSTERS.into_iter().map(|blocks| (blocks, true));
        apart
            .chain(together)
            .map(|(blocks, clustered)| Splits { blocks, clustered })
    }
}
