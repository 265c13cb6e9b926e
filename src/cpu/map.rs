//! One item's fused map of one layer, without what is discarded and excluded, handed out in blocks of rows.

use std::ops::Range;

use crate::cpu::discard::{Cutoff, KeptEntries};
use crate::cpu::engine::Prepared;
use crate::cpu::fuse::{Accumulate, FusedEntries};
use crate::cpu::item::{ItemMaps, ItemRows};
use crate::cpu::prefetch::Prefetch;
use crate::cpu::simd::{InnerLoop, Lanes, MOST_LANES, Simd};
use crate::cpu::team::{Member, Shared};
use crate::error::Result;
use crate::layer::HostLayer;
use crate::problem::Problem;

/// One run of one problem: what it reads and writes, lengths checked.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    pub simd: Simd,
    pub prefetch: Prefetch,
    pub problem: &'a Problem,
    /// The operands of the layers from `first` on, all of which are computed.
    pub operands: &'a [HostLayer<'a>],
    pub first: usize,
    /// The output of the whole problem.
    pub out: Shared<'a>,
    /// The member's own, to compute entries of maps in.
    pub source: Shared<'a>,
}

impl<'a> Run<'a> {
    /// All of it; `layers` holds every layer of the problem.
    pub fn new<S>(
        prepared: &'a Prepared<S>,
        layers: &'a [HostLayer<'a>],
        out: Shared<'a>,
        source: Shared<'a>,
    ) -> Self {
        let range = prepared.problem.layers();
        Run {
            simd: prepared.choice.simd,
            prefetch: prepared.choice.prefetch,
            problem: &prepared.problem,
            operands: &layers[range.clone()],
            first: range.start,
            out,
            source,
        }
    }

    /// The layers that are computed.
    pub fn layers(&self) -> Range<usize> {
        self.first..self.first + self.operands.len()
    }

    /// Looks whether given LSEs of the layers `layers` are those of their queries and keys, as [`ItemMaps::probe`].
    ///
    /// # Errors
    /// [`Error::Lse`](crate::Error::Lse).
    pub fn probe(&self, mut layers: Range<usize>, item: usize, member: Member<'_>) -> Result<()> {
        layers.try_for_each(|layer| self.maps(layer, item).probe(self.simd, member))
    }

    /// The maps of `item` in `layer`.
    pub fn maps(&self, layer: usize, item: usize) -> ItemMaps<'a> {
        ItemMaps {
            problem: self.problem,
            prefetch: self.prefetch,
            operands: self.operands[layer - self.first],
            layer,
            item,
            memory: self.source,
        }
    }
}

/// One item's fused map of one layer.
pub(crate) struct FusedMap<'a> {
    pub simd: Simd,
    pub maps: ItemMaps<'a>,
    /// All rows with all that is discarded and excluded, or those up to the last one that is asked for.
    all: &'a ItemRows<'a>,
    /// The whole map and what to zero in it, where something is discarded.
    discard: Option<(FusedEntries<'a>, Option<Cutoff>)>,
}

impl<'a> FusedMap<'a> {
    /// The rows `all` of `maps`. `whole` is the whole fused map where something is discarded, else `None`; `candidates` has room
    /// for [`discard::scratch`] floats.
    #[inline]
    pub fn new(
        simd: Simd,
        maps: ItemMaps<'a>,
        all: &'a ItemRows<'a>,
        whole: Option<FusedEntries<'a>>,
        candidates: &mut [f32],
    ) -> Self {
        let select = |map| {
            let cutoff = Cutoff::select(simd, maps.problem, maps.item, map, candidates);
            (map, cutoff)
        };
        FusedMap {
            simd,
            maps,
            all,
            discard: whole.map(select),
        }
    }

    /// Whether rows must be seen whole before they can be used: something is excluded from them.
    pub fn is_excluding(&self) -> bool {
        !self.excluded().is_empty()
    }

