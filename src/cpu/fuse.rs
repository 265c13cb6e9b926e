//! Head fusion: `[heads, rows, len]` of one item and layer becomes `[rows, len]` in f32, to the bit as
//! [`HeadFusion`] defines it. This is the only code that reads attention maps, and the gradients beside them.
//!
//! For one start row, where nothing more must be known of fused rows, the fused map is never made ([`MapRows::accumulate`]): where
//! its entries are sums of those of the heads, rows of every head are added, times their weights, to the new relevance; else
//! what is folded of the heads is, as the last of them come. Sums of heads are made in any order then.
//!
//! # How maps are read
//!
//! As a few sequential streams side by side, each prefetched ahead, for as long as can be: rows of two to five heads, or rows
//! far apart of one. Times the fastest read of the same bytes, with vectors of 32 and of 64 bytes, of a loop that does nothing
//! else (f32, one thread of a 2-core Cascade Lake Xeon, the best of 3 passes over 200 MB; they spread by a tenth):
//!
//! | | 12 heads, 197 tokens | 12 heads, 512 tokens | 1 head, 512 tokens |
//! |---|---|---|---|
//! | one stream, summed and nothing else | 1.20, 1.23 | 1.23, 1.29 | 1.20, 1.29 |
//! | a row of every head side by side | 1.13, 1.27 | 1.35, 1.43 | |
//! | four adjoining rows of a head side by side | 1.45, 1.28 | 1.76, 1.64 | 1.72, 1.48 |
//! | four streams | 1.09, 0.98 | 1.08, 1.21 | 1.08, 1.08 |
//! | four streams without prefetches | 1.13, 1.15 | 1.32, 1.17 | 1.17, 1.34 |
//!
//! One stream leaves prefetchers idle, which follow a stream in each of several pages; rows that adjoin lie in one page and
//! are one stream, read in the wrong order. And maps of 512 tokens lie 1 MiB apart, so that equal places of all heads share
//! one set of a first-level cache: twelve do not fit where there are eight lines, and what is prefetched for one head throws
//! out what was for another. Instructions do not bind: a cache line of f32 takes two loads, two multiply-adds and a prefetch
//! (half the former with 64-byte vectors) and a fourth of what loading and storing the sums takes, some 3 cycles of the 17 in
//! which it comes from memory.
//!
//! Where memory is faster, streams must be longer and be prefetched further ahead; where it is not, less far than that
//! ([`Prefetch`]). Times the fastest read on a 2-core EPYC
//! of family 26 (Zen 5; 44 GB/s with one thread, a cache line in 6 cycles; minima of 21 runs, which spread by 3 %):
//!
//! | | f32, 12 heads, 197 tokens | f32, 12 heads, 512 tokens | f16, 12 heads, 197 tokens | f16, 16 heads, 577 tokens |
//! |---|---|---|---|---|
//! | four streams of 21 rows, 4 x 1 KiB ahead | 1.34 | 1.27 | 1.59 | 1.46 |
//! | 4 x 2 KiB ahead | 1.30 | 1.25 | 1.40 | 1.23 |
//! | of all rows, 4 x 1 KiB ahead | 1.17 | 1.15 | 1.48 | 1.29 |
//! | 4 x 2 KiB ahead, two vectors of 64 bytes of a stream at a time | 1.12 | 1.10 | 1.22 | 1.10 |
//! | 4 x 3 KiB ahead | 1.19 | 1.20 | 1.16 | 1.06 |
//! | as above, a cache line of a stream at a time | 1.10 | 1.05 | 1.17 | 1.05 |
//!
//! And the fewer streams end, the better: heads adjoin in memory, so that of twelve the first, fourth, seventh and tenth are
//! read side by side, and each stream goes on in the head after. Times the read there, one row:
//!
//! | 12 heads | f32, 128 tokens | f16, 128 | f32, 197 | f16, 197 |
//! |---|---|---|---|---|
//! | heads 0 to 3, 4 to 7, 8 to 11 | 1.17 | 1.25 | 1.10 | 1.16 |
//! | heads 0, 3, 6, 9; then 1, 4, 7, 10; then 2, 5, 8, 11 | 1.12 | 1.17 | 1.08 | 1.07 |
//!
//! Of one head, two streams of half the rows took 1.23 (f32, 197 tokens) and 1.52 (f16), where four took 1.28 and 1.62; of
//! 512 tokens they were a twentieth slower in f32. Rows far apart of three heads at once, six streams, took 12 to 36 % longer
//! than three.
//!
//! Of short rows instructions count: 4 heads of 60 tokens took 0.9 us (f32) where they lay in a cache, and 1.3 is what memory
//! takes by its bandwidth. Sums that stay in registers while all heads pass by as one stream took 0.5. Times the read there,
//! one row, all layers of an item before the next one, by layers x batch x heads x tokens:
//!
//! | f32, f16 | 3x256x4x60 | 6x64x12x48 | 6x4x12x28 |
//! |---|---|---|---|
//! | sums in memory | 1.76, 2.58 | 1.38, 1.56 | 1.50, 2.60 |
//! | sums in registers | 1.63, 2.19 | 1.26, 1.52 | 1.27, 1.80 |
//!
//! Of the rest, 0.1 us of each item and layer go by before the first row. In f16, 12x16x4x96 took 1.40 both ways, and
//! 12x8x12x197 1.16 with sums in registers and 1.07 without.
//!
//! Rows of small items that follow each other are faster still where several items are read side by side, each as one stream
//! (the module `small`).
//!
//! There, too: what is prefetched goes on past the end of a stream, in what is read next, the next heads, rows or layer. One
//! row of 12 heads of 128 tokens in f16 took 1.25 times the read so, and 1.36 where it did not; of 28 tokens in f32 1.42 and
//! 2.1. One row in f32 is taken in vectors of 32 bytes: 1.05 times the read of 512 tokens and 1.08 of 2,048, where vectors of
//! 64 bytes took 1.13 of both. Why is not known: distance, kind and order of the prefetches and the place of the sums made no
//! difference, more instructions a cache line did. So are rows in f16 and bf16 where several heads are read side by side: 1.05
//! and 1.02 (12 heads of 512 tokens), 1.04 and 1.04 (16 of 577), where vectors of 64 bytes took 1.10, 1.08, 1.08 and 1.09.
//! Short rows (6x64x12x28) took 1.54 so and 1.48 in the wider ones, rows of one head of 197 tokens 1.65 and 1.52.
//!
//! Where heads are fused first, few are read side by side as well, and folded into what those before have left: so many rows
//! that the streams are long, and so few that a second-level cache keeps them. What is added to sums for one start row is
//! added as the last heads are folded, and heads are taken apart for it, as above; what is kept is to the bit that of heads in
//! order. Times the read on that machine, one thread: the largest of 12 heads, maps weighed by gradients once the heads are one
//! (f32, f16), and a discard:
//!
//! | | largest, f32 197 | largest, f16 512 | gradients, 197 | gradients, 512 | discard, f16 197 |
//! |---|---|---|---|---|---|
//! | a row of every head side by side | 1.52 | 2.25 | 1.38, 1.65 | 1.53, 2.15 | 1.93 |
//! | four streams, 8,192 elements at a time | | | 1.29, 1.38 | 1.25, 1.34 | |
//! | 16,384 elements | | | 1.21, 1.29 | 1.19, 1.29 | |
//! | 32,768 elements | 1.18 | 1.16 | 1.17, 1.24 | 1.14, 1.18 | 1.54 |
//! | the last heads added to sums as they are folded | | | 1.15, 1.20 | 1.11, 1.14 | |
//! | and heads taken apart | | | 1.14, 1.21 | 1.11, 1.13 | |
//! | and 40,960 elements, so that a map of 197 tokens is one part | 1.10 | 1.13 | 1.09, 1.15 | 1.10, 1.12 | 1.50 |
//!
//! Six streams instead of four were no faster, nor were 65,536 elements before heads were taken apart.
#![allow(
    clippy::needless_range_loop,
    reason = "what iterators are made of is not always inlined, and outside an inner loop it lacks its instruction set"
)]

