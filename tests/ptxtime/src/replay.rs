//! A multiprocessor, or several whose blocks wait for each other: four schedulers of each issue the traced instructions of
//! its warps in order, each when its operands, its scheduler and its pipe are there.

mod meet;

use crate::Wait;
use crate::cost::{Charge, Pipe};
use crate::machine::Machine;
use crate::memory::{Arrival, Memory, Moved};
use crate::program::{Code, Program, Steps, completes};
use meet::PhaseState;
use ptxemu::trace::{Cost, Event, Phase};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::ops::Range;

const SCHEDULERS: usize = 4;
/// From the arrival of a copy in shared memory until a wait for it sees it.
const COPY_LATENCY: f64 = 20.0;
/// Machine instructions for each bulk copy that a warp starts.
const BULK_SLOTS: f64 = 10.0;
/// Clocks that a store to another block occupies the queue for shared memory: lanes go to different blocks.
const STORE_CLOCKS: f64 = 2.0;

/// A warp while it runs.
struct Warp<'a> {
    block: usize,
    scheduler: usize,
    steps: &'a Steps,
    /// See [`Memory::read`].
    replica: u64,
    next: usize,
    /// When each register is there.
    registers: Vec<Arrival>,
    /// When the copies of the open group are there, and those of the groups that were closed.
    open_copies: Arrival,
    copies: VecDeque<Arrival>,
    cluster_phase: usize,
    /// When its next matrix product may begin.
    mma_free: f64,
}

#[derive(Default)]
struct Barrier {
    arrived: u64,
    /// Warps that wait, and since when.
    waiting: Vec<(usize, f64)>,
}

struct Block {
    live: u64,
    multiprocessor: usize,
    /// The set it belongs to.
    set: usize,
    barriers: BTreeMap<u32, Barrier>,
    /// Arrivals at the barrier of the cluster in this phase, the times at which phases ended, and who waits.
    cluster_arrived: u64,
    cluster_done: Vec<f64>,
    cluster_waiting: Vec<(usize, f64)>,
}

/// What a replay found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// When blocks ended, in order.
    pub(crate) ends: Vec<f64>,
    pub(crate) instructions: f64,
    /// Warps, the clocks they lived, those they waited by what for, and how often they waited for a load.
    pub(crate) warps: u64,
    pub(crate) lived: f64,
    pub(crate) waited: BTreeMap<Wait, f64>,
    pub(crate) load_waits: u64,
    pub(crate) moved: Moved,
}

const HERE: Arrival = Arrival {
    at: 0.0,
    wait: Wait::Arithmetic,
};

struct Multiprocessor<'a> {
    memory: Memory<'a>,
    scheduler_free: [f64; SCHEDULERS],
    pipe_free: [[f64; Pipe::COUNT]; SCHEDULERS],
}

/// Replays blocks on multiprocessors.
pub(crate) struct Replay<'a> {
    machine: &'a Machine,
    program: &'a Program,
    multiprocessors: Vec<Multiprocessor<'a>>,
    blocks: Vec<Block>,
    /// By the set of a block.
    phases: HashMap<(usize, Phase), PhaseState>,
    warps: Vec<Warp<'a>>,
    /// Warps by the time at which they may go on (as bits, which order like the times).
    due: BinaryHeap<Reverse<(u64, usize)>>,
    outcome: Outcome,
}

impl<'a> Replay<'a> {
    pub(crate) fn new(
        machine: &'a Machine,
        program: &'a Program,
        memory: impl Fn() -> Memory<'a>,
    ) -> Self {
        let multiprocessor = |_| Multiprocessor {
            memory: memory(),
            scheduler_free: [0.0; SCHEDULERS],
            pipe_free: [[0.0; Pipe::COUNT]; SCHEDULERS],
        };
        Self {
            machine,
            program,
            multiprocessors: (0..program.together).map(multiprocessor).collect(),
            blocks: Vec::new(),
            phases: HashMap::new(),
            warps: Vec::new(),
            due: BinaryHeap::new(),
            outcome: Outcome::default(),
        }
    }

    /// Runs `total` blocks on each multiprocessor, `resident` at a time.
    pub(crate) fn run(mut self, total: usize, resident: usize) -> Outcome {
        for _ in 0..resident.min(total) {
            self.start_set(0.0);
        }
        while let Some(Reverse((bits, index))) = self.due.pop() {
            let now = f64::from_bits(bits);
            let warp = &self.warps[index];
            match warp.steps.steps.get(warp.next) {
                None => self.end_warp(now, index, total),
                Some((code, events)) => {
                    let (code, events) = (&self.program.code[*code as usize], events.clone());
                    self.step(now, index, code, events);
                }
            }
        }
        let mut moved = Moved::default();
        for Multiprocessor { memory, .. } in &self.multiprocessors {
            moved.dram += memory.moved.dram;
            moved.l2 += memory.moved.l2;
            moved.in_flight = moved.in_flight.max(memory.moved.in_flight);
        }
        Outcome {
            moved,
            ..self.outcome
        }
    }

