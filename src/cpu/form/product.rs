//! Product form: `R <- Ahat_l R`, from the first layer to the last. The first rollout is `Ahat_1` itself.
//!
//! Members that share an item make rows of `Ahat` each, and panels of `R`.

use std::ops::Range;

use crate::config::Output;
use crate::cpu::discard;
use crate::cpu::engine::{Memory, Scratch};
use crate::cpu::form::rows;
use crate::cpu::item::ItemMaps;
use crate::cpu::map::{FusedMap, Run, divide_by_sum, whole_by_team};
use crate::cpu::memory::Parts;
use crate::cpu::panels::{self, Panels, Rollout, Rollouts, Slab};
use crate::cpu::simd::Simd;
use crate::cpu::team::{Member, Shared};
use crate::error::Result;
use crate::layout::product as checked;
use crate::problem::Problem;

/// What product form computes in: lengths, for the largest item.
pub(crate) struct ProductScratch {
    /// Each member's own: candidates to select from, and a few rows of `Ahat`. Where it computes an item alone, what is
    /// shared follows.
    own: Parts<2>,
    /// What the members share who compute an item together: rollouts that are not outputs, `Ahat` of one layer `[tokens,
    /// tokens]` where it is multiplied, and the whole fused map `[tokens, tokens]` where something is discarded.
    shared: Parts<3>,
    /// How many rollouts there are.
    rollouts: usize,
}

impl ProductScratch {
    /// What the largest item of `problem` takes.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`](crate::Error::SizeOverflow).
    pub fn size(problem: &Problem) -> Result<Self> {
        match writes_ahat(problem) {
            true => ProductScratch::of_written_layer(problem),
            false => ProductScratch::new(problem, rollouts(problem), true),
        }
    }

    /// What one layer takes where its rollouts are kept elsewhere.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`](crate::Error::SizeOverflow).
    pub fn of_layer(problem: &Problem) -> Result<Self> {
        ProductScratch::new(problem, 0, true)
    }

    /// What one layer takes whose `Ahat` is written as it is made.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`](crate::Error::SizeOverflow).
    pub fn of_written_layer(problem: &Problem) -> Result<Self> {
        ProductScratch::new(problem, 0, false)
    }

    fn new(problem: &Problem, rollouts: usize, keeps_ahat: bool) -> Result<Self> {
        let tokens = problem.longest_window();
        let square = checked("workspace", &[tokens, tokens])?;
        let few = rows::most_chunk_elements(problem, 1, tokens)?;
        let (map, candidates) = match problem.config().discard {
            Some(_) => (square, discard::scratch(tokens)),
            None => (0, 0),
        };
        let kept = checked("workspace", &[rollouts, panels::elements(tokens)?])?;
        let ahat = if keeps_ahat { square } else { 0 };
        Ok(ProductScratch {
            own: Parts([candidates, few]),
            shared: Parts([kept, ahat, map]),
            rollouts,
        })
    }

    /// The member's own, and what those share who compute the item.
    pub fn carve<'a>(&self, memory: Memory<'a>) -> (ProductOwn<'a>, ProductShared<'a>) {
        let (own, alone) = memory.own.split_at_mut(self.own.floats());
        let [candidates, few_rows] = self.own.carve(own);
        let own = ProductOwn {
            candidates,
            few_rows,
        };
        let team = memory.team.unwrap_or_else(|| Shared::new(alone));
        let [kept, ahat, map] = team.carve(self.shared);
        let shared = ProductShared {
            ahat,
            rollouts: Rollouts::new(kept, self.rollouts),
            map,
        };
        (own, shared)
    }
}

impl Scratch for ProductScratch {
    fn member_floats(&self) -> usize {
        self.own.floats()
    }

    fn alone_floats(&self) -> usize {
        self.shared.floats()
    }

    fn team_floats(&self) -> usize {
        self.shared.floats()
    }

    fn multiplies(&self) -> bool {
        // Without an `Ahat` that is kept there is nothing to multiply by.
        self.shared.0[1] > 0
    }
}

/// What a member writes alone. All lengths are those of the largest item.
pub(crate) struct ProductOwn<'a> {
    /// Room to select from, where something is discarded.
    pub candidates: &'a mut [f32],
    /// Rows of `Ahat` that are not kept: so few that they stay in the first-level cache until they are finished.
    pub few_rows: &'a mut [f32],
}

impl ProductOwn<'_> {
    /// The same for one step of several.
    fn reborrow(&mut self) -> ProductOwn<'_> {
        ProductOwn {
            candidates: self.candidates,
            few_rows: self.few_rows,
        }
    }
}

/// What the members that compute one item write together. All lengths are those of the largest item.
#[derive(Clone, Copy)]
pub(crate) struct ProductShared<'a> {
    /// `Ahat` of one layer, `[tokens, tokens]`; empty where none is multiplied.
    pub ahat: Shared<'a>,
    /// [`rollouts`] of them.
    pub rollouts: Rollouts<'a>,
    /// The fused map `[tokens, tokens]` where something is discarded, else empty.
    pub map: Shared<'a>,
}

