//! Which pipeline computes a problem: a pure function of the problem, the device's limits and the options.
//!
//! Every pipeline that can compute the problem, and every way of dividing the rows of an item among blocks that is worth
//! a look, is given an estimate of its time (`estimate`), and the one of least time is taken.

mod estimate;

use super::chain::ChainTile;
use super::geometry::{Columns, Extents, Splits};
use super::limits::DeviceLimits;
use super::options::{Options, Precision};
use super::pipelines::{self, Pipeline};
use super::schedule::{Common, Schedule, Source};
use super::variant::{Arithmetic, Fusion, Variant};
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
    choose_for(problem, problem.shape().batch, limits, options)
}

/// As [`choose`], for runs of `batch` items of the problem at a time.
pub(super) fn choose_for(
    problem: &Problem,
    batch: usize,
    limits: &DeviceLimits,
    options: &Options,
) -> Result<Schedule> {
    let work = Workload::new(problem, batch, limits, problem.config().discard.is_some());
    work.choose(options, |pipeline| {
        pipelines::schedule(problem, batch, limits, pipeline)
    })
}

/// As [`choose`], for launches that are shared with other problems.
pub(super) fn choose_grouped(
    problem: &Problem,
    limits: &DeviceLimits,
    options: &Options,
) -> Result<Schedule> {
    let batch = problem.shape().batch;
    let discard = problem.config().discard.is_some();
    let work = Workload {
        grouped: true,
        ..Workload::new(problem, batch, limits, discard)
    };
    work.choose(options, |pipeline| {
        pipelines::schedule(problem, batch, limits, pipeline)
    })
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
    work.choose(options, |pipeline| {
        pipelines::streaming(problem, limits, pipeline)
    })
}

