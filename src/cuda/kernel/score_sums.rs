//! `score_sums`: the sums by which rows of scores are normalised, where the LSE is not given.

use super::scores::{SCORE_THREADS, ScoreOperands, Scores, TILE, example, tile_variant};
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
        self.launch_with(operands.window_len.div_ceil(TILE), &params)
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
        self.launch_with(1, &params)
    }

    fn launch_with(&self, tiles: u32, params: &ScoreSumsParams) -> Launch {
        let scores = &params.scores;
        let grid = [scores.batch, tiles, scores.heads * scores.layers];
        let geometry = Geometry::new(grid, SCORE_THREADS);
        Launch::new(self.variant(), geometry, params, scores.unused_bytes())
    }
}

impl Kernel for SumScores {
    fn variant(&self) -> Variant {
        // The sums of two warps.
        tile_variant("score_sums", self.dtype, None, 2 * TILE * 8)
    }

    fn example(&self, layers: usize, tokens: usize) -> Result<Problem> {
        example(
            layers,
            tokens,
            self.dtype,
            Fusion::Mean,
            Lse::Recomputed,
            Output::Cumulative,
        )
    }
}
