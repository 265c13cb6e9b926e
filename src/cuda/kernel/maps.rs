//! The maps of several layers as kernels read them that fuse heads, and how these divide the columns of a row: the twin
//! of `kernels/fuse.cuh`.

use std::ops::Range;

use bytemuck::Zeroable;

use super::fused::Fused;
use super::parts::WARP;
use super::window::{Scope, Window};
use crate::config::GradientRule;
use crate::cuda::address::{Address, Base};
use crate::cuda::parameters::params;
use crate::dtype::DType;
use crate::problem::Problem;

/// Layers one launch can take.
pub const MAX_LAYERS_PER_LAUNCH: usize = 64;

/// Most warps of a block of a kernel that divides columns.
pub const MAX_WARPS: u32 = 8;

params! {
    /// The maps of one layer and its residual weights.
    LayerMaps {
        base: Address,
        gradients: Address,
        stride_batch: i64,
        stride_head: i64,
        stride_row: i64,
        attention: f32,
        identity: f32,
    }
}

params! {
    /// The maps of a launch's layers and how they become fused entries.
    Maps {
        windows: Address,
        head_weights: Address,
        cuts: Address,
        batch: u32,
        heads: u32,
        tokens: u32,
        layers: u32,
        head_scale: f32,
        window_local: u32,
        causal: u32,
        discard_first: u32,
        discard_spares_origin: u32,
        rectify_fused: u32,
        layer: [LayerMaps; MAX_LAYERS_PER_LAUNCH],
    }
}

/// Where a kernel that fuses heads finds its maps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MapSource {
    /// The caller's layers.
    Layers,
    /// Fused maps, the first layer of which is the launch's first.
    Fused(Fused),
}

impl MapSource {
    /// The source for a launch that begins `layers` layers later.
    pub fn skip_layers(self, layers: usize, items: usize) -> Self {
        match self {
            MapSource::Layers => MapSource::Layers,
            MapSource::Fused(fused) => MapSource::Fused(fused.skip_layers(layers, items)),
        }
    }
}

impl Maps {
    /// The maps of `layers` of `problem` for `items` of a run.
    pub fn new(
        problem: &Problem,
        source: MapSource,
        layers: &Range<usize>,
        items: &Range<usize>,
    ) -> Self {
        let shape = problem.shape();
        let (heads, cuts) = match source {
            MapSource::Layers => (shape.heads, None),
            MapSource::Fused(fused) => (1, fused.cuts_when_read()),
        };
        let scope = Scope::of(problem);
        let rule = problem.config().gradients;
        let mut maps = Maps {
            windows: Window::from_item(items.start),
            head_weights: Address::of(Base::HeadWeights),
            cuts: cuts.unwrap_or(Address::NULL),
            batch: items.len() as u32,
            heads: heads as u32,
            tokens: shape.tokens as u32,
            layers: layers.len() as u32,
            head_scale: 1.0 / heads as f32,
            window_local: matches!(source, MapSource::Fused(_)).into(),
            causal: problem.config().causal.into(),
            discard_first: scope.first,
            discard_spares_origin: scope.spares_origin,
            rectify_fused: (rule == Some(GradientRule::Fused)).into(),
            layer: [LayerMaps::zeroed(); MAX_LAYERS_PER_LAUNCH],
        };
        for (index, (layer, slot)) in layers.clone().zip(&mut maps.layer).enumerate() {
            *slot = match source.skip_layers(index, items.len()) {
                MapSource::Layers => LayerMaps::of_layer(problem, layer, items.start),
                MapSource::Fused(fused) => LayerMaps::of_fused(problem, layer, &fused),
            };
        }
        maps
    }

    /// Bytes at the end that a kernel does not look at.
    pub(super) fn unused_bytes(&self) -> usize {
        (MAX_LAYERS_PER_LAUNCH - self.layers as usize) * size_of::<LayerMaps>()
    }
}

impl LayerMaps {
    fn of_layer(problem: &Problem, layer: usize, first_item: usize) -> Self {
        let strides = problem.strides(layer);
        let first_byte = first_item * strides.batch * problem.dtype().size_bytes();
        let tensor = |operand| Address::of(Base::Layer { layer, operand }) + first_byte;
        let residual = problem.residual(layer);
        LayerMaps {
            base: tensor(0),
            gradients: match problem.config().gradients {
                Some(_) => tensor(1),
                None => Address::NULL,
            },
            stride_batch: strides.batch as i64,
            stride_head: strides.head as i64,
            stride_row: strides.row as i64,
            attention: residual.attention,
            identity: residual.identity,
        }
    }

    fn of_fused(problem: &Problem, layer: usize, fused: &Fused) -> Self {
        let residual = problem.residual(layer);
        LayerMaps {
            base: fused.maps.base,
            gradients: Address::NULL,
            stride_batch: fused.maps.stride_batch,
            stride_head: 0,
            stride_row: fused.maps.stride_row,
            attention: residual.attention,
            identity: residual.identity,
        }
    }
}

/// How `rollout_rows` divides the columns of a row over warps.
///
/// A lane owns the elements of 16 bytes. Where rows are not 16-byte aligned, the 32 lanes load 32 aligned granules and
/// shift them into 31.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Columns of one warp (`chunk_columns` of the parameters).
    pub chunk: u32,
    /// Warps that share a row (`chunks_per_block` of the parameters).
    pub chunks_per_block: u32,
    /// Blocks that share a row. More than one: `rollout_rows` takes one layer per launch and cannot normalise.
    pub tiles: u32,
}

impl Columns {
    /// The division for rows of `window_len` columns (the longest window) of `dtype`. `aligned`: every row of every
    /// window starts at a multiple of 16 bytes.
    pub const fn new(dtype: DType, window_len: u32, aligned: bool) -> Self {
        let granule = 16 / dtype.size_bytes() as u32;
        let granules = match window_len.div_ceil(granule) {
            0 => 1,
            granules => granules,
        };
        let chunks = granules.div_ceil(if aligned { WARP } else { WARP - 1 });
        let tiles = chunks.div_ceil(MAX_WARPS);
        Columns {
            chunk: granules.div_ceil(chunks) * granule,
            chunks_per_block: chunks.div_ceil(tiles),
            tiles,
        }
    }

    /// Rows a block works on at the same time.
    pub const fn row_groups(&self) -> u32 {
        MAX_WARPS / self.chunks_per_block
    }

    /// Threads of a block.
    pub(super) const fn block(&self) -> u32 {
        WARP * self.row_groups() * self.chunks_per_block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_cover_the_window_and_fit_the_warps() {
        for dtype in DType::ALL {
            for aligned in [false, true] {
                let granule = 16 / dtype.size_bytes() as u32;
                for len in 1..5000 {
                    let columns = Columns::new(dtype, len, aligned);
                    let Columns {
                        chunk,
                        chunks_per_block,
                        tiles,
                    } = columns;
                    assert!(chunk * chunks_per_block * tiles >= len);
                    assert_eq!(chunk % granule, 0);
                    assert!(chunk / granule <= if aligned { 32 } else { 31 });
                    assert!((1..=MAX_WARPS).contains(&chunks_per_block));
                    assert!(columns.block() <= 256);
                }
            }
        }
    }
}
