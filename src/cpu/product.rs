//! Product form: `R <- Ahat_l R`, from the first layer to the last. The first rollout is `Ahat_1` itself.

use std::ops::Range;

use crate::config::Output;
use crate::cpu::fuse::ItemMaps;
use crate::cpu::gemm::{self, Matrix, MatrixMut};
use crate::cpu::map::{FusedMap, Job, row_sums};
use crate::cpu::rows;
use crate::cpu::simd::{Kernel, Lanes, Simd};
use crate::cpu::team::{Member, Shared};
use crate::problem::Problem;

/// Rows multiplied at a time where the maps are causal: what lies right of the block's diagonal is left out.
const CAUSAL_BLOCK_ROWS: usize = 64;

/// What one member needs to compute items in product form. All lengths are those of the largest item.
pub(crate) struct ProductScratch<'a> {
    /// Rows of `Ahat`, `[tokens, tokens]`.
    pub ahat: &'a mut [f32],
    /// Keys to select from, as many where something is discarded, else empty.
    pub keys: &'a mut [u32],
}

/// What the members that compute one item write together.
#[derive(Clone, Copy)]
pub(crate) struct ProductShared<'a> {
    /// [`spares`] matrices `[tokens, tokens]` for rollouts that are not outputs.
    pub spare: Shared<'a>,
    /// The fused map `[tokens, tokens]` where something is discarded, else empty.
    pub map: Shared<'a>,
}

/// A matrix over an item's valid tokens inside a larger buffer.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub buffer: Shared<'a>,
    /// Index of the element (0, 0).
    pub first: usize,
    /// Elements from row to row.
    pub stride: usize,
}

impl Place<'_> {
    fn rows(&self, rows: Range<usize>, len: usize) -> Range<usize> {
        let first = self.first + rows.start * self.stride;
        match rows.len() {
            0 => first..first,
            count => first..first + (count - 1) * self.stride + len,
        }
    }
}

/// Matrices besides the output that product form keeps a rollout in.
pub(crate) fn spares(output: &Output) -> usize {
    match output {
        Output::Cumulative => 0,
        Output::Matrix => 1,
        Output::Rows(_) => 2,
    }
}

/// The output of `item`, by one member or by the whole team.
pub(crate) fn item(
    job: Job<'_>,
    member: Member<'_>,
    item: usize,
    scratch: &mut ProductScratch<'_>,
    shared: ProductShared<'_>,
) {
    let Job {
        simd, problem, out, ..
    } = job;
    let tokens = problem.shape().tokens;
    let square = tokens * tokens;
    let window = problem.windows()[item];
    let len = window.len;
    let output = &problem.config().output;
    let steps = problem.layers().len();
    let place = |step: usize| {
        let spare = |index: usize| Place {
            buffer: shared.spare,
            first: index * len * len,
            stride: len,
        };
        let slab = |index: usize| Place {
            buffer: out,
            first: index * square + window.start * (tokens + 1),
            stride: tokens,
        };
        match output {
            Output::Cumulative => slab(step * problem.shape().batch + item),
            Output::Matrix if (steps - 1 - step).is_multiple_of(2) => slab(item),
            Output::Matrix => spare(0),
            Output::Rows(_) => spare(step % 2),
        }
    };
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
        return;
    }
    for (at, layer) in problem.layers().enumerate() {
        let maps = job.maps(layer, item);
        let before = (at > 0).then(|| place(at - 1));
        step(simd, member, maps, scratch, shared.map, before, place(at));
    }
    if let Output::Rows(_) = output
        && member.index == 0
    {
        let out_len = problem.start_rows() * tokens;
        let (rollout, spare) = (place(steps - 1), place(steps));
        // SAFETY: all members have passed the last step's barrier, and only member 0 goes on; the two places are
        // different matrices.
        let (rollout, out, spare) = unsafe {
            (
                rollout.buffer.get(rollout.rows(0..len, len)),
                out.get_mut(item * out_len..(item + 1) * out_len),
                spare.buffer.get_mut(spare.rows(0..len, len)),
            )
        };
        start_rows(
            problem,
            item,
            Matrix::new(rollout, len, len, len),
            spare,
            out,
        );
    }
    // The next item reuses what this one has shared.
    member.wait();
}

