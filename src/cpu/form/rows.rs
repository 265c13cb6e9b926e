//! Row form: `r <- b r + a (r fused)`, from the last layer to the first, one pass over the maps.
//!
//! Rows are taken in blocks of a length that depends on the problem alone. Each block's part of the new relevance is
//! summed by itself and the parts are added in block order, so the result does not depend on who computed which block.
//!
//! One start row is multiplied with the entries of each head as these come out of the maps, where fused entries are sums of
//! them, else with fused ones as those of the last heads come. For several, and where more must be known first (the sums of
//! rows, or what is discarded or excluded), rows are fused a chunk at a time: of one start row several blocks.

mod abreast;
mod scratch;
mod stretch;

use std::ops::Range;

use crate::cpu::engine::Task;
use crate::cpu::fuse::{Accumulate, FusedEntries};
use crate::cpu::gemm::{self, MatrixMut, MatrixRef};
use crate::cpu::map::{FusedMap, Run, row_sums, whole_by_team};
use crate::cpu::team::Member;
use crate::error::Result;

use scratch::{Cut, GEMM_START_ROWS, RowsBuffers, RowsShared, blocks_at_once};
pub(crate) use scratch::{RowsScratch, chunk_rows, most_chunk_elements};
use stretch::Stretch;

/// The relevance rows `[start rows, tokens]` of the task's items, by one member or by the whole team. Layers after those of
/// `run` have left theirs in the output.
///
/// # Errors
/// [`Error::Lse`](crate::Error::Lse), [`Error::Mass`](crate::Error::Mass).
pub(crate) fn rollout<S>(run: Run<'_>, scratch: &RowsScratch, task: Task<'_, S>) -> Result<()> {
    let Task {
        items,
        member,
        memory,
        ..
    } = task;
    let mut own = scratch.carve(memory.own);
    let mut computed = Ok(());
    let mut cut = Cut::default();
    for stretch in Stretch::all(run, items) {
        for item in abreast::compute(run, &stretch, &mut own) {
            let len = run.problem.windows()[item].len;
            if len == 0 {
                if member.index == 0 {
                    finish(run, item, &[]);
                }
                continue;
            }
            if cut.len != len {
                cut = Cut::new(run.problem, len);
            }
            let probed = run.probe(stretch.layers.clone(), item, member);
            // Whatever it finds, the others wait at the barriers.
            let made = match memory.team {
                None => item_alone(run, &stretch, item, &cut, &mut own),
                Some(team) => {
                    let shared = scratch.carve_shared(team);
                    item_by_team(run, member, &stretch, item, &cut, &mut own, shared)
                }
            };
            computed = computed.and(probed).and(made);
        }
    }
    computed
}

fn item_alone(
    run: Run<'_>,
    stretch: &Stretch,
    item: usize,
    cut: &Cut,
    scratch: &mut RowsBuffers<'_>,
) -> Result<()> {
    let Run { simd, problem, .. } = run;
    let (rows, len) = (cut.start_rows, cut.len);
    let layers = stretch.layers.clone();
    start(run, layers.end, item, scratch);
    for layer in layers.rev() {
        let maps = run.maps(layer, item);
        let all = maps.read_by(0..len, stretch.next_maps(run, layer, item));
        let whole = problem.config().discard.map(|_| {
            maps.fused().unwrap_or_else(|| {
                let map = &mut scratch.map[..len * len];
                all.fuse(simd, 1.0, map);
                FusedEntries::new(map, len)
            })
        });
        let fused_map = FusedMap::new(simd, maps, &all, whole, scratch.candidates);
        maps.expect_masses(&scratch.relevance[..rows * len]);
        let next = &mut scratch.next[..rows * len];
        let mut step = Step {
            cut,
            relevance: &scratch.relevance[..rows * len],
            fused: &mut *scratch.fused,
            weights: &mut *scratch.weights,
        };
        if cut.blocks == 1 {
            fused_map.parts(0..1, &mut step, next);
        } else {
            next.fill(0.0);
            for blocks in at_once(0..cut.blocks, rows) {
                let parts = &mut scratch.parts[..blocks.len() * rows * len];
                if fused_map.parts(blocks, &mut step, parts) {
                    let parts = parts.chunks_exact(rows * len);
                    parts.for_each(|part| add(next, part));
                }
            }
        }
        std::mem::swap(&mut scratch.relevance, &mut scratch.next);
        maps.check_masses(&scratch.relevance[..rows * len])?;
    }
    finish(run, item, scratch.relevance);
    Ok(())
}

