//! `head_fusion`: fused maps, in f32 or split for products.

use std::ops::Range;

use super::{Fused, Kernel, MapSource, Maps, Reading, example_shape};
use crate::config::{GradientRule, Output, RolloutConfig};
use crate::cuda::address::Address;
use crate::cuda::launch::{Geometry, Launch};
use crate::cuda::parameters::params;
use crate::cuda::variant::{Variant, flag, symbol};
use crate::error::Result;
use crate::problem::Problem;

/// Threads of a block.
const BLOCK: u32 = 256;

/// Blocks for each multiprocessor from which on it pays that there are half as many: predicted, most of all where each copies
/// its parameters.
const MANY_BLOCKS: u32 = 32;

params! {
    /// Parameters of `head_fusion`.
    HeadFusionParams {
        fused: Address,
        stride_layer: i64,
        stride_batch: i64,
        stride_row: i64,
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
    /// Fuses `layers` of `problem` for `items` of a run, on a device of so many multiprocessors; windows at most `window_len`
    /// tokens long.
    pub fn launch(
        &self,
        problem: &Problem,
        items: &Range<usize>,
        layers: &Range<usize>,
        window_len: u32,
        multiprocessors: u32,
        fused: Fused,
    ) -> Launch {
        let params = HeadFusionParams {
            fused: fused.maps.base,
            stride_layer: fused.stride_layer as i64,
            stride_batch: fused.maps.stride_batch,
            stride_row: fused.maps.stride_row,
            maps: Maps::new(problem, MapSource::Layers, layers, items),
        };
        let pairs =
            u64::from(window_len.div_ceil(2)) * u64::from(window_len.next_multiple_of(8) / 2);
        // A thread takes a pair of each of two rows; two where blocks are many, and more of very many.
        let blocks = pairs.div_ceil(BLOCK.into());
        let maps = (items.len() * layers.len()) as u64;
        let is_full = maps * blocks >= u64::from(MANY_BLOCKS * multiprocessors);
        let blocks = blocks.div_ceil(if is_full { 2 } else { 1 });
        let blocks = blocks.min(Geometry::MAX_SIDE.into());
        let grid = [items.len() as u32, blocks as u32, layers.len() as u32];
        let geometry = Geometry::new(grid, BLOCK);
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
        let name = symbol(
            "head_fusion",
            &[dtype.name(), fusion.name()],
            &[(gradients, "gradients"), (split, "split")],
        );
        // Entries of as many tensors.
        let heads_in_flight = if gradients { 2 } else { 4 };
        Variant {
            defines: vec![
                ("ELEMENT", dtype.name().to_owned()),
                fusion.define(),
                ("GRADIENTS", flag(gradients)),
                ("SPLIT", flag(split)),
                ("HEADS_IN_FLIGHT", heads_in_flight.to_string()),
                ("BLOCK_THREADS", BLOCK.to_string()),
            ],
            arch: if split { 80 } else { 75 },
            // All the threads that a multiprocessor of sm_75 can have; there are more on others.
            ..Variant::new("head_fusion", name, BLOCK, 4)
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
