//! Gives the steps of a schedule their addresses: what a kernel's parameters are, field by field.

use std::ops::Range;

use bytemuck::{Zeroable, bytes_of};

use super::constants::Constants;
use super::geometry::Columns;
use super::params::{
    DiscardParams, FusedMaps, HeadFusionParams, LayerMaps, MAX_LAYERS_PER_LAUNCH, Maps, Matrices,
    RolloutChainParams, RolloutFirstParams, RolloutProductParams, RolloutRowsParams,
    RowScalesParams, Window, ZeroFillParams,
};
use super::schedule::{Factor, Fused, Matrix, Place, Region, Source, Step, Work};
use crate::config::{DiscardScope, Residual};
use crate::problem::Problem;

/// Where everything lies in one run.
#[derive(Clone, Copy)]
pub(super) struct Addresses<'a> {
    pub workspace: u64,
    pub constants: u64,
    pub output: u64,
    /// First address of every layer of the problem.
    pub layers: &'a [u64],
}

/// The parameters of one launch. Built, launched and dropped, so their size does not matter.
#[allow(clippy::large_enum_variant)]
pub(super) enum Params {
    ZeroFill(ZeroFillParams),
    RolloutRows(RolloutRowsParams),
    RolloutChain(RolloutChainParams),
    HeadFusion(HeadFusionParams),
    Discard(DiscardParams),
    RowScales(RowScalesParams),
    RolloutFirst(RolloutFirstParams),
    RolloutProduct(RolloutProductParams),
}

impl Params {
    /// The kernel's one argument.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Params::ZeroFill(params) => bytes_of(params),
            Params::RolloutRows(params) => bytes_of(params),
            Params::RolloutChain(params) => bytes_of(params),
            Params::HeadFusion(params) => bytes_of(params),
            Params::Discard(params) => bytes_of(params),
            Params::RowScales(params) => bytes_of(params),
            Params::RolloutFirst(params) => bytes_of(params),
            Params::RolloutProduct(params) => bytes_of(params),
        }
    }

    /// As many of the bytes as the kernel looks at: maps end with their last layer.
    pub fn used(&self) -> &[u8] {
        let bytes = self.bytes();
        let layers = match self {
            Params::RolloutRows(RolloutRowsParams { maps, .. })
            | Params::RolloutChain(RolloutChainParams { maps, .. })
            | Params::HeadFusion(HeadFusionParams { maps, .. }) => maps.layers as usize,
            _ => return bytes,
        };
        &bytes[..bytes.len() - (MAX_LAYERS_PER_LAUNCH - layers) * size_of::<LayerMaps>()]
    }
}

/// Everything that parameters are made of besides the step itself.
pub(super) struct Binder<'a> {
    pub problem: &'a Problem,
    pub constants: &'a Constants,
    pub addresses: Addresses<'a>,
    /// The problem's item that is item 0 of the layers and the output.
    pub first_item: usize,
}

