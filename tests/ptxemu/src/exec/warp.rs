//! A warp: registers, and the groups of lanes that execute together.

use super::global::Release;
use crate::op::{AnyTarget, BarrierReduction, Guard};
use crate::registers::Registers;

/// What a group of lanes is doing.
#[derive(Clone, Copy)]
pub(crate) enum State {
    Running,
    /// Waits for the other lanes of a member mask at the same instruction.
    Collecting {
        members: u32,
    },
    /// Waits in `bar.warp.sync`, from whatever instruction.
    WarpBarrier {
        members: u32,
    },
    /// Waits in a block barrier.
    Barrier {
        id: usize,
        reduction: Option<(BarrierReduction, Guard, AnyTarget)>,
    },
    /// Waits for a phase of the cluster barrier to end.
    ClusterBarrier {
        phase: u32,
    },
}

/// Lanes that are at the same instruction.
#[derive(Clone, Copy)]
pub(crate) struct Group {
    pub(crate) pc: u32,
    pub(crate) mask: u32,
    pub(crate) state: State,
}

/// One pending `cp.async` of a lane.
#[derive(Clone, Copy)]
pub(crate) struct LaneCopy {
    pub(crate) to: u64,
    pub(crate) from: u64,
    pub(crate) bytes: u32,
    pub(crate) source_bytes: u32,
}

/// One bulk store of a lane, from shared to global memory.
#[derive(Clone, Copy)]
pub(crate) struct BulkStore {
    pub(crate) block: usize,
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) bytes: u64,
}

/// Copies of one lane that have not been waited for, in issue order.
#[derive(Clone, Default)]
pub(crate) struct LaneCopies {
    pub(crate) open: Vec<LaneCopy>,
    pub(crate) committed: std::collections::VecDeque<Vec<LaneCopy>>,
    pub(crate) bulk_open: Vec<BulkStore>,
    pub(crate) bulk_committed: std::collections::VecDeque<Vec<BulkStore>>,
}

impl LaneCopies {
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.committed.iter().all(Vec::is_empty)
    }

    pub(crate) fn has_bulk(&self) -> bool {
        !self.bulk_open.is_empty() || self.bulk_committed.iter().any(|g| !g.is_empty())
    }
}

/// Addresses of a strong read of global memory and what it found, by lane.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct StrongRead {
    pub(crate) mask: u32,
    pub(crate) found: Vec<(u64, u64)>,
}

/// One warp of a group of blocks.
pub(crate) struct Warp {
    /// Index among the warps of the group.
    pub(crate) index: usize,
    /// Index of its block in the group.
    pub(crate) block: usize,
    /// Index in its block: `%warpid`.
    pub(crate) id: u32,
    pub(crate) registers: Registers,
    pub(crate) groups: Vec<Group>,
    /// Lanes that have not exited.
    pub(crate) live: u32,
    pub(crate) copies: Vec<LaneCopies>,
    pub(crate) local: Vec<u8>,
    /// The allocation accessed last.
    pub(crate) hint: usize,
    /// What the last fence released, to be published by the next strong access.
    pub(crate) fenced: Option<Release>,
    /// What strong reads have found, to be acquired by the next fence.
    pub(crate) found: std::collections::HashMap<u64, Vec<Release>>,
    /// The warp gave up its turn because a wait failed.
    pub(crate) polled: bool,
    /// What strong reads of global memory found last, by instruction.
    pub(crate) last_reads: std::collections::HashMap<usize, StrongRead>,
    /// Lanes that have arrived at the cluster barrier and not yet waited.
    pub(crate) cluster_arrived: u32,
    /// The phase they arrived in.
    pub(crate) cluster_phase: u32,
}

impl Warp {
    pub(crate) fn is_done(&self) -> bool {
        self.live == 0
    }

    /// The running group with the lowest address, merged with others at the same address.
    pub(crate) fn next_group(&mut self) -> Option<Group> {
        let running = |g: &&Group| matches!(g.state, State::Running);
        let pc = self.groups.iter().filter(running).map(|g| g.pc).min()?;
        let here = |g: &Group| matches!(g.state, State::Running) && g.pc == pc;
        let mask = self
            .groups
            .iter()
            .filter(|g| here(g))
            .fold(0, |m, g| m | g.mask);
        self.groups.retain(|g| !here(g));
        Some(Group {
            pc,
            mask,
            state: State::Running,
        })
    }

    /// The lowest address of a running group: where the executing group must stop to let lanes
    /// join it.
    pub(crate) fn limit(&self) -> u32 {
        let running = self
            .groups
            .iter()
            .filter(|g| matches!(g.state, State::Running));
        running.map(|g| g.pc).min().unwrap_or(u32::MAX)
    }

    pub(crate) fn is_runnable(&self) -> bool {
        self.groups.iter().any(|g| match g.state {
            State::Running => true,
            State::Collecting { .. } | State::WarpBarrier { .. } => true,
            State::Barrier { .. } | State::ClusterBarrier { .. } => false,
        })
    }

    /// Lets lanes go on that have met all members of their collective. A collective is executed
    /// again, now by all of them; a warp barrier is over. Returns the mask of a barrier that ended.
    pub(crate) fn release_collectives(&mut self) -> Option<u32> {
        for index in 0..self.groups.len() {
            let group = self.groups[index];
            match group.state {
                State::Collecting { members } => {
                    let here = |g: &Group| {
                        matches!(g.state, State::Collecting { members: m } if m == members)
                            && g.pc == group.pc
                    };
                    let got = self
                        .groups
                        .iter()
                        .filter(|g| here(g))
                        .fold(0, |m, g| m | g.mask);
                    if got & members & self.live == members & self.live {
                        self.groups.retain(|g| !here(g));
                        self.groups.push(Group {
                            mask: got,
                            state: State::Running,
                            ..group
                        });
                        return Some(0);
                    }
                }
                State::WarpBarrier { members } => {
                    let here = |g: &Group| matches!(g.state, State::WarpBarrier { members: m } if m == members);
                    let got = self
                        .groups
                        .iter()
                        .filter(|g| here(g))
                        .fold(0, |m, g| m | g.mask);
                    if got & members & self.live == members & self.live {
                        for g in self.groups.iter_mut().filter(|g| here(g)) {
                            g.state = State::Running;
                        }
                        return Some(got);
                    }
                }
                _ => {}
            }
        }
        None
    }
}
