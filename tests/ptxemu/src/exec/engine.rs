//! A group of blocks that run together: one block, a cluster, or a whole cooperative grid.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use super::barrier::{ClusterState, NamedBarrier};
use super::bulk::Pending;
use super::clocks::{Clocks, MAX_TICK};
use super::counts::Counts;
use super::global::{Accessor, GlobalSpace, Release, Seen};
use super::mbarrier::MbarrierState;
use super::shared::{Shared, Who};
use super::step::Turn;
use super::stop::Stop;
use super::warp::{State, Warp};
use crate::config::{Dim3, Launch, Options};
use crate::fault::{Fault, FaultKind};
use crate::module::Kernel;
use crate::op::Order;
use crate::trace::Tap;

/// What all groups of a launch share.
pub(crate) struct Env<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) launch: &'a Launch<'a>,
    pub(crate) options: &'a Options,
    pub(crate) space: &'a GlobalSpace,
    pub(crate) cluster: Dim3,
    pub(crate) shared_bytes: u32,
    pub(crate) warps_per_block: usize,
}

/// Named barriers of a block.
pub(crate) const BARRIERS: usize = 16;

/// One block of a group.
pub(crate) struct Block {
    pub(crate) index: Dim3,
    /// Index in the group of the first block of its cluster.
    pub(crate) cluster_start: usize,
    /// Threads that have not exited.
    pub(crate) running: u32,
    /// The warps of other blocks that have reached for its shared memory, each with the tick when it last did.
    pub(crate) visits: RefCell<HashMap<usize, u32>>,
    pub(crate) shared: Shared,
    pub(crate) barriers: [NamedBarrier; BARRIERS],
    pub(crate) mbarriers: HashMap<u64, MbarrierState>,
}

/// Rounds of all warps in which nobody does more than poll, after which those that poll memory wait in vain.
const MOST_IDLE_ROUNDS: u32 = 1 << 12;

/// A location through which threads synchronise: a global address, or a marked shared one.
pub(crate) type SyncKey = u64;

/// A group of blocks while it runs.
pub(crate) struct Engine<'a> {
    pub(crate) env: &'a Env<'a>,
    pub(crate) group: u64,
    pub(crate) blocks: Vec<Block>,
    pub(crate) clusters: Vec<ClusterState>,
    pub(crate) clocks: Clocks,
    pub(crate) counts: Counts,
    /// Where a sample is traced: what its warps execute.
    pub(crate) tap: Option<Tap>,
    /// What other groups have released to this one.
    pub(crate) seen: Seen,
    /// Releases per location; kept over the groups that one host thread runs.
    pub(crate) locations: HashMap<SyncKey, Seen>,
    /// Copies in flight that complete on an mbarrier.
    pub(crate) pending: Vec<Pending>,
    pub(crate) steps: u64,
    /// A warp has read global memory again and found nothing new.
    pub(crate) polls_memory: bool,
    /// Things that other warps may wait for.
    pub(crate) events: u64,
}

