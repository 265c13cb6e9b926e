//! `score_sums`: the sums by which rows of scores are normalised, where the LSE is not given.

use super::scores::{
    PROBED_ROWS, STAYING_THREADS, ScoreOperands, Scores, TILE, block_threads, example,
    score_variant, staying_block, staying_blocks,
};
use super::{Fusion, Kernel};
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
    /// Parameters of `score_sums`.
    ScoreSumsParams {
        probes: Address,
        probes_layer: i64,
        scores: Scores,
    }
}

/// Most panels of queries that stay with a block: any device has room for them beside the keys. Heads of any size leave room
/// for two warps, which have all rows that are probed.
const PANELS: u32 = 16;

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub struct SumScores {
    /// Element type of queries and keys.
    pub dtype: DType,
}

/// All there are.
pub(super) fn all() -> [SumScores; 3] {
    DType::ALL.map(|dtype| SumScores { dtype })
}

impl SumScores {
    /// The sums of `operands`, where they say.
    pub fn launch(&self, operands: &ScoreOperands<'_>) -> Launch {
        let params = ScoreSumsParams {
            probes: Address::NULL,
            probes_layer: 0,
            scores: Scores::new(operands),
        };
        self.launch_with(operands, operands.window_len, &params)
    }

    /// The LSE of some rows of each head, beside what is given, into `probes`; those of the next layer are `stride_layer`
    /// further on.
    pub fn probe(
        &self,
        operands: &ScoreOperands<'_>,
        (probes, stride_layer): (Address, usize),
    ) -> Launch {
        let params = ScoreSumsParams {
            probes,
            probes_layer: stride_layer as i64,
            scores: Scores::new(operands),
        };
        self.launch_with(operands, PROBED_ROWS as u32, &params)
    }

    /// A launch over so many queries of each item.
    fn launch_with(
        &self,
        operands: &ScoreOperands<'_>,
        queries: u32,
        params: &ScoreSumsParams,
    ) -> Launch {
        let scores = &params.scores;
        let (warps, shared_bytes) = staying_block(operands.source, self.dtype, queries, PANELS);
        let blocks = queries.div_ceil(warps * TILE);
        let grid = [scores.batch, blocks, scores.heads * scores.layers];
        let geometry = Geometry {
            shared_bytes,
            ..Geometry::new(grid, block_threads(warps))
        };
        Launch::new(self.variant(), geometry, params, scores.unused_bytes())
    }
}

impl Kernel for SumScores {
    fn variant(&self) -> Variant {
        score_variant(
            "score_sums",
            self.dtype,
            None,
            STAYING_THREADS,
            staying_blocks(self.dtype),
        )
    }

    fn example(&self, layers: usize, tokens: usize) -> Result<Problem> {
        example(
            layers,
            tokens,
            32,
            self.dtype,
            Fusion::Mean,
            Lse::Recomputed,
            Output::Cumulative,
        )
    }
}
