//! Runs prepared problems on one team. Items are handed out to whichever member is free; the few that do not divide
//! evenly among the members are computed by all of them together.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::cpu::map::Job;
use crate::cpu::memory::Workspace;
use crate::cpu::panels::Rollouts;
use crate::cpu::prepared::{Form, Prepared};
use crate::cpu::product::{self, ProductShared};
use crate::cpu::rows::{self, RowsScratch, RowsShared};
use crate::cpu::team::{Member, Shared, Team};
use crate::error::Result;
use crate::input::HostLayer;

/// A team, its memory, and the problems it is ready to run.
pub(crate) struct Engine {
    team: Arc<Team>,
    problems: Vec<Prepared>,
    members: Vec<Mutex<Workspace>>,
    shared: Workspace,
    /// The problems, those with large items first.
    order: Vec<usize>,
    /// Claims of the problems up to and including each, in that order; filled at the start of a run.
    claims: Vec<usize>,
}

impl Engine {
    pub fn new(team: Arc<Team>, problems: Vec<Prepared>) -> Result<Self> {
        let members = (0..team.members())
            .map(|_| Workspace::for_member(&problems).map(Mutex::new))
            .collect::<Result<_>>()?;
        let mut order: Vec<usize> = (0..problems.len()).collect();
        order.sort_by_key(|&p| std::cmp::Reverse(problems[p].item_bytes()));
        Ok(Engine {
            order,
            shared: Workspace::for_team(&problems, team.members())?,
            claims: vec![0; problems.len()],
            members,
            problems,
            team,
        })
    }

    /// The problems, in the order they were given.
    pub fn problems(&self) -> &[Prepared] {
        &self.problems
    }

    /// Threads, the calling one included.
    pub fn threads(&self) -> usize {
        self.team.members()
    }

    /// Bytes of all members' and the team's memory.
    pub fn workspace_bytes(&self) -> usize {
        let members = self.members.iter().map(|m| lock(m).bytes());
        members.sum::<usize>() + self.shared.bytes()
    }

    /// Calls `compute` for each of the items `items(problem)` of every problem: once, or once on every member where the
    /// team shares the item. Problems with large items come first, so that no member ends on one alone.
    pub fn run(
        &mut self,
        items: impl Fn(&Prepared) -> Range<usize> + Sync,
        compute: impl Fn(Turn<'_>) + Sync,
    ) {
        let threads = self.threads();
        let alone = |p: usize| {
            let items = items(&self.problems[p]);
            items.start..items.end - self.problems[p].team_items(items.len(), threads)
        };
        let mut claims = 0;
        for (&p, end) in self.order.iter().zip(&mut self.claims) {
            claims += alone(p).len().div_ceil(self.problems[p].items_per_claim);
            *end = claims;
        }
        let next = AtomicUsize::new(0);
        let shared = Shared::new(&mut self.shared.floats);
        let (problems, members) = (&self.problems, &self.members);
        let (order, ends) = (&self.order, &self.claims);
        self.team.run(|member| {
            let mut workspace = lock(&members[member.index]);
            loop {
                let claim = next.fetch_add(1, Ordering::Relaxed);
                let at = ends.partition_point(|&end| end <= claim);
                let Some(&index) = order.get(at) else {
                    break;
                };
                let before = at.checked_sub(1).map_or(0, |at| ends[at]);
                let items = alone(index);
                let step = problems[index].items_per_claim;
                let first = items.start + (claim - before) * step;
                for item in first..(first + step).min(items.end) {
                    compute(Turn {
                        index,
                        item,
                        prepared: &problems[index],
                        member: Member::ALONE,
                        workspace: &mut workspace,
                        shared: None,
                    });
                }
            }
            for (index, prepared) in problems.iter().enumerate() {
                for item in alone(index).end..items(prepared).end {
                    compute(Turn {
                        index,
                        item,
                        prepared,
                        member,
                        workspace: &mut workspace,
                        shared: Some(shared),
                    });
                }
            }
        });
    }
}

/// One item to compute, and with what.
pub(crate) struct Turn<'a> {
    /// The problem, counted in the order they were given.
    pub index: usize,
    pub item: usize,
    prepared: &'a Prepared,
    /// Who computes: one member alone, or one of the team.
    pub member: Member<'a>,
    workspace: &'a mut Workspace,
    /// The team's memory, where the team computes the item.
    shared: Option<Shared<'a>>,
}

/// Cuts a slice into parts from the front.
struct Cut<'a>(&'a mut [f32]);

impl<'a> Cut<'a> {
    fn take(&mut self, len: usize) -> &'a mut [f32] {
        let (taken, rest) = std::mem::take(&mut self.0).split_at_mut(len);
        self.0 = rest;
        taken
    }
}

impl<'a> Turn<'a> {
    /// The problem, everything decided.
    pub fn prepared(&self) -> &'a Prepared {
        self.prepared
    }

    /// Computes the item's output from `layers` into `out`, the output of the whole problem. Lengths have been checked.
    pub fn rollout(self, layers: &[HostLayer<'_>], out: Shared<'_>) {
        let job = Job {
            simd: self.prepared.choice.simd,
            problem: &self.prepared.problem,
            layers,
            out,
        };
        let (member, item) = (self.member, self.item);
        match self.prepared.choice.form {
            Form::Rows => self.rows(job),
            Form::Product => {
                let (candidates, shared) = self.product_memory();
                product::item(job, member, item, candidates, shared);
            }
        }
    }

    fn rows(self, job: Job<'_>) {
        let sizes = &self.prepared.sizes;
        let mut memory = Cut(&mut self.workspace.floats);
        let mut scratch = RowsScratch {
            relevance: memory.take(sizes.relevance),
            part: memory.take(sizes.relevance),
            next: memory.take(sizes.relevance),
            fused: memory.take(sizes.fused),
            weights: memory.take(sizes.weights),
            map: memory.take(sizes.map),
            candidates: &mut self.workspace.candidates[..sizes.candidates],
        };
        match self.shared {
            None => {
                let len = job.problem.start_rows() * job.problem.shape().tokens;
                // SAFETY: this item was handed to this member alone.
                let out = unsafe { job.out.get_mut(self.item * len..(self.item + 1) * len) };
                rows::item(job, self.item, &mut scratch, out);
            }
            Some(shared) => {
                let shared = RowsShared {
                    parts: shared.slice(0..sizes.parts),
                    map: shared.slice(sizes.parts..sizes.parts + sizes.map),
                };
                rows::item_by_team(job, self.member, self.item, &mut scratch, shared);
            }
        }
    }

    /// Memory for product form: the member's own candidates to select from, and what those who compute the item share.
    pub fn product_memory(self) -> (&'a mut [f32], ProductShared<'a>) {
        let sizes = &self.prepared.sizes;
        let shared = self
            .shared
            .unwrap_or_else(|| Shared::new(&mut self.workspace.floats));
        // Rollouts fill whole cache lines, so that `Ahat` begins on one as they do.
        let (spare, ahat) = (0..sizes.spare, sizes.spare..sizes.spare + sizes.ahat);
        let shared = ProductShared {
            map: shared.slice(ahat.end..ahat.end + sizes.map),
            ahat: shared.slice(ahat),
            rollouts: Rollouts::new(shared.slice(spare), product::spares(&self.prepared.problem)),
        };
        (&mut self.workspace.candidates[..sizes.candidates], shared)
    }
}

/// A workspace holds nothing between items, so one that a panic left behind is as good as any.
fn lock(workspace: &Mutex<Workspace>) -> MutexGuard<'_, Workspace> {
    workspace.lock().unwrap_or_else(PoisonError::into_inner)
}
