//! Where warps meet: barriers of the block and of the cluster, phases of mbarriers, and words that blocks store for each
//! other.

use super::{HERE, Multiprocessor, Replay, STORE_CLOCKS, completes};
use crate::Wait;
use crate::memory::Arrival;
use ptxemu::trace::{Cost, Event};

/// A phase that warps wait for.
pub(super) struct PhaseState {
    /// Steps that have not been executed.
    remaining: u32,
    /// When the last of those that have is complete.
    last: Arrival,
    /// Warps that wait, and since when.
    waiting: Vec<(usize, f64)>,
}

impl Replay<'_> {
    fn phase(&mut self, index: usize, phase: ptxemu::trace::Phase) -> &mut PhaseState {
        let set = self.blocks[self.warps[index].block].set;
        let known = &self.program.phases[set % self.program.phases.len()];
        let remaining = known.get(&phase).copied().unwrap_or(0);
        self.phases.entry((set, phase)).or_insert(PhaseState {
            remaining,
            last: HERE,
            waiting: Vec::new(),
        })
    }

    /// Whether what a step waits for has happened. If it has not, the warp is woken when it has.
    pub(super) fn has_met(&mut self, now: f64, index: usize, events: &[Event]) -> bool {
        let latency = self.machine.mbarrier_latency;
        let waits = events.iter().find_map(|event| match *event {
            Event::Waits(phase) => Some((phase, latency)),
            Event::Told(phase) => Some((phase, 0.0)),
            _ => None,
        });
        let Some((phase, latency)) = waits else {
            return true;
        };
        let state = self.phase(index, phase);
        if state.remaining > 0 {
            state.waiting.push((index, now));
            return false;
        }
        let Arrival { at, wait } = state.last;
        if at + latency > now {
            self.outcome.load_waits += u64::from(wait.is_load());
            self.wake(at + latency, (index, now), wait);
            return false;
        }
        true
    }

    /// What a step does about phases that others wait for, and when that is complete.
    pub(super) fn complete(&mut self, now: f64, index: usize, events: &[Event]) {
        let machine = self.machine;
        let mut begin = now;
        let mut copied = HERE;
        for event in events {
            let warp = &self.warps[index];
            let block = &self.blocks[warp.block];
            let Multiprocessor { memory, .. } = &mut self.multiprocessors[block.multiprocessor];
            let complete = match *event {
                Event::Read { first, sectors } if events.iter().any(is_copy) => {
                    copied = memory.copy(begin, first, sectors, warp.replica);
                    begin += machine.bulk_interval;
                    continue;
                }
                Event::Copies(_) => copied,
                Event::Stores(_) => Arrival {
                    at: memory.shared(now, STORE_CLOCKS, machine.store_latency).at,
                    wait: Wait::Cluster,
                },
                Event::Tells(_) => Arrival {
                    at: now + machine.word_latency,
                    wait: Wait::Cluster,
                },
                Event::ArrivesCopied(_) => {
                    let copies = warp.copies.iter().chain([&warp.open_copies]);
                    let last = copies.max_by(|a, b| a.at.total_cmp(&b.at));
                    *last.filter(|copy| copy.at > now).unwrap_or(&Arrival {
                        at: now,
                        wait: Wait::Barrier,
                    })
                }
                _ => Arrival {
                    at: now,
                    wait: Wait::Barrier,
                },
            };
            let Some(phase) = completes(event) else {
                continue;
            };
            let state = self.phase(index, phase);
            state.remaining -= 1;
            if complete.at > state.last.at {
                state.last = complete;
            }
            if state.remaining == 0 {
                // They look again, and then know how long it takes.
                for (warp, since) in std::mem::take(&mut state.waiting) {
                    self.wake(now, (warp, since), complete.wait);
                }
            }
        }
    }

    pub(super) fn arrive(
        &mut self,
        now: f64,
        next: f64,
        index: usize,
        cost: Cost,
        events: &[Event],
    ) {
        let arrival = events.iter().find_map(|event| match *event {
            Event::Barrier { id, threads } => Some((id, threads)),
            _ => None,
        });
        let (id, threads) = arrival.unwrap_or((0, 0));
        let block = &mut self.blocks[self.warps[index].block];
        let expected = match threads {
            0 => block.live,
            threads => u64::from(threads) / 32,
        };
        let barrier = block.barriers.entry(id).or_default();
        barrier.arrived += 1;
        if barrier.arrived < expected {
            if cost == Cost::Barrier {
                barrier.waiting.push((index, now));
            } else {
                self.due(next, index);
            }
            return;
        }
        barrier.arrived = 0;
        let mut released = std::mem::take(&mut barrier.waiting);
        released.push((index, now));
        for waiting in released {
            self.wake(now + self.machine.barrier_latency, waiting, Wait::Barrier);
        }
    }

    /// The blocks of a cluster are alike: they arrive together.
    pub(super) fn arrive_at_cluster(&mut self, now: f64, next: f64, index: usize) {
        let block = &mut self.blocks[self.warps[index].block];
        block.cluster_arrived += 1;
        let mut released = Vec::new();
        let done = now + self.machine.cluster_latency;
        if block.cluster_arrived >= block.live {
            block.cluster_arrived = 0;
            block.cluster_done.push(done);
            released = std::mem::take(&mut block.cluster_waiting);
        }
        for waiting in released {
            self.wake(done, waiting, Wait::Cluster);
        }
        self.due(next, index);
    }

    pub(super) fn wait_for_cluster(&mut self, next: f64, index: usize) {
        let warp = &mut self.warps[index];
        let phase = warp.cluster_phase;
        warp.cluster_phase += 1;
        let block = &mut self.blocks[warp.block];
        match block.cluster_done.get(phase).copied() {
            Some(done) => self.wake(next.max(done), (index, next), Wait::Cluster),
            None => block.cluster_waiting.push((index, next)),
        }
    }
}

fn is_copy(event: &Event) -> bool {
    matches!(event, Event::Copies(_))
}
