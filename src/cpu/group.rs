//! Many problems at once: the features of a patient record, say, each with shapes of its own.

use std::sync::Arc;

use crate::cpu::choice::Choice;
use crate::cpu::engine::{Engine, Prepared};
use crate::cpu::form::{FormScratch, prepare};
use crate::cpu::team::{Shared, Team};
use crate::cpu::{Options, RunInputs};
use crate::error::{Error, Result};
use crate::layer::HostLayer;
use crate::layout::Window;
use crate::problem::Problem;

/// Problems that may differ in everything, made ready to run together on one team of threads.
///
/// Items of all problems are handed out to whichever thread is free, so small problems cost no start of their own.
pub struct GroupPlan {
    engine: Engine<FormScratch>,
}

/// What one problem of a [`GroupPlan`] reads and writes.
pub struct GroupItem<'a> {
    layers: &'a [HostLayer<'a>],
    out: Shared<'a>,
    out_len: usize,
    inputs: RunInputs<'a>,
}

impl<'a> GroupItem<'a> {
    /// `layers` holds every layer of the problem, first to last; `out` is shaped as
    /// [`Problem::output_shape`].
    pub fn new(layers: &'a [HostLayer<'a>], out: &'a mut [f32]) -> Self {
        GroupItem {
            layers,
            out_len: out.len(),
            out: Shared::new(out),
            inputs: RunInputs::default(),
        }
    }

    /// With other windows and rows, for this run alone, as those of [`Plan::run_with`](crate::cpu::Plan::run_with).
    pub fn with(self, inputs: RunInputs<'a>) -> Self {
        GroupItem { inputs, ..self }
    }
}

impl GroupPlan {
    /// Makes `problems` ready to run.
    ///
    /// # Errors
    /// [`Error::Threads`], [`Error::HostMemory`]; [`Error::Member`] around what is wrong with one problem.
    pub fn new(problems: &[Problem], options: &Options) -> Result<Self> {
        let team = Arc::new(Team::new(options.threads)?);
        let prepared = problems
            .iter()
            .enumerate()
            .map(|(member, problem)| {
                prepare(problem, Choice::with(problem, options.prefetch))
                    .map_err(|error| of_member(member, error))
            })
            .collect::<Result<_>>()?;
        Ok(GroupPlan {
            engine: Engine::new(team, prepared)?,
        })
    }

    /// The problems, in the order given.
    pub fn problems(&self) -> impl ExactSizeIterator<Item = &Problem> {
        self.engine.problems().iter().map(|p| &p.problem)
    }

    /// How each is computed, in that order.
    pub fn choices(&self) -> impl ExactSizeIterator<Item = Choice> {
        self.engine.problems().iter().map(|p| p.choice)
    }

    /// Bytes of workspace, all threads together.
    pub fn workspace_bytes(&self) -> usize {
        self.engine.workspace_bytes()
    }

    /// As [`Plan::set_windows`](crate::cpu::Plan::set_windows), of the problem at place `member`.
    ///
    /// # Errors
    /// [`Error::Count`] where there is no such problem; [`Error::Member`] around what is wrong with the windows.
    pub fn set_windows(&mut self, member: usize, windows: &[Window]) -> Result<()> {
        let problem = self.member(member)?;
        let set = problem.set_windows(windows);
        set.map_err(|error| of_member(member, error))
    }

    /// As [`Plan::set_rows`](crate::cpu::Plan::set_rows), of the problem at place `member`.
    ///
    /// # Errors
    /// [`Error::Count`] where there is no such problem; [`Error::Member`] around what is wrong with the rows.
    pub fn set_rows(&mut self, member: usize, rows: &[usize]) -> Result<()> {
        let problem = self.member(member)?;
        problem
            .set_rows(rows)
            .map_err(|error| of_member(member, error))
    }

    fn member(&mut self, member: usize) -> Result<&mut Problem> {
        let expected = self.engine.problems().len();
        if member >= expected {
            return Err(Error::Count {
                what: "problems of the group, up to the one named",
                expected,
                got: member.saturating_add(1),
            });
        }
        Ok(self.engine.problem_mut(member))
    }

    /// Computes every problem's rollout, from and to the item at the same place. Nothing is written unless
    /// everything fits.
    ///
    /// # Errors
    /// [`Error::Count`] where there is not one item per problem; [`Error::Member`] around what
    /// [`Problem::check_layers`] finds; [`Error::HostMemory`] as [`Plan::run`](crate::cpu::Plan::run).
    pub fn run(&mut self, items: &mut [GroupItem<'_>]) -> Result<()> {
        let expected = self.engine.problems().len();
        if items.len() != expected {
            return Err(Error::Count {
                what: "items, one per problem of the group",
                expected,
                got: items.len(),
            });
        }
        // Members that are given something else than the plan was told, in ascending order, with the problems that they have
        // then. Nothing is allocated where there are none.
        let mut given: Vec<(usize, Problem)> = Vec::new();
        for (index, (item, problem)) in items.iter().zip(self.problems()).enumerate() {
            let checked = given_of(item, problem).and_then(|given| {
                let problem = given.as_ref().unwrap_or(problem);
                problem.check_layers(item.layers, item.out_len)?;
                problem.check_rows()?;
                Ok(given)
            });
            let own = checked.map_err(|error| of_member(index, error))?;
            given.extend(own.map(|problem| (index, problem)));
        }
        let items: &[GroupItem<'_>] = items;
        self.engine.run(Prepared::items, |task| {
            let (member, item) = (task.index, &items[task.index]);
            match given.binary_search_by_key(&task.index, |&(member, _)| member) {
                Err(_) => task.rollout(item.layers, item.out),
                Ok(at) => task.rollout_of(&given[at].1, item.layers, item.out),
            }
            .map_err(|error| of_member(member, error))
        })
    }
}

/// The problem that a member has with what it is given for one run; none where it is given nothing.
fn given_of(item: &GroupItem<'_>, problem: &Problem) -> Result<Option<Problem>> {
    if item.inputs.windows.is_none() && item.inputs.rows.is_none() {
        return Ok(None);
    }
    let mut given = problem.clone();
    item.inputs.tell(&mut given)?;
    Ok(Some(given))
}

fn of_member(member: usize, source: Error) -> Error {
    Error::Member {
        member,
        source: Box::new(source),
    }
}