mod accumulate;
mod entries;
pub(crate) mod fold;
mod pass;
mod short;
mod small;
mod streams;
mod sums;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::config::{GradientRule, HeadFusion};
pub(crate) use crate::cpu::fuse::small::{ABREAST, AccumulateAbreast, MOST_BYTES as SMALL_BYTES};
pub(crate) use crate::cpu::fuse::sums::Accumulate;

use crate::cpu::fuse::accumulate::AccumulateRows;
use crate::cpu::fuse::entries::{Above, Addresses, Attention, GradientWeighted, HeadEntries};
use crate::cpu::fuse::pass::{FuseRows, FusedTo, SumsOfBlocks};
use crate::cpu::prefetch::Prefetch;
use crate::cpu::simd::{InnerLoop, Lanes, Simd};
use crate::dtype::{DType, Element, with_element};
use crate::layer::HostTensor;
use crate::problem::Problem;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Elements of fused rows that are made at a time: many, so that each head is read in one go, and few enough for a
/// second-level cache.
pub(crate) const CHUNK_ELEMENTS: usize = 40 << 10;

/// Rows of a fused map, `len` entries each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FusedEntries<'a> {
    pub entries: &'a [f32],
    /// Elements from row to row.
    pub stride: usize,
    pub len: usize,
    /// How far ahead they are prefetched.
    pub prefetch: Prefetch,
}

