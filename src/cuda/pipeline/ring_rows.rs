//! The pipeline that streams the maps through a ring in shared memory: rows.

use std::ops::Range;

use super::builder::{Builder, chunks, launch_groups, output};
use super::common::rows_read_fused;
use crate::cuda::address::{Address, Base};
use crate::cuda::kernel::{MapSource, RingOperands, RingRows};

impl Builder<'_> {
    /// Start rows times all layers, for the whole batch.
    pub(super) fn ring_rows_of_batch(&mut self, ring_rows: RingRows) {
        let (source, chunk) = self.source(rows_read_fused(self.problem));
        let between = self.ring_buffers(ring_rows, chunk);
        for items in chunks(self.batch, chunk) {
            self.fill_source(source, &items);
            self.ring_rows(&items, source, ring_rows, &between);
        }
    }

    /// What the blocks tell each other, and where each launch leaves relevance of at most `items` items to the next, in
    /// turn.
    pub(super) fn ring_buffers(&mut self, ring_rows: RingRows, items: usize) -> Vec<Address> {
        let bytes = ring_rows.exchange_bytes(self.problem);
        self.zeroed(Base::Exchange, bytes);
        let launches = launch_groups(&self.problem.layers()).len();
        let floats = items * self.row_floats();
        (1..launches.min(3)).map(|_| self.buffer(floats)).collect()
    }

    /// Start rows times all layers, from the last to the first.
    pub(super) fn ring_rows(
        &mut self,
        items: &Range<usize>,
        source: MapSource,
        ring_rows: RingRows,
        between: &[Address],
    ) {
        let problem = self.problem;
        let row_floats = self.row_floats();
        let given = self.start(items.start);
        let mut start = (given.base, given.stride_batch as usize);
        let groups = launch_groups(&problem.layers());
        for (index, layers) in groups.iter().rev().enumerate() {
            let last = index + 1 == groups.len();
            let out = match last {
                true => output(items.start * row_floats),
                false => between[index % 2],
            };
            let operands = RingOperands {
                source: source.skip_layers(layers.start - problem.layers().start, items.len()),
                layers: layers.clone(),
                items: items.clone(),
                start: start.0,
                start_stride_batch: start.1,
                out,
                last,
            };
            self.push(ring_rows.launch(problem, &operands));
            start = (out, row_floats);
        }
    }

    /// Elements of one item's rows.
    fn row_floats(&self) -> usize {
        self.problem.start_rows() * self.common.tokens as usize
    }
}
