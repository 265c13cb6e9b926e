//! Memory as one multiprocessor sees it: its queue for shared memory and L1 tags, L1, its port to L2, and its share of
//! L2 and DRAM. Each is a server: what comes later waits until what came before is through.

use crate::machine::Machine;
use crate::{Cold, Wait};
use ptxemu::trace::{Event, SECTOR_BYTES};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};

const SECTOR: f64 = SECTOR_BYTES as f64;
/// Sectors whose tags L1 looks up in a clock, and runs of adjacent sectors.
const TAGS_PER_CLOCK: f64 = 4.0;
const RUNS_PER_CLOCK: f64 = 2.0;
/// Bytes that all banks of shared memory take in a clock.
const SHARED_BYTES_PER_CLOCK: f64 = 128.0;
/// Sectors of a bulk copy that come together.
const SECTORS_AT_ONCE: u32 = 8;

/// When something is there, and what it waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) at: f64,
    pub(crate) wait: Wait,
}

/// Bytes moved, of the blocks that were replayed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moved {
    pub(crate) dram: f64,
    pub(crate) l2: f64,
    /// Most that was on its way at one time.
    pub(crate) in_flight: f64,
}

pub(crate) struct Memory<'a> {
    machine: &'a Machine,
    cold: &'a Cold,
    /// Multiprocessors that share L2 and DRAM.
    active: f64,
    queue_free: f64,
    port_free: f64,
    l2_free: f64,
    dram_free: f64,
    /// Sectors in L1 with the time they came, oldest first in the list.
    l1: HashMap<u64, f64>,
    l1_order: VecDeque<u64>,
    l1_sectors: usize,
    /// Cold sectors that were read already.
    touched: HashSet<u64>,
    /// What bulk copies bring: when it comes (as bits), its bytes, and those of them that come from DRAM.
    coming: BinaryHeap<Reverse<(u64, u64, u64)>>,
    /// Reads on their way: when they end (as bits, which order like the times), and their bytes.
    on_the_way: BinaryHeap<Reverse<(u64, u64)>>,
    bytes_on_the_way: f64,
    pub(crate) moved: Moved,
}

impl<'a> Memory<'a> {
    /// Memory of one of `active` multiprocessors whose blocks take `shared_bytes`.
    pub(crate) fn new(
        machine: &'a Machine,
        cold: &'a Cold,
        active: f64,
        shared_bytes: f64,
    ) -> Self {
        let l1_bytes = machine
            .l1_most_bytes
            .min(machine.l1_and_shared_bytes - shared_bytes)
            .max(machine.l1_least_bytes);
        Self {
            machine,
            cold,
            active,
            queue_free: 0.0,
            port_free: 0.0,
            l2_free: 0.0,
            dram_free: 0.0,
            l1: HashMap::new(),
            l1_order: VecDeque::new(),
            l1_sectors: (l1_bytes / SECTOR) as usize,
            touched: HashSet::new(),
            coming: BinaryHeap::new(),
            on_the_way: BinaryHeap::new(),
            bytes_on_the_way: 0.0,
            moved: Moved::default(),
        }
    }

    /// An access to shared memory that takes `wavefronts` passes and `latency` from the last of them.
    pub(crate) fn shared(&mut self, now: f64, wavefronts: f64, latency: f64) -> Arrival {
        self.take_what_came(now);
        let begin = now.max(self.queue_free);
        self.queue_free = begin + wavefronts;
        Arrival {
            at: begin + wavefronts - 1.0 + latency,
            wait: Wait::Shared,
        }
    }

    /// Takes the queue for an access to global memory; returns when it begins.
    fn queue(&mut self, now: f64, events: &[Event]) -> (f64, u32) {
        self.take_what_came(now);
        let (mut sectors, mut runs) = (0, 0);
        for event in events {
            if let Event::Read { sectors: len, .. } | Event::Written { sectors: len, .. } = event {
                sectors += len;
                runs += 1;
            }
        }
        let begin = now.max(self.queue_free);
        let clocks = (f64::from(sectors) / TAGS_PER_CLOCK).max(f64::from(runs) / RUNS_PER_CLOCK);
        self.queue_free = begin + clocks.max(1.0);
        (begin, sectors)
    }

