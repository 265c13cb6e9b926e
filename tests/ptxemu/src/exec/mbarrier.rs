//! mbarrier objects.

use super::access::Place;
use super::bulk::Pending;
use super::clocks::Row;
use super::engine::Engine;
use super::step::Flow;
use super::stop::{AtLane, Exec, stop};
use super::warp::Warp;
use crate::fault::FaultKind;
use crate::op::{Mbarrier, MbarrierOp, Order, Phase};
use crate::registers::lanes;
use crate::trace::{Event, Phase as TracedPhase};

/// Largest arrival count of an mbarrier.
const MAX_COUNT: u32 = (1 << 20) - 1;

/// One mbarrier.
#[derive(Debug)]
pub(crate) struct MbarrierState {
    /// Arrivals per phase.
    expected: u32,
    /// Arrivals that the current phase still waits for.
    pending: u32,
    /// Bytes that the current phase still waits for; may be negative for a while.
    transactions: i64,
    /// Completed phases.
    phase: u64,
    /// What the arrivals of the current phase had seen, and those of completed phases.
    clock: Vec<u32>,
    released: Vec<u32>,
}

fn join(into: &mut Vec<u32>, row: &[u32]) {
    into.resize(into.len().max(row.len()), 0);
    into.iter_mut()
        .zip(row)
        .for_each(|(a, b)| *a = (*a).max(*b));
}

impl MbarrierState {
    /// Phases that have ended.
    pub(crate) fn phase(&self) -> u64 {
        self.phase
    }

    fn complete_if_done(&mut self) {
        if self.pending == 0 && self.transactions == 0 {
            self.phase += 1;
            self.pending = self.expected;
            let clock = std::mem::take(&mut self.clock);
            join(&mut self.released, &clock);
        }
    }
}