fn item_by_team(
    run: Run<'_>,
    member: Member<'_>,
    stretch: &Stretch,
    item: usize,
    cut: &Cut,
    scratch: &mut RowsBuffers<'_>,
    shared: RowsShared<'_>,
) -> Result<()> {
    let simd = run.simd;
    let RowsShared { parts, map } = shared;
    let (rows, len) = (cut.start_rows, cut.len);
    let mut checked = Ok(());
    let layers = stretch.layers.clone();
    start(run, layers.end, item, scratch);
    for (step, layer) in layers.rev().enumerate() {
        let maps = run.maps(layer, item);
        // SAFETY: all have passed the last layer's barrier, and there is one at the end of this layer.
        let whole = unsafe { whole_by_team(simd, member, maps, map) };
        let own = member.part(cut.blocks);
        let next_maps = stretch.next_maps(run, layer, item);
        let all = maps.read_by(cut.rows(own.clone()), next_maps);
        let fused_map = FusedMap::new(simd, maps, &all, whole, scratch.candidates);
        // Two sets of parts: members may be one layer apart.
        let set = step % 2 * cut.blocks * rows * len;
        for blocks in at_once(own, rows) {
            let at = |block: usize| set + block * rows * len;
            // SAFETY: these are this member's alone; they were read last two layers ago, a barrier lies between.
            let parts = unsafe { parts.get_mut(at(blocks.start)..at(blocks.end)) };
            let mut step = Step {
                cut,
                relevance: &scratch.relevance[..rows * len],
                fused: &mut *scratch.fused,
                weights: &mut *scratch.weights,
            };
            fused_map.parts(blocks, &mut step, parts);
        }
        member.wait();
        if member.index == 0 {
            maps.expect_masses(&scratch.relevance[..rows * len]);
        }
        let next = &mut scratch.relevance[..rows * len];
        next.fill(0.0);
        for index in 0..cut.blocks {
            let at = set + index * rows * len;
            // SAFETY: this set is not written again before the next layer's barrier.
            add(next, unsafe { parts.get(at..at + rows * len) });
        }
        if member.index == 0 && checked.is_ok() {
            checked = maps.check_masses(next);
        }
    }
    if member.index == 0 {
        finish(run, item, scratch.relevance);
    }
    // The next item's first parts overwrite this item's.
    member.wait();
    checked
}

/// Writes the item's start rows into the relevance, or what the layers from `end` on have made of them.
fn start(run: Run<'_>, end: usize, item: usize, scratch: &mut RowsBuffers<'_>) {
    let (problem, rows) = (run.problem, run.problem.start_rows());
    let (window, tokens) = (problem.windows()[item], problem.shape().tokens);
    for row in 0..rows {
        let to = &mut scratch.relevance[row * window.len..][..window.len];
        if end == problem.layers().end {
            problem.start_weights(item, row, to);
            continue;
        }
        let at = (item * rows + row) * tokens + window.start;
        // SAFETY: it is written when the item is done, after a barrier that all who compute it pass.
        to.copy_from_slice(unsafe { run.out.get(at..at + window.len) });
    }
}