    /// A read. `replica` tells the copies of a block apart that stand for other blocks: their cold sectors are others.
    pub(crate) fn read(
        &mut self,
        now: f64,
        events: &[Event],
        replica: u64,
        through_l1: bool,
    ) -> Arrival {
        let machine = self.machine;
        let (begin, _) = self.queue(now, events);
        let mut last = Arrival {
            at: begin + machine.l1_latency,
            wait: Wait::L1,
        };
        let mut bytes = 0.0;
        for event in events {
            let Event::Read { first, sectors } = *event else {
                continue;
            };
            for sector in first..first + sectors {
                let arrival = self.read_sector(begin, sector, replica, through_l1, &mut bytes);
                if arrival.at > last.at {
                    last = arrival;
                }
            }
        }
        self.note_in_flight(begin, last.at, bytes);
        last
    }

    /// A bulk copy of adjacent sectors to shared memory, whose queue it takes as they come. What comes from DRAM takes the
    /// port and L2 then too, for it is DRAM that it waits for.
    pub(crate) fn copy(&mut self, begin: f64, first: u32, sectors: u32, replica: u64) -> Arrival {
        self.take_what_came(begin);
        let mut last = Arrival {
            at: begin,
            wait: Wait::L2Latency,
        };
        let mut all = 0.0;
        for from in (first..first + sectors).step_by(SECTORS_AT_ONCE as usize) {
            let mut arrival = last;
            let (mut bytes, mut from_dram) = (0.0, 0.0);
            for sector in from..(from + SECTORS_AT_ONCE).min(first + sectors) {
                let key = u64::from(sector) | replica << 40;
                if self.cold.holds(sector) && self.touched.insert(key) {
                    arrival = self.read_dram(begin, begin);
                    self.moved.l2 += SECTOR;
                    from_dram += SECTOR;
                    bytes += SECTOR;
                } else {
                    arrival = self.read_sector(begin, sector, replica, false, &mut bytes);
                }
            }
            let coming = (arrival.at.to_bits(), bytes as u64, from_dram as u64);
            self.coming.push(Reverse(coming));
            all += bytes;
            if arrival.at > last.at {
                last = arrival;
            }
        }
        last.at += self.machine.bulk_latency;
        self.note_in_flight(begin, last.at, all);
        last
    }

    /// Lets what bulk copies have brought until `now` through.
    fn take_what_came(&mut self, now: f64) {
        while let Some(&Reverse((at, bytes, from_dram))) = self.coming.peek()
            && f64::from_bits(at) <= now
        {
            self.coming.pop();
            let (at, machine) = (f64::from_bits(at), self.machine);
            let from_dram = from_dram as f64;
            self.port_free = self.port_free.max(at) + from_dram / machine.port_bytes;
            self.l2_free = self.l2_free.max(at) + from_dram * self.active / machine.l2_bytes;
            self.queue_free = self.queue_free.max(at) + bytes as f64 / SHARED_BYTES_PER_CLOCK;
        }
    }

    /// A cold sector, asked for at `begin` and not before it was `served` elsewhere.
    fn read_dram(&mut self, begin: f64, served: f64) -> Arrival {
        let machine = self.machine;
        self.moved.dram += SECTOR;
        self.dram_free = self.dram_free.max(begin) + SECTOR * self.active / machine.dram_bytes;
        later(
            begin,
            served.max(self.dram_free),
            machine.dram_latency,
            Wait::DramLatency,
            Wait::DramBytes,
        )
    }

    fn read_sector(
        &mut self,
        begin: f64,
        sector: u32,
        replica: u64,
        through_l1: bool,
        bytes: &mut f64,
    ) -> Arrival {
        let machine = self.machine;
        let cold = self.cold.holds(sector);
        let key = u64::from(sector) | if cold { replica << 40 } else { 0 };
        if through_l1 && let Some(&at) = self.l1.get(&key) {
            return Arrival { at, wait: Wait::L1 };
        }
        *bytes += SECTOR;
        self.moved.l2 += SECTOR;
        self.port_free = self.port_free.max(begin) + SECTOR / machine.port_bytes;
        self.l2_free = self.l2_free.max(begin) + SECTOR * self.active / machine.l2_bytes;
        let served = self.port_free.max(self.l2_free);
        let mut arrival = later(
            begin,
            served,
            machine.l2_latency,
            Wait::L2Latency,
            Wait::L2Bytes,
        );
        if cold && self.touched.insert(key) {
            arrival = self.read_dram(begin, served);
        }
        if through_l1 {
            self.l1.insert(key, arrival.at);
            self.l1_order.push_back(key);
            if self.l1_order.len() > self.l1_sectors
                && let Some(oldest) = self.l1_order.pop_front()
            {
                self.l1.remove(&oldest);
            }
        }
        arrival
    }

