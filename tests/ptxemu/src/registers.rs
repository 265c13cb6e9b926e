//! The register file of a warp: one line of 32 lanes per register.

use std::marker::PhantomData;

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;

/// The raw content of one lane of a register: `u32` or `u64`.
pub(crate) trait Lane: Copy + Default + Send + Sync + 'static {
    /// Lines of 128 bytes that 32 lanes take.
    const LINES: u32;
    /// The slot, if it has this width.
    fn slot(any: AnySlot) -> Option<Slot<Self>>;
}

impl Lane for u32 {
    const LINES: u32 = 1;
    fn slot(any: AnySlot) -> Option<Slot<Self>> {
        match any {
            AnySlot::Narrow(slot) => Some(slot),
            AnySlot::Wide(_) => None,
        }
    }
}

impl Lane for u64 {
    const LINES: u32 = 2;
    fn slot(any: AnySlot) -> Option<Slot<Self>> {
        match any {
            AnySlot::Narrow(_) => None,
            AnySlot::Wide(slot) => Some(slot),
        }
    }
}

/// Where a register of 32- or 64-bit lanes lives.
#[derive(Debug)]
pub(crate) struct Slot<L> {
    line: u32,
    lane: PhantomData<fn() -> L>,
}

impl<L> Clone for Slot<L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L> Copy for Slot<L> {}

impl Slot<u32> {
    /// The predicate whose 32 lanes are the bits of the first lane.
    pub(crate) fn as_pred(self) -> PredSlot {
        PredSlot(self.line)
    }
}

impl<L> Slot<L> {
    pub(crate) fn at(line: u32) -> Self {
        Self {
            line,
            lane: PhantomData,
        }
    }
}

/// Where a predicate register lives: a line whose first word has one bit per lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PredSlot(pub(crate) u32);

/// A register of either width.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AnySlot {
    Narrow(Slot<u32>),
    Wide(Slot<u64>),
}

impl AnySlot {
    /// The first line of the register, which no other register has.
    pub(crate) fn line(self) -> u32 {
        match self {
            Self::Narrow(slot) => slot.line,
            Self::Wide(slot) => slot.line,
        }
    }
}

#[derive(Clone, Copy)]
#[repr(C, align(128))]
struct Line([u32; LANES]);

/// The registers of one warp.
#[derive(Clone, Default)]
pub(crate) struct Registers {
    lines: Vec<Line>,
}

impl Registers {
    /// `lines` lines of poison.
    pub(crate) fn poisoned(lines: u32) -> Self {
        Self {
            lines: vec![Line([u32::MAX; LANES]); lines as usize],
        }
    }

    pub(crate) fn copy_from(&mut self, other: &Self) {
        self.lines.copy_from_slice(&other.lines);
    }

    #[inline(always)]
    pub(crate) fn get<L: Lane>(&self, slot: Slot<L>) -> &[L; LANES] {
        let lines = &self.lines[slot.line as usize..(slot.line + L::LINES) as usize];
        // SAFETY: `lines` spans exactly 32 lanes of `L`, aligned to 128, valid for any bits.
        unsafe { &*lines.as_ptr().cast() }
    }

    #[inline(always)]
    pub(crate) fn get_mut<L: Lane>(&mut self, slot: Slot<L>) -> &mut [L; LANES] {
        let lines = &mut self.lines[slot.line as usize..(slot.line + L::LINES) as usize];
        // SAFETY: as above, and borrowed exclusively.
        unsafe { &mut *lines.as_mut_ptr().cast() }
    }

    /// Writes the lanes named by `mask`.
    #[inline(always)]
    pub(crate) fn set<L: Lane>(&mut self, slot: Slot<L>, values: &[L; LANES], mask: u32) {
        let target = self.get_mut(slot);
        if mask == u32::MAX {
            *target = *values;
        } else {
            for lane in lanes(mask) {
                target[lane] = values[lane];
            }
        }
    }

    /// One lane, widened to 64 bits.
    #[inline(always)]
    pub(crate) fn wide(&self, slot: AnySlot, lane: usize) -> u64 {
        match slot {
            AnySlot::Narrow(s) => self.get(s)[lane].into(),
            AnySlot::Wide(s) => self.get(s)[lane],
        }
    }

    /// Sets one lane to the low bits of `value`.
    #[inline(always)]
    pub(crate) fn set_wide(&mut self, slot: AnySlot, lane: usize, value: u64) {
        match slot {
            AnySlot::Narrow(s) => self.get_mut(s)[lane] = value as u32,
            AnySlot::Wide(s) => self.get_mut(s)[lane] = value,
        }
    }

    /// Sets all lanes to the low bits of `value`.
    pub(crate) fn fill(&mut self, slot: AnySlot, value: u64) {
        match slot {
            AnySlot::Narrow(s) => *self.get_mut(s) = [value as u32; LANES],
            AnySlot::Wide(s) => *self.get_mut(s) = [value; LANES],
        }
    }

    /// A predicate, one bit per lane.
    #[inline(always)]
    pub(crate) fn pred(&self, slot: PredSlot) -> u32 {
        self.lines[slot.0 as usize].0[0]
    }

    #[inline(always)]
    pub(crate) fn set_pred(&mut self, slot: PredSlot, bits: u32, mask: u32) {
        let word = &mut self.lines[slot.0 as usize].0[0];
        *word = *word & !mask | bits & mask;
    }
}

/// The lanes of a mask, in order.
#[inline(always)]
pub(crate) fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let lane = mask.trailing_zeros() as usize;
        mask &= mask - 1;
        Some(lane)
    })
}
