//! Small items of a layer, several at a time: those that lie far apart are read side by side, each as one long stream that
//! goes on in the items after it.
//!
//! Times the fastest read of the same bytes, one row, one thread of a 2-core EPYC of family 26 (Zen 5), the middle of five
//! processes of 21 runs, which spread by a tenth, layers x batch x heads x tokens:
//!
//! | f32, f16 | 12x96x1x197 | 3x256x4x100 | 12x64x12x64 | 12x64x4x128 |
//! |---|---|---|---|---|
//! | one item after the other | 1.24, 1.45 | 1.27, 1.37 | 1.26, 1.23 | 1.24, 1.31 |
//! | four side by side | 1.17, 1.25 | 1.16, 1.31 | 1.11, 1.10 | 1.15, 1.11 |

use std::ops::Range;

use crate::config::Residual;
use crate::cpu::fuse::{ABREAST, AccumulateAbreast};
use crate::cpu::item::ItemRows;
use crate::cpu::map::Run;

use super::add;
use super::scratch::{Cut, RowsBuffers, sums_stride};
use super::stretch::Stretch;

/// Items from each of those that are read side by side to the next, at least: fewer are no long streams.
const LEAST_APART: usize = 2;

/// Adds one layer of the items of `stretch` to their relevance in the output, as far as they are read side by side, and
/// returns those that are left. To the bit, each becomes what it becomes by itself.
pub(super) fn compute(
    run: Run<'_>,
    stretch: &Stretch,
    scratch: &mut RowsBuffers<'_>,
) -> Range<usize> {
    let Stretch { layers, items } = stretch;
    if !can_be_abreast(run, stretch) {
        return items.clone();
    }
    let (layer, tokens) = (layers.start, run.problem.shape().tokens);
    let rows = |layer: usize, item: usize| match run.maps(layer, item).rows(0..tokens) {
        ItemRows::Maps(rows) => rows,
        ItemRows::Scores(_) => unreachable!("they can be read side by side"),
    };
    let apart = items.len() / ABREAST;
    let group = Group {
        cut: Cut::new(run.problem, tokens),
        residual: run.problem.residual(layer),
        relevance_stride: apart * tokens,
        sums_stride: sums_stride(tokens),
    };
    for first in items.start..items.start + apart {
        let mut from = rows(layer, first);
        if first + 1 == items.start + apart && run.layers().start < layer {
            from = from.before(&rows(layer - 1, items.start));
        }
        // SAFETY: this member alone computes these items.
        let relevance = unsafe { run.out.get_mut(first * tokens..items.end * tokens) };
        let (weights, sums) = (&mut *scratch.weights, &mut *scratch.parts);
        group.begin(relevance, weights, sums);
        let to = AccumulateAbreast {
            apart: apart * run.problem.strides(layer).batch,
            weights,
            block_rows: group.cut.block_rows,
            sums,
            sums_stride: group.sums_stride,
        };
        from.accumulate_abreast(run.simd, to);
        group.end(sums, relevance);
    }
    items.start + ABREAST * apart..items.end
}

/// Items that are read side by side.
struct Group {
    cut: Cut,
    residual: Residual,
    /// Floats from the relevance of each item to that of the next, ...
    relevance_stride: usize,
    /// ... and from its sums of a block of rows.
    sums_stride: usize,
}

impl Group {
    fn relevance(&self, item: usize) -> Range<usize> {
        let first = item * self.relevance_stride;
        first..first + self.cut.len
    }

    fn sums(&self, block: usize, item: usize) -> Range<usize> {
        let first = (block * ABREAST + item) * self.sums_stride;
        first..first + self.cut.len
    }

    /// Writes what rows are multiplied by into `weights`, and the residual into the `sums` of each block.
    fn begin(&self, relevance: &[f32], weights: &mut [f32], sums: &mut [f32]) {
        let items = weights.chunks_exact_mut(self.cut.len).take(ABREAST);
        for (item, weights) in items.enumerate() {
            let relevance = &relevance[self.relevance(item)];
            for (weight, relevance) in weights.iter_mut().zip(relevance) {
                *weight = self.residual.attention * relevance;
            }
            for block in 0..self.cut.blocks {
                let sums = &mut sums[self.sums(block, item)];
                sums.fill(0.0);
                for row in self.cut.rows(block..block + 1) {
                    sums[row] += self.residual.identity * relevance[row];
                }
            }
        }
    }

    /// Writes the sums of all blocks into the relevance.
    fn end(&self, sums: &[f32], relevance: &mut [f32]) {
        for item in 0..ABREAST {
            let relevance = &mut relevance[self.relevance(item)];
            if self.cut.blocks == 1 {
                relevance.copy_from_slice(&sums[self.sums(0, item)]);
                continue;
            }
            relevance.fill(0.0);
            for block in 0..self.cut.blocks {
                add(relevance, &sums[self.sums(block, item)]);
            }
        }
    }
}

/// Whether items of `stretch`, of one layer, are read side by side: all their tokens are valid and carry weight for the one
/// start row, and nothing is discarded, excluded or normalised.
fn can_be_abreast(run: Run<'_>, stretch: &Stretch) -> bool {
    let Stretch { layers, items } = stretch;
    let (problem, config) = (run.problem, run.problem.config());
    let tokens = problem.shape().tokens;
    let windows = &problem.windows()[items.clone()];
    let can_be = |rows: ItemRows<'_>| match rows {
        ItemRows::Maps(rows) => rows.are_small(),
        ItemRows::Scores(_) => false,
    };
    let all_carry = || {
        // SAFETY: this member alone computes these items.
        let relevance = unsafe { run.out.get(items.start * tokens..items.end * tokens) };
        relevance.iter().fold(true, |all, &w| all & (w != 0.0))
    };
    layers.len() == 1
        && layers.end < problem.layers().end
        && items.len() >= LEAST_APART * ABREAST
        && problem.start_rows() == 1
        && config.discard.is_none()
        && config.exclude_from_attention.is_empty()
        && !config.normalize_rows
        && windows.iter().all(|window| window.len == tokens)
        && can_be(run.maps(layers.start, items.start).rows(0..tokens))
        && all_carry()
}
