//! Global memory during one launch: lookup, checks, and a shadow that finds races.
//!
//! The shadow has two words per cell of the narrowest access width of the kernel: the last write
//! and the last read. Both are allocated when an allocation is first written or read, so that data
//! that is only read costs one word per cell. Blocks may run on several host threads; the words
//! are atomic, and each access publishes its own stamp before it looks at the others', so that of
//! two conflicting accesses at least one sees the other.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

use super::clocks::{Clocks, Row};
use super::shared::Who;
use super::stop::{Exec, stop};
use crate::fault::FaultKind;
use crate::memory::{Allocation, Memory, Snapshot};

/// A read or write as it is remembered: strong, group + 1, warp and lane, tick; 0 is none.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp(u64);

const STRONG: u64 = 1 << 63;
const GROUP_SHIFT: u32 = 39;
const GROUP_MASK: u64 = (1 << 24) - 1;
const THREAD_SHIFT: u32 = 22;
const THREAD_MASK: u64 = (1 << 17) - 1;
const TICK_MASK: u64 = (1 << THREAD_SHIFT) - 1;
/// In place of a thread: several threads of a group; the tick is then a generation.
const SEVERAL: u64 = THREAD_MASK;
/// In place of a group: several groups.
const MANY_GROUPS: u64 = GROUP_MASK;
/// Groups that fit a stamp.
pub(crate) const MAX_GROUPS: u64 = MANY_GROUPS - 1;
/// Warps of a group that fit a stamp.
pub(crate) const MAX_WARPS: usize = (SEVERAL >> 5) as usize - 1;

impl Stamp {
    fn new(strong: bool, group: u64, thread: u64, tick: u64) -> Self {
        let strong = if strong { STRONG } else { 0 };
        Self(strong | group << GROUP_SHIFT | thread << THREAD_SHIFT | tick & TICK_MASK)
    }
    fn strong(self) -> bool {
        self.0 & STRONG != 0
    }
    fn group(self) -> u64 {
        self.0 >> GROUP_SHIFT & GROUP_MASK
    }
    fn thread(self) -> u64 {
        self.0 >> THREAD_SHIFT & THREAD_MASK
    }
    fn warp(self) -> usize {
        (self.thread() >> 5) as usize
    }
    fn lane(self) -> u32 {
        self.thread() as u32 & 31
    }
    fn tick(self) -> u32 {
        (self.0 & TICK_MASK) as u32
    }
}

/// What one group of blocks knows of the others, through atomics and fences.
#[derive(Default)]
pub(crate) struct Seen {
    groups: HashMap<u64, Arc<Row>>,
}

/// A release: which group, and what its warp had seen.
pub(crate) type Release = (u64, Arc<Row>);

impl Seen {
    pub(crate) fn join(&mut self, release: &Release) {
        let (group, row) = release;
        let merged = match self.groups.get(group) {
            Some(old) => old.iter().zip(row.iter()).map(|(a, b)| *a.max(b)).collect(),
            None => row.as_ref().clone(),
        };
        self.groups.insert(*group, Arc::new(merged));
    }

    pub(crate) fn releases(&self) -> impl Iterator<Item = Release> {
        self.groups.iter().map(|(&group, row)| (group, row.clone()))
    }
}

/// The executing thread, as far as races are concerned.
pub(crate) struct Accessor<'a> {
    pub(crate) group: u64,
    pub(crate) who: Who,
    pub(crate) clocks: &'a Clocks,
    pub(crate) seen: &'a Seen,
}

impl Accessor<'_> {
    fn stamp(&self) -> Stamp {
        let thread = (self.who.warp as u64) << 5 | u64::from(self.who.lane);
        let tick = self.clocks.tick(self.who.warp);
        Stamp::new(self.who.strong, self.group + 1, thread, tick.into())
    }

    /// Whether the access of a stamp is ordered before this one, or may be unordered.
    #[inline(always)]
    fn allows(&self, stamp: Stamp) -> bool {
        if stamp.0 == 0 || stamp.strong() && self.who.strong {
            return true;
        }
        if stamp.group() == self.group + 1 {
            if stamp.thread() == SEVERAL {
                // Which threads is not known; a barrier since then is taken to cover them all.
                return stamp.tick() != self.clocks.generation & TICK_MASK as u32
                    || self.clocks.has_acquired[self.who.warp];
            }
            return if stamp.warp() == self.who.warp {
                stamp.lane() == self.who.lane
                    || self.clocks.lane_ordered(
                        stamp.warp(),
                        stamp.tick(),
                        Some(stamp.lane()),
                        self.who.lane,
                    )
            } else {
                self.clocks
                    .warp_ordered(stamp.warp(), stamp.tick(), self.who.warp)
            };
        }
        if stamp.group() == MANY_GROUPS || stamp.thread() == SEVERAL {
            return !self.seen.groups.is_empty();
        }
        let row = self.seen.groups.get(&(stamp.group() - 1));
        row.is_some_and(|row| stamp.tick() <= row[stamp.warp()])
    }

    /// The read stamp of a cell that had `old`, after a read by this thread.
    #[inline(always)]
    fn merge(&self, old: Stamp, new: Stamp) -> Stamp {
        if old.0 == 0 || old == new {
            return new;
        }
        let strong = old.strong() && new.strong();
        if old.group() != new.group() {
            return Stamp::new(strong, MANY_GROUPS, SEVERAL, 0);
        }
        let generation = self.clocks.generation;
        if old.thread() == SEVERAL {
            return Stamp::new(strong, new.group(), SEVERAL, generation.into());
        }
        if old.thread() == new.thread() || self.allows(old) {
            return new;
        }
        Stamp::new(strong, new.group(), SEVERAL, generation.into())
    }

    #[cold]
    fn describe(&self, stamp: Stamp) -> String {
        match (stamp.group() == self.group + 1, stamp.thread() == SEVERAL) {
            _ if stamp.group() == MANY_GROUPS => "several blocks".to_owned(),
            (true, true) => "several threads of the block".to_owned(),
            (true, false) if stamp.warp() == self.clocks.engine() => {
                "an asynchronous copy".to_owned()
            }
            (true, false) => format!("lane {} of warp {}", stamp.lane(), stamp.warp()),
            (false, true) => format!("several threads of block or cluster {}", stamp.group() - 1),
            (false, false) => format!(
                "block or cluster {}, warp {}, lane {}",
                stamp.group() - 1,
                stamp.warp(),
                stamp.lane()
            ),
        }
    }
}

