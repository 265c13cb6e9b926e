//! `rollout_chain`: all layers of an item multiplied in one block, or in one cluster of blocks.

use std::ops::Range;

use super::parts::WARP;
use super::{Arithmetic, Fusion, Kernel, MapSource, Maps, example_discard, example_shape};
use crate::config::{Output, RolloutConfig};
use crate::cuda::address::Address;
use crate::cuda::launch::{Geometry, Launch};
use crate::cuda::parameters::params;
use crate::cuda::variant::{Variant, flag, symbol};
use crate::dtype::DType;
use crate::error::Result;
use crate::problem::Problem;

/// Rows of P that a warp holds sums of, and rows of a slab.
const GROUP_ROWS: u32 = 16;
/// Rows of P that a block of a cluster holds: four groups of two warps fill the registers of a multiprocessor.
const CLUSTER_BLOCK_ROWS: u32 = 64;
/// Heads whose granules are asked for together.
const HEADS_IN_FLIGHT: u32 = 4;
/// Units of 4 heads that a warp has room for. Five on their way in 8 warps are 43 KB, which covers the latency of
/// DRAM (700 ns at 4.3 TB/s: 23 KB per multiprocessor); six fit the 99 KB of sm_86.
const RING: u32 = 6;

params! {
    /// Parameters of `rollout_chain`.
    RolloutChainParams {
        state: Address,
        out: Address,
        normalize: u32,
        reserved: u32,
        maps: Maps,
    }
}

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub struct RolloutChain {
    /// Element type of the maps.
    pub dtype: DType,
    /// How products are computed; not [`Arithmetic::F32`].
    pub arithmetic: Arithmetic,
    /// Most tokens of a window: 64, 128 or, with clusters of blocks, 256 ([`RolloutChain::TOKENS`]).
    pub tokens: u32,
    /// How heads become one map.
    pub fusion: Fusion,
    /// Fused f32 maps (`heads = 1`, mean) with cuts.
    pub discard: bool,
}

/// All there are.
pub(super) fn all() -> impl IntoIterator<Item = RolloutChain> {
    let arithmetics = [Arithmetic::F16x3, Arithmetic::F16x2, Arithmetic::Tf32x3];
    super::map_readers().flat_map(move |(dtype, fusion, discard)| {
        arithmetics.into_iter().flat_map(move |arithmetic| {
            RolloutChain::TOKENS.map(|tokens| RolloutChain {
                dtype,
                arithmetic,
                tokens,
                fusion,
                discard,
            })
        })
    })
}

impl RolloutChain {
    /// Most tokens whose P one block holds in registers.
    pub const BLOCK_TOKENS: u32 = 128;

    /// Token limits of the variants.
    pub const TOKENS: [u32; 3] = [64, 128, 256];

    /// The matrix of `problem` over `layers`, for `items` of a run, into `out`; where it `resumes`, `out` holds the
    /// product of the later layers.
    pub fn launch(
        &self,
        problem: &Problem,
        source: MapSource,
        layers: &Range<usize>,
        items: &Range<usize>,
        out: Address,
        resumes: bool,
    ) -> Launch {
        let params = RolloutChainParams {
            state: if resumes { out } else { Address::NULL },
            out,
            normalize: problem.config().normalize_rows.into(),
            reserved: 0,
            maps: Maps::new(problem, source, layers, items),
        };
        let geometry = Geometry {
            grid: [items.len() as u32 * self.cluster(), 1, 1],
            block: WARP * self.warps(),
            shared_bytes: self.shared_bytes(),
            cluster: 1,
            cooperative: false,
        };
        let unused = params.maps.unused_bytes();
        Launch::new(self.variant(), geometry, &params, unused)
    }

    /// Blocks that compute an item together.
    pub const fn cluster(&self) -> u32 {
        match self.tokens {
            0..=RolloutChain::BLOCK_TOKENS => 1,
            tokens => tokens / CLUSTER_BLOCK_ROWS,
        }
    }

    /// Warps that share 16 rows of P.
    const fn column_parts(&self) -> u32 {
        match self.cluster() {
            1 => 1,
            _ => 2,
        }
    }

    /// Warps of a block.
    const fn warps(&self) -> u32 {
        self.tokens / GROUP_ROWS / self.cluster() * self.column_parts()
    }

    /// Dynamic shared memory of a block.
    const fn shared_bytes(&self) -> u32 {
        let tokens = self.tokens;
        let slab = GROUP_ROWS
            * match self.arithmetic {
                Arithmetic::F32 | Arithmetic::Tf32x3 => 2 * 4 * (tokens + 4),
                Arithmetic::F16x2 => 2 * (tokens + 8),
                Arithmetic::F16x3 => 2 * 2 * (tokens + 8),
            };
        let scales = 4 * (2 * tokens + self.warps());
        let state = match self.cluster() {
            1 => 0,
            _ => 4 * CLUSTER_BLOCK_ROWS * (tokens + 8),
        };
        // A segment of a row, and the granule that a shift needs.
        let granules = match self.dtype {
            DType::F32 => 64 / 4 + 1,
            DType::F16 | DType::Bf16 if tokens < 128 => tokens / 8 + 1,
            DType::F16 | DType::Bf16 => 128 / 8 + 1,
        };
        let ring = self.warps() * RING * HEADS_IN_FLIGHT * granules * 16;
        2 * slab + scales + state + ring
    }
}

impl Kernel for RolloutChain {
    fn variant(&self) -> Variant {
        let RolloutChain {
            dtype,
            arithmetic,
            tokens,
            fusion,
            discard,
        } = *self;
        let limit = format!("n{tokens}");
        let parts = [dtype.name(), arithmetic.name(), &limit, fusion.name()];
        Variant {
            stem: "rollout_chain",
            symbol: symbol("rollout_chain", &parts, &[(discard, "discard")]),
            defines: vec![
                ("ELEMENT", dtype.name().to_owned()),
                arithmetic.define(),
                fusion.define(),
                ("MAX_TOKENS", tokens.to_string()),
                ("CLUSTER", self.cluster().to_string()),
                ("COLUMN_PARTS", self.column_parts().to_string()),
                ("RING", RING.to_string()),
                ("SHARED_BYTES", self.shared_bytes().to_string()),
                ("DISCARD", flag(discard)),
            ],
            arguments: &[0],
            arch: if self.cluster() > 1 { 90 } else { 80 },
            block: WARP * self.warps(),
            // All the registers that a thread can have.
            blocks_per_multiprocessor: 1,
            grouped_blocks_per_multiprocessor: 1,
            // What every architecture has.
            static_shared_bytes: 48 << 10,
            shared_bytes: self.shared_bytes(),
            cluster: self.cluster(),
            queues: false,
        }
    }

    fn example(&self, layers: usize, _: usize) -> Result<Problem> {
        let config = RolloutConfig {
            head_fusion: self.fusion.of_three_heads(),
            discard: example_discard(self.discard),
            output: Output::Matrix,
            ..RolloutConfig::default()
        };
        let shape = example_shape(layers, self.tokens as usize - 3);
        Problem::new(shape, self.dtype, config)
    }
}
