//! `score_rows`: rows of relevance times the fused map of one layer of queries and keys.

use super::scores::{
    ROOM, ROOM_OF_HEADS, STAYING_THREADS, ScoreOperands, Scores, TILE, block_threads, chunks,
    example, passing_bytes, score_variant, staying_block, staying_blocks,
};
use super::{Fusion, Kernel, Matrices};
use crate::config::{Output, StartRows};
use crate::cuda::address::Address;
use crate::cuda::launch::{Geometry, Launch};
use crate::cuda::parameters::params;
use crate::cuda::variant::{Variant, flag};
use crate::dtype::DType;
use crate::error::Result;
use crate::problem::Problem;
use crate::queries_keys::{Lse, QueriesKeys};

/// Rows that the kernel takes at a time.
pub const MAX_SCORE_ROWS: usize = 8;
/// Tiles of queries that an item may have.
const MAX_QUERY_TILES: u32 = 2048;
/// Most panels of keys that stay with a block: any device has room for them beside the queries and what is static.
const PANELS: u32 = 14;
/// Most warps that take tiles in a block that takes one head after the other.
const FUSING_WARPS: u32 = 4;

params! {
    /// Parameters of `score_rows`.
    ScoreRowsParams {
        relevance: Address,
        stride_batch: i64,
        stride_row: i64,
        partials: Address,
        rows: u32,
        query_splits: u32,
        scores: Scores,
    }
}

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub struct ScoreRows {
    /// Element type of queries and keys.
    pub dtype: DType,
    /// How heads become one map.
    pub fusion: Fusion,
    /// A block takes one head, for one row: heads are summed.
    pub one_row: bool,
    /// Its warps have their keys in registers.
    pub holds_keys: bool,
}

/// Blocks that share a tile of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScoreSplits {
    /// Of which each takes some of the queries ...
    pub queries: u32,
    /// ... and some of the heads, where these are summed.
    pub heads: u32,
}

impl ScoreSplits {
    /// A block takes all.
    pub const WHOLE: ScoreSplits = ScoreSplits {
        queries: 1,
        heads: 1,
    };

    /// Blocks.
    pub fn parts(self) -> u32 {
        self.queries * self.heads
    }

    /// As many as make `tiles` tiles of keys about `blocks` blocks, which are there at the same time, on windows of `window_len`
    /// tokens and of `heads` heads that blocks may share.
    pub fn filling(blocks: u32, tiles: u32, window_len: u32, heads: u32) -> Self {
        let wanted = blocks.div_ceil(tiles.max(1));
        // All take as many tiles of queries as the one that takes most, and blocks that find no room follow the others.
        let query_tiles = window_len.div_ceil(TILE).max(1);
        let turns = |queries: &u32| {
            let waves = tiles.saturating_mul(*queries).div_ceil(blocks);
            waves.saturating_mul(query_tiles.div_ceil(*queries))
        };
        let most = wanted.clamp(1, query_tiles);
        let queries = (1..=most).rev().min_by_key(turns).unwrap_or(1);
        ScoreSplits {
            queries,
            heads: wanted.div_ceil(queries).clamp(1, heads),
        }
    }
}

/// All there are.
pub(super) fn all() -> impl IntoIterator<Item = ScoreRows> {
    let kernels = |dtype| {
        let fusions = Fusion::ALL.into_iter().flat_map(move |fusion| {
            let kernel = move |(one_row, holds_keys)| ScoreRows {
                dtype,
                fusion,
                one_row,
                holds_keys,
            };
            [(false, false), (true, false), (true, true)].map(kernel)
        });
        fusions.filter(|kernel| {
            let summed = !kernel.one_row || kernel.fusion.sums();
            summed && (!kernel.holds_keys || kernel.dtype != DType::F32)
        })
    };
    DType::ALL.into_iter().flat_map(kernels)
}