    /// A write: nobody waits for it.
    pub(crate) fn write(&mut self, now: f64, events: &[Event]) {
        let (begin, sectors) = self.queue(now, events);
        let bytes = SECTOR * f64::from(sectors);
        self.l2_free = self.l2_free.max(begin) + bytes * self.active / self.machine.l2_bytes;
        self.moved.l2 += bytes;
    }

    fn note_in_flight(&mut self, begin: f64, end: f64, bytes: f64) {
        while let Some(&Reverse((at, done))) = self.on_the_way.peek()
            && f64::from_bits(at) <= begin
        {
            self.on_the_way.pop();
            self.bytes_on_the_way -= done as f64;
        }
        if bytes > 0.0 {
            self.on_the_way.push(Reverse((end.to_bits(), bytes as u64)));
            self.bytes_on_the_way += bytes;
            self.moved.in_flight = self.moved.in_flight.max(self.bytes_on_the_way);
        }
    }
}

/// Something asked for at `begin` and served at `served`, `latency` on the way: waits for bytes where the queue before it
/// took longer than the way.
fn later(begin: f64, served: f64, latency: f64, way: Wait, queue: Wait) -> Arrival {
    Arrival {
        at: served + latency,
        wait: if served - begin > latency { queue } else { way },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(first: u32, sectors: u32) -> [Event; 1] {
        [Event::Read { first, sectors }]
    }

    #[test]
    fn a_sector_is_cold_once_then_in_l1_and_elsewhere_in_l2() {
        let machine = Machine::H200;
        let cold = Cold::from_sectors(vec![(0, 100)]);
        let mut memory = Memory::new(&machine, &cold, 1.0, 0.0);
        let first = memory.read(0.0, &read(7, 1), 0, true);
        assert_eq!(first.wait, Wait::DramLatency);
        assert!(first.at > machine.dram_latency);
        let again = memory.read(10_000.0, &read(7, 1), 0, true);
        assert_eq!(
            (again.at, again.wait),
            (10_000.0 + machine.l1_latency, Wait::L1)
        );
        let past_l1 = memory.read(20_000.0, &read(7, 1), 0, false);
        assert_eq!(past_l1.wait, Wait::L2Latency);
        let replica = memory.read(30_000.0, &read(7, 1), 1, false);
        assert_eq!(replica.wait, Wait::DramLatency);
        let warm = memory.read(40_000.0, &read(100, 1), 1, false);
        assert_eq!(warm.wait, Wait::L2Latency);
        assert_eq!((memory.moved.dram, memory.moved.l2), (64.0, 128.0));
    }

    #[test]
    fn a_bulk_copy_is_cold_once_and_takes_the_queue_when_it_comes() {
        let machine = Machine::H200;
        let cold = Cold::from_sectors(vec![(0, 100)]);
        let mut memory = Memory::new(&machine, &cold, 1.0, 0.0);
        let first = memory.copy(0.0, 0, 40, 0);
        assert_eq!(first.wait, Wait::DramLatency);
        assert!(first.at > machine.dram_latency + machine.bulk_latency);
        let before = memory.shared(0.0, 1.0, machine.shared_latency);
        assert_eq!(before.at, machine.shared_latency);
        let came = first.at - machine.bulk_latency + 1e-6;
        let behind = memory.shared(came, 1.0, machine.shared_latency);
        let waits = behind.at - came - machine.shared_latency;
        let all = 40.0 * SECTOR / SHARED_BYTES_PER_CLOCK;
        assert!((all - 1.0..=all).contains(&waits), "{waits}");
        let again = memory.copy(10_000.0, 0, 40, 0);
        assert_eq!(again.wait, Wait::L2Latency);
        assert_eq!(memory.moved.dram, 40.0 * SECTOR);
    }

    #[test]
    fn much_at_once_waits_for_bytes() {
        let machine = Machine::H200;
        let cold = Cold::from_sectors(vec![(0, 1 << 20)]);
        let mut memory = Memory::new(&machine, &cold, 132.0, 0.0);
        let mut last = None;
        for turn in 0..1000 {
            last = Some(memory.read(0.0, &read(64 * turn, 64), 0, false));
        }
        let last = last.unwrap();
        assert_eq!(last.wait, Wait::DramBytes);
        let bytes = 64_000.0 * SECTOR;
        assert!(last.at >= bytes * 132.0 / machine.dram_bytes);
        // What came while the rest was asked for is no longer on its way.
        assert!((bytes / 2.0..bytes).contains(&memory.moved.in_flight));
    }
}
