//! `score_rows`: rows of relevance times the fused map of one layer of queries and keys.

use super::scores::{SCORE_THREADS, ScoreOperands, Scores, TILE, example, tile_variant};
use super::{Fusion, Kernel, Matrices};
use crate::config::{Output, StartRows};
use crate::cuda::address::Address;
use crate::cuda::launch::{Geometry, Launch};
use crate::cuda::parameters::params;
use crate::cuda::variant::Variant;
use crate::dtype::DType;
use crate::error::Result;
use crate::problem::Problem;
use crate::queries_keys::Lse;

/// Rows that the kernel takes at a time.
pub const MAX_SCORE_ROWS: usize = 8;
/// Tiles of queries that an item may have.
const MAX_QUERY_TILES: u32 = 1024;

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
    /// Blocks.
    pub fn parts(self) -> u32 {
        self.queries * self.heads
    }

    /// As many as fill a device with `blocks` blocks where `tiles` tiles of keys are computed at the same time, of windows of
    /// `window_len` tokens and `heads` heads of which each block may take some.
    pub fn filling(blocks: u32, tiles: u32, window_len: u32, heads: u32) -> Self {
        let wanted = blocks.div_ceil(tiles.max(1));
        let queries = wanted.clamp(1, window_len.div_ceil(TILE).max(1));
        ScoreSplits {
            queries,
            heads: wanted.div_ceil(queries).clamp(1, heads),
        }
    }
}

/// All there are.
pub(super) fn all() -> impl IntoIterator<Item = ScoreRows> {
    let fusions = |dtype| Fusion::ALL.map(|fusion| ScoreRows { dtype, fusion });
    DType::ALL.into_iter().flat_map(fusions)
}

impl ScoreRows {
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
        let grid = [
            operands.items.len() as u32,
            splits.parts(),
            operands.window_len.div_ceil(TILE),
        ];
        let unused = params.scores.unused_bytes();
        Launch::new(
            self.variant(),
            Geometry::new(grid, SCORE_THREADS),
            &params,
            unused,
        )
    }
}

impl Kernel for ScoreRows {
    fn variant(&self) -> Variant {
        // The tiles, and the sums of two warps.
        let shared_bytes = (4 + 2 * MAX_QUERY_TILES) + 2 * 4 * MAX_SCORE_ROWS as u32 * TILE;
        tile_variant("score_rows", self.dtype, Some(self.fusion), shared_bytes)
    }

    fn example(&self, layers: usize, tokens: usize) -> Result<Problem> {
        let rows = Output::Rows(StartRows::Rows(vec![0, tokens - 1]));
        example(
            layers,
            tokens,
            self.dtype,
            self.fusion,
            Lse::Recomputed,
            rows,
        )
    }
}
