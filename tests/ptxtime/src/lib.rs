#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod budget;
mod cost;
mod launch;
mod line;
mod machine;
mod mechanism;
mod memory;
mod order;
mod program;
mod replay;
mod table;
mod take;
mod timeline;

pub use launch::{Bytes, Timing, Waits};
pub use line::{Line, LineError};
pub use machine::Machine;
pub use mechanism::Mechanism;
pub use table::{Agreement, Compared, Row, rows};
pub use take::{Taker, compiler};
pub use timeline::Timeline;

use ptxemu::trace::sector_of;
use std::fmt;

/// What a warp waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wait {
    /// The result of arithmetic.
    Arithmetic,
    /// A matrix product: its result, or its tensor core.
    Mma,
    /// Its scheduler, or a pipe: others issue.
    Issue,
    /// Shared memory.
    Shared,
    /// L1.
    L1,
    /// L2, which is not busy.
    L2Latency,
    /// L2, or the port to it, which is.
    L2Bytes,
    /// DRAM, which is not busy.
    DramLatency,
    /// DRAM, which is.
    DramBytes,
    /// Other warps of its block, in a barrier.
    Barrier,
    /// Other blocks of its cluster.
    Cluster,
}

impl Wait {
    /// All of them.
    pub const ALL: [Wait; 11] = [
        Wait::Arithmetic,
        Wait::Mma,
        Wait::Issue,
        Wait::Shared,
        Wait::L1,
        Wait::L2Latency,
        Wait::L2Bytes,
        Wait::DramLatency,
        Wait::DramBytes,
        Wait::Barrier,
        Wait::Cluster,
    ];

    /// Whether it is a wait for global memory beyond L1.
    pub fn is_load(self) -> bool {
        matches!(
            self,
            Wait::L2Latency | Wait::L2Bytes | Wait::DramLatency | Wait::DramBytes
        )
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Wait::Arithmetic => "arithmetic",
            Wait::Mma => "mma",
            Wait::Issue => "issue",
            Wait::Shared => "shared memory",
            Wait::L1 => "L1",
            Wait::L2Latency => "L2 latency",
            Wait::L2Bytes => "L2 bytes",
            Wait::DramLatency => "DRAM latency",
            Wait::DramBytes => "DRAM bytes",
            Wait::Barrier => "barrier",
            Wait::Cluster => "cluster",
        })
    }
}

/// Ranges of memory that no cache holds when a launch begins: what is not among them is in L2.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cold {
    /// First sectors and those behind the last, ascending.
    sectors: Vec<(u32, u32)>,
}

impl Cold {
    /// Ranges by address and length in bytes.
    pub fn new(ranges: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let ranges = ranges.into_iter().filter(|&(_, bytes)| bytes > 0);
        let sectors =
            ranges.map(|(address, bytes)| (sector_of(address), sector_of(address + bytes - 1) + 1));
        Self::from_sectors(sectors.collect())
    }

    pub(crate) fn from_sectors(mut sectors: Vec<(u32, u32)>) -> Self {
        sectors.sort_unstable();
        Self { sectors }
    }

    pub(crate) fn holds(&self, sector: u32) -> bool {
        let behind = self.sectors.partition_point(|&(first, _)| first <= sector);
        behind > 0 && sector < self.sectors[behind - 1].1
    }
}
