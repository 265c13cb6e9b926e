//! `score_masses`: sums of the rows of fused maps, where it is known what they must be.

use super::parts::WARP;
use super::scores::{SCORES_ARCH, ScoreOperands, Scores, example};
use super::{Fused, Fusion, Kernel};
use crate::config::Output;
use crate::cuda::address::Address;
use crate::cuda::launch::{Geometry, Launch};
use crate::cuda::parameters::params;
use crate::cuda::variant::{Variant, symbol};
use crate::dtype::DType;
use crate::error::Result;
use crate::problem::Problem;
use crate::queries_keys::{LogBase, Lse};

/// A warp takes a row.
const BLOCK: u32 = 256;

params! {
    /// Parameters of `score_masses`.
    ScoreMassesParams {
        fused: Address,
        stride_layer: i64,
        stride_batch: i64,
        stride_row: i64,
        masses: Address,
        masses_layer: i64,
        scores: Scores,
    }
}

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub struct SumRows;

/// All there are.
pub(super) fn all() -> [SumRows; 1] {
    [SumRows]
}

impl SumRows {
    /// The sums of the layers of `operands`, of which `fused` was made, into `masses`; those of the next layer are
    /// `stride_layer` further on.
    pub fn launch(
        &self,
        operands: &ScoreOperands<'_>,
        fused: Fused,
        (masses, stride_layer): (Address, usize),
    ) -> Launch {
        let ScoreOperands {
            problem,
            layers,
            items,
            window_len,
            ..
        } = *operands;
        let scores = Scores::new(operands).of_masses(problem);
        let params = ScoreMassesParams {
            fused: fused.maps.base,
            stride_layer: fused.stride_layer as i64,
            stride_batch: fused.maps.stride_batch,
            stride_row: fused.maps.stride_row,
            masses,
            masses_layer: stride_layer as i64,
            scores,
        };
        let rows = window_len.div_ceil(BLOCK / WARP);
        let geometry = Geometry::new([items.len() as u32, rows, layers.len() as u32], BLOCK);
        Launch::new(self.variant(), geometry, &params, scores.unused_bytes())
            .passing(items.len() * layers.len() * fused.maps.bytes())
    }
}

impl Kernel for SumRows {
    fn variant(&self) -> Variant {
        Variant {
            defines: vec![("BLOCK_THREADS", BLOCK.to_string())],
            arch: SCORES_ARCH,
            // Half the threads a multiprocessor can have.
            ..Variant::new(
                "score_masses",
                symbol("score_masses", &["f32"], &[]),
                BLOCK,
                4,
            )
        }
    }

    fn example(&self, layers: usize, tokens: usize) -> Result<Problem> {
        example(
            layers,
            tokens,
            32,
            DType::F32,
            Fusion::Mean,
            Lse::Given(LogBase::E),
            Output::Cumulative,
        )
    }
}
