//! Entries from queries and keys: the scores of a block of queries by the GEMM crate, their exponentials lane by lane, each
//! lane a query, and at once what becomes of them. No more than a block of scores is ever in memory.
//!
//! A block is transposed, `[keys, queries]`: keys are read where they lie, sums over keys (the LSE) never cross lanes, and
//! sums over queries (the new relevance) cross them once per key.

mod block;
mod checks;
mod inner;

use std::ops::Range;

use crate::config::HeadFusion;
use crate::cpu::fuse::Accumulate;
use crate::cpu::memory::Parts;
use crate::cpu::simd::{MOST_LANES, Simd};
use crate::cpu::team::Shared;
use crate::layer::HostTensor;
use crate::problem::Problem;
use crate::queries_keys::QueriesKeys;

pub(crate) use block::KEYS;
use block::{PACKED, Queries, Scoring};
use inner::{Entries, Fold, HeadScores, QUERIES, Weigh};

/// Rows that are computed at a time: fewer take as long.
pub(crate) const ROWS: usize = QUERIES;

/// Rows of each head, layer and item of which a given LSE is looked at, if there are as many; 0 where none is.
pub(crate) fn probed_rows(problem: &Problem) -> usize {
    match problem.probes_lse() {
        false => 0,
        true => QueriesKeys::PROBED_ROWS
            .div_ceil(problem.shape().batch)
            .max(MOST_LANES),
    }
}

/// One item's queries and keys of one layer, and memory of the member's own to compute entries in.
#[derive(Clone, Copy)]
pub(crate) struct ItemScores<'a> {
    pub problem: &'a Problem,
    pub source: &'a QueriesKeys,
    pub queries: HostTensor<'a>,
    pub keys: HostTensor<'a>,
    pub lse: Option<HostTensor<'a>>,
    pub layer: usize,
    pub item: usize,
    /// [`floats`] of them, which this member alone uses, one call at a time.
    pub memory: Shared<'a>,
}

/// Some rows of them.
#[derive(Clone, Copy)]
pub(crate) struct ScoreRows<'a> {
    pub of: ItemScores<'a>,
    /// Counted from the window's start.
    pub first: usize,
    pub count: usize,
}

/// Floats that a member computes entries of `problem` in.
pub(crate) fn floats(problem: &Problem) -> usize {
    parts(problem).map_or(0, Parts::floats)
}

/// Queries `[head_dim, QUERIES]`, some as f32 `[PACKED, head_dim]`, keys `[KEYS, head_dim]` where they are not read in place, scores and folded entries
/// `[KEYS, QUERIES]`, shifts and factors `[heads, QUERIES]`, weights `[start rows, QUERIES]`, sums of relevance and their
/// magnitudes `[2, start rows]`.
fn parts(problem: &Problem) -> Option<Parts<9>> {
    let source = problem.queries_keys()?;
    let keys = KEYS.min(problem.longest_window());
    let (heads, start_rows) = (problem.shape().heads, problem.start_rows());
    let by_queries = |count: usize| count.saturating_mul(QUERIES);
    Some(Parts([
        by_queries(source.head_dim),
        PACKED * source.head_dim,
        keys * source.head_dim,
        by_queries(keys),
        by_queries(keys),
        by_queries(heads),
        by_queries(heads),
        by_queries(start_rows),
        start_rows.saturating_mul(2),
    ]))
}

/// The memory of a member, cut up.
struct Buffers<'a> {
    scoring: Scoring<'a>,
    folded: &'a mut [f32],
    weights: &'a mut [f32],
    masses: &'a mut [f32],
}

impl<'a> ItemScores<'a> {
    /// Valid tokens of the item.
    fn len(&self) -> usize {
        self.problem.windows()[self.item].len
    }

    /// The memory. Whoever calls this lets go of it before it is called again.
    fn buffers(&self) -> Buffers<'a> {
        let parts = parts(self.problem).unwrap_or(Parts([0; 9]));
        // SAFETY: this member's alone, and each of the functions that ask for it is done with it when it returns.
        let [
            queries,
            wide,
            keys,
            scores,
            folded,
            shifts,
            factors,
            weights,
            masses,
        ] = self
            .memory
            .carve(parts)
            .map(|part| unsafe { part.get_mut(0..part.len()) });
        Buffers {
            scoring: Scoring {
                queries,
                wide,
                keys,
                scores,
                shifts,
                factors,
            },
            folded,
            weights,
            masses,
        }
    }

    /// What a head's entries are multiplied by where heads are summed; `None` where they are not.
    fn share(&self, head: usize) -> Option<f32> {
        match &self.problem.config().head_fusion {
            HeadFusion::Mean => Some(1.0 / self.problem.shape().heads as f32),
            HeadFusion::Weighted(weights) => Some(weights[head]),
            HeadFusion::Max | HeadFusion::Min => None,
        }
    }
}

