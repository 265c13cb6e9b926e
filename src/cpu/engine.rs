//! Runs prepared problems on one team. Items are handed out to whichever member is free; the few that do not divide
//! evenly among the members are computed by all of them together.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::cpu::choice::Choice;
use crate::cpu::gemm;
use crate::cpu::memory::Floats;
use crate::cpu::scores;
use crate::cpu::team::{Member, Shared, Team};
use crate::error::Result;
use crate::problem::Problem;

/// Maps of a layer that a member takes on at a time, where there are others: enough that it mostly reads on where it was.
const CLAIM_LAYER_BYTES: usize = 4 << 20;

/// The memory that computing an item of a problem takes, measured out for the largest of them.
pub(crate) trait Scratch: Send + Sync {
    /// Floats of each member's own.
    fn member_floats(&self) -> usize;

    /// Floats that follow them where a member computes items alone.
    fn alone_floats(&self) -> usize;

    /// Floats that members share who compute an item together.
    fn team_floats(&self) -> usize;

    /// Whether matrices are multiplied.
    fn multiplies(&self) -> bool;
}

/// A problem with everything decided.
pub(crate) struct Prepared<S> {
    pub problem: Problem,
    pub choice: Choice,
    pub scratch: S,
    /// Bytes of maps read, for all items.
    pub map_bytes: usize,
    /// Floats of each member's own that the entries of maps are computed in, where they are.
    source_floats: usize,
}

impl<S> Prepared<S> {
    pub fn new(problem: &Problem, choice: Choice, scratch: S) -> Self {
        Prepared {
            problem: problem.clone(),
            choice,
            scratch,
            map_bytes: problem.map_bytes(),
            source_floats: scores::floats(problem),
        }
    }

    /// All items.
    pub fn items(&self) -> Range<usize> {
        0..self.problem.shape().batch
    }

    /// Bytes of maps read for one item, on average.
    fn item_bytes(&self) -> usize {
        self.map_bytes / self.problem.shape().batch.max(1)
    }

    /// Items that one of `members` takes on at a time: all, where there is no other.
    fn items_per_claim(&self, members: usize) -> usize {
        let batch = self.problem.shape().batch.max(1);
        if members == 1 {
            return batch;
        }
        let claim_bytes = CLAIM_LAYER_BYTES * self.problem.layers().len();
        (claim_bytes / self.item_bytes().max(1)).clamp(1, batch.div_ceil(4 * members))
    }

    /// Of `items`, those that a member computes alone; the rest is computed by all of `members` together.
    fn alone(&self, items: Range<usize>, members: usize) -> Range<usize> {
        let together = match self.choice.share_rest {
            true => items.len() % members,
            false => 0,
        };
        items.start..items.end - together
    }
}

/// A team, its memory, and the problems it is ready to run.
pub(crate) struct Engine<S> {
    team: Arc<Team>,
    problems: Vec<Prepared<S>>,
    members: Vec<Mutex<Floats>>,
    shared: Floats,
    /// The problems, those with large items first.
    order: Vec<usize>,
    /// Whether any of them multiplies matrices.
    multiplies: bool,
    /// Claims of the problems up to and including each, in that order; filled at the start of a run.
    claims: Vec<usize>,
}

impl<S: Scratch> Engine<S> {
    pub fn new(team: Arc<Team>, problems: Vec<Prepared<S>>) -> Result<Self> {
        let own = |p: &Prepared<S>| {
            let alone = match p.alone(p.items(), team.members()).is_empty() {
                true => 0,
                false => p.scratch.alone_floats(),
            };
            let own = p.source_floats.saturating_add(p.scratch.member_floats());
            own.saturating_add(alone)
        };
        let own = problems.iter().map(own).max().unwrap_or(0);
        let members = (0..team.members())
            .map(|_| Floats::zeroed(own).map(Mutex::new))
            .collect::<Result<_>>()?;
        let shares = |p: &&Prepared<S>| p.choice.share_rest && team.members() > 1;
        let shared = problems.iter().filter(shares);
        let shared = shared.map(|p| p.scratch.team_floats()).max().unwrap_or(0);
        let mut order: Vec<usize> = (0..problems.len()).collect();
        order.sort_by_key(|&p| std::cmp::Reverse(problems[p].item_bytes()));
        let multiplies = |p: &Prepared<S>| p.scratch.multiplies() || p.source_floats > 0;
        let multiplies = problems.iter().any(multiplies);
        if multiplies {
            prepare_products(&team)?;
        }
        Ok(Engine {
            order,
            shared: Floats::zeroed(shared)?,
            claims: vec![0; problems.len()],
            multiplies,
            members,
            problems,
            team,
        })
    }

    /// The problems, in the order they were given.
    pub fn problems(&self) -> &[Prepared<S>] {
        &self.problems
    }

