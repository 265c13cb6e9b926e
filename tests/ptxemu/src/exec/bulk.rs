//! `cp.async.bulk`, `st.async`, and everything that completes on an mbarrier. Copies land when no warp can go
//! on without them, the newest first: as late, and in as unexpected an order, as is legal.

use super::access::Place;
use super::engine::Engine;
use super::shared::Who;
use super::stop::{AtLane, Exec, stop};
use super::warp::{BulkStore, Warp};
use crate::fault::FaultKind;
use crate::op::{BulkCopy, BulkKind, Order, StoreAsync};
use crate::parse::Space;
use crate::registers::lanes;
use crate::trace::Event;

/// Alignment of addresses and size of a bulk copy.
const BULK_ALIGN: u64 = 16;

/// Where the data of a copy comes from.
#[derive(Clone)]
pub(crate) enum Source {
    Global {
        index: usize,
        offset: u64,
    },
    Shared {
        block: usize,
        offset: u64,
    },
    /// What registers held when it was issued.
    Registers(Vec<u8>),
}

/// Something in flight that will complete on an mbarrier.
pub(crate) enum Pending {
    Bulk {
        from: Source,
        to: (usize, u64),
        bytes: u64,
        mbarrier: (usize, u64),
    },
    /// The arrival of `cp.async.mbarrier.arrive`.
    LaneCopies {
        warp: usize,
        lane: usize,
        mbarrier: (usize, u64),
    },
}

