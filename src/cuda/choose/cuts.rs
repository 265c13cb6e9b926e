//! The time that `discard` is expected to take.

use super::Workload;
use super::figure::Figure;
use crate::cuda::kernel::{FindCuts, MAX_LAYERS_PER_LAUNCH};

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
        let len = self.common.window_len;
        let launch_us = |layers: usize| {
            let maps = items * layers as f64;
            let blocks = match self.grouped {
                true => 1,
                false => FindCuts::divide(maps.ceil() as usize, len, self.limits).blocks,
            };
            // Blocks of one multiprocessor work in turns.
            let turns = self.waves(maps * f64::from(blocks), 1);
            let entries = f64::from(len).powi(2) / f64::from(blocks);
            let block_us = entries * self.rates.cut_entry_us + self.rates.cut_block_us;
            self.rates.launch_us + turns * block_us
        };
        let full = (layers / most) as f64 * launch_us(most);
        match layers % most {
            0 => full,
            rest => full + launch_us(rest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Discard, DiscardScope, Output, RolloutConfig};
    use crate::cuda::choose::rates::Rates;
    use crate::cuda::limits::DeviceLimits;
    use crate::cuda::options::{LayerOrder, Precision};
    use crate::cuda::pipeline::Pipeline;
    use crate::cuda::schedule::Schedule;
    use crate::dtype::DType;
    use crate::layout::Shape;
    use crate::problem::Problem;

    /// Of the launches of `discard` that `schedule` has: turns of blocks, and entries that a multiprocessor counts in them.
    fn launched(schedule: &Schedule, len: usize) -> [f64; 2] {
        let multiprocessors = DeviceLimits::H200.multiprocessors as usize;
        let steps = schedule.steps().iter().map(|step| step.launch(true));
        let mut sums = [0.0; 2];
        for launch in steps.filter(|launch| launch.variant().stem == "discard") {
            let geometry = launch.geometry();
            let turns = (geometry.blocks() as usize).div_ceil(multiprocessors);
            sums[0] += turns as f64;
            sums[1] += (turns * len * len) as f64 / f64::from(geometry.grid[1]);
        }
        sums
    }

    #[test]
    fn cuts_are_priced_by_the_launches_that_a_schedule_has() {
        let mut rates = [(); 3].map(|()| Rates::H200.clone());
        let more = |figure: &mut Figure| figure.value += 1.0;
        more(&mut rates[1].cut_block_us);
        more(&mut rates[2].cut_entry_us);
        let mut compared = 0;
        for [layers, batch, heads, tokens] in [
            [3, 4, 2, 28],
            [12, 8, 12, 197],
            [12, 50, 2, 197],
            [24, 3, 2, 577],
            [130, 2, 2, 100],
        ] {
            let shape = Shape {
                layers,
                batch,
                heads,
                tokens,
            };
            let modes = [
                (false, None),
                (true, None),
                (false, Some(LayerOrder::Forward)),
            ];
            let outputs = [Output::default(), Output::Matrix];
            for (output, (grouped, order)) in outputs
                .into_iter()
                .flat_map(|output| modes.map(|mode| (output.clone(), mode)))
            {
                let config = RolloutConfig {
                    output,
                    discard: Some(Discard {
                        ratio: 0.9,
                        scope: DiscardScope::Map,
                    }),
                    ..RolloutConfig::default()
                };
                let problem = Problem::new(shape, DType::F32, config).unwrap();
                let works = rates.each_ref().map(|rates| Workload {
                    rates,
                    grouped,
                    order,
                    ..Workload::new(&problem, batch, &DeviceLimits::H200, true)
                });
                let limits = DeviceLimits {
                    clusters: !grouped,
                    ..DeviceLimits::H200
                };
                for (_, pipeline) in works[0].candidates(Precision::F32) {
                    let schedule = match order {
                        None => pipeline.schedule(&problem, batch, &limits),
                        Some(order) => pipeline.streaming(&problem, batch, batch, &limits, order),
                    };
                    let [known, blocks, entries] =
                        works.map(|work| work.microseconds(pipeline).value);
                    // Of the product it is estimated how many items stay in L2 with their states.
                    let tolerance = match pipeline {
                        Pipeline::Product { .. } => 2.0,
                        _ => 1.0 + 1e-6,
                    };
                    let launched = launched(&schedule, tokens);
                    for (more, launched) in [blocks - known, entries - known].iter().zip(launched) {
                        let factor = (more / launched).max(launched / more);
                        assert!(
                            factor <= tolerance,
                            "{more} for {launched}, {pipeline}, grouped: {grouped}, {order:?}: {schedule}"
                        );
                    }
                    compared += 1;
                }
            }
        }
        assert!(compared > 300, "{compared} pipelines");
    }
}
