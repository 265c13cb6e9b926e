//! Many problems at once: the features of a patient record, say, each with shapes of its own.

use std::sync::Arc;

use crate::cpu::Options;
use crate::cpu::engine::Engine;
use crate::cpu::prepared::{Choice, Prepared};
use crate::cpu::team::{Shared, Team};
use crate::error::{Error, Result};
use crate::input::HostLayer;
use crate::problem::Problem;

/// Problems that may differ in everything, made ready to run together on one team of threads.
///
/// Items of all problems are handed out to whichever thread is free, so small problems cost no start of their own.
pub struct Group {
    engine: Engine,
}

/// What one problem of a [`Group`] reads and writes.
pub struct GroupMember<'a> {
    layers: &'a [HostLayer<'a>],
    out: Shared<'a>,
    out_len: usize,
}

impl<'a> GroupMember<'a> {
    /// `layers` holds every layer of the problem, first to last; `out` is shaped as
    /// [`Problem::output_shape`].
    pub fn new(layers: &'a [HostLayer<'a>], out: &'a mut [f32]) -> Self {
        GroupMember {
            layers,
            out_len: out.len(),
            out: Shared::new(out),
        }
    }
}

impl Group {
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
                Prepared::new(problem, Choice::of(problem), team.members())
                    .map_err(|error| of_member(member, error))
            })
            .collect::<Result<_>>()?;
        Ok(Group {
            engine: Engine::new(team, prepared)?,
        })
    }

    /// The problems, in the order given.
    pub fn problems(&self) -> impl ExactSizeIterator<Item = &Problem> {
        self.engine.problems().iter().map(|p| &p.problem)
    }

    /// Bytes of workspace, all threads together.
    pub fn workspace_bytes(&self) -> usize {
        self.engine.workspace_bytes()
    }

    /// Computes every problem's rollout, from and to the member at the same place. Nothing is written unless
    /// everything fits.
    ///
    /// # Errors
    /// [`Error::Count`] where there is not one member per problem; [`Error::Member`] around what
    /// [`Problem::check_layers`] finds.
    pub fn run(&mut self, members: &mut [GroupMember<'_>]) -> Result<()> {
        let expected = self.engine.problems().len();
        if members.len() != expected {
            return Err(Error::Count {
                what: "members, one per problem of the group",
                expected,
                got: members.len(),
            });
        }
        for (index, (member, problem)) in members.iter().zip(self.problems()).enumerate() {
            problem
                .check_layers(member.layers, member.out_len)
                .map_err(|error| of_member(index, error))?;
        }
        let members: &[GroupMember<'_>] = members;
        self.engine.run(Prepared::items, |turn| {
            let member = &members[turn.index];
            turn.rollout(member.layers, member.out);
        });
        Ok(())
    }
}

fn of_member(member: usize, source: Error) -> Error {
    Error::Member {
        member,
        source: Box::new(source),
    }
}