impl Engine<'_> {
    pub(crate) fn bulk_copy(&mut self, warp: &mut Warp, mask: u32, op: &BulkCopy) -> Exec<()> {
        for lane in lanes(mask) {
            self.bulk_lane(warp, lane, op).at_lane(lane)?;
        }
        Ok(())
    }

    fn bulk_lane(&mut self, warp: &mut Warp, lane: usize, op: &BulkCopy) -> Exec<()> {
        let bytes = u64::from(warp.registers.get(op.bytes)[lane]);
        let (to, from) = (
            Self::address(warp, op.to, lane),
            Self::address(warp, op.from, lane),
        );
        if bytes % BULK_ALIGN != 0 {
            let text = format!("a bulk copy of {bytes} bytes, not a multiple of 16");
            return stop(FaultKind::Misaligned, text);
        }
        let extent = (bytes, BULK_ALIGN);
        let who = Self::who(warp, lane, Order::default());
        let source = match op.kind {
            BulkKind::GlobalToShared { .. } => {
                let offset =
                    self.env
                        .space
                        .locate(&mut warp.hint, from, bytes, BULK_ALIGN, "bulk copy")?;
                let index = warp.hint;
                self.env
                    .space
                    .note_read(index, offset, bytes, &self.accessor(who))?;
                self.counts
                    .touch(self.env.space, index, offset, bytes, false);
                self.counts.bulk_request(index, offset, bytes, false);
                Source::Global { index, offset }
            }
            BulkKind::SharedToCluster { .. } | BulkKind::SharedToGlobal => {
                match self.place(warp, lane, Space::Shared, from, extent, "bulk copy")? {
                    Place::Shared { block, offset } if block == warp.block => {
                        let shared = &mut self.blocks[block].shared;
                        shared.note_read(offset, bytes, who, &self.clocks)?;
                        shared.expect_departure(offset, bytes);
                        Source::Shared { block, offset }
                    }
                    _ => {
                        let text = "a bulk copy from another block's shared memory";
                        return stop(FaultKind::IllegalOperand, text);
                    }
                }
            }
        };
        match op.kind {
            BulkKind::SharedToGlobal => {
                let Source::Shared { block, offset } = source else {
                    return Ok(());
                };
                let to_offset =
                    self.env
                        .space
                        .locate(&mut warp.hint, to, bytes, BULK_ALIGN, "bulk copy")?;
                self.env
                    .space
                    .note_write(warp.hint, to_offset, bytes, &self.accessor(who))?;
                self.counts
                    .touch(self.env.space, warp.hint, to_offset, bytes, true);
                self.counts.bulk_request(warp.hint, to_offset, bytes, true);
                let store = BulkStore {
                    block,
                    from: offset,
                    to,
                    bytes,
                };
                warp.copies[lane].bulk_open.push(store);
            }
            BulkKind::GlobalToShared {
                mbarrier,
                multicast,
            } => {
                let mbarrier = Self::address(warp, mbarrier, lane);
                match multicast {
                    None => self.issue(warp, who, source, to, mbarrier, extent)?,
                    Some(ranks) => {
                        let ranks = warp.registers.get(ranks)[lane] & 0xffff;
                        for rank in lanes(ranks) {
                            let at = |address| super::address::of_rank(address, rank as u32);
                            self.issue(warp, who, source.clone(), at(to), at(mbarrier), extent)?;
                        }
                    }
                }
            }
            BulkKind::SharedToCluster { mbarrier } => {
                let mbarrier = Self::address(warp, mbarrier, lane);
                self.issue(warp, who, source, to, mbarrier, extent)?;
            }
        }
        Ok(())
    }

    pub(crate) fn store_async(&mut self, warp: &mut Warp, mask: u32, op: &StoreAsync) -> Exec<()> {
        let bytes = u64::from(op.bytes) * op.from.len() as u64;
        for lane in lanes(mask) {
            let element = |&slot| {
                let value: u64 = warp.registers.wide(slot, lane);
                value.to_le_bytes().into_iter().take(op.bytes as usize)
            };
            let data = op.from.iter().flat_map(element).collect();
            let who = Self::who(warp, lane, Order::default());
            let (to, mbarrier) = (
                Self::address(warp, op.to, lane),
                Self::address(warp, op.mbarrier, lane),
            );
            let source = Source::Registers(data);
            self.issue(warp, who, source, to, mbarrier, (bytes, bytes))
                .at_lane(lane)?;
        }
        Ok(())
    }

    /// Puts a copy to shared memory in flight.
    fn issue(
        &mut self,
        warp: &Warp,
        who: Who,
        from: Source,
        to: u64,
        mbarrier: u64,
        (bytes, align): (u64, u64),
    ) -> Exec<()> {
        let place = self.shared_place(warp, to, (bytes, align), "asynchronous copy")?;
        let Place::Shared { block, offset } = place else {
            return Ok(());
        };
        let place = self.shared_place(warp, mbarrier, (8, 8), "mbarrier access")?;
        let Place::Shared {
            block: at_block,
            offset: at_offset,
        } = place
        else {
            return Ok(());
        };
        if at_block != block {
            let text = "a copy whose mbarrier is in another block than its destination";
            return stop(FaultKind::IllegalOperand, text);
        }
        let phase = self.state((at_block, at_offset))?.phase();
        let mbarrier = (at_block, at_offset);
        match from {
            Source::Registers(_) => self.tap_phase(Event::Stores, mbarrier, phase),
            Source::Global { index, offset } => {
                let mut places = [(0, 0); 32];
                places[0] = (index, offset);
                self.tap_global(&places, 1, bytes, false);
                self.tap_phase(Event::Copies, mbarrier, phase);
            }
            Source::Shared { .. } => self.tap_phase(Event::Copies, mbarrier, phase),
        }
        let strong = Who {
            strong: true,
            ..who
        };
        self.blocks[at_block]
            .shared
            .note_mbarrier(at_offset, strong, &self.clocks)?;
        let shared = &mut self.blocks[block].shared;
        shared.note_write(offset, bytes, who, &self.clocks)?;
        shared.expect_arrival(offset, bytes);
        // What the issuing thread has seen is ordered before the copy.
        let row = self.clocks.release(warp.index);
        let engine = self.clocks.engine();
        self.clocks.acquire(engine, &row);
        self.pending.push(Pending::Bulk {
            from,
            to: (block, offset),
            bytes,
            mbarrier,
        });
        Ok(())
    }

    /// Completes the newest copy in flight; `false` if there is none.
    pub(crate) fn land_one(&mut self, warps: &mut [Warp]) -> Exec<bool> {
        let Some(pending) = self.pending.pop() else {
            return Ok(false);
        };
        let engine = self.clocks.engine();
        let who = Who {
            warp: engine,
            lane: 0,
            strong: false,
        };
        match pending {
            Pending::Bulk {
                from,
                to: (block, offset),
                bytes,
                mbarrier,
            } => {
                let data = self.read_source(from, bytes, who)?;
                let shared = &mut self.blocks[block].shared;
                shared.end_arrival(offset, bytes);
                shared.note_write(offset, bytes, who, &self.clocks)?;
                shared.write_slice(offset, &data);
                let row = self.clocks.release(engine);
                self.complete_transactions(mbarrier, bytes, &row)?;
            }
            Pending::LaneCopies {
                warp,
                lane,
                mbarrier,
            } => {
                let warp = &mut warps[warp];
                let row = self.clocks.release(warp.index);
                self.clocks.acquire(engine, &row);
                let copies = &mut warp.copies[lane];
                let mut all: Vec<_> = copies
                    .committed
                    .iter_mut()
                    .flat_map(std::mem::take)
                    .collect();
                all.append(&mut copies.open);
                for copy in all {
                    self.finish_copy(warp.block, &mut warp.hint, copy, who)?;
                }
                let row = self.clocks.release(engine);
                self.arrive(mbarrier, 1, &row, false)?;
            }
        }
        Ok(true)
    }

    fn read_source(&mut self, from: Source, bytes: u64, who: Who) -> Exec<Vec<u8>> {
        match from {
            Source::Global { index, offset } => {
                self.env
                    .space
                    .note_read(index, offset, bytes, &self.accessor(who))?;
                let allocation = &self.env.space.trackers[index].allocation;
                Ok((0..bytes)
                    .map(|i| allocation.load(offset + i, 1) as u8)
                    .collect())
            }
            Source::Shared { block, offset } => {
                let shared = &mut self.blocks[block].shared;
                shared.end_departure(offset, bytes);
                shared.note_read(offset, bytes, who, &self.clocks)?;
                Ok(shared.slice(offset, bytes).to_vec())
            }
            Source::Registers(data) => Ok(data),
        }
    }

    pub(crate) fn bulk_commit(warp: &mut Warp, mask: u32) {
        for lane in lanes(mask) {
            let copies = &mut warp.copies[lane];
            let open = std::mem::take(&mut copies.bulk_open);
            copies.bulk_committed.push_back(open);
        }
    }

    /// Completes the oldest bulk groups of a lane until at most `keep` are pending.
    pub(crate) fn bulk_wait(&mut self, warp: &mut Warp, lane: usize, keep: usize) -> Exec<()> {
        let who = Self::who(warp, lane, Order::default());
        while warp.copies[lane].bulk_committed.len() > keep {
            for store in warp.copies[lane]
                .bulk_committed
                .pop_front()
                .unwrap_or_default()
            {
                let source = Source::Shared {
                    block: store.block,
                    offset: store.from,
                };
                let data = self.read_source(source, store.bytes, who).at_lane(lane)?;
                let space = self.env.space;
                let offset = space
                    .locate(
                        &mut warp.hint,
                        store.to,
                        store.bytes,
                        BULK_ALIGN,
                        "bulk copy",
                    )
                    .at_lane(lane)?;
                let accessor = self.accessor(who);
                space
                    .note_write(warp.hint, offset, store.bytes, &accessor)
                    .at_lane(lane)?;
                let allocation = &space.trackers[warp.hint].allocation;
                for (i, byte) in data.into_iter().enumerate() {
                    allocation.store(offset + i as u64, 1, byte.into());
                }
            }
        }
        Ok(())
    }
}