impl<'a> FusedEntries<'a> {
    /// Rows without gaps, `[rows, len]`.
    pub fn new(entries: &'a [f32], len: usize) -> Self {
        FusedEntries {
            entries,
            stride: len,
            len,
            prefetch: Prefetch::Far,
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
            gradients: None,
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
            prefetch: self.prefetch,
            next: None,
        }
    }
}

/// Some rows of one item's maps of one layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapRows<'a> {
    maps: HostTensor<'a>,
    /// What the maps are weighed by, and how.
    gradients: Option<(HostTensor<'a>, GradientRule)>,
    /// The first row's first entry in the first head.
    first: usize,
    head_stride: usize,
    row_stride: usize,
    heads: usize,
    fusion: &'a HeadFusion,
    /// The first row's index where the maps are causal: entries right of the diagonal are 0 and are not read.
    causal_from: Option<usize>,
    /// Entries of one head in f32, up to this, are taken as 0; NaN where none is.
    more_than: f32,
    rows: usize,
    len: usize,
    /// How far ahead they are prefetched ...
    prefetch: Prefetch,
    /// ... and where what is read after these rows begins.
    next: Option<Addresses>,
}

impl<'a> MapRows<'a> {
    /// The rows `rows`, counted from the window's start, of one item's `maps` of one layer, which `gradients` weigh.
    pub fn new(
        problem: &'a Problem,
        (layer, item): (usize, usize),
        maps: HostTensor<'a>,
        gradients: Option<HostTensor<'a>>,
        rows: Range<usize>,
    ) -> Self {
        let (strides, config) = (problem.strides(layer), problem.config());
        let window = problem.windows()[item];
        let first = item * strides.batch + window.start * (strides.row + 1);
        MapRows {
            maps,
            gradients: gradients.zip(config.gradients),
            first: first + rows.start * strides.row,
            head_stride: strides.head,
            row_stride: strides.row,
            heads: problem.shape().heads,
            fusion: &config.head_fusion,
            causal_from: config.causal.then_some(rows.start),
            more_than: f32::NAN,
            rows: rows.len(),
            len: window.len,
            prefetch: Prefetch::Far,
            next: None,
        }
    }

