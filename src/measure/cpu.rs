//! Running a case on the CPU.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::floor::{self, HostRead, ORDERS};
use super::inputs::Inputs;
use super::rotation;
use super::runner::{Replay, Runner, Setup};
use crate::cpu::{GroupItem, GroupPlan, Options, Prefetch};
use crate::error::Result;
use crate::problem::Problem;

/// Time in which the orders of reading are compared: of short reads there are many, so that the choice is no accident.
const CHOICE: Duration = Duration::from_millis(50);

/// A group of problems on the CPU, and copies of its maps.
pub(super) struct CpuRunner {
    group: GroupPlan,
    floor: HostRead,
    copies: Vec<Arc<[Inputs]>>,
    next: usize,
    outputs: Vec<Vec<f32>>,
}

impl CpuRunner {
    /// Plans `problems` for `threads` threads.
    ///
    /// # Errors
    /// As [`GroupPlan::new`].
    pub fn new(
        problems: &[Problem],
        inputs: &Arc<[Inputs]>,
        threads: NonZeroUsize,
        prefetch: Option<Prefetch>,
    ) -> Result<Self> {
        let options = Options {
            threads: Some(threads),
            prefetch,
        };
        let bytes = problems.iter().map(Problem::map_bytes).sum();
        let mut copies = vec![inputs.clone()];
        copies.resize_with(rotation::copies(rotation::host_bytes(), bytes), || {
            inputs.to_vec().into()
        });
        let output = |problem: &Problem| vec![f32::NAN; problem.output_len()];
        let mut runner = CpuRunner {
            group: GroupPlan::new(problems, &options)?,
            floor: HostRead::new(threads)?,
            copies,
            next: 0,
            outputs: problems.iter().map(output).collect(),
        };
        runner.choose_order();
        Ok(runner)
    }

    /// Lets the floor read in the order that is fastest from memory: one copy after the other, none from a cache.
    fn choose_order(&mut self) {
        let mut best = (Duration::MAX, ORDERS[0]);
        let start = Instant::now();
        let mut rounds = 0;
        while rounds < 3 || start.elapsed() < CHOICE {
            rounds += 1;
            for order in ORDERS {
                let inputs = self.next();
                let time = self.floor.run(&self.floor_parts(&inputs), order);
                if time < best.0 {
                    best = (time, order);
                }
            }
        }
        self.floor.set_order(best.1);
    }

    /// The next copy of the maps, which comes up again only after all others.
    fn next(&mut self) -> Arc<[Inputs]> {
        self.next += 1;
        self.copies[self.next % self.copies.len()].clone()
    }

    /// The words that the floor reads of `inputs`.
    fn floor_parts<'a>(&self, inputs: &'a [Inputs]) -> Vec<&'a [u64]> {
        self.group
            .problems()
            .zip(inputs)
            .flat_map(|(problem, inputs)| floor::parts(&inputs.layers(), problem.map_bytes()))
            .collect()
    }
}

impl Runner for CpuRunner {
    fn run(&mut self, runs: u64) -> Result<Duration> {
        let mut elapsed = Duration::ZERO;
        for _ in 0..runs {
            let inputs = self.next();
            let layers: Vec<_> = inputs.iter().map(Inputs::layers).collect();
            let mut members: Vec<_> = layers
                .iter()
                .zip(&mut self.outputs)
                .map(|(layers, out)| GroupItem::new(layers, out))
                .collect();
            let start = Instant::now();
            self.group.run(&mut members)?;
            elapsed += start.elapsed();
        }
        Ok(elapsed)
    }

    fn read(&mut self, reads: u64) -> Result<Duration> {
        let mut elapsed = Duration::ZERO;
        for _ in 0..reads {
            let inputs = self.next();
            elapsed += self.floor.time_parts(&self.floor_parts(&inputs));
        }
        Ok(elapsed)
    }

    fn replay(&mut self, _replays: u64) -> Result<Option<Replay>> {
        Ok(None)
    }

    fn clock(&self) -> Duration {
        Duration::ZERO
    }

    fn answers(&mut self) -> Result<Vec<Vec<f32>>> {
        self.outputs.iter_mut().for_each(|out| out.fill(f32::NAN));
        self.run(1)?;
        Ok(self.outputs.clone())
    }

    fn setup(&self) -> Setup {
        let choices = self.group.choices();
        let mut variants: Vec<String> = choices
            .map(|choice| format!("{}, {}, {}", choice.form, choice.simd, choice.prefetch))
            .collect();
        variants.sort();
        variants.dedup();
        Setup {
            variants,
            workspace_bytes: self.group.workspace_bytes(),
            copies: self.copies.len(),
            floor_bytes: self
                .floor_parts(&self.copies[0])
                .into_iter()
                .map(size_of_val)
                .sum(),
            of_largest: 0.0,
        }
    }
}
