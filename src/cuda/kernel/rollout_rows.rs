//! `rollout_rows`: start rows times all layers in one pass over the maps.

use std::ops::Range;

use super::maps::MAX_WARPS;
use super::parts::WARP;
use super::{Columns, Fusion, Kernel, MapSource, Maps, example_discard, example_shape};
use crate::config::{GradientRule, Output, RolloutConfig, StartRows};
use crate::cuda::address::Address;
use crate::cuda::launch::{Geometry, Launch};
use crate::cuda::parameters::params;
use crate::cuda::variant::{Variant, flag, symbol};
use crate::dtype::DType;
use crate::error::Result;
use crate::problem::Problem;

params! {
    /// Parameters of `rollout_rows`.
    RolloutRowsParams {
        start: Address,
        start_stride_batch: i64,
        partials_in: Address,
        partials_out: Address,
        out: Address,
        start_rows: u32,
        splits_in: u32,
        chunk_columns: u32,
        chunks_per_block: u32,
        maps: Maps,
    }
}

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub struct RolloutRows {
    /// Element type of the maps.
    pub dtype: DType,
    /// Start rows it holds: 1 or 8 ([`RolloutRows::ROWS`]).
    pub rows: u32,
    /// How heads become one map.
    pub fusion: Fusion,
    /// Entries are weighed by their gradients; of one start row, and fused to the mean.
    pub gradients: bool,
    /// Rows of `Ahat` are divided by their sums.
    pub normalize: bool,
    /// Fused f32 maps (`heads = 1`, mean) with cuts.
    pub discard: bool,
}

/// Blocks among which the rows of an item are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Splits {
    /// Number of blocks.
    pub blocks: u32,
    /// The blocks are a cluster, which takes all layers in one launch. Otherwise more than one take a launch per layer.
    pub clustered: bool,
}

impl Splits {
    /// One block.
    pub const ONE: Splits = Splits {
        blocks: 1,
        clustered: false,
    };

    /// Parts of an item's sums that a launch leaves behind.
    pub const fn parts(&self) -> u32 {
        match self.clustered {
            true => 1,
            false => self.blocks,
        }
    }
}

/// What a launch works on.
#[derive(Clone, Debug)]
pub struct RowsOperands {
    /// Where the maps are.
    pub source: MapSource,
    /// The layers, last to first; none: only a reduction.
    pub layers: Range<usize>,
    /// Items of a run.
    pub items: Range<usize>,
    /// Start rows of the first item.
    pub start: Address,
    /// From one item's start rows to the next's, in elements.
    pub start_stride_batch: usize,
    /// Sums that the launch before left behind, and of how many parts; they take the place of the start rows.
    pub partials_in: Option<(Address, u32)>,
    /// Where it leaves sums, if they are not the result.
    pub partials_out: Option<Address>,
    /// The result.
    pub out: Address,
}

/// All there are.
pub(super) fn all() -> impl IntoIterator<Item = RolloutRows> {
    let readers = super::map_readers().flat_map(|(dtype, fusion, discard)| {
        RolloutRows::ROWS.map(|rows| RolloutRows {
            dtype,
            rows,
            fusion,
            gradients: false,
            normalize: false,
            discard,
        })
    });
    let weighing = DType::ALL.map(|dtype| RolloutRows {
        dtype,
        rows: 1,
        fusion: Fusion::Mean,
        gradients: true,
        normalize: false,
        discard: false,
    });
    readers.chain(weighing).flat_map(|kernel| {
        [false, true].map(|normalize| RolloutRows {
            normalize,
            ..kernel
        })
    })
}

impl RolloutRows {
    /// Start rows that a variant holds.
    pub const ROWS: [u32; 2] = [1, 8];

