//! The shared memory of a block, with a shadow that knows who touched what.

use super::clocks::Clocks;
use super::stop::{Exec, stop};
use crate::fault::FaultKind;
use crate::memory::POISON;
use crate::registers::lanes;

/// Something has written the cell.
const INITIALISED: u8 = 1;
/// An asynchronous copy is about to write the cell.
const ARRIVING: u8 = 2;
/// An asynchronous copy is about to read the cell.
const LEAVING: u8 = 4;
/// The cell is part of an mbarrier.
const MBARRIER: u8 = 8;

/// Who accesses, and whether the access is part of a synchronisation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who {
    pub(crate) warp: usize,
    pub(crate) lane: u32,
    pub(crate) strong: bool,
}

/// A write as it is remembered: never 0, because ticks start at 1.
#[derive(Clone, Copy)]
struct WriteStamp(u64);

impl WriteStamp {
    fn new(who: Who, tick: u32) -> Self {
        let place = (who.warp as u64) << 6 | u64::from(who.lane) << 1 | u64::from(who.strong);
        Self(u64::from(tick) << 32 | place)
    }
    fn tick(self) -> u32 {
        (self.0 >> 32) as u32
    }
    fn warp(self) -> usize {
        (self.0 as u32 >> 6) as usize
    }
    fn lane(self) -> u32 {
        self.0 as u32 >> 1 & 31
    }
    fn strong(self) -> bool {
        self.0 & 1 == 1
    }
}

/// The last read by one warp: tick, lane (32 for several), and whether it was weak. 0 is none.
#[derive(Clone, Copy)]
struct ReadStamp(u32);

const SEVERAL_LANES: u32 = 32;

impl ReadStamp {
    fn new(lane: u32, weak: bool, tick: u32) -> Self {
        Self(tick << 7 | lane << 1 | u32::from(weak))
    }
    fn tick(self) -> u32 {
        self.0 >> 7
    }
    fn lane(self) -> Option<u32> {
        Some(self.0 >> 1 & 63).filter(|&l| l != SEVERAL_LANES)
    }
    fn weak(self) -> bool {
        self.0 & 1 == 1
    }
}

/// Shared memory of one block.
pub(crate) struct Shared {
    bytes: Vec<u8>,
    /// Bytes of a cell, as a shift.
    shift: u32,
    flags: Vec<u8>,
    writers: Vec<u64>,
    readers: Vec<u32>,
    warps: usize,
    check_races: bool,
    check_uninitialised: bool,
}

impl Shared {
    /// `granule` is the narrowest access; `warps` counts all that may access.
    pub(crate) fn new(
        bytes: usize,
        granule: u32,
        warps: usize,
        check_races: bool,
        check_uninitialised: bool,
    ) -> Self {
        let cells = bytes.div_ceil(granule as usize);
        let shadow = if check_races { cells } else { 0 };
        Self {
            bytes: vec![POISON; bytes],
            shift: granule.trailing_zeros(),
            flags: vec![0; cells],
            writers: vec![0; shadow],
            readers: vec![0; shadow * warps],
            warps,
            check_races,
            check_uninitialised,
        }
    }

    pub(crate) fn reset(&mut self) {
        self.bytes.fill(POISON);
        self.flags.fill(0);
        self.writers.fill(0);
        self.readers.fill(0);
    }

    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    #[inline(always)]
    fn cells(&self, offset: u64, bytes: u64) -> std::ops::Range<usize> {
        let last_of_cell = (1 << self.shift) - 1;
        (offset >> self.shift) as usize..((offset + bytes + last_of_cell) >> self.shift) as usize
    }

    /// Checks bounds, and alignment to `align`.
    #[inline(always)]
    pub(crate) fn check(&self, offset: u64, bytes: u64, align: u64, what: &str) -> Exec<()> {
        if offset + bytes > self.len() {
            let len = self.len();
            return stop(
                FaultKind::OutOfBounds,
                format!("{what} of {bytes} bytes at shared {offset:#x}; the block has {len} bytes"),
            );
        }
        if offset & (align - 1) != 0 {
            return stop(
                FaultKind::Misaligned,
                format!("{what} of {bytes} bytes at shared {offset:#x}"),
            );
        }
        Ok(())
    }

    /// Notes a read of an access that was checked.
    #[inline(always)]
    pub(crate) fn note_read(
        &mut self,
        offset: u64,
        bytes: u64,
        who: Who,
        clocks: &Clocks,
    ) -> Exec<()> {
        for cell in self.cells(offset, bytes) {
            let flags = self.flags[cell];
            if flags & (ARRIVING | INITIALISED | MBARRIER) != INITIALISED {
                self.refuse_read(cell)?;
            }
            if !self.check_races {
                continue;
            }
            let write = WriteStamp(self.writers[cell]);
            if write.0 != 0 && !self.write_ordered(write, who, clocks) {
                return self.race(cell, who, "read", "write", write.warp(), Some(write.lane()));
            }
            let tick = clocks.tick(who.warp);
            let slot = &mut self.readers[cell * self.warps + who.warp];
            let new = ReadStamp::new(who.lane, !who.strong, tick);
            if *slot != new.0 {
                *slot = merge_reads(ReadStamp(*slot), new, who, clocks).0;
            }
        }
        Ok(())
    }

