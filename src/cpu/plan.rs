//! A problem made ready to run on the CPU.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use crate::cpu::choice::Choice;
use crate::cpu::engine::{Engine, Prepared};
use crate::cpu::form::{FormScratch, prepare};
use crate::cpu::prefetch::Prefetch;
use crate::cpu::team::{Shared, Team};
use crate::cpu::{Options, Progress, RunInputs};
use crate::error::Result;
use crate::layer::HostLayer;
use crate::layout::Window;
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
    /// What runs are given where they are not told otherwise, while one is.
    kept: (Vec<Window>, Vec<usize>),
}

impl Plan {
    /// Makes `problem` ready to run.
    ///
    /// # Errors
    /// [`Error::Threads`](crate::Error::Threads), [`Error::HostMemory`](crate::Error::HostMemory),
    /// [`Error::SizeOverflow`](crate::Error::SizeOverflow).
    pub fn new(problem: &Problem, options: &Options) -> Result<Self> {
        Plan::with_choice(problem, options, Choice::with(problem, options.prefetch))
    }

    /// As [`new`](Plan::new), computed as `choice` says, whatever prefetches `options` ask for. Matrix outputs are computed in
    /// product form whatever the choice says.
    ///
    /// # Errors
    /// As [`new`](Plan::new).
    pub fn with_choice(problem: &Problem, options: &Options, choice: Choice) -> Result<Self> {
        let team = Arc::new(Team::new(options.threads)?);
        Plan::of(&team, problem, choice)
    }

    /// As [`new`](Plan::new), on a team that other plans use too.
    pub(super) fn of_team(
        team: &Arc<Team>,
        problem: &Problem,
        prefetch: Option<Prefetch>,
    ) -> Result<Self> {
        Plan::of(team, problem, Choice::with(problem, prefetch))
    }

    /// Gives the runs to come what `problem`, of which it is a plan too, is given.
    pub(super) fn restore(&mut self, problem: &Problem) {
        let own = self.engine.problem_mut(0);
        own.restore(problem.windows(), problem.item_rows());
    }