/// The cheapest of candidates in ascending order, or rows in one launch that are estimated to cost little more.
fn preferred(candidates: &[(f64, Pipeline)]) -> Pipeline {
    let (least_us, cheapest) = candidates[0];
    let near = candidates
        .iter()
        .take_while(|(us, _)| *us <= NEAR * least_us);
    let one_launch = |pipeline: &Pipeline| matches!(pipeline, Pipeline::Rows { splits, .. } if splits.parts() == 1);
    let mut near = near.map(|&(_, pipeline)| pipeline).filter(one_launch);
    near.next().unwrap_or(cheapest)
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
    /// `rollout_rows` and `rollout_chain` read fused maps instead of the caller's.
    fused_first: bool,
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
            common: pipelines::common(problem),
            batch: batch as f64,
            item_bytes: problem.map_bytes() as f64 / problem.shape().batch.max(1) as f64,
            growth_bound: problem.growth_bound(),
            fused_first,
            grouped: false,
        }
    }

    /// The cheapest schedule, or the cheapest with the forced variant.
    fn choose(&self, options: &Options, build: impl Fn(Pipeline) -> Schedule) -> Result<Schedule> {
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
        let mut candidates = self.candidates(options.precision);
        // In a group the product of few rows would take launches in which nobody else has a part.
        let few = self.problem.start_rows() > 0 && self.grouped;
        let last = |pipeline| few && matches!(pipeline, Pipeline::Product { .. });
        candidates.sort_by(|a, b| last(a.1).cmp(&last(b.1)).then(a.0.total_cmp(&b.0)));
        let Some(name) = &options.variant else {
            return Ok(build(preferred(&candidates)));
        };
        let unusable = |reason: &str| Error::Variant {
            name: name.clone(),
            reason: reason.to_owned(),
        };
        let forced: Variant = name.parse().map_err(|_| unusable("does not exist"))?;
        self.forced_candidates(&candidates, forced)
            .into_iter()
            .map(build)
            .find(|schedule| schedule.variants().contains(&forced))
            .ok_or_else(|| {
                unusable("takes no part in any way of computing this problem on this device")
            })
    }

    /// Every sensible pipeline with its estimated time in microseconds. The product pipeline is always among them.
    fn candidates(&self, precision: Precision) -> Vec<(f64, Pipeline)> {
        let arithmetic = self.arithmetic(precision);
        let mut pipelines = vec![Pipeline::Product { arithmetic }];
        if let Some(rows) = self.rows_variant() {
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

    /// The candidates, and their siblings with the forced kernel's compile-time choices.
    fn forced_candidates(&self, candidates: &[(f64, Pipeline)], forced: Variant) -> Vec<Pipeline> {
        let in_range =
            |wanted: Arithmetic| !wanted.needs_bounded_entries() || self.growth_bound <= F16_RANGE;
        let mut pipelines: Vec<Pipeline> =
            candidates.iter().map(|&(_, pipeline)| pipeline).collect();
        match forced {
            Variant::RolloutRows { rows, .. } => {
                let splits = self.rows_splits();
                pipelines.extend(splits.map(|splits| Pipeline::Rows { rows, splits }));
            }
            Variant::RolloutChain {
                arithmetic, tokens, ..
            } if in_range(arithmetic)
                && self.chain_tokens().is_some_and(|least| least <= tokens) =>
            {
                pipelines.push(Pipeline::Chain { arithmetic, tokens });
            }
            Variant::RolloutProduct { arithmetic, .. } if in_range(arithmetic) => {
                pipelines.push(Pipeline::Product { arithmetic });
            }
            _ => {}
        }
        pipelines.retain(|&pipeline| self.can_launch(pipeline));
        pipelines
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
    fn rows_variant(&self) -> Option<u32> {
        let rows = self.problem.start_rows();
        Variant::ROWS
            .into_iter()
            .find(|&held| rows <= held as usize)
    }

    /// The token limit of the smallest fitting `rollout_chain` variant.
    fn chain_tokens(&self) -> Option<u32> {
        if self.problem.config().output != Output::Matrix {
            return None;
        }
        let len = self.common.window_len;
        Variant::CHAIN_TOKENS
            .into_iter()
            .find(|&limit| len <= limit)
    }

    fn chain_tile(&self, arithmetic: Arithmetic, tokens: u32) -> ChainTile {
        ChainTile::new(self.source_dtype(), arithmetic, tokens)
    }

    /// Element type of the maps that `rollout_rows` and `rollout_chain` read.
    fn source_dtype(&self) -> DType {
        match self.fused_first {
            true => DType::F32,
            false => self.common.dtype,
        }
    }

    /// Whether the kernels of `pipeline` can be launched for the problem on the device at all.
    fn can_launch(&self, pipeline: Pipeline) -> bool {
        match pipeline {
            Pipeline::Rows { rows, splits } => {
                let one_tile = self.rows_columns().tiles == 1;
                let start_rows = self.problem.start_rows();
                (1..=rows as usize).contains(&start_rows)
                    && (one_tile || !self.problem.config().normalize_rows)
                    && (!splits.clustered || one_tile && self.limits.clusters && !self.grouped)
                    && self.rows_shared_bytes(rows, splits) <= self.limits.shared_bytes_per_block
            }
            Pipeline::Chain { arithmetic, tokens } => {
                let tile = self.chain_tile(arithmetic, tokens);
                arithmetic != Arithmetic::F32
                    && self.limits.arch >= 80
                    && tile.fits(self.limits)
                    && self.batch * f64::from(tile.cluster) <= f64::from(i32::MAX)
            }
            Pipeline::Product { arithmetic } => {
                arithmetic == Arithmetic::F32 || self.limits.arch >= 80
            }
        }
    }

    /// The columns of `rollout_rows`. The caller's addresses are not known yet, so the worst is assumed.
    fn rows_columns(&self) -> Columns {
        if self.fused_first {
            Columns::new(DType::F32, self.common.window_len, true)
        } else {
            self.common.columns(Source::Layers, false)
        }
    }

    /// The same where the caller's addresses are multiples of 16 bytes, as those of allocations are.
    fn usual_columns(&self) -> Columns {
        match self.fused_first {
            true => self.rows_columns(),
            false => self.common.columns(Source::Layers, true),
        }
    }

    fn rows_shared_bytes(&self, rows: u32, splits: Splits) -> usize {
        let config = self.problem.config();
        let variant = Variant::RolloutRows {
            dtype: self.common.dtype,
            rows,
            fusion: Fusion::from(&config.head_fusion),
            normalize: config.normalize_rows,
            discard: config.discard.is_some(),
        };
        let shared_bytes = |columns| {
            let geometry = variant.geometry(&Extents {
                batch: 1,
                layers: 1,
                tokens: self.common.tokens,
                window_len: self.common.window_len,
                rows: self.problem.start_rows() as u32,
                splits,
                columns,
            });
            geometry.shared_bytes as usize
        };
        // Either may be launched, by the addresses of a run.
        let aligned = self.common.columns(Source::Layers, true);
        shared_bytes(self.rows_columns()).max(shared_bytes(aligned))
    }

    /// Ways to divide an item's rows: not at all; among the fewest blocks that do with 1, 2, 3, 4, 6, 8, 12, ... steps of
    /// their warps each; among clusters.
    fn rows_splits(&self) -> impl Iterator<Item = Splits> + use<> {
        let len = self.common.window_len.max(1);
        let groups = self.usual_columns().row_groups();
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
