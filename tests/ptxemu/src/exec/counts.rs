//! Counters of one host thread, merged into a [`Report`] at the end.

use super::global::GlobalSpace;
use crate::op::{Class, Program};
use crate::registers::lanes;
use crate::report::{AccessCounts, BankConflict, ClassCounts, Report, SharedCounts, Traffic};

/// Bytes of a sector of global memory.
const SECTOR: u64 = 32;

/// Reads or writes of one allocation, with one bit per touched cell.
#[derive(Clone, Default)]
struct Touched {
    counts: AccessCounts,
    bits: Vec<u64>,
}

#[derive(Clone, Default)]
struct Allocations {
    read: Touched,
    written: Touched,
}

/// Counters of one host thread.
pub(crate) struct Counts {
    pub(crate) warp_instructions: u64,
    pub(crate) lane_instructions: u64,
    pub(crate) divergent: u64,
    classes: [u64; Class::COUNT],
    shared: SharedCounts,
    /// Requests and extra wavefronts per instruction.
    conflicts: Vec<(u64, u64)>,
    allocations: Vec<Allocations>,
}

impl Counts {
    pub(crate) fn new(program: &Program, space: &GlobalSpace) -> Self {
        Self {
            warp_instructions: 0,
            lane_instructions: 0,
            divergent: 0,
            classes: [0; Class::COUNT],
            shared: SharedCounts::default(),
            conflicts: vec![(0, 0); program.code.len()],
            allocations: vec![Allocations::default(); space.trackers.len()],
        }
    }

    #[inline(always)]
    pub(crate) fn instruction(&mut self, class: Class, active: u32, divergent: bool) {
        self.warp_instructions += 1;
        self.lane_instructions += u64::from(active.count_ones());
        self.divergent += u64::from(divergent);
        self.classes[class as usize] += 1;
    }

    pub(crate) fn shared_request(&mut self, at: usize, needed: u64, fewest: u64) {
        self.shared.requests += 1;
        self.shared.wavefronts += needed;
        self.shared.extra_wavefronts += needed - fewest;
        self.conflicts[at].0 += 1;
        self.conflicts[at].1 += needed - fewest;
    }

    /// Notes that cells of an allocation were touched by one lane.
    #[inline(always)]
    pub(crate) fn touch(
        &mut self,
        space: &GlobalSpace,
        index: usize,
        offset: u64,
        bytes: u64,
        writes: bool,
    ) {
        let allocation = &mut self.allocations[index];
        let touched = if writes {
            &mut allocation.written
        } else {
            &mut allocation.read
        };
        touched.counts.bytes += bytes;
        if touched.bits.is_empty() {
            touched.bits = vec![0; space.cell_count(index).div_ceil(64) as usize];
        }
        for cell in space.cell_range(offset, bytes) {
            touched.bits[cell / 64] |= 1 << (cell % 64);
        }
    }

    /// Counts a warp-level request, given the allocation and offset that each lane touched.
    pub(crate) fn request(
        &mut self,
        places: &[(usize, u64); 32],
        mut mask: u32,
        bytes: u64,
        writes: bool,
    ) {
        while mask != 0 {
            let index = places[mask.trailing_zeros() as usize].0;
            let mut sectors = [0u64; 64];
            let mut count = 0;
            let mut sorted = true;
            let mut mine = 0;
            for lane in lanes(mask) {
                let (other, offset) = places[lane];
                if other != index {
                    continue;
                }
                mine |= 1 << lane;
                for sector in [offset / SECTOR, (offset + bytes - 1) / SECTOR] {
                    if count == 0 || sectors[count - 1] != sector {
                        sorted &= count == 0 || sectors[count - 1] < sector;
                        sectors[count] = sector;
                        count += 1;
                    }
                }
            }
            let distinct = if sorted {
                count
            } else {
                sectors[..count].sort_unstable();
                1 + sectors[..count].windows(2).filter(|w| w[0] != w[1]).count()
            };
            let allocation = &mut self.allocations[index];
            let touched = if writes {
                &mut allocation.written
            } else {
                &mut allocation.read
            };
            touched.counts.requests += 1;
            touched.counts.sectors += distinct as u64;
            mask &= !mine;
        }
    }