    /// The `index`-th problem, what runs are given of which may be changed.
    pub fn problem_mut(&mut self, index: usize) -> &mut Problem {
        &mut self.problems[index].problem
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

    /// Calls `compute` for the items `items(problem)` of every problem: once for each, some at a time, or once on every member
    /// where the team shares the item. Problems with large items come first, so that no member ends on one alone. All are computed,
    /// also where one fails.
    ///
    /// # Errors
    /// [`Error::HostMemory`](crate::Error::HostMemory), before anything is computed, where this thread runs its first
    /// products and the system has not the memory for them; else that of the first item, of the first problem, that has one.
    pub fn run(
        &mut self,
        items: impl Fn(&Prepared<S>) -> Range<usize> + Sync,
        compute: impl Fn(Task<'_, S>) -> Result<()> + Sync,
    ) -> Result<()> {
        if self.multiplies {
            // The caller need not be the thread that made the team; the others are.
            gemm::prepare_thread()?;
        }
        let threads = self.threads();
        let alone = |prepared: &Prepared<S>| prepared.alone(items(prepared), threads);
        let mut claims = 0;
        for (&p, end) in self.order.iter().zip(&mut self.claims) {
            let prepared = &self.problems[p];
            claims += alone(prepared)
                .len()
                .div_ceil(prepared.items_per_claim(threads));
            *end = claims;
        }
        let next = AtomicUsize::new(0);
        let shared = Shared::new(&mut self.shared);
        let failed = Mutex::new(None);
        let compute = |task: Task<'_, S>| {
            let at = (task.index, task.items.start);
            if let Err(error) = compute(task) {
                let mut first = failed.lock().unwrap_or_else(PoisonError::into_inner);
                if first.as_ref().is_none_or(|(before, _)| at < *before) {
                    *first = Some((at, error));
                }
            }
        };
        let (problems, members) = (&self.problems, &self.members);
        let (order, ends) = (&self.order, &self.claims);
        self.team.run(|member| {
            let mut own = lock(&members[member.index]);
            loop {
                let claim = next.fetch_add(1, Ordering::Relaxed);
                let at = ends.partition_point(|&end| end <= claim);
                let Some(&index) = order.get(at) else {
                    break;
                };
                let prepared = &problems[index];
                let before = at.checked_sub(1).map_or(0, |at| ends[at]);
                let items = alone(prepared);
                let step = prepared.items_per_claim(threads);
                let first = items.start + (claim - before) * step;
                compute(Task {
                    index,
                    items: first..(first + step).min(items.end),
                    prepared,
                    member: Member::ALONE,
                    memory: Memory::new(&mut own, prepared, None),
                });
            }
            for (index, prepared) in problems.iter().enumerate() {
                for item in alone(prepared).end..items(prepared).end {
                    compute(Task {
                        index,
                        items: item..item + 1,
                        prepared,
                        member,
                        memory: Memory::new(&mut own, prepared, Some(shared)),
                    });
                }
            }
        });
        let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        failed.map_or(Ok(()), |(_, error)| Err(error))
    }
}

/// Makes all members ready to multiply.
fn prepare_products(team: &Team) -> Result<()> {
    let failed = Mutex::new(None);
    team.run(|_| {
        if let Err(error) = gemm::prepare_thread() {
            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.map_or(Ok(()), Err)
}

/// Items to compute, and with what.
pub(crate) struct Task<'a, S> {
    /// The problem, counted in the order they were given.
    pub index: usize,
    /// Some that one member computes, or one that all do.
    pub items: Range<usize>,
    pub prepared: &'a Prepared<S>,
    /// Who computes: one member alone, or one of the team.
    pub member: Member<'a>,
    pub memory: Memory<'a>,
}

/// What a member computes an item in.
pub(crate) struct Memory<'a> {
    /// Its own memory.
    pub own: &'a mut [f32],
    /// Its own too, to compute entries of maps in.
    pub source: Shared<'a>,
    /// The team's, where the team computes the item.
    pub team: Option<Shared<'a>>,
}

impl<S> Task<'_, S> {
    /// Calls `compute` for each of the items by itself. All are computed, also where one fails.
    ///
    /// # Errors
    /// That of the first item that has one.
    pub fn each(self, mut compute: impl FnMut(usize, Memory<'_>) -> Result<()>) -> Result<()> {
        let Memory { own, source, team } = self.memory;
        let mut computed = Ok(());
        for item in self.items {
            let own = &mut *own;
            computed = computed.and(compute(item, Memory { own, source, team }));
        }
        computed
    }
}

impl<'a> Memory<'a> {
    fn new<S>(own: &'a mut [f32], prepared: &Prepared<S>, team: Option<Shared<'a>>) -> Self {
        let (source, own) = own.split_at_mut(prepared.source_floats);
        let source = Shared::new(source);
        Memory { own, source, team }
    }
}

/// Memory holds nothing between items, so one that a panic left behind is as good as any.
fn lock(memory: &Mutex<Floats>) -> MutexGuard<'_, Floats> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}