    /// Notes a write of an access that was checked.
    #[inline(always)]
    pub(crate) fn note_write(
        &mut self,
        offset: u64,
        bytes: u64,
        who: Who,
        clocks: &Clocks,
    ) -> Exec<()> {
        for cell in self.cells(offset, bytes) {
            let flags = self.flags[cell];
            if flags & (ARRIVING | LEAVING | MBARRIER) != 0 {
                return self.refuse_write(cell);
            }
            self.flags[cell] |= INITIALISED;
            if !self.check_races {
                continue;
            }
            let write = WriteStamp(self.writers[cell]);
            if write.0 != 0 && !self.write_ordered(write, who, clocks) {
                return self.race(
                    cell,
                    who,
                    "write",
                    "write",
                    write.warp(),
                    Some(write.lane()),
                );
            }
            let row = &mut self.readers[cell * self.warps..(cell + 1) * self.warps];
            if let Some((warp, lane)) = unordered_read(row, who, clocks) {
                return self.race(cell, who, "write", "read", warp, lane);
            }
            self.writers[cell] = WriteStamp::new(who, clocks.tick(who.warp)).0;
        }
        Ok(())
    }

    #[inline(always)]
    fn write_ordered(&self, write: WriteStamp, who: Who, clocks: &Clocks) -> bool {
        if write.warp() != who.warp {
            return clocks.warp_ordered(write.warp(), write.tick(), who.warp)
                || write.strong() && who.strong;
        }
        write.lane() == who.lane
            || clocks.lane_ordered(who.warp, write.tick(), Some(write.lane()), who.lane)
            || write.strong() && who.strong
    }

    #[cold]
    fn refuse_read(&self, cell: usize) -> Exec<()> {
        let at = (cell as u64) << self.shift;
        let flags = self.flags[cell];
        if flags & MBARRIER != 0 {
            return stop(
                FaultKind::IllegalOperand,
                format!("read of an mbarrier at shared {at:#x}"),
            );
        }
        if flags & ARRIVING != 0 {
            let text = format!("read of the destination of a pending copy at shared {at:#x}");
            return stop(FaultKind::UnwaitedCopy, text);
        }
        if self.check_uninitialised {
            return stop(
                FaultKind::Uninitialised,
                format!("nothing has written shared {at:#x}"),
            );
        }
        Ok(())
    }

    #[cold]
    fn refuse_write(&self, cell: usize) -> Exec<()> {
        let at = (cell as u64) << self.shift;
        if self.flags[cell] & MBARRIER != 0 {
            let text = format!("write to an mbarrier at shared {at:#x}");
            return stop(FaultKind::IllegalOperand, text);
        }
        let end = if self.flags[cell] & ARRIVING != 0 {
            "destination"
        } else {
            "source"
        };
        let text = format!("write to the {end} of a pending copy at shared {at:#x}");
        stop(FaultKind::UnwaitedCopy, text)
    }

    #[cold]
    fn race(
        &self,
        cell: usize,
        who: Who,
        now: &str,
        before: &str,
        warp: usize,
        lane: Option<u32>,
    ) -> Exec<()> {
        let at = (cell as u64) << self.shift;
        let other = match lane {
            _ if warp == self.warps - 1 => "an asynchronous copy".to_owned(),
            Some(lane) => format!("lane {lane} of warp {warp}"),
            None => format!("several lanes of warp {warp}"),
        };
        let same = if warp == who.warp {
            " (lanes of a warp are ordered by bar.warp.sync)"
        } else {
            ""
        };
        stop(
            FaultKind::SharedRace,
            format!("{now} of shared {at:#x} is not ordered after a {before} by {other}{same}"),
        )
    }

    /// A copy is about to write a range: whoever touches it before the copy is waited for faults.
    pub(crate) fn expect_arrival(&mut self, offset: u64, bytes: u64) {
        self.bytes[offset as usize..(offset + bytes) as usize].fill(POISON);
        for cell in self.cells(offset, bytes) {
            self.flags[cell] |= ARRIVING;
        }
    }

    pub(crate) fn end_arrival(&mut self, offset: u64, bytes: u64) {
        for cell in self.cells(offset, bytes) {
            self.flags[cell] &= !ARRIVING;
        }
    }

    /// A copy is about to read a range.
    pub(crate) fn expect_departure(&mut self, offset: u64, bytes: u64) {
        for cell in self.cells(offset, bytes) {
            self.flags[cell] |= LEAVING;
        }
    }

    pub(crate) fn end_departure(&mut self, offset: u64, bytes: u64) {
        for cell in self.cells(offset, bytes) {
            self.flags[cell] &= !LEAVING;
        }
    }

    /// Marks or unmarks the eight bytes of an mbarrier.
    pub(crate) fn set_mbarrier(&mut self, offset: u64, is_mbarrier: bool) {
        for cell in self.cells(offset, 8) {
            self.flags[cell] = if is_mbarrier { MBARRIER } else { 0 };
        }
    }

