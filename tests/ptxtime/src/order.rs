//! The order in which the assembler issues a basic block: list scheduling by the longest path to its end.

use crate::cost::{Charge, ends_block};
use crate::machine::Machine;
use ptxemu::trace::{Cost, Instruction};
use std::collections::{BTreeMap, BTreeSet};

/// What the assembler is assumed to expect of a load from global memory, in clocks.
const EXPECTED_LOAD: f64 = 60.0;

/// For each instruction its place in the order of issue, within its basic block.
pub(crate) fn ranks(code: &[Instruction], charges: &[Charge], machine: &Machine) -> Vec<u32> {
    let mut ranks: Vec<u32> = (0..code.len() as u32).collect();
    let mut begin = 0;
    while begin < code.len() {
        let more = |end: &usize| !code[*end].is_target && !ends_block(code[*end - 1].cost);
        let end = (begin + 1..code.len()).take_while(more).last();
        let end = end.map_or(begin + 1, |last| last + 1);
        let block = Block::new(&code[begin..end], &charges[begin..end], machine);
        for (place, index) in block.schedule().into_iter().enumerate() {
            ranks[begin + index] = (begin + place) as u32;
        }
        begin = end;
    }
    ranks
}

/// The dependences of a basic block.
struct Block {
    /// Issue slots of each instruction.
    slots: Vec<f64>,
    /// Those that wait for it, each with the clocks that it waits.
    successors: Vec<Vec<(usize, f64)>>,
    /// How many each waits for.
    predecessors: Vec<usize>,
    /// Clocks from its issue to the end of the block.
    heights: Vec<f64>,
}

/// What an instruction does to a kind of memory.
fn memory_access(cost: Cost) -> Option<(bool, bool)> {
    let (shared, writes) = match cost {
        Cost::LoadShared => (true, false),
        Cost::StoreShared
        | Cost::AtomicShared
        | Cost::CopyAsync
        | Cost::BulkCopy
        | Cost::StoreAsync => (true, true),
        Cost::LoadStrong => (false, false),
        Cost::StoreGlobal | Cost::AtomicGlobal => (false, true),
        _ => return None,
    };
    Some((shared, writes))
}

impl Block {
    fn new(code: &[Instruction], charges: &[Charge], machine: &Machine) -> Self {
        let expected = |index: usize| match code[index].cost {
            Cost::LoadGlobal | Cost::LoadStrong | Cost::AtomicGlobal => EXPECTED_LOAD,
            Cost::LoadShared | Cost::AtomicShared => machine.shared_latency,
            _ => charges[index].latency,
        };
        let mut predecessors: Vec<Vec<(usize, f64)>> = vec![Vec::new(); code.len()];
        let mut writer: BTreeMap<u32, usize> = BTreeMap::new();
        let mut readers: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        // By kind of memory: the last store, and the loads since.
        let mut store = [None; 2];
        let mut loads = [Vec::new(), Vec::new()];
        for (index, instruction) in code.iter().enumerate() {
            let before = &mut predecessors[index];
            for register in reads(instruction) {
                before.extend(writer.get(&register).map(|&by| (by, expected(by))));
                readers.entry(register).or_default().push(index);
            }
            for register in &instruction.writes {
                before.extend(writer.insert(*register, index).map(|by| (by, 0.0)));
                let readers = readers.remove(register).unwrap_or_default();
                before.extend(
                    readers
                        .into_iter()
                        .filter(|&by| by != index)
                        .map(|by| (by, 0.0)),
                );
            }
            if let Some((shared, writes)) = memory_access(instruction.cost) {
                let kind = usize::from(shared);
                before.extend(store[kind].map(|by| (by, 0.0)));
                if writes {
                    before.extend(loads[kind].drain(..).map(|by| (by, 0.0)));
                    store[kind] = Some(index);
                } else {
                    loads[kind].push(index);
                }
            }
            if ends_block(instruction.cost) {
                before.extend((0..index).map(|by| (by, 0.0)));
            }
        }
        let mut heights = vec![0.0f64; code.len()];
        for index in (0..code.len()).rev() {
            for &(by, clocks) in &predecessors[index] {
                heights[by] = heights[by].max(heights[index] + clocks.max(1.0));
            }
        }
        let mut successors = vec![Vec::new(); code.len()];
        for (index, before) in predecessors.iter().enumerate() {
            for &(by, clocks) in before {
                successors[by].push((index, clocks));
            }
        }
        Self {
            slots: charges.iter().map(|charge| charge.slots).collect(),
            successors,
            predecessors: predecessors.iter().map(Vec::len).collect(),
            heights,
        }
    }

