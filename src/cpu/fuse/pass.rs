//! Rows of maps, fused: a few heads at a time are folded into what the heads before them have left. What the last ones leave
//! are the fused rows, or is added to sums as it comes.
#![allow(
    clippy::needless_range_loop,
    reason = "what iterators are made of is not always inlined, and outside an inner loop it lacks its instruction set"
)]

use crate::config::HeadFusion;
use crate::cpu::fuse::entries::HeadEntries;
use crate::cpu::fuse::fold::{Extreme, Fold, Mean, Weighted};
use crate::cpu::fuse::streams::{Heads, Part, SideBySide, Sink, Streams};
use crate::cpu::fuse::sums::add;
use crate::cpu::fuse::{EntriesLoop, MapRows};
use crate::cpu::simd::Lanes;

/// Fuses rows in `fused`, `[rows, len]`.
pub(super) struct FuseRows<'a, 'b> {
    pub from: MapRows<'a>,
    pub fused: &'b mut [f32],
    pub to: FusedTo<'b>,
}

/// Where fused rows go.
pub(super) enum FusedTo<'a> {
    /// They stay where they are fused, times this.
    Stay(f32),
    /// They are added to sums for one start row.
    Sums(SumsOfBlocks<'a>),
}

/// Sums of rows, for one block of these after the other.
pub(super) struct SumsOfBlocks<'a> {
    /// What each row is multiplied by.
    pub weights: &'a [f32],
    /// Rows of a block, so many of the first one's before these.
    pub block_rows: usize,
    pub before: usize,
    pub part: &'a mut [f32],
    /// Elements from the sums of one block to those of the next.
    pub part_stride: usize,
}

impl EntriesLoop for FuseRows<'_, '_> {
    #[inline(always)]
    fn run<L: Lanes, E: HeadEntries>(self, lanes: L, entries: E) {
        match self.from.fusion {
            HeadFusion::Weighted(weights) => self.rows(lanes, entries, Weighted { weights }),
            // Of one head, the mean, the largest and the smallest entry are the entry.
            HeadFusion::Mean if self.from.heads > 1 => {
                let scale = 1.0 / self.from.heads as f32;
                self.rows(lanes, entries, Mean { scale });
            }
            HeadFusion::Mean | HeadFusion::Max => {
                self.rows(lanes, entries, Extreme::<true>);
            }
            HeadFusion::Min => self.rows(lanes, entries, Extreme::<false>),
        }
    }
}

impl FuseRows<'_, '_> {
    #[inline(always)]
    fn rows<L: Lanes, E: HeadEntries, F: Fold>(self, lanes: L, entries: E, fold: F) {
        let FuseRows {
            from,
            fused,
            mut to,
        } = self;
        if from.rows == 0 || from.len == 0 {
            return;
        }
        if let FusedTo::Stay(_) = to {
            for (row, fused) in fused.chunks_exact_mut(from.len).enumerate() {
                fused[from.present(row)..].fill(0.0);
            }
        }
        // To the bit, what stays depends on the order.
        let in_order = matches!(to, FusedTo::Stay(_));
        for heads in Heads::groups(E::OPERANDS, from.heads, in_order) {
            // Rows that are added have weights of their own, those that are folded only have none.
            let rows = match to {
                FusedTo::Sums(_) if heads.then.is_none() => from,
                _ => from.as_one(),
            };
            let streams = Streams::new(lanes, entries, rows);
            let mut folded = Folded {
                fold,
                heads,
                len: rows.len,
                fused: &mut *fused,
                to: &mut to,
                first: 0,
                weight: 0.0,
                sums: 0,
            };
            match heads.count {
                1 => folded.group::<_, _, 1>(&streams, rows.rows),
                2 => folded.group::<_, _, 2>(&streams, rows.rows),
                3 => folded.group::<_, _, 3>(&streams, rows.rows),
                4 => folded.group::<_, _, 4>(&streams, rows.rows),
                _ => folded.group::<_, _, 5>(&streams, rows.rows),
            }
        }
    }
}

/// Fused rows, of the heads so far.
struct Folded<'a, 'b, F> {
    fold: F,
    /// The heads that are read, and entries of a row.
    heads: Heads,
    len: usize,
    fused: &'a mut [f32],
    to: &'a mut FusedTo<'b>,
    /// Where the row that is folded begins, ...
    first: usize,
    /// ... what it is multiplied by, and where its sums begin.
    weight: f32,
    sums: usize,
}

impl<F: Fold> Folded<'_, '_, F> {
    /// Folds the rows of the next `H` heads into those before.
    #[inline(always)]
    fn group<L: Lanes, E: HeadEntries, const H: usize>(
        &mut self,
        streams: &Streams<'_, L, E>,
        rows: usize,
    ) {
        let part = Part {
            heads: self.heads,
            rows: 0..rows,
            apart: 0,
            stream: 0..rows,
            then: None,
        };
        streams.read::<_, H, 1>(&part, self);
    }
}

impl<F: Fold, const H: usize> Sink<H, 1> for Folded<'_, '_, F> {
    #[inline(always)]
    fn begin(&mut self, row: usize) {
        self.first = row * self.len;
        match &*self.to {
            FusedTo::Stay(weight) => self.weight = *weight,
            FusedTo::Sums(to) => {
                self.weight = to.weights[row];
                self.sums = (to.before + row) / to.block_rows * to.part_stride;
            }
        }
    }

    #[inline(always)]
    fn take<W: Lanes, E: HeadEntries, const V: usize>(
        &mut self,
        lanes: W,
        entries: &SideBySide<E, H, 1>,
        column: usize,
        done: usize,
    ) {
        let fused = &mut self.fused[self.first + column..][..V * W::LANES];
        let is_last = self.heads.then.is_none();
        let weight = lanes.splat(self.weight);
        let mut made = [lanes.splat(0.0); V];
        for v in 0..V {
            let fused = &mut fused[v * W::LANES..];
            let mut kept = match self.heads.first {
                0 => lanes.splat(0.0),
                _ => lanes.load(fused),
            };
            for h in 0..H {
                // SAFETY: a vector of the columns of a row.
                let value = unsafe { entries.read(lanes, h, 0, column + v * W::LANES) };
                kept = match self.heads.at(h) {
                    0 => self.fold.first(lanes, value),
                    head => self.fold.next(lanes, kept, value, head),
                };
            }
            if is_last {
                let folded = entries.folded(lanes, self.fold.last(lanes, kept));
                kept = lanes.mul(folded, weight);
            }
            made[v] = kept;
        }
        if let FusedTo::Sums(to) = &mut *self.to
            && is_last
        {
            add(lanes, &made, &mut to.part[self.sums + column..], done);
            return;
        }
        for v in 0..V {
            let fused = &mut fused[v * W::LANES..];
            let mut kept = made[v];
            if done > 0 {
                kept = lanes.join(done, lanes.load(fused), kept);
            }
            lanes.store(kept, fused);
        }
    }
}
