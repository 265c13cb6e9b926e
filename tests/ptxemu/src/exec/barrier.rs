//! Block barriers and the cluster barrier.

use super::clocks::Row;
use super::engine::{BARRIERS, Engine};
use super::step::Flow;
use super::stop::{Exec, stop};
use super::warp::{State, Warp};
use crate::fault::FaultKind;
use crate::op::{AnyTarget, Barrier, BarrierReduction, ClusterBarrier};
use crate::trace::Event;

/// One of the sixteen barriers of a block.
#[derive(Default)]
pub(crate) struct NamedBarrier {
    /// Threads that have arrived.
    arrived: u32,
    /// Threads that it waits for; `None` for all live threads of the block.
    expected: Option<u32>,
    /// What the arrived warps had seen.
    clock: Option<Row>,
    /// The sum of a reduction's predicates, and how many threads took part.
    votes: u32,
    voters: u32,
}

/// The barrier of a cluster.
#[derive(Default)]
pub(crate) struct ClusterState {
    phase: u32,
    arrived: u32,
    clock: Option<Row>,
    /// What the last completed phase has released.
    released: Option<Row>,
}

impl ClusterState {
    /// Whether all blocks of the cluster are known to have started.
    pub(crate) fn has_met(&self) -> bool {
        self.phase > 0
    }
}

fn join(into: &mut Option<Row>, row: Row) {
    match into {
        Some(old) => old.iter_mut().zip(row).for_each(|(a, b)| *a = (*a).max(b)),
        None => *into = Some(row),
    }
}

