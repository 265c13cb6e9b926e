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
const MOST_BLOCKS: u32 = 8;

/// What a block takes besides its entries, in entries that it would count meanwhile: predicted.
const BLOCK_ENTRIES: u64 = 16_384;

/// Static shared memory: histograms, ranks, and of a grouped launch the parameters.
const STATIC_SHARED_BYTES: u32 = 24 << 10;

/// Entries of a granule, and its bytes.
const GRANULE: u32 = 4;
const GRANULE_BYTES: u32 = 16;

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
        causal: u32,
        discard_first: u32,
        kept: u32,
    }
}

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub struct FindCuts;

/// How maps are divided.
#[derive(Clone, Copy, Debug)]
pub struct CutBlocks {
    /// Blocks to a map.
    pub blocks: u32,
    /// Granules that each of their threads keeps.
    kept: u32,
}

/// All there are.
pub(super) fn all() -> [FindCuts; 1] {
    [FindCuts]
}

impl FindCuts {
    /// Blocks to a map, where there are so many maps, with windows of at most `window_len` tokens: those of a cluster, where
    /// the device has clusters and too few maps to be busy.
    fn blocks(maps: usize, window_len: u32, limits: &DeviceLimits) -> u32 {
        if !limits.clusters {
            return 1;
        }
        let turns = |blocks: &u32| {
            let all = maps as u64 * u64::from(*blocks);
            let entries = u64::from(window_len).pow(2) / u64::from(*blocks);
            all.div_ceil(limits.multiprocessors.into()) * (entries + BLOCK_ENTRIES)
        };
        let blocks = (0..).map(|power| 1 << power);
        let blocks = blocks.take_while(|&blocks| blocks <= MOST_BLOCKS);
        blocks.min_by_key(turns).unwrap_or(1)
    }

    /// Granules that each thread of a block has of a map of `len` tokens, as far as they fit `shared_bytes`. Blocks that share a
    /// map have less, but a part of the items, whose maps are shared by more, may not need more room.
    fn kept(len: u32, shared_bytes: usize) -> u32 {
        let granules = (len / GRANULE).max(1);
        let rows = BLOCK / granules.min(BLOCK);
        let room = (shared_bytes as u32).saturating_sub(STATIC_SHARED_BYTES);
        (granules.div_ceil(BLOCK) * len.div_ceil(rows)).min(room / (BLOCK * GRANULE_BYTES))
    }

    /// How so many maps, with windows of at most `window_len` tokens, are divided.
    pub fn divide(maps: usize, window_len: u32, limits: &DeviceLimits) -> CutBlocks {
        CutBlocks {
            blocks: FindCuts::blocks(maps, window_len, limits),
            kept: FindCuts::kept(window_len, limits.shared_bytes_per_block),
        }
    }

    /// The `cuts` of `layers` layers of `fused`, whose items are `items` of a run.
    pub fn launch(
        &self,
        problem: &Problem,
        items: &Range<usize>,
        layers: usize,
        divided: CutBlocks,
        fused: Fused,
        cuts: Address,
    ) -> Launch {
        let CutBlocks { blocks, kept } = divided;
        let params = DiscardParams {
            fused: fused.maps.base,
            stride_layer: fused.stride_layer as i64,
            stride_batch: fused.maps.stride_batch,
            stride_row: fused.maps.stride_row,
            windows: Window::from_item(items.start),
            counts: Address::of(Base::Counts) + size_of::<u64>() * items.start,
            cuts,
            batch: items.len() as u32,
            causal: problem.config().causal.into(),
            discard_first: Scope::of(problem).first,
            kept,
        };
        let geometry = Geometry {
            shared_bytes: kept * BLOCK * GRANULE_BYTES,
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
            static_shared_bytes: STATIC_SHARED_BYTES,
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