/// Whether the output is `Ahat` of the one layer there is, which nothing multiplies.
fn writes_ahat(problem: &Problem) -> bool {
    problem.layers().len() == 1 && !matches!(problem.config().output, Output::Rows(_))
}

/// Rollouts that product form keeps: this one and the next.
pub(crate) fn rollouts(problem: &Problem) -> usize {
    problem.layers().len().min(2)
}

/// The output of `item`, by one member or by the whole team.
///
/// # Errors
/// [`Error::Mass`](crate::Error::Mass).
pub(crate) fn item(
    run: Run<'_>,
    member: Member<'_>,
    item: usize,
    (mut own, shared): (ProductOwn<'_>, ProductShared<'_>),
) -> Result<()> {
    let Run { problem, out, .. } = run;
    // Whatever it finds, the others wait at the barriers.
    let mut checked = run.probe(run.layers(), item, member);
    let tokens = problem.shape().tokens;
    let square = tokens * tokens;
    let window = problem.windows()[item];
    let len = window.len;
    let output = &problem.config().output;
    let steps = problem.layers().len();
    if member.index == 0 && len < tokens {
        let (slabs, slab_len) = match output {
            Output::Cumulative => (steps, square),
            Output::Matrix => (1, square),
            Output::Rows(_) => (1, problem.start_rows() * tokens),
        };
        for step in 0..slabs {
            let at = (step * problem.shape().batch + item) * slab_len;
            // SAFETY: the others write this item's output only after the barrier below.
            unsafe { out.get_mut(at..at + slab_len) }.fill(0.0);
        }
    }
    member.wait();
    if len == 0 {
        return checked;
    }
    if writes_ahat(problem) {
        let layer = LayerStep {
            simd: run.simd,
            member,
            maps: run.maps(problem.layers().start, item),
            own,
            shared,
        };
        return checked.and(layer.write(Slab::of_matrix(out, item, tokens, window)));
    }
    let rollout = |step: usize| shared.rollouts.rollout(step % 2);
    for (at, layer) in problem.layers().enumerate() {
        let slab = match output {
            Output::Cumulative => Some(at * problem.shape().batch + item),
            Output::Matrix if at + 1 == steps => Some(item),
            Output::Matrix | Output::Rows(_) => None,
        };
        let buffers = StepBuffers {
            before: (at > 0).then(|| rollout(at - 1)),
            to: rollout(at),
            slab: slab.map(|index| Slab::of_matrix(out, index, tokens, window)),
        };
        let layer = LayerStep {
            simd: run.simd,
            member,
            maps: run.maps(layer, item),
            own: own.reborrow(),
            shared,
        };
        // The others wait at the barriers of all layers.
        checked = checked.and(layer.step(buffers));
    }
    if let Output::Rows(_) = output {
        start_rows(problem, member, item, shared, rollout(steps - 1), out);
    }
    checked
}

/// The rollouts of a step, and the window of an output that its result is also written to.
pub(crate) struct StepBuffers<'a> {
    /// `None` in the first step.
    pub before: Option<Rollout<'a>>,
    pub to: Rollout<'a>,
    pub slab: Option<Slab<'a>>,
}

/// One layer of one item, and what it is computed with.
pub(crate) struct LayerStep<'a> {
    pub simd: Simd,
    pub member: Member<'a>,
    pub maps: ItemMaps<'a>,
    pub own: ProductOwn<'a>,
    pub shared: ProductShared<'a>,
}

