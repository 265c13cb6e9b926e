//! `score_short`: a row of relevance times the attention of one layer of queries and keys whose windows are short, and whose LSE
//! is not given.

use super::parts::WARP;
use super::scores::{PANEL_BYTES, ScoreOperands, Scores, TILE, chunks, example, score_variant};
use super::{Fusion, Kernel, Matrices};
use crate::config::{Output, StartRows};
use crate::cuda::address::Address;
use crate::cuda::launch::{Geometry, Launch};
use crate::cuda::parameters::params;
use crate::cuda::variant::Variant;
use crate::dtype::DType;
use crate::error::Result;
use crate::problem::Problem;
use crate::queries_keys::{Lse, QueriesKeys};

/// Queries that a warp takes at a time.
const QUERIES: u32 = 16;
/// Most tokens of a window: a warp has the scores of all keys in registers.
const KEYS: u32 = 208;
/// Warps of a block.
const WARPS: u32 = 4;

params! {
    /// Parameters of `score_short`.
    ScoreShortParams {
        relevance: Address,
        stride_batch: i64,
        partials: Address,
        query_splits: u32,
        reserved: u32,
        scores: Scores,
    }
}

/// The kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShortScores {
    /// Element type of queries and keys.
    pub dtype: DType,
    /// How heads become one map.
    pub fusion: Fusion,
}

/// The kernel, and how queries are divided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShortRows {
    /// The kernel ...
    pub kernel: ShortScores,
    /// ... and blocks that share the queries of a head.
    pub query_splits: u32,
}

/// All there are.
pub(super) fn all() -> impl IntoIterator<Item = ShortScores> {
    let fusions = Fusion::ALL.into_iter().filter(|fusion| fusion.sums());
    fusions.flat_map(|fusion| [DType::F16, DType::Bf16].map(|dtype| ShortScores { dtype, fusion }))
}

impl ShortScores {
    /// The kernel for windows of `problem` of so many tokens, if it can be: one row, heads that are summed, and scores that are
    /// products times a positive scale and nothing else.
    pub fn of(problem: &Problem, window_len: u32) -> Option<Self> {
        let source = problem.queries_keys()?;
        let fusion = Fusion::from(&problem.config().head_fusion);
        let plain = source.alibi_slopes.iter().all(|&slope| slope == 0.0)
            && source.soft_caps.iter().all(|&cap| cap == 0.0)
            && source.scale() > 0.0;
        let can = problem.start_rows() == 1
            && fusion.sums()
            && plain
            && !source.has_lse()
            && problem.dtype() != DType::F32
            && window_len <= KEYS;
        can.then_some(ShortScores {
            dtype: problem.dtype(),
            fusion,
        })
    }

    /// How often warps take queries of a window of so many tokens one after the other, where so many blocks share them.
    pub fn turns(window_len: u32, query_splits: u32) -> u32 {
        window_len.div_ceil(QUERIES * WARPS * query_splits)
    }

    /// Dynamic shared memory of a block.
    pub fn shared_bytes(&self, source: &QueriesKeys) -> u32 {
        let tokens = KEYS.next_multiple_of(TILE) + WARPS * 2 * QUERIES;
        chunks(source, self.dtype) * tokens * (PANEL_BYTES / TILE)
    }
}

impl ShortRows {
    /// Parts of the product that it leaves.
    pub fn parts(&self, problem: &Problem) -> u32 {
        self.query_splits * problem.shape().heads as u32
    }

    /// `relevance` times the fused map of the one layer of `operands`, a part for each head and split.
    pub fn launch(
        &self,
        operands: &ScoreOperands<'_>,
        relevance: Matrices,
        partials: Address,
    ) -> Launch {
        let params = ScoreShortParams {
            relevance: relevance.base,
            stride_batch: relevance.stride_batch,
            partials,
            query_splits: self.query_splits,
            reserved: 0,
            scores: Scores::new(operands),
        };
        let unused = params.scores.unused_bytes();
        let grid = [
            operands.items.len() as u32,
            self.query_splits * params.scores.heads,
            1,
        ];
        let geometry = Geometry {
            shared_bytes: self.kernel.shared_bytes(operands.source),
            ..Geometry::new(grid, WARPS * WARP)
        };
        Launch::new(self.kernel.variant(), geometry, &params, unused)
    }
}

impl Kernel for ShortScores {
    fn variant(&self) -> Variant {
        let fusion = Some(self.fusion);
        let mut variant = score_variant("score_short", self.dtype, fusion, WARPS * WARP, 3);
        variant.defines.push(("KEYS", KEYS.to_string()));
        // What queries weigh.
        variant.static_shared_bytes = 4 * KEYS.next_multiple_of(TILE);
        variant
    }

    fn example(&self, layers: usize, tokens: usize) -> Result<Problem> {
        example(
            layers,
            tokens,
            32,
            self.dtype,
            self.fusion,
            Lse::Recomputed,
            Output::Rows(StartRows::Last),
        )
    }
}
