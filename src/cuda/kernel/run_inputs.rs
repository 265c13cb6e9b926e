//! `run_inputs`: the tables that depend on what a run is given. No pipeline chooses it: a run begins with it where it is
//! given anything.

use super::window::Window;
use crate::config::{Output, StartRows};
use crate::cuda::address::{Address, Base};
use crate::cuda::launch::{Geometry, Launch};
use crate::cuda::parameters::params;
use crate::cuda::variant::{Variant, symbol};
use crate::problem::Problem;

const BLOCK: u32 = 128;
/// Blocks that share the start rows of an item, at most.
const ROW_BLOCKS: usize = 1024;

params! {
    /// Parameters of `run_inputs`.
    RunInputsParams {
        given_windows: Address,
        given_rows: Address,
        counts_of: Address,
        windows: Address,
        counts: Address,
        weights: Address,
        tokens: u32,
        max_window: u32,
        mean: u32,
        rows: u32,
        rows_per_item: u32,
        stride_row: u32,
    }
}

/// The kernel, of which there is one variant.
#[derive(Clone, Copy, Debug)]
pub struct TakeInputs;

impl TakeInputs {
    /// Makes the tables of all items of `problem` from what a run is given; a start row takes `stride_row` elements. With as
    /// many blocks along x fewer, it makes those of fewer items.
    pub fn launch(&self, problem: &Problem, stride_row: usize) -> Launch {
        let (each, shared) = (problem.item_rows(), problem.shared_rows());
        let rows = problem.start_rows();
        let given = |wanted: bool, base| match wanted {
            true => Address::of(base),
            false => Address::NULL,
        };
        let discards = problem.config().discard.is_some();
        let params = RunInputsParams {
            given_windows: Address::of(Base::GivenWindows),
            given_rows: given(!each.is_empty() || !shared.is_empty(), Base::GivenRows),
            counts_of: given(discards, Base::CountsOf),
            windows: Window::from_item(0),
            counts: given(discards, Base::Counts),
            weights: given(problem.has_start_of_window(), Base::Start),
            tokens: problem.shape().tokens as u32,
            max_window: problem.longest_window() as u32,
            mean: matches!(problem.config().output, Output::Rows(StartRows::Mean)).into(),
            rows: rows as u32,
            rows_per_item: if each.is_empty() { 0 } else { rows as u32 },
            stride_row: stride_row as u32,
        };
        let row_blocks = rows.clamp(1, ROW_BLOCKS) as u32;
        let batch = problem.shape().batch as u32;
        let geometry = Geometry::new([batch, row_blocks, 1], BLOCK);
        Launch::new(self.variant(), geometry, &params, 0)
    }

    /// What it is compiled to.
    pub fn variant(&self) -> Variant {
        Variant {
            defines: vec![("BLOCK_THREADS", BLOCK.to_string())],
            // All the threads a multiprocessor can have.
            ..Variant::new("run_inputs", symbol("run_inputs", &["i32"], &[]), BLOCK, 8)
        }
    }
}

/// Bytes of the windows and rows of `problem`, as runs are given them.
pub fn given_bytes(problem: &Problem) -> usize {
    size_of::<i32>() * (2 * problem.shape().batch + problem.item_rows().len())
}

/// The windows, and behind them the rows, of `problem`.
pub fn write_given(problem: &Problem, to: &mut [u8]) {
    let windows = problem.windows().iter();
    let windows = windows.flat_map(|window| [window.start, window.len]);
    let values = windows.chain(problem.item_rows().iter().copied());
    for (value, to) in values.zip(to.chunks_exact_mut(size_of::<i32>())) {
        to.copy_from_slice(&(value as i32).to_ne_bytes());
    }
}
