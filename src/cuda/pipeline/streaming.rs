//! Schedules that take one layer at a time.

use super::builder::{Builder, chunks};
use super::choice::Pipeline;
use super::product::{Stage, Steps};
use super::score_rows::LayerProduct;
use crate::config::Output;
use crate::cuda::kernel::{Arithmetic, Form, MapSource, Matrices, MatrixStream, RingMatrix};
use crate::cuda::options::LayerOrder;

impl Builder<'_> {
    /// Any output, as far as the pipeline says how.
    pub(super) fn streaming(&mut self) {
        let pipeline = self.pipeline;
        let layers = self.problem.layers();
        if self.batch == 0 || self.common.window_len == 0 {
            self.zero_output();
            self.pushes = vec![self.steps.len(); layers.len()];
            return;
        }
        if self.order == Some(LayerOrder::TopDown) {
            self.rows_top_down();
            return;
        }
        match (&self.problem.config().output, pipeline) {
            (Output::Rows(_), _) => self.streamed_rows(pipeline),
            (
                _,
                Pipeline::Product { arithmetic, .. }
                | Pipeline::RingMatrix(RingMatrix {
                    kernel: MatrixStream { arithmetic, .. },
                    ..
                }),
            ) => {
                self.streamed_matrix(arithmetic);
            }
            (
                _,
                Pipeline::Rows { .. }
                | Pipeline::RingRows(_)
                | Pipeline::ScoreRows(_)
                | Pipeline::ScoreStream(_)
                | Pipeline::ShortRows(_)
                | Pipeline::Tree(_),
            ) => self.streamed_matrix(Arithmetic::F32),
        }
    }

    /// Keeps the fused maps of all layers; the rows follow when the last one is there.
    fn streamed_rows(&mut self, pipeline: Pipeline) {
        let (room, layers) = (self.room, self.problem.layers());
        let items = 0..self.batch;
        let stage = self.stage(layers.len(), room);
        for layer in layers.clone() {
            self.fill(&stage, &items, &(layer..layer + 1), layer - layers.start);
            self.pushes.push(self.steps.len());
        }
        match pipeline {
            Pipeline::Rows { rows, splits } => {
                let source = MapSource::Fused(stage.fused);
                let launches = self.rows_launches(source, room, splits);
                self.rows(&items, source, rows, &launches);
            }
            Pipeline::RingRows(ring_rows) => {
                let between = self.ring_buffers(ring_rows, room);
                self.ring_rows(&items, MapSource::Fused(stage.fused), ring_rows, &between);
            }
            // Takes queries and keys from the last layer on, which are gone by then, or makes no rows: no candidates here.
            Pipeline::ScoreRows(_)
            | Pipeline::ScoreStream(_)
            | Pipeline::ShortRows(_)
            | Pipeline::Tree(_) => {}
            Pipeline::Product { arithmetic, .. }
            | Pipeline::RingMatrix(RingMatrix {
                kernel: MatrixStream { arithmetic, .. },
                ..
            }) => {
                self.rows_of_stage(arithmetic, &stage);
            }
        }
    }

    /// Rows times each layer when it is pushed, the last one first.
    fn rows_top_down(&mut self) {
        match self.pipeline {
            Pipeline::ScoreRows(splits) => {
                self.score_rows_of_batch(LayerProduct::Tiles(splits));
            }
            Pipeline::ShortRows(rows) => self.score_rows_of_batch(LayerProduct::Short(rows)),
            Pipeline::Product { arithmetic, .. } => {
                let stage = self.stage(1, self.room);
                self.rows_of_stage(arithmetic, &stage);
            }
            // They keep the fused maps of all layers: no candidates here.
            _ => {}
        }
    }

    /// Rows times all layers, whose fused maps `stage` has; or of each when it is pushed, the last one first.
    fn rows_of_stage(&mut self, arithmetic: Arithmetic, stage: &Stage) {
        let (form, items) = (Form::Rows, 0..self.batch);
        let (steps, layers) = (Steps { arithmetic, form }, self.problem.layers());
        self.zero_outside_windows();
        let states = self.state_buffers(form, self.room);
        let mut rooms = states.iter().cycle();
        let mut state = self.first_state(&items);
        for layer in layers.clone().rev() {
            let top_down = self.order == Some(LayerOrder::TopDown);
            let index = if top_down { 0 } else { layer - layers.start };
            if top_down {
                self.fill(stage, &items, &(layer..layer + 1), index);
            }
            let factor = self.factor(stage, &items, layer, index);
            let room = rooms.next().copied();
            state = Some(self.multiply(&steps, &items, layer, factor, state, room));
            if top_down {
                self.pushes.push(self.steps.len());
            }
        }
    }

    /// Multiplies each layer when it is pushed, in chunks of items whose fused maps and states stay in L2.
    fn streamed_matrix(&mut self, arithmetic: Arithmetic) {
        let form = Form::Matrix;
        let steps = Steps { arithmetic, form };
        let layers = self.problem.layers();
        let chunk = self.items_in_l2(size_of::<f32>() * 3 * self.fused_floats());
        let stage = self.stage(1, chunk);
        let states = self.state_buffers(form, self.room);
        self.zero_outside_windows();
        for (index, layer) in layers.clone().enumerate() {
            for items in chunks(self.batch, chunk) {
                self.fill(&stage, &items, &(layer..layer + 1), 0);
                let factor = self.factor(&stage, &items, layer, 0);
                let of_items = |state: &Matrices| state.skip_items(items.start);
                let turn = |index: usize| states.get(index % states.len().max(1)).map(of_items);
                let state = index.checked_sub(1).and_then(turn);
                let room = turn(index);
                self.multiply(&steps, &items, layer, factor, state, room);
            }
            self.pushes.push(self.steps.len());
        }
    }
}