    /// Counts a bulk copy as one request.
    pub(crate) fn bulk_request(&mut self, index: usize, offset: u64, bytes: u64, writes: bool) {
        if bytes == 0 {
            return;
        }
        let allocation = &mut self.allocations[index];
        let touched = if writes {
            &mut allocation.written
        } else {
            &mut allocation.read
        };
        touched.counts.requests += 1;
        touched.counts.sectors += (offset + bytes - 1) / SECTOR - offset / SECTOR + 1;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.warp_instructions += other.warp_instructions;
        self.lane_instructions += other.lane_instructions;
        self.divergent += other.divergent;
        for (a, b) in self.classes.iter_mut().zip(other.classes) {
            *a += b;
        }
        self.shared.requests += other.shared.requests;
        self.shared.wavefronts += other.shared.wavefronts;
        self.shared.extra_wavefronts += other.shared.extra_wavefronts;
        for (a, b) in self.conflicts.iter_mut().zip(&other.conflicts) {
            *a = (a.0 + b.0, a.1 + b.1);
        }
        for (a, b) in self.allocations.iter_mut().zip(&other.allocations) {
            a.read.merge(&b.read);
            a.written.merge(&b.written);
        }
    }

    pub(crate) fn report(&self, program: &Program, space: &GlobalSpace) -> Report {
        let of = |class: Class| self.classes[class as usize];
        let mut bank_conflicts: Vec<BankConflict> = program
            .code
            .iter()
            .zip(&self.conflicts)
            .filter(|(_, (_, extra))| *extra > 0)
            .map(
                |(instruction, &(requests, extra_wavefronts))| BankConflict {
                    line: instruction.line,
                    source_line: instruction.source_line,
                    text: instruction.text.clone(),
                    requests,
                    extra_wavefronts,
                },
            )
            .collect();
        bank_conflicts.sort_by_key(|c| std::cmp::Reverse(c.extra_wavefronts));
        let traffic = space.trackers.iter().zip(&self.allocations);
        let traffic = traffic.filter(|(_, a)| a.read.counts.bytes + a.written.counts.bytes > 0);
        let traffic = traffic.map(|(tracker, a)| Traffic {
            base: tracker.allocation.base,
            len: tracker.allocation.len,
            label: tracker.allocation.label(),
            read: a.read.finish(space.granule()),
            written: a.written.finish(space.granule()),
        });
        Report {
            warp_instructions: self.warp_instructions,
            lane_instructions: self.lane_instructions,
            divergent_instructions: self.divergent,
            classes: ClassCounts {
                integer: of(Class::Integer),
                float: of(Class::Float),
                convert: of(Class::Convert),
                moves: of(Class::Move),
                global: of(Class::Global),
                shared: of(Class::Shared),
                other_memory: of(Class::OtherMemory),
                async_copy: of(Class::AsyncCopy),
                mma: of(Class::Mma),
                warp: of(Class::Warp),
                barrier: of(Class::Barrier),
                control: of(Class::Control),
            },
            shared: self.shared,
            bank_conflicts,
            traffic: traffic.collect(),
        }
    }
}

impl Touched {
    fn merge(&mut self, other: &Self) {
        self.counts.requests += other.counts.requests;
        self.counts.bytes += other.counts.bytes;
        self.counts.sectors += other.counts.sectors;
        self.bits.resize(self.bits.len().max(other.bits.len()), 0);
        for (a, b) in self.bits.iter_mut().zip(&other.bits) {
            *a |= b;
        }
    }

    fn finish(&self, granule: u64) -> AccessCounts {
        let cells: u64 = self.bits.iter().map(|w| u64::from(w.count_ones())).sum();
        // A sector is 32/granule cells, which divides the 64 cells of a word.
        let per_sector = (SECTOR / granule) as u32;
        let sector_mask = u64::MAX >> (64 - per_sector);
        let sectors: u64 = self
            .bits
            .iter()
            .map(|word| {
                let parts = (0..64 / per_sector).map(|i| word >> (i * per_sector) & sector_mask);
                parts.filter(|&p| p != 0).count() as u64
            })
            .sum();
        AccessCounts {
            distinct_bytes: cells * granule,
            distinct_sectors: sectors,
            ..self.counts
        }
    }
}