/// Writes relevance rows of the item's window to their places in the output, and 0 around them. By one member alone.
fn finish(run: Run<'_>, item: usize, relevance: &[f32]) {
    let (problem, window) = (run.problem, run.problem.windows()[item]);
    let tokens = problem.shape().tokens;
    for row in 0..problem.start_rows() {
        let relevance = &relevance[row * window.len..][..window.len];
        let at = (item * problem.start_rows() + row) * tokens;
        // SAFETY: one member writes this item's output; the others read it behind a barrier.
        let out = unsafe { run.out.get_mut(at..at + tokens) };
        out[..window.start].fill(0.0);
        out[window.start..window.end()].copy_from_slice(relevance);
        out[window.end()..].fill(0.0);
    }
}

/// Blocks of `blocks` whose rows are taken at once, of so many start rows.
fn at_once(blocks: Range<usize>, start_rows: usize) -> impl Iterator<Item = Range<usize>> {
    let count = blocks_at_once(start_rows);
    let firsts = blocks.clone().step_by(count);
    firsts.map(move |first| first..blocks.end.min(first + count))
}

/// Whether every row carries weight for one of the start rows.
fn all_carry(relevance: &[f32], cut: &Cut, rows: Range<usize>) -> bool {
    // Without a branch, so that many are seen at once.
    let all = |weights: &[f32]| weights.iter().fold(true, |all, &w| all & (w != 0.0));
    (0..cut.start_rows).any(|m| all(&relevance[m * cut.len..][rows.clone()]))
}

fn add(sum: &mut [f32], part: &[f32]) {
    for (sum, part) in sum.iter_mut().zip(part) {
        *sum += part;
    }
}

/// What rows are weighed by, and memory to compute in.
struct Step<'a> {
    cut: &'a Cut,
    /// `[start rows, len]`.
    relevance: &'a [f32],
    /// Rows that are made, or folded.
    fused: &'a mut [f32],
    /// What rows are multiplied by, and sums of rows.
    weights: &'a mut [f32],
}

