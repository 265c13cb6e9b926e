//! What a plan uploads once, when it is made: windows, head weights, discard counts and start rows.

use super::params;
use crate::config::{HeadFusion, Output, StartRows};
use crate::layout::Window;
use crate::problem::Problem;

/// Start of every part in bytes: more than any kernel asks for.
pub(super) const PART_ALIGNMENT: usize = 256;

/// The bytes, and where each part begins.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Constants {
    /// Everything, ready to copy.
    pub bytes: Vec<u8>,
    /// `[batch]` windows.
    pub windows: usize,
    /// `[heads]` weights of a weighted sum.
    pub head_weights: usize,
    /// `[batch]` counts of entries to discard.
    pub counts: usize,
    /// Start rows.
    pub start: Start,
}

/// Start rows `[batch or 1, rows, tokens]`, counted from the window's start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Start {
    /// First byte.
    pub offset: usize,
    /// From one item to the next, in elements; 0 where all share their start rows.
    pub stride_batch: usize,
    /// From one row to the next, in elements.
    pub stride_row: usize,
}

impl Constants {
    /// The constants of `problem`, start rows `stride_row` elements apart.
    pub fn new(problem: &Problem, stride_row: usize) -> Self {
        let mut bytes = Vec::new();
        let windows: Vec<params::Window> = problem
            .windows()
            .iter()
            .map(|&window| window.into())
            .collect();
        let windows = append(&mut bytes, &windows);
        let head_weights = match &problem.config().head_fusion {
            HeadFusion::Weighted(weights) => append(&mut bytes, weights),
            _ => 0,
        };
        let counts = match problem.config().discard {
            Some(_) => {
                let counts: Vec<u64> = (0..problem.shape().batch)
                    .map(|item| problem.discard_count(item) as u64)
                    .collect();
                append(&mut bytes, &counts)
            }
            None => 0,
        };
        let rows = problem.start_rows();
        let stride_batch = match shared_start(problem) {
            true => 0,
            false => rows * stride_row,
        };
        let offset = append(
            &mut bytes,
            &start_rows(problem, stride_row, stride_batch == 0),
        );
        Constants {
            bytes,
            windows,
            head_weights,
            counts,
            start: Start {
                offset,
                stride_batch,
                stride_row,
            },
        }
    }
}

/// Whether one copy of the start rows serves all items.
fn shared_start(problem: &Problem) -> bool {
    match &problem.config().output {
        Output::Rows(StartRows::Rows(_)) => true,
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

/// Appends `values` at the next aligned place and returns it; 0 where there are none.
fn append<T: bytemuck::Pod>(bytes: &mut Vec<u8>, values: &[T]) -> usize {
    if values.is_empty() {
        return 0;
    }
    let offset = bytes.len().next_multiple_of(PART_ALIGNMENT);
    bytes.resize(offset, 0);
    bytes.extend_from_slice(bytemuck::cast_slice(values));
    offset
}
