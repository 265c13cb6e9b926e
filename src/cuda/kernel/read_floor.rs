//! `read_floor`: reads every byte once, and nothing else. Part of no rollout: measurements compare with it.

use crate::cuda::address::Address;
use crate::cuda::launch::{Geometry, Launch};
use crate::cuda::parameters::params;
use crate::cuda::variant::Variant;

const BLOCK: u32 = 256;
/// Granules that one thread takes in a turn: `IN_FLIGHT` of the kernel.
const IN_FLIGHT: u32 = 8;
/// What the bits that a thread has read must fold to for it to write them: as likely as any other number.
const UNLIKELY: u32 = 0x9e37_79b9;

params! {
    /// The arguments of `read_floor`, as they lie one after the other.
    ReadFloorParams {
        first: Address,
        granules: u64,
        unlikely: u32,
        reserved: u32,
        out: Address,
    }
}

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub struct ReadFloor;

impl ReadFloor {
    /// Bytes that are read at once; addresses are multiples of it.
    pub const GRANULE_BYTES: usize = 16;

    /// What it is compiled to.
    pub fn variant(&self) -> Variant {
        Variant {
            arguments: &[0, 1, 2, 3],
            ..Variant::new("read_floor", "read_floor".to_owned(), BLOCK, 8)
        }
    }

    /// Reads `bytes` bytes, to whole granules, from `first` with at most `blocks` blocks; could write to `out`.
    pub fn launch(&self, first: Address, bytes: usize, out: Address, blocks: u32) -> Launch {
        let granules = (bytes / ReadFloor::GRANULE_BYTES) as u64;
        let tiles = granules.div_ceil(u64::from(BLOCK * IN_FLIGHT));
        let params = ReadFloorParams {
            first,
            granules,
            unlikely: UNLIKELY,
            reserved: 0,
            out,
        };
        let geometry = Geometry::new([tiles.clamp(1, u64::from(blocks)) as u32, 1, 1], BLOCK);
        Launch::new(self.variant(), geometry, &params, 0)
    }
}