impl ScoreRows {
    /// The kernel for rows of `problem`, of which blocks share keys like that.
    pub fn of(problem: &Problem, splits: ScoreSplits) -> Self {
        let fusion = Fusion::from(&problem.config().head_fusion);
        let one_head =
            splits.heads as usize == problem.shape().heads && splits.parts() <= Geometry::MAX_SIDE;
        let (dtype, one_row) = (
            problem.dtype(),
            problem.start_rows() == 1 && fusion.sums() && one_head,
        );
        let one_chunk = |source| chunks(source, dtype) == 1;
        let holds_keys = dtype != DType::F32 && problem.queries_keys().is_some_and(one_chunk);
        ScoreRows {
            dtype,
            fusion,
            one_row,
            holds_keys: one_row && holds_keys,
        }
    }

    /// Warps of a block that take tiles, each of which has 32 keys, and its dynamic shared memory.
    fn block(&self, source: &QueriesKeys, window_len: u32) -> (u32, u32) {
        if self.one_row {
            return staying_block(source, self.dtype, window_len, PANELS);
        }
        let warps = window_len.div_ceil(TILE).clamp(1, FUSING_WARPS);
        (warps, passing_bytes(1 + warps))
    }

    /// Blocks that cover the keys of a window.
    pub fn key_blocks(&self, source: &QueriesKeys, window_len: u32) -> u32 {
        window_len.div_ceil(TILE * self.block(source, window_len).0)
    }

    /// Whether it takes windows of so many tokens.
    pub fn takes(window_len: u32) -> bool {
        window_len.div_ceil(TILE) <= MAX_QUERY_TILES
    }

    /// `relevance` times the fused map of the one layer of `operands`, in as many parts as `splits` says.
    pub fn launch(
        &self,
        operands: &ScoreOperands<'_>,
        splits: ScoreSplits,
        relevance: Matrices,
        partials: Address,
    ) -> Launch {
        let params = ScoreRowsParams {
            relevance: relevance.base,
            stride_batch: relevance.stride_batch,
            stride_row: relevance.stride_row,
            partials,
            rows: operands.problem.start_rows() as u32,
            query_splits: splits.queries,
            scores: Scores::new(operands),
        };
        let (source, window_len) = (operands.source, operands.window_len);
        let (warps, shared_bytes) = self.block(source, window_len);
        let grid = [
            operands.items.len() as u32,
            splits.parts(),
            self.key_blocks(source, window_len),
        ];
        let unused = params.scores.unused_bytes();
        let geometry = Geometry {
            shared_bytes,
            ..Geometry::new(grid, block_threads(warps))
        };
        Launch::new(self.variant(), geometry, &params, unused)
    }
}

impl Kernel for ScoreRows {
    fn variant(&self) -> Variant {
        let (threads, blocks) = match self.one_row {
            true => (STAYING_THREADS, staying_blocks(self.dtype)),
            false => (block_threads(FUSING_WARPS), 3),
        };
        let fusion = Some(self.fusion);
        let mut variant = score_variant("score_rows", self.dtype, fusion, threads, blocks);
        if self.one_row {
            variant.symbol += if self.holds_keys { "_held" } else { "_one" };
        }
        variant.defines.push(("ONE_ROW", flag(self.one_row)));
        variant.defines.push(("HOLDS_KEYS", flag(self.holds_keys)));
        // The tiles; and what is known of rows and what they weigh, or the sums of columns.
        let beside = match self.one_row {
            true => ROOM * (TILE * (8 + 4) + 4),
            false => ROOM_OF_HEADS * TILE * 8 + 4 * threads * MAX_SCORE_ROWS as u32,
        };
        variant.static_shared_bytes = (16 + 2 * MAX_QUERY_TILES) + beside;
        variant
    }

    fn example(&self, layers: usize, tokens: usize) -> Result<Problem> {
        let rows = match self.one_row {
            true => StartRows::Last,
            false => StartRows::Rows(vec![0, tokens - 1]),
        };
        let head_dim = if self.holds_keys { 32 } else { 72 };
        example(
            layers,
            tokens,
            head_dim,
            self.dtype,
            self.fusion,
            Lse::Recomputed,
            Output::Rows(rows),
        )
    }
}