    /// The instructions in order of issue: of those that need not wait, the one furthest from the end.
    fn schedule(mut self) -> Vec<usize> {
        let mut earliest = vec![0.0f64; self.slots.len()];
        let ready = (0..self.slots.len()).filter(|&index| self.predecessors[index] == 0);
        let mut ready: BTreeSet<usize> = ready.collect();
        let mut now = 0.0f64;
        let mut order = Vec::with_capacity(self.slots.len());
        loop {
            let issuable = ready.iter().filter(|&&index| earliest[index] <= now);
            let furthest = issuable
                .max_by(|&&a, &&b| self.heights[a].total_cmp(&self.heights[b]).then(b.cmp(&a)));
            let soonest = || {
                let by_time = |a: &&usize, b: &&usize| earliest[**a].total_cmp(&earliest[**b]);
                ready.iter().min_by(by_time)
            };
            let Some(&next) = furthest.or_else(soonest) else {
                return order;
            };
            ready.remove(&next);
            order.push(next);
            now = now.max(earliest[next]) + self.slots[next].max(0.01);
            for &(index, clocks) in &self.successors[next] {
                earliest[index] = earliest[index].max(now + clocks);
                self.predecessors[index] -= 1;
                if self.predecessors[index] == 0 {
                    ready.insert(index);
                }
            }
        }
    }
}

/// The registers that an instruction reads. Where a guard decides about it lane by lane, what it writes is one of them.
pub(crate) fn reads(instruction: &Instruction) -> impl Iterator<Item = u32> + '_ {
    let kept = instruction.writes.iter().filter(|_| instruction.guarded);
    instruction.reads.iter().chain(kept).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::charge;

    fn instruction(cost: Cost, reads: &[u32], writes: &[u32]) -> Instruction {
        Instruction {
            cost,
            reads: reads.to_vec(),
            writes: writes.to_vec(),
            guarded: false,
            is_target: false,
        }
    }

    fn order(code: &[Instruction]) -> Vec<u32> {
        let machine = Machine::H200;
        let charges: Vec<Charge> = code.iter().map(|i| charge(i.cost, &machine)).collect();
        ranks(code, &charges, &machine)
    }

    #[test]
    fn loads_are_issued_before_what_does_not_need_them() {
        let code = [
            instruction(Cost::Float, &[1], &[2]),
            instruction(Cost::LoadGlobal, &[0], &[3]),
            instruction(Cost::Float, &[3], &[4]),
            instruction(Cost::LoadGlobal, &[0], &[5]),
            instruction(Cost::Float, &[5], &[6]),
        ];
        assert_eq!(order(&code), [2, 0, 3, 1, 4]);
    }

    #[test]
    fn nothing_crosses_a_barrier_a_branch_or_a_label() {
        let load = instruction(Cost::LoadGlobal, &[0], &[9]);
        let float = instruction(Cost::Float, &[1], &[2]);
        for cost in [Cost::Barrier, Cost::Branch, Cost::CopyWait] {
            let code = [float.clone(), instruction(cost, &[], &[]), load.clone()];
            assert_eq!(order(&code), [0, 1, 2], "{cost:?}");
        }
        let mut target = load.clone();
        target.is_target = true;
        assert_eq!(order(&[float.clone(), target]), [0, 1]);
        let user = instruction(Cost::Float, &[9], &[3]);
        assert_eq!(order(&[float, load, user]), [1, 0, 2]);
    }

    #[test]
    fn stores_to_shared_memory_stay_behind_the_loads_before_them() {
        let code = [
            instruction(Cost::LoadShared, &[0], &[1]),
            instruction(Cost::StoreShared, &[2], &[]),
            instruction(Cost::LoadShared, &[0], &[3]),
            instruction(Cost::Float, &[3], &[4]),
        ];
        assert_eq!(order(&code), [0, 1, 2, 3]);
    }

    #[test]
    fn registers_are_not_overwritten_before_they_are_read() {
        let code = [
            instruction(Cost::Float, &[1], &[2]),
            instruction(Cost::LoadGlobal, &[0], &[1]),
            instruction(Cost::Float, &[1], &[3]),
        ];
        assert_eq!(order(&code), [0, 1, 2]);
    }
}