    fn of(team: &Arc<Team>, problem: &Problem, choice: Choice) -> Result<Self> {
        Ok(Plan {
            engine: Engine::new(team.clone(), vec![prepare(problem, choice)?])?,
            kept: (problem.windows().to_vec(), problem.item_rows().to_vec()),
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
    /// Allocates nothing itself. The first product of matrices on a thread other than the one that made the plan takes a
    /// buffer as large as its second-level cache. Waking the other threads and each product take a few bytes inside the
    /// `rayon` and `gemm` crates (on other machines than x86-64, the `gemm` crate may take up to some hundred kilobytes in a
    /// product): where the system has not even those, they end the process.
    ///
    /// # Errors
    /// As [`Problem::check_layers`]; [`Error::StartRow`](crate::Error::StartRow) where a start row of
    /// [`set_rows`](Plan::set_rows) lies outside its window; [`Error::HostMemory`](crate::Error::HostMemory). Where queries,
    /// keys and LSE do not belong together ([`QueriesKeys::mass_tolerance`](crate::QueriesKeys::mass_tolerance)),
    /// [`Error::Lse`](crate::Error::Lse) or [`Error::Mass`](crate::Error::Mass) of the first such item, after all have been
    /// computed: then `out` holds nothing of use.
    pub fn run(&mut self, layers: &[HostLayer<'_>], out: &mut [f32]) -> Result<()> {
        self.problem().check_layers(layers, out.len())?;
        self.problem().check_rows()?;
        let out = Shared::new(out);
        self.engine
            .run(Prepared::items, |task| task.rollout(layers, out))
    }

    /// Gives the runs to come other windows, one per item, where the problem was made with windows. A copy of 16 bytes per
    /// item; items without tokens are an empty window, and their output is 0.
    ///
    /// ```
    /// use attention_rollout::{DType, HostLayer, Problem, Shape, Window, cpu};
    ///
    /// let shape = Shape { layers: 1, batch: 1, heads: 1, tokens: 3 };
    /// let problem = Problem::builder(shape, DType::F32).max_window(3).build()?;
    /// let mut plan = cpu::Plan::new(&problem, &cpu::Options::default())?;
    /// let maps = [0.5_f32; 9];
    /// plan.set_windows(&[Window { start: 1, len: 2 }])?; // one token of padding on the left
    /// assert_eq!(plan.run_to_vec(&[HostLayer::from(&maps[..])])?, [0.0, 0.75, 0.25]);
    /// # Ok::<(), attention_rollout::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::FixedInput`] where the problem was made without windows; [`Error::Count`], [`Error::Window`],
    /// [`Error::WindowLen`]; [`Error::StartRow`] where a start row that all items share lies outside one of them. After an
    /// error the windows are as they were.
    ///
    /// [`Error::FixedInput`]: crate::Error::FixedInput
    /// [`Error::Count`]: crate::Error::Count
    /// [`Error::Window`]: crate::Error::Window
    /// [`Error::WindowLen`]: crate::Error::WindowLen
    /// [`Error::StartRow`]: crate::Error::StartRow
    pub fn set_windows(&mut self, windows: &[Window]) -> Result<()> {
        self.engine.problem_mut(0).set_windows(windows)
    }

    /// Gives the runs to come other start rows, as many per item as before and counted from its window's start, where the problem was
    /// made with [`StartRows::PerItem`](crate::StartRows::PerItem). Whether they lie in the windows a run says.
    ///
    /// # Errors
    /// [`Error::FixedInput`](crate::Error::FixedInput) where the problem was made otherwise;
    /// [`Error::Count`](crate::Error::Count). After an error the rows are as they were.
    pub fn set_rows(&mut self, rows: &[usize]) -> Result<()> {
        self.engine.problem_mut(0).set_rows(rows)
    }

    /// As [`run`](Plan::run) with other windows and rows, for this run alone.
    ///
    /// # Errors
    /// As [`set_windows`](Plan::set_windows), [`set_rows`](Plan::set_rows) and [`run`](Plan::run).
    pub fn run_with(
        &mut self,
        layers: &[HostLayer<'_>],
        out: &mut [f32],
        inputs: RunInputs<'_>,
    ) -> Result<()> {
        let (windows, rows) = &mut self.kept;
        windows.copy_from_slice(self.engine.problems()[0].problem.windows());
        rows.copy_from_slice(self.engine.problems()[0].problem.item_rows());
        let given = inputs.tell(self.engine.problem_mut(0));
        let ran = given.and_then(|()| self.run(layers, out));
        let (windows, rows) = &self.kept;
        self.engine.problem_mut(0).restore(windows, rows);
        ran
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
    /// [`Problem::output_shape`] of a problem of these items. So a plan serves batches of fewer items.
    ///
    /// # Errors
    /// As [`run`](Plan::run) for the items; [`Error::Items`](crate::Error::Items) where they leave the batch.
    pub fn run_items(
        &mut self,
        items: Range<usize>,
        layers: &[HostLayer<'_>],
        out: &mut [f32],
    ) -> Result<()> {
        self.run_items_with(items, layers, out, RunInputs::default())
    }

    /// [`run_items`](Plan::run_items) and [`run_with`](Plan::run_with) in one: the windows and rows are those of `items`.
    ///
    /// # Errors
    /// As [`run_items`](Plan::run_items) and [`run_with`](Plan::run_with).
    pub fn run_items_with(
        &mut self,
        items: Range<usize>,
        layers: &[HostLayer<'_>],
        out: &mut [f32],
        inputs: RunInputs<'_>,
    ) -> Result<()> {
        self.problem().check_items(&items)?;
        let first = items.start;
        let mut part = self.problem().slice_batch(items);
        inputs.tell(&mut part)?;
        part.check_layers(layers, out.len())?;
        part.check_rows()?;
        let out = Shared::new(out);
        self.engine.run(
            |_| 0..part.shape().batch,
            |task| {
                task.rollout_of(&part, layers, out)
                    .map_err(|error| error.in_batch(first))
            },
        )
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
        self.problem().check_rows()?;
        let total = self.problem().shape().batch;
        let out = Shared::new(out);
        for first in (0..total).step_by(items_per_chunk.get()) {
            let done = total.min(first.saturating_add(items_per_chunk.get()));
            self.engine
                .run(|_| first..done, |task| task.rollout(layers, out))?;
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
            "cpu {}, {}, {}, {} threads: {} {}, {} start rows; reads {map_bytes} bytes, workspace {} bytes",
            choice.form,
            choice.simd,
            choice.prefetch,
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
