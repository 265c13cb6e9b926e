//! Rows of maps, times their weights, added to sums, of every head by itself.
#![allow(
    clippy::needless_range_loop,
    reason = "what iterators are made of is not always inlined, and outside an inner loop it lacks its instruction set"
)]

use std::ops::Range;

use crate::config::HeadFusion;
use crate::cpu::fuse::entries::HeadEntries;
use crate::cpu::fuse::{EntriesLoop, LINE, MapRows};
use crate::cpu::simd::{Lanes, Scalar};

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
}

/// Adds rows, whose fused entries are sums of those of the heads, to sums.
pub(super) struct AccumulateRows<'a, 'b> {
    pub from: MapRows<'a>,
    pub to: Accumulate<'b>,
}

impl EntriesLoop for AccumulateRows<'_, '_> {
    #[inline(always)]
    fn run<L: Lanes, E: HeadEntries>(self, lanes: L, entries: E) {
        let AccumulateRows { from, to } = self;
        if from.rows == 0 {
            return;
        }
        from.check(entries);
        let mut streams = Streams {
            lanes,
            entries,
            from,
            to,
        };
        let mut head = 0;
        while head < from.heads {
            let (heads, rows) = side_by_side(E::OPERANDS, from.heads - head);
            match (heads, rows) {
                (1, 4) if streams.to.start_rows > 1 => streams.group::<1, 4, true>(head),
                (1, 4) => streams.group::<1, 4, false>(head),
                (1, _) => streams.group::<1, 2, false>(head),
                (2, _) => streams.group::<2, 1, false>(head),
                (3, _) => streams.group::<3, 1, false>(head),
                (4, _) => streams.group::<4, 1, false>(head),
                _ => streams.group::<5, 1, false>(head),
            }
            head += heads;
        }
    }
}

/// Heads, and rows far apart of each, that are read side by side where so many heads are left: two to five arrays.
fn side_by_side(operands: usize, heads: usize) -> (usize, usize) {
    match (operands, heads) {
        (1, 1) => (1, 4),
        (1, 2) => (2, 1),
        (1, 3 | 6 | 9) => (3, 1),
        (1, 5) => (5, 1),
        (1, _) => (4, 1),
        (_, 1) => (1, 2),
        (_, 3) => (3, 1),
        _ => (2, 1),
    }
}

/// Asks for the beginning of what is read first to be prefetched, as far as a pass over it would ask.
pub(super) struct Prefetch<'a>(pub MapRows<'a>);

impl EntriesLoop for Prefetch<'_> {
    #[inline(always)]
    fn run<L: Lanes, E: HeadEntries>(self, lanes: L, entries: E) {
        let from = self.0;
        let (heads, rows) = side_by_side(E::OPERANDS, from.heads);
        let apart = from.rows_apart(from.rows, rows) * from.row_stride;
        let bytes = from.rows * from.row_stride * E::BYTES;
        let bytes = bytes.min(from.ahead_bytes::<E>(heads, rows));
        for head in 0..heads {
            for row in 0..rows {
                for ahead in (0..bytes).step_by(LINE) {
                    entries.prefetch(lanes, head * from.head_stride + row * apart, ahead);
                }
            }
        }
    }
}

impl MapRows<'_> {
    /// Where the first entry of a row of a head lies.
    #[inline(always)]
    fn entry(&self, head: usize, row: usize) -> usize {
        head * self.head_stride + row * self.row_stride
    }

    /// How far ahead of its loads each stream is prefetched, in bytes, where so many rows of so many heads are read side by
    /// side: together as much as hides the latency of memory, and small beside a first-level cache. Smaller elements take
    /// more instructions a byte, so the processor sees fewer loads ahead by itself. What lies behind short streams is not
    /// what is read next.
    #[inline(always)]
    fn ahead_bytes<E: HeadEntries>(&self, heads: usize, rows: usize) -> usize {
        let all = match E::BYTES {
            4.. => 8 << 10,
            _ => 12 << 10,
        };
        let stream_bytes = self.rows / rows * self.row_stride * E::BYTES;
        let ahead = all / (heads * rows * E::OPERANDS);
        ahead.min(stream_bytes / 8).max(1 << 10)
    }

    /// What the entries of a head are multiplied by.
    #[inline(always)]
    fn scale(&self, head: usize) -> f32 {
        match self.fusion {
            HeadFusion::Weighted(weights) => weights[head],
            _ => 1.0 / self.heads as f32,
        }
    }

    /// Rows from each of `side_by_side` of `rows` rows to the next: 0 where they are none, since rows of equal length lie
    /// side by side.
    fn rows_apart(&self, rows: usize, side_by_side: usize) -> usize {
        match self.causal_from {
            Some(_) => 0,
            None => rows / side_by_side,
        }
    }
}

/// Rows at several places side by side.
struct Streams<'a, 'b, L, E> {
    lanes: L,
    /// All rows of all heads can be read.
    entries: E,
    from: MapRows<'a>,
    to: Accumulate<'b>,
}

