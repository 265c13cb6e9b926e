//! What the library tells a test: one record per kernel execution, counters, and what is alive.
//!
//! Records cross the library's border as JSON; [`crate::client`] reads them back into these types.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One execution of one kernel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LaunchReport {
    /// The kernel's symbol.
    pub kernel: String,
    /// Ordinal of the device it ran on.
    pub device: usize,
    /// The device's architecture, `sm_90`.
    pub arch: String,
    /// Grid in blocks.
    pub grid: [u32; 3],
    /// Block in threads.
    pub block: [u32; 3],
    /// Cluster in blocks.
    pub cluster: [u32; 3],
    /// Whether it was a cooperative launch.
    pub cooperative: bool,
    /// Whether a graph replay ran it.
    pub from_graph: bool,
    /// Static shared memory of a block.
    pub static_shared_bytes: u32,
    /// Dynamic shared memory of a block.
    pub dynamic_shared_bytes: u32,
    /// What the interpreter counted.
    pub counts: Counts,
}

/// What the interpreter counted over the whole grid; see `ptxemu::Report`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Warp instructions with at least one active lane.
    pub warp_instructions: u64,
    /// The same, times the active lanes.
    pub lane_instructions: u64,
    /// Warp instructions executed while the warp was split.
    pub divergent_instructions: u64,
    /// Warp instructions by class: `integer`, `float`, `convert`, `moves`, `global`, `shared`,
    /// `other_memory`, `async_copy`, `mma`, `warp`, `barrier`, `control`.
    pub classes: BTreeMap<String, u64>,
    /// Warp-level requests to shared memory.
    pub shared_requests: u64,
    /// Passes through the banks that they needed.
    pub shared_wavefronts: u64,
    /// Passes beyond the fewest possible: bank conflicts.
    pub shared_extra_wavefronts: u64,
    /// The instructions with bank conflicts, worst first.
    pub bank_conflicts: Vec<BankConflict>,
    /// Global traffic per allocation touched, by address.
    pub traffic: Vec<Traffic>,
}

/// One instruction with bank conflicts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BankConflict {
    /// Line of the PTX text.
    pub line: u32,
    /// Line of the source, 0 without line information.
    pub source_line: u32,
    /// The instruction.
    pub text: String,
    /// How often a warp executed it.
    pub requests: u64,
    /// Passes beyond the fewest possible, over all executions.
    pub extra_wavefronts: u64,
}

/// Global traffic of one launch to one allocation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// First address of the allocation.
    pub base: u64,
    /// Size of the allocation in bytes.
    pub bytes: u64,
    /// What was read; an atomic operation counts as a read and a write.
    pub read: Access,
    /// What was written.
    pub written: Access,
}

/// Reads or writes of one allocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Access {
    /// Warp-level requests.
    pub requests: u64,
    /// Bytes asked for by lanes, repetitions included.
    pub bytes: u64,
    /// 32-byte sectors, counted once per warp-level request.
    pub sectors: u64,
    /// Distinct bytes touched in the launch.
    pub distinct_bytes: u64,
    /// Distinct 32-byte sectors touched in the launch.
    pub distinct_sectors: u64,
}

impl LaunchReport {
    /// Traffic of the allocation that contains `address`; zeros if the launch did not touch it.
    pub fn traffic_at(&self, address: u64) -> Traffic {
        let found = self
            .counts
            .traffic
            .iter()
            .find(|traffic| (traffic.base..traffic.base + traffic.bytes).contains(&address));
        found.cloned().unwrap_or_default()
    }

    /// Warp instructions of a class; 0 if there were none.
    pub fn class(&self, name: &str) -> u64 {
        self.counts.classes.get(name).copied().unwrap_or(0)
    }
}

impl From<&ptxemu::Report> for Counts {
    fn from(report: &ptxemu::Report) -> Counts {
        let classes = &report.classes;
        let classes = [
            ("integer", classes.integer),
            ("float", classes.float),
            ("convert", classes.convert),
            ("moves", classes.moves),
            ("global", classes.global),
            ("shared", classes.shared),
            ("other_memory", classes.other_memory),
            ("async_copy", classes.async_copy),
            ("mma", classes.mma),
            ("warp", classes.warp),
            ("barrier", classes.barrier),
            ("control", classes.control),
        ];
        Counts {
            warp_instructions: report.warp_instructions,
            lane_instructions: report.lane_instructions,
            divergent_instructions: report.divergent_instructions,
            classes: classes
                .into_iter()
                .map(|(class, count)| (class.to_owned(), count))
                .collect(),
            shared_requests: report.shared.requests,
            shared_wavefronts: report.shared.wavefronts,
            shared_extra_wavefronts: report.shared.extra_wavefronts,
            bank_conflicts: report
                .bank_conflicts
                .iter()
                .map(|conflict| BankConflict {
                    line: conflict.line,
                    source_line: conflict.source_line,
                    text: conflict.text.clone(),
                    requests: conflict.requests,
                    extra_wavefronts: conflict.extra_wavefronts,
                })
                .collect(),
            traffic: report
                .traffic
                .iter()
                .map(|traffic| Traffic {
                    base: traffic.base,
                    bytes: traffic.len,
                    read: Access::from(&traffic.read),
                    written: Access::from(&traffic.written),
                })
                .collect(),
        }
    }
}

impl From<&ptxemu::AccessCounts> for Access {
    fn from(counts: &ptxemu::AccessCounts) -> Access {
        Access {
            requests: counts.requests,
            bytes: counts.bytes,
            sectors: counts.sectors,
            distinct_bytes: counts.distinct_bytes,
            distinct_sectors: counts.distinct_sectors,
        }
    }
}

/// How often the process asked the driver for what, since the last reset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Kernel launches submitted or captured (refused ones not counted).
    pub launches: u64,
    /// Graph launches.
    pub graph_launches: u64,
    /// Kernels executed, graph nodes included.
    pub kernels_run: u64,
    /// Device allocations, synchronous or not, failed ones too.
    pub device_allocations: u64,
    /// Device frees.
    pub device_frees: u64,
    /// Pinned host allocations and registrations, failed ones too.
    pub host_allocations: u64,
    /// Times that the host waited for the device: synchronisations, and the calls that imply one.
    pub host_waits: u64,
    /// Host-to-device copies.
    pub copies_to_device: u64,
    /// Device-to-host copies.
    pub copies_to_host: u64,
    /// Copies between device addresses.
    pub copies_within_device: u64,
    /// Fills.
    pub fills: u64,
    /// Modules loaded, failed ones too: each is a compilation on a real driver when given PTX.
    pub modules_loaded: u64,
    /// Calls by driver function.
    pub calls: BTreeMap<String, u64>,
}

/// What is alive, and what a context took with it instead of being freed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Device allocations alive.
    pub allocations: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Most bytes alive at once since the last reset.
    pub peak_bytes: u64,
    /// Pinned host ranges alive.
    pub host_ranges: u64,
    /// Contexts, streams, events, modules, graphs and executable graphs alive.
    pub objects: BTreeMap<String, u64>,
    /// Things that were still alive when their context was destroyed, by kind.
    pub leaked: BTreeMap<String, u64>,
}
