//! Fused maps in f32, as `head_fusion` writes them, and matrices that are multiplied with them: the twin of
//! `kernels/fused_maps.cuh`.

use std::ops::Range;

use super::window::{Scope, Window};
use crate::config::Residual;
use crate::cuda::address::Address;
use crate::cuda::parameters::params;
use crate::problem::Problem;

/// Elements of f32 in 16 bytes: rows of fused maps and states are padded to it.
const ROW_ALIGNMENT: usize = 4;

/// Padded length of a row of fused maps or states.
pub fn padded(len: usize) -> usize {
    len.next_multiple_of(ROW_ALIGNMENT)
}

params! {
    /// One f32 matrix per item.
    Matrices {
        base: Address,
        stride_batch: i64,
        stride_row: i64,
    }
}

params! {
    /// One layer of fused maps with all that turns them into `Ahat`.
    FusedMaps {
        base: Address,
        stride_batch: i64,
        stride_row: i64,
        windows: Address,
        cuts: Address,
        scales: Address,
        attention: f32,
        identity: f32,
        tokens: u32,
        causal: u32,
        discard_first: u32,
        discard_spares_origin: u32,
    }
}

impl Matrices {
    /// Matrices with rows of `stride_row` elements, `stride_batch` elements apart.
    pub fn new(base: Address, stride_batch: usize, stride_row: usize) -> Self {
        Matrices {
            base,
            stride_batch: stride_batch as i64,
            stride_row: stride_row as i64,
        }
    }

    /// The matrices without those of the first `items` items.
    pub fn skip_items(mut self, items: usize) -> Self {
        self.base = self.base + size_of::<f32>() * items * self.stride_batch as usize;
        self
    }

    /// Bytes of one matrix, with what lies between it and the next.
    pub(super) fn bytes(&self) -> usize {
        size_of::<f32>() * self.stride_batch as usize
    }
}

/// Fused maps of several layers in window coordinates, `[layers, items, len, len]` with rows padded to 16 bytes, and
/// the cuts `[layers, items]` where entries are discarded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fused {
    /// Those of the first layer.
    pub maps: Matrices,
    /// From one layer to the next, in elements.
    pub stride_layer: usize,
    /// One `u64` for each layer and item.
    pub cuts: Option<Address>,
    /// What the cuts discard is gone from the maps already.
    pub cut: bool,
}

impl Fused {
    /// The cuts that whoever reads the maps applies.
    pub fn cuts_when_read(&self) -> Option<Address> {
        self.cuts.filter(|_| !self.cut)
    }

    /// The maps of `items` items without those of the first `layers` layers.
    pub fn skip_layers(mut self, layers: usize, items: usize) -> Self {
        self.maps.base = self.maps.base + size_of::<f32>() * self.stride_layer * layers;
        self.cuts = self
            .cuts
            .map(|cuts| cuts + size_of::<u64>() * layers * items);
        self
    }
}

impl FusedMaps {
    /// The maps of one layer with its residual weights, for `items` of a run; nothing is discarded or normalised.
    pub fn new(
        problem: &Problem,
        items: &Range<usize>,
        maps: &Matrices,
        residual: Residual,
    ) -> Self {
        let scope = Scope::of(problem);
        FusedMaps {
            base: maps.base,
            stride_batch: maps.stride_batch,
            stride_row: maps.stride_row,
            windows: Window::from_item(items.start),
            cuts: Address::NULL,
            scales: Address::NULL,
            attention: residual.attention,
            identity: residual.identity,
            tokens: problem.shape().tokens as u32,
            causal: problem.config().causal.into(),
            discard_first: scope.first,
            discard_spares_origin: scope.spares_origin,
        }
    }

    /// Bytes of one item's map, with what lies between it and the next.
    pub(super) fn map_bytes(&self) -> usize {
        size_of::<f32>() * self.stride_batch as usize
    }

    /// Bytes of one item's state of `rows` rows, each padded to 16 bytes.
    pub(super) fn state_bytes(&self, rows: u32) -> usize {
        size_of::<f32>() * rows as usize * padded(self.tokens as usize)
    }
}