/// One allocation during a launch.
pub(crate) struct Tracker {
    pub(crate) allocation: Arc<Allocation>,
    read_only: bool,
    readers: OnceLock<Box<[AtomicU64]>>,
    writers: OnceLock<Box<[AtomicU64]>>,
    before: OnceLock<Snapshot>,
}

fn cells(count: u64) -> Box<[AtomicU64]> {
    let zeros = vec![0u64; count as usize].into_boxed_slice();
    // SAFETY: `AtomicU64` has the layout of `u64`, and the allocation is owned here. Going through
    // zeroed integers leaves the pages untouched until they are used.
    unsafe { Box::from_raw(Box::into_raw(zeros) as *mut [AtomicU64]) }
}

/// All of global memory during a launch.
pub(crate) struct GlobalSpace {
    pub(crate) trackers: Vec<Tracker>,
    freed: Vec<(u64, u64)>,
    /// Bytes of a cell, as a shift.
    shift: u32,
    check_races: bool,
    check_uninitialised: bool,
    /// Keep what allocations held before the launch, to be able to run it again.
    keeps_snapshots: bool,
}

impl GlobalSpace {
    pub(crate) fn new(
        memory: &Memory,
        read_only: &[u64],
        granule: u32,
        options: &crate::Options,
        keeps_snapshots: bool,
    ) -> Self {
        let (live, freed) = memory.snapshot_map();
        let tracker = |allocation: Arc<Allocation>| Tracker {
            read_only: read_only.contains(&allocation.base),
            allocation,
            readers: OnceLock::new(),
            writers: OnceLock::new(),
            before: OnceLock::new(),
        };
        Self {
            trackers: live.into_iter().map(tracker).collect(),
            freed,
            shift: granule.trailing_zeros(),
            check_races: options.check_races,
            check_uninitialised: options.check_uninitialised,
            keeps_snapshots,
        }
    }

    /// Puts back what allocations held before the launch.
    pub(crate) fn restore(&self) {
        for tracker in &self.trackers {
            if let Some(before) = tracker.before.get() {
                tracker.allocation.restore(before);
            }
        }
    }

    /// The allocation that an access lies in, and the offset. `hint` is tried first.
    #[inline(always)]
    pub(crate) fn locate(
        &self,
        hint: &mut usize,
        address: u64,
        bytes: u64,
        align: u64,
        what: &str,
    ) -> Exec<u64> {
        let found = match self.trackers.get(*hint) {
            Some(t) if address.wrapping_sub(t.allocation.base) < t.allocation.len => Some(*hint),
            _ => self.find(address),
        };
        let Some(index) = found else {
            return self.nowhere(address, bytes, what);
        };
        *hint = index;
        let allocation = &self.trackers[index].allocation;
        let offset = address - allocation.base;
        if offset + bytes > allocation.len {
            return self.nowhere(address, bytes, what);
        }
        if address & (align - 1) != 0 {
            return stop(
                FaultKind::Misaligned,
                format!("{what} of {bytes} bytes at {}", self.name(index, offset)),
            );
        }
        Ok(offset)
    }

    fn find(&self, address: u64) -> Option<usize> {
        let index = self
            .trackers
            .partition_point(|t| t.allocation.base <= address)
            .checked_sub(1)?;
        let allocation = &self.trackers[index].allocation;
        (address - allocation.base < allocation.len).then_some(index)
    }

    /// A place in an allocation, for messages.
    pub(crate) fn name(&self, index: usize, offset: u64) -> String {
        let allocation = &self.trackers[index].allocation;
        let label = allocation.label();
        let label = if label.is_empty() {
            format!("{:#x}", allocation.base)
        } else {
            label
        };
        format!(
            "offset {offset} of the {}-byte allocation {label}",
            allocation.len
        )
    }

