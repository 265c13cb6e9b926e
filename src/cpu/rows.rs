//! Row form: `r <- b r + a (r fused)`, from the last layer to the first, one pass over the maps.
//!
//! Rows are taken in blocks of a length that depends on the problem alone. Each block's part of the new relevance is
//! summed by itself and the parts are added in block order, so the result does not depend on who computed which block.

use std::ops::Range;

use crate::cpu::gemm::{self, Matrix, MatrixMut};
use crate::cpu::map::{FusedMap, Job};
use crate::cpu::simd::{Kernel, LANES, Lanes};
use crate::cpu::team::{Member, Shared};
use crate::problem::Problem;

/// Elements of a block of fused rows: half of a 32 KiB first-level cache.
const BLOCK_ELEMENTS: usize = 4096;

/// More start rows than this make a matrix product of the vector-matrix step ...
const GEMM_START_ROWS: usize = 16;

/// ... which wants deeper blocks.
const GEMM_BLOCK_ROWS: usize = 128;

/// Rows of a block.
pub(crate) fn block_rows(start_rows: usize, tokens: usize) -> usize {
    let rows = match start_rows {
        0..=GEMM_START_ROWS => BLOCK_ELEMENTS / tokens,
        _ => GEMM_BLOCK_ROWS,
    };
    rows.clamp(1, tokens)
}

/// What one member needs to compute items in row form. All lengths are those of the largest item.
pub(crate) struct RowsScratch<'a> {
    /// Relevance `[start rows, tokens]`.
    pub relevance: &'a mut [f32],
    /// One block's part of the new relevance.
    pub part: &'a mut [f32],
    /// The new relevance.
    pub next: &'a mut [f32],
    /// One block of fused rows `[block rows, tokens]`.
    pub fused: &'a mut [f32],
    /// Weights of one block `[start rows, block rows]`.
    pub weights: &'a mut [f32],
    /// The whole fused map `[tokens, tokens]` where something is discarded, else empty.
    pub map: &'a mut [f32],
    /// Keys to select from, as many.
    pub keys: &'a mut [u32],
}

/// What the members that compute one item write together.
#[derive(Clone, Copy)]
pub(crate) struct RowsShared<'a> {
    /// Parts of two layers, `[2, blocks, start rows, tokens]`.
    pub parts: Shared<'a>,
    /// The fused map `[tokens, tokens]` where something is discarded, else empty.
    pub map: Shared<'a>,
}

/// The relevance rows `[start rows, tokens]` of `item`, by one member alone.
pub(crate) fn item(job: Job<'_>, item: usize, scratch: &mut RowsScratch<'_>, out: &mut [f32]) {
    let Job { simd, problem, .. } = job;
    let rows = problem.start_rows();
    let len = problem.windows()[item].len;
    if len == 0 {
        out.fill(0.0);
        return;
    }
    start(problem, item, scratch);
    for layer in problem.layers().rev() {
        let maps = job.maps(layer, item);
        let mut map = None;
        if problem.config().discard.is_some() {
            maps.fuse(simd, 0..len, &mut scratch.map[..len * len]);
            map = Some(&scratch.map[..len * len]);
        }
        let fused_map = FusedMap::new(simd, maps, map, scratch.keys);
        let next = &mut scratch.next[..rows * len];
        next.fill(0.0);
        for block_rows in blocks(rows, len) {
            let part = &mut scratch.part[..rows * len];
            let any = fused_map.part(
                block_rows,
                &scratch.relevance[..rows * len],
                scratch.fused,
                scratch.weights,
                part,
            );
            if any {
                add(next, part);
            }
        }
        std::mem::swap(&mut scratch.relevance, &mut scratch.next);
    }
    finish(problem, item, scratch.relevance, out);
}

/// The relevance rows of `item`, by the whole team.
pub(crate) fn item_by_team(
    job: Job<'_>,
    member: Member<'_>,
    item: usize,
    scratch: &mut RowsScratch<'_>,
    shared: RowsShared<'_>,
) {
    let Job {
        simd, problem, out, ..
    } = job;
    let RowsShared { parts, map } = shared;
    let out_len = problem.start_rows() * problem.shape().tokens;
    let rows = problem.start_rows();
    let len = problem.windows()[item].len;
    if len == 0 {
        if member.index == 0 {
            // SAFETY: only member 0 touches this item's output.
            unsafe { out.get_mut(item * out_len..(item + 1) * out_len) }.fill(0.0);
        }
        return;
    }
    let blocks_len = blocks(rows, len).len();
    start(problem, item, scratch);
    for (step, layer) in problem.layers().rev().enumerate() {
        let maps = job.maps(layer, item);
        let mut whole = None;
        if problem.config().discard.is_some() {
            let own = member.part(len);
            // SAFETY: every member writes rows of its own, and all have passed the last layer's barrier.
            let own_rows = unsafe { map.get_mut(own.start * len..own.end * len) };
            maps.fuse(simd, own, own_rows);
            member.wait();
            // SAFETY: nobody writes the map before the barrier at the end of this layer.
            whole = Some(unsafe { map.get(0..len * len) });
        }
        let fused_map = FusedMap::new(simd, maps, whole, scratch.keys);
        // Two sets of parts: members may be one layer apart.
        let set = step % 2 * blocks_len * rows * len;
        let own = member.part(blocks_len);
        for (index, block_rows) in blocks(rows, len)
            .enumerate()
            .skip(own.start)
            .take(own.len())
        {
            let at = set + index * rows * len;
            // SAFETY: this member's block alone; it was read last two layers ago, a barrier lies between.
            let part = unsafe { parts.get_mut(at..at + rows * len) };
            fused_map.part(
                block_rows,
                &scratch.relevance[..rows * len],
                scratch.fused,
                scratch.weights,
                part,
            );
        }
        member.wait();
        let next = &mut scratch.relevance[..rows * len];
        next.fill(0.0);
        for index in 0..blocks_len {
            let at = set + index * rows * len;
            // SAFETY: this set is not written again before the next layer's barrier.
            add(next, unsafe { parts.get(at..at + rows * len) });
        }
    }
    if member.index == 0 {
        // SAFETY: only member 0 touches this item's output.
        let out = unsafe { out.get_mut(item * out_len..(item + 1) * out_len) };
        finish(problem, item, scratch.relevance, out);
    }
    // The next item's first parts overwrite this item's.
    member.wait();
}

