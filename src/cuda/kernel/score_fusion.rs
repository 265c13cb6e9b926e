//! `score_fusion`: fused f32 maps of queries and keys.

use super::scores::{
    ROOM_OF_HEADS, ScoreOperands, Scores, TILE, block_threads, example, passing_bytes,
    score_variant,
};
use super::{Fused, Fusion, Kernel};
use crate::config::Output;
use crate::cuda::address::Address;
use crate::cuda::launch::{Geometry, Launch};
use crate::cuda::parameters::params;
use crate::cuda::variant::Variant;
use crate::dtype::DType;
use crate::error::Result;
use crate::problem::Problem;
use crate::queries_keys::Lse;

params! {
    /// Parameters of `score_fusion`.
    ScoreFusionParams {
        fused: Address,
        stride_layer: i64,
        stride_batch: i64,
        stride_row: i64,
        scores: Scores,
    }
}

/// Warps of a block along the queries, and along the keys.
const SIDE_WARPS: u32 = 2;
/// Queries, and keys, of a block.
const SIDE: u32 = SIDE_WARPS * TILE;
/// Threads of a block.
const THREADS: u32 = block_threads(SIDE_WARPS * SIDE_WARPS);
/// Dynamic shared memory: queries and keys come with every tile.
const SHARED_BYTES: u32 = passing_bytes(2 * SIDE_WARPS);

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub struct FuseScores {
    /// Element type of queries and keys.
    pub dtype: DType,
    /// How heads become one map.
    pub fusion: Fusion,
}

/// All there are.
pub(super) fn all() -> impl IntoIterator<Item = FuseScores> {
    let fusions = |dtype| Fusion::ALL.map(|fusion| FuseScores { dtype, fusion });
    DType::ALL.into_iter().flat_map(fusions)
}

impl FuseScores {
    /// Fuses the layers of `operands`. Where the LSE is not given, their sums are there.
    pub fn launch(operands: &ScoreOperands<'_>, fused: Fused) -> Launch {
        let ScoreOperands {
            problem,
            layers,
            items,
            window_len,
            ..
        } = *operands;
        let kernel = FuseScores {
            dtype: problem.dtype(),
            fusion: Fusion::from(&problem.config().head_fusion),
        };
        let params = ScoreFusionParams {
            fused: fused.maps.base,
            stride_layer: fused.stride_layer as i64,
            stride_batch: fused.maps.stride_batch,
            stride_row: fused.maps.stride_row,
            scores: Scores::new(operands),
        };
        let tiles = window_len.div_ceil(SIDE);
        let grid = [items.len() as u32, tiles, layers.len() as u32 * tiles];
        let unused = params.scores.unused_bytes();
        let geometry = Geometry {
            shared_bytes: SHARED_BYTES,
            ..Geometry::new(grid, THREADS)
        };
        Launch::new(kernel.variant(), geometry, &params, unused)
            .passing(2 * items.len() * layers.len() * fused.maps.bytes())
    }
}

impl Kernel for FuseScores {
    fn variant(&self) -> Variant {
        Variant {
            // What is known of rows.
            static_shared_bytes: ROOM_OF_HEADS * SIDE * 8,
            shared_bytes: SHARED_BYTES,
            ..score_variant("score_fusion", self.dtype, Some(self.fusion), THREADS, 3)
        }
    }

    fn example(&self, layers: usize, tokens: usize) -> Result<Problem> {
        example(
            layers,
            tokens,
            32,
            self.dtype,
            self.fusion,
            Lse::Recomputed,
            Output::Cumulative,
        )
    }
}
