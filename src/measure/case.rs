//! Problems made ready to be timed on one device.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::check::check;
use super::cpu::CpuRunner;
#[cfg(feature = "cuda")]
use super::cuda::CudaRunner;
use super::inputs::Inputs;
use super::runner::{Replay, Runner, Setup};
use crate::cpu::Prefetch;
use crate::error::Result;
use crate::problem::Problem;

/// Runs before anything is timed go on for this long: an idle processor takes a while to reach its clock.
const WARM_UP: Duration = Duration::from_millis(100);

/// Repeats of what is too short for the device's clock.
const MOST_REPEATS: u32 = 100;

/// Times of a rollout and, taken in turns with them, of reading its maps. What is too short for the device's clock is
/// repeated, one straight after the other, and a time is the mean of the repeats.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// Each run: wall-clock time on the CPU, device time on a GPU.
    pub runs: Vec<Duration>,
    /// Runs of which each of the times above is the mean.
    pub repeats: u32,
    /// Reading the same bytes, with as many threads on the CPU.
    pub floor: Vec<Duration>,
    /// Replays of the run as a graph; none where the device has no graphs, or where capturing failed.
    pub replays: Vec<Replay>,
    /// Why a device that has graphs could not replay the run.
    pub no_replays: Option<String>,
}

/// Problems with their inputs, made ready on one device and computed together as one run.
pub struct Case {
    problems: Vec<Problem>,
    inputs: Arc<[Inputs]>,
    runner: Box<dyn Runner>,
}

impl Case {
    /// Plans problems, each with its inputs, for `threads` threads of the CPU, with these prefetches where there are some.
    ///
    /// # Errors
    /// As [`Group::new`](crate::cpu::GroupPlan::new).
    pub fn cpu(
        members: Vec<(Problem, Inputs)>,
        threads: NonZeroUsize,
        prefetch: Option<Prefetch>,
    ) -> Result<Self> {
        Case::new(members, |problems, inputs| {
            Ok(Box::new(CpuRunner::new(
                problems, inputs, threads, prefetch,
            )?))
        })
    }

    /// Plans problems, each with its inputs, for the GPU of `runtime`.
    ///
    /// # Errors
    /// As [`Plan::new`](crate::cuda::Plan::new), and where the maps do not fit beside the workspace.
    #[cfg(feature = "cuda")]
    pub fn cuda(
        members: Vec<(Problem, Inputs)>,
        runtime: &crate::cuda::Runtime,
        options: &crate::cuda::Options,
    ) -> Result<Self> {
        Case::new(members, |problems, inputs| {
            Ok(Box::new(CudaRunner::new(
                problems, inputs, runtime, options,
            )?))
        })
    }

    fn new(
        members: Vec<(Problem, Inputs)>,
        runner: impl FnOnce(&[Problem], &Arc<[Inputs]>) -> Result<Box<dyn Runner>>,
    ) -> Result<Self> {
        let (problems, inputs): (Vec<_>, Vec<_>) = members.into_iter().unzip();
        let inputs = inputs.into();
        Ok(Case {
            runner: runner(&problems, &inputs)?,
            problems,
            inputs,
        })
    }

    /// The problems.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// How they are computed.
    pub fn setup(&self) -> Setup {
        self.runner.setup()
    }

    /// Bytes of the maps that a run must read.
    pub fn map_bytes(&self) -> usize {
        self.problems.iter().map(Problem::map_bytes).sum()
    }

    /// Runs once and compares the answers with the f64 reference.
    ///
    /// # Errors
    /// Errors of the run, and a sentence that names the first wrong entry.
    pub fn check(&mut self) -> Result<(), String> {
        let answers = self.runner.answers().map_err(|error| error.to_string())?;
        let of_largest = self.runner.setup().of_largest;
        let expected = self.problems.iter().zip(self.inputs.iter());
        for ((problem, inputs), answer) in expected.zip(&answers) {
            check(problem, &inputs.layers(), answer, of_largest)?;
        }
        Ok(())
    }

    /// Runs `runs` times, over one copy of the inputs after the other, and returns how long all of them took.
    ///
    /// # Errors
    /// As the plan's `run`.
    pub fn run(&mut self, runs: u64) -> Result<Duration> {
        self.runner.run(runs)
    }

    /// Reads as many bytes of the maps as a run must, and nothing else, `reads` times, and returns how long that took.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn read(&mut self, reads: u64) -> Result<Duration> {
        self.runner.read(reads)
    }

    /// Runs and reads until the device has warmed up; how often a run and a read have to be repeated for its clock.
    fn warm_up(&mut self) -> Result<(u32, u32)> {
        let start = Instant::now();
        let (mut run, mut read) = (Duration::MAX, Duration::MAX);
        while run == Duration::MAX || start.elapsed() < WARM_UP {
            run = run.min(self.runner.run(1)?);
            read = read.min(self.runner.read(1)?);
        }
        Ok((self.repeats(run), self.repeats(read)))
    }

    /// How often work that takes `time` is repeated.
    fn repeats(&self, time: Duration) -> u32 {
        let clock = self.runner.clock().as_nanos();
        let repeats = clock.div_ceil(time.as_nanos().max(1));
        repeats.clamp(1, u128::from(MOST_REPEATS)) as u32
    }

    /// Times `runs` runs in turns with reading the maps, after a warm-up, and then as many replays.
    ///
    /// # Errors
    /// As the plan's `run`.
    pub fn time(&mut self, runs: usize) -> Result<Times> {
        let (repeats, reads) = self.warm_up()?;
        let mut times = Times {
            repeats,
            ..Times::default()
        };
        for _ in 0..runs {
            times.runs.push(self.runner.run(repeats.into())? / repeats);
            times.floor.push(self.runner.read(reads.into())? / reads);
        }
        for _ in 0..runs {
            match self.runner.replay(repeats.into()) {
                Ok(None) => break,
                Ok(Some(replay)) => times.replays.push(Replay {
                    device: replay.device / repeats,
                    ..replay
                }),
                Err(error) => {
                    times.replays.clear();
                    times.no_replays = Some(error.to_string());
                    break;
                }
            }
        }
        Ok(times)
    }
}
