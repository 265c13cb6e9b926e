//! Product form: `R <- Ahat_l R`, from the first layer to the last. The first rollout is `Ahat_1` itself.
//!
//! Members that share an item make rows of `Ahat` each, and columns of `R`, which never need each other.

use std::ops::Range;

use crate::config::Output;
use crate::cpu::fuse::ItemMaps;
use crate::cpu::gemm::{self, Matrix, MatrixMut};
use crate::cpu::map::{FusedMap, Job, row_sums};
use crate::cpu::rows;
use crate::cpu::simd::{Kernel, Lanes, Simd};
use crate::cpu::team::{Member, Shared};
use crate::layout::Window;
use crate::problem::Problem;

/// Rows multiplied at a time where the maps are causal: what lies right of the block's diagonal is left out.
const CAUSAL_BLOCK_ROWS: usize = 64;

/// What the members that compute one item write together. All lengths are those of the largest item.
#[derive(Clone, Copy)]
pub(crate) struct ProductShared<'a> {
    /// `Ahat` of one layer, `[tokens, tokens]`.
    pub ahat: Shared<'a>,
    /// [`spares`] matrices `[tokens, tokens]` for rollouts that are not outputs.
    pub spare: Shared<'a>,
    /// The fused map `[tokens, tokens]` where something is discarded, else empty.
    pub map: Shared<'a>,
}

/// The columns of an item's rollout that one member makes, `[valid tokens, columns]`.
#[derive(Clone)]
pub(crate) struct Panel<'a> {
    buffer: Shared<'a>,
    /// Index of the first row's first element.
    first: usize,
    /// Elements from row to row.
    stride: usize,
    /// Which columns of the rollout these are.
    columns: Range<usize>,
}

impl<'a> Panel<'a> {
    /// The columns `columns` of a matrix whose element (0, 0) is `buffer[first]`.
    pub fn of_matrix(
        buffer: Shared<'a>,
        first: usize,
        stride: usize,
        columns: Range<usize>,
    ) -> Self {
        Panel {
            buffer,
            first: first + columns.start,
            stride,
            columns,
        }
    }

    /// Where the first `columns` columns of `rows` lie, neither of them none.
    fn range(&self, rows: &Range<usize>, columns: usize) -> Range<usize> {
        self.first + rows.start * self.stride..self.first + (rows.end - 1) * self.stride + columns
    }

    /// The first `columns` columns of the first `rows` rows, neither of them none, to read.
    ///
    /// # Safety
    /// No member writes what lies between until the view is gone or a barrier has been passed.
    unsafe fn matrix(&self, rows: usize, columns: usize) -> Matrix<'a> {
        // SAFETY: as the caller vouches.
        let data = unsafe { self.buffer.get(self.range(&(0..rows), columns)) };
        Matrix::new(data, self.stride, rows, columns)
    }

    /// The first `columns` columns of `rows`, neither of them none, to write.
    ///
    /// # Safety
    /// No other member reads or writes them until the view is gone and a barrier has been passed.
    unsafe fn matrix_mut(&self, rows: Range<usize>, columns: usize) -> MatrixMut<'a> {
        let data = self.buffer.slice(self.range(&rows, columns));
        // SAFETY: as the caller vouches.
        unsafe { MatrixMut::of_shared(data, self.stride, rows.len(), columns) }
    }

    /// One row, to write.
    ///
    /// # Safety
    /// As of [`matrix_mut`](Panel::matrix_mut).
    unsafe fn row(&self, row: usize) -> &'a mut [f32] {
        let first = self.first + row * self.stride;
        // SAFETY: as the caller vouches.
        unsafe { self.buffer.get_mut(first..first + self.columns.len()) }
    }
}

/// Matrices besides the output that product form keeps rollouts in: this one and the next, as far as there are any.
pub(crate) fn spares(problem: &Problem) -> usize {
    let steps = problem.layers().len();
    let kept = match problem.config().output {
        Output::Cumulative => 0,
        Output::Matrix => steps - 1,
        Output::Rows(_) => steps,
    };
    kept.min(2)
}

