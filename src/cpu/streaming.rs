//! Rollout while the model runs: layers are pushed in forward order and need not outlive the push.

use std::sync::Arc;

use crate::config::{Output, Residual, ResidualWeights, RolloutConfig};
use crate::cpu::Options;
use crate::cpu::choice::{Choice, Form};
use crate::cpu::engine::{Engine, Prepared};
use crate::cpu::form::product::{self, LayerStep, ProductScratch, StepBuffers};
use crate::cpu::form::rows::{self, RowsScratch};
use crate::cpu::item::ItemMaps;
use crate::cpu::map::Run;
use crate::cpu::memory::Floats;
use crate::cpu::panels::{self, Rollouts, Slab};
use crate::cpu::team::{Shared, Team};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layer::HostLayer;
use crate::layout::{Shape, Window, product as checked};
use crate::problem::Problem;

/// A rollout that takes one layer at a time.
///
/// In row form it keeps `Ahat` of every layer, `layers * batch * tokens^2` floats, and is done in one pass over them; in
/// product form it keeps two rollouts, `2 * batch * tokens^2` floats (and the output for [`Output::Cumulative`]), at the
/// price of a matrix product per layer. [`Choice`] decides; without one, row form where the output are a few rows.
pub struct StreamingPlan {
    /// Makes `Ahat` of every layer, as in product form.
    engine: Engine<ProductScratch>,
    /// The whole problem, whose windows and start rows the state is read with.
    problem: Problem,
    state: State,
    pushed: usize,
}

/// What is kept of the layers pushed.
enum State {
    /// `Ahat` of every layer `[layers, batch, tokens, tokens]`, and the engine that multiplies start rows by them.
    Layers(Floats, Box<Engine<RowsScratch>>),
    Rollouts {
        /// The last rollout of each item and the one before, in panels, `[2 or 1, batch, elements]`.
        rollouts: Floats,
        /// The output `[layers, batch, tokens, tokens]` where every rollout is wanted, else empty.
        slabs: Floats,
    },
}

/// The same, to be written by all members.
#[derive(Clone, Copy)]
enum SharedState<'a> {
    Layers(Shared<'a>),
    Rollouts {
        rollouts: Rollouts<'a>,
        slabs: Option<Shared<'a>>,
    },
}

impl StreamingPlan {
    /// Makes ready for the layers of `problem`'s range.
    ///
    /// # Errors
    /// [`Error::Threads`], [`Error::HostMemory`], [`Error::SizeOverflow`].
    pub fn new(problem: &Problem, options: &Options) -> Result<Self> {
        StreamingPlan::with_choice(problem, options, Choice::with(problem, options.prefetch))
    }

    /// As [`new`](StreamingPlan::new), computed as `choice` says, whatever prefetches `options` ask for. Matrix outputs are
    /// computed in product form whatever the choice says.
    ///
    /// # Errors
    /// As [`new`](StreamingPlan::new).
    pub fn with_choice(problem: &Problem, options: &Options, choice: Choice) -> Result<Self> {
        let team = Arc::new(Team::new(options.threads)?);
        let Shape { batch, tokens, .. } = *problem.shape();
        let layers = problem.layers().len();
        let slabs = |count| checked("the state of a stream", &[count, batch, tokens, tokens]);
        let form = Form::possible(problem, choice.form);
        let state = match form {
            Form::Rows => {
                let kept = kept_problem(problem)?;
                let scratch = RowsScratch::size(&kept)?;
                let prepared = Prepared::new(&kept, Choice { form, ..choice }, scratch);
                let engine = Engine::new(Arc::clone(&team), vec![prepared])?;
                State::Layers(Floats::zeroed(slabs(layers)?)?, Box::new(engine))
            }
            Form::Product => {
                let kept = [product::rollouts(problem), batch, panels::elements(tokens)?];
                let slabs = match problem.config().output {
                    Output::Cumulative => slabs(layers)?,
                    Output::Matrix | Output::Rows(_) => 0,
                };
                State::Rollouts {
                    rollouts: Floats::zeroed(checked("the state of a stream", &kept)?)?,
                    slabs: Floats::zeroed(slabs)?,
                }
            }
        };
        // Every layer becomes an `Ahat`, as in product form.
        let step = Choice {
            form: Form::Product,
            ..choice
        };
        // What is kept is in the state.
        let scratch = match state {
            State::Layers(..) => ProductScratch::of_written_layer(problem)?,
            State::Rollouts { .. } => ProductScratch::of_layer(problem)?,
        };
        let prepared = Prepared::new(problem, step, scratch);
        Ok(StreamingPlan {
            engine: Engine::new(team, vec![prepared])?,
            problem: problem.clone(),
            state,
            pushed: 0,
        })
    }

