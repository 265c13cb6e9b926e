//! Loads, stores and atomics.

use super::address::{self, Window};
use super::engine::Engine;
use super::shared::wavefronts;
use super::stop::{AtLane, Exec, stop};
use super::warp::{StrongRead, Warp};
use crate::fault::FaultKind;
use crate::op::{Address, Atomic, Load, Order, Store};
use crate::parse::Space;
use crate::registers::lanes;
use crate::trace::Event;

/// Where an address leads, after the checks of bounds and alignment.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    Shared { block: usize, offset: u64 },
    Global { index: usize, offset: u64 },
    Local(usize),
    Param(usize),
}

/// Marks keys of shared locations apart from global addresses.
const SHARED_KEY: u64 = 1 << 63;

/// What the lanes of one request touched, for the counters.
struct Request {
    global: [(usize, u64); 32],
    global_mask: u32,
    shared: [u64; 32],
    shared_mask: u32,
    /// Some lane reaches for the shared memory of another block.
    remote: bool,
}

impl Request {
    fn new() -> Self {
        Self {
            global: [(0, 0); 32],
            global_mask: 0,
            shared: [0; 32],
            shared_mask: 0,
            remote: false,
        }
    }

    #[inline(always)]
    fn add(&mut self, lane: usize, place: Place, own_block: usize) {
        match place {
            Place::Global { index, offset } => {
                self.global[lane] = (index, offset);
                self.global_mask |= 1 << lane;
            }
            Place::Shared { block, offset } => {
                self.remote |= block != own_block;
                self.shared[lane] = offset;
                self.shared_mask |= 1 << lane;
            }
            Place::Local(_) | Place::Param(_) => {}
        }
    }
}