/// Writes the start rows of `item` times its rollout `[len, len]` into the item's window of `out`, `[start rows,
/// tokens]`. `start` holds at least `len` weights.
pub(crate) fn start_rows(
    problem: &Problem,
    item: usize,
    rollout: Matrix<'_>,
    start: &mut [f32],
    out: &mut [f32],
) {
    let window = problem.windows()[item];
    let start = &mut start[..window.len];
    for (row, out) in out.chunks_exact_mut(problem.shape().tokens).enumerate() {
        problem.start_weights(item, row, start);
        let out = &mut out[window.start..window.end()];
        gemm::multiply(
            MatrixMut::new(out, window.len, 1, window.len),
            false,
            Matrix::new(start, window.len, 1, window.len),
            rollout,
        );
    }
}

/// One layer of one item: `to = Ahat before`, or `to = Ahat` where nothing came before. Ends with a barrier.
pub(crate) fn step(
    simd: Simd,
    member: Member<'_>,
    maps: ItemMaps<'_>,
    scratch: &mut ProductScratch<'_>,
    map: Shared<'_>,
    before: Option<Place<'_>>,
    to: Place<'_>,
) {
    let len = maps.len();
    let own = member.part(len);
    let mut whole = None;
    if maps.problem.config().discard.is_some() {
        // SAFETY: every member writes rows of its own, and all have passed the last step's barrier.
        let rows = unsafe { map.get_mut(own.start * len..own.end * len) };
        maps.rows(own.clone()).fuse(simd, rows);
        member.wait();
        // SAFETY: nobody writes the map before the barrier at the end of this step.
        whole = Some(unsafe { map.get(0..len * len) });
    }
    let fused_map = FusedMap::new(simd, maps, whole, scratch.keys);
    let ahat = &mut scratch.ahat[..own.len() * len];
    // In blocks that stay in the first-level cache until they are finished.
    let block_rows = rows::chunk_rows(1, len);
    for (block, ahat) in ahat.chunks_mut(block_rows * len).enumerate() {
        let first = own.start + block * block_rows;
        let block = first..first + ahat.len() / len;
        fused_map.rows(block.clone(), ahat);
        add_residual(&fused_map, block, ahat);
    }
    // SAFETY: every member writes rows of its own, and nobody reads them before the barrier below.
    let to_rows = unsafe { to.buffer.get_mut(to.rows(own.clone(), len)) };
    match before {
        None => {
            for (row, ahat) in to_rows.chunks_mut(to.stride).zip(ahat.chunks_exact(len)) {
                row[..len].copy_from_slice(ahat);
            }
        }
        Some(before) => {
            // SAFETY: written in the last step, before its barrier; this step writes another matrix.
            let right = unsafe { before.buffer.get(before.rows(0..len, len)) };
            let block = if maps.problem.config().causal {
                CAUSAL_BLOCK_ROWS
            } else {
                own.len().max(1)
            };
            for first in own.clone().step_by(block) {
                let count = block.min(own.end - first);
                let depth = if maps.problem.config().causal {
                    first + count
                } else {
                    len
                };
                let at = first - own.start;
                let to_rows = &mut to_rows[at * to.stride..];
                for row in to_rows.chunks_mut(to.stride).take(count) {
                    row[depth..len].fill(0.0);
                }
                gemm::multiply(
                    MatrixMut::new(to_rows, to.stride, count, depth),
                    false,
                    Matrix::new(&ahat[at * len..], len, count, depth),
                    Matrix::new(right, before.stride, depth, depth),
                );
            }
        }
    }
    member.wait();
}

/// Makes rows of `Ahat` of fused rows: `a * fused + b * I`, divided by their sums where rows are normalised.
fn add_residual(map: &FusedMap<'_>, rows: Range<usize>, ahat: &mut [f32]) {
    let problem = map.maps.problem;
    let residual = problem.residual(map.maps.layer);
    for (i, row) in rows.zip(ahat.chunks_exact_mut(map.maps.len())) {
        let mut divisor = 1.0;
        if problem.config().normalize_rows {
            let mut sum = [0.0];
            row_sums(map.simd, row, row.len(), &mut sum);
            divisor = residual.attention * sum[0] + residual.identity;
        }
        if divisor == 0.0 {
            row.fill(0.0);
            continue;
        }
        map.simd.dispatch(Scale {
            row,
            factor: residual.attention,
            divisor,
        });
        row[i] += residual.identity / divisor;
    }
}

/// `row * factor / divisor`.
struct Scale<'a> {
    row: &'a mut [f32],
    factor: f32,
    divisor: f32,
}

impl Kernel for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _lanes: L) {
        if self.divisor == 1.0 {
            self.row.iter_mut().for_each(|entry| *entry *= self.factor);
        } else {
            self.row
                .iter_mut()
                .for_each(|entry| *entry = *entry * self.factor / self.divisor);
        }
    }
}