    /// The problem, whole.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Row form where layers are kept, product form where they are multiplied at once.
    pub fn form(&self) -> Form {
        match self.state {
            State::Layers(..) => Form::Rows,
            State::Rollouts { .. } => Form::Product,
        }
    }

    /// Layers pushed since the last [`finish`](StreamingPlan::finish).
    pub fn pushed(&self) -> usize {
        self.pushed
    }

    /// Bytes kept between pushes, and of workspace.
    pub fn state_bytes(&self) -> usize {
        let kept = match &self.state {
            State::Layers(kept, engine) => size_of_val(&kept[..]) + engine.workspace_bytes(),
            State::Rollouts { rollouts, slabs } => {
                size_of_val(&rollouts[..]) + size_of_val(&slabs[..])
            }
        };
        kept + self.engine.workspace_bytes()
    }

    /// As [`Plan::set_windows`](crate::cpu::Plan::set_windows), for the layers to come: before the first of them is pushed.
    ///
    /// # Errors
    /// As [`Plan::set_windows`](crate::cpu::Plan::set_windows); [`Error::StreamedLayers`] where layers have been pushed.
    pub fn set_windows(&mut self, windows: &[Window]) -> Result<()> {
        self.give(|problem| problem.set_windows(windows))
    }

    /// As [`Plan::set_rows`](crate::cpu::Plan::set_rows), before the first layer is pushed.
    ///
    /// # Errors
    /// As [`Plan::set_rows`](crate::cpu::Plan::set_rows); [`Error::StreamedLayers`] where layers have been pushed.
    pub fn set_rows(&mut self, rows: &[usize]) -> Result<()> {
        self.give(|problem| problem.set_rows(rows))
    }

    /// Lets `set` change the problem wherever there is a copy of it.
    fn give(&mut self, set: impl Fn(&mut Problem) -> Result<()>) -> Result<()> {
        if self.pushed > 0 {
            return Err(Error::StreamedLayers {
                expected: 0,
                got: self.pushed,
            });
        }
        set(&mut self.problem)?;
        set(self.engine.problem_mut(0))?;
        match &mut self.state {
            State::Layers(_, engine) => set(engine.problem_mut(0)),
            State::Rollouts { slabs, .. } => {
                // What the windows of an earlier pass held may lie outside those of the next.
                slabs.fill(0.0);
                Ok(())
            }
        }
    }

    /// Takes in the next layer of the problem's range. `operands` are not needed any more once this returns. The layer's
    /// strides are the problem's.
    ///
    /// # Errors
    /// [`Error::StreamedLayers`] where the range has been pushed; [`Error::Lse`], [`Error::Mass`]; as [`Problem::check_layer`];
    /// [`Error::HostMemory`] as [`Plan::run`](crate::cpu::Plan::run). After an error the stream is as it was.
    pub fn push_layer(&mut self, operands: HostLayer<'_>) -> Result<()> {
        let expected = self.problem.layers().len();
        if self.pushed == expected {
            return Err(Error::StreamedLayers {
                expected,
                got: expected + 1,
            });
        }
        let layer = self.problem.layers().start + self.pushed;
        self.problem.check_layer(layer, &operands)?;
        let Shape { batch, tokens, .. } = *self.problem.shape();
        let pushed = self.pushed;
        let cumulative = self.problem.config().output == Output::Cumulative;
        let kept = match &mut self.state {
            State::Layers(layers, _) => SharedState::Layers(Shared::new(layers)),
            State::Rollouts { rollouts, slabs } => SharedState::Rollouts {
                rollouts: Rollouts::new(
                    Shared::new(rollouts),
                    product::rollouts(&self.problem) * batch,
                ),
                slabs: cumulative.then(|| Shared::new(slabs)),
            },
        };
        self.engine.run(Prepared::items, |task| {
            let prepared = task.prepared;
            let (member, Choice { simd, prefetch, .. }) = (task.member, prepared.choice);
            task.each(|item, memory| {
                let window = prepared.problem.windows()[item];
                if window.len == 0 {
                    return Ok(());
                }
                let maps = ItemMaps {
                    problem: &prepared.problem,
                    prefetch,
                    operands,
                    layer,
                    item,
                    memory: memory.source,
                };
                let probed = maps.probe(simd, member);
                let (own, shared) = prepared.scratch.carve(memory);
                let layer = LayerStep {
                    simd,
                    member,
                    maps,
                    own,
                    shared,
                };
                let slab = |slabs| Slab::of_matrix(slabs, pushed * batch + item, tokens, window);
                let made = match kept {
                    SharedState::Layers(layers) => layer.write(slab(layers)),
                    SharedState::Rollouts { rollouts, slabs } => {
                        let rollout = |step: usize| rollouts.rollout(step % 2 * batch + item);
                        layer.step(StepBuffers {
                            before: (pushed > 0).then(|| rollout(pushed - 1)),
                            to: rollout(pushed),
                            slab: slabs.map(slab),
                        })
                    }
                };
                probed.and(made)
            })
        })?;
        self.pushed += 1;
        Ok(())
    }

