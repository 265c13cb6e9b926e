//! The two orders of evaluation, each with the scratch that it computes in.

pub(crate) mod product;
pub(crate) mod rows;

use crate::cpu::choice::{Choice, Form};
use crate::cpu::engine::{Prepared, Scratch, Task};
use crate::cpu::form::product::ProductScratch;
use crate::cpu::form::rows::RowsScratch;
use crate::cpu::map::Run;
use crate::cpu::team::Shared;
use crate::error::Result;
use crate::layer::HostLayer;
use crate::problem::Problem;

/// The scratch of one form or the other.
pub(crate) enum FormScratch {
    Rows(RowsScratch),
    Product(ProductScratch),
}

/// Makes `problem` ready to be computed as `choice` says, where it can be computed so.
///
/// # Errors
/// [`Error::SizeOverflow`](crate::Error::SizeOverflow).
pub(crate) fn prepare(problem: &Problem, choice: Choice) -> Result<Prepared<FormScratch>> {
    let form = Form::possible(problem, choice.form);
    let scratch = match form {
        Form::Rows => FormScratch::Rows(RowsScratch::size(problem)?),
        Form::Product => FormScratch::Product(ProductScratch::size(problem)?),
    };
    Ok(Prepared::new(problem, Choice { form, ..choice }, scratch))
}

impl Scratch for FormScratch {
    fn member_floats(&self) -> usize {
        match self {
            FormScratch::Rows(scratch) => scratch.member_floats(),
            FormScratch::Product(scratch) => scratch.member_floats(),
        }
    }

    fn alone_floats(&self) -> usize {
        match self {
            FormScratch::Rows(scratch) => scratch.alone_floats(),
            FormScratch::Product(scratch) => scratch.alone_floats(),
        }
    }

    fn team_floats(&self) -> usize {
        match self {
            FormScratch::Rows(scratch) => scratch.team_floats(),
            FormScratch::Product(scratch) => scratch.team_floats(),
        }
    }

    fn multiplies(&self) -> bool {
        match self {
            FormScratch::Rows(scratch) => scratch.multiplies(),
            FormScratch::Product(scratch) => scratch.multiplies(),
        }
    }
}

impl Task<'_, FormScratch> {
    /// Computes the items' output from `layers` into `out`, the output of the whole problem. Lengths have been checked.
    ///
    /// # Errors
    /// [`Error::Lse`](crate::Error::Lse), [`Error::Mass`](crate::Error::Mass).
    pub fn rollout(self, layers: &[HostLayer<'_>], out: Shared<'_>) -> Result<()> {
        let problem = &self.prepared.problem;
        self.rollout_of(problem, layers, out)
    }

    /// As [`rollout`](Task::rollout), of items of `problem`, which is made of items of the task's.
    ///
    /// # Errors
    /// As [`rollout`](Task::rollout).
    pub fn rollout_of(
        self,
        problem: &Problem,
        layers: &[HostLayer<'_>],
        out: Shared<'_>,
    ) -> Result<()> {
        let run = Run {
            problem,
            ..Run::new(self.prepared, layers, out, self.memory.source)
        };
        match &self.prepared.scratch {
            FormScratch::Rows(scratch) => rows::rollout(run, scratch, self),
            FormScratch::Product(scratch) => {
                let member = self.member;
                self.each(|item, memory| product::item(run, member, item, scratch.carve(memory)))
            }
        }
    }
}
