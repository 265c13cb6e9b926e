//! Which pipeline computes a problem: a pure function of the problem, the device's limits and the options.
//!
//! Up to 8 start rows take `rollout_rows` wherever it can be launched. Otherwise, and between the ways of launching it,
//! every pipeline that can compute the problem is costed by the same rough model, bytes over bandwidth, operations over
//! rate, and a fixed time per launch, and the cheapest is taken. The constants are those of current data-centre GPUs per
//! multiprocessor; only their ratios matter.

use super::chain::ChainTile;
use super::geometry::{Columns, Extents, Splits};
use super::limits::DeviceLimits;
use super::options::{Options, Precision};
use super::pipelines::{self, Pipeline};
use super::schedule::{Common, Schedule, Source, l2_budget};
use super::variant::{Arithmetic, Fusion, Variant};
use crate::config::Output;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::problem::Problem;

/// Time from one launch to the next where nothing else limits.
const LAUNCH_US: f64 = 2.0;
/// Bytes that one multiprocessor gets from memory in a microsecond: 4.3 TB/s over the 132 of an H200.
const BYTES_PER_US: f64 = 32_000.0;
/// Blocks of `rollout_rows` per multiprocessor, by its launch bounds.
const ROWS_BLOCKS: u32 = 2;
/// Bytes that one of them alone gets in a microsecond: 16 KB on their way for a latency of 700 ns.
const ROWS_BLOCK_BYTES_PER_US: f64 = 23_000.0;
/// Blocks of a cluster that may share an item's rows. More than 8 need not be available.
const ROWS_CLUSTERS: [u32; 3] = [2, 4, 8];
/// Time that a cluster needs to add up the sums of a layer.
const ROWS_EXCHANGE_US: f64 = 1.0;
/// Time that the blocks of a cluster lose to waiting for each other, once per 16 rows of a layer.
const CLUSTER_BARRIER_US: f64 = 0.2;
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
        // Few rows need no product: whatever it costs, it computes more.
        let many = |pipeline: Pipeline| !matches!(pipeline, Pipeline::Rows { .. });
        candidates.sort_by(|a, b| many(a.1).cmp(&many(b.1)).then(a.0.total_cmp(&b.0)));
        let Some(name) = &options.variant else {
            let (_, cheapest) = candidates[0];
            return Ok(build(cheapest));
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
        let dtype = match self.fused_first {
            true => DType::F32,
            false => self.common.dtype,
        };
        ChainTile::new(dtype, arithmetic, tokens)
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

    /// Ways to divide an item's rows: not at all; among so many blocks that the batch is two waves of the device, but no
    /// block is without rows; among clusters.
    fn rows_splits(&self) -> impl Iterator<Item = Splits> + use<> {
        let columns = self.rows_columns();
        let wanted = f64::from(2 * ROWS_BLOCKS * self.limits.multiprocessors);
        let blocks = self.batch.max(1.0) * f64::from(columns.tiles);
        let most = self.common.window_len.div_ceil(columns.row_groups());
        let apart = ((wanted / blocks).ceil() as u32).clamp(1, most.max(1));
        let apart = [1, apart].into_iter().map(|blocks| (blocks, false));
        let together = ROWS_CLUSTERS.into_iter().map(|blocks| (blocks, true));
        apart
            .chain(together)
            .map(|(blocks, clustered)| Splits { blocks, clustered })
    }

    /// The estimated time of a pipeline.
    fn microseconds(&self, pipeline: Pipeline) -> f64 {
        let fusing = match pipeline {
            Pipeline::Rows { .. } | Pipeline::Chain { .. } if self.fused_first => {
                self.memory_us() + 2.0 * LAUNCH_US
            }
            _ => 0.0,
        };
        fusing
            + match pipeline {
                Pipeline::Rows { splits, .. } => self.rows_us(splits),
                Pipeline::Chain { arithmetic, tokens } => self.chain_us(arithmetic, tokens),
                Pipeline::Product { arithmetic } => self.product_us(arithmetic),
            }
    }

    /// Time to read the maps.
    fn memory_us(&self) -> f64 {
        self.batch * self.item_bytes / (BYTES_PER_US * f64::from(self.limits.multiprocessors))
    }

    /// Time of blocks that each take `block_us` alone and of which `resident` fit on one multiprocessor.
    fn waves_us(&self, blocks: f64, block_us: f64, resident: u32) -> f64 {
        let multiprocessors = f64::from(self.limits.multiprocessors);
        // A multiprocessor with fewer blocks than fit gives each a larger share.
        let sharing = (blocks / multiprocessors).clamp(1.0, f64::from(resident));
        self.waves(blocks, resident) * block_us * sharing
    }

    /// How often the device is filled with blocks of which `resident` fit on one multiprocessor.
    fn waves(&self, blocks: f64, resident: u32) -> f64 {
        (blocks / f64::from(self.limits.multiprocessors * resident)).ceil()
    }

    fn rows_us(&self, splits: Splits) -> f64 {
        let tiles = self.rows_columns().tiles;
        let layers = self.problem.layers().len() as f64;
        let per_item = f64::from(splits.blocks * tiles);
        let blocks = self.batch * per_item;
        let item_us = |item_bytes: f64| {
            let bytes = item_bytes / per_item;
            let alone_us = bytes / ROWS_BLOCK_BYTES_PER_US;
            self.waves_us(blocks, bytes / BYTES_PER_US, ROWS_BLOCKS)
                .max(alone_us)
        };
        if splits.clustered {
            let exchanges = layers * self.waves(blocks, ROWS_BLOCKS);
            return LAUNCH_US + item_us(self.item_bytes) + exchanges * ROWS_EXCHANGE_US;
        }
        if per_item == 1.0 {
            return LAUNCH_US + item_us(self.item_bytes);
        }
        layers * (LAUNCH_US + item_us(self.item_bytes / layers)) + LAUNCH_US
    }

    fn chain_us(&self, arithmetic: Arithmetic, tokens: u32) -> f64 {
        let cluster = f64::from(self.chain_tile(arithmetic, tokens).cluster);
        let slabs = self.common.window_len.div_ceil(16) as f64;
        let barriers_us = match cluster {
            1.0 => 0.0,
            _ => self.problem.layers().len() as f64 * slabs * CLUSTER_BARRIER_US,
        };
        let alone_us =
            (self.item_bytes / BYTES_PER_US).max(self.item_operations() / rate(arithmetic));
        // A block of 128 tokens, or one of a cluster, fills its multiprocessor; four of 64 do.
        let resident = (128 / tokens).max(1).pow(2);
        let blocks = self.batch * cluster;
        LAUNCH_US + self.waves_us(blocks, alone_us / cluster + barriers_us, resident)
    }

    /// Operations of the products of one item.
    fn item_operations(&self) -> f64 {
        let len = f64::from(self.common.window_len);
        let rows = match self.problem.start_rows() {
            0 => len,
            rows => rows as f64,
        };
        2.0 * self.problem.layers().len() as f64 * rows * len * len
    }

    fn product_us(&self, arithmetic: Arithmetic) -> f64 {
        let layers = self.problem.layers().len() as f64;
        let len = f64::from(self.common.window_len);
        let arithmetic_us = self.batch * self.item_operations()
            / (rate(arithmetic) * f64::from(self.limits.multiprocessors));
        // Two fused maps and two states of each item share L2.
        let item = 16.0 * len * len;
        let chunks = (self.batch * item / l2_budget(self.limits) as f64).ceil();
        self.memory_us().max(arithmetic_us) + 2.0 * layers * chunks * LAUNCH_US
    }
}

/// Operations per microsecond and multiprocessor at half the peak of an H200, over the products each one takes.
const fn rate(arithmetic: Arithmetic) -> f64 {
    match arithmetic {
        Arithmetic::F32 => 0.25e6,
        Arithmetic::F16x3 => 1e6,
        Arithmetic::F16x2 => 1.5e6,
        Arithmetic::Tf32x3 => 0.5e6,
    }
}