/// The output of `item`, by one member or by the whole team.
pub(crate) fn item(
    job: Job<'_>,
    member: Member<'_>,
    item: usize,
    keys: &mut [u32],
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
    let panel = |step: usize| {
        let columns = member.part(len);
        let spare = |index: usize| Panel {
            buffer: shared.spare,
            first: (index * len + columns.start) * len,
            stride: columns.len(),
            columns: columns.clone(),
        };
        let slab = |index: usize| {
            let first = index * square + window.start * (tokens + 1);
            Panel::of_matrix(out, first, tokens, columns.clone())
        };
        match output {
            Output::Cumulative => slab(step * problem.shape().batch + item),
            Output::Matrix if step + 1 == steps => slab(item),
            Output::Matrix | Output::Rows(_) => spare(step % 2),
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
        let before = (at > 0).then(|| panel(at - 1));
        step(simd, member, maps, keys, shared, before, panel(at));
    }
    if let Output::Rows(_) = output {
        // SAFETY: every member makes columns of its own, of its own panel.
        unsafe { start_rows(problem, member, item, shared, panel(steps - 1), out) };
    }
    // The next item reuses what this one has shared.
    member.wait();
}

/// Writes the start rows of `item` times its rollout into the item's window of `out`, `[batch, start rows, tokens]`, in
/// the columns of `rollout`.
///
/// # Safety
/// The last step is over, and no other member makes these columns.
pub(crate) unsafe fn start_rows(
    problem: &Problem,
    member: Member<'_>,
    item: usize,
    shared: ProductShared<'_>,
    rollout: Panel<'_>,
    out: Shared<'_>,
) {
    let Window { start, len } = problem.windows()[item];
    let (tokens, start_rows) = (problem.shape().tokens, problem.start_rows());
    let columns = rollout.columns.clone();
    if columns.is_empty() {
        return;
    }
    // SAFETY: as the caller vouches; `Ahat` is not needed any more, and this member has rows of its own in it.
    let (rollout, weights) = unsafe {
        (
            rollout.matrix(len, columns.len()),
            shared
                .ahat
                .slice(member.part(len).start * len..len * len)
                .get_mut(0..len),
        )
    };
    for row in 0..start_rows {
        problem.start_weights(item, row, weights);
        let first = (item * start_rows + row) * tokens + start;
        let out = Panel::of_matrix(out, first, tokens, columns.clone());
        // SAFETY: as the caller vouches.
        let out = unsafe { out.matrix_mut(0..1, columns.len()) };
        gemm::multiply(out, false, Matrix::new(weights, len, 1, len), rollout);
    }
}

/// One layer of one item: `to = Ahat before`, or `to = Ahat` where nothing came before. Ends with a barrier. `keys` are
/// to select from, where something is discarded.
pub(crate) fn step(
    simd: Simd,
    member: Member<'_>,
    maps: ItemMaps<'_>,
    keys: &mut [u32],
    shared: ProductShared<'_>,
    before: Option<Panel<'_>>,
    to: Panel<'_>,
) {
    let len = maps.len();
    let config = maps.problem.config();
    let own = member.part(len);
    let mut whole = None;
    if config.discard.is_some() {
        // SAFETY: every member writes rows of its own, and all have passed the last step's barrier.
        let rows = unsafe { shared.map.get_mut(own.start * len..own.end * len) };
        maps.rows(own.clone()).fuse(simd, 1.0, rows);
        member.wait();
        // SAFETY: nobody writes the map before the barrier at the end of this step.
        whole = Some(unsafe { shared.map.get(0..len * len) });
    }
    let fused_map = FusedMap::new(simd, maps, whole, keys);
    let weight = maps.problem.residual(maps.layer).attention;
    // SAFETY: every member writes rows of its own, and all have passed the last step's barrier.
    let ahat = unsafe { shared.ahat.get_mut(own.start * len..own.end * len) };
    // In blocks that stay in the first-level cache until they are finished.
    let block_rows = rows::chunk_rows(1, len);
    for (block, ahat) in ahat.chunks_mut(block_rows * len).enumerate() {
        let first = own.start + block * block_rows;
        let block = first..first + ahat.len() / len;
        fused_map.rows(block.clone(), weight, ahat);
        add_residual(&fused_map, block, ahat);
    }
    member.wait();
    // SAFETY: nobody writes `Ahat` before the barrier at the end of this step, and every member reads and writes panels of
    // its own.
    unsafe {
        let ahat = shared.ahat.get(0..len * len);
        match before {
            None => {
                for (i, row) in ahat.chunks_exact(len).enumerate() {
                    to.row(i).copy_from_slice(&row[to.columns.clone()]);
                }
            }
            Some(before) => multiply(ahat, len, before, to, config.causal),
        }
    }
    member.wait();
}

/// `to = ahat before`, where `ahat` is `[len, len]`.
///
/// # Safety
/// Nobody writes `before`, nor reads or writes `to`, until this returns and a barrier has been passed.
unsafe fn multiply(ahat: &[f32], len: usize, before: Panel<'_>, to: Panel<'_>, causal: bool) {
    let block = if causal { CAUSAL_BLOCK_ROWS } else { len };
    for first in (0..len).step_by(block) {
        let rows = first..len.min(first + block);
        // Right of the diagonal both factors are 0.
        let depth = if causal { rows.end } else { len };
        let columns = depth.clamp(to.columns.start, to.columns.end) - to.columns.start;
        for i in rows.clone() {
            // SAFETY: as the caller vouches.
            let row = unsafe { to.row(i) };
            row[columns..].fill(0.0);
        }
        if columns > 0 {
            // SAFETY: as the caller vouches.
            let (to, right) = unsafe {
                (
                    to.matrix_mut(rows.clone(), columns),
                    before.matrix(depth, columns),
                )
            };
            let left = Matrix::new(&ahat[first * len..], len, rows.len(), depth);
            gemm::multiply(to, false, left, right);
        }
    }
}

/// Makes rows of `Ahat` of fused rows times the attention weight: `+ identity I`, divided by their sums where rows are
/// normalised.
fn add_residual(map: &FusedMap<'_>, rows: Range<usize>, ahat: &mut [f32]) {
    let problem = map.maps.problem;
    let identity = problem.residual(map.maps.layer).identity;
    for (i, row) in rows.zip(ahat.chunks_exact_mut(map.maps.len())) {
        row[i] += identity;
        if problem.config().normalize_rows {
            let mut sum = [0.0];
            row_sums(map.simd, row, row.len(), &mut sum);
            match sum[0] {
                0.0 => row.fill(0.0),
                sum => map.simd.dispatch(Divide { row, divisor: sum }),
            }
        }
    }
}

/// `row / divisor`.
struct Divide<'a> {
    row: &'a mut [f32],
    divisor: f32,
}

impl Kernel for Divide<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _lanes: L) {
        for entry in self.row {
            *entry /= self.divisor;
        }
    }
}
