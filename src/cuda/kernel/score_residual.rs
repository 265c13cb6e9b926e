//! `score_residual`: relevance after a layer of queries and keys.

use super::scores::{SCORES_ARCH, ScoreOperands, Scores, example};
use super::{Fusion, Kernel, Matrices};
use crate::config::{Output, StartRows};
use crate::cuda::address::Address;
use crate::cuda::launch::{Geometry, Launch};
use crate::cuda::parameters::params;
use crate::cuda::variant::{Variant, symbol};
use crate::dtype::DType;
use crate::error::Result;
use crate::problem::Problem;
use crate::queries_keys::{LogBase, Lse};

/// Columns of a block.
const BLOCK: u32 = 256;

params! {
    /// Parameters of `score_residual`.
    ScoreResidualParams {
        relevance: Address,
        stride_batch: i64,
        stride_row: i64,
        partials: Address,
        out: Address,
        masses: Address,
        rows: u32,
        splits: u32,
        out_stride: u32,
        out_windowed: u32,
        scores: Scores,
    }
}

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub struct AddResidual;

/// What it works on beside queries and keys.
#[derive(Clone, Copy, Debug)]
pub struct ResidualOperands {
    /// Before the layer.
    pub relevance: Matrices,
    /// So many parts of the product with the layer.
    pub partials: (Address, u32),
    /// Where the relevance goes.
    pub out: Address,
    /// The output of all layers: of all tokens.
    pub last: bool,
    /// Where sums go, if anything is known of them.
    pub masses: Option<Address>,
}

/// All there are.
pub(super) fn all() -> [AddResidual; 1] {
    [AddResidual]
}

impl AddResidual {
    /// Blocks that share a row of so many tokens.
    pub fn blocks(tokens: usize) -> usize {
        tokens.div_ceil(BLOCK as usize)
    }

    /// The relevance after the one layer of `operands`.
    pub fn launch(&self, operands: &ScoreOperands<'_>, residual: &ResidualOperands) -> Launch {
        let problem = operands.problem;
        let columns = match residual.last {
            true => problem.shape().tokens as u32,
            false => operands.window_len,
        };
        let params = ScoreResidualParams {
            relevance: residual.relevance.base,
            stride_batch: residual.relevance.stride_batch,
            stride_row: residual.relevance.stride_row,
            partials: residual.partials.0,
            out: residual.out,
            masses: residual.masses.unwrap_or(Address::NULL),
            rows: problem.start_rows() as u32,
            splits: residual.partials.1,
            out_stride: columns,
            out_windowed: residual.last.into(),
            scores: Scores::new(operands).of_masses(problem),
        };
        let rows = problem.start_rows() as u32;
        // As many for every layer, so that masses of all are alike.
        let blocks = AddResidual::blocks(problem.shape().tokens);
        let grid = [operands.items.len() as u32, blocks as u32, rows];
        let unused = params.scores.unused_bytes();
        Launch::new(self.variant(), Geometry::new(grid, BLOCK), &params, unused)
    }
}

impl Kernel for AddResidual {
    fn variant(&self) -> Variant {
        Variant {
            defines: vec![("BLOCK_THREADS", BLOCK.to_string())],
            arch: SCORES_ARCH,
            // The sums of warps.
            static_shared_bytes: 128,
            ..Variant::new(
                "score_residual",
                symbol("score_residual", &["f32"], &[]),
                BLOCK,
                4,
            )
        }
    }

    fn example(&self, layers: usize, tokens: usize) -> Result<Problem> {
        let (lse, rows) = (Lse::Given(LogBase::E), Output::Rows(StartRows::Last));
        example(layers, tokens, 32, DType::F32, Fusion::Mean, lse, rows)
    }
}
