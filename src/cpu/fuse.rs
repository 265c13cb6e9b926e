//! Head fusion: `[heads, rows, len]` of one item and layer becomes `[rows, len]` in f32, to the bit as
//! [`HeadFusion`] defines it. This is the only code that reads attention maps.
//!
//! Fused entries go where a [`Sink`] takes them, straight from the registers: into memory, or times their rows'
//! weights into the new relevance.
#![allow(
    clippy::needless_range_loop,
    reason = "what iterators are made of is not always inlined, and outside an inner loop it lacks its instruction set"
)]

mod fold;
mod sink;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::config::HeadFusion;
pub(crate) use crate::cpu::fuse::sink::Accumulate;

use crate::cpu::fuse::fold::{Above, Extreme, Fold, Mean, Weighted};
use crate::cpu::fuse::sink::{Sink, Store};
use crate::cpu::simd::{InnerLoop, Lanes, Scalar, Simd};
use crate::dtype::{Element, with_element};
use crate::layer::HostTensor;
use crate::problem::Problem;

/// How far ahead of the loads the maps are prefetched, in bytes, all heads together: a few times what is on its way
/// from memory at any moment, and small beside a first-level cache.
const PREFETCH_BYTES: usize = 12 << 10;

/// With so many heads to read for each sum, rows are taken one by one: what is prefetched is then always what comes
/// next. With fewer, several rows side by side, so that the sums are loaded and stored once for all of them.
const HEADS_PER_SUM: usize = 8;

/// One item's maps of one layer.
#[derive(Clone, Copy)]
pub(crate) struct ItemMaps<'a> {
    pub problem: &'a Problem,
    pub maps: HostTensor<'a>,
    pub layer: usize,
    pub item: usize,
}

impl<'a> ItemMaps<'a> {
    /// Valid tokens of the item.
    pub fn len(&self) -> usize {
        self.problem.windows()[self.item].len
    }

    /// The rows `rows`, counted from the window's start.
    pub fn rows(&self, rows: Range<usize>) -> MapRows<'a> {
        let strides = self.problem.strides(self.layer);
        let window = self.problem.windows()[self.item];
        let first = self.item * strides.batch + window.start * (strides.row + 1);
        MapRows {
            maps: self.maps,
            first: first + rows.start * strides.row,
            head_stride: strides.head,
            row_stride: strides.row,
            heads: self.problem.shape().heads,
            fusion: &self.problem.config().head_fusion,
            causal_from: self.problem.config().causal.then_some(rows.start),
            more_than: f32::NAN,
            rows: rows.len(),
            len: window.len,
        }
    }

    /// Asks for the first entries of the rows `rows`, as far ahead as a pass over them would, to be prefetched.
    pub fn prefetch(&self, simd: Simd, rows: Range<usize>) {
        simd.dispatch(Prefetch(self.rows(rows)));
    }

    /// The fused map, where it lies among the maps: there is but one head, in f32, and nothing in it is absent.
    pub fn fused(&self) -> Option<FusedEntries<'a>> {
        let rows = self.rows(0..self.len());
        let as_it_is = rows.heads == 1
            && rows.causal_from.is_none()
            && !matches!(rows.fusion, HeadFusion::Weighted(_));
        let maps: &[f32] = rows.maps.as_slice().filter(|_| as_it_is)?;
        Some(FusedEntries {
            entries: &maps[rows.first..],
            stride: rows.row_stride,
            len: rows.len,
        })
    }
}

/// Rows of a fused map, `len` entries each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FusedEntries<'a> {
    pub entries: &'a [f32],
    /// Elements from row to row.
    pub stride: usize,
    pub len: usize,
}

impl<'a> FusedEntries<'a> {
    /// Rows without gaps, `[rows, len]`.
    pub fn new(entries: &'a [f32], len: usize) -> Self {
        FusedEntries {
            entries,
            stride: len,
            len,
        }
    }

    /// A row.
    #[inline(always)]
    pub fn row(&self, row: usize) -> &'a [f32] {
        &self.entries[row * self.stride..][..self.len]
    }

    /// The columns `columns` of the rows `rows`.
    pub fn part(&self, rows: Range<usize>, columns: Range<usize>) -> MapRows<'a> {
        MapRows {
            maps: self.entries.into(),
            first: rows.start * self.stride + columns.start,
            head_stride: 0,
            row_stride: self.stride,
            heads: 1,
            // Of one head, the largest entry is the entry.
            fusion: &HeadFusion::Max,
            causal_from: None,
            more_than: f32::NAN,
            rows: rows.len(),
            len: columns.len(),
        }
    }
}

/// Some rows of one item's maps of one layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapRows<'a> {
    maps: HostTensor<'a>,
    /// The first row's first entry in the first head.
    first: usize,
    head_stride: usize,
    row_stride: usize,
    heads: usize,
    fusion: &'a HeadFusion,
    /// The first row's index where the maps are causal: entries right of the diagonal are 0 and are not read.
    causal_from: Option<usize>,
    /// Of one head, entries up to this are taken as 0; NaN where none is.
    more_than: f32,
    rows: usize,
    len: usize,
}

