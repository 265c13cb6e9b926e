//! What a launch did, in numbers.

/// Instructions by class; each counts warp instructions with at least one active lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassCounts {
    /// Integer and logic arithmetic, comparisons and selections.
    pub integer: u64,
    /// Floating-point arithmetic and comparisons.
    pub float: u64,
    /// Conversions between types.
    pub convert: u64,
    /// Moves, packing and address conversions.
    pub moves: u64,
    /// Loads and stores of global memory, atomics included.
    pub global: u64,
    /// Loads and stores of shared memory, `ldmatrix`, `stmatrix` and atomics included.
    pub shared: u64,
    /// Loads and stores of local, parameter and constant memory.
    pub other_memory: u64,
    /// Asynchronous copies and their waits.
    pub async_copy: u64,
    /// Matrix instructions.
    pub mma: u64,
    /// Shuffles, votes and other exchanges within a warp.
    pub warp: u64,
    /// Barriers and fences.
    pub barrier: u64,
    /// Branches, calls and returns.
    pub control: u64,
}

/// Shared-memory traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SharedCounts {
    /// Warp-level requests.
    pub requests: u64,
    /// Passes through the 32 banks that the requests needed.
    pub wavefronts: u64,
    /// Passes beyond the fewest possible for the bytes asked for: bank conflicts.
    pub extra_wavefronts: u64,
}

/// One instruction with bank conflicts.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// Reads or writes of one allocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AccessCounts {
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

/// Traffic between the launch and one allocation of global memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Address of the allocation.
    pub base: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The name given with [`Memory::label`](crate::Memory::label), or empty.
    pub label: String,
    /// What was read. An atomic operation counts as a read and a write.
    pub read: AccessCounts,
    /// What was written.
    pub written: AccessCounts,
}

/// What a launch did. It does not depend on the number of host threads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Instructions executed by warps (with at least one active lane).
    pub warp_instructions: u64,
    /// The same, times the active lanes.
    pub lane_instructions: u64,
    /// Warp instructions executed while the warp was split.
    pub divergent_instructions: u64,
    /// Instructions by class.
    pub classes: ClassCounts,
    /// Shared-memory traffic.
    pub shared: SharedCounts,
    /// Instructions with bank conflicts, worst first.
    pub bank_conflicts: Vec<BankConflict>,
    /// Traffic per allocation touched, by address.
    pub traffic: Vec<Traffic>,
}

impl Report {
    /// Traffic of the allocation that contains `addr`, if the launch touched it.
    pub fn traffic_at(&self, addr: u64) -> Option<&Traffic> {
        self.traffic
            .iter()
            .find(|t| (t.base..t.base + t.len.max(1)).contains(&addr))
    }
}