    /// The columns that are excluded, of which some may lie beyond the window.
    fn excluded(&self) -> &'a [usize] {
        &self.maps.problem.config().exclude_from_attention
    }

    /// Writes the rows `rows`, times `weight`, into `weighted`, `[rows, len]`.
    pub fn rows(&self, rows: Range<usize>, weight: f32, weighted: &mut [f32]) {
        if !self.is_excluding() {
            return self.kept_rows(rows, weight, weighted);
        }
        self.kept_rows(rows, 1.0, weighted);
        for row in weighted.chunks_exact_mut(self.maps.len()) {
            for &column in self.excluded() {
                if let Some(entry) = row.get_mut(column) {
                    *entry = 0.0;
                }
            }
            divide_by_sum(self.simd, row);
            row.iter_mut().for_each(|entry| *entry *= weight);
        }
    }

    /// As [`rows`](FusedMap::rows), with the columns that are excluded.
    fn kept_rows(&self, rows: Range<usize>, weight: f32, weighted: &mut [f32]) {
        let Some((whole, cutoff)) = &self.discard else {
            self.all.part(rows).fuse(self.simd, weight, weighted);
            return;
        };
        let Some(cutoff) = cutoff else {
            let rows = whole.part(rows, 0..whole.len);
            rows.fuse(self.simd, weight, weighted);
            return;
        };
        cutoff.keep(self.simd, rows, *whole, weighted);
        if weight != 1.0 {
            weighted.iter_mut().for_each(|entry| *entry *= weight);
        }
    }

    /// Whether the rows of several blocks may be [accumulated](FusedMap::accumulate) or made at once, for one start row: the
    /// more, the longer what is read of each head in one go.
    pub fn takes_blocks(&self) -> bool {
        self.discard.is_none() && self.all.takes_blocks()
    }

    /// Whether rows must be made before they are accumulated for so many start rows.
    pub fn must_be_made(&self, start_rows: usize) -> bool {
        let need_not = || self.all.need_not_be_made(start_rows);
        let normalize = self.maps.problem.config().normalize_rows;
        normalize || self.is_excluding() || self.discard.is_none() && !need_not()
    }

    /// Adds the rows `rows` times `weights`, `[start rows, rows]`, to `parts`, `[blocks, start rows, len]`, where they need
    /// [not be made](FusedMap::must_be_made): of as many blocks of `block_rows` rows as there are, but one only where they are
    /// not [taken in blocks](FusedMap::takes_blocks). `fused` is what [`Accumulate`] says.
    pub fn accumulate(
        &self,
        rows: Range<usize>,
        block_rows: usize,
        start_rows: usize,
        weights: &[f32],
        fused: &mut [f32],
        parts: &mut [f32],
    ) {
        let len = self.maps.len();
        let weights_stride = rows.len();
        let mut add = |entries: &ItemRows<'_>, first: usize, column: usize, fused: &mut [f32]| {
            let mut to = Accumulate {
                start_rows,
                weights: &weights[first - rows.start..],
                weights_stride,
                block_rows,
                part: &mut parts[column..],
                part_stride: len,
                fused,
            };
            entries.accumulate(self.simd, &mut to);
        };
        let (whole, cutoff) = match &self.discard {
            None => return add(&self.all.part(rows.clone()), rows.start, 0, fused),
            Some((whole, None)) => {
                return add(
                    &whole.part(rows.clone(), 0..len).into(),
                    rows.start,
                    0,
                    fused,
                );
            }
            Some((whole, Some(cutoff))) => (*whole, cutoff),
        };
        for (rows, kept) in cutoff.kept(rows.clone()) {
            match kept {
                KeptEntries::All => add(
                    &whole.part(rows.clone(), 0..len).into(),
                    rows.start,
                    0,
                    fused,
                ),
                KeptEntries::Above { least, column } => {
                    let inside = whole.part(rows.clone(), column..len);
                    add(&inside.more_than(least).into(), rows.start, column, fused);
                    if column > 0 {
                        add(
                            &whole.part(rows.clone(), 0..column).into(),
                            rows.start,
                            0,
                            fused,
                        );
                    }
                }
                KeptEntries::ByEntry => {
                    for i in rows {
                        let row = &mut fused[..len];
                        cutoff.keep(self.simd, i..i + 1, whole, row);
                        let row = FusedEntries::new(row, len).part(0..1, 0..len);
                        add(&row.into(), i, 0, &mut []);
                    }
                }
            }
        }
    }
}

