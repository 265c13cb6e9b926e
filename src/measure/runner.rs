//! What every device does with a case, and what it tells about that.

use std::time::Duration;

use crate::error::Result;

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
    /// What the arithmetic may add to the error of an f32 sum: see [`check`](super::check::check).
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
