//! `score_sums`: the sums by which rows of scores are normalised, where the LSE is not given.

use std::ops::Range;

use super::scores::{
    SCORE_BLOCKS, SCORE_THREADS, SCORES_ARCH, STAGES_BYTES, Scores, TILE, example,
};
use super::{Fusion, Kernel};
use crate::cuda::address::Address;
use crate::cuda::launch::{Geometry, Launch};
use crate::cuda::parameters::params;
use crate::cuda::variant::{Variant, symbol};
use crate::dtype::DType;
use crate::error::Result;
use crate::problem::Problem;
use crate::queries_keys::QueriesKeys;

params! {
    /// Parameters of `score_sums`.
    ScoreSumsParams {
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
    /// The sums of `layers` of `problem`, given by `source`, for `items` of a run; windows at most `window_len` tokens long.
    pub(in crate::cuda) fn launch(
        &self,
        problem: &Problem,
        source: &QueriesKeys,
        layers: &Range<usize>,
        items: &Range<usize>,
        window_len: u32,
        sums: Address,
    ) -> Launch {
        let scores = Scores::new(problem, source, layers, items, window_len, Some(sums));
        let heads = problem.shape().heads * layers.len();
        let grid = [
            items.len() as u32,
            window_len.div_ceil(TILE),
            heads as u32,
        ];
        let unused = scores.unused_bytes();
        let geometry = Geometry::new(grid, SCORE_THREADS);
        Launch::new(self.variant(), geometry, &ScoreSumsParams { scores }, unused)
    }
}

impl Kernel for SumScores {
    fn variant(&self) -> Variant {
        let name = self.dtype.name();
        Variant {
            defines: vec![
                ("ELEMENT", name.to_owned()),
                ("BLOCKS", SCORE_BLOCKS.to_string()),
            ],
            arch: SCORES_ARCH,
            // The stages, and the sums of two warps.
            static_shared_bytes: STAGES_BYTES + 2 * TILE * 8,
            ..Variant::new(
                "score_sums",
                symbol("score_sums", &[name], &[]),
                SCORE_THREADS,
                SCORE_BLOCKS,
            )
        }
    }

    fn example(&self, layers: usize, tokens: usize) -> Result<Problem> {
        example(layers, tokens, self.dtype, Fusion::Mean)
    }
}
