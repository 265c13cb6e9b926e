//! Collects the words of the traced warps while they run.

use super::event::INDEX_BITS;
use super::{Event, Phase, WarpTrace, sector_of};
use crate::registers::lanes;
use std::collections::HashMap;

/// The traces of the first blocks of a group, while the group runs.
pub(crate) struct Tap {
    /// Warps beyond these are not traced.
    warps: Vec<WarpTrace>,
    /// The warp that runs, and where its current step begins.
    warp: usize,
    step: usize,
    /// Words that blocks store for each other, by address: the number of the exchange, which is their upper half.
    words: HashMap<u64, u32>,
    /// By block: the exchange that it stored words for last.
    exchanges: Vec<u32>,
    /// By warp: its first look since it was at a barrier.
    looks: HashMap<usize, Look>,
    /// By exchange: the word that was stored last.
    last_words: HashMap<u32, u64>,
}

/// A load that looks for words.
struct Look {
    at: usize,
    /// Where its step begins.
    begin: usize,
    addresses: Vec<u64>,
}

impl Look {
    fn repeats(&self, other: &Look) -> bool {
        self.at == other.at && self.addresses == other.addresses
    }
}

impl Tap {
    /// Traces the first `warps` warps of a group of `blocks` blocks.
    pub(crate) fn new(warps: usize, blocks: usize) -> Self {
        Self {
            warps: vec![WarpTrace::default(); warps],
            warp: 0,
            step: 0,
            words: HashMap::new(),
            looks: HashMap::new(),
            exchanges: vec![0; blocks],
            last_words: HashMap::new(),
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

    pub(crate) fn event(&mut self, event: Event) {
        if let Event::Barrier { .. } = event {
            self.looks.remove(&self.warp);
        }
        if let Some(WarpTrace { words }) = self.warps.get_mut(self.warp) {
            words[self.step] += 1 << INDEX_BITS;
            words.extend(event.to_words());
        }
    }

    /// An event that lanes have in common is one, if they are neighbours.
    pub(crate) fn event_of_lanes(&mut self, event: Event) {
        let words = self
            .warps
            .get(self.warp)
            .map(|warp| &warp.words[self.step..]);
        let repeats = |words: &[u32]| words.len() > 1 && words.ends_with(&event.to_words());
        if !words.is_some_and(repeats) {
            self.event(event);
        }
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
        for run in sectors.chunk_by(|a, b| a + 1 == *b) {
            let (first, sectors) = (run[0], run.len() as u32);
            self.event(match writes {
                true => Event::Written { first, sectors },
                false => Event::Read { first, sectors },
            });
        }
    }

    /// A block stores a word for others to find.
    pub(crate) fn tell(&mut self, block: usize, address: u64, value: u64) {
        let exchange = (value >> 32) as u32;
        self.exchanges[block] = exchange;
        self.words.insert(address, exchange);
        self.last_words.insert(exchange, value);
        self.event_of_lanes(Event::Tells(Phase::of_words(exchange)));
    }

    /// A load at `at` looks for words. What it finds is that of the latest exchange among them. A trace shows the last
    /// look alone.
    pub(crate) fn look(&mut self, at: usize, addresses: Vec<u64>) {
        let look = Look {
            at,
            begin: self.step,
            addresses,
        };
        let found = look.addresses.iter();
        let found = found.filter_map(|address| self.words.get(address)).max();
        let found = found.map(|&exchange| Event::Told(Phase::of_words(exchange)));
        match self.looks.get(&self.warp) {
            Some(first) if first.repeats(&look) => {
                if let Some(WarpTrace { words }) = self.warps.get_mut(self.warp) {
                    words.drain(first.begin..self.step);
                    self.step = first.begin;
                }
            }
            Some(first) if first.at != at => {}
            _ => {
                self.looks.insert(self.warp, look);
            }
        }
        if let Some(event) = found {
            self.event(event);
        }
    }

    /// What blocks that are not there would have stored at `address`, which `block` looks at: the word that was stored
    /// last for the exchange that it is at. None was stored yet where there is none.
    pub(crate) fn answer(&mut self, block: usize, address: u64) -> Option<u64> {
        let exchange = self.exchanges[block];
        let value = *self.last_words.get(&exchange)?;
        self.words.insert(address, exchange);
        Some(value)
    }
}
