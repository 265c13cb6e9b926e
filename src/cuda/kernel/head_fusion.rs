//! `head_fusion`: fused maps, in f32 or split for products.

use std::ops::Range;

use super::maps::MAX_WARPS;
use super::parts::WARP;
use super::{Columns, Fused, Kernel, MapSource, Maps, Reading, example_shape};
use crate::config::{GradientRule, Output, RolloutConfig};
use crate::cuda::address::Address;
use crate::cuda::launch::{Geometry, Launch};
use crate::cuda::parameters::params;
use crate::cuda::variant::{Variant, flag, symbol};
use crate::error::Result;
use crate::problem::Problem;

params! {
    /// Parameters of `head_fusion`.
    HeadFusionParams {
        fused: Address,
        stride_layer: i64,
        stride_batch: i64,
        stride_row: i64,
        chunk_columns: u32,
        chunks_per_block: u32,
        maps: Maps,
    }
}

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub struct FuseHeads {
    /// What it reads.
    pub reading: Reading,
    /// Fused maps are split as `split_product` takes them.
    pub split: bool,
}

/// All there are. Entries that gradients weigh have no bound, so they are not split.
pub(super) fn all() -> impl IntoIterator<Item = FuseHeads> {
    let all = |split| Reading::all().map(move |reading| FuseHeads { reading, split });
    let unweighed = |kernel: &FuseHeads| !kernel.reading.gradients;
    all(false).chain(all(true).filter(unweighed))
}

impl FuseHeads {
    /// Fuses `layers` of `problem` for `items` of a run, rows divided as `columns` says; windows at most `window_len`
    /// tokens long.
    pub fn launch(
        &self,
        problem: &Problem,
        items: &Range<usize>,
        layers: &Range<usize>,
        window_len: u32,
        columns: Columns,
        fused: Fused,
    ) -> Launch {
        let params = HeadFusionParams {
            fused: fused.maps.base,
            stride_layer: fused.stride_layer as i64,
            stride_batch: fused.maps.stride_batch,
            stride_row: fused.maps.stride_row,
            chunk_columns: columns.chunk,
            chunks_per_block: columns.chunks_per_block,
            maps: Maps::new(problem, MapSource::Layers, layers, items),
        };
        let geometry = Geometry {
            grid: [
                items.len() as u32,
                // A warp takes a row, or more of very many.
                window_len
                    .div_ceil(columns.row_groups())
                    .min(Geometry::MAX_SIDE),
                layers.len() as u32 * columns.tiles,
            ],
            block: columns.block(),
            shared_bytes: 0,
            cluster: 1,
            cooperative: false,
        };
        let unused = params.maps.unused_bytes();
        Launch::new(self.variant(), geometry, &params, unused)
            .passing(2 * items.len() * layers.len() * fused.maps.bytes())
    }
}

impl Kernel for FuseHeads {
    fn variant(&self) -> Variant {
        let Reading {
            dtype,
            fusion,
            gradients,
        } = self.reading;
        let split = self.split;
        // Gradients take as many registers again as the maps.
        let blocks = if gradients { 2 } else { 3 };
        Variant {
            stem: "head_fusion",
            symbol: symbol(
                "head_fusion",
                &[dtype.name(), fusion.name()],
                &[(gradients, "gradients"), (split, "split")],
            ),
            defines: vec![
                ("ELEMENT", dtype.name().to_owned()),
                fusion.define(),
                ("GRADIENTS", flag(gradients)),
                ("SPLIT", flag(split)),
                ("BLOCKS", blocks.to_string()),
                ("HEADS_IN_FLIGHT", 4.to_string()),
                ("MAX_WARPS", MAX_WARPS.to_string()),
            ],
            arguments: &[0],
            arch: if split { 80 } else { 75 },
            block: MAX_WARPS * WARP,
            blocks_per_multiprocessor: blocks,
            grouped_blocks_per_multiprocessor: blocks,
            static_shared_bytes: 0,
            shared_bytes: 0,
            cluster: 1,
            queues: false,
        }
    }

    fn example(&self, layers: usize, tokens: usize) -> Result<Problem> {
        let config = RolloutConfig {
            head_fusion: self.reading.fusion.of_three_heads(),
            gradients: self.reading.gradients.then_some(GradientRule::Heads),
            output: match self.split {
                true => Output::Matrix,
                false => Output::Cumulative,
            },
            ..RolloutConfig::default()
        };
        Problem::new(example_shape(layers, tokens), self.reading.dtype, config)
    }
}