    /// The relevance of `problem`'s start rows, or the next step towards it. `columns` says how rows are divided, and
    /// `splits` how those of an item are.
    pub fn launch(
        &self,
        problem: &Problem,
        columns: Columns,
        splits: Splits,
        operands: &RowsOperands,
    ) -> Launch {
        let RowsOperands {
            source,
            layers,
            items,
            partials_in,
            ..
        } = operands;
        let start_rows = problem.start_rows() as u32;
        let params = RolloutRowsParams {
            start: operands.start,
            start_stride_batch: operands.start_stride_batch as i64,
            partials_in: partials_in.map_or(Address::NULL, |(partials, _)| partials),
            partials_out: operands.partials_out.unwrap_or(Address::NULL),
            out: operands.out,
            start_rows,
            splits_in: partials_in.map_or(0, |(_, parts)| parts),
            chunk_columns: columns.chunk,
            chunks_per_block: columns.chunks_per_block,
            maps: Maps::new(problem, *source, layers, items),
        };
        // A reduction reads all columns and writes them once.
        let tiles = if layers.is_empty() { 1 } else { columns.tiles };
        let geometry = Geometry {
            grid: [items.len() as u32, splits.blocks, tiles],
            block: columns.block(),
            shared_bytes: self.shared_bytes(start_rows, params.maps.tokens, columns, splits),
            cluster: if splits.clustered { splits.blocks } else { 1 },
            cooperative: false,
        };
        let unused = params.maps.unused_bytes();
        Launch::new(self.variant(), geometry, &params, unused)
    }

    /// Dynamic shared memory: the relevance, the next relevance in a block's columns (a cluster's of two layers), and
    /// scales and partial sums of rows.
    pub fn shared_bytes(
        &self,
        start_rows: u32,
        tokens: u32,
        columns: Columns,
        splits: Splits,
    ) -> u32 {
        let turns = if splits.clustered && splits.blocks > 1 {
            2
        } else {
            1
        };
        let scales = if self.normalize {
            tokens + MAX_WARPS
        } else {
            0
        };
        let sums = turns * columns.chunk * columns.chunks_per_block;
        4 * (start_rows * (tokens + sums) + scales)
    }
}

impl Kernel for RolloutRows {
    fn variant(&self) -> Variant {
        let RolloutRows {
            dtype,
            rows,
            fusion,
            gradients,
            normalize,
            discard,
        } = *self;
        let parts = [dtype.name(), "f32", &format!("m{rows}"), fusion.name()];
        let flags = [
            (gradients, "gradients"),
            (normalize, "normalize"),
            (discard, "discard"),
        ];
        // `BLOCKS` of the kernel: parameters in shared memory take some registers that constants do not, and gradients as
        // many again as the maps.
        let (blocks, grouped_blocks) = match (gradients, rows) {
            (true, _) => (2, 2),
            (false, 1) => (3, 2),
            (false, _) => (2, 1),
        };
        Variant {
            stem: "rollout_rows",
            symbol: symbol("rollout_rows", &parts, &flags),
            defines: vec![
                ("ELEMENT", dtype.name().to_owned()),
                fusion.define(),
                ("GRADIENTS", flag(gradients)),
                ("START_ROWS", rows.to_string()),
                ("MAX_WARPS", MAX_WARPS.to_string()),
                ("NORMALIZE", flag(normalize)),
                ("DISCARD", flag(discard)),
            ],
            arguments: &[0],
            arch: 75,
            block: MAX_WARPS * WARP,
            blocks_per_multiprocessor: blocks,
            grouped_blocks_per_multiprocessor: grouped_blocks,
            static_shared_bytes: 0,
            shared_bytes: 0,
            cluster: 1,
            queues: false,
        }
    }

    fn example(&self, layers: usize, tokens: usize) -> Result<Problem> {
        let config = RolloutConfig {
            head_fusion: self.fusion.of_three_heads(),
            gradients: self.gradients.then_some(GradientRule::Heads),
            normalize_rows: self.normalize,
            discard: example_discard(self.discard),
            output: Output::Rows(StartRows::Rows((0..self.rows as usize).collect())),
            ..RolloutConfig::default()
        };
        Problem::new(example_shape(layers, tokens), self.dtype, config)
    }
}
