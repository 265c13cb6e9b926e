//! Rows of maps, times their weights, added to sums, of every head by itself.
#![allow(
    clippy::needless_range_loop,
    reason = "what iterators are made of is not always inlined, and outside an inner loop it lacks its instruction set"
)]

use std::ops::Range;

use crate::cpu::fuse::entries::HeadEntries;
use crate::cpu::fuse::short;
use crate::cpu::fuse::small::AddSmall;
use crate::cpu::fuse::streams::{Heads, Part, SideBySide, Sink, Streams};
use crate::cpu::fuse::sums::{Accumulate, add};
use crate::cpu::fuse::{EntriesLoop, MapRows};
use crate::cpu::simd::Lanes;

/// Adds rows, whose fused entries are sums of those of the heads, to sums.
pub(super) struct AccumulateRows<'a, 'b, 'c> {
    pub from: &'b MapRows<'a>,
    pub to: &'b mut Accumulate<'c>,
}

impl EntriesLoop for AccumulateRows<'_, '_, '_> {
    #[inline(always)]
    fn run<L: Lanes, E: HeadEntries>(self, lanes: L, entries: E) {
        let AccumulateRows { from, to } = self;
        let from = *from;
        if from.rows == 0 {
            return;
        }
        let streams = Streams::new(lanes, entries, from);
        if let Some(vectors) = short::vectors::<L>(&from).filter(|_| to.start_rows == 1) {
            return streams.add_short(vectors, to);
        }
        if E::OPERANDS == 1 && to.start_rows == 1 && from.are_small() {
            return AddSmall::new(&from, to).run(lanes, entries);
        }
        let mut pass = Pass { streams, from, to };
        for heads in Heads::groups(E::OPERANDS, from.heads, false) {
            // Of one head, rows far apart are streams as well.
            match heads.count {
                1 if pass.to.start_rows > 1 => pass.many_start_rows(heads),
                1 => pass.one_start_row::<1, 2>(heads),
                2 => pass.one_start_row::<2, 1>(heads),
                3 => pass.one_start_row::<3, 1>(heads),
                4 => pass.one_start_row::<4, 1>(heads),
                _ => pass.one_start_row::<5, 1>(heads),
            }
        }
    }
}

/// Rows on their way to sums.
struct Pass<'a, 'b, 'c, L, E> {
    streams: Streams<'a, L, E>,
    from: MapRows<'a>,
    to: &'b mut Accumulate<'c>,
}

impl<L: Lanes, E: HeadEntries> Pass<'_, '_, '_, L, E> {
    /// Adds the rows of `H` heads, one block after the other, so that each head is read in one go.
    #[inline(always)]
    fn one_start_row<const H: usize, const R: usize>(&mut self, heads: Heads) {
        let (from, to) = (self.from, &mut *self.to);
        let mut scales = [0.0; H];
        for h in 0..H {
            scales[h] = from.scale(heads.at(h));
        }
        for (block, rows) in to.blocks(from.rows) {
            let apart = from.rows_apart(rows.len(), R);
            let mut sums = OneStartRow {
                scales,
                weights: to.weights,
                row: 0,
                apart,
                part: &mut to.part[block * to.part_stride..],
            };
            read_block::<_, _, _, H, R>(&self.streams, from, heads, rows, apart, &mut sums);
        }
    }

    /// Adds the rows of one head, four far apart at a time.
    #[inline(always)]
    fn many_start_rows(&mut self, head: Heads) {
        let (from, to) = (self.from, &mut *self.to);
        for (block, rows) in to.blocks(from.rows) {
            let apart = from.rows_apart(rows.len(), 4);
            let mut sums = ManyStartRows {
                scale: from.scale(head.first),
                start_rows: to.start_rows,
                weights: to.weights,
                weights_stride: to.weights_stride,
                row: 0,
                apart,
                part: &mut to.part[block * to.start_rows * to.part_stride..],
                part_stride: to.part_stride,
            };
            read_block::<_, _, _, 1, 4>(&self.streams, from, head, rows, apart, &mut sums);
        }
    }
}

