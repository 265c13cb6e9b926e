//! A batch cut into chunks of items: how large they are, and what comes out of them, on whatever device they run.

use std::ops::Range;

use crate::config::Output;
use crate::error::Result;
use crate::layer::HostLayer;
use crate::layout::Shape;
use crate::problem::Problem;

/// Bytes of maps and output that a chunk has unless the caller says otherwise, or one item alone has more: enough to hide
/// latencies and to keep every thread busy, little enough to be had everywhere.
pub(crate) const CHUNK_BYTES: usize = 256 << 20;

/// How far a chunked run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Items finished.
    pub done: usize,
    /// Items in all.
    pub total: usize,
}

/// The output of some items of a run.
#[derive(Clone, Debug)]
pub struct Chunk<'a> {
    items: Range<usize>,
    out: &'a [f32],
    planes: usize,
    /// The items of the run.
    run: Range<usize>,
}

impl<'a> Chunk<'a> {
    /// `out` is the output of `items` of `problem`, which are some of a `run`.
    pub(crate) fn new(
        problem: &Problem,
        run: Range<usize>,
        items: Range<usize>,
        out: &'a [f32],
    ) -> Self {
        Chunk {
            items,
            out,
            planes: planes(problem),
            run,
        }
    }

    /// The items, counted from the first of the plan's problem.
    pub fn items(&self) -> Range<usize> {
        self.items.clone()
    }

    /// Their output, shaped as [`Problem::output_shape`] of a problem of these items alone.
    pub fn out(&self) -> &'a [f32] {
        self.out
    }

    /// How far the run has come, where chunks come in order.
    pub fn progress(&self) -> Progress {
        Progress {
            done: self.items.end - self.run.start,
            total: self.run.len(),
        }
    }

    /// Copies the output to where it belongs in `all`, the output of the whole run.
    pub(crate) fn copy_to(&self, all: &mut [f32]) {
        let item = self.out.len() / self.planes / self.items.len().max(1);
        let from = self.out.chunks_exact((self.items.len() * item).max(1));
        let to = all.chunks_exact_mut((self.run.len() * item).max(1));
        let (start, end) = (
            self.items.start - self.run.start,
            self.items.end - self.run.start,
        );
        for (to, from) in to.zip(from) {
            to[start * item..end * item].copy_from_slice(from);
        }
    }
}

/// Items of a chunk of at most `bytes` bytes of maps and output: at least one, at most all.
pub(crate) fn items_per_chunk(problem: &Problem, bytes: usize) -> usize {
    let Shape {
        batch,
        heads,
        tokens,
        ..
    } = *problem.shape();
    let maps = match problem.queries_keys() {
        None => {
            let operands = 1 + usize::from(problem.config().gradients.is_some());
            let elements = operands * problem.layers().len() * heads * tokens * tokens;
            elements * problem.dtype().size_bytes()
        }
        Some(_) => problem.map_bytes() / batch.max(1),
    };
    let output = size_of::<f32>() * problem.output_len() / batch.max(1);
    (bytes / (maps + output).max(1)).clamp(1, batch.max(1))
}

/// How often all items come in the output.
fn planes(problem: &Problem) -> usize {
    match problem.config().output {
        Output::Cumulative => problem.layers().len(),
        Output::Rows(_) | Output::Matrix => 1,
    }
}

/// `layers` of `problem` from item `first` on.
pub(crate) fn layers_from<'a>(
    problem: &Problem,
    layers: &[HostLayer<'a>],
    first: usize,
) -> Result<Vec<HostLayer<'a>>> {
    let from = |(layer, tensors): (usize, &HostLayer<'a>)| {
        let operands = problem.operands(layer)?;
        let mut operands = operands.operands();
        // A tensor for which the problem has no operand is refused where the layers are checked.
        Ok(tensors.map(|tensor| {
            let skipped = operands
                .next()
                .map_or(0, |operand| first * operand.batch_stride);
            tensor.starting_at(skipped)
        }))
    };
    layers.iter().enumerate().map(from).collect()
}
