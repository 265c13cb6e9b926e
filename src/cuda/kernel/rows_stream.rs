//! `rows_stream`: start rows times all layers, as fast as the maps can be read.

use std::ops::{Range, RangeInclusive};

use super::parts::WARP;
use super::{Fusion, Kernel, MapSource, Maps, Reading, example_shape};
use crate::config::{GradientRule, Output, RolloutConfig, StartRows};
use crate::cuda::address::{Address, Base};
use crate::cuda::launch::{Geometry, Launch};
use crate::cuda::parameters::params;
use crate::cuda::variant::{Variant, flag, symbol};
use crate::error::Result;
use crate::problem::Problem;

params! {
    /// Parameters of `rows_stream`.
    RowsStreamParams {
        start: Address,
        start_stride_batch: i64,
        out: Address,
        words: Address,
        exchanges: Address,
        start_rows: u32,
        blocks: u32,
        column_warps: u32,
        panel_columns: u32,
        stages: u32,
        stage_bytes: u32,
        normalize: u32,
        out_windowed: u32,
        maps: Maps,
    }
}

/// Static shared memory: barriers and tiles of the ring, and of a grouped launch two copies of the parameters.
const STATIC_SHARED_BYTES: u32 = 8 << 10;
/// The fewest stages with which copies run ahead, and the most (`MAX_STAGES`).
const STAGES: RangeInclusive<u32> = 3..=16;
/// Bytes of a stage that holds more than one row: each tile costs every warp about 25 instructions, so it is worth a
/// few rows.
const STAGE_BYTES: u32 = 48 << 10;
/// Bytes of a stage of a grouped launch at most.
const GROUPED_STAGE_BYTES: u32 = 24 << 10;
/// Shared memory of a multiprocessor for each block of a grouped launch that shares it.
const SHARING_BYTES: u32 = 64 << 10;
/// Shared memory that a multiprocessor keeps for itself for every block.
const RESERVED_SHARED_BYTES: u32 = 1 << 10;
/// Rows of a slice (`MAX_SLICE_ROWS`).
const MAX_SLICE_ROWS: u32 = 4096;

/// The kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowsStream {
    /// What it reads; of maps weighed by gradients only the mean ([`RowsStream::weighs`]).
    pub reading: Reading,
    /// Start rows it holds: 1 or 8 ([`RowsStream::ROWS`]).
    pub rows: u32,
    /// Columns of a lane ([`RowsStream::COLUMNS`]).
    pub columns: u32,
}

/// How the blocks of an item tell each other their sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// By stores to each other's shared memory; one block alone tells nobody.
    Cluster,
    /// By words in L2, numbered from launch to launch: the blocks must run at the same time.
    Words,
}

/// The blocks of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sets {
    /// Sets of blocks, each of which takes an item at a time.
    pub sets: u32,
    /// Blocks of a set.
    pub blocks: u32,
    /// How they work together.
    pub exchange: Exchange,
}

/// How a block divides rows and shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Warps that compute, beside the one that fills the ring.
    pub warps: u32,
    /// Columns that are looked at in one go.
    pub panel_columns: u32,
    /// Warps that share a row.
    pub column_warps: u32,
    /// Stages of the ring.
    pub stages: u32,
    /// Bytes of a stage.
    pub stage_bytes: u32,
    /// All of the dynamic shared memory.
    pub shared_bytes: u32,
}

/// How `rows_stream` is launched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RingRows {
    /// The kernel.
    pub kernel: RowsStream,
    /// Its blocks.
    pub sets: Sets,
    /// What each of them does.
    pub ring: Ring,
}

/// What a launch works on.
#[derive(Clone, Debug)]
pub struct RingOperands {
    /// Where the maps are.
    pub source: MapSource,
    /// The layers, last to first.
    pub layers: Range<usize>,
    /// Items of a run.
    pub items: Range<usize>,
    /// Start rows of the first item, or what the launch before left.
    pub start: Address,
    /// From one item's start rows to the next's, in elements.
    pub start_stride_batch: usize,
    /// The result, or what the next launch starts from.
    pub out: Address,
    /// It is the result.
    pub last: bool,
}

/// All there are.
pub(super) fn all() -> impl IntoIterator<Item = RowsStream> {
    Reading::all()
        .filter(|reading| !reading.gradients || RowsStream::weighs(reading.fusion))
        .flat_map(RowsStream::all_of)
}

impl RowsStream {
    /// Blocks of a grouped launch that share a multiprocessor at most.
    pub const SHARING: u32 = 3;
    /// Start rows that a variant holds.
    pub const ROWS: [u32; 2] = [1, 8];
    /// Columns that a lane of a variant holds.
    pub const COLUMNS: [u32; 4] = [1, 2, 4, 7];

    /// Whether there are variants that weigh by gradients the maps that they fuse so. The others read fused maps then.
    pub fn weighs(fusion: Fusion) -> bool {
        fusion == Fusion::Mean
    }

