//! A traced launch made ready for its replay: costs, registers by number, and the steps of each warp in the order of issue.

use crate::cost::{Charge, charge, ends_block};
use crate::machine::Machine;
use crate::order::{ranks, reads};
use ptxemu::trace::{Cost, Event, Instruction, LaunchTrace, Phase, WarpTrace};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// A launch as it is replayed.
pub(crate) struct Program {
    pub(crate) code: Vec<Code>,
    /// Registers of a warp.
    pub(crate) registers: usize,
    /// The sampled blocks by their warps.
    pub(crate) blocks: Vec<Vec<Steps>>,
    /// Blocks of a set that run together, each on a multiprocessor of its own.
    pub(crate) together: usize,
    /// By set: how many steps a phase waits for.
    pub(crate) phases: Vec<HashMap<Phase, u32>>,
}

/// An instruction, its registers numbered from 0.
pub(crate) struct Code {
    pub(crate) cost: Cost,
    pub(crate) charge: Charge,
    pub(crate) reads: Vec<usize>,
    pub(crate) writes: Vec<usize>,
}

/// What a warp executes, in the order of issue.
#[derive(Default)]
pub(crate) struct Steps {
    /// Indices of instructions, each with the place of its events.
    pub(crate) steps: Vec<(u32, Range<u32>)>,
    pub(crate) events: Vec<Event>,
}

impl Steps {
    fn new(trace: &WarpTrace, code: &[Instruction], ranks: &[u32]) -> Self {
        let mut steps = Steps::default();
        let mut block_begin = 0;
        let mut last: Option<u32> = None;
        for step in trace.steps() {
            let begins = last.is_none_or(|last| {
                // Predicates skip what no lane executes without a branch.
                let before = &code[last as usize];
                let skips = before.cost == Cost::Free && before.guarded && step.index > last;
                step.index != last + 1 && !skips
                    || code[step.index as usize].is_target
                    || ends_block(code[last as usize].cost)
            });
            if begins {
                steps.sort(block_begin, ranks);
                block_begin = steps.steps.len();
            }
            last = Some(step.index);
            let first = steps.events.len() as u32;
            steps.events.extend(step.events());
            steps
                .steps
                .push((step.index, first..steps.events.len() as u32));
        }
        steps.sort(block_begin, ranks);
        steps
    }

    /// Puts the basic block that begins at a step in the order of issue.
    fn sort(&mut self, begin: usize, ranks: &[u32]) {
        self.steps[begin..].sort_by_key(|(index, _)| ranks[*index as usize]);
    }
}

/// What a step does about a phase that others wait for.
pub(crate) fn completes(event: &Event) -> Option<Phase> {
    match *event {
        Event::Arrives(phase)
        | Event::ArrivesCopied(phase)
        | Event::Copies(phase)
        | Event::Stores(phase)
        | Event::Tells(phase) => Some(phase),
        _ => None,
    }
}

/// The phases of a set of blocks.
fn phases(blocks: &[Vec<Steps>]) -> HashMap<Phase, u32> {
    let mut phases = HashMap::new();
    let warps = blocks.iter().flatten();
    for phase in warps.flat_map(|warp| &warp.events).filter_map(completes) {
        *phases.entry(phase).or_default() += 1;
    }
    phases
}

impl Program {
    pub(crate) fn new(trace: &LaunchTrace, machine: &Machine) -> Self {
        let charges: Vec<Charge> = trace
            .code
            .iter()
            .map(|instruction| charge(instruction.cost, machine))
            .collect();
        let ranks = ranks(&trace.code, &charges, machine);
        let mut numbers: BTreeMap<u32, usize> = BTreeMap::new();
        let mut number = |register: u32| {
            let next = numbers.len();
            *numbers.entry(register).or_insert(next)
        };
        let code = trace.code.iter().zip(charges);
        let code = code.map(|(instruction, charge)| Code {
            cost: instruction.cost,
            charge,
            reads: reads(instruction).map(&mut number).collect(),
            writes: instruction
                .writes
                .iter()
                .copied()
                .map(&mut number)
                .collect(),
        });
        let code = code.collect();
        let warps = |warps: &Vec<WarpTrace>| {
            let steps = |warp| Steps::new(warp, &trace.code, &ranks);
            warps.iter().map(steps).collect()
        };
        let blocks: Vec<Vec<Steps>> = trace.blocks.iter().map(warps).collect();
        let together = trace.together.max(1) as usize;
        Self {
            code,
            registers: numbers.len(),
            phases: blocks.chunks(together).map(phases).collect(),
            blocks,
            together,
        }
    }
}
