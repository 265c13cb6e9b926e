//! Head fusion: `[heads, rows, len]` of one item and layer becomes `[rows, len]` in f32, to the bit as
//! [`HeadFusion`] defines it. This is the only code that reads attention maps, and the gradients beside them.
//!
//! Where fused entries are sums of those of the heads, and nothing more must be known of them, the fused map is never made:
//! rows of every head are added, times their weights, to the new relevance ([`MapRows::accumulate`]).
//!
//! # How maps are read
//!
//! There, as a few sequential streams side by side, each prefetched a little ahead, for as long as can be: the same rows of
//! three to five heads, or rows far apart of one or two. Times the fastest read of the same bytes, with vectors of 32 and
//! of 64 bytes, of a loop that does nothing else (f32, one thread of a 2-core Cascade Lake Xeon, the best of 3 passes over
//! 200 MB; they spread by a tenth):
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
#![allow(
    clippy::needless_range_loop,
    reason = "what iterators are made of is not always inlined, and outside an inner loop it lacks its instruction set"
)]

mod accumulate;
mod entries;
pub(crate) mod fold;
mod pass;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::config::{GradientRule, HeadFusion};
pub(crate) use crate::cpu::fuse::accumulate::Accumulate;

use crate::cpu::fuse::accumulate::{AccumulateRows, Prefetch};
use crate::cpu::fuse::entries::{Above, Attention, GradientWeighted, HeadEntries};
use crate::cpu::fuse::pass::FuseRows;
use crate::cpu::scores::{ItemScores, ScoreRows};
use crate::cpu::simd::{InnerLoop, Lanes, Simd};
use crate::cpu::team::{Member, Shared};
use crate::dtype::{Element, with_element};
use crate::error::Result;
use crate::layer::{HostLayer, HostTensor, Layer};
use crate::problem::Problem;

/// One item's maps of one layer.
#[derive(Clone, Copy)]
pub(crate) struct ItemMaps<'a> {
    pub problem: &'a Problem,
    pub operands: HostLayer<'a>,
    pub layer: usize,
    pub item: usize,
    /// The member's own, to compute entries in where they are computed.
    pub memory: Shared<'a>,
}

/// Some rows of one item's maps of one layer, wherever they come from.
#[derive(Clone, Copy)]
pub(crate) enum ItemRows<'a> {
    Maps(MapRows<'a>),
    Scores(ScoreRows<'a>),
}

impl<'a> From<MapRows<'a>> for ItemRows<'a> {
    fn from(rows: MapRows<'a>) -> Self {
        ItemRows::Maps(rows)
    }
}

impl ItemRows<'_> {
    /// Writes the fused rows, times `weight`, into `fused`, `[rows, len]`.
    pub fn fuse(self, simd: Simd, weight: f32, fused: &mut [f32]) {
        match self {
            ItemRows::Maps(rows) => rows.fuse(simd, weight, fused),
            ItemRows::Scores(rows) => rows.fuse(simd, weight, fused),
        }
    }

    /// Whether [`accumulate`](ItemRows::accumulate) takes the heads' entries as they are.
    pub fn need_no_fusing(&self, start_rows: usize) -> bool {
        match self {
            ItemRows::Maps(rows) => rows.need_no_fusing(start_rows),
            ItemRows::Scores(_) => true,
        }
    }

    /// Adds the fused rows, times their weights, to sums. They [need not be fused](ItemRows::need_no_fusing) for it.
    pub fn accumulate(self, simd: Simd, to: Accumulate<'_>) {
        match self {
            ItemRows::Maps(rows) => rows.accumulate(simd, to),
            ItemRows::Scores(rows) => rows.accumulate(simd, to),
        }
    }
}

impl<'a> ItemMaps<'a> {
    /// Valid tokens of the item.
    pub fn len(&self) -> usize {
        self.problem.windows()[self.item].len
    }

