//! Relevance from the last layer down: layers are pushed last to first and need not outlive the push.

use std::sync::Arc;

use crate::config::Output;
use crate::cpu::Options;
use crate::cpu::choice::{Choice, Form};
use crate::cpu::engine::{Engine, Prepared};
use crate::cpu::form::rows::{self, RowsScratch};
use crate::cpu::map::Run;
use crate::cpu::memory::Floats;
use crate::cpu::team::{Shared, Team};
use crate::error::{Error, Result};
use crate::layer::HostLayer;
use crate::layout::Window;
use crate::problem::Problem;

/// Relevance rows of layers that come one at a time, the last one first: from disk, from the memory of another device, or
/// computed again. One layer is in memory at a time, and the relevance, `batch * rows * tokens` floats.
///
/// Of queries and keys, that is all that a rollout of long sequences needs; maps can be pushed so too.
///
/// ```
/// use attention_rollout::{DType, HostLayer, Problem, RolloutConfig, Shape, cpu};
///
/// let shape = Shape { layers: 2, batch: 1, heads: 1, tokens: 2 };
/// let problem = Problem::new(shape, DType::F32, RolloutConfig::default())?;
/// let mut plan = cpu::TopDownPlan::new(&problem, &cpu::Options::default())?;
/// let (first, last) = ([0.5_f32, 0.5, 0.0, 1.0], [1.0_f32, 0.0, 0.5, 0.5]);
/// plan.push_layer(HostLayer::from(&last[..]))?;
/// plan.push_layer(HostLayer::from(&first[..]))?;
/// let mut relevance = [0.0; 2];
/// plan.finish(&mut relevance)?;
/// assert_eq!(relevance, [0.75, 0.25]);
/// # Ok::<(), attention_rollout::Error>(())
/// ```
pub struct TopDownPlan {
    engine: Engine<RowsScratch>,
    /// The relevance before the layers that are still to come, as the output.
    relevance: Floats,
    pushed: usize,
}

impl TopDownPlan {
    /// Makes ready for the layers of `problem`'s range.
    ///
    /// # Errors
    /// [`Error::Conflict`] where the output is not relevance rows; [`Error::Threads`], [`Error::HostMemory`],
    /// [`Error::SizeOverflow`].
    pub fn new(problem: &Problem, options: &Options) -> Result<Self> {
        let Output::Rows(_) = problem.config().output else {
            return Err(Error::Conflict {
                what: "layers from the last to the first",
                with: "a matrix",
            });
        };
        let choice = Choice {
            form: Form::Rows,
            ..Choice::with(problem, options.prefetch)
        };
        let team = Arc::new(Team::new(options.threads)?);
        let prepared = Prepared::new(problem, choice, RowsScratch::size(problem)?);
        Ok(TopDownPlan {
            engine: Engine::new(team, vec![prepared])?,
            relevance: Floats::zeroed(problem.output_len())?,
            pushed: 0,
        })
    }

    /// The problem, whole.
    pub fn problem(&self) -> &Problem {
        &self.engine.problems()[0].problem
    }

    /// Layers pushed since the last [`finish`](TopDownPlan::finish).
    pub fn pushed(&self) -> usize {
        self.pushed
    }

    /// Bytes kept between pushes, and of workspace.
    pub fn state_bytes(&self) -> usize {
        self.relevance.bytes() + self.engine.workspace_bytes()
    }

    /// As [`Plan::set_windows`](crate::cpu::Plan::set_windows), for the layers to come: before the first of them is pushed.
    ///
    /// # Errors
    /// As [`Plan::set_windows`](crate::cpu::Plan::set_windows); [`Error::StreamedLayers`] where layers have been pushed.
    pub fn set_windows(&mut self, windows: &[Window]) -> Result<()> {
        self.before_the_first()?;
        self.engine.problem_mut(0).set_windows(windows)
    }

    /// As [`Plan::set_rows`](crate::cpu::Plan::set_rows), for the layers to come: before the first of them is pushed.
    ///
    /// # Errors
    /// As [`Plan::set_rows`](crate::cpu::Plan::set_rows); [`Error::StreamedLayers`] where layers have been pushed.
    pub fn set_rows(&mut self, rows: &[usize]) -> Result<()> {
        self.before_the_first()?;
        self.engine.problem_mut(0).set_rows(rows)
    }

    fn before_the_first(&self) -> Result<()> {
        match self.pushed {
            0 => Ok(()),
            got => Err(Error::StreamedLayers { expected: 0, got }),
        }
    }

    /// Takes in the layer of the problem's range before the one pushed last; at first the last one. `operands` are not needed
    /// any more once this returns.
    ///
    /// # Errors
    /// [`Error::StreamedLayers`] where the range has been pushed; [`Error::StartRow`] as [`Plan::run`](crate::cpu::Plan::run);
    /// as [`Problem::check_layer`]; [`Error::HostMemory`]. After these the plan is as it was. After [`Error::Lse`] and
    /// [`Error::Mass`] it starts anew.
    pub fn push_layer(&mut self, operands: HostLayer<'_>) -> Result<()> {
        let problem = self.problem();
        let range = problem.layers();
        if self.pushed == range.len() {
            return Err(Error::StreamedLayers {
                expected: range.len(),
                got: range.len() + 1,
            });
        }
        problem.check_rows()?;
        let layer = range.end - 1 - self.pushed;
        problem.check_layer(layer, &operands)?;
        let (operands, len) = ([operands], problem.output_len());
        let relevance = Shared::new(&mut self.relevance).slice(0..len);
        let pushed = self.engine.run(Prepared::items, |task| {
            let run = Run {
                simd: task.prepared.choice.simd,
                prefetch: task.prepared.choice.prefetch,
                problem: &task.prepared.problem,
                operands: &operands,
                first: layer,
                out: relevance,
                source: task.memory.source,
            };
            rows::rollout(run, &task.prepared.scratch, task)
        });
        match pushed {
            Ok(()) => self.pushed += 1,
            Err(Error::Lse { .. } | Error::Mass { .. }) => self.pushed = 0,
            Err(_) => {}
        }
        pushed
    }

    /// Writes the relevance of the layers pushed into `out`, shaped as [`Problem::output_shape`], and starts anew.
    ///
    /// # Errors
    /// [`Error::StreamedLayers`] where layers are missing, [`Error::Len`] where `out` has another length. After an error the
    /// plan is as it was.
    pub fn finish(&mut self, out: &mut [f32]) -> Result<()> {
        let expected = self.problem().layers().len();
        if self.pushed != expected {
            return Err(Error::StreamedLayers {
                expected,
                got: self.pushed,
            });
        }
        self.problem().check_output_len(out.len())?;
        out.copy_from_slice(&self.relevance[..out.len()]);
        self.pushed = 0;
        Ok(())
    }
}