    /// The mean of `heads`, rows of `len` entries without gaps.
    pub fn of_heads(maps: &'a [f32], heads: usize, len: usize) -> Self {
        let head_stride = maps.len() / heads;
        MapRows {
            heads,
            head_stride,
            fusion: &HeadFusion::Mean,
            ..FusedEntries::new(maps, len).part(0..head_stride / len, 0..len)
        }
    }

    /// The fused rows, where they lie among the maps: there is but one head, in f32, as it is, and nothing in it is absent.
    pub fn fused(&self) -> Option<FusedEntries<'a>> {
        let as_it_is = self.heads == 1
            && self.gradients.is_none()
            && self.causal_from.is_none()
            && !matches!(self.fusion, HeadFusion::Weighted(_));
        let maps: &[f32] = self.maps.as_slice().filter(|_| as_it_is)?;
        Some(FusedEntries {
            entries: &maps[self.first..],
            stride: self.row_stride,
            len: self.len,
            prefetch: self.prefetch,
        })
    }
}

impl MapRows<'_> {
    /// These, prefetched so far ahead.
    pub fn prefetched(self, prefetch: Prefetch) -> Self {
        MapRows { prefetch, ..self }
    }

    /// These, after which `next` are read, the beginning of which is prefetched then.
    pub fn before(self, next: &MapRows<'_>) -> Self {
        MapRows {
            next: Some(next.addresses(next.first)),
            ..self
        }
    }

    /// The rows `rows` of these, after which those after them are read, or what is read after these.
    #[inline]
    pub fn part(&self, rows: Range<usize>) -> Self {
        let first = |row: usize| self.first + row * self.row_stride;
        MapRows {
            first: first(rows.start),
            causal_from: self.causal_from.map(|from| from + rows.start),
            rows: rows.len(),
            next: match rows.end < self.rows {
                true => Some(self.addresses(first(rows.end))),
                false => self.next,
            },
            ..*self
        }
    }

    /// Where the entry `at` lies.
    #[inline]
    fn addresses(&self, at: usize) -> Addresses {
        let address = |tensor: HostTensor<'_>| {
            let offset = at * tensor.dtype().size_bytes();
            tensor.bytes().as_ptr().wrapping_add(offset)
        };
        let gradients = self.gradients.map(|(gradients, _)| gradients);
        [self.maps, gradients.unwrap_or(self.maps)].map(address)
    }

    /// The entries that are more than `least`, of one head; 0 for the others.
    pub fn more_than(self, least: f32) -> Self {
        MapRows {
            more_than: least,
            ..self
        }
    }

    /// Writes the fused rows, times `weight`, into `fused`, `[rows, len]`.
    pub fn fuse(&self, simd: Simd, weight: f32, fused: &mut [f32]) {
        let len = self.len.max(1);
        let chunk_rows = (CHUNK_ELEMENTS / len).max(1);
        let chunks = fused[..self.rows * self.len].chunks_mut(chunk_rows * len);
        for (chunk, fused) in chunks.enumerate() {
            let first = chunk * chunk_rows;
            let from = self.part(first..self.rows.min(first + chunk_rows));
            let fuse = FuseRows {
                from,
                fused,
                to: FusedTo::Stay(weight),
            };
            from.dispatch(simd.for_rows(from.as_one().len), fuse);
        }
    }

    /// The same rows as one, where they adjoin.
    #[inline(always)]
    fn as_one(self) -> Self {
        let adjoin = self.causal_from.is_none() && self.row_stride == self.len;
        let rows = if adjoin { self.rows } else { 1 };
        MapRows {
            row_stride: rows * self.row_stride,
            len: rows * self.len,
            rows: self.rows / rows,
            ..self
        }
    }

    /// Whether [`accumulate`](MapRows::accumulate) takes rows of the heads for so many start rows: one, or one array is read.
    /// Else, rows that are fused in a cache are faster.
    pub fn need_not_be_made(&self, start_rows: usize) -> bool {
        start_rows == 1 || self.heads == 1 && self.gradients.is_none()
    }

    /// Whether fused entries are weighted sums of those of the heads, so that rows of each head can be added by themselves.
    fn are_sums(&self) -> bool {
        let rectified_last = matches!(self.gradients, Some((_, GradientRule::Fused)));
        match self.fusion {
            HeadFusion::Mean | HeadFusion::Weighted(_) => !rectified_last,
            HeadFusion::Max | HeadFusion::Min => self.heads == 1 && !rectified_last,
        }
    }

    /// Adds the fused rows, times their weights, to sums. They [need not be made](MapRows::need_not_be_made) for it.
    pub fn accumulate(&self, simd: Simd, to: &mut Accumulate<'_>) {
        debug_assert!(self.need_not_be_made(to.start_rows));
        if !self.are_sums() {
            return self.fuse_onto(simd, to);
        }
        let side_by_side = self.heads > 1 && !short::is_short(self.len) && !self.are_small();
        let simd = match to.start_rows {
            1 if side_by_side || self.maps.dtype() == DType::F32 => simd.narrow(),
            _ => simd.for_rows(self.len),
        };
        let inner_loop = AccumulateRows { from: self, to };
        if self.more_than.is_nan() {
            return self.dispatch(simd, inner_loop);
        }
        let entries = Above {
            entries: Attention::<f32>(self.elements(self.maps)),
            least: self.more_than,
        };
        simd.dispatch(Over {
            entries,
            inner_loop,
        });
    }

    /// Adds the rows, fused a chunk at a time, times their weights, to the sums of one start row.
    fn fuse_onto(&self, simd: Simd, to: &mut Accumulate<'_>) {
        let (block_rows, part_stride) = (to.block_rows, to.part_stride);
        let chunk_rows = (CHUNK_ELEMENTS / self.len.max(1)).max(1);
        for first in (0..self.rows).step_by(chunk_rows) {
            let from = self.part(first..self.rows.min(first + chunk_rows));
            let sums = SumsOfBlocks {
                weights: &to.weights[first..],
                block_rows,
                before: first % block_rows,
                part: &mut to.part[first / block_rows * part_stride..],
                part_stride,
            };
            let fuse = FuseRows {
                from,
                fused: &mut *to.fused,
                to: FusedTo::Sums(sums),
            };
            from.dispatch(simd.for_rows(from.len), fuse);
        }
    }

    /// Entries that are present of row `row`.
    #[inline(always)]
    fn present(&self, row: usize) -> usize {
        match self.causal_from {
            Some(from) => (from + row + 1).min(self.len),
            None => self.len,
        }
    }
}

