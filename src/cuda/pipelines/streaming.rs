//! Schedules that take one layer at a time, in forward order.

use super::{Builder, Pipeline, chunks};
use crate::config::Output;
use crate::cuda::limits::DeviceLimits;
use crate::cuda::schedule::{Matrix, Schedule, Source, l2_budget};
use crate::cuda::variant::Arithmetic;
use crate::problem::Problem;

/// The schedule of `problem` by `pipeline`, layer by layer: rows or product.
pub(in crate::cuda) fn streaming(
    problem: &Problem,
    limits: &DeviceLimits,
    pipeline: Pipeline,
) -> Schedule {
    let mut builder = Builder::new(problem, problem.shape().batch, limits, pipeline);
    if builder.common.window_len == 0 {
        builder.zero_output();
        builder.pushes = vec![builder.steps.len(); problem.layers().len()];
        return builder.finish();
    }
    match (&problem.config().output, pipeline) {
        (Output::Rows(_), _) => builder.streamed_rows(pipeline),
        (_, Pipeline::Product { arithmetic } | Pipeline::Chain { arithmetic, .. }) => {
            builder.streamed_matrix(arithmetic);
        }
        (_, Pipeline::Rows { .. }) => builder.streamed_matrix(Arithmetic::F32),
    }
    builder.finish()
}

impl Builder<'_> {
    /// Keeps the fused maps of all layers; the rows follow when the last one is there.
    fn streamed_rows(&mut self, pipeline: Pipeline) {
        let (batch, layers) = (self.batch, self.problem.layers());
        let items = 0..batch;
        let mut slot = self.slot(layers.len(), batch, None);
        for layer in layers.clone() {
            self.fill(&mut slot, &items, layer..layer + 1, layer - layers.start);
            self.pushes.push(self.steps.len());
        }
        match pipeline {
            Pipeline::Rows { rows, splits } => {
                self.rows(&items, Source::Fused(slot.fused), slot.cuts, rows, splits);
            }
            Pipeline::Product { arithmetic } | Pipeline::Chain { arithmetic, .. } => {
                self.zero_outside_windows();
                let states = self.state_buffers(batch);
                let mut rooms = states.iter().cycle();
                let mut state = self.first_state(&items);
                for layer in layers.clone().rev() {
                    let factor = slot.factor(layer, layer - layers.start, batch);
                    let room = rooms.next().copied();
                    state = Some(self.multiply(&items, factor, arithmetic, state, room));
                }
            }
        }
    }

    /// Multiplies each layer when it is pushed, in chunks of items whose fused maps and states stay in L2.
    fn streamed_matrix(&mut self, arithmetic: Arithmetic) {
        let layers = self.problem.layers();
        let item_bytes = size_of::<f32>() * 3 * self.fused_floats();
        let chunk = (l2_budget(self.limits) / item_bytes).clamp(1, self.batch);
        let mut slot = self.slot(1, chunk, None);
        let states = self.state_buffers(self.batch);
        self.zero_outside_windows();
        for (index, layer) in layers.clone().enumerate() {
            for items in chunks(self.batch, chunk) {
                self.fill(&mut slot, &items, layer..layer + 1, 0);
                let factor = slot.factor(layer, 0, items.len());
                let of_items = |state: &Matrix| state.skip_items(items.start);
                let turn = |index: usize| states.get(index % states.len().max(1)).map(of_items);
                let state = index.checked_sub(1).and_then(turn);
                let room = turn(index);
                self.multiply(&items, factor, arithmetic, state, room);
            }
            self.pushes.push(self.steps.len());
        }
    }
}