impl Engine<'_> {
    /// Runs all warps of the group to their end.
    pub(crate) fn run(&mut self, warps: &mut [Warp]) -> Result<(), Fault> {
        let mut random = self.env.options.seed ^ self.group.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut idle_rounds = 0;
        loop {
            let mut progress = false;
            let start = if self.env.options.seed == 0 {
                0
            } else {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                (random % warps.len() as u64) as usize
            };
            let events = self.events;
            for turn in 0..warps.len() {
                let index = (start + turn) % warps.len();
                if warps[index].is_runnable() {
                    progress |= self.run_warp(&mut warps[index])? == Turn::Progress;
                    self.complete_barriers(warps, index);
                }
            }
            if warps.iter().all(Warp::is_done) {
                return self.finish(warps);
            }
            if progress || self.events != events {
                idle_rounds = 0;
                continue;
            }
            if self.tap.is_some() && self.supply(warps)? {
                continue;
            }
            // Nobody can go on without a copy: only now does one complete.
            if self.land_one(warps).map_err(|s| self.copy_fault(*s))? {
                continue;
            }
            // A warp that reads memory again may also count how often.
            idle_rounds += 1;
            if !std::mem::take(&mut self.polls_memory) || idle_rounds > MOST_IDLE_ROUNDS {
                return Err(self.deadlock(warps));
            }
        }
    }

    /// Where a sample is traced and nobody can go on: completes all copies in flight, or stores what blocks that are not
    /// there would have. `false` where there is nothing to do.
    fn supply(&mut self, warps: &mut [Warp]) -> Result<bool, Fault> {
        if !self.pending.is_empty() {
            self.pending.reverse();
            while self.land_one(warps).map_err(|s| self.copy_fault(*s))? {}
            return Ok(true);
        }
        let mut supplied = false;
        for warp in warps.iter_mut().filter(|warp| !warp.is_done()) {
            for (_, read) in std::mem::take(&mut warp.last_reads) {
                for (address, _) in read.found {
                    let space = self.env.space;
                    let place = space.locate(&mut warp.hint, address, 8, 8, "answer");
                    let answer = self
                        .tap
                        .as_mut()
                        .and_then(|tap| tap.answer(warp.block, address));
                    if let (Ok(offset), Some(value)) = (place, answer) {
                        let allocation = &space.trackers[warp.hint].allocation;
                        allocation.store(offset, 8, value);
                        supplied = true;
                    }
                }
            }
        }
        Ok(supplied)
    }

    /// What must hold when all threads have exited.
    fn finish(&mut self, warps: &mut [Warp]) -> Result<(), Fault> {
        while !self.pending.is_empty() {
            self.land_one(warps).map_err(|s| self.copy_fault(*s))?;
        }
        Ok(())
    }

    fn copy_fault(&self, stop: Stop) -> Fault {
        let message = format!(
            "{}\n  by an asynchronous copy of kernel {}",
            stop.message, self.env.kernel.name
        );
        Fault {
            kind: stop.kind,
            message,
        }
    }

    fn deadlock(&self, warps: &[Warp]) -> Fault {
        let code = &self.env.kernel.program.code;
        let mut message = format!("kernel {}: no warp can go on", self.env.kernel.name);
        for warp in warps.iter().filter(|w| !w.is_done()) {
            for group in &warp.groups {
                let what = match group.state {
                    State::Running => "polls".to_owned(),
                    State::Collecting { members } => format!("waits for lanes {members:#x}"),
                    State::WarpBarrier { members } => format!("waits for lanes {members:#x}"),
                    State::Barrier { id, .. } => format!("waits in barrier {id}"),
                    State::ClusterBarrier { .. } => "waits in the cluster barrier".to_owned(),
                };
                // A lane that waits in a barrier has already passed the instruction.
                let passed = matches!(
                    group.state,
                    State::Barrier { .. } | State::WarpBarrier { .. }
                );
                let at =
                    (group.pc as usize - usize::from(passed && group.pc > 0)).min(code.len() - 1);
                message += &format!(
                    "\n  block {} warp {} lanes {:#010x}: {what} at PTX line {}: {}",
                    self.blocks[warp.block].index,
                    warp.id,
                    group.mask,
                    code[at].line,
                    code[at].text
                );
            }
        }
        Fault {
            kind: FaultKind::Deadlock,
            message,
        }
    }

    /// The executing lane, for the race checks of shared memory.
    #[inline(always)]
    pub(crate) fn who(warp: &Warp, lane: usize, order: Order) -> Who {
        Who {
            warp: warp.index,
            lane: lane as u32,
            strong: order.strong,
        }
    }

    /// The executing lane, for the race checks of global memory.
    #[inline(always)]
    pub(crate) fn accessor(&self, who: Who) -> Accessor<'_> {
        Accessor {
            group: self.group,
            who,
            clocks: &self.clocks,
            seen: &self.seen,
        }
    }

    /// A strong write, or an atomic: hands over what the warp has released.
    pub(crate) fn publish(&mut self, warp: &mut Warp, location: u64, order: Order) {
        let release = if order.release {
            (self.group, Arc::new(self.clocks.release(warp.index)))
        } else {
            match &warp.fenced {
                Some(release) => release.clone(),
                None => return,
            }
        };
        let others: Vec<Release> = self.seen.releases().collect();
        let place = self.locations.entry(location).or_default();
        place.join(&release);
        others.iter().for_each(|r| place.join(r));
    }

    /// A strong read, or an atomic: finds what was released to the location.
    pub(crate) fn observe(&mut self, warp: &mut Warp, location: u64, order: Order) {
        let Some(place) = self.locations.get(&location) else {
            return;
        };
        let found: Vec<Release> = place.releases().collect();
        if order.acquire {
            self.acquire(warp, &found);
        } else {
            warp.found.insert(location, found);
        }
    }

    pub(crate) fn acquire(&mut self, warp: &Warp, releases: &[Release]) {
        for release in releases {
            if release.0 == self.group {
                self.clocks.acquire(warp.index, &release.1);
            } else {
                self.seen.join(release);
            }
        }
    }

    /// `fence` and `membar`: later strong writes release, earlier strong reads acquire.
    pub(crate) fn fence(&mut self, warp: &mut Warp, acquire: bool, release: bool) {
        if acquire {
            let found = std::mem::take(&mut warp.found);
            found
                .values()
                .for_each(|releases| self.acquire(warp, releases));
        }
        if release {
            warp.fenced = Some((self.group, Arc::new(self.clocks.release(warp.index))));
        }
    }

    /// Whether stamps could no longer tell the synchronisations of a warp apart.
    pub(crate) fn clock_is_worn_out(&self, warp: &Warp) -> bool {
        self.clocks.tick(warp.index) >= MAX_TICK - 64
    }
}
