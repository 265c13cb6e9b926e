//! One pass over the entries of some rows: from all heads, ahead of which it prefetches, into a sink.

use super::{EntriesLoop, MapRows};
use crate::config::HeadFusion;
use crate::cpu::fuse::entries::HeadEntries;
use crate::cpu::fuse::fold::{Above, Extreme, Fold, Mean, Weighted};
use crate::cpu::fuse::sink::Sink;
use crate::cpu::simd::{Lanes, Scalar};

/// How far ahead of the loads what they read is prefetched, in bytes, all heads together: a few times what is on its way
/// from memory at any moment, and small beside a first-level cache.
const PREFETCH_BYTES: usize = 12 << 10;

/// Prefetches the beginning of each head.
pub(super) struct Prefetch<'a>(pub MapRows<'a>);

impl EntriesLoop for Prefetch<'_> {
    #[inline(always)]
    fn run<L: Lanes, E: HeadEntries>(self, lanes: L, entries: E) {
        let rows = self.0;
        let most = PREFETCH_BYTES / (rows.heads * E::OPERANDS);
        let bytes = (rows.rows * rows.row_stride * E::BYTES).min(most);
        for head in 0..rows.heads {
            for ahead in (0..bytes).step_by(64) {
                entries.prefetch(lanes, head * rows.head_stride, ahead);
            }
        }
    }
}

/// Fuses rows into a sink.
pub(super) struct FuseRows<'a, S> {
    pub from: MapRows<'a>,
    pub to: S,
    /// Several rows at a time.
    pub side_by_side: bool,
}

impl<S: Sink> EntriesLoop for FuseRows<'_, S> {
    #[inline(always)]
    fn run<L: Lanes, E: HeadEntries>(self, lanes: L, entries: E) {
        // As many vectors as leave registers free: of two rows, or of four where there is but one head.
        match self.from.fusion {
            HeadFusion::Weighted(weights) => {
                self.rows::<L, E, _, 2, 4>(lanes, entries, Weighted { weights });
            }
            // Whatever fuses several heads leaves one as it is.
            _ if self.from.heads == 1 => {
                let least = Above(self.from.more_than);
                self.rows::<L, E, _, 4, 2>(lanes, entries, least);
            }
            HeadFusion::Mean => {
                let scale = 1.0 / self.from.heads as f32;
                self.rows::<L, E, _, 2, 4>(lanes, entries, Mean { scale });
            }
            HeadFusion::Max => self.rows::<L, E, _, 2, 4>(lanes, entries, Extreme::<true>),
            HeadFusion::Min => self.rows::<L, E, _, 2, 4>(lanes, entries, Extreme::<false>),
        }
    }
}

impl<S: Sink> FuseRows<'_, S> {
    /// All rows, `R` at a time in steps of `V` vectors.
    #[inline(always)]
    fn rows<L: Lanes, E: HeadEntries, F: Fold, const R: usize, const V: usize>(
        self,
        lanes: L,
        entries: E,
        fusion: F,
    ) {
        let MapRows {
            head_stride,
            row_stride,
            heads,
            causal_from,
            rows,
            len,
            ..
        } = self.from;
        if rows == 0 {
            return;
        }
        // All that follows reads entries below this.
        assert!((heads - 1) * head_stride + (rows - 1) * row_stride + len <= entries.len());
        let mut pass = Fuse {
            lanes,
            entries,
            fusion,
            from: self.from,
            prefetch: PREFETCH_BYTES / (heads * E::OPERANDS),
            to: self.to,
        };
        if let Some(from) = causal_from {
            for row in 0..rows {
                let present = (from + row + 1).min(len);
                pass.columns::<1, 4>(row, present);
                pass.to.absent(row, present);
            }
            return;
        }
        let mut row = 0;
        while self.side_by_side && row + R <= rows {
            pass.columns::<R, V>(row, len);
            row += R;
        }
        for row in row..rows {
            pass.columns::<1, 4>(row, len);
        }
    }
}

/// A pass with everything known at compile time that can be.
struct Fuse<'a, L, E, F, S> {
    lanes: L,
    /// All rows of all heads can be read.
    entries: E,
    fusion: F,
    from: MapRows<'a>,
    /// How far ahead each head is prefetched, in bytes.
    prefetch: usize,
    to: S,
}

impl<L: Lanes, E: HeadEntries, F: Fold, S: Sink> Fuse<'_, L, E, F, S> {
    /// The first `len` columns of `R` rows, in steps of `V` vectors, 2 or 4.
    #[inline(always)]
    fn columns<const R: usize, const V: usize>(&mut self, row: usize, len: usize) {
        let lanes = self.lanes;
        let mut column = 0;
        while column + V * L::LANES <= len {
            self.step::<L, R, V>(lanes, row, column, 0);
            column += V * L::LANES;
        }
        if V > 2 && column + 2 * L::LANES <= len {
            self.step::<L, R, 2>(lanes, row, column, 0);
            column += 2 * L::LANES;
        }
        if column + L::LANES <= len {
            self.step::<L, R, 1>(lanes, row, column, 0);
            column += L::LANES;
        }
        if column < len && len >= L::LANES {
            // The last vector overlaps the one before.
            let last = len - L::LANES;
            self.step::<L, R, 1>(lanes, row, last, column - last);
            return;
        }
        for column in column..len {
            self.step::<Scalar, R, 1>(Scalar, row, column, 0);
        }
    }

    /// `V` vectors of `R` rows, over all heads.
    #[inline(always)]
    fn step<W: Lanes, const R: usize, const V: usize>(
        &mut self,
        lanes: W,
        row: usize,
        column: usize,
        done: usize,
    ) {
        let (entries, fusion) = (self.entries, self.fusion);
        let mut kept = [[lanes.splat(0.0); V]; R];
        for r in 0..R {
            let first = self.head(lanes, 0, row + r, column, V);
            for v in 0..V {
                // SAFETY: as `head` says.
                let value = unsafe { entries.read(lanes, first + v * W::LANES) };
                kept[r][v] = fusion.first(lanes, value);
            }
        }
        for head in 1..self.from.heads {
            for r in 0..R {
                let first = self.head(lanes, head, row + r, column, V);
                for v in 0..V {
                    // SAFETY: as `head` says.
                    let value = unsafe { entries.read(lanes, first + v * W::LANES) };
                    kept[r][v] = fusion.next(lanes, kept[r][v], value, head);
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                kept[r][v] = entries.folded(lanes, fusion.last(lanes, kept[r][v]));
            }
        }
        self.to.take(lanes, row, column, done, &kept);
    }

    /// Where an entry of a head lies. It and those after it in its row, up to the length of rows, can be read.
    /// Asks for as many vectors' worth of memory, further on, to be prefetched.
    #[inline(always)]
    fn head<W: Lanes>(
        &self,
        lanes: W,
        head: usize,
        row: usize,
        column: usize,
        vectors: usize,
    ) -> usize {
        let first = head * self.from.head_stride + row * self.from.row_stride + column;
        for line in 0..(vectors * W::LANES * E::BYTES).div_ceil(64) {
            let ahead = self.prefetch + line * 64;
            self.entries.prefetch(lanes, first, ahead);
        }
        first
    }
}
