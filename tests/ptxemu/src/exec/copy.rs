//! `cp.async`: the destination is poisoned when the copy is issued and written when it is waited
//! for, which is the latest moment that the hardware may choose.

use super::access::Place;
use super::engine::Engine;
use super::shared::{Who, wavefronts};
use super::stop::{AtLane, Exec, stop};
use super::warp::{LaneCopy, Warp};
use crate::fault::FaultKind;
use crate::op::{CopyAsync, Order};
use crate::registers::lanes;
use crate::trace::Event;

impl Engine<'_> {
    pub(crate) fn copy_async(
        &mut self,
        warp: &mut Warp,
        at: usize,
        mask: u32,
        op: &CopyAsync,
    ) -> Exec<()> {
        let ignored = op.ignore.map_or(0, |g| g.bits(&warp.registers));
        let mut sources = [(0, 0); 32];
        let mut reading = 0;
        let mut targets = [0; 32];
        let bytes = u64::from(op.bytes);
        for lane in lanes(mask) {
            let to = Self::address(warp, op.to, lane) & 0xffff_ffff;
            let from = Self::address(warp, op.from, lane);
            let wanted = match op.source_bytes {
                Some(slot) => warp.registers.get(slot)[lane],
                None => op.bytes,
            };
            if wanted > op.bytes {
                let text = format!("a source size of {wanted} for a copy of {bytes}");
                return stop(FaultKind::IllegalOperand, text).at_lane(lane);
            }
            let source_bytes = if ignored >> lane & 1 == 1 { 0 } else { wanted };
            let place = self
                .shared_place(warp, to, (bytes, bytes), "copy")
                .at_lane(lane)?;
            let Place::Shared { block, offset } = place else {
                continue;
            };
            if block != warp.block {
                let text = "cp.async to another block of the cluster";
                return stop(FaultKind::IllegalOperand, text).at_lane(lane);
            }
            let who = Self::who(warp, lane, Order::default());
            let shared = &mut self.blocks[block].shared;
            // The bytes may be overwritten from here on.
            shared
                .note_write(offset, bytes, who, &self.clocks)
                .at_lane(lane)?;
            shared.expect_arrival(offset, bytes);
            targets[lane] = offset;
            if from & (bytes - 1) != 0 {
                let text = format!("source {from:#x} of a copy of {bytes} bytes");
                return stop(FaultKind::Misaligned, text).at_lane(lane);
            }
            if source_bytes > 0 {
                let len = u64::from(source_bytes);
                let space = self.env.space;
                let from_offset = space
                    .locate(&mut warp.hint, from, len, 1, "copy")
                    .at_lane(lane)?;
                space
                    .note_read(warp.hint, from_offset, len, &self.accessor(who))
                    .at_lane(lane)?;
                self.counts.touch(space, warp.hint, from_offset, len, false);
                sources[lane] = (warp.hint, from_offset);
                reading |= 1 << lane;
            }
            let copy = LaneCopy {
                to: offset,
                from,
                bytes: op.bytes,
                source_bytes,
            };
            warp.copies[lane].open.push(copy);
        }
        if reading != 0 {
            self.counts.request(&sources, reading, bytes, false);
            self.tap_global(&sources, reading, bytes, false);
        }
        let (needed, fewest) = wavefronts(&targets, mask, op.bytes);
        self.counts.shared_request(at, needed, fewest);
        if let Some(tap) = &mut self.tap {
            tap.event(Event::Shared {
                wavefronts: needed as u32,
                remote: false,
            });
        }
        Ok(())
    }

    pub(crate) fn copy_commit(warp: &mut Warp, mask: u32) {
        for lane in lanes(mask) {
            let copies = &mut warp.copies[lane];
            let open = std::mem::take(&mut copies.open);
            copies.committed.push_back(open);
        }
    }

    /// Completes the oldest groups of a lane until at most `keep` are pending.
    pub(crate) fn copy_wait(&mut self, warp: &mut Warp, lane: usize, keep: usize) -> Exec<()> {
        let who = Self::who(warp, lane, Order::default());
        while warp.copies[lane].committed.len() > keep {
            for copy in warp.copies[lane].committed.pop_front().unwrap_or_default() {
                self.finish_copy(warp.block, &mut warp.hint, copy, who)
                    .at_lane(lane)?;
            }
        }
        Ok(())
    }

    /// Writes the destination of a copy, on behalf of `who`.
    pub(crate) fn finish_copy(
        &mut self,
        block: usize,
        hint: &mut usize,
        copy: LaneCopy,
        who: Who,
    ) -> Exec<()> {
        let mut data = [0u8; 16];
        let len = u64::from(copy.source_bytes);
        if len > 0 {
            let space = self.env.space;
            let offset = space.locate(hint, copy.from, len, 1, "copy")?;
            space.note_read(*hint, offset, len, &self.accessor(who))?;
            let allocation = &space.trackers[*hint].allocation;
            for (index, byte) in data[..len as usize].iter_mut().enumerate() {
                *byte = allocation.load(offset + index as u64, 1) as u8;
            }
        }
        let bytes = u64::from(copy.bytes);
        let shared = &mut self.blocks[block].shared;
        shared.end_arrival(copy.to, bytes);
        shared.note_write(copy.to, bytes, who, &self.clocks)?;
        shared.write_slice(copy.to, &data[..bytes as usize]);
        Ok(())
    }
}