/// The rows `rows` of `H` heads: `R` rows of each that are `apart` side by side, then those that are left.
#[inline(always)]
fn read_block<L, E, S, const H: usize, const R: usize>(
    streams: &Streams<'_, L, E>,
    from: MapRows<'_>,
    heads: Heads,
    rows: Range<usize>,
    apart: usize,
    sums: &mut S,
) where
    L: Lanes,
    E: HeadEntries,
    S: Sink<H, R> + Sink<H, 1>,
{
    let mut left = rows.start;
    if R > 1 {
        left += R * apart;
        let side_by_side = Part {
            heads,
            rows: rows.start..rows.start + apart,
            apart,
            stream: rows.start..rows.start + apart,
            then: (rows.end < from.rows).then_some(rows.end),
        };
        streams.read::<_, H, R>(&side_by_side, sums);
    }
    let left = Part {
        heads,
        rows: left..rows.end,
        apart: 0,
        stream: 0..from.rows,
        then: None,
    };
    streams.read::<_, H, 1>(&left, sums);
}

impl MapRows<'_> {
    /// Rows from each of `side_by_side` of `rows` rows to the next: 0 where they are none, since rows of equal length lie
    /// side by side.
    #[inline(always)]
    fn rows_apart(&self, rows: usize, side_by_side: usize) -> usize {
        match self.causal_from {
            Some(_) => 0,
            None => rows / side_by_side,
        }
    }
}

/// Sums of the rows of a block for one start row.
struct OneStartRow<'a, const H: usize> {
    /// What the entries of each head are multiplied by ...
    scales: [f32; H],
    /// ... and those of each row.
    weights: &'a [f32],
    /// The row that is read.
    row: usize,
    apart: usize,
    part: &'a mut [f32],
}

impl<const G: usize, const R: usize> Sink<G, R> for OneStartRow<'_, G> {
    #[inline(always)]
    fn begin(&mut self, row: usize) {
        self.row = row;
    }

    #[inline(always)]
    fn take<W: Lanes, E: HeadEntries, const V: usize>(
        &mut self,
        lanes: W,
        entries: &SideBySide<E, G, R>,
        column: usize,
        done: usize,
    ) {
        // What is read side by side first, then to the rest: none waits for the sums of another row.
        let mut sums = [lanes.splat(0.0); V];
        for h in 0..G {
            for r in 0..R {
                let weight = self.weights[self.row + r * self.apart];
                let weight = lanes.splat(self.scales[h] * weight);
                for v in 0..V {
                    // SAFETY: a vector of the columns of a row.
                    let entry = unsafe { entries.read(lanes, h, r, column + v * W::LANES) };
                    sums[v] = lanes.mul_add(weight, entry, sums[v]);
                }
            }
        }
        add(lanes, &sums, &mut self.part[column..], done);
    }
}

/// Sums of the rows of a block of one head for several start rows: kept in registers, times its scale, entries need not be
/// read for each of these.
struct ManyStartRows<'a> {
    scale: f32,
    start_rows: usize,
    weights: &'a [f32],
    weights_stride: usize,
    /// The row that is read.
    row: usize,
    apart: usize,
    part: &'a mut [f32],
    part_stride: usize,
}

impl<const R: usize> Sink<1, R> for ManyStartRows<'_> {
    const VECTORS: usize = 2;
    const WIDE_VECTORS: usize = 2;

    #[inline(always)]
    fn begin(&mut self, row: usize) {
        self.row = row;
    }

    #[inline(always)]
    fn take<W: Lanes, E: HeadEntries, const V: usize>(
        &mut self,
        lanes: W,
        entries: &SideBySide<E, 1, R>,
        column: usize,
        done: usize,
    ) {
        let scale = lanes.splat(self.scale);
        let mut kept = [[lanes.splat(0.0); V]; R];
        for r in 0..R {
            for v in 0..V {
                // SAFETY: a vector of the columns of a row.
                let entry = unsafe { entries.read(lanes, 0, r, column + v * W::LANES) };
                kept[r][v] = lanes.mul(scale, entry);
            }
        }
        for m in 0..self.start_rows {
            let weights = &self.weights[m * self.weights_stride..];
            let mut sums = [lanes.splat(0.0); V];
            for r in 0..R {
                let weight = lanes.splat(weights[self.row + r * self.apart]);
                for v in 0..V {
                    sums[v] = lanes.mul_add(weight, kept[r][v], sums[v]);
                }
            }
            let part = &mut self.part[m * self.part_stride + column..];
            add(lanes, &sums, part, done);
        }
    }
}