impl<L: Lanes, E: HeadEntries> Streams<'_, '_, L, E> {
    /// Adds the rows of `H` heads from `head` on, from the first block to the last, so that each is read in one go: `R` rows
    /// far apart of each block side by side, then those that are left.
    #[inline(always)]
    fn group<const H: usize, const R: usize, const KEEP: bool>(&mut self, head: usize) {
        let (rows, block_rows) = (self.from.rows, self.to.block_rows);
        for (block, first) in (0..rows).step_by(block_rows).enumerate() {
            let end = rows.min(first.saturating_add(block_rows));
            let part = block * self.to.start_rows * self.to.part_stride;
            let apart = match R {
                1 => 0,
                _ => self.from.rows_apart(end - first, R),
            };
            let side_by_side = first..first + apart;
            let left = first + R * apart..end;
            self.rows::<H, R, KEEP>(head, part, side_by_side, apart);
            self.rows::<H, 1, KEEP>(head, part, left, 0);
        }
    }

    /// The rows `rows` and, `apart` rows on, `R - 1` times as many, added to the sums from `part` on.
    #[inline(always)]
    fn rows<const H: usize, const R: usize, const KEEP: bool>(
        &mut self,
        head: usize,
        part: usize,
        rows: Range<usize>,
        apart: usize,
    ) {
        let lanes = self.lanes;
        let mut group = Group {
            head,
            scales: [0.0; H],
            part,
            row: 0,
            apart,
            ahead: self.from.ahead_bytes::<E>(H, R),
        };
        for h in 0..H {
            group.scales[h] = self.from.scale(head + h);
        }
        // A cache line of each stream at a time.
        let vector_bytes = L::LANES * E::BYTES;
        for row in rows {
            group.row = row;
            let len = self.from.present(row);
            let mut column = 0;
            while !KEEP && 4 * vector_bytes <= LINE && column + 4 * L::LANES <= len {
                self.step::<L, H, R, 4, KEEP>(lanes, &group, column, 0);
                column += 4 * L::LANES;
            }
            while (KEEP || 2 * vector_bytes <= LINE) && column + 2 * L::LANES <= len {
                self.step::<L, H, R, 2, KEEP>(lanes, &group, column, 0);
                column += 2 * L::LANES;
            }
            while column + L::LANES <= len {
                self.step::<L, H, R, 1, KEEP>(lanes, &group, column, 0);
                column += L::LANES;
            }
            if column < len && len >= L::LANES {
                // The last vector overlaps the one before.
                let last = len - L::LANES;
                self.step::<L, H, R, 1, KEEP>(lanes, &group, last, column - last);
                continue;
            }
            for column in column..len {
                self.step::<Scalar, H, R, 1, KEEP>(Scalar, &group, column, 0);
            }
        }
    }

    /// `V` vectors of `R` rows of `H` heads. The first `done` columns were added before. To `KEEP` them in registers,
    /// times their scales, saves reading them for each start row, and takes registers.
    #[inline(always)]
    fn step<W: Lanes, const H: usize, const R: usize, const V: usize, const KEEP: bool>(
        &mut self,
        lanes: W,
        group: &Group<H>,
        column: usize,
        done: usize,
    ) {
        let mut kept = [[[lanes.splat(0.0); V]; R]; H];
        for h in 0..H {
            for r in 0..R {
                let first = self.from.entry(group.head + h, group.row + r * group.apart) + column;
                for line in 0..(V * W::LANES * E::BYTES).div_ceil(LINE) {
                    self.entries
                        .prefetch(lanes, first, group.ahead + line * LINE);
                }
                if KEEP {
                    let scale = lanes.splat(group.scales[h]);
                    for v in 0..V {
                        // SAFETY: a vector of the columns of a row of a head, all of which can be read.
                        let entry = unsafe { self.entries.read(lanes, first + v * W::LANES) };
                        kept[h][r][v] = lanes.mul(scale, entry);
                    }
                }
            }
        }
        for m in 0..self.to.start_rows {
            let weights = &self.to.weights[m * self.to.weights_stride..];
            // What is read side by side first, then to the rest: none waits for the sums of another row.
            let mut sums = [lanes.splat(0.0); V];
            for h in 0..H {
                for r in 0..R {
                    let row = group.row + r * group.apart;
                    let first = self.from.entry(group.head + h, row) + column;
                    let weight = lanes.splat(match KEEP {
                        true => weights[row],
                        false => group.scales[h] * weights[row],
                    });
                    for v in 0..V {
                        let entry = match KEEP {
                            true => kept[h][r][v],
                            // SAFETY: as above.
                            false => unsafe { self.entries.read(lanes, first + v * W::LANES) },
                        };
                        sums[v] = lanes.mul_add(weight, entry, sums[v]);
                    }
                }
            }
            let first = group.part + m * self.to.part_stride + column;
            let part = &mut self.to.part[first..][..V * W::LANES];
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
    }
}

/// What is read side by side.
struct Group<const H: usize> {
    /// The first head.
    head: usize,
    /// What the entries of each head are multiplied by.
    scales: [f32; H],
    /// Where the sums begin.
    part: usize,
    /// The first row.
    row: usize,
    /// Rows from each to the next.
    apart: usize,
    /// How far ahead each is prefetched, in bytes.
    ahead: usize,
}
