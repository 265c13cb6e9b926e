//! Sums of weighted rows.
#![allow(
    clippy::needless_range_loop,
    reason = "what iterators are made of is not always inlined, and outside an inner loop it lacks its instruction set"
)]

use std::ops::Range;

use crate::config::HeadFusion;
use crate::cpu::fuse::MapRows;
use crate::cpu::simd::Lanes;

/// Sums to add weighted rows to.
pub(crate) struct Accumulate<'a> {
    pub start_rows: usize,
    /// What each row is multiplied by, for one start row after the other.
    pub weights: &'a [f32],
    /// Elements from the weights for one start row to those for the next.
    pub weights_stride: usize,
    /// Rows that share sums: these, those after them, and so on.
    pub block_rows: usize,
    /// The sums, for one block of rows after the other, and for one start row after the other.
    pub part: &'a mut [f32],
    /// Elements from the sums for one start row to those for the next.
    pub part_stride: usize,
    /// Where the heads are folded, if they must be before their rows are added: room for a row, and for
    /// [so many elements](super::CHUNK_ELEMENTS) if there are as many.
    pub fused: &'a mut [f32],
}

impl Accumulate<'_> {
    /// The blocks of `rows` rows, and their rows.
    #[inline(always)]
    pub fn blocks(&self, rows: usize) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
        blocks(rows, self.block_rows)
    }
}

/// Blocks of `rows` rows, and their rows.
#[inline(always)]
pub(super) fn blocks(
    rows: usize,
    block_rows: usize,
) -> impl Iterator<Item = (usize, Range<usize>)> {
    // Without a division, as steps of so many rows take.
    let (mut next, mut block) = (0usize, 0);
    std::iter::from_fn(move || {
        let first = next;
        next = rows.min(first.saturating_add(block_rows));
        block += 1;
        (first < rows).then_some((block - 1, first..next))
    })
}

/// Adds `sums` to `part`, but for the first `done` columns.
#[inline(always)]
pub(super) fn add<W: Lanes, const V: usize>(
    lanes: W,
    sums: &[W::Vector; V],
    part: &mut [f32],
    done: usize,
) {
    let part = &mut part[..V * W::LANES];
    for v in 0..V {
        let part = &mut part[v * W::LANES..];
        let before = lanes.load(part);
        let mut sum = lanes.add(before, sums[v]);
        if done > 0 {
            sum = lanes.join(done, before, sum);
        }
        lanes.store(sum, part);
    }
}

impl MapRows<'_> {
    /// What the entries of a head are multiplied by.
    #[inline(always)]
    pub(super) fn scale(&self, head: usize) -> f32 {
        match self.fusion {
            HeadFusion::Weighted(weights) => weights[head],
            _ => 1.0 / self.heads as f32,
        }
    }
}