impl Binder<'_> {
    /// The address of a place.
    pub fn address(&self, place: Place) -> u64 {
        let base = match place.region {
            Region::Workspace => self.addresses.workspace,
            Region::Constants => self.addresses.constants,
            Region::Output => self.addresses.output,
        };
        base + place.offset as u64
    }

    /// The parameters of `step`.
    pub fn params(&self, step: &Step, columns: Columns) -> Params {
        let items = &step.items;
        match &step.work {
            Work::ZeroFill { out, len } => Params::ZeroFill(ZeroFillParams {
                out: self.address(*out),
                len: *len as u64,
            }),
            Work::RolloutRows {
                source,
                layers,
                cuts,
                partials_in,
                partials_out,
            } => {
                let start = self.constants.start;
                let rows = self.problem.start_rows() * self.problem.shape().tokens;
                Params::RolloutRows(RolloutRowsParams {
                    start: self.constant(start.offset + 4 * self.item(items) * start.stride_batch),
                    start_stride_batch: start.stride_batch as i64,
                    partials_in: self.optional(partials_in.map(|(place, _)| place)),
                    partials_out: self.optional(*partials_out),
                    out: self.output(items.start * rows),
                    start_rows: self.problem.start_rows() as u32,
                    splits_in: partials_in.map_or(0, |(_, splits)| splits),
                    chunk_columns: columns.chunk,
                    chunks_per_block: columns.chunks_per_block,
                    maps: self.maps(*source, layers, items, *cuts),
                })
            }
            Work::RolloutChain {
                source,
                layers,
                cuts,
                resumes,
            } => {
                let tokens = self.problem.shape().tokens;
                let out = self.output(items.start * tokens * tokens);
                Params::RolloutChain(RolloutChainParams {
                    state: if *resumes { out } else { 0 },
                    out,
                    maps: self.maps(*source, layers, items, *cuts),
                })
            }
            Work::HeadFusion { layers, fused } => Params::HeadFusion(HeadFusionParams {
                fused: self.address(fused.maps.place),
                stride_layer: fused.stride_layer as i64,
                stride_batch: fused.maps.stride_batch as i64,
                stride_row: fused.maps.stride_row as i64,
                chunk_columns: columns.chunk,
                chunks_per_block: columns.chunks_per_block,
                maps: self.maps(Source::Layers, layers, items, None),
            }),
            Work::Discard {
                fused,
                layers,
                cuts,
            } => {
                let (discard_first, _) = self.discard_scope();
                Params::Discard(DiscardParams {
                    fused: self.address(fused.maps.place),
                    stride_layer: fused.stride_layer as i64,
                    stride_batch: fused.maps.stride_batch as i64,
                    stride_row: fused.maps.stride_row as i64,
                    windows: self.windows(items),
                    counts: self.constant(self.constants.counts + 8 * self.item(items)),
                    cuts: self.address(*cuts),
                    batch: items.len() as u32,
                    layers: *layers as u32,
                    causal: self.problem.config().causal.into(),
                    discard_first,
                })
            }
            Work::RowScales { factor, scales } => Params::RowScales(RowScalesParams {
                maps: self.factor(factor, items),
                scales: self.address(*scales),
            }),
            Work::RolloutFirst {
                factor,
                out,
                windowed,
            } => Params::RolloutFirst(RolloutFirstParams {
                maps: self.factor(factor, items),
                out: self.matrices(out),
                out_windowed: (*windowed).into(),
                reserved: 0,
            }),
            Work::RolloutProduct {
                factor,
                state,
                out,
                rows,
                windowed,
            } => Params::RolloutProduct(RolloutProductParams {
                maps: self.factor(factor, items),
                state: self.matrices(state),
                out: self.matrices(out),
                rows: *rows,
                out_windowed: (*windowed).into(),
            }),
        }
    }

    /// The maps of a launch's layers.
    fn maps(
        &self,
        source: Source,
        layers: &Range<usize>,
        items: &Range<usize>,
        cuts: Option<Place>,
    ) -> Maps {
        let shape = self.problem.shape();
        let (discard_first, discard_spares_origin) = self.discard_scope();
        let heads = match source {
            Source::Layers => shape.heads,
            Source::Fused(_) => 1,
        };
        let mut maps = Maps {
            windows: self.windows(items),
            head_weights: self.constant(self.constants.head_weights),
            cuts: self.optional(cuts),
            batch: items.len() as u32,
            heads: heads as u32,
            tokens: shape.tokens as u32,
            layers: layers.len() as u32,
            head_scale: 1.0 / heads as f32,
            window_local: matches!(source, Source::Fused(_)).into(),
            causal: self.problem.config().causal.into(),
            discard_first,
            discard_spares_origin,
            reserved: 0,
            layer: [LayerMaps::zeroed(); MAX_LAYERS_PER_LAUNCH],
        };
        for (index, layer) in layers.clone().enumerate() {
            maps.layer[index] = match source {
                Source::Layers => self.layer_maps(layer, items),
                Source::Fused(fused) => self.fused_maps(layer, &fused, index),
            };
        }
        maps
    }

    fn layer_maps(&self, layer: usize, items: &Range<usize>) -> LayerMaps {
        let strides = self.problem.strides(layer);
        let offset = items.start * strides.batch * self.problem.dtype().size_bytes();
        let Residual {
            attention,
            identity,
        } = self.problem.residual(layer);
        LayerMaps {
            base: self.addresses.layers[layer] + offset as u64,
            stride_batch: strides.batch as i64,
            stride_head: strides.head as i64,
            stride_row: strides.row as i64,
            attention,
            identity,
        }
    }

    fn fused_maps(&self, layer: usize, fused: &Fused, index: usize) -> LayerMaps {
        let Matrices {
            base,
            stride_batch,
            stride_row,
        } = self.matrices(&fused.layer(index));
        let Residual {
            attention,
            identity,
        } = self.problem.residual(layer);
        LayerMaps {
            base,
            stride_batch,
            stride_head: 0,
            stride_row,
            attention,
            identity,
        }
    }

    fn factor(&self, factor: &Factor, items: &Range<usize>) -> FusedMaps {
        let Matrices {
            base,
            stride_batch,
            stride_row,
        } = self.matrices(&factor.maps);
        let residual = match factor.layer {
            Some(layer) => self.problem.residual(layer),
            None => Residual::new(1.0, 0.0),
        };
        let (discard_first, discard_spares_origin) = self.discard_scope();
        FusedMaps {
            base,
            stride_batch,
            stride_row,
            windows: self.windows(items),
            cuts: self.optional(factor.cuts),
            scales: self.optional(factor.scales),
            attention: residual.attention,
            identity: residual.identity,
            tokens: self.problem.shape().tokens as u32,
            causal: self.problem.config().causal.into(),
            discard_first,
            discard_spares_origin,
        }
    }

    fn matrices(&self, matrix: &Matrix) -> Matrices {
        // Constants are those of all items of the problem, everything else of the items of this run.
        let skipped = match matrix.place.region {
            Region::Constants => 4 * self.first_item * matrix.stride_batch,
            Region::Workspace | Region::Output => 0,
        };
        Matrices {
            base: self.address(matrix.place) + skipped as u64,
            stride_batch: matrix.stride_batch as i64,
            stride_row: matrix.stride_row as i64,
        }
    }

    /// First token that takes part in discard, and whether entry (first, first) is spared.
    fn discard_scope(&self) -> (u32, u32) {
        match self.problem.config().discard.map(|discard| discard.scope) {
            None => (0, 0),
            Some(DiscardScope::Map) => (0, 1),
            Some(DiscardScope::Patches { special_tokens }) => {
                (special_tokens.min(self.problem.shape().tokens) as u32, 0)
            }
        }
    }

    fn windows(&self, items: &Range<usize>) -> u64 {
        self.constant(self.constants.windows + size_of::<Window>() * self.item(items))
    }

    /// The problem's item that is the first of `items`.
    fn item(&self, items: &Range<usize>) -> usize {
        self.first_item + items.start
    }

    fn constant(&self, offset: usize) -> u64 {
        self.addresses.constants + offset as u64
    }

    /// Element `index` of the output.
    fn output(&self, index: usize) -> u64 {
        self.addresses.output + 4 * index as u64
    }

    fn optional(&self, place: Option<Place>) -> u64 {
        place.map_or(0, |place| self.address(place))
    }
}
