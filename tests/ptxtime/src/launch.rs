//! The time of one launch: how many blocks a multiprocessor holds, the replay of what it gets, and what lies beyond.

use crate::machine::Machine;
use crate::mechanism::Mechanism;
use crate::memory::Memory;
use crate::program::Program;
use crate::replay::Replay;
use crate::{Cold, Wait};
use ptxemu::trace::LaunchTrace;
use std::collections::BTreeMap;

/// Registers are handed out to warps in units of these, and warps to the four schedulers in turn.
const REGISTER_UNIT: u64 = 256;
const SCHEDULERS: u64 = 4;
/// Largest share of a launch's time that its longest waits may take for it to count as issuing.
const BUSY: f64 = 0.5;

/// What a launch is predicted to take, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// The kernel's symbol.
    pub kernel: String,
    /// Microseconds, without the gap to the launch before. Infinite where warps wait for what none of the traced blocks
    /// does.
    pub us: f64,
    /// Blocks that a multiprocessor holds.
    pub resident: u32,
    /// Blocks of the grid.
    pub blocks: u64,
    /// The largest share of the multiprocessors that ever has a block.
    pub filled: f64,
    /// What its warps wait for longest; [`Wait::Issue`] also where they hardly wait.
    pub bound_by: Wait,
    /// What its warps wait for.
    pub waits: Waits,
    /// What it moves.
    pub bytes: Bytes,
    /// What it uses that was never measured: its time may be wrong by any factor.
    pub unmeasured: Vec<Mechanism>,
    /// Machine instructions that a multiprocessor issues per clock.
    pub instructions_per_clock: f64,
}

/// What the warps of a launch wait for.
#[derive(Clone, Debug, PartialEq)]
pub struct Waits {
    /// Of the time that warps live, the share that they wait for each.
    pub shares: BTreeMap<Wait, f64>,
    /// How often a warp waits for a load from global memory, on average.
    pub loads_per_warp: f64,
}

/// Bytes that a launch moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bytes {
    /// From DRAM.
    pub dram: f64,
    /// Requested of L2: what L1 did not hold, once for each request, and what is written.
    pub l2: f64,
    /// The most that one multiprocessor had on its way.
    pub in_flight: f64,
}

impl Timing {
    /// Predicts a launch of a kernel that takes `registers` per thread.
    pub fn of(trace: &LaunchTrace, registers: u32, cold: &Cold, machine: &Machine) -> Timing {
        let blocks = trace.grid_blocks();
        let resident = resident(trace, registers, machine);
        let multiprocessors = machine.multiprocessors as u64;
        let total = blocks.div_ceil(multiprocessors) as usize;
        let active = blocks.min(multiprocessors) as f64;
        let program = Program::new(trace, machine);
        // Two waves show how one follows another; what is left is alike.
        let replayed = total
            .min(
                (2 * resident)
                    .max(resident + 2)
                    .max(program.blocks.len() / program.together),
            )
            .max(1);
        let block_bytes = f64::from(trace.shared_bytes) + machine.shared_per_block;
        let shared_bytes = block_bytes * resident.min(total) as f64;
        let memory = || Memory::new(machine, cold, active, shared_bytes);
        let outcome = Replay::new(machine, &program, memory).run(replayed, resident);
        let replayed_blocks = replayed * program.together;
        let ended = outcome.ends.len() == replayed_blocks;
        let until = |blocks_each: usize| {
            outcome
                .ends
                .iter()
                .take(blocks_each * program.together)
                .copied()
                .fold(0.0, f64::max)
        };
        let mut clocks = until(replayed);
        if total > replayed {
            let per_block = (clocks - until(resident)) / (replayed - resident) as f64;
            clocks += (total - replayed) as f64 * per_block;
        }
        let of_grid = blocks as f64 / replayed_blocks as f64;
        let dram = outcome.moved.dram * of_grid;
        // What lies beyond the replay cannot be read faster than memory gives it.
        clocks = clocks.max(dram / machine.dram_bytes);
        let lived = outcome.lived.max(1.0);
        let shares: BTreeMap<Wait, f64> = outcome
            .waited
            .iter()
            .map(|(&wait, clocks)| (wait, clocks / lived))
            .collect();
        Timing {
            kernel: trace.kernel.clone(),
            us: if ended {
                machine.us(clocks)
            } else {
                f64::INFINITY
            },
            resident: resident as u32,
            blocks,
            filled: active / machine.multiprocessors,
            bound_by: bound_by(&shares),
            waits: Waits {
                shares,
                loads_per_warp: outcome.load_waits as f64 / outcome.warps.max(1) as f64,
            },
            bytes: Bytes {
                dram,
                l2: outcome.moved.l2 * of_grid,
                in_flight: outcome.moved.in_flight,
            },
            unmeasured: Mechanism::ALL
                .into_iter()
                .filter(|mechanism| mechanism.is_in(trace))
                .collect(),
            instructions_per_clock: outcome.instructions
                / program.together as f64
                / until(replayed).max(1.0),
        }
    }
}