impl Engine<'_> {
    pub(crate) fn mbarrier(&mut self, warp: &mut Warp, mask: u32, op: &Mbarrier) -> Exec<Flow> {
        let mut done = u32::MAX;
        for lane in lanes(mask) {
            let address = Self::address(warp, op.address, lane);
            let place = self.place(warp, lane, op.space, address, (8, 8), "mbarrier access")?;
            let Place::Shared { block, offset } = place else {
                return stop(
                    FaultKind::IllegalOperand,
                    "an mbarrier outside shared memory",
                )
                .at_lane(lane);
            };
            let passed = self
                .mbarrier_lane(warp, lane, (block, offset), &op.op)
                .at_lane(lane)?;
            if !passed {
                done &= !(1 << lane);
            }
        }
        if let MbarrierOp::Test { done: to, .. } = op.op {
            warp.registers.set_pred(to, done, mask);
            if done & mask != mask {
                return Ok(Flow::Yield);
            }
        } else {
            self.events += 1;
        }
        Ok(Flow::Next)
    }

    /// Executes an operation for one lane; `false` if a test finds the phase incomplete.
    fn mbarrier_lane(
        &mut self,
        warp: &mut Warp,
        lane: usize,
        at: (usize, u64),
        op: &MbarrierOp,
    ) -> Exec<bool> {
        let (block, offset) = at;
        if let MbarrierOp::Init { count } = op {
            let count = warp.registers.get(*count)[lane];
            if count == 0 || count > MAX_COUNT {
                return stop(
                    FaultKind::IllegalOperand,
                    format!("an arrival count of {count}"),
                );
            }
            let who = Self::who(warp, lane, Order::default());
            let block = &mut self.blocks[block];
            block.shared.note_write(offset, 8, who, &self.clocks)?;
            block.shared.set_mbarrier(offset, true);
            let state = MbarrierState {
                expected: count,
                pending: count,
                transactions: 0,
                phase: 0,
                clock: Vec::new(),
                released: Vec::new(),
            };
            block.mbarriers.insert(offset, state);
            return Ok(true);
        }
        let who = Self::who(
            warp,
            lane,
            Order {
                strong: true,
                ..Order::default()
            },
        );
        self.blocks[block]
            .shared
            .note_mbarrier(offset, who, &self.clocks)?;
        match op {
            MbarrierOp::Init { .. } => {}
            MbarrierOp::Inval => {
                self.state(at)?;
                let block = &mut self.blocks[block];
                block.mbarriers.remove(&offset);
                block.shared.set_mbarrier(offset, false);
            }
            MbarrierOp::Arrive {
                state: to,
                count,
                expect,
                drop,
                no_complete,
            } => {
                let count = count.map_or(1, |c| warp.registers.get(c)[lane]);
                let bytes = expect.map_or(0, |e| i64::from(warp.registers.get(e)[lane]));
                let row = self.clocks.release(warp.index);
                let state = self.state(at)?;
                let phase = state.phase;
                state.transactions += bytes;
                self.tap_phase(Event::Arrives, at, phase);
                self.arrive(at, count, &row, *drop)?;
                if *no_complete && self.state(at)?.phase != phase {
                    return stop(
                        FaultKind::IllegalOperand,
                        "this arrival must not complete the phase",
                    );
                }
                if let Some(to) = to {
                    warp.registers.get_mut(*to)[lane] = phase;
                }
            }
            MbarrierOp::ExpectTx { bytes } => {
                let bytes = warp.registers.get(*bytes)[lane];
                self.state(at)?.transactions += i64::from(bytes);
            }
            MbarrierOp::CompleteTx { bytes } => {
                let bytes = warp.registers.get(*bytes)[lane];
                let row = self.clocks.release(warp.index);
                self.complete_transactions(at, bytes.into(), &row)?;
            }
            MbarrierOp::Test { phase, .. } => {
                let state = self.state(at)?;
                let done = match *phase {
                    Phase::Parity(slot) => {
                        let parity = warp.registers.get(slot)[lane];
                        state.phase & 1 != u64::from(parity & 1)
                    }
                    Phase::State(slot) => state.phase > warp.registers.get(slot)[lane],
                };
                let ended = state.phase;
                if done {
                    if ended > 0 {
                        self.tap_phase(Event::Waits, at, ended - 1);
                    }
                    let released = self.state(at)?.released.clone();
                    self.clocks.acquire(warp.index, &released);
                }
                return Ok(done);
            }
            MbarrierOp::ArriveOnCopies { no_increment } => {
                let state = self.state(at)?;
                if !no_increment {
                    state.pending += 1;
                }
                let phase = state.phase;
                self.tap_phase(Event::ArrivesCopied, at, phase);
                self.pending.push(Pending::LaneCopies {
                    warp: warp.index,
                    lane,
                    mbarrier: at,
                });
            }
        }
        Ok(true)
    }

    /// Lanes did something about a phase of the mbarrier at `at`.
    pub(crate) fn tap_phase(
        &mut self,
        event: impl Fn(TracedPhase) -> Event,
        at: (usize, u64),
        phase: u64,
    ) {
        if let Some(tap) = &mut self.tap {
            tap.event_of_lanes(event(TracedPhase::of_barrier(at, phase)));
        }
    }

    pub(crate) fn state(&mut self, (block, offset): (usize, u64)) -> Exec<&mut MbarrierState> {
        match self.blocks[block].mbarriers.get_mut(&offset) {
            Some(state) => Ok(state),
            None => {
                let text = format!("no mbarrier was initialised at shared {offset:#x}");
                stop(FaultKind::IllegalOperand, text)
            }
        }
    }

    pub(crate) fn arrive(
        &mut self,
        at: (usize, u64),
        count: u32,
        row: &Row,
        drop: bool,
    ) -> Exec<()> {
        let state = self.state(at)?;
        if count == 0 || count > state.pending {
            let text = format!(
                "{count} arrivals where the phase waits for {}",
                state.pending
            );
            return stop(FaultKind::IllegalOperand, text);
        }
        join(&mut state.clock, row);
        state.pending -= count;
        if drop {
            state.expected -= count;
        }
        state.complete_if_done();
        self.events += 1;
        Ok(())
    }

    pub(crate) fn complete_transactions(
        &mut self,
        at: (usize, u64),
        bytes: u64,
        row: &Row,
    ) -> Exec<()> {
        let state = self.state(at)?;
        join(&mut state.clock, row);
        state.transactions -= bytes as i64;
        state.complete_if_done();
        self.events += 1;
        Ok(())
    }
}