/// The blocks of rows of an item.
pub(crate) fn blocks(start_rows: usize, len: usize) -> impl ExactSizeIterator<Item = Range<usize>> {
    let rows = block_rows(start_rows, len);
    (0..len.div_ceil(rows)).map(move |block| block * rows..((block + 1) * rows).min(len))
}

/// Writes the item's start rows into the relevance.
fn start(problem: &Problem, item: usize, scratch: &mut RowsScratch<'_>) {
    let len = problem.windows()[item].len;
    for row in 0..problem.start_rows() {
        problem.start_weights(item, row, &mut scratch.relevance[row * len..][..len]);
    }
}

/// Copies relevance rows of the item's window to their places.
fn finish(problem: &Problem, item: usize, relevance: &[f32], out: &mut [f32]) {
    let window = problem.windows()[item];
    out.fill(0.0);
    if window.len == 0 {
        return;
    }
    for (row, out) in relevance
        .chunks_exact(window.len)
        .zip(out.chunks_exact_mut(problem.shape().tokens))
    {
        out[window.start..window.end()].copy_from_slice(row);
    }
}

fn add(sum: &mut [f32], part: &[f32]) {
    for (sum, part) in sum.iter_mut().zip(part) {
        *sum += part;
    }
}

impl FusedMap<'_> {
    /// Writes what the rows `rows` add to the new relevance into `part`, `[start rows, len]`. Returns whether a row
    /// carried weight; rows that carry none are not read.
    fn part(
        &self,
        rows: Range<usize>,
        relevance: &[f32],
        fused: &mut [f32],
        weights: &mut [f32],
        part: &mut [f32],
    ) -> bool {
        let len = self.maps.len();
        let carries = |i: usize| relevance.iter().skip(i).step_by(len).any(|&r| r != 0.0);
        part.fill(0.0);
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
            self.run(run, relevance, fused, weights, part);
        }
        any
    }

    /// Adds what adjoining rows that carry weight contribute.
    fn run(
        &self,
        run: Range<usize>,
        relevance: &[f32],
        fused: &mut [f32],
        weights: &mut [f32],
        part: &mut [f32],
    ) {
        let problem = self.maps.problem;
        let len = self.maps.len();
        let residual = problem.residual(self.maps.layer);
        let fused = &mut fused[..run.len() * len];
        self.rows(run.clone(), fused);
        let depth = run.len();
        let start_rows = relevance.len() / len;
        let weights = &mut weights[..start_rows * depth];
        for (i, row) in run.clone().zip(fused.chunks_exact(len)) {
            let divisor = problem
                .config()
                .normalize_rows
                .then(|| residual.attention * self.row_sum(row) + residual.identity);
            for m in 0..start_rows {
                let weight = match divisor {
                    Some(0.0) => 0.0,
                    Some(divisor) => relevance[m * len + i] / divisor,
                    None => relevance[m * len + i],
                };
                weights[m * depth + i - run.start] = residual.attention * weight;
                part[m * len + i] += residual.identity * weight;
            }
        }
        let columns = if problem.config().causal {
            run.end
        } else {
            len
        };
        if start_rows > GEMM_START_ROWS {
            gemm::multiply(
                MatrixMut::new(part, len, start_rows, columns),
                true,
                Matrix::new(weights, depth, start_rows, depth),
                Matrix::new(fused, len, depth, columns),
            );
        } else {
            for (weights, part) in weights.chunks_exact(depth).zip(part.chunks_exact_mut(len)) {
                self.simd.dispatch(Accumulate {
                    weights,
                    fused,
                    part: &mut part[..columns],
                });
            }
        }
    }
}

/// `part += weights * fused` for one start row.
struct Accumulate<'a> {
    weights: &'a [f32],
    fused: &'a [f32],
    part: &'a mut [f32],
}

impl Kernel for Accumulate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        const WIDE: usize = 4 * LANES;
        let stride = self.fused.len() / self.weights.len();
        let columns = self.part.len();
        let (wide, rest) = self.part.as_chunks_mut::<WIDE>();
        for (chunk, part) in wide.iter_mut().enumerate() {
            let mut sums = *part;
            for (&weight, row) in self.weights.iter().zip(self.fused.chunks_exact(stride)) {
                let row = &row[chunk * WIDE..][..WIDE];
                for (sum, &value) in sums.iter_mut().zip(row) {
                    *sum = lanes.mul_add(weight, value, *sum);
                }
            }
            *part = sums;
        }
        let first = columns - rest.len();
        for (&weight, row) in self.weights.iter().zip(self.fused.chunks_exact(stride)) {
            for (sum, &value) in rest.iter_mut().zip(&row[first..]) {
                *sum = lanes.mul_add(weight, value, *sum);
            }
        }
    }
}
