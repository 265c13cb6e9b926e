//! Runs prepared problems on one team. Items are handed out to whichever member is free; the few that do not divide
//! evenly among the members are computed by all of them together.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::cpu::map::Job;
use crate::cpu::prepared::{Form, Prepared, Sizes, Workspace};
use crate::cpu::product::{self, ProductScratch, ProductShared};
use crate::cpu::rows::{self, RowsScratch, RowsShared};
use crate::cpu::team::{Member, Shared, Team};
use crate::error::Result;
use crate::input::HostLayer;

/// A team, its memory, and the problems it is ready to run.
pub(crate) struct Engine {
    team: Team,
    problems: Vec<Prepared>,
    members: Vec<Mutex<Workspace>>,
    shared: Workspace,
    /// Claims of the problems up to and including each; filled at the start of a run.
    claims: Vec<usize>,
}

/// What one problem of a run reads and writes. The lengths have been checked.
#[derive(Clone, Copy)]
pub(crate) struct Data<'a> {
    pub layers: &'a [HostLayer<'a>],
    pub out: Shared<'a>,
}

impl Engine {
    pub fn new(team: Team, problems: Vec<Prepared>) -> Result<Self> {
        let members = (0..team.members())
            .map(|_| Workspace::for_member(&problems).map(Mutex::new))
            .collect::<Result<_>>()?;
        Ok(Engine {
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

    /// Computes `items(p)` of every problem `p` from and to `data(p)`.
    pub fn run<'a>(
        &mut self,
        items: impl Fn(usize) -> Range<usize> + Sync,
        data: impl Fn(usize) -> Data<'a> + Sync,
    ) {
        let threads = self.threads();
        let alone = |p: usize| {
            let items = items(p);
            items.start..items.end - self.problems[p].team_items(items.len(), threads)
        };
        let mut claims = 0;
        for (p, end) in self.claims.iter_mut().enumerate() {
            claims += alone(p).len().div_ceil(self.problems[p].items_per_claim);
            *end = claims;
        }
        let next = AtomicUsize::new(0);
        let shared = Shared::new(&mut self.shared.floats);
        let (problems, members, ends) = (&self.problems, &self.members, &self.claims);
        self.team.run(|member| {
            let mut workspace = lock(&members[member.index]);
            loop {
                let claim = next.fetch_add(1, Ordering::Relaxed);
                let p = ends.partition_point(|&end| end <= claim);
                let Some(prepared) = problems.get(p) else {
                    break;
                };
                let before = p.checked_sub(1).map_or(0, |p| ends[p]);
                let items = alone(p);
                let first = items.start + (claim - before) * prepared.items_per_claim;
                for item in first..(first + prepared.items_per_claim).min(items.end) {
                    compute(prepared, Member::ALONE, item, &mut workspace, None, data(p));
                }
            }
            for (p, prepared) in problems.iter().enumerate() {
                for item in alone(p).end..items(p).end {
                    let shared = Some(shared);
                    compute(prepared, member, item, &mut workspace, shared, data(p));
                }
            }
        });
    }
}

/// A workspace holds nothing between items, so one that a panic left behind is as good as any.
fn lock(workspace: &Mutex<Workspace>) -> std::sync::MutexGuard<'_, Workspace> {
    workspace.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Computes one item: alone where `shared` is `None`, else as one of the team.
fn compute(
    prepared: &Prepared,
    member: Member<'_>,
    item: usize,
    workspace: &mut Workspace,
    shared: Option<Shared<'_>>,
    data: Data<'_>,
) {
    let Prepared {
        problem,
        choice,
        sizes,
        ..
    } = prepared;
    let Sizes {
        relevance,
        fused,
        weights,
        map,
        keys,
        spare,
        parts,
    } = *sizes;
    let Workspace {
        floats,
        keys: memory,
    } = workspace;
    let keys = &mut memory[..keys];
    let job = Job {
        simd: choice.simd,
        problem,
        layers: data.layers,
        out: data.out,
    };
    let mut rest = &mut floats[..];
    let mut take = |len: usize| {
        let (taken, left) = std::mem::take(&mut rest).split_at_mut(len);
        rest = left;
        taken
    };
    match choice.form {
        Form::Rows => {
            let mut scratch = RowsScratch {
                relevance: take(relevance),
                part: take(relevance),
                next: take(relevance),
                fused: take(fused),
                weights: take(weights),
                map: take(map),
                keys,
            };
            match shared {
                None => {
                    let len = problem.start_rows() * problem.shape().tokens;
                    // SAFETY: this item was handed to this member alone.
                    let out = unsafe { data.out.get_mut(item * len..(item + 1) * len) };
                    rows::item(job, item, &mut scratch, out);
                }
                Some(shared) => {
                    let shared = RowsShared {
                        parts: shared.slice(0..parts),
                        map: shared.slice(parts..parts + map),
                    };
                    rows::item_by_team(job, member, item, &mut scratch, shared);
                }
            }
        }
        Form::Product => {
            let mut scratch = ProductScratch {
                ahat: take(fused),
                keys,
            };
            let shared = match shared {
                None => ProductShared {
                    spare: Shared::new(take(spare)),
                    map: Shared::new(take(map)),
                },
                Some(shared) => ProductShared {
                    spare: shared.slice(0..spare),
                    map: shared.slice(spare..spare + map),
                },
            };
            product::item(job, member, item, &mut scratch, shared);
        }
    }
}
