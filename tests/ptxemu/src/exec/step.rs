//! Executes a warp until all its lanes wait or its turn is over.

use super::engine::Engine;
use super::stop::{Exec, Stop, stop};
use super::warp::{Group, State, Warp};
use crate::fault::{Fault, FaultKind};
use crate::op::Op;
use crate::registers::lanes;
use crate::trace::Event;

/// Instructions after which another warp gets its turn.
const QUANTUM: u64 = 1 << 16;

/// How a turn of a warp went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It did something that may matter to others, or to itself.
    Progress,
    /// It only found that what it waits for has not happened.
    Polled,
}

/// What becomes of the lanes that executed an instruction.
pub(crate) enum Flow {
    Next,
    Jump(u32),
    /// They wait; the instruction is done.
    Wait(State),
    /// They wait, and then execute the instruction again.
    Again(State),
    /// They go on, but another warp should get its turn.
    Yield,
    Exit,
}

impl Engine<'_> {
    /// Runs one warp for a turn.
    pub(crate) fn run_warp(&mut self, warp: &mut Warp) -> Result<Turn, Fault> {
        let end = self.steps + QUANTUM;
        warp.polled = false;
        let mut progress = false;
        while !warp.polled && self.steps < end {
            let Some(group) = warp.next_group() else {
                match warp.release_collectives() {
                    Some(0) => {}
                    Some(synced) => self.clocks.sync_lanes(warp.index, synced, warp.live),
                    None => break,
                }
                progress = true;
                continue;
            };
            progress |= self.run_group(warp, group, end)?;
            if self.steps > self.env.options.max_steps {
                let name = &self.env.kernel.name;
                let message = format!("kernel {name} executed {} instructions", self.steps);
                return Err(Fault {
                    kind: FaultKind::StepLimit,
                    message,
                });
            }
        }
        Ok(if progress && !warp.polled {
            Turn::Progress
        } else {
            Turn::Polled
        })
    }

    /// Runs one group of lanes until it waits, splits, exits, or reaches lanes that it can join.
    /// Tells whether it did more than poll.
    fn run_group(&mut self, warp: &mut Warp, mut group: Group, end: u64) -> Result<bool, Fault> {
        let program = &self.env.kernel.program;
        let limit = warp.limit();
        let divergent = group.mask != warp.live;
        loop {
            let at = group.pc as usize;
            let instruction = &program.code[at];
            self.steps += 1;
            group.pc += 1;
            let mask = match instruction.guard {
                Some(guard) => group.mask & guard.bits(&warp.registers),
                None => group.mask,
            };
            if let Some(tap) = &mut self.tap {
                tap.step(warp.index, at);
            }
            if mask != 0 {
                self.counts.instruction(instruction.class, mask, divergent);
                let flow = match &instruction.op {
                    Op::Alu(alu) => {
                        alu(&mut warp.registers, mask);
                        Flow::Next
                    }
                    Op::Branch(target) => Flow::Jump(*target),
                    op => {
                        let waiting = group.mask;
                        let done = self.execute(warp, op, at, mask, waiting);
                        done.map_err(|s| self.fault(warp, at, mask, *s))?
                    }
                };
                match flow {
                    Flow::Next => {}
                    Flow::Jump(target) if mask == group.mask => group.pc = target,
                    Flow::Jump(target) => {
                        warp.groups.push(Group {
                            pc: target,
                            mask,
                            state: State::Running,
                        });
                        warp.groups.push(Group {
                            mask: group.mask & !mask,
                            ..group
                        });
                        return Ok(true);
                    }
                    Flow::Wait(state) => {
                        warp.groups.push(Group {
                            mask,
                            state,
                            ..group
                        });
                        if mask != group.mask {
                            warp.groups.push(Group {
                                mask: group.mask & !mask,
                                ..group
                            });
                        }
                        return Ok(true);
                    }
                    Flow::Again(state) => {
                        self.undo_step();
                        warp.groups.push(Group {
                            mask,
                            state,
                            pc: at as u32,
                        });
                        if mask != group.mask {
                            warp.groups.push(Group {
                                mask: group.mask & !mask,
                                ..group
                            });
                        }
                        return Ok(true);
                    }
                    Flow::Yield => {
                        self.undo_step();
                        // A trace shows an mbarrier tested once, when its phase has ended.
                        if self.tap.is_some() && matches!(instruction.op, Op::Mbarrier(_)) {
                            group.pc = at as u32;
                        }
                        warp.polled = true;
                        warp.groups.push(group);
                        return Ok(false);
                    }
                    Flow::Exit => {
                        warp.live &= !mask;
                        group.mask &= !mask;
                        self.events += 1;
                        if group.mask == 0 {
                            return Ok(true);
                        }
                    }
                }
            }
            if group.pc >= limit || self.steps >= end {
                warp.groups.push(group);
                return Ok(true);
            }
        }
    }

    /// Executes an instruction that is more than arithmetic. `waiting` are the lanes of the group,
    /// of which `mask` pass the guard.
    fn execute(
        &mut self,
        warp: &mut Warp,
        op: &Op,
        at: usize,
        mask: u32,
        waiting: u32,
    ) -> Exec<Flow> {
        match op {
            Op::Alu(alu) => alu(&mut warp.registers, mask),
            Op::Load(load) => {
                if self.load(warp, at, mask, load)? {
                    self.polls_memory = true;
                    return Ok(Flow::Yield);
                }
            }
            Op::Store(store) => self.store(warp, at, mask, store)?,
            Op::StoreAsync(store) => self.store_async(warp, mask, store)?,
            Op::Atomic(atomic) => self.atomic(warp, at, mask, atomic)?,
            Op::Branch(target) => return Ok(Flow::Jump(*target)),
            Op::BranchTable { index, targets } => return branch_table(warp, mask, *index, targets),
            Op::Exit => return self.exit(warp, mask),
            Op::Trap => return stop(FaultKind::Trap, "the kernel trapped"),
            Op::Nop => {}
            Op::Collective { op, members } => return self.collective(warp, mask, op, *members),
            Op::ActiveMask(to) => warp.registers.set(*to, &[mask; 32], mask),
            Op::Barrier(barrier) => return self.barrier(warp, mask, waiting, barrier),
            Op::Fence { acquire, release } => self.fence(warp, *acquire, *release),
            Op::CopyAsync(copy) => self.copy_async(warp, at, mask, copy)?,
            Op::CopyCommit => Self::copy_commit(warp, mask),
            Op::CopyWait(keep) => {
                let first = mask.trailing_zeros() as usize;
                let pending = warp.registers.get(*keep)[first] as usize;
                self.tap_copy_wait(pending);
                for lane in lanes(mask) {
                    let keep = warp.registers.get(*keep)[lane] as usize;
                    self.copy_wait(warp, lane, keep)?;
                }
            }
            Op::CopyWaitAll => {
                Self::copy_commit(warp, mask);
                self.tap_copy_wait(0);
                for lane in lanes(mask) {
                    self.copy_wait(warp, lane, 0)?;
                }
            }
            Op::LoadMatrix(matrices) => self.load_matrix(warp, at, mask, matrices)?,
            Op::StoreMatrix(matrices) => self.store_matrix(warp, at, mask, matrices)?,
            Op::Mma(mma) => Self::multiply(warp, mask, mma)?,
            Op::ClusterBarrier(op) => return self.cluster_barrier(warp, mask, waiting, *op),
            Op::Mbarrier(mbarrier) => return self.mbarrier(warp, mask, mbarrier),
            Op::BulkCopy(copy) => self.bulk_copy(warp, mask, copy)?,
            Op::BulkCommit => Self::bulk_commit(warp, mask),
            Op::BulkWait { keep } => {
                for lane in lanes(mask) {
                    let keep = warp.registers.get(*keep)[lane] as usize;
                    self.bulk_wait(warp, lane, keep)?;
                }
            }
        }
        Ok(Flow::Next)
    }

    /// The current step will be executed again.
    fn undo_step(&mut self) {
        if let Some(tap) = &mut self.tap {
            tap.undo();
        }
    }

    fn tap_copy_wait(&mut self, pending: usize) {
        if let Some(tap) = &mut self.tap {
            tap.event(Event::CopyWait {
                pending: pending as u32,
            });
        }
    }

    /// Lanes of `mask` access `bytes` at their places in allocations.
    pub(crate) fn tap_global(
        &mut self,
        places: &[(usize, u64); 32],
        mask: u32,
        bytes: u64,
        writes: bool,
    ) {
        let trackers = &self.env.space.trackers;
        if let Some(tap) = &mut self.tap {
            let address = |lane: usize| {
                let (index, offset) = places[lane];
                trackers[index].allocation.base + offset
            };
            tap.global(address, mask, bytes, writes);
        }
    }

    fn exit(&mut self, warp: &Warp, mask: u32) -> Exec<Flow> {
        for lane in lanes(mask) {
            if !warp.copies[lane].is_empty() {
                return Err(Box::new(Stop {
                    kind: FaultKind::UnwaitedCopy,
                    lane: Some(lane),
                    message: "exit with asynchronous copies that were not waited for".to_owned(),
                }));
            }
            if warp.copies[lane].has_bulk() {
                return Err(Box::new(Stop {
                    kind: FaultKind::UnwaitedCopy,
                    lane: Some(lane),
                    message: "exit with bulk copies that may still read shared memory".to_owned(),
                }));
            }
        }
        if self.clock_is_worn_out(warp) {
            return stop(
                FaultKind::Unsupported,
                "more synchronisations than can be told apart",
            );
        }
        self.blocks[warp.block].running -= mask.count_ones();
        if self.blocks[warp.block].running == 0 {
            self.check_departure(warp.block)?;
        }
        Ok(Flow::Exit)
    }

    /// Adds the place to what went wrong.
    #[cold]
    fn fault(&self, warp: &Warp, at: usize, mask: u32, stop: Stop) -> Fault {
        let instruction = &self.env.kernel.program.code[at];
        let lane = stop.lane.unwrap_or(mask.trailing_zeros() as usize);
        let thread = warp.id as usize * 32 + lane;
        let source = match instruction.source_line {
            0 => String::new(),
            line => format!(" (source line {line})"),
        };
        let message = format!(
            "{}\n  kernel {} block {} warp {} lane {lane} (thread {thread})\n  PTX line {}{source}: {}",
            stop.message,
            self.env.kernel.name,
            self.blocks[warp.block].index,
            warp.id,
            instruction.line,
            instruction.text,
        );
        Fault {
            kind: stop.kind,
            message,
        }
    }
}

/// `brx.idx`: the index is the same in all lanes, or the group splits.
fn branch_table(
    warp: &mut Warp,
    mask: u32,
    index: crate::registers::Slot<u32>,
    targets: &[u32],
) -> Exec<Flow> {
    let index = warp.registers.get(index);
    let first = index[mask.trailing_zeros() as usize];
    if lanes(mask).any(|l| index[l] != first) {
        return stop(
            FaultKind::Unsupported,
            "a branch table whose lanes go different ways",
        );
    }
    match targets.get(first as usize) {
        Some(&target) => Ok(Flow::Jump(target)),
        None => stop(
            FaultKind::IllegalOperand,
            format!("branch table index {first}"),
        ),
    }
}
