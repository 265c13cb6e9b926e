//! Who has seen what: vector clocks of the warps of a group of blocks.
//!
//! Every warp counts its synchronisations in a *tick*, and knows for every other warp up to which
//! tick it has seen it. An access is stamped with its warp, lane and tick; it is ordered before an
//! access of another warp if that warp has seen the tick. Lanes of one warp are ordered by
//! `bar.warp.sync` and by block barriers only: executing in the same warp orders nothing.

/// Ticks fit the narrowest stamp.
pub(crate) const MAX_TICK: u32 = (1 << 22) - 1;

/// Synchronisations among the lanes of a warp.
#[derive(Clone, Default)]
struct LaneOrder {
    /// Accesses before this tick are ordered before all lanes.
    all: u32,
    /// Synchronisations of some lanes since then, with the tick that they began.
    some: Vec<(u32, u32)>,
}

/// Clocks of all warps of a group, and of the asynchronous copy engine as a last "warp".
pub(crate) struct Clocks {
    count: usize,
    seen: Vec<u32>,
    lanes: Vec<LaneOrder>,
    /// Barriers of the whole group so far.
    pub(crate) generation: u32,
    /// Whether a warp has seen other warps since the last barrier of the whole group.
    pub(crate) has_acquired: Vec<bool>,
}

/// What a warp had seen at some moment.
pub(crate) type Row = Box<[u32]>;

impl Clocks {
    pub(crate) fn new(warps: usize) -> Self {
        let count = warps + 1;
        let mut seen = vec![0; count * count];
        (0..count).for_each(|w| seen[w * count + w] = 1);
        Self {
            count,
            seen,
            lanes: vec![
                LaneOrder {
                    all: 1,
                    some: Vec::new()
                };
                count
            ],
            generation: 1,
            has_acquired: vec![false; count],
        }
    }

    /// The index of the asynchronous copy engine.
    pub(crate) fn engine(&self) -> usize {
        self.count - 1
    }

    pub(crate) fn warps(&self) -> usize {
        self.count
    }

    #[inline(always)]
    pub(crate) fn tick(&self, warp: usize) -> u32 {
        self.seen[warp * self.count + warp]
    }

    fn advance(&mut self, warp: usize) {
        self.seen[warp * self.count + warp] += 1;
    }

    /// What the warp has seen, to be handed to whoever synchronises with it; what it does from
    /// here on is not part of it.
    pub(crate) fn release(&mut self, warp: usize) -> Row {
        let row = self.seen[warp * self.count..(warp + 1) * self.count].into();
        self.advance(warp);
        row
    }

    /// The warp has now seen what a row has seen.
    pub(crate) fn acquire(&mut self, warp: usize, row: &[u32]) {
        let own = &mut self.seen[warp * self.count..(warp + 1) * self.count];
        for (index, (own, &seen)) in own.iter_mut().zip(row).enumerate() {
            if index != warp {
                *own = (*own).max(seen);
            } else {
                // Lanes of the warp itself have released it: which of them is not known.
                let order = &mut self.lanes[warp];
                order.all = order.all.max((seen + 1).min(*own));
            }
        }
        self.has_acquired[warp] = true;
    }

    /// All threads of the group have met.
    pub(crate) fn begin_generation(&mut self) {
        self.generation += 1;
        self.has_acquired.fill(false);
    }

    /// The lanes of `mask` have synchronised; `live` are the lanes that have not exited.
    pub(crate) fn sync_lanes(&mut self, warp: usize, mask: u32, live: u32) {
        self.advance(warp);
        let tick = self.tick(warp);
        let order = &mut self.lanes[warp];
        if mask & live == live {
            order.all = tick;
            order.some.clear();
            return;
        }
        // A later synchronisation of the same lanes replaces an earlier one, unless another one in
        // between connects lanes of the two.
        if let Some(at) = order.some.iter().rposition(|&(m, _)| m == mask)
            && order.some[at + 1..].iter().all(|&(m, _)| m & mask == 0)
        {
            order.some.remove(at);
        }
        order.some.push((mask, tick));
    }

    /// Whether an access by some lane of the same warp is ordered before `lane`. `from` is `None`
    /// for an access by several lanes.
    pub(crate) fn lane_ordered(
        &self,
        warp: usize,
        tick: u32,
        from: Option<u32>,
        lane: u32,
    ) -> bool {
        let order = &self.lanes[warp];
        if tick < order.all {
            return true;
        }
        let later = order.some.iter().filter(|&&(_, t)| t > tick);
        match from {
            Some(from) => {
                let join = |reached: u32, &(mask, _): &(u32, u32)| {
                    if reached & mask != 0 {
                        reached | mask
                    } else {
                        reached
                    }
                };
                later.fold(1u32 << from, join) >> lane & 1 == 1
            }
            None => later.into_iter().any(|&(mask, _)| mask >> lane & 1 == 1),
        }
    }

    /// Whether an access by another warp is ordered before this one.
    #[inline(always)]
    pub(crate) fn warp_ordered(&self, from: usize, tick: u32, to: usize) -> bool {
        tick <= self.seen[to * self.count + from]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_covers_what_came_before_it_only() {
        let mut clocks = Clocks::new(2);
        let before = clocks.tick(0);
        let row = clocks.release(0);
        let after = clocks.tick(0);
        assert!(!clocks.warp_ordered(0, before, 1));
        clocks.acquire(1, &row);
        assert!(clocks.warp_ordered(0, before, 1));
        assert!(!clocks.warp_ordered(0, after, 1));
    }

    #[test]
    fn lanes_are_ordered_through_chains_of_partial_synchronisations() {
        let mut clocks = Clocks::new(1);
        let tick = clocks.tick(0);
        clocks.sync_lanes(0, 0b0011, u32::MAX);
        assert!(clocks.lane_ordered(0, tick, Some(0), 1));
        assert!(!clocks.lane_ordered(0, tick, Some(0), 2));
        clocks.sync_lanes(0, 0b0110, u32::MAX);
        assert!(clocks.lane_ordered(0, tick, Some(0), 2));
        assert!(!clocks.lane_ordered(0, tick, Some(3), 2));
        clocks.sync_lanes(0, u32::MAX, u32::MAX);
        assert!(clocks.lane_ordered(0, tick, Some(3), 2));
    }
}