impl ScoreRows<'_> {
    /// The rows in blocks.
    fn blocks(&self) -> impl Iterator<Item = Queries> + use<> {
        let (first, end) = (self.first, self.first + self.count);
        (first..end)
            .step_by(QUERIES)
            .map(move |first| Queries::adjoining(first..end.min(first + QUERIES)))
    }

    /// Writes the fused rows, times `weight`, into `fused`, `[rows, len]`.
    pub fn fuse(self, simd: Simd, weight: f32, fused: &mut [f32]) {
        let (len, heads) = (self.of.len(), self.of.problem.shape().heads);
        fused.fill(0.0);
        let Buffers {
            mut scoring,
            folded,
            ..
        } = self.of.buffers();
        for (queries, fused) in self.blocks().zip(fused.chunks_mut(QUERIES * len)) {
            self.of
                .visit(simd, 0..heads, queries, &mut scoring, |scores| {
                    if self.fold(simd, scores, folded) {
                        scatter(folded, scores, weight, len, fused);
                    }
                });
        }
    }

    /// Whether fused entries are weighted sums of those of the heads, so that rows of each head can be added by themselves.
    pub fn are_sums(&self) -> bool {
        self.of.share(0).is_some()
    }

    /// Adds the fused rows, times their weights, to sums: those of one block, or of several where they
    /// [are sums](ScoreRows::are_sums), each head by itself then, so that its keys stay in a cache.
    pub fn accumulate(&self, simd: Simd, to: &mut Accumulate<'_>) {
        let heads = self.of.problem.shape().heads;
        let mut buffers = self.of.buffers();
        if self.are_sums() {
            for head in 0..heads {
                for queries in self.blocks() {
                    self.accumulate_block(simd, head..head + 1, queries, &mut buffers, to);
                }
            }
        } else {
            for queries in self.blocks() {
                self.accumulate_block(simd, 0..heads, queries, &mut buffers, to);
            }
        }
    }

    /// The same of some heads of some rows.
    fn accumulate_block(
        &self,
        simd: Simd,
        heads: Range<usize>,
        queries: Queries,
        buffers: &mut Buffers<'_>,
        to: &mut Accumulate<'_>,
    ) {
        let Buffers {
            scoring,
            folded,
            weights,
            ..
        } = buffers;
        let first = queries.first - self.first;
        let sums = first / to.block_rows * to.start_rows * to.part_stride;
        let given = |m: usize| &to.weights[m * to.weights_stride + first..][..queries.count];
        self.of.visit(simd, heads, queries, scoring, |scores| {
            let stride = scores.stride;
            let share = self.of.share(scores.head);
            // Of heads that are not summed, the last brings the fused entries.
            if share.is_none() && !self.fold(simd, scores, folded) {
                return;
            }
            let weights = &mut weights[..to.start_rows * stride];
            for (m, weights) in weights.chunks_exact_mut(stride).enumerate() {
                weights.fill(0.0);
                let lanes = weights.iter_mut().zip(given(m)).zip(scores.factors);
                for ((weight, given), factor) in lanes {
                    *weight = given * share.map_or(1.0, |share| share * factor);
                }
            }
            let columns = Columns {
                scores,
                weights,
                part: &mut to.part[sums + scores.keys.start..],
                part_stride: to.part_stride,
            };
            match share {
                Some(_) => columns.weigh(simd, scores.scores, scores.entries),
                None => columns.weigh(simd, folded, Entries::AsTheyAre),
            }
        });
    }

    /// Folds the entries of one head into those of the heads before it. Whether it was the last, and `folded` is the fused
    /// map, `[keys, queries]`.
    fn fold(&self, simd: Simd, scores: &HeadScores<'_>, folded: &mut [f32]) -> bool {
        let heads = self.of.problem.shape().heads;
        simd.dispatch(Fold {
            fusion: &self.of.problem.config().head_fusion,
            scores,
            heads,
            folded,
        });
        scores.head + 1 == heads
    }
}

/// Where the columns of one chunk of keys are summed.
struct Columns<'a> {
    scores: &'a HeadScores<'a>,
    weights: &'a [f32],
    part: &'a mut [f32],
    part_stride: usize,
}

impl Columns<'_> {
    /// Adds the weighted sums of the `entries` that follow from `values`, `[keys, queries]`.
    fn weigh(self, simd: Simd, values: &[f32], entries: Entries<'_>) {
        simd.dispatch(Weigh {
            values,
            entries,
            stride: self.scores.stride,
            keys: self.scores.keys.len(),
            weights: self.weights,
            part: self.part,
            part_stride: self.part_stride,
        });
    }
}

/// Writes `folded`, `[keys, queries]`, times `weight`, into the keys' columns of `fused`, `[queries, len]`.
fn scatter(folded: &[f32], scores: &HeadScores<'_>, weight: f32, len: usize, fused: &mut [f32]) {
    let HeadScores { stride, keys, .. } = scores;
    for (query, row) in fused.chunks_exact_mut(len).enumerate() {
        let columns: &mut [f32] = &mut row[keys.clone()];
        for (key, entry) in columns.iter_mut().enumerate() {
            *entry = folded[key * stride + query] * weight;
        }
    }
}

/// The keys `present`, a chunk at a time.
fn chunks(present: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = present.end;
    present
        .step_by(KEYS)
        .map(move |first| first..end.min(first + KEYS))
}
