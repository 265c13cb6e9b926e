//! One pass over the entries of some rows: from all heads, ahead of which it prefetches, into fused rows.

use super::{EntriesLoop, MapRows};
use crate::config::HeadFusion;
use crate::cpu::fuse::LINE;
use crate::cpu::fuse::entries::HeadEntries;
use crate::cpu::fuse::fold::{Extreme, Fold, Mean, Weighted};
use crate::cpu::simd::{Lanes, Scalar};

/// How far ahead of the loads what they read is prefetched, in bytes, all heads together: a few times what is on its way
/// from memory at any moment, and small beside a first-level cache.
const PREFETCH_BYTES: usize = 12 << 10;

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
        let from = self.from;
        if from.rows == 0 || from.len == 0 {
            return;
        }
        from.check(entries);
        let pass = Fuse {
            lanes,
            entries,
            fold,
            from,
            prefetch: PREFETCH_BYTES / (from.heads * E::OPERANDS),
            weight: self.weight,
        };
        for (row, fused) in (0..from.rows).zip(self.fused.chunks_exact_mut(from.len)) {
            let (fused, absent) = fused.split_at_mut(from.present(row));
            absent.fill(0.0);
            pass.columns(row * from.row_stride, fused);
        }
    }
}

/// A pass with everything known at compile time that can be.
struct Fuse<'a, L, E, F> {
    lanes: L,
    /// All rows of all heads can be read.
    entries: E,
    fold: F,
    from: MapRows<'a>,
    /// How far ahead each head is prefetched, in bytes.
    prefetch: usize,
    weight: f32,
}

impl<L: Lanes, E: HeadEntries, F: Fold> Fuse<'_, L, E, F> {
    /// The columns of the row that begins at `first` in the first head.
    #[inline(always)]
    fn columns(&self, first: usize, fused: &mut [f32]) {
        let (lanes, len) = (self.lanes, fused.len());
        let mut column = 0;
        while column + 8 * L::LANES <= len {
            self.step::<L, 8>(lanes, first, column, fused);
            column += 8 * L::LANES;
        }
        if column + 4 * L::LANES <= len {
            self.step::<L, 4>(lanes, first, column, fused);
            column += 4 * L::LANES;
        }
        if column + 2 * L::LANES <= len {
            self.step::<L, 2>(lanes, first, column, fused);
            column += 2 * L::LANES;
        }
        if column + L::LANES <= len {
            self.step::<L, 1>(lanes, first, column, fused);
            column += L::LANES;
        }
        if column < len && len >= L::LANES {
            // The last vector overlaps the one before.
            self.step::<L, 1>(lanes, first, len - L::LANES, fused);
            return;
        }
        for column in column..len {
            self.step::<Scalar, 1>(Scalar, first, column, fused);
        }
    }

    /// `V` vectors of the columns from `column` on, over all heads, ahead of which as much is prefetched.
    #[inline(always)]
    fn step<W: Lanes, const V: usize>(
        &self,
        lanes: W,
        first: usize,
        column: usize,
        fused: &mut [f32],
    ) {
        let (entries, fold) = (self.entries, self.fold);
        let mut kept = [lanes.splat(0.0); V];
        for head in 0..self.from.heads {
            let at = first + head * self.from.head_stride + column;
            for line in 0..(V * W::LANES * E::BYTES).div_ceil(LINE) {
                entries.prefetch(lanes, at, self.prefetch + line * LINE);
            }
            for v in 0..V {
                // SAFETY: a vector of the columns of a row of a head, all of which can be read.
                let value = unsafe { entries.read(lanes, at + v * W::LANES) };
                kept[v] = match head {
                    0 => fold.first(lanes, value),
                    _ => fold.next(lanes, kept[v], value, head),
                };
            }
        }
        let fused = &mut fused[column..][..V * W::LANES];
        for v in 0..V {
            let folded = entries.folded(lanes, fold.last(lanes, kept[v]));
            let weighted = lanes.mul(folded, lanes.splat(self.weight));
            lanes.store(weighted, &mut fused[v * W::LANES..]);
        }
    }
}