/// An inner loop over the entries of rows, whatever these are.
trait EntriesLoop {
    fn run<L: Lanes, E: HeadEntries>(self, lanes: L, entries: E);
}

/// The same over entries that are known.
struct Over<E, I> {
    entries: E,
    inner_loop: I,
}

impl<E: HeadEntries, I: EntriesLoop> InnerLoop for Over<E, I> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        self.inner_loop.run(lanes, self.entries);
    }
}

impl MapRows<'_> {
    /// Runs `inner_loop` over the entries from the first on, compiled for each kind of them by itself.
    fn dispatch(&self, simd: Simd, inner_loop: impl EntriesLoop) {
        with_element!(self.maps.dtype(), T => {
            let maps: &[T] = self.elements(self.maps);
            match self.gradients {
                None => simd.dispatch(Over { entries: Attention(maps), inner_loop }),
                Some((gradients, rule)) => {
                    let entries = GradientWeighted::new(maps, self.elements(gradients), rule);
                    simd.dispatch(Over { entries, inner_loop });
                }
            }
        });
    }

    /// The elements of `tensor` from those of the first row on.
    fn elements<'a, T: Element>(&self, tensor: HostTensor<'a>) -> &'a [T] {
        // Of type `T` and long enough, as was checked; were they not, there would be none, and none read.
        let all = tensor.as_slice().unwrap_or_default();
        all.get(self.first..).unwrap_or_default()
    }
}
