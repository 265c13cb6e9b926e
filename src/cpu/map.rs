//! One item's fused map of one layer, without what is discarded, handed out in blocks of rows.

use std::ops::Range;

use crate::cpu::discard::Cutoff;
use crate::cpu::fuse::ItemMaps;
use crate::cpu::simd::{Kernel, Lanes, MOST_LANES, Simd};
use crate::cpu::team::Shared;
use crate::input::HostLayer;
use crate::problem::Problem;

/// What a run of one problem reads and writes, its lengths checked.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    pub simd: Simd,
    pub problem: &'a Problem,
    /// Every layer of the problem.
    pub layers: &'a [HostLayer<'a>],
    /// The output of the whole problem.
    pub out: Shared<'a>,
}

impl<'a> Job<'a> {
    /// The maps of `item` in `layer`.
    pub fn maps(&self, layer: usize, item: usize) -> ItemMaps<'a> {
        ItemMaps {
            problem: self.problem,
            maps: self.layers[layer],
            layer,
            item,
        }
    }
}

/// One item's fused map of one layer.
pub(crate) struct FusedMap<'a> {
    pub simd: Simd,
    pub maps: ItemMaps<'a>,
    /// The whole map and what to zero in it, where something is discarded.
    discard: Option<(&'a [f32], Option<Cutoff>)>,
}

impl<'a> FusedMap<'a> {
    /// `whole` is the whole fused map `[len, len]` where something is discarded, else `None`; `keys` holds
    /// [`discard::keys`] to select from.
    pub fn new(simd: Simd, maps: ItemMaps<'a>, whole: Option<&'a [f32]>, keys: &mut [u32]) -> Self {
        let select = |map| {
            (
                map,
                Cutoff::select(simd, maps.problem, maps.item, map, keys),
            )
        };
        FusedMap {
            simd,
            maps,
            discard: whole.map(select),
        }
    }

    /// Something may be discarded.
    pub fn discards(&self) -> bool {
        self.discard.is_some()
    }

    /// Writes the rows `rows`, times `weight`, into `weighted`, `[rows, len]`.
    pub fn rows(&self, rows: Range<usize>, weight: f32, weighted: &mut [f32]) {
        let Some((whole, cutoff)) = &self.discard else {
            self.maps.rows(rows).fuse(self.simd, weight, weighted);
            return;
        };
        let len = self.maps.len();
        match cutoff {
            Some(cutoff) => cutoff.keep(self.simd, rows, whole, weighted),
            None => weighted.copy_from_slice(&whole[rows.start * len..rows.end * len]),
        }
        if weight != 1.0 {
            weighted.iter_mut().for_each(|entry| *entry *= weight);
        }
    }
}

/// Writes the sums of the rows `fused`, `[rows, len]`, into `sums`.
pub(crate) fn row_sums(simd: Simd, fused: &[f32], len: usize, sums: &mut [f32]) {
    simd.for_rows(len).dispatch(RowSums { fused, len, sums });
}

struct RowSums<'a> {
    fused: &'a [f32],
    len: usize,
    sums: &'a mut [f32],
}

impl Kernel for RowSums<'_> {
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
