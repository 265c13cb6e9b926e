//! Short rows, times their weights, added to sums for one start row that stay in registers while all rows of a block pass by:
//! a few heads side by side, where that makes long streams, else all as one.
//!
//! Times the fastest read of the same bytes, one row, one thread of a 2-core EPYC of family 25 (Zen 3), the tenth percentile of
//! 160 runs, the middle of four processes, layers x batch x heads x tokens:
//!
//! | f32; f32; f32, f16 | 6x4x12x28 | 6x64x12x28 | 6x64x12x48 |
//! |---|---|---|---|
//! | all heads as one stream | 1.75 | 1.77 | 1.25, 1.78 |
//! | four side by side | 1.36 | 1.48 | 1.27, 1.39 |
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

/// Heads that are read side by side ...
const SIDE_BY_SIDE: usize = 4;

/// ... where each stream of them has at least so many bytes: a single one is slower than memory, short ones slower still.
const LEAST_STREAM_BYTES: usize = 4 << 10;

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
        let apart = from.heads / SIDE_BY_SIDE;
        // Of the whole map, so that it does not depend on who adds which of its rows.
        let stream_bytes = apart * from.len * from.row_stride * E::BYTES;
        let groups = if stream_bytes < LEAST_STREAM_BYTES {
            0
        } else {
            apart
        };
        let alone = groups * SIDE_BY_SIDE;
        for group in 0..groups {
            let mut heads = [group; SIDE_BY_SIDE];
            for h in 0..SIDE_BY_SIDE {
                heads[h] += h * groups;
            }
            let then = if group + 1 < groups { group + 1 } else { alone };
            let ahead = self.ahead_of(SIDE_BY_SIDE, group, then);
            self.add_heads::<C, SIDE_BY_SIDE>(heads, &ahead, to);
        }
        // The others are one stream, where they adjoin.
        let adjoin = from.head_stride == from.rows * from.row_stride;
        let rows = (from.heads - alone) * from.rows;
        let of_all = self.ahead(E::OPERANDS, rows, from.entry(from.heads, 0), None);
        for head in alone..from.heads {
            let of_head = || self.ahead_of(1, head, head + 1);
            let ahead = if adjoin { &of_all } else { &of_head() };
            self.add_heads::<C, 1>([head], ahead, to);
        }
    }

    /// What is prefetched while so many heads are read, `first` the first of them, and `then`, where there is one, after them.
    #[inline(always)]
    fn ahead_of(&self, heads: usize, first: usize, then: usize) -> Ahead {
        let from = self.from;
        let then = (then < from.heads).then(|| from.entry(then, 0));
        let end = from.entry(first, from.rows);
        self.ahead(heads * E::OPERANDS, from.rows, end, then)
    }

    /// Adds the rows of `H` heads side by side.
    #[inline(always)]
    fn add_heads<const C: usize, const H: usize>(
        &self,
        heads: [usize; H],
        ahead: &Ahead,
        to: &mut Accumulate<'_>,
    ) {
        for (block, rows) in to.blocks(self.from.rows) {
            let sums = &mut to.part[block * to.part_stride..][..self.from.len];
            self.add_block::<C, H>((heads, rows, to.weights), ahead, sums);
        }
    }

    /// Adds the rows of a block of some heads, `C` vectors each, of which the last one may overlap the one before.
    #[inline(always)]
    fn add_block<const C: usize, const H: usize>(
        &self,
        (heads, rows, weights): ([usize; H], Range<usize>, &[f32]),
        ahead: &Ahead,
        sums: &mut [f32],
    ) {
        let (lanes, from) = (self.lanes, self.from);
        assert!(heads[H - 1] < from.heads && rows.end <= from.rows);
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
        let (mut scales, mut firsts) = ([0.0; H], [0; H]);
        for h in 0..H {
            scales[h] = from.scale(heads[h]);
            firsts[h] = from.entry(heads[h], rows.start);
        }
        for &weight in &weights[rows] {
            for h in 0..H {
                ahead.prefetch::<E>(firsts[0], firsts[h], lines);
            }
            for h in 0..H {
                let weight = lanes.splat(scales[h] * weight);
                for c in 0..C {
                    // SAFETY: a vector of the columns of a row, all of which can be read.
                    let entry = unsafe { self.entries.read(lanes, firsts[h] + column(c)) };
                    added[c] = lanes.mul_add(weight, entry, added[c]);
                }
            }
            for h in 0..H {
                firsts[h] += from.row_stride;
            }
        }
        // What the last vector shares with the one before is the same in both.
        for c in 0..C {
            lanes.store(added[c], &mut sums[column(c)..]);
        }
    }
}