    /// Those that read maps so.
    pub fn all_of(reading: Reading) -> impl Iterator<Item = RowsStream> {
        RowsStream::ROWS.into_iter().flat_map(move |rows| {
            let kernel = move |columns| RowsStream {
                reading,
                rows,
                columns,
            };
            RowsStream::columns_of(rows).map(kernel)
        })
    }

    /// Columns that a lane holds for so many start rows: more would not fit the registers.
    fn columns_of(rows: u32) -> impl Iterator<Item = u32> {
        let fits = move |&columns: &u32| rows == 1 || columns <= 4;
        RowsStream::COLUMNS.into_iter().filter(fits)
    }

    /// The kernel whose lanes hold rows of `tokens` columns with the fewest columns to spare, and of those the one with
    /// the fewest warps to a row.
    pub fn for_rows(reading: Reading, rows: u32, tokens: u32) -> Self {
        let kernels = RowsStream::all_of(reading).filter(|kernel| kernel.rows == rows);
        let spare = |kernel: &RowsStream| {
            let panel = tokens.clamp(1, kernel.most_columns(1));
            let warp = WARP * kernel.columns;
            (panel.div_ceil(warp) * warp * tokens.div_ceil(panel), warp)
        };
        let least = kernels.min_by_key(|kernel| {
            let (held, warp) = spare(kernel);
            (held, u32::MAX - warp)
        });
        least.unwrap_or(RowsStream {
            reading,
            rows,
            columns: 1,
        })
    }

    /// Blocks of a grouped launch that share a multiprocessor of so much shared memory at most: each needs some for its ring.
    pub fn most_sharing(shared_bytes: usize) -> u32 {
        (shared_bytes as u32 / SHARING_BYTES).clamp(1, RowsStream::SHARING)
    }

    /// Warps of a multiprocessor.
    const fn warps(&self) -> u32 {
        if self.rows == 1 { 16 } else { 12 }
    }

    /// Warps that compute, beside the one that fills the ring, in each of `sharing` blocks of a multiprocessor.
    const fn computing_warps(&self, sharing: u32) -> u32 {
        self.warps() / sharing - 1
    }

    /// Columns that such a block holds.
    const fn most_columns(&self, sharing: u32) -> u32 {
        self.computing_warps(sharing) * WARP * self.columns
    }

    /// How a block of `sets` works on maps of so many `tokens` and `heads` where a multiprocessor has `shared_bytes` of shared
    /// memory for blocks; none where it cannot. Of a grouped launch so many blocks as `sharing` says share them, and the
    /// members all have the same stages.
    pub fn ring(
        &self,
        [tokens, heads, start_rows]: [u32; 3],
        sets: Sets,
        shared_bytes: usize,
        sharing: Option<u32>,
    ) -> Option<Ring> {
        let slice = tokens.div_ceil(sets.blocks);
        if slice > MAX_SLICE_ROWS {
            return None;
        }
        let blocks = sharing.unwrap_or(1);
        let shared_bytes = (shared_bytes as u32 + RESERVED_SHARED_BYTES) / blocks;
        let room = shared_bytes.checked_sub(RESERVED_SHARED_BYTES + STATIC_SHARED_BYTES)?;
        let warps = self.computing_warps(blocks);
        let element = self.reading.dtype.size_bytes() as u32;
        let operands = if self.reading.gradients { 2 } else { 1 };
        let mut panel_columns = tokens.clamp(1, self.most_columns(blocks));
        loop {
            let column_warps = panel_columns.div_ceil(WARP * self.columns);
            let inbox = match sets.exchange {
                Exchange::Cluster if sets.blocks > 1 => 2 * sets.blocks * start_rows * slice,
                _ => 0,
            };
            let groups = warps / column_warps;
            let rest =
                4 * (2 * start_rows * slice + slice + groups * panel_columns + 2 * warps + inbox);
            // The granules at both ends of a row, and of the planes of each operand.
            let stage = |rows: u32| {
                let plane = (rows * panel_columns * element).checked_add(2 * 16)?;
                let planes = heads.checked_mul(operands)?;
                let bytes = planes.checked_mul(plane)?.checked_add(operands * 16)?;
                Some(bytes.next_multiple_of(16))
            };
            let ring = room.saturating_sub(rest);
            let one = stage(1);
            if sharing.is_some() {
                let stage_bytes = (room / 4).min(GROUPED_STAGE_BYTES) / 16 * 16;
                let stages = room * 3 / 4 / stage_bytes.max(1);
                let stages = stages.clamp(*STAGES.start(), *STAGES.end());
                let fits = one.is_some_and(|one| one <= stage_bytes);
                if fits && stages * stage_bytes <= ring {
                    return Some(Ring {
                        warps,
                        panel_columns,
                        column_warps,
                        stages,
                        stage_bytes,
                        shared_bytes: stages * stage_bytes + rest,
                    });
                }
            } else if let Some(one) = one.filter(|one| ring / one >= *STAGES.start()) {
                let third = ring / STAGES.start();
                let most = match stage(slice) {
                    Some(whole) if whole <= third => whole,
                    _ => STAGE_BYTES.min(third).max(one),
                };
                let mut rows = (most / one).min(slice).max(1);
                while stage(rows + 1).is_some_and(|bytes| bytes <= most) && rows < slice {
                    rows += 1;
                }
                let stage_bytes = stage(rows)?;
                let stages = (ring / stage_bytes).min(*STAGES.end());
                return Some(Ring {
                    warps,
                    panel_columns,
                    column_warps,
                    stages,
                    stage_bytes,
                    shared_bytes: stages * stage_bytes + rest,
                });
            }
            if panel_columns <= WARP {
                return None;
            }
            panel_columns = (panel_columns / 2).next_multiple_of(WARP);
        }
    }
}