impl Engine<'_> {
    /// A barrier that is `.aligned` must be reached by all live lanes of a warp at once.
    fn check_aligned(warp: &Warp, mask: u32, aligned: bool) -> Exec<()> {
        if !aligned || mask == warp.live {
            return Ok(());
        }
        stop(
            FaultKind::DivergentBarrier,
            format!(
                "reached by lanes {mask:#010x} while lanes {:#010x} are alive",
                warp.live
            ),
        )
    }

    pub(crate) fn barrier(
        &mut self,
        warp: &mut Warp,
        mask: u32,
        waiting: u32,
        op: &Barrier,
    ) -> Exec<Flow> {
        Self::check_aligned(warp, mask & waiting, op.aligned)?;
        let first = mask.trailing_zeros() as usize;
        let id = warp.registers.get(op.id)[first] as usize;
        let threads = op.threads.map(|t| warp.registers.get(t)[first]);
        if id >= BARRIERS {
            return stop(
                FaultKind::IllegalOperand,
                format!("there is no barrier {id}"),
            );
        }
        if threads.is_some_and(|t| t == 0 || t % 32 != 0) || op.arrive && threads.is_none() {
            let text = "a barrier's thread count must be a positive multiple of 32";
            return stop(FaultKind::IllegalOperand, text);
        }
        if let Some(tap) = &mut self.tap {
            tap.event(Event::Barrier {
                id: id as u32,
                threads: threads.unwrap_or(0),
            });
        }
        let arriving = match (op.aligned, threads) {
            // With a count, an aligned warp counts in full, whatever its live lanes.
            (true, Some(_)) => 32,
            _ => mask.count_ones(),
        };
        let row = self.clocks.release(warp.index);
        let barrier = &mut self.blocks[warp.block].barriers[id];
        if barrier.arrived > 0 && barrier.expected != threads {
            return stop(
                FaultKind::IllegalOperand,
                format!(
                    "barrier {id} is waited for with {threads:?} threads here and {:?} elsewhere",
                    barrier.expected
                ),
            );
        }
        barrier.expected = threads;
        barrier.arrived += arriving;
        join(&mut barrier.clock, row);
        if let Some((_, predicate, _)) = op.reduction {
            barrier.votes += (predicate.bits(&warp.registers) & mask).count_ones();
            barrier.voters += mask.count_ones();
        }
        if threads.is_some_and(|t| barrier.arrived > t) {
            let text = format!(
                "{} threads at barrier {id} for {threads:?}",
                barrier.arrived
            );
            return stop(FaultKind::IllegalOperand, text);
        }
        self.events += 1;
        Ok(if op.arrive {
            Flow::Next
        } else {
            Flow::Wait(State::Barrier {
                id,
                reduction: op.reduction,
            })
        })
    }

    /// Lets warps go on whose barrier is complete, after warp `ran` has had a turn.
    pub(crate) fn complete_barriers(&mut self, warps: &mut [Warp], ran: usize) {
        let block = warps[ran].block;
        let per_block = self.env.warps_per_block;
        let range = block * per_block..(block + 1) * per_block;
        // Then its barrier covers all that share its clocks.
        let is_single_block = self.blocks.len() == 1;
        if self.blocks[block].barriers.iter().any(|b| b.arrived > 0) {
            let live: u32 = warps[range.clone()]
                .iter()
                .map(|w| w.live.count_ones())
                .sum();
            for id in 0..BARRIERS {
                let barrier = &self.blocks[block].barriers[id];
                if barrier.arrived == 0 || barrier.arrived < barrier.expected.unwrap_or(live) {
                    continue;
                }
                let done = std::mem::take(&mut self.blocks[block].barriers[id]);
                self.open_barrier(&mut warps[range.clone()], id, &done, live, is_single_block);
            }
        }
        let cluster = self.blocks[block].cluster_start / self.env.cluster.count() as usize;
        self.complete_cluster(warps, cluster);
    }

    fn open_barrier(
        &mut self,
        warps: &mut [Warp],
        id: usize,
        done: &NamedBarrier,
        live: u32,
        block_is_group: bool,
    ) {
        let clock = done.clock.as_deref().unwrap_or_default();
        let mut released = 0;
        for warp in warps {
            let mut mask = 0;
            for group in &mut warp.groups {
                let State::Barrier {
                    id: waits_for,
                    reduction,
                } = group.state
                else {
                    continue;
                };
                if waits_for != id {
                    continue;
                }
                group.state = State::Running;
                mask |= group.mask;
                let Some((reduction, _, target)) = reduction else {
                    continue;
                };
                let value = match reduction {
                    BarrierReduction::Popc => done.votes,
                    BarrierReduction::And => u32::from(done.votes == done.voters),
                    BarrierReduction::Or => u32::from(done.votes > 0),
                };
                match target {
                    AnyTarget::Register(slot) => warp.registers.set(slot, &[value; 32], group.mask),
                    AnyTarget::Pred(slot) => {
                        warp.registers
                            .set_pred(slot, value.wrapping_neg(), group.mask);
                    }
                }
            }
            if mask != 0 {
                released += mask.count_ones();
                self.clocks.acquire(warp.index, clock);
                self.clocks.sync_lanes(warp.index, mask, warp.live);
            }
        }
        if block_is_group && released == live {
            self.clocks.begin_generation();
        }
        self.events += 1;
    }

    pub(crate) fn cluster_barrier(
        &mut self,
        warp: &mut Warp,
        mask: u32,
        waiting: u32,
        op: ClusterBarrier,
    ) -> Exec<Flow> {
        let cluster = self.blocks[warp.block].cluster_start / self.env.cluster.count() as usize;
        match op {
            ClusterBarrier::Arrive { aligned, release } => {
                Self::check_aligned(warp, mask & waiting, aligned)?;
                let state = &mut self.clusters[cluster];
                if warp.cluster_arrived & mask != 0 {
                    let text = "a second arrival at the cluster barrier without a wait";
                    return stop(FaultKind::IllegalOperand, text);
                }
                warp.cluster_arrived |= mask;
                warp.cluster_phase = state.phase;
                state.arrived += mask.count_ones();
                if release {
                    let row = self.clocks.release(warp.index);
                    join(&mut self.clusters[cluster].clock, row);
                }
                self.events += 1;
                Ok(Flow::Next)
            }
            ClusterBarrier::Wait { aligned } => {
                Self::check_aligned(warp, mask & waiting, aligned)?;
                if warp.cluster_arrived & mask != mask {
                    let text = "a wait in the cluster barrier without an arrival";
                    return stop(FaultKind::IllegalOperand, text);
                }
                Ok(Flow::Wait(State::ClusterBarrier {
                    phase: warp.cluster_phase,
                }))
            }
        }
    }

    /// Ends the phase of a cluster barrier that all live threads have arrived at, and lets those
    /// go on that wait for an ended phase.
    fn complete_cluster(&mut self, warps: &mut [Warp], cluster: usize) {
        let blocks = self.env.cluster.count() as usize;
        let per_cluster = blocks * self.env.warps_per_block;
        let range = cluster * per_cluster..(cluster + 1) * per_cluster;
        let state = &mut self.clusters[cluster];
        if state.arrived > 0 {
            // A thread that exits has arrived for good.
            let live: u32 = warps[range.clone()]
                .iter()
                .map(|w| w.live.count_ones())
                .sum();
            let phase = state.phase;
            let arrived = warps[range.clone()]
                .iter()
                .filter(|w| w.cluster_phase == phase);
            let arrived: u32 = arrived
                .map(|w| (w.live & w.cluster_arrived).count_ones())
                .sum();
            if arrived == live && live > 0 {
                state.phase += 1;
                state.arrived = 0;
                let clock = state.clock.take();
                if let Some(clock) = clock {
                    join(&mut state.released, clock);
                }
                self.events += 1;
            }
        }
        let phase = self.clusters[cluster].phase;
        for warp in &mut warps[range] {
            let mut mask = 0;
            for group in &mut warp.groups {
                if let State::ClusterBarrier { phase: waits_for } = group.state
                    && waits_for < phase
                {
                    group.state = State::Running;
                    mask |= group.mask;
                }
            }
            if mask != 0 {
                warp.cluster_arrived &= !mask;
                if let Some(clock) = self.clusters[cluster].released.clone() {
                    self.clocks.acquire(warp.index, &clock);
                }
                self.clocks.sync_lanes(warp.index, mask, warp.live);
            }
        }
    }
}