impl FusedMap<'_> {
    /// Writes what the rows of the blocks `blocks` add to the new relevance into `parts`, `[blocks, start rows, len]`.
    /// Returns whether a row carried weight; rows that carry none are not read.
    fn parts(&self, blocks: Range<usize>, step: &mut Step<'_>, parts: &mut [f32]) -> bool {
        let Cut {
            start_rows,
            len,
            block_rows,
            ..
        } = *step.cut;
        let rows = step.cut.rows(blocks);
        parts.fill(0.0);
        if self.takes_blocks() && all_carry(step.relevance, step.cut, rows.clone()) {
            self.run(rows, block_rows, step, parts);
            return true;
        }
        let mut any = false;
        let blocks = rows.clone().step_by(block_rows);
        for (first, part) in blocks.zip(parts.chunks_exact_mut(start_rows * len)) {
            let rows = first..rows.end.min(first + block_rows);
            any |= self.part(rows, step, part);
        }
        any
    }

    /// The same of the rows `rows` of one block, added to its `part`.
    fn part(&self, rows: Range<usize>, step: &mut Step<'_>, part: &mut [f32]) -> bool {
        let (cut, relevance) = (step.cut, step.relevance);
        let (start_rows, len) = (cut.start_rows, cut.len);
        if all_carry(relevance, cut, rows.clone()) {
            self.run(rows.clone(), rows.len(), step, part);
            return true;
        }
        let carries = |i: usize| (0..start_rows).any(|m| relevance[m * len + i] != 0.0);
        let mut any = false;
        let mut at = rows.start;
        while at < rows.end {
            if !carries(at) {
                at += 1;
                continue;
            }
            let run = at..(at + 1..rows.end)
                .find(|&i| !carries(i))
                .unwrap_or(rows.end);
            at = run.end;
            any = true;
            self.run(run.clone(), run.len(), step, part);
        }
        any
    }

    /// Adds what adjoining rows that carry weight contribute to `parts`: those of one block, or of several of `block_rows`
    /// rows where they are [taken so](FusedMap::takes_blocks).
    fn run(&self, run: Range<usize>, block_rows: usize, step: &mut Step<'_>, parts: &mut [f32]) {
        let Cut {
            start_rows, len, ..
        } = *step.cut;
        if start_rows <= GEMM_START_ROWS && !self.must_be_made(start_rows) {
            let weights = &mut step.weights[..start_rows * run.len()];
            let rows = (run.clone(), block_rows);
            self.weigh(step.cut, rows, step.relevance, None, weights, parts);
            self.accumulate(run, block_rows, start_rows, weights, step.fused, parts);
            return;
        }
        // Whole blocks at once, or a part of one.
        let chunk_rows = chunk_rows(self.maps.problem, start_rows, len);
        let chunk_rows = chunk_rows - chunk_rows % block_rows.min(chunk_rows);
        for first in run.clone().step_by(chunk_rows.max(block_rows)) {
            let blocks = first..run.end.min(first + chunk_rows.max(block_rows));
            let parts = &mut parts[(first - run.start) / block_rows * start_rows * len..];
            for first in blocks.clone().step_by(chunk_rows) {
                let chunk = first..blocks.end.min(first + chunk_rows);
                self.chunk(chunk, block_rows, step, parts);
            }
        }
    }

    /// The same for as many rows as are made at once: whole blocks, or rows of one.
    fn chunk(&self, rows: Range<usize>, block_rows: usize, step: &mut Step<'_>, parts: &mut [f32]) {
        let problem = self.maps.problem;
        let (cut, depth) = (step.cut, rows.len());
        let (start_rows, len) = (cut.start_rows, cut.len);
        let fused = &mut step.fused[..depth * len];
        self.rows(rows.clone(), 1.0, fused);
        let (sums, weights) = step.weights.split_at_mut(depth);
        let weights = &mut weights[..start_rows * depth];
        let sums = problem.config().normalize_rows.then(|| {
            row_sums(self.simd, fused, len, sums);
            &*sums
        });
        let of = (rows.clone(), block_rows);
        self.weigh(cut, of, step.relevance, sums, weights, parts);
        if start_rows > GEMM_START_ROWS {
            let columns = match problem.config().causal {
                true => rows.end,
                false => len,
            };
            gemm::multiply(
                MatrixMut::new(parts, len, start_rows, columns),
                true,
                MatrixRef::new(weights, depth, start_rows, depth),
                MatrixRef::new(fused, len, depth, columns),
            );
            return;
        }
        let mut to = Accumulate {
            start_rows,
            weights,
            weights_stride: depth,
            block_rows,
            part: parts,
            part_stride: len,
            fused: &mut [],
        };
        let fused = FusedEntries::new(fused, len);
        fused.part(0..depth, 0..len).accumulate(self.simd, &mut to);
    }

    /// Writes what the fused rows `rows` are multiplied by into `weights`, `[start rows, rows]`, and adds their
    /// residual to `parts`, of their block each. Where rows are normalised, `sums` holds the sums of the fused ones.
    fn weigh(
        &self,
        cut: &Cut,
        (rows, block_rows): (Range<usize>, usize),
        relevance: &[f32],
        sums: Option<&[f32]>,
        weights: &mut [f32],
        parts: &mut [f32],
    ) {
        let Cut {
            start_rows, len, ..
        } = *cut;
        let residual = self.maps.problem.residual(self.maps.layer);
        for m in 0..start_rows {
            let weights = &mut weights[m * rows.len()..][..rows.len()];
            weights.copy_from_slice(&relevance[m * len..][rows.clone()]);
            for (weight, sum) in weights.iter_mut().zip(sums.into_iter().flatten()) {
                let divisor = residual.attention * sum + residual.identity;
                *weight = if divisor == 0.0 {
                    0.0
                } else {
                    *weight / divisor
                };
            }
            for (block, weights) in weights.chunks_mut(block_rows).enumerate() {
                let first = rows.start + block * block_rows;
                let part = &mut parts[(block * start_rows + m) * len + first..];
                for (weight, part) in weights.iter_mut().zip(part) {
                    *part += residual.identity * *weight;
                    *weight *= residual.attention;
                }
            }
        }
    }
}