impl Ring {
    /// Groups of warps of a block that take rows in turns.
    pub fn groups(&self) -> u32 {
        self.warps / self.column_warps
    }
}

impl RingRows {
    /// The relevance of `problem`'s start rows, or the next step towards it.
    pub fn launch(&self, problem: &Problem, operands: &RingOperands) -> Launch {
        let RingRows { kernel, sets, ring } = *self;
        let RingOperands {
            source,
            layers,
            items,
            ..
        } = operands;
        let (words, exchanges) = match sets.exchange {
            Exchange::Words => {
                let words = Address::of(Base::Exchange);
                (words, words + size_of::<u64>() * self.words(problem))
            }
            Exchange::Cluster => (Address::NULL, Address::NULL),
        };
        let params = RowsStreamParams {
            start: operands.start,
            start_stride_batch: operands.start_stride_batch as i64,
            out: operands.out,
            words,
            exchanges,
            start_rows: problem.start_rows() as u32,
            blocks: sets.blocks,
            column_warps: ring.column_warps,
            panel_columns: ring.panel_columns,
            stages: ring.stages,
            stage_bytes: ring.stage_bytes,
            normalize: problem.config().normalize_rows.into(),
            out_windowed: operands.last.into(),
            maps: Maps::new(problem, *source, layers, items),
        };
        let geometry = Geometry {
            grid: [sets.sets, sets.blocks, 1],
            block: WARP * (ring.warps + 1),
            shared_bytes: ring.shared_bytes,
            cluster: match sets.exchange {
                Exchange::Cluster => sets.blocks,
                Exchange::Words => 1,
            },
            cooperative: sets.exchange == Exchange::Words,
        };
        let unused = params.maps.unused_bytes();
        Launch::new(kernel.variant(), geometry, &params, unused)
    }

    /// Words of all sets.
    fn words(&self, problem: &Problem) -> usize {
        let Sets { sets, blocks, .. } = self.sets;
        let slice = (problem.shape().tokens as u32).div_ceil(blocks);
        let words = [sets, 2, blocks, blocks, problem.start_rows() as u32, slice];
        words.into_iter().map(|extent| extent as usize).product()
    }

    /// Bytes of the words, and of the numbers of exchanges behind them, all 0 at first; none where sums travel otherwise.
    pub fn exchange_bytes(&self, problem: &Problem) -> usize {
        let Sets {
            sets,
            blocks,
            exchange,
        } = self.sets;
        match exchange {
            Exchange::Cluster => 0,
            Exchange::Words => {
                let blocks = sets as usize * blocks as usize;
                size_of::<u64>() * self.words(problem) + size_of::<u32>() * blocks
            }
        }
    }
}

impl Kernel for RowsStream {
    fn variant(&self) -> Variant {
        let RowsStream {
            reading,
            rows,
            columns,
        } = *self;
        let Reading {
            dtype,
            fusion,
            gradients,
        } = reading;
        let tile = format!("k{columns}");
        let parts = [
            dtype.name(),
            "f32",
            &format!("m{rows}"),
            &tile,
            fusion.name(),
        ];
        Variant {
            stem: "rows_stream",
            symbol: symbol("rows_stream", &parts, &[(gradients, "gradients")]),
            defines: vec![
                ("ELEMENT", dtype.name().to_owned()),
                fusion.define(),
                ("GRADIENTS", flag(gradients)),
                ("START_ROWS", rows.to_string()),
                ("COLUMNS", columns.to_string()),
                ("WARPS", self.computing_warps(1).to_string()),
            ],
            arguments: &[0],
            arch: 80,
            block: WARP * self.warps(),
            blocks_per_multiprocessor: 1,
            grouped_blocks_per_multiprocessor: 1,
            static_shared_bytes: STATIC_SHARED_BYTES,
            shared_bytes: 0,
            cluster: 1,
            queues: true,
        }
    }

    fn example(&self, layers: usize, tokens: usize) -> Result<Problem> {
        let config = RolloutConfig {
            head_fusion: self.reading.fusion.of_three_heads(),
            gradients: self.reading.gradients.then_some(GradientRule::Heads),
            output: Output::Rows(StartRows::Rows((0..self.rows as usize).collect())),
            ..RolloutConfig::default()
        };
        Problem::new(example_shape(layers, tokens), self.reading.dtype, config)
    }
}
