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
        match vectors {
            1 => self.add_rows::<1>(to),
            2 => self.add_rows::<2>(to),
            3 => self.add_rows::<3>(to),
            4 => self.add_rows::<4>(to),
            5 => self.add_rows::<5>(to),
            6 => self.add_rows::<6>(to),
            7 => self.add_rows::<7>(to),
            _ => self.add_rows::<MOST_VECTORS>(to),
        }
    }

    /// Adds rows of `C` vectors.
    #[inline(always)]
    fn add_rows<const C: usize>(&self, to: &mut Accumulate<'_>) {
        let from = self.from;
        let rows = from.heads * from.rows;
        let adjoin = from.head_stride == from.rows * from.row_stride;
        let of_all = self.ahead(E::OPERANDS, rows, from.entry(from.heads, 0), None);
        for head in 0..from.heads {
            let of_head = || {
                let then = (head + 1 < from.heads).then(|| from.entry(head + 1, 0));
                self.ahead(E::OPERANDS, from.rows, from.entry(head, from.rows), then)
            };
            let ahead = if adjoin { &of_all } else { &of_head() };
            for (block, rows) in to.blocks(from.rows) {
                let sums = &mut to.part[block * to.part_stride..][..from.len];
                self.add_block::<C>((head, rows, to.weights), ahead, sums);
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
        let lines = (C * L::LANES * E::BYTES).div_ceil(LINE);
        let mut added = [lanes.splat(0.0); C];
        for c in 0..C {
            added[c] = lanes.load(&sums[column(c)..]);
        }
        let scale = from.scale(head);
        let mut first = from.entry(head, rows.start);
        for &weight in &weights[rows] {
            ahead.prefetch::<L, E>(lanes, first, first, lines);
            let weight = lanes.splat(scale * weight);
            for c in 0..C {
                // SAFETY: a vector of the columns of a row, all of which can be read.
                let entry = unsafe { self.entries.read(lanes, first + column(c)) };
                added[c] = lanes.mul_add(weight, entry, added[c]);
            }
            first += from.row_stride;
        }
        // What the last vector shares with the one before is the same in both.
        for c in 0..C {
            lanes.store(added[c], &mut sums[column(c)..]);
        }
    }
}
