//! Collects the words of the traced warps while they run.

use super::{INDEX_BITS, LEN_BITS, WarpTrace, sector_of};
use crate::registers::lanes;

/// The traces of the first block of a group, while the group runs.
pub(crate) struct Tap {
    /// Warps beyond these are not traced.
    warps: Vec<WarpTrace>,
    /// The warp that runs, and where its current step begins.
    warp: usize,
    step: usize,
}

/// Kinds of events, as their words count them.
#[derive(Clone, Copy)]
enum Kind {
    Read,
    Written,
    Shared,
    Barrier,
    CopyWait,
}

impl Tap {
    pub(crate) fn new(warps: usize) -> Self {
        Self {
            warps: vec![WarpTrace::default(); warps],
            warp: 0,
            step: 0,
        }
    }

    pub(crate) fn into_warps(self) -> Vec<WarpTrace> {
        self.warps
    }

    /// A warp executes an instruction.
    #[inline]
    pub(crate) fn step(&mut self, warp: usize, index: usize) {
        self.warp = warp;
        if let Some(WarpTrace { words }) = self.warps.get_mut(warp) {
            self.step = words.len();
            words.push(index as u32);
        }
    }

    /// It will execute it again.
    pub(crate) fn undo(&mut self) {
        if let Some(WarpTrace { words }) = self.warps.get_mut(self.warp) {
            words.truncate(self.step);
        }
    }

    fn event(&mut self, kind: Kind, len: u32, value: u32) {
        if let Some(WarpTrace { words }) = self.warps.get_mut(self.warp) {
            words[self.step] += 1 << INDEX_BITS;
            words.extend([(kind as u32) << LEN_BITS | len, value]);
        }
    }

    pub(crate) fn shared(&mut self, wavefronts: u64, remote: bool) {
        self.event(Kind::Shared, wavefronts as u32, remote.into());
    }

    pub(crate) fn barrier(&mut self, id: usize, threads: Option<u32>) {
        self.event(Kind::Barrier, id as u32, threads.unwrap_or(0));
    }

    pub(crate) fn copy_wait(&mut self, pending: usize) {
        self.event(Kind::CopyWait, pending as u32, 0);
    }

    /// Lanes of `mask` access `bytes` at their addresses in global memory.
    pub(crate) fn global(
        &mut self,
        address: impl Fn(usize) -> u64,
        mask: u32,
        bytes: u64,
        writes: bool,
    ) {
        let mut sectors = Vec::with_capacity(64);
        for lane in lanes(mask) {
            let first = address(lane);
            let last = first + bytes.max(1) - 1;
            sectors.extend(sector_of(first)..=sector_of(last));
        }
        sectors.sort_unstable();
        sectors.dedup();
        let kind = if writes { Kind::Written } else { Kind::Read };
        for run in sectors.chunk_by(|a, b| a + 1 == *b) {
            self.event(kind, run.len() as u32, run[0]);
        }
    }
}