    /// The queries and keys, where the maps are computed from them.
    pub fn scores(&self) -> Option<ItemScores<'a>> {
        let Layer::QueriesKeys { queries, keys, lse } = self.operands else {
            return None;
        };
        Some(ItemScores {
            problem: self.problem,
            source: self.problem.queries_keys()?,
            queries,
            keys,
            lse,
            layer: self.layer,
            item: self.item,
            memory: self.memory,
        })
    }

    /// Looks whether a given LSE is that of the queries and keys, in some rows of the heads that fall to this member.
    ///
    /// # Errors
    /// [`Error::Lse`](crate::Error::Lse).
    pub fn probe(&self, simd: Simd, member: Member<'_>) -> Result<()> {
        match self.scores().filter(|_| self.len() > 0) {
            Some(scores) => scores.probe(simd, member),
            None => Ok(()),
        }
    }

    /// Notes what the rows of relevance `[start rows, len]` must sum to after this layer, where that is known and looked at.
    pub fn expect_masses(&self, relevance: &[f32]) {
        if let Some(scores) = self.scores() {
            scores.expect_masses(relevance);
        }
    }

    /// Checks the rows of relevance after this layer against what was noted before it.
    ///
    /// # Errors
    /// [`Error::Mass`](crate::Error::Mass).
    pub fn check_masses(&self, relevance: &[f32]) -> Result<()> {
        self.scores()
            .map_or(Ok(()), |scores| scores.check_masses(relevance))
    }

    /// Checks what the rows of `Ahat` from `first` on, `[rows, len]`, sum to, where that is known and looked at.
    ///
    /// # Errors
    /// [`Error::Mass`](crate::Error::Mass).
    pub fn check_rows(&self, first: usize, ahat: &[f32]) -> Result<()> {
        self.scores()
            .map_or(Ok(()), |scores| scores.check_rows(first, ahat))
    }

    /// The rows `rows`, counted from the window's start.
    pub fn rows(&self, rows: Range<usize>) -> ItemRows<'a> {
        match self.scores() {
            None => self.map_rows(rows).into(),
            Some(of) => ItemRows::Scores(ScoreRows {
                of,
                first: rows.start,
                count: rows.len(),
            }),
        }
    }

    /// The rows `rows` of maps in memory.
    fn map_rows(&self, rows: Range<usize>) -> MapRows<'a> {
        let strides = self.problem.strides(self.layer);
        let window = self.problem.windows()[self.item];
        let first = self.item * strides.batch + window.start * (strides.row + 1);
        let (maps, gradients) = match self.operands {
            Layer::Maps(maps) => (maps, None),
            Layer::Gradients { maps, gradients } => {
                let rule = self.problem.config().gradients;
                (maps, rule.map(|rule| (gradients, rule)))
            }
            Layer::QueriesKeys { .. } => unreachable!("their rows are computed"),
        };
        MapRows {
            maps,
            gradients,
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

    /// Asks for what is read first of the rows `rows` to be prefetched.
    pub fn prefetch(&self, simd: Simd, rows: Range<usize>) {
        if let ItemRows::Maps(rows) = self.rows(rows) {
            rows.dispatch(simd, Prefetch(rows));
        }
    }

    /// The fused map, where it lies among the maps: there is but one head, in f32, as it is, and nothing in it is absent.
    pub fn fused(&self) -> Option<FusedEntries<'a>> {
        let ItemRows::Maps(rows) = self.rows(0..self.len()) else {
            return None;
        };
        let as_it_is = rows.heads == 1
            && rows.gradients.is_none()
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
        if self.causal_from.is_none() && self.row_stride == self.len {
            // Adjoining rows are one.
            (self.rows, self.len) = (1, self.rows * self.len);
        }
        let fuse = FuseRows {
            from: self,
            weight,
            fused,
        };
        self.dispatch(simd.for_rows(self.len), fuse);
    }

    /// Whether [`accumulate`](MapRows::accumulate) takes the heads' entries as they are: fused ones are weighted sums of
    /// them, and one array is read, or there is one start row. For several start rows, fused entries in a cache are faster.
    pub fn need_no_fusing(&self, start_rows: usize) -> bool {
        let one_array = self.heads == 1 && self.gradients.is_none();
        let are_sums = match self.fusion {
            HeadFusion::Mean | HeadFusion::Weighted(_) => true,
            HeadFusion::Max | HeadFusion::Min => self.heads == 1,
        };
        let rectified_last = matches!(self.gradients, Some((_, GradientRule::Fused)));
        are_sums && !rectified_last && (one_array || start_rows == 1)
    }

    /// Adds the fused rows, times their weights, to sums. They [need not be fused](MapRows::need_no_fusing) for it.
    pub fn accumulate(self, simd: Simd, to: Accumulate<'_>) {
        let simd = simd.for_rows(self.len);
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

    /// Entries that are present of row `row`.
    #[inline(always)]
    fn present(&self, row: usize) -> usize {
        match self.causal_from {
            Some(from) => (from + row + 1).min(self.len),
            None => self.len,
        }
    }

    /// Makes sure that all rows, of which there are some, of all heads are among `entries`.
    ///
    /// # Panics
    /// Where they are not.
    #[inline(always)]
    fn check(&self, entries: impl HeadEntries) {
        let last = (self.heads - 1) * self.head_stride + (self.rows - 1) * self.row_stride;
        assert!(last + self.len <= entries.len());
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
