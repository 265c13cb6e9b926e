//! What the kernels that consume maps are given: the maps of a problem, or fused ones.

use std::ops::Range;

use attention_rollout::cuda::geometry::Columns;
use attention_rollout::cuda::params::{
    DiscardParams, HeadFusionParams, LayerMaps, MAX_LAYERS_PER_LAUNCH, Maps,
};
use attention_rollout::cuda::variant::{Fusion, Variant};
use attention_rollout::{DType, Discard, DiscardScope};
use bytemuck::Zeroable;

use super::Device;

/// Fused maps of all layers in the problem's range.
pub(super) struct FusedBuffer {
    pub base: u64,
    pub stride_layer: i64,
    pub stride_batch: i64,
    pub stride_row: i64,
    pub cuts: u64,
}

impl Device<'_> {
    pub(super) fn discard(&self) -> (u32, u32) {
        match self.problem.config().discard {
            Some(Discard {
                scope: DiscardScope::Patches { special_tokens },
                ..
            }) => (special_tokens as u32, 0),
            _ => (0, 1),
        }
    }

    /// The division of columns, for aligned rows where they are.
    pub(super) fn columns(&self) -> Columns {
        let size = self.problem.dtype().size_bytes();
        let shape = self.problem.shape();
        let aligned = self.problem.layers().all(|layer| {
            let strides = self.problem.strides(layer);
            self.bases[layer].is_multiple_of(16)
                && [strides.row, strides.head, strides.batch]
                    .iter()
                    .all(|stride| (stride * size).is_multiple_of(16))
        }) && (0..shape.batch)
            .all(|item| (self.problem.windows()[item].start * size).is_multiple_of(16));
        Columns::new(self.problem.dtype(), self.window_len, aligned)
    }

    /// The maps of `layers` as they were given.
    pub(super) fn maps(&self, layers: Range<usize>) -> Maps {
        let shape = self.problem.shape();
        let (discard_first, discard_spares_origin) = self.discard();
        let mut maps = Maps {
            windows: self.windows,
            head_weights: self.head_weights,
            batch: shape.batch as u32,
            heads: shape.heads as u32,
            tokens: shape.tokens as u32,
            layers: layers.len() as u32,
            head_scale: 1.0 / shape.heads as f32,
            causal: self.problem.config().causal.into(),
            discard_first,
            discard_spares_origin,
            ..Maps::zeroed()
        };
        for (slot, layer) in layers.enumerate() {
            let strides = self.problem.strides(layer);
            let residual = self.problem.residual(layer);
            maps.layer[slot] = LayerMaps {
                base: self.bases[layer],
                stride_batch: strides.batch as i64,
                stride_head: strides.head as i64,
                stride_row: strides.row as i64,
                attention: residual.attention,
                identity: residual.identity,
            };
        }
        maps
    }

    /// Fuses the heads of all layers of the range, and finds the cuts where the problem discards.
    pub(super) fn fuse(&self) -> FusedBuffer {
        let shape = self.problem.shape();
        let range = self.problem.layers();
        let stride_row = shape.tokens.next_multiple_of(4);
        let stride_batch = shape.tokens * stride_row;
        let stride_layer = shape.batch * stride_batch;
        let mut buffer = FusedBuffer {
            base: self.floats(range.len() * stride_layer),
            stride_layer: stride_layer as i64,
            stride_batch: stride_batch as i64,
            stride_row: stride_row as i64,
            cuts: 0,
        };
        let columns = self.columns();
        let variant = Variant::HeadFusion {
            dtype: self.problem.dtype(),
            fusion: Fusion::from(&self.problem.config().head_fusion),
        };
        for first in range.clone().step_by(MAX_LAYERS_PER_LAUNCH) {
            let layers = first..range.end.min(first + MAX_LAYERS_PER_LAUNCH);
            let params = HeadFusionParams {
                fused: buffer.base + 4 * ((first - range.start) * stride_layer) as u64,
                stride_layer: buffer.stride_layer,
                stride_batch: buffer.stride_batch,
                stride_row: buffer.stride_row,
                chunk_columns: columns.chunk,
                chunks_per_block: columns.chunks_per_block,
                maps: self.maps(layers.clone()),
            };
            self.launch(variant, &self.extents(layers.len(), columns), &params);
        }
        if self.problem.config().discard.is_some() {
            let counts: Vec<u64> = (0..shape.batch)
                .map(|item| self.problem.discard_count(item) as u64)
                .collect();
            buffer.cuts = self.memory.alloc(8 * range.len() * shape.batch);
            let params = DiscardParams {
                fused: buffer.base,
                stride_layer: buffer.stride_layer,
                stride_batch: buffer.stride_batch,
                stride_row: buffer.stride_row,
                windows: self.windows,
                counts: self.upload(&counts),
                cuts: buffer.cuts,
                batch: shape.batch as u32,
                layers: range.len() as u32,
                causal: self.problem.config().causal.into(),
                discard_first: self.discard().0,
            };
            self.launch(
                Variant::Discard,
                &self.extents(range.len(), columns),
                &params,
            );
        }
        buffer
    }

    /// Fused maps in the place of a problem's own.
    pub(super) fn fused_maps(&self, buffer: &FusedBuffer, layers: Range<usize>) -> Maps {
        let first = layers.start - self.problem.layers().start;
        let batch = self.problem.shape().batch;
        let mut maps = self.maps(layers);
        maps.heads = 1;
        maps.head_scale = 1.0;
        maps.window_local = 1;
        maps.cuts = buffer.cuts + (8 * first * batch) as u64;
        for slot in 0..maps.layers as usize {
            let map = &mut maps.layer[slot];
            map.base = buffer.base + 4 * (first + slot) as u64 * buffer.stride_layer as u64;
            map.stride_batch = buffer.stride_batch;
            map.stride_head = 0;
            map.stride_row = buffer.stride_row;
        }
        maps
    }

    /// What a consumer of maps reads: the problem's maps, or fused ones where entries are discarded.
    pub(super) fn sources(&self) -> (DType, Fusion, Option<FusedBuffer>, Columns) {
        if self.problem.config().discard.is_some() {
            let columns = Columns::new(DType::F32, self.window_len, true);
            (DType::F32, Fusion::Mean, Some(self.fuse()), columns)
        } else {
            let fusion = Fusion::from(&self.problem.config().head_fusion);
            (self.problem.dtype(), fusion, None, self.columns())
        }
    }
}