    fn due(&mut self, at: f64, warp: usize) {
        self.due.push(Reverse((at.to_bits(), warp)));
    }

    /// A warp goes on at `at`, having waited since `since`.
    fn wake(&mut self, at: f64, (warp, since): (usize, f64), wait: Wait) {
        *self.outcome.waited.entry(wait).or_default() += at - since;
        self.due(at, warp);
    }

    /// Starts the next set of blocks that run together.
    fn start_set(&mut self, now: f64) {
        for multiprocessor in 0..self.program.together {
            self.start_block(now, multiprocessor);
        }
    }

    fn start_block(&mut self, now: f64, multiprocessor: usize) {
        let (block, samples) = (self.blocks.len(), self.program.blocks.len());
        let traces = &self.program.blocks[block % samples];
        self.blocks.push(Block {
            live: traces.len() as u64,
            multiprocessor,
            set: block / self.program.together,
            barriers: BTreeMap::new(),
            cluster_arrived: 0,
            cluster_done: Vec::new(),
            cluster_waiting: Vec::new(),
        });
        for (index, steps) in traces.iter().enumerate() {
            self.due(now, self.warps.len());
            self.outcome.lived -= now;
            self.outcome.warps += 1;
            self.warps.push(Warp {
                block,
                scheduler: (index + block * (traces.len() % SCHEDULERS)) % SCHEDULERS,
                steps,
                replica: (block / samples) as u64,
                next: 0,
                registers: vec![HERE; self.program.registers],
                open_copies: HERE,
                copies: VecDeque::new(),
                cluster_phase: 0,
                mma_free: 0.0,
            });
        }
    }

    fn end_warp(&mut self, now: f64, index: usize, total: usize) {
        let warp = &mut self.warps[index];
        warp.registers = Vec::new();
        self.outcome.lived += now;
        let block = &mut self.blocks[warp.block];
        block.live -= 1;
        if block.live == 0 {
            self.outcome.ends.push(now);
            let ended = self.outcome.ends.len();
            let together = self.program.together;
            if ended.is_multiple_of(together) && self.blocks.len() < total * together {
                self.start_set(now + self.machine.block_start);
            }
            return;
        }
        // Those who wait for all of the block no longer wait for this one.
        let mut released = Vec::new();
        for barrier in block.barriers.values_mut() {
            if barrier.arrived == block.live {
                barrier.arrived = 0;
                released.append(&mut barrier.waiting);
            }
        }
        for waiting in released {
            self.wake(now + self.machine.barrier_latency, waiting, Wait::Barrier);
        }
    }

    /// When the next instruction of a warp can be issued, and what it waits for until then.
    fn ready(&mut self, now: f64, index: usize, code: &Code, events: &[Event]) -> Arrival {
        let warp = &mut self.warps[index];
        let mut ready = Arrival {
            at: now,
            wait: Wait::Arithmetic,
        };
        let mut wait_for = |at: f64, wait: Wait| {
            if at > ready.at {
                ready = Arrival { at, wait };
            }
        };
        for &register in &code.reads {
            let Arrival { at, wait } = warp.registers[register];
            wait_for(at, wait);
        }
        if code.cost == Cost::Free {
            return ready;
        }
        let multiprocessor = &self.multiprocessors[self.blocks[warp.block].multiprocessor];
        wait_for(multiprocessor.scheduler_free[warp.scheduler], Wait::Issue);
        let pipe = code.charge.pipe;
        if pipe != Pipe::None {
            let free = multiprocessor.pipe_free[warp.scheduler][pipe as usize];
            let wait = if pipe == Pipe::Tensor {
                Wait::Mma
            } else {
                Wait::Issue
            };
            wait_for(free, wait);
        }
        if pipe == Pipe::Tensor {
            wait_for(warp.mma_free, Wait::Mma);
        }
        if code.cost == Cost::CopyWait {
            let pending = events.iter().find_map(|event| match event {
                Event::CopyWait { pending } => Some(*pending as usize),
                _ => None,
            });
            while warp.copies.len() > pending.unwrap_or(0) {
                if let Some(Arrival { at, wait }) = warp.copies.pop_front() {
                    wait_for(at, wait);
                }
            }
        }
        ready
    }

