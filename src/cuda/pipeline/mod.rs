//! The pipelines that a problem can be computed by, each as a list of launches.
//!
//! - rows: `rollout_rows`, up to 8 start rows, one pass over the maps from the last layer to the first;
//! - ring rows: `rows_stream`, the same through a ring in shared memory that runs ahead across layers;
//! - ring matrix: `matrix_stream`, the matrix of short windows, through such a ring, one block or cluster per item;
//! - product: `head_fusion`, then `rollout_product` layer by layer, anything;
//! - tree: `head_fusion` that splits, then `split_product` level by level, matrices;
//! - score rows: `score_rows` and `score_residual` layer by layer, up to 8 start rows of queries and keys;
//! - score stream: `score_stream`, one row of queries and keys, all layers in one launch;
//! - short score rows: `score_short` instead, one row of short windows whose LSE is not given.
//!
//! Discard selects over whole fused maps, and a row without excluded tokens is divided by its sum, so with either the first
//! three read fused maps instead of the caller's; and so does, with gradients, what has no variant that weighs by them.
//! `score_fusion` makes those of queries and keys.

mod builder;
pub(super) mod choice;
mod common;
mod one_pass;
mod product;
mod ring_matrix;
mod ring_rows;
mod score_rows;
mod streaming;
mod tables;
mod tree;

use super::kernel::padded;
use super::limits::DeviceLimits;
use super::options::LayerOrder;
use super::schedule::Schedule;
use crate::problem::Problem;

use builder::Builder;
use score_rows::LayerProduct;

pub use choice::Pipeline;

pub(super) use common::{
    Common, cuts_when_read, matrix_reads_fused, operands, output_len, rows_read_fused,
};
pub(super) use tree::TreeShape;

impl Pipeline {
    /// The schedule of `batch` items of `problem` at a time. The tables are those of all items.
    pub fn schedule(self, problem: &Problem, batch: usize, limits: &DeviceLimits) -> Schedule {
        self.schedule_of(problem, batch, batch, limits)
    }

    /// As [`schedule`](Pipeline::schedule), in the buffers and with the kernels of the one of `room` items, which are not
    /// fewer.
    fn schedule_of(
        self,
        problem: &Problem,
        batch: usize,
        room: usize,
        limits: &DeviceLimits,
    ) -> Schedule {
        let mut builder = self.builder(problem, batch, room, limits);
        if batch == 0 || builder.common.window_len == 0 {
            builder.zero_output();
            return builder.finish();
        }
        match self {
            Pipeline::Rows { rows, splits } => builder.rows_of_batch(rows, splits),
            Pipeline::RingRows(ring_rows) => builder.ring_rows_of_batch(ring_rows),
            Pipeline::RingMatrix(ring_matrix) => builder.ring_matrix_of_batch(ring_matrix),
            Pipeline::Product { arithmetic, form } => builder.product(arithmetic, form),
            Pipeline::Tree(kernel) => builder.tree(kernel),
            Pipeline::ScoreRows(splits) => {
                builder.score_rows_of_batch(LayerProduct::Tiles(splits));
            }
            Pipeline::ScoreStream(sets) => builder.score_stream_of_batch(sets),
            Pipeline::ShortRows(rows) => builder.score_rows_of_batch(LayerProduct::Short(rows)),
        }
        builder.finish()
    }

    /// As [`schedule_of`](Pipeline::schedule_of), for layers that are pushed one by one.
    pub(super) fn streaming(
        self,
        problem: &Problem,
        batch: usize,
        room: usize,
        limits: &DeviceLimits,
        order: LayerOrder,
    ) -> Schedule {
        let mut builder = self.builder(problem, batch, room, limits);
        builder.order = Some(order);
        builder.streaming();
        builder.finish()
    }

    fn builder<'a>(
        self,
        problem: &'a Problem,
        batch: usize,
        room: usize,
        limits: &'a DeviceLimits,
    ) -> Builder<'a> {
        let tokens = problem.shape().tokens;
        let start_stride = match self {
            // A state like any other.
            Pipeline::Product { .. } => padded(tokens),
            Pipeline::Rows { .. }
            | Pipeline::RingRows(_)
            | Pipeline::RingMatrix(_)
            | Pipeline::Tree(_)
            | Pipeline::ScoreRows(_)
            | Pipeline::ScoreStream(_)
            | Pipeline::ShortRows(_) => tokens,
        };
        Builder::new(self, problem, batch, room, limits, start_stride)
    }
}

impl Schedule {
    /// The schedule of `batch` items of `problem`, which are not more than this one's: in the same buffers, with the same
    /// kernels.
    pub(super) fn of_items(
        &self,
        problem: &Problem,
        batch: usize,
        limits: &DeviceLimits,
    ) -> Schedule {
        let (pipeline, room) = (self.pipeline, self.batch);
        match self.order {
            None => pipeline.schedule_of(problem, batch, room, limits),
            Some(order) => pipeline.streaming(problem, batch, room, limits, order),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Output, RolloutConfig, StartRows};
    use crate::cuda::{Options, choose, choose_streaming};
    use crate::dtype::DType;
    use crate::layout::Shape;

    #[test]
    fn fewer_items_take_the_buffers_and_the_kernels_of_all() {
        // Maps of few and of many tokens, of a batch that stays in L2 and of one that does not.
        let rows = |rows| Output::Rows(StartRows::Rows(rows));
        let outputs = [
            rows(vec![0]),
            rows((0..20).collect()),
            Output::Matrix,
            Output::Cumulative,
        ];
        let shapes = [(3, 24), (64, 24), (5, 577), (40, 577)];
        let cases = outputs.iter().flat_map(|output| {
            let shapes = shapes.iter();
            shapes.map(move |&(batch, tokens)| (output, batch, tokens))
        });
        for ((output, batch, tokens), normalize_rows) in
            cases.flat_map(|case| [(case, false), (case, true)])
        {
            let shape = Shape {
                layers: 3,
                batch,
                heads: 4,
                tokens,
            };
            let config = RolloutConfig {
                output: output.clone(),
                normalize_rows,
                ..RolloutConfig::default()
            };
            let problem = Problem::builder(shape, DType::F16).config(config);
            let problem = problem.max_window(tokens).build().unwrap();
            for limits in [DeviceLimits::H200, DeviceLimits::A100, DeviceLimits::T4] {
                let options = Options::default();
                for whole in
                    [choose, choose_streaming].map(|choose| choose(&problem, &limits, &options))
                {
                    let whole = whole.unwrap();
                    for items in [0, 1, 2, batch - 1, batch] {
                        let few = whole.of_items(&problem, items, &limits);
                        assert_eq!(few.batch, items);
                        assert!(few.events <= whole.events);
                        assert!(whole.has_two_lanes() || !few.has_two_lanes());
                        if items > 0 {
                            assert_eq!(few.buffers(), whole.buffers(), "{whole}{few}");
                            assert_eq!(few.tables, whole.tables);
                        }
                        for variant in few.variants() {
                            assert!(whole.variants().contains(variant), "{whole}{few}");
                            let bytes = few.shared_bytes(variant);
                            assert!(bytes <= whole.shared_bytes(variant), "{whole}{few}");
                        }
                    }
                    assert_eq!(whole.of_items(&problem, batch, &limits), whole);
                }
            }
        }
    }
}
