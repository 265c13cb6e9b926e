//! A problem made ready to run on the CPU.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use crate::cpu::choice::Choice;
use crate::cpu::engine::{Engine, Prepared};
use crate::cpu::form::{FormScratch, prepare};
use crate::cpu::team::{Shared, Team};
use crate::cpu::{Options, Progress};
use crate::error::Result;
use crate::layer::HostLayer;
use crate::memory::filled;
use crate::problem::Problem;

/// A problem made ready to run on the CPU: threads started, workspace allocated. Prints what it has decided.
///
/// ```
/// use attention_rollout::{DType, HostLayer, Problem, RolloutConfig, Shape, cpu};
///
/// let shape = Shape { layers: 2, batch: 1, heads: 1, tokens: 2 };
/// let problem = Problem::new(shape, DType::F32, RolloutConfig::default())?;
/// let mut plan = cpu::Plan::new(&problem, &cpu::Options::default())?;
/// let uniform = [0.5_f32; 4];
/// let mut relevance = [0.0; 2];
/// plan.run(&[HostLayer::from(&uniform[..]); 2], &mut relevance)?;
/// assert_eq!(relevance, [0.625, 0.375]);
/// # Ok::<(), attention_rollout::Error>(())
/// ```
pub struct Plan {
    engine: Engine<FormScratch>,
}

impl Plan {
    /// Makes `problem` ready to run.
    ///
    /// # Errors
    /// [`Error::Threads`](crate::Error::Threads), [`Error::HostMemory`](crate::Error::HostMemory),
    /// [`Error::SizeOverflow`](crate::Error::SizeOverflow).
    pub fn new(problem: &Problem, options: &Options) -> Result<Self> {
        Plan::with_choice(problem, options, Choice::of(problem))
    }

    /// As [`new`](Plan::new), computed as `choice` says. Matrix outputs are computed in product form
    /// whatever the choice says.
    ///
    /// # Errors
    /// As [`new`](Plan::new).
    pub fn with_choice(problem: &Problem, options: &Options, choice: Choice) -> Result<Self> {
        let team = Arc::new(Team::new(options.threads)?);
        Plan::of(&team, problem, choice)
    }

    /// As [`new`](Plan::new), on a team that other plans use too.
    pub(super) fn of_team(team: &Arc<Team>, problem: &Problem) -> Result<Self> {
        Plan::of(team, problem, Choice::of(problem))
    }

    fn of(team: &Arc<Team>, problem: &Problem, choice: Choice) -> Result<Self> {
        Ok(Plan {
            engine: Engine::new(team.clone(), vec![prepare(problem, choice)?])?,
        })
    }

    fn prepared(&self) -> &Prepared<FormScratch> {
        &self.engine.problems()[0]
    }

    /// The problem this plan runs.
    pub fn problem(&self) -> &Problem {
        &self.prepared().problem
    }

    /// How the problem is computed.
    pub fn choice(&self) -> Choice {
        self.prepared().choice
    }

    /// Threads, the calling one included.
    pub fn threads(&self) -> usize {
        self.engine.threads()
    }

    /// Bytes of workspace, all threads together. The maps are never copied.
    pub fn workspace_bytes(&self) -> usize {
        self.engine.workspace_bytes()
    }

    /// Computes the rollout of `layers` (every layer of the problem, first to last) into `out`, shaped as
    /// [`Problem::output_shape`]. The result is the same to the bit whenever the same plan runs; in row form also
    /// whatever the number of threads.
    ///
    /// Allocates nothing itself; waking the other threads and each matrix product take small buffers of their own
    /// inside the `rayon` and `gemm` crates.
    ///
    /// # Errors
    /// As [`Problem::check_layers`].
    pub fn run(&mut self, layers: &[HostLayer<'_>], out: &mut [f32]) -> Result<()> {
        self.problem().check_layers(layers, out.len())?;
        let out = Shared::new(out);
        self.engine
            .run(Prepared::items, |task| task.rollout(layers, out));
        Ok(())
    }

    /// As [`run`](Plan::run), into memory that it allocates.
    ///
    /// # Errors
    /// As [`run`](Plan::run); [`Error::HostMemory`](crate::Error::HostMemory).
    pub fn run_to_vec(&mut self, layers: &[HostLayer<'_>]) -> Result<Vec<f32>> {
        let mut out = filled("the output", self.problem().output_len(), 0.0)?;
        self.run(layers, &mut out)?;
        Ok(out)
    }

    /// Computes the items `items` alone: `layers` hold every layer of theirs, `out` is shaped as
    /// [`Problem::output_shape`] of a problem of these items.
    ///
    /// # Errors
    /// As [`Problem::check_layers`].
    ///
    /// # Panics
    /// Where `items` leaves the batch.
    pub fn run_items(
        &mut self,
        items: Range<usize>,
        layers: &[HostLayer<'_>],
        out: &mut [f32],
    ) -> Result<()> {
        let part = self.problem().slice_batch(items);
        part.check_layers(layers, out.len())?;
        let out = Shared::new(out);
        self.engine.run(
            |_| 0..part.shape().batch,
            |task| task.rollout_of(&part, layers, out),
        );
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
        items_per_chunk: NonZeroUsize,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        self.problem().check_layers(layers, out.len())?;
        let total = self.problem().shape().batch;
        let out = Shared::new(out);
        for first in (0..total).step_by(items_per_chunk.get()) {
            let done = total.min(first.saturating_add(items_per_chunk.get()));
            self.engine
                .run(|_| first..done, |task| task.rollout(layers, out));
            progress(Progress { done, total });
        }
        Ok(())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Prepared {
            problem,
            choice,
            map_bytes,
            ..
        } = self.prepared();
        write!(
            f,
            "cpu {}, {}, {} threads: {} {}, {} start rows; reads {map_bytes} bytes, workspace {} bytes",
            choice.form,
            choice.simd,
            self.threads(),
            problem.shape(),
            problem.dtype(),
            problem.start_rows(),
            self.workspace_bytes(),
        )
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plan({self})")
    }
}