impl LayerStep<'_> {
    /// `to = Ahat before`, or `to = Ahat` where nothing came before. Ends with a barrier, whatever it returns.
    ///
    /// # Errors
    /// [`Error::Mass`](crate::Error::Mass).
    pub fn step(self, StepBuffers { before, to, slab }: StepBuffers<'_>) -> Result<()> {
        let (member, shared, len) = (self.member, self.shared, self.maps.len());
        let panels = Panels::new(len, self.maps.problem.config().causal, member.members());
        let Some(before) = before else {
            let checked = self.make_rows(false, |first, rows| {
                // SAFETY: every member makes rows of its own.
                unsafe {
                    panels.copy_rows(first, rows, to);
                    if let Some(slab) = slab {
                        slab.copy_rows(first, rows, len);
                    }
                }
            });
            member.wait();
            return checked;
        };
        let checked = self.make_rows(true, |_, _| ());
        member.wait();
        // SAFETY: nobody writes `Ahat` before the barrier at the end of this step.
        let ahat = unsafe { shared.ahat.get(0..len * len) };
        for tile in panels.tiles(member) {
            // SAFETY: every member writes tiles of its own; `before` was written before the last barrier.
            unsafe {
                tile.multiply(ahat, before, to);
                if let Some(slab) = slab {
                    tile.write(to, slab);
                }
            }
        }
        member.wait();
        checked
    }

    /// Writes `Ahat` by itself into `slab`. Ends with a barrier, whatever it returns.
    ///
    /// # Errors
    /// [`Error::Mass`](crate::Error::Mass).
    pub fn write(self, slab: Slab<'_>) -> Result<()> {
        let (member, len) = (self.member, self.maps.len());
        // SAFETY: every member makes rows of its own.
        let checked = self.make_rows(false, |first, rows| unsafe {
            slab.copy_rows(first, rows, len);
        });
        member.wait();
        checked
    }

    /// Makes the rows of `Ahat` that fall to this member, a few at a time, and shows them to `take`, `[rows, len]` from
    /// row `first` on. With `keep` they stay in what is shared, `[len, len]`; else each few take the place of the last.
    ///
    /// # Errors
    /// [`Error::Mass`](crate::Error::Mass): the first, when all rows are made.
    fn make_rows(self, keep: bool, mut take: impl FnMut(usize, &[f32])) -> Result<()> {
        let LayerStep {
            simd,
            member,
            maps,
            own,
            shared,
        } = self;
        let len = maps.len();
        // SAFETY: all have passed the last step's barrier, and there is one at the end of this step.
        let whole = unsafe { whole_by_team(simd, member, maps, shared.map) };
        let all = maps.rows(0..len);
        let fused_map = FusedMap::new(simd, maps, &all, whole, own.candidates);
        let weight = maps.problem.residual(maps.layer).attention;
        let part = member.part(len);
        let few = rows::chunk_rows(maps.problem, 1, len);
        let mut checked = Ok(());
        for first in part.clone().step_by(few) {
            let rows = first..part.end.min(first + few);
            let made = match keep {
                // SAFETY: every member writes rows of its own, and all have passed the last step's barrier.
                true => unsafe { shared.ahat.get_mut(first * len..rows.end * len) },
                false => &mut own.few_rows[..rows.len() * len],
            };
            fused_map.rows(rows.clone(), weight, made);
            add_residual(&fused_map, rows, made);
            take(first, made);
            checked = checked.and_then(|()| maps.check_rows(first, made));
        }
        checked
    }
}

/// Writes the start rows of `item` times its rollout into the item's window of `out`, `[batch, start rows, tokens]`. Ends
/// with a barrier.
pub(crate) fn start_rows(
    problem: &Problem,
    member: Member<'_>,
    item: usize,
    shared: ProductShared<'_>,
    rollout: Rollout<'_>,
    out: Shared<'_>,
) {
    let window = problem.windows()[item];
    let (tokens, start_rows) = (problem.shape().tokens, problem.start_rows());
    let slab = Slab {
        buffer: out,
        first: item * start_rows * tokens + window.start,
        stride: tokens,
    };
    let panels = Panels::new(window.len, problem.config().causal, member.members());
    let own = member.part(panels.count());
    // `Ahat` is not needed any more. It has a row for every panel; a member takes that of its first.
    let weights = own.start * window.len..(own.start + 1) * window.len;
    for (row, index) in (0..start_rows).flat_map(|row| own.clone().map(move |i| (row, i))) {
        // SAFETY: the last step has ended with a barrier, and every member writes panels of its own.
        unsafe {
            let weights = shared.ahat.get_mut(weights.clone());
            problem.start_weights(item, row, weights);
            panels.panel(index).weigh(weights, rollout, slab, row);
        }
    }
    // The next item reuses what this one has shared.
    member.wait();
}

/// Writes the rollout of `item` into the item's window of `out`, `[batch, tokens, tokens]`. Ends with a barrier.
pub(crate) fn matrix(
    problem: &Problem,
    member: Member<'_>,
    item: usize,
    rollout: Rollout<'_>,
    out: Shared<'_>,
) {
    let window = problem.windows()[item];
    let slab = Slab::of_matrix(out, item, problem.shape().tokens, window);
    let panels = Panels::new(window.len, problem.config().causal, member.members());
    for tile in panels.tiles(member) {
        // SAFETY: the last step has ended with a barrier, and every member writes tiles of its own.
        unsafe { tile.write(rollout, slab) };
    }
    member.wait();
}

/// Makes rows of `Ahat` of fused rows times the attention weight: `+ identity I`, divided by their sums where rows are
/// normalised.
fn add_residual(map: &FusedMap<'_>, rows: Range<usize>, ahat: &mut [f32]) {
    let problem = map.maps.problem;
    let identity = problem.residual(map.maps.layer).identity;
    for (i, row) in rows.zip(ahat.chunks_exact_mut(map.maps.len())) {
        row[i] += identity;
        if problem.config().normalize_rows {
            divide_by_sum(map.simd, row);
        }
    }
}
