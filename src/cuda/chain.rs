//! How a `rollout_chain` variant divides an item among blocks and warps, and the shared memory that takes: what
//! `kernels/rollout_chain.cu` is compiled with.

use super::limits::DeviceLimits;
use super::variant::Arithmetic;
use crate::dtype::DType;

const WARP: u32 = 32;
/// Rows of P that a warp holds sums of, and rows of a slab.
const GROUP_ROWS: u32 = 16;
/// Most tokens whose P one block holds in registers.
const BLOCK_TOKENS: u32 = 128;
/// Rows of P that a block of a cluster holds: four groups of two warps fill the registers of a multiprocessor.
const CLUSTER_BLOCK_ROWS: u32 = 64;
/// Heads whose granules are asked for together.
const HEADS_IN_FLIGHT: u32 = 4;

/// The division of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChainTile {
    /// Blocks that compute an item together.
    pub cluster: u32,
    /// Warps that share 16 rows of P.
    pub column_parts: u32,
    /// Warps of a block.
    pub warps: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

impl ChainTile {
    /// Units of 4 heads that a warp has room for. Five on their way in 8 warps are 43 KB, which covers the latency of
    /// DRAM (700 ns at 4.3 TB/s: 23 KB per multiprocessor); six fit the 99 KB of sm_86.
    pub const RING: u32 = 6;

    /// The division for windows of up to `tokens` tokens.
    pub const fn new(dtype: DType, arithmetic: Arithmetic, tokens: u32) -> Self {
        let (cluster, column_parts) = if tokens <= BLOCK_TOKENS {
            (1, 1)
        } else {
            (tokens / CLUSTER_BLOCK_ROWS, 2)
        };
        let warps = tokens / GROUP_ROWS / cluster * column_parts;
        let slab = GROUP_ROWS
            * match arithmetic {
                Arithmetic::F32 | Arithmetic::Tf32x3 => 2 * 4 * (tokens + 4),
                Arithmetic::F16x2 => 2 * (tokens + 8),
                Arithmetic::F16x3 => 2 * 2 * (tokens + 8),
            };
        let scales = 4 * (2 * tokens + warps);
        let state = match cluster {
            1 => 0,
            _ => 4 * CLUSTER_BLOCK_ROWS * (tokens + 8),
        };
        // A segment of a row, and the granule that a shift needs.
        let granules = match dtype {
            DType::F32 => 64 / 4 + 1,
            DType::F16 | DType::Bf16 if tokens < 128 => tokens / 8 + 1,
            DType::F16 | DType::Bf16 => 128 / 8 + 1,
        };
        let ring = warps * Self::RING * HEADS_IN_FLIGHT * granules * 16;
        ChainTile {
            cluster,
            column_parts,
            warps,
            shared_bytes: 2 * slab + scales + state + ring,
        }
    }

    /// Whether a device can launch it.
    pub fn fits(&self, limits: &DeviceLimits) -> bool {
        (self.cluster == 1 || limits.clusters)
            && self.shared_bytes as usize <= limits.shared_bytes_per_block
    }

    /// Threads of a block.
    pub const fn block(&self) -> u32 {
        self.warps * WARP
    }
}
