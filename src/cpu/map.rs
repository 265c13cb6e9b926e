//! One item's fused map of one layer, without what is discarded, handed out in blocks of rows.

use std::ops::Range;

use crate::cpu::discard::Cutoff;
use crate::cpu::fuse::ItemMaps;
use crate::cpu::simd::{Kernel, LANES, Lanes, Simd};
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
    /// `whole` is the whole fused map `[len, len]` where something is discarded, else `None`; `keys` holds as many
    /// keys to select from.
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

    /// Writes the rows `rows` into `fused`, `[rows, len]`.
    pub fn rows(&self, rows: Range<usize>, fused: &mut [f32]) {
        let len = self.maps.len();
        match &self.discard {
            None => self.maps.fuse(self.simd, rows, fused),
            Some((whole, cutoff)) => {
                fused.copy_from_slice(&whole[rows.start * len..rows.end * len]);
                if let Some(cutoff) = cutoff {
                    cutoff.apply(self.simd, rows, len, fused);
                }
            }
        }
    }

    /// Sum of one of the rows, in f32.
    pub fn row_sum(&self, row: &[f32]) -> f32 {
        self.simd.dispatch(Sum(row))
    }
}

struct Sum<'a>(&'a [f32]);

impl Kernel for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self, _lanes: L) -> f32 {
        let (vectors, rest) = self.0.as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        for vector in vectors {
            for (sum, value) in sums.iter_mut().zip(vector) {
                *sum += value;
            }
        }
        sums.iter().sum::<f32>() + rest.iter().sum::<f32>()
    }
}