/// What is waited for longest. Who waits in a barrier waits for a warp that waits for something else: that counts.
fn bound_by(shares: &BTreeMap<Wait, f64>) -> Wait {
    let causes = shares
        .iter()
        .filter(|(wait, _)| !matches!(wait, Wait::Barrier | Wait::Cluster));
    let total: f64 = shares.values().sum();
    match causes.max_by(|a, b| a.1.total_cmp(b.1)) {
        Some((&wait, _)) if total >= BUSY => wait,
        _ => Wait::Issue,
    }
}

/// Blocks that a multiprocessor holds.
fn resident(trace: &LaunchTrace, registers: u32, machine: &Machine) -> usize {
    let warps = u64::from(trace.threads.div_ceil(32)).max(1);
    let per_warp = (u64::from(registers.max(1)) * 32).next_multiple_of(REGISTER_UNIT);
    let by_registers = machine.registers as u64 / per_warp / SCHEDULERS * SCHEDULERS / warps;
    let block_bytes = f64::from(trace.shared_bytes) + machine.shared_per_block;
    let by_shared = (machine.shared_bytes / block_bytes) as u64;
    let by_threads = machine.threads as u64 / (32 * warps);
    by_registers
        .min(by_shared)
        .min(by_threads)
        .clamp(1, machine.blocks as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(threads: u32, shared_bytes: u32) -> LaunchTrace {
        LaunchTrace {
            threads,
            shared_bytes,
            ..LaunchTrace::default()
        }
    }

    #[test]
    fn registers_shared_memory_threads_and_slots_bound_the_blocks() {
        let of = |threads, registers, shared_bytes| {
            resident(&launch(threads, shared_bytes), registers, &Machine::H200)
        };
        assert_eq!(of(256, 80, 0), 3);
        assert_eq!(of(256, 128, 0), 2);
        // Warps are handed out to four schedulers: 24 of 80 registers fit, 4 blocks of 5.
        assert_eq!(of(160, 80, 0), 4);
        assert_eq!(of(128, 32, 100 << 10), 2);
        assert_eq!(of(1024, 32, 0), 2);
        assert_eq!(of(32, 16, 0), 32);
        assert_eq!(of(1024, 255, 0), 1, "what was launched fits");
    }

    #[test]
    fn barriers_are_not_what_a_launch_is_bound_by() {
        let shares = |shares: &[(Wait, f64)]| shares.iter().copied().collect();
        let waits = [
            (Wait::Barrier, 0.5),
            (Wait::DramLatency, 0.3),
            (Wait::Mma, 0.1),
        ];
        assert_eq!(bound_by(&shares(&waits)), Wait::DramLatency);
        assert_eq!(bound_by(&shares(&[(Wait::Mma, 0.4)])), Wait::Issue);
        assert_eq!(bound_by(&shares(&[])), Wait::Issue);
    }
}
