//! The time that `discard` is expected to take.

use super::Workload;
use super::figure::Figure;
use crate::cuda::kernel::{FindCuts, Kernel, MAX_LAYERS_PER_LAUNCH};

/// Entries up to which two digits of 11 bits tell most of those of a map of random attention apart; three do of larger maps.
const TWO_DIGITS: f64 = 65_536.0;

impl Workload<'_> {
    /// The time of the launches that find the cuts of `layers` fused maps of each of `items` items; none without discard.
    pub(super) fn cuts_us(&self, items: f64, layers: usize) -> Figure {
        if self.problem.config().discard.is_none() {
            return Figure::ZERO;
        }
        let most = match self.order {
            Some(_) => 1,
            None => MAX_LAYERS_PER_LAUNCH,
        };
        let launches = layers.div_ceil(most) as f64;
        let maps = items * layers as f64 / launches;
        let len = self.common.window_len;
        let blocks = match self.grouped {
            true => 1,
            false => FindCuts::blocks(maps.ceil() as usize, len, self.limits),
        };
        let entries = f64::from(len).powi(2);
        let passes = if entries <= TWO_DIGITS { 2.0 } else { 3.0 };
        let resident = FindCuts.variant().blocks_per_multiprocessor;
        let all = maps * f64::from(blocks);
        // Those of one multiprocessor, which count in turns.
        let beside = (all / f64::from(self.limits.multiprocessors)).ceil();
        let counted = beside.min(f64::from(resident)) * entries / f64::from(blocks);
        let pass_us = counted * self.rates.cut_entry_us + self.rates.cut_pass_us;
        launches * (self.rates.launch_us + self.waves(all, resident) * passes * pass_us)
    }
}
