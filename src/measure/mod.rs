//! Measuring a rollout: inputs that mean something, a check before the clock starts, and the floor to compare with.
//!
//! Shared by `benches/` and `attention-rollout bench`, so that both report the same numbers. Not part of the public
//! API.

mod check;
mod floor;
mod inputs;

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

pub use check::check;
pub use floor::HostRead;
pub use inputs::Inputs;

use crate::cpu::{Options, Plan};
use crate::error::{Error, Result};
use crate::problem::Problem;

/// Inputs smaller than this are repeated in memory and taken in turn, so that no run finds its maps in a cache.
pub const ROTATION_BYTES: usize = 256 << 20;

/// One problem with its inputs and a plan on the CPU, checked and ready to be timed.
pub struct Case {
    plan: Plan,
    inputs: Inputs,
    out: Vec<f32>,
    runs: usize,
}

impl Case {
    /// Plans `problem` for `threads` threads.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn new(problem: &Problem, inputs: Inputs, threads: NonZeroUsize) -> Result<Self> {
        let options = Options {
            threads: Some(threads),
        };
        Ok(Case {
            plan: Plan::new(problem, &options)?,
            inputs,
            out: vec![f32::NAN; problem.output_len()],
            runs: 0,
        })
    }

    /// The problem.
    pub fn problem(&self) -> &Problem {
        self.plan.problem()
    }

    /// Runs once and compares the answer with the f64 reference.
    ///
    /// # Errors
    /// Errors of the run, and a sentence that names the first wrong entry.
    pub fn check(&mut self) -> Result<(), String> {
        self.out.fill(f32::NAN);
        self.run().map_err(|error| error.to_string())?;
        check(self.plan.problem(), &self.inputs.layers(0), &self.out)
    }

    /// Runs once over the next copy of the inputs and returns how long that took.
    ///
    /// # Errors
    /// As [`Plan::run`].
    pub fn run(&mut self) -> Result<Duration> {
        let layers = self.inputs.layers(self.runs);
        self.runs += 1;
        let start = Instant::now();
        self.plan.run(&layers, &mut self.out)?;
        Ok(start.elapsed())
    }

    /// Reads as many map bytes as the run must, from a copy that the next run does not take.
    fn read(&self, floor: &HostRead) -> Duration {
        let layers = self.inputs.layers(self.runs + self.inputs.copies() / 2);
        floor.time(&layers, self.problem().map_bytes())
    }
}

/// Times of a rollout and, taken in turns with them, of reading its maps.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// Wall-clock time of each run.
    pub runs: Vec<Duration>,
    /// Wall-clock time of reading the same bytes with as many threads.
    pub floor: Vec<Duration>,
}

/// Times `cases`, one after the other as one run, `runs` times after a warm-up.
///
/// # Errors
/// As [`Plan::run`].
pub fn time(cases: &mut [Case], floor: &HostRead, runs: usize) -> Result<Times> {
    let mut times = Times::default();
    for run in 0..=runs {
        let mut elapsed = [Duration::ZERO; 2];
        for case in &mut *cases {
            elapsed[0] += case.run()?;
        }
        for case in &mut *cases {
            elapsed[1] += case.read(floor);
        }
        if run > 0 {
            times.runs.push(elapsed[0]);
            times.floor.push(elapsed[1]);
        }
    }
    Ok(times)
}

/// The smallest of `times`; zero where there are none.
pub fn minimum(times: &[Duration]) -> Duration {
    times.iter().copied().min().unwrap_or_default()
}

/// The median of `times`; zero where there are none.
pub fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    match sorted.len() {
        0 => Duration::ZERO,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2,
    }
}

/// `bytes` per `time`, in GB/s.
pub fn gb_per_s(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() * 1e-9
}

/// A pool of `threads` threads.
fn thread_pool(threads: NonZeroUsize) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.get())
        .build()
        .map_err(|error| Error::Threads {
            threads: threads.get(),
            reason: error.to_string(),
        })
}