    /// Writes the result of the layers pushed into `out`, shaped as [`Problem::output_shape`], and starts anew.
    ///
    /// # Errors
    /// [`Error::StreamedLayers`] where layers are missing, [`Error::Len`] where `out` has another length,
    /// [`Error::HostMemory`] as [`Plan::run`](crate::cpu::Plan::run). After an error the stream is as it was.
    pub fn finish(&mut self, out: &mut [f32]) -> Result<()> {
        let expected = self.problem.layers().len();
        if self.pushed != expected {
            return Err(Error::StreamedLayers {
                expected,
                got: self.pushed,
            });
        }
        let len = self.problem.output_len();
        if out.len() != len {
            return Err(Error::Len {
                what: "output",
                expected: len,
                got: out.len(),
            });
        }
        let Shape { batch, tokens, .. } = *self.problem.shape();
        match &mut self.state {
            State::Layers(kept, engine) => {
                let layers: Vec<_> = match batch * tokens * tokens {
                    0 => vec![HostLayer::from(&kept[..0]); expected],
                    slab => kept.chunks_exact(slab).map(HostLayer::from).collect(),
                };
                let out = Shared::new(out);
                engine.run(Prepared::items, |task| {
                    let source = task.memory.source;
                    let run = Run::new(task.prepared, &layers[..expected], out, source);
                    rows::rollout(run, &task.prepared.scratch, task)
                })?;
            }
            State::Rollouts { slabs, .. } if self.problem.config().output == Output::Cumulative => {
                out.copy_from_slice(&slabs[..len]);
            }
            State::Rollouts { rollouts, .. } => {
                let rollouts = Shared::new(rollouts);
                let rollouts = Rollouts::new(rollouts, product::rollouts(&self.problem) * batch);
                out.fill(0.0);
                let out = Shared::new(out);
                self.engine.run(Prepared::items, |task| {
                    let prepared = task.prepared;
                    let problem = &prepared.problem;
                    let member = task.member;
                    task.each(|item, memory| {
                        let rollout = rollouts.rollout((expected - 1) % 2 * batch + item);
                        if problem.config().output == Output::Matrix {
                            product::matrix(problem, member, item, rollout, out);
                        } else {
                            let (_, shared) = prepared.scratch.carve(memory);
                            product::start_rows(problem, member, item, shared, rollout, out);
                        }
                        Ok(())
                    })
                })?;
            }
        }
        self.pushed = 0;
        Ok(())
    }
}

/// The problem over kept `Ahat`s: heads fused, entries discarded, residual added, rows normalised.
fn kept_problem(problem: &Problem) -> Result<Problem> {
    let shape = Shape {
        layers: problem.layers().len(),
        heads: 1,
        ..*problem.shape()
    };
    let config = RolloutConfig {
        residual: ResidualWeights::Uniform(Residual::new(1.0, 0.0)),
        causal: problem.config().causal,
        output: problem.config().output.clone(),
        ..RolloutConfig::default()
    };
    Problem::builder(shape, DType::F32)
        .config(config)
        .windows(problem.windows().to_vec())
        .max_window(problem.longest_window())
        .build()
}