    fn step(&mut self, now: f64, index: usize, code: &Code, events: Range<u32>) {
        let steps = self.warps[index].steps;
        let events = &steps.events[events.start as usize..events.end as usize];
        let ready = self.ready(now, index, code, events);
        let machine = self.machine;
        if code.cost == Cost::Free {
            let warp = &mut self.warps[index];
            for &register in &code.writes {
                warp.registers[register] = ready;
            }
            warp.next += 1;
            return self.due(now, index);
        }
        if ready.at <= now && !self.has_met(now, index, events) {
            return;
        }
        if ready.at > now {
            self.outcome.load_waits += u64::from(ready.wait.is_load());
            return self.wake(ready.at, (index, now), ready.wait);
        }
        let Charge {
            pipe,
            mut slots,
            busy,
            latency,
        } = code.charge;
        let mut next = 0.0;
        if code.cost == Cost::BulkCopy {
            let copies = events
                .iter()
                .filter(|event| matches!(event, Event::Copies(_)));
            let copies = copies.count() as f64;
            slots = slots.max(BULK_SLOTS * copies);
            next = now + machine.bulk_interval * copies;
        }
        let warp = &mut self.warps[index];
        let scheduler = warp.scheduler;
        self.outcome.instructions += slots;
        let multiprocessor = &mut self.multiprocessors[self.blocks[warp.block].multiprocessor];
        multiprocessor.scheduler_free[scheduler] = now + slots;
        if pipe != Pipe::None {
            multiprocessor.pipe_free[scheduler][pipe as usize] = now + busy;
        }
        if pipe == Pipe::Tensor {
            warp.mma_free = now + machine.mma_interval * busy / machine.mma_busy;
        }
        let result = self.execute(now, index, code.cost, latency, events);
        let warp = &mut self.warps[index];
        for &register in &code.writes {
            warp.registers[register] = result;
        }
        warp.next += 1;
        next = next.max(now + slots);
        if code.cost == Cost::Branch {
            next += self.branch(index);
        }
        match code.cost {
            Cost::Barrier | Cost::BarrierArrive => self.arrive(now, next, index, code.cost, events),
            Cost::ClusterArrive => self.arrive_at_cluster(now, next, index),
            Cost::ClusterWait => self.wait_for_cluster(next, index),
            _ => self.due(next, index),
        }
    }

    /// What an instruction does to memory, and when its result is there.
    fn execute(
        &mut self,
        now: f64,
        index: usize,
        cost: Cost,
        latency: f64,
        events: &[Event],
    ) -> Arrival {
        let machine = self.machine;
        self.complete(now, index, events);
        let warp = &mut self.warps[index];
        let memory = &mut self.multiprocessors[self.blocks[warp.block].multiprocessor].memory;
        let (mut wavefronts, mut remote, mut reads) = (0.0, false, false);
        for event in events {
            match *event {
                Event::Shared {
                    wavefronts: passes,
                    remote: other,
                } => {
                    wavefronts += f64::from(passes);
                    remote |= other;
                }
                Event::Read { .. } => reads = true,
                _ => {}
            }
        }
        match cost {
            Cost::LoadShared | Cost::StoreShared | Cost::AtomicShared => {
                let latency = if remote {
                    machine.remote_latency
                } else {
                    latency
                };
                return memory.shared(now, wavefronts, latency);
            }
            Cost::LoadGlobal if reads => return memory.read(now, events, warp.replica, true),
            Cost::LoadStrong if reads => return memory.read(now, events, warp.replica, false),
            // A generic address may lead to shared memory.
            Cost::LoadGlobal | Cost::LoadStrong if wavefronts > 0.0 => {
                let latency = if remote {
                    machine.remote_latency
                } else {
                    machine.shared_latency
                };
                return memory.shared(now, wavefronts, latency);
            }
            Cost::AtomicGlobal => {
                memory.write(now, events);
                return Arrival {
                    at: now + machine.l2_latency,
                    wait: Wait::L2Latency,
                };
            }
            Cost::StoreGlobal => memory.write(now, events),
            Cost::CopyAsync if reads => {
                let arrival = memory.read(now, events, warp.replica, false);
                if arrival.at + COPY_LATENCY > warp.open_copies.at {
                    warp.open_copies = Arrival {
                        at: arrival.at + COPY_LATENCY,
                        ..arrival
                    };
                }
            }
            Cost::CopyCommit => {
                let group = std::mem::replace(&mut warp.open_copies, HERE);
                warp.copies.push_back(group);
            }
            _ => {}
        }
        let wait = match cost {
            Cost::Mma | Cost::MmaHalf => Wait::Mma,
            _ => Wait::Arithmetic,
        };
        Arrival {
            at: now + latency,
            wait,
        }
    }

    /// Clocks that a branch takes behind its slot.
    fn branch(&self, index: usize) -> f64 {
        let Warp { steps, next, .. } = &self.warps[index];
        let here = steps.steps[*next - 1].0;
        let taken = steps
            .steps
            .get(*next)
            .is_some_and(|step| step.0 != here + 1);
        if taken {
            self.machine.branch_latency
        } else {
            1.0
        }
    }
}
