//! Problems made ready to be timed on one device.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::check::check;
use super::cpu::CpuRunner;
#[cfg(feature = "cuda")]
use super::cuda::CudaRunner;
use super::inputs::Inputs;
use crate::error::Result;
use crate::problem::Problem;

/// Runs before anything is timed go on for this long: an idle processor takes a while to reach its clock.
const WARM_UP: Duration = Duration::from_millis(100);

/// Repeats of what is too short for the device's clock.
const MOST_REPEATS: u32 = 100;

/// What a device does with a case. Every piece of work takes the next copy of the inputs.
pub(super) trait Runner {
    /// Computes all problems `runs` times; the time of all runs.
    fn run(&mut self, runs: u64) -> Result<Duration>;

    /// Reads as many bytes of the maps as a run must, and nothing else, `reads` times; the time of all reads.
    fn read(&mut self, reads: u64) -> Result<Duration>;

    /// Replays a run as a graph `replays` times; the time of all replays, and that of one alone. `None` where the device
    /// has no graphs.
    fn replay(&mut self, replays: u64) -> Result<Option<Replay>>;

    /// What the device's clock needs to tell times apart: work that takes less is repeated.
    fn clock(&self) -> Duration;

    /// Computes all problems once; their outputs, NaN where nothing was written.
    fn answers(&mut self) -> Result<Vec<Vec<f32>>>;

    fn setup(&self) -> Setup;
}

/// How a case is computed.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What computes the problems, each once: kernel symbols, or forms and instruction sets of the CPU.
    pub variants: Vec<String>,
    /// Memory beside inputs and outputs, on the device that computes.
    pub workspace_bytes: usize,
    /// How often the maps lie in memory.
    pub copies: usize,
    /// Bytes that one read of the maps reads: those a run must read, to whole loads.
    pub floor_bytes: usize,
    /// What the arithmetic may add to the error of an f32 sum: see [`check`].
    pub(super) of_largest: f64,
}

/// The times of a run that was captured as a graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// On the device, straight after another replay.
    pub device: Duration,
    /// On the host, from the launch on an idle device until the host knows that it is done.
    pub latency: Duration,
}

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
    /// Plans problems, each with its inputs, for `threads` threads of the CPU.
    ///
    /// # Errors
    /// As [`Group::new`](crate::cpu::GroupPlan::new).
    pub fn cpu(members: Vec<(Problem, Inputs)>, threads: NonZeroUsize) -> Result<Self> {
        Case::new(members, |problems, inputs| {
            Ok(Box::new(CpuRunner::new(problems, inputs, threads)?))
        })
    }

    /// Plans problems, each with its inputs, for the GPU of `context`.
    ///
    /// # Errors
    /// As [`Plan::new`](crate::cuda::Plan::new), and where the maps do not fit beside the workspace.
    #[cfg(feature = "cuda")]
    pub fn cuda(
        members: Vec<(Problem, Inputs)>,
        context: &Arc<crate::cuda::cudarc::driver::CudaContext>,
        options: &crate::cuda::Options,
    ) -> Result<Self> {
        Case::new(members, |problems, inputs| {
            Ok(Box::new(CudaRunner::new(
                problems, inputs, context, options,
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
