//! Rows of maps, fused: a few heads at a time are folded into what the heads before them have left.
#![allow(
    clippy::needless_range_loop,
    reason = "what iterators are made of is not always inlined, and outside an inner loop it lacks its instruction set"
)]

use crate::config::HeadFusion;
use crate::cpu::fuse::entries::HeadEntries;
use crate::cpu::fuse::fold::{Extreme, Fold, Mean, Weighted};
use crate::cpu::fuse::streams::{Part, SideBySide, Sink, Streams, heads_side_by_side};
use crate::cpu::fuse::{EntriesLoop, MapRows};
use crate::cpu::simd::Lanes;

/// Fuses rows, times `weight`, into `fused`, `[rows, len]`.
pub(super) struct FuseRows<'a, 'b> {
    pub from: MapRows<'a>,
    pub weight: f32,
    pub fused: &'b mut [f32],
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
            weight,
            fused,
        } = self;
        if from.rows == 0 || from.len == 0 {
            return;
        }
        for (row, fused) in fused.chunks_exact_mut(from.len).enumerate() {
            fused[from.present(row)..].fill(0.0);
        }
        let streams = Streams::new(lanes, entries, from);
        let mut folded = Folded {
            fold,
            from,
            weight,
            fused,
            head: 0,
            row: 0,
        };
        while folded.head < from.heads {
            let heads = heads_side_by_side(E::OPERANDS, from.heads - folded.head);
            match heads {
                1 => folded.group::<_, _, 1>(&streams),
                2 => folded.group::<_, _, 2>(&streams),
                3 => folded.group::<_, _, 3>(&streams),
                4 => folded.group::<_, _, 4>(&streams),
                _ => folded.group::<_, _, 5>(&streams),
            }
            folded.head += heads;
        }
    }
}

/// Fused rows, of the heads so far.
struct Folded<'a, 'b, F> {
    fold: F,
    from: MapRows<'a>,
    weight: f32,
    fused: &'b mut [f32],
    /// The head that comes next.
    head: usize,
    /// The row that is folded.
    row: usize,
}

impl<F: Fold> Folded<'_, '_, F> {
    /// Folds the rows of the next `H` heads into those before.
    #[inline(always)]
    fn group<L: Lanes, E: HeadEntries, const H: usize>(&mut self, streams: &Streams<'_, L, E>) {
        let (next, rows) = (self.head + H, self.from.rows);
        let part = Part {
            head: self.head,
            rows: 0..rows,
            apart: 0,
            stream: 0..rows,
            then: (next < self.from.heads).then_some((next, 0)),
        };
        streams.read::<_, H, 1>(&part, self);
    }
}

impl<F: Fold, const H: usize> Sink<H, 1> for Folded<'_, '_, F> {
    #[inline(always)]
    fn begin(&mut self, row: usize) {
        self.row = row;
    }

    #[inline(always)]
    fn take<W: Lanes, E: HeadEntries, const V: usize>(
        &mut self,
        lanes: W,
        entries: &SideBySide<E, H, 1>,
        column: usize,
        done: usize,
    ) {
        let fused = &mut self.fused[self.row * self.from.len + column..][..V * W::LANES];
        let is_last = self.head + H == self.from.heads;
        for v in 0..V {
            let fused = &mut fused[v * W::LANES..];
            let before = lanes.load(fused);
            let mut kept = before;
            for h in 0..H {
                // SAFETY: a vector of the columns of a row.
                let value = unsafe { entries.read(lanes, h, 0, column + v * W::LANES) };
                kept = match self.head + h {
                    0 => self.fold.first(lanes, value),
                    head => self.fold.next(lanes, kept, value, head),
                };
            }
            if is_last {
                let folded = entries.folded(lanes, self.fold.last(lanes, kept));
                kept = lanes.mul(folded, lanes.splat(self.weight));
            }
            if done > 0 {
                kept = lanes.join(done, before, kept);
            }
            lanes.store(kept, fused);
        }
    }
}
