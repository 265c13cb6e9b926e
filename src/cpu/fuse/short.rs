//! Short rows, times their weights, added to sums for one start row that stay in registers while all rows of a block pass by,
//! the heads as one stream.
#![allow(
    clippy::needless_range_loop,
    reason = "what iterators are made of is not always inlined, and outside an inner loop it lacks its instruction set"
)]

use std::ops::Range;

use crate::cpu::fuse::entries::HeadEntries;
use crate::cpu::fuse::streams::{Ahead, Streams};
use crate::cpu::fuse::sums::Accumulate;
use crate::cpu::fuse::{LINE, MapRows};
use crate::cpu::simd::Lanes;

/// Entries of a short row at most: longer ones are read faster as several streams.
const MOST_ENTRIES: usize = 64;

/// Vectors of sums that fit into 16 registers, beside a weight and an entry.
const MOST_VECTORS: usize = 8;

/// Whether a row of so many entries is short.
pub(super) fn is_short(len: usize) -> bool {
    len <= MOST_ENTRIES
}

/// Vectors of a row, where it is short and its sums fit into the registers.
#[inline(always)]
pub(super) fn vectors<L: Lanes>(from: &MapRows<'_>) -> Option<usize> {
    let (len, vectors) = (from.len, from.len.div_ceil(L::LANES));
    let is_short = L::LANES <= len && is_short(len) && vectors <= MOST_VECTORS;
    (is_short && from.causal_from.is_none()).then_some(vectors)
}

impl<L: Lanes, E: HeadEntries> Streams<'_, L, E> {
    /// Adds rows of so many [`vectors`].
    #[inline(always)]
    pub fn add_short(&self, vectors: usize, to: &mut Accumulate<'_>) {
        let from = self.from;
        let adjoin = from.head_stride == from.rows * from.row_stride;
        for head in 0..from.heads {
            let ahead = match adjoin {
                true => self.ahead(
                    E::OPERANDS,
                    from.heads * from.rows,
                    from.entry(from.heads, 0),
                    None,
                ),
                false => {
                    let then = (head + 1 < from.heads).then(|| from.entry(head + 1, 0));
                    self.ahead(E::OPERANDS, from.rows, from.entry(head, from.rows), then)
                }
            };
            for (block, rows) in to.blocks(from.rows) {
                let sums = &mut to.part[block * to.part_stride..][..from.len];
                let of = (head, rows, to.weights);
                match vectors {
                    1 => self.add_block::<1>(of, &ahead, sums),
                    2 => self.add_block::<2>(of, &ahead, sums),
                    3 => self.add_block::<3>(of, &ahead, sums),
                    4 => self.add_block::<4>(of, &ahead, sums),
                    5 => self.add_block::<5>(of, &ahead, sums),
                    6 => self.add_block::<6>(of, &ahead, sums),
                    7 => self.add_block::<7>(of, &ahead, sums),
                    _ => self.add_block::<MOST_VECTORS>(of, &ahead, sums),
                }
            }
        }
    }

    /// Adds the rows of a block of one head, `C` vectors each, of which the last one may overlap the one before.
    #[inline(always)]
    fn add_block<const C: usize>(
        &self,
        (head, rows, weights): (usize, Range<usize>, &[f32]),
        ahead: &Ahead,
        sums: &mut [f32],
    ) {
        let (lanes, from) = (self.lanes, self.from);
        assert!(head < from.heads && rows.end <= from.rows);
        assert!((C - 1) * L::LANES < from.len && L::LANES <= from.len && from.len <= C * L::LANES);
        let column = |c: usize| match c + 1 < C {
            true => c * L::LANES,
            false => from.len - L::LANES,
        };
        let lines = (from.len * E::BYTES).div_ceil(LINE);
        let mut added = [lanes.splat(0.0); C];
        for row in rows {
            let first = from.entry(head, row);
            ahead.prefetch::<L, E>(lanes, first, first, lines);
            let weight = lanes.splat(weights[row]);
            for c in 0..C {
                // SAFETY: a vector of the columns of a row, all of which can be read.
                let entry = unsafe { self.entries.read(lanes, first + column(c)) };
                added[c] = lanes.mul_add(weight, entry, added[c]);
            }
        }
        let scale = lanes.splat(from.scale(head));
        for c in 0..C {
            let sums = &mut sums[column(c)..];
            let before = lanes.load(sums);
            let mut sum = lanes.mul_add(scale, added[c], before);
            if c + 1 == C {
                sum = lanes.join(C * L::LANES - from.len, before, sum);
            }
            lanes.store(sum, sums);
        }
    }
}