    #[cold]
    fn nowhere(&self, address: u64, bytes: u64, what: &str) -> Exec<u64> {
        if let Some((base, len)) = self
            .freed
            .iter()
            .find(|(b, l)| address.wrapping_sub(*b) < *l)
        {
            let at = address - base;
            return stop(
                FaultKind::UseAfterFree,
                format!(
                    "{what} of {bytes} bytes at offset {at} of the freed {len}-byte allocation {base:#x}"
                ),
            );
        }
        let after = self
            .trackers
            .partition_point(|t| t.allocation.base <= address)
            .checked_sub(1);
        let near = after.filter(|&i| {
            let a = &self.trackers[i].allocation;
            address - a.base < a.len + 65536
        });
        let place = match near {
            Some(i) => self.name(i, address - self.trackers[i].allocation.base),
            None => format!("{address:#x}, where nothing is allocated"),
        };
        stop(
            FaultKind::OutOfBounds,
            format!("{what} of {bytes} bytes at {place}"),
        )
    }

    /// Bytes of a cell.
    pub(crate) fn granule(&self) -> u64 {
        1 << self.shift
    }

    /// Cells of an allocation.
    pub(crate) fn cell_count(&self, index: usize) -> u64 {
        self.trackers[index].allocation.len.div_ceil(self.granule())
    }

    /// Cells that a range touches.
    #[inline(always)]
    pub(crate) fn cell_range(&self, offset: u64, bytes: u64) -> std::ops::Range<usize> {
        let last_of_cell = (1 << self.shift) - 1;
        (offset >> self.shift) as usize..((offset + bytes + last_of_cell) >> self.shift) as usize
    }

    /// Checks and notes a read of a range that was located.
    #[inline(always)]
    pub(crate) fn note_read(
        &self,
        index: usize,
        offset: u64,
        bytes: u64,
        accessor: &Accessor<'_>,
    ) -> Exec<()> {
        let tracker = &self.trackers[index];
        if self.check_uninitialised
            && let Some(at) = tracker.allocation.first_uninitialised(offset, bytes)
        {
            let place = self.name(index, at);
            return stop(
                FaultKind::Uninitialised,
                format!("nothing has written {place}"),
            );
        }
        if !self.check_races {
            return Ok(());
        }
        let readers = tracker
            .readers
            .get_or_init(|| cells(self.cell_count(index)));
        let new = accessor.stamp();
        let range = self.cell_range(offset, bytes);
        for cell in &readers[range.clone()] {
            let mut old = cell.load(SeqCst);
            loop {
                let merged = accessor.merge(Stamp(old), new).0;
                if merged == old {
                    break;
                }
                match cell.compare_exchange_weak(old, merged, SeqCst, SeqCst) {
                    Ok(_) => break,
                    Err(now) => old = now,
                }
            }
        }
        if let Some(writers) = tracker.writers.get() {
            for (cell, writer) in range.clone().zip(&writers[range]) {
                let stamp = Stamp(writer.load(SeqCst));
                if !accessor.allows(stamp) {
                    return self.race(index, cell, accessor, "read", "write", stamp);
                }
            }
        }
        Ok(())
    }

    /// Checks and notes a write of a range that was located.
    #[inline(always)]
    pub(crate) fn note_write(
        &self,
        index: usize,
        offset: u64,
        bytes: u64,
        accessor: &Accessor<'_>,
    ) -> Exec<()> {
        let tracker = &self.trackers[index];
        if tracker.read_only {
            let place = self.name(index, offset);
            return stop(
                FaultKind::IllegalOperand,
                format!("write to constant memory, {place}"),
            );
        }
        if self.keeps_snapshots {
            tracker.before.get_or_init(|| tracker.allocation.snapshot());
        }
        tracker.allocation.mark_initialised(offset, bytes);
        if !self.check_races {
            return Ok(());
        }
        let writers = tracker
            .writers
            .get_or_init(|| cells(self.cell_count(index)));
        let new = accessor.stamp();
        let range = self.cell_range(offset, bytes);
        for (cell, writer) in range.clone().zip(&writers[range.clone()]) {
            let old = Stamp(writer.swap(new.0, SeqCst));
            if !accessor.allows(old) {
                return self.race(index, cell, accessor, "write", "write", old);
            }
        }
        if let Some(readers) = tracker.readers.get() {
            for (cell, reader) in range.clone().zip(&readers[range]) {
                let stamp = Stamp(reader.load(SeqCst));
                if !accessor.allows(stamp) {
                    return self.race(index, cell, accessor, "write", "read", stamp);
                }
            }
        }
        Ok(())
    }

    #[cold]
    fn race(
        &self,
        index: usize,
        cell: usize,
        accessor: &Accessor<'_>,
        now: &str,
        before: &str,
        stamp: Stamp,
    ) -> Exec<()> {
        let place = self.name(index, (cell as u64) << self.shift);
        let other = accessor.describe(stamp);
        stop(
            FaultKind::GlobalRace,
            format!("{now} of {place} is not ordered after a {before} by {other}"),
        )
    }
}
