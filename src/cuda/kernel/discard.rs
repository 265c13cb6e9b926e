//! `discard`: the cut between discarded and kept entries of each fused map.

use std::ops::Range;

use super::window::Scope;
use super::{Fused, Kernel, Window, example_discard, example_shape};
use crate::config::RolloutConfig;
use crate::cuda::address::{Address, Base};
use crate::cuda::launch::{Geometry, Launch};
use crate::cuda::limits::DeviceLimits;
use crate::cuda::parameters::params;
use crate::cuda::variant::{Variant, symbol};
use crate::dtype::DType;
use crate::error::Result;
use crate::problem::Problem;

const BLOCK: u32 = 512;

/// Blocks of a cluster. More need not be available.
const MOST_BLOCKS: usize = 8;

/// Entries that are worth a block. Of fewer, the blocks of a cluster would wait for each other longer than they count.
const BLOCK_ENTRIES: usize = 8192;

/// Blocks for each multiprocessor, where there are so many.
const BLOCKS_PER_MULTIPROCESSOR: usize = 2;

params! {
    /// Parameters of `discard`.
    DiscardParams {
        fused: Address,
        stride_layer: i64,
        stride_batch: i64,
        stride_row: i64,
        windows: Address,
        counts: Address,
        cuts: Address,
        batch: u32,
        layers: u32,
        causal: u32,
        discard_first: u32,
    }
}

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub struct FindCuts;

/// All there are.
pub(super) fn all() -> [FindCuts; 1] {
    [FindCuts]
}

impl FindCuts {
    /// Blocks to a map, where there are so many maps, with windows of at most `window_len` tokens: those of a cluster, where
    /// the device has clusters and too few maps to be busy.
    pub fn blocks(maps: usize, window_len: u32, limits: &DeviceLimits) -> u32 {
        let wanted = BLOCKS_PER_MULTIPROCESSOR * limits.multiprocessors as usize;
        let worth = (window_len as usize).pow(2) / BLOCK_ENTRIES;
        match limits.clusters {
            true => {
                let blocks = wanted.div_ceil(maps.max(1)).min(worth);
                blocks.next_power_of_two().min(MOST_BLOCKS) as u32
            }
            false => 1,
        }
    }

    /// The `cuts` of `layers` layers of `fused`, whose items are `items` of a run, each map by so many `blocks`.
    pub fn launch(
        &self,
        problem: &Problem,
        items: &Range<usize>,
        layers: usize,
        blocks: u32,
        fused: Fused,
        cuts: Address,
    ) -> Launch {
        let params = DiscardParams {
            fused: fused.maps.base,
            stride_layer: fused.stride_layer as i64,
            stride_batch: fused.maps.stride_batch,
            stride_row: fused.maps.stride_row,
            windows: Window::from_item(items.start),
            counts: Address::of(Base::Counts) + size_of::<u64>() * items.start,
            cuts,
            batch: items.len() as u32,
            layers: layers as u32,
            causal: problem.config().causal.into(),
            discard_first: Scope::of(problem).first,
        };
        let geometry = Geometry {
            cluster: blocks,
            ..Geometry::new([items.len() as u32, blocks, layers as u32], BLOCK)
        };
        Launch::new(self.variant(), geometry, &params, 0)
            .passing(items.len() * layers * fused.maps.bytes())
    }
}

impl Kernel for FindCuts {
    fn variant(&self) -> Variant {
        Variant {
            defines: vec![("BLOCK_THREADS", BLOCK.to_string())],
            // A histogram.
            static_shared_bytes: 16 << 10,
            ..Variant::new("discard", symbol("discard", &["f32"], &[]), BLOCK, 2)
        }
    }

    fn example(&self, layers: usize, tokens: usize) -> Result<Problem> {
        let config = RolloutConfig {
            discard: example_discard(true),
            ..RolloutConfig::default()
        };
        Problem::new(example_shape(layers, tokens), DType::F32, config)
    }
}
