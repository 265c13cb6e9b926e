//! What a plan uploads when it is made: windows, head weights, slopes and sinks, discard counts, excluded tokens and start rows, and what
//! these are derived from where runs are given others.

use crate::config::{HeadFusion, Output, StartRows};
use crate::cuda::address::Base;
use crate::cuda::kernel::{self, HeadScores};
use crate::cuda::schedule::Table;
use crate::layout::Window;
use crate::problem::Problem;

/// The tables of `problem` that are not empty; start rows `stride_row` elements apart.
pub(super) fn tables(problem: &Problem, stride_row: usize) -> Vec<Table> {
    let batch = problem.shape().batch;
    let windows = problem.windows().iter();
    let windows: Vec<kernel::Window> = windows.map(|&window| window.into()).collect();
    let head_weights = match &problem.config().head_fusion {
        HeadFusion::Weighted(weights) => weights.as_slice(),
        _ => &[],
    };
    let counts: Vec<u64> = match problem.config().discard {
        Some(_) => (0..batch)
            .map(|item| problem.discard_count(item) as u64)
            .collect(),
        None => Vec::new(),
    };
    let excluded = &problem.config().exclude_from_attention;
    let shared = shared_start(problem);
    let start_bytes = match shared {
        true => 0,
        false => size_of::<f32>() * problem.start_rows() * stride_row,
    };
    let mut given = vec![0; kernel::given_bytes(problem)];
    kernel::write_given(problem, &mut given);
    let by_len = 0..=problem.longest_window();
    let counts_of: Vec<u64> = match problem.config().discard {
        Some(_) => by_len
            .map(|len| problem.discard_count_of(len) as u64)
            .collect(),
        None => Vec::new(),
    };
    let shared_rows = problem.shared_rows().iter();
    let shared_rows: Vec<i32> = shared_rows.map(|&row| row as i32).collect();
    // What is derived for a run is derived from these.
    let (given, shared_rows, counts_of) = match problem.has_run_inputs() {
        true => (given, shared_rows, counts_of),
        false => Default::default(),
    };
    let mut tables = vec![
        table(Base::GivenWindows, &given, 0),
        table(Base::GivenRows, &shared_rows, 0),
        table(Base::CountsOf, &counts_of, 0),
        table(Base::Windows, &windows, size_of::<kernel::Window>()),
        table(Base::HeadWeights, head_weights, 0),
        table(Base::Counts, &counts, size_of::<u64>()),
        table(Base::HeadScores, &HeadScores::of_problem(problem), 0),
        table(Base::Excluded, &bits(excluded, problem.shape().tokens), 0),
        table(
            Base::Start,
            &start_rows(problem, stride_row, shared),
            start_bytes,
        ),
    ];
    tables.retain(|table| !table.bytes.is_empty());
    tables
}

/// A bit for each of `tokens`, set where it is among `excluded`; none where no token is.
fn bits(excluded: &[usize], tokens: usize) -> Vec<u32> {
    if excluded.is_empty() {
        return Vec::new();
    }
    let mut words = vec![0; tokens.div_ceil(u32::BITS as usize)];
    for &token in excluded {
        words[token / u32::BITS as usize] |= 1 << (token % u32::BITS as usize);
    }
    words
}

fn table<T: bytemuck::NoUninit>(base: Base, values: &[T], item_bytes: usize) -> Table {
    Table {
        base,
        bytes: bytemuck::cast_slice(values).to_vec(),
        item_bytes,
    }
}

/// Whether one copy of the start rows serves all items.
fn shared_start(problem: &Problem) -> bool {
    match &problem.config().output {
        // Each is held to the windows that a run is given.
        Output::Rows(StartRows::Rows(_)) => problem.takes_windows().is_err(),
        Output::Rows(StartRows::Weights { rows, weights }) => {
            weights.len() == rows * problem.shape().tokens
        }
        _ => problem.start_rows() == 0,
    }
}

fn start_rows(problem: &Problem, stride_row: usize, shared: bool) -> Vec<f32> {
    let (rows, tokens) = (problem.start_rows(), problem.shape().tokens);
    // Shared start rows count from the window's start and ignore its end, so they are those of a full window.
    let full;
    let (source, items) = if shared && rows > 0 && problem.shape().batch > 0 {
        full = problem
            .slice_batch(0..1)
            .with_windows(vec![Window::full(tokens)]);
        (&full, 1)
    } else {
        (problem, problem.shape().batch)
    };
    let mut weights = vec![0.0; items * rows * stride_row];
    for (index, row) in weights.chunks_exact_mut(stride_row.max(1)).enumerate() {
        let (item, row_index) = (index / rows, index % rows);
        let len = source.windows()[item].len;
        source.start_weights(item, row_index, &mut row[..len]);
    }
    weights
}