    /// Checks that an operation on an mbarrier is ordered after its initialisation.
    pub(crate) fn note_mbarrier(&self, offset: u64, who: Who, clocks: &Clocks) -> Exec<()> {
        if !self.check_races {
            return Ok(());
        }
        for cell in self.cells(offset, 8) {
            let write = WriteStamp(self.writers[cell]);
            if write.0 != 0 && !self.write_ordered(write, who, clocks) {
                return self.race(cell, who, "use", "write", write.warp(), Some(write.lane()));
            }
        }
        Ok(())
    }

    #[inline(always)]
    pub(crate) fn load(&self, offset: u64, bytes: u32) -> u64 {
        let at = offset as usize;
        let slice = &self.bytes[at..at + bytes as usize];
        match bytes {
            1 => slice[0].into(),
            2 => u16::from_le_bytes([slice[0], slice[1]]).into(),
            4 => u32::from_le_bytes([slice[0], slice[1], slice[2], slice[3]]).into(),
            _ => slice
                .iter()
                .rev()
                .fold(0, |value, &byte| value << 8 | u64::from(byte)),
        }
    }

    #[inline(always)]
    pub(crate) fn store(&mut self, offset: u64, bytes: u32, value: u64) {
        let at = offset as usize;
        self.bytes[at..at + bytes as usize].copy_from_slice(&value.to_le_bytes()[..bytes as usize]);
    }

    pub(crate) fn slice(&self, offset: u64, bytes: u64) -> &[u8] {
        &self.bytes[offset as usize..(offset + bytes) as usize]
    }

    pub(crate) fn write_slice(&mut self, offset: u64, data: &[u8]) {
        self.bytes[offset as usize..offset as usize + data.len()].copy_from_slice(data);
    }
}

fn merge_reads(old: ReadStamp, new: ReadStamp, who: Who, clocks: &Clocks) -> ReadStamp {
    if old.0 == 0 || old.lane() == new.lane() {
        return new;
    }
    if clocks.lane_ordered(who.warp, old.tick(), old.lane(), who.lane) {
        return new;
    }
    ReadStamp::new(SEVERAL_LANES, old.weak() || new.weak(), new.tick())
}

/// A read that is not ordered before a write by `who`.
#[inline(always)]
fn unordered_read(row: &[u32], who: Who, clocks: &Clocks) -> Option<(usize, Option<u32>)> {
    for (warp, &read) in row.iter().enumerate() {
        let read = ReadStamp(read);
        if read.0 == 0 || who.strong && !read.weak() {
            continue;
        }
        let ordered = if warp == who.warp {
            read.lane() == Some(who.lane)
                || clocks.lane_ordered(warp, read.tick(), read.lane(), who.lane)
        } else {
            clocks.warp_ordered(warp, read.tick(), who.warp)
        };
        if !ordered {
            return Some((warp, read.lane()));
        }
    }
    None
}

/// Passes through the banks that a request needs: `(needed, fewest possible)`. `offsets` are the
/// byte offsets of the active lanes; wide accesses go in parts of 16 or 8 lanes.
pub(crate) fn wavefronts(offsets: &[u64; 32], mask: u32, bytes: u32) -> (u64, u64) {
    let lanes_per_part = (128 / bytes.max(4)).min(32);
    let words_per_lane = u64::from(bytes.div_ceil(4));
    let (mut needed, mut fewest) = (0, 0);
    for part in 0..32 / lanes_per_part {
        let part_mask = mask & ((u32::MAX >> (32 - lanes_per_part)) << (part * lanes_per_part));
        if part_mask == 0 {
            continue;
        }
        let mut first = [u64::MAX; 32];
        let mut depth = [0u32; 32];
        let mut others: Vec<u64> = Vec::new();
        for lane in lanes(part_mask) {
            for word in 0..words_per_lane {
                let word = offsets[lane] / 4 + word;
                let bank = (word % 32) as usize;
                if first[bank] == u64::MAX {
                    first[bank] = word;
                    depth[bank] = 1;
                } else if first[bank] != word && !others.contains(&word) {
                    others.push(word);
                    depth[bank] += 1;
                }
            }
        }
        needed += u64::from(depth.into_iter().max().unwrap_or(1));
        fewest += 1;
    }
    (needed, fewest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bank_conflicts() {
        let stride = |bytes: u64| std::array::from_fn(|l| l as u64 * bytes);
        assert_eq!(wavefronts(&stride(4), u32::MAX, 4), (1, 1));
        assert_eq!(wavefronts(&stride(8), u32::MAX, 4), (2, 1));
        assert_eq!(wavefronts(&stride(128), u32::MAX, 4), (32, 1));
        assert_eq!(wavefronts(&stride(0), u32::MAX, 4), (1, 1));
        assert_eq!(wavefronts(&stride(2), u32::MAX, 2), (1, 1));
        assert_eq!(wavefronts(&stride(16), u32::MAX, 16), (4, 4));
        assert_eq!(wavefronts(&stride(256), 0xff, 16), (8, 1));
    }
}