impl Engine<'_> {
    /// The address of a lane.
    #[inline(always)]
    pub(crate) fn address(warp: &Warp, address: Address, lane: usize) -> u64 {
        warp.registers
            .wide(address.base, lane)
            .wrapping_add_signed(address.offset)
    }

    /// Where an address in a space leads. `align` is a power of two.
    #[inline(always)]
    pub(crate) fn place(
        &self,
        warp: &mut Warp,
        lane: usize,
        space: Space,
        address: u64,
        (bytes, align): (u64, u64),
        what: &str,
    ) -> Exec<Place> {
        let window = match space {
            Space::Global | Space::Const => Window::Global,
            Space::Shared | Space::SharedCluster => Window::Shared,
            Space::Local => Window::Local,
            Space::Param => Window::Param,
            Space::Generic => Window::of(address),
        };
        match window {
            Window::Global => {
                let offset = self
                    .env
                    .space
                    .locate(&mut warp.hint, address, bytes, align, what)
                    .at_lane(lane)?;
                Ok(Place::Global {
                    index: warp.hint,
                    offset,
                })
            }
            Window::Shared => self
                .shared_place(warp, address, (bytes, align), what)
                .at_lane(lane),
            Window::Local => {
                let size = u64::from(self.env.kernel.local_bytes);
                let offset = address & 0xffff_ffff;
                if offset + bytes > size {
                    return stop(
                        FaultKind::OutOfBounds,
                        format!("{what} of {bytes} bytes at local {offset:#x}; there are {size}"),
                    )
                    .at_lane(lane);
                }
                Self::check_alignment(offset, align, what).at_lane(lane)?;
                Ok(Place::Local((lane as u64 * size + offset) as usize))
            }
            Window::Param => {
                let offset = address & 0xffff_ffff;
                if offset + bytes > self.env.kernel.param_bytes as u64 {
                    let text = format!("{what} of {bytes} bytes at parameter offset {offset}");
                    return stop(FaultKind::OutOfBounds, text).at_lane(lane);
                }
                Self::check_alignment(offset, align, what).at_lane(lane)?;
                Ok(Place::Param(offset as usize))
            }
        }
    }

    fn check_alignment(offset: u64, align: u64, what: &str) -> Exec<()> {
        if offset & (align - 1) == 0 {
            return Ok(());
        }
        stop(
            FaultKind::Misaligned,
            format!("{what} at offset {offset:#x}, not a multiple of {align}"),
        )
    }

    /// Where a shared address leads, in the own block or another one of the cluster.
    #[inline(always)]
    pub(crate) fn shared_place(
        &self,
        warp: &Warp,
        address: u64,
        (bytes, align): (u64, u64),
        what: &str,
    ) -> Exec<Place> {
        let block = match address::rank(address) {
            None => warp.block,
            Some(rank) if u64::from(rank) < self.env.cluster.count() => {
                self.blocks[warp.block].cluster_start + rank as usize
            }
            Some(rank) => {
                let text = format!("{what} at shared memory of block rank {rank} of the cluster");
                return stop(FaultKind::OutOfBounds, text);
            }
        };
        if block != warp.block {
            self.visit(warp, block, what)?;
        }
        let offset = address::offset(address);
        self.blocks[block]
            .shared
            .check(offset, bytes, align, what)?;
        Ok(Place::Shared { block, offset })
    }

    /// Notes that a warp reaches for the shared memory of another block of its cluster, which must run.
    fn visit(&self, warp: &Warp, block: usize, what: &str) -> Exec<()> {
        let cluster = self.blocks[block].cluster_start / self.env.cluster.count() as usize;
        if !self.clusters[cluster].has_met() {
            let text =
                format!("{what} in another block, which need not run before a cluster barrier");
            return stop(FaultKind::SharedRace, text);
        }
        if self.blocks[block].running == 0 {
            let text = format!("{what} in another block, all threads of which have exited");
            return stop(FaultKind::UseAfterFree, text);
        }
        let tick = self.clocks.tick(warp.index);
        self.blocks[block]
            .visits
            .borrow_mut()
            .insert(warp.index, tick);
        Ok(())
    }

    /// Whether every access of other blocks to the shared memory of `block` is ordered before what one of its warps has
    /// seen; it goes when the last of them exits.
    pub(crate) fn check_departure(&self, block: usize) -> Exec<()> {
        let per_block = self.env.warps_per_block;
        let own = block * per_block..(block + 1) * per_block;
        for (&visitor, &tick) in &*self.blocks[block].visits.borrow() {
            let seen = |warp: usize| self.clocks.warp_ordered(visitor, tick, warp);
            if self.env.options.check_races && !own.clone().any(seen) {
                let (other, warp) = (visitor / per_block, visitor % per_block);
                let rank = other - self.blocks[other].cluster_start;
                let text = format!(
                    "the last thread of a block exits while warp {warp} of the block with rank {rank} may still access \
                     its shared memory"
                );
                return stop(FaultKind::SharedRace, text);
            }
        }
        Ok(())
    }

    fn key(&self, place: Place) -> Option<u64> {
        match place {
            Place::Global { index, offset } => {
                Some(self.env.space.trackers[index].allocation.base + offset)
            }
            Place::Shared { block, offset } => {
                Some(SHARED_KEY | self.group << 40 | (block as u64) << 24 | offset)
            }
            Place::Local(_) | Place::Param(_) => None,
        }
    }

    fn load_element(&self, warp: &Warp, place: Place, at: u64, bytes: u32) -> u64 {
        match place {
            Place::Shared { block, offset } => self.blocks[block].shared.load(offset + at, bytes),
            Place::Global { index, offset } => self.env.space.trackers[index]
                .allocation
                .load(offset + at, bytes),
            Place::Local(offset) => from_bytes(&warp.local[offset + at as usize..], bytes),
            Place::Param(offset) => {
                from_bytes(&self.env.launch.params[offset + at as usize..], bytes)
            }
        }
    }

    fn store_element(&mut self, warp: &mut Warp, place: Place, at: u64, bytes: u32, value: u64) {
        match place {
            Place::Shared { block, offset } => {
                self.blocks[block].shared.store(offset + at, bytes, value);
            }
            Place::Global { index, offset } => {
                self.env.space.trackers[index]
                    .allocation
                    .store(offset + at, bytes, value);
            }
            Place::Local(offset) => {
                let at = offset + at as usize;
                let data = &value.to_le_bytes()[..bytes as usize];
                warp.local[at..at + data.len()].copy_from_slice(data);
            }
            Place::Param(_) => {}
        }
    }

    #[inline(always)]
    fn note(
        &mut self,
        warp: &Warp,
        lane: usize,
        place: Place,
        bytes: u64,
        order: Order,
        writes: bool,
    ) -> Exec<()> {
        let who = Self::who(warp, lane, order);
        match place {
            Place::Shared { block, offset } => {
                let shared = &mut self.blocks[block].shared;
                let noted = if writes {
                    shared.note_write(offset, bytes, who, &self.clocks)
                } else {
                    shared.note_read(offset, bytes, who, &self.clocks)
                };
                noted.at_lane(lane)
            }
            Place::Global { index, offset } => {
                let accessor = self.accessor(who);
                let noted = if writes {
                    self.env.space.note_write(index, offset, bytes, &accessor)
                } else {
                    self.env.space.note_read(index, offset, bytes, &accessor)
                };
                self.counts
                    .touch(self.env.space, index, offset, bytes, writes);
                noted.at_lane(lane)
            }
            Place::Local(_) | Place::Param(_) => Ok(()),
        }
    }

    fn count(&mut self, at: usize, request: &Request, bytes: u64, reads: bool, writes: bool) {
        if request.global_mask != 0 {
            for (counts, writes) in [(reads, false), (writes, true)] {
                if counts {
                    self.counts
                        .request(&request.global, request.global_mask, bytes, writes);
                }
            }
            self.tap_global(&request.global, request.global_mask, bytes, !reads);
        }
        if request.shared_mask != 0 {
            let (needed, fewest) = wavefronts(&request.shared, request.shared_mask, bytes as u32);
            self.counts.shared_request(at, needed, fewest);
            if let Some(tap) = &mut self.tap {
                tap.event(Event::Shared {
                    wavefronts: needed as u32,
                    remote: request.remote,
                });
            }
        }
    }

    /// Tells whether it only repeated a strong read of global memory, and found nothing new.
    pub(crate) fn load(&mut self, warp: &mut Warp, at: usize, mask: u32, op: &Load) -> Exec<bool> {
        let bytes = u64::from(op.bytes) * op.to.len() as u64;
        let mut request = Request::new();
        let mut found = Vec::new();
        for lane in lanes(mask) {
            let address = Self::address(warp, op.from, lane);
            let place = self.place(warp, lane, op.space, address, (bytes, bytes), "read")?;
            self.note(warp, lane, place, bytes, op.order, false)?;
            request.add(lane, place, warp.block);
            for (index, &slot) in op.to.iter().enumerate() {
                let value =
                    self.load_element(warp, place, u64::from(op.bytes) * index as u64, op.bytes);
                let unused = 64 - op.bytes * 8;
                let value = if op.signed {
                    ((value << unused) as i64 >> unused) as u64
                } else {
                    value
                };
                warp.registers.set_wide(slot, lane, value);
                if op.order.strong && matches!(place, Place::Global { .. }) {
                    found.push((address, value));
                }
            }
            if op.order.strong
                && let Some(key) = self.key(place)
            {
                self.observe(warp, key, op.order);
            }
        }
        self.count(at, &request, bytes, true, false);
        if let Some(tap) = &mut self.tap
            && !found.is_empty()
        {
            let addresses = found.iter().map(|&(address, _)| address).collect();
            tap.look(at, addresses);
        }
        if found.is_empty() {
            return Ok(false);
        }
        let read = StrongRead { mask, found };
        let before = warp.last_reads.insert(at, read.clone());
        Ok(before == Some(read))
    }

    pub(crate) fn store(&mut self, warp: &mut Warp, at: usize, mask: u32, op: &Store) -> Exec<()> {
        let bytes = u64::from(op.bytes) * op.from.len() as u64;
        let mut request = Request::new();
        for lane in lanes(mask) {
            let address = Self::address(warp, op.to, lane);
            let place = self.place(warp, lane, op.space, address, (bytes, bytes), "write")?;
            if let Place::Param(_) = place {
                return stop(FaultKind::IllegalOperand, "write to a parameter").at_lane(lane);
            }
            self.note(warp, lane, place, bytes, op.order, true)?;
            request.add(lane, place, warp.block);
            for (index, &slot) in op.from.iter().enumerate() {
                let value = warp.registers.wide(slot, lane);
                let offset = u64::from(op.bytes) * index as u64;
                self.store_element(warp, place, offset, op.bytes, value);
                if op.order.strong
                    && let Some(tap) = &mut self.tap
                    && let Place::Global { .. } = place
                {
                    tap.tell(warp.block, address + offset, value);
                }
            }
            if op.order.strong
                && let Some(key) = self.key(place)
            {
                self.events += 1;
                self.publish(warp, key, op.order);
            }
        }
        self.count(at, &request, bytes, false, true);
        Ok(())
    }

    pub(crate) fn atomic(
        &mut self,
        warp: &mut Warp,
        at: usize,
        mask: u32,
        op: &Atomic,
    ) -> Exec<()> {
        let bytes = u64::from(op.bytes) * op.b.len() as u64;
        let mut request = Request::new();
        for lane in lanes(mask) {
            let address = Self::address(warp, op.address, lane);
            let place = self.place(warp, lane, op.space, address, (bytes, bytes), "atomic")?;
            if matches!(place, Place::Local(_) | Place::Param(_)) {
                let text = "an atomic on local or parameter memory";
                return stop(FaultKind::IllegalOperand, text).at_lane(lane);
            }
            self.note(warp, lane, place, bytes, op.order, false)?;
            self.note(warp, lane, place, bytes, op.order, true)?;
            request.add(lane, place, warp.block);
            for (index, &b) in op.b.iter().enumerate() {
                let offset = u64::from(op.bytes) * index as u64;
                let old = self.load_element(warp, place, offset, op.bytes);
                let b = warp.registers.wide(b, lane);
                let c = op.c.map_or(0, |c| warp.registers.wide(c, lane));
                self.store_element(warp, place, offset, op.bytes, (op.combine)(old, b, c));
                if let Some(&to) = op.to.get(index) {
                    warp.registers.set_wide(to, lane, old);
                }
            }
            self.events += 1;
            if let Some(key) = self.key(place) {
                self.observe(warp, key, op.order);
                self.publish(warp, key, op.order);
            }
        }
        self.count(at, &request, bytes, true, true);
        Ok(())
    }
}

fn from_bytes(bytes: &[u8], count: u32) -> u64 {
    bytes[..count as usize]
        .iter()
        .rev()
        .fold(0, |value, &byte| value << 8 | u64::from(byte))
}