/// The whole fused map, where something is discarded: in `map`, `[len, len]`, of which each member makes a part, or where
/// it lies. Waits at a barrier where it has to be made.
///
/// # Safety
/// Nobody else reads or writes `map` before this, since the last barrier, nor writes it after, before the next.
pub(crate) unsafe fn whole_by_team<'a>(
    simd: Simd,
    member: Member<'_>,
    maps: ItemMaps<'a>,
    map: Shared<'a>,
) -> Option<FusedEntries<'a>> {
    maps.problem.config().discard?;
    if let Some(fused) = maps.fused() {
        return Some(fused);
    }
    let len = maps.len();
    let own = member.part(len);
    // SAFETY: every member writes rows of its own; for the rest the caller vouches.
    let rows = unsafe { map.get_mut(own.start * len..own.end * len) };
    maps.rows(own).fuse(simd, 1.0, rows);
    member.wait();
    // SAFETY: as the caller vouches.
    Some(FusedEntries::new(unsafe { map.get(0..len * len) }, len))
}

/// Writes the sums of the rows `fused`, `[rows, len]`, into `sums`.
pub(crate) fn row_sums(simd: Simd, fused: &[f32], len: usize, sums: &mut [f32]) {
    simd.for_rows(len).dispatch(RowSums { fused, len, sums });
}

/// Divides a row by its sum; a row whose sum is 0 becomes 0.
pub(crate) fn divide_by_sum(simd: Simd, row: &mut [f32]) {
    let mut sum = [0.0];
    row_sums(simd, row, row.len(), &mut sum);
    match sum[0] {
        0.0 => row.fill(0.0),
        divisor => simd.dispatch(Divide { row, divisor }),
    }
}

/// `row / divisor`.
struct Divide<'a> {
    row: &'a mut [f32],
    divisor: f32,
}

impl InnerLoop for Divide<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _lanes: L) {
        for entry in self.row {
            *entry /= self.divisor;
        }
    }
}

struct RowSums<'a> {
    fused: &'a [f32],
    len: usize,
    sums: &'a mut [f32],
}

impl InnerLoop for RowSums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        for (row, row_sum) in self.fused.chunks_exact(self.len).zip(self.sums) {
            *row_sum = sum(lanes, row);
        }
    }
}

#[inline(always)]
fn sum<L: Lanes>(lanes: L, row: &[f32]) -> f32 {
    if row.len() < L::LANES {
        return row.iter().sum();
    }
    // Two sums, since each waits for its last addition.
    let [mut even, mut odd] = [lanes.splat(0.0); 2];
    let pairs = row.chunks_exact(2 * L::LANES);
    let rest = pairs.remainder();
    for pair in pairs {
        even = lanes.add(even, lanes.load(pair));
        odd = lanes.add(odd, lanes.load(&pair[L::LANES..]));
    }
    if rest.len() >= L::LANES {
        even = lanes.add(even, lanes.load(rest));
    }
    // The last vector overlaps the one before.
    let done = L::LANES - row.len() % L::LANES;
    let last = lanes.load(&row[row.len() - L::LANES..]);
    odd = lanes.add(odd, lanes.join(done, lanes.splat(0.0), last));
    let mut lane_sums = [0.0; MOST_LANES];
    lanes.store(lanes.add(even, odd), &mut lane_sums);
    let mut half = MOST_LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lane_sums[lane] += lane_sums[lane + half];
        }
        half /= 2;
    }
    lane_sums[0]
}