impl MapRows<'_> {
    /// The entries that are more than `least`, of one head; 0 for the others.
    pub fn more_than(self, least: f32) -> Self {
        MapRows {
            more_than: least,
            ..self
        }
    }

    /// Writes the fused rows, times `weight`, into `fused`, `[rows, len]`.
    pub fn fuse(mut self, simd: Simd, weight: f32, fused: &mut [f32]) {
        let to = Store {
            fused,
            stride: self.len,
            weight,
        };
        if self.causal_from.is_none() && self.row_stride == self.len {
            // Adjoining rows are one.
            (self.rows, self.len) = (1, self.rows * self.len);
        }
        let side_by_side = false;
        simd.for_rows(self.len).dispatch(FuseRows {
            from: self,
            to,
            side_by_side,
        });
    }

    /// Adds the fused rows, times their weights, to sums, row after row.
    pub fn accumulate(self, simd: Simd, to: Accumulate<'_>) {
        let side_by_side = self.heads < HEADS_PER_SUM * to.start_rows;
        simd.for_rows(self.len).dispatch(FuseRows {
            from: self,
            to,
            side_by_side,
        });
    }
}

/// Prefetches the beginning of each head.
struct Prefetch<'a>(MapRows<'a>);

impl InnerLoop for Prefetch<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let rows = self.0;
        let (maps, size) = (rows.maps.bytes().as_ptr(), rows.maps.dtype().size_bytes());
        let bytes = (rows.rows * rows.row_stride * size).min(PREFETCH_BYTES / rows.heads);
        for head in 0..rows.heads {
            let first = maps.wrapping_add((rows.first + head * rows.head_stride) * size);
            for at in (0..bytes).step_by(64) {
                lanes.prefetch(first.wrapping_add(at));
            }
        }
    }
}

/// Fuses rows into a sink.
struct FuseRows<'a, S> {
    from: MapRows<'a>,
    to: S,
    /// Several rows at a time.
    side_by_side: bool,
}

impl<S: Sink> InnerLoop for FuseRows<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let maps = self.from.maps;
        with_element!(maps.dtype(), T => {
            self.by_fusion::<L, T>(lanes, maps.as_slice().unwrap_or_default())
        });
    }
}

impl<S: Sink> FuseRows<'_, S> {
    #[inline(always)]
    fn by_fusion<L: Lanes, T: Element>(self, lanes: L, maps: &[T]) {
        let maps = &maps[self.from.first..];
        // As many vectors as leave registers free: of two rows, or of four where there is but one head.
        match self.from.fusion {
            HeadFusion::Weighted(weights) => {
                self.rows::<L, T, _, 2, 4>(lanes, maps, Weighted { weights });
            }
            // Whatever fuses several heads leaves one as it is.
            _ if self.from.heads == 1 => {
                let least = Above(self.from.more_than);
                self.rows::<L, T, _, 4, 2>(lanes, maps, least);
            }
            HeadFusion::Mean => {
                let scale = 1.0 / self.from.heads as f32;
                self.rows::<L, T, _, 2, 4>(lanes, maps, Mean { scale });
            }
            HeadFusion::Max => self.rows::<L, T, _, 2, 4>(lanes, maps, Extreme::<true>),
            HeadFusion::Min => self.rows::<L, T, _, 2, 4>(lanes, maps, Extreme::<false>),
        }
    }

    /// All rows, `R` at a time in steps of `V` vectors.
    #[inline(always)]
    fn rows<L: Lanes, T: Element, F: Fold, const R: usize, const V: usize>(
        self,
        lanes: L,
        maps: &[T],
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
        // All that follows reads `maps` below this.
        assert!((heads - 1) * head_stride + (rows - 1) * row_stride + len <= maps.len());
        let mut pass = Fuse {
            lanes,
            maps: maps.as_ptr(),
            fusion,
            from: self.from,
            prefetch: PREFETCH_BYTES / heads,
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
struct Fuse<'a, L, T, F, S> {
    lanes: L,
    /// The first entry. All rows of all heads can be read.
    maps: *const T,
    fusion: F,
    from: MapRows<'a>,
    /// How far ahead each head is prefetched, in bytes.
    prefetch: usize,
    to: S,
}

impl<L: Lanes, T: Element, F: Fold, S: Sink> Fuse<'_, L, T, F, S> {
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
        let fusion = self.fusion;
        let mut kept = [[lanes.splat(0.0); V]; R];
        for r in 0..R {
            let maps = self.head(lanes, 0, row + r, column, V);
            for v in 0..V {
                // SAFETY: as `head` says.
                let value = unsafe { lanes.read(maps.add(v * W::LANES)) };
                kept[r][v] = fusion.first(lanes, value);
            }
        }
        for head in 1..self.from.heads {
            for r in 0..R {
                let maps = self.head(lanes, head, row + r, column, V);
                for v in 0..V {
                    // SAFETY: as `head` says.
                    let value = unsafe { lanes.read(maps.add(v * W::LANES)) };
                    kept[r][v] = fusion.next(lanes, kept[r][v], value, head);
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                kept[r][v] = fusion.last(lanes, kept[r][v]);
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
    ) -> *const T {
        let first = head * self.from.head_stride + row * self.from.row_stride + column;
        let maps = self.maps.wrapping_add(first);
        for line in 0..(vectors * W::LANES * size_of::<T>()).div_ceil(64) {
            lanes.prefetch(maps.cast::<u8>().wrapping_add(self.prefetch + line * 64));
        }
        maps
    }
}
