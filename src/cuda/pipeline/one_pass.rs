//! The pipeline that reads the maps once in few launches: rows.

use std::ops::Range;

use super::builder::{Builder, chunks, launch_groups, output};
use super::common::rows_read_fused;
use crate::cuda::address::Address;
use crate::cuda::kernel::{MapSource, Reading, RolloutRows, RowsOperands, Splits};

/// How `rollout_rows` goes through the layers.
pub(super) struct RowsLaunches {
    splits: Splits,
    /// The layers of each launch; none for a reduction at the end.
    layers: Vec<Range<usize>>,
    /// Where launches leave sums to the next, in turn.
    partials: Vec<Address>,
}

impl Builder<'_> {
    /// Start rows times all layers, for the whole batch.
    pub(super) fn rows_of_batch(&mut self, rows: u32, splits: Splits) {
        let (source, chunk) = self.source(rows_read_fused(self.problem));
        let launches = self.rows_launches(source, chunk, splits);
        for items in chunks(self.batch, chunk) {
            self.fill_source(source, &items);
            self.rows(&items, source, rows, &launches);
        }
    }

    /// The caller's layers, of all items at a time; or, `fused`, fused maps of all layers, of as many items at a time as stay
    /// in L2.
    pub(super) fn source(&mut self, fused: bool) -> (MapSource, usize) {
        if !fused {
            return (MapSource::Layers, self.room);
        }
        let layers = self.problem.layers().len();
        let chunk = self.items_in_l2(size_of::<f32>() * layers * self.fused_floats());
        (MapSource::Fused(self.fused_buffer(layers, chunk)), chunk)
    }

    /// Fuses the maps that `source` is to hold. Chunks follow one another in one stream: each may use the buffers of the
    /// one before.
    pub(super) fn fill_source(&mut self, source: MapSource, items: &Range<usize>) {
        if let MapSource::Fused(fused) = source {
            self.fuse(items, &self.problem.layers(), fused);
        }
    }

    /// How many launches take which layers of at most `items` items.
    pub(super) fn rows_launches(
        &mut self,
        source: MapSource,
        items: usize,
        splits: Splits,
    ) -> RowsLaunches {
        let range = self.problem.layers();
        let one_layer = splits.parts() > 1 || self.common.columns(source, false).tiles > 1;
        let layers: Vec<Range<usize>> = if one_layer {
            // After the first layer one more launch, of no layers, adds up the partial sums.
            let layers = range.clone().rev().map(|layer| layer..layer + 1);
            let reduction = range.start..range.start;
            layers.chain(std::iter::once(reduction)).collect()
        } else {
            launch_groups(&range).into_iter().rev().collect()
        };
        let tokens = self.common.tokens as usize;
        let floats = items * splits.parts() as usize * self.problem.start_rows() * tokens;
        let partials = match layers.len() {
            1 => Vec::new(),
            _ => vec![self.buffer(floats), self.buffer(floats)],
        };
        RowsLaunches {
            splits,
            layers,
            partials,
        }
    }

    /// Start rows times all layers, from the last to the first.
    pub(super) fn rows(
        &mut self,
        items: &Range<usize>,
        source: MapSource,
        rows: u32,
        launches: &RowsLaunches,
    ) {
        let problem = self.problem;
        let Reading {
            dtype,
            fusion,
            gradients,
        } = self.reading(source);
        let kernel = RolloutRows {
            dtype,
            rows,
            fusion,
            gradients,
            normalize: self.normalize,
            discard: self.discard,
        };
        let RowsLaunches {
            splits,
            layers,
            partials,
        } = launches;
        let start = self.start(items.start);
        let row_floats = problem.start_rows() * self.common.tokens as usize;
        let last = layers.len() - 1;
        for (index, layers) in layers.iter().enumerate() {
            let operands = RowsOperands {
                source: source.skip_layers(layers.start - problem.layers().start, items.len()),
                layers: layers.clone(),
                items: items.clone(),
                start: start.base,
                start_stride_batch: start.stride_batch as usize,
                partials_in: (index > 0).then(|| (partials[(index - 1) % 2], splits.parts())),
                partials_out: (index < last).then(|| partials[index % 2]),
                out: output(items.start * row_floats),
            };
            // A reduction has nothing to divide.
            let splits = match layers.is_empty() {
                true => Splits::ONE,
                false => *splits,
            };
            self.push_divided(source, |columns| {
                kernel.launch(problem, columns, splits, &operands)
            });
        }
    }

    /// How a kernel reads the maps of a source.
    fn reading(&self, source: MapSource) -> Reading {
        match source {
            MapSource::Layers => Reading::of_layers(self.problem),
            MapSource::Fused(_) => Reading::FUSED,
        }
    }
}
