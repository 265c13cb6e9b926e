//! The pipelines that a problem can be computed by, each as a list of launches.
//!
//! - rows: `rollout_rows`, up to 8 start rows, one pass over the maps from the last layer to the first;
//! - ring rows: `rows_stream`, the same through a ring in shared memory that runs ahead across layers;
//! - chain: `rollout_chain`, the matrix of short windows, one block per item;
//! - product: `head_fusion`, then `rollout_product` layer by layer, anything.
//!
//! Discard selects over whole fused maps, and a row without excluded tokens is divided by its sum, so with either the first
//! three read fused maps instead of the caller's; and so does, with gradients, what has no variant that weighs by them.

mod builder;
mod one_pass;
mod product;
mod ring_rows;
mod streaming;
mod tables;

use super::kernel::{Arithmetic, Form, RingRows, Splits, padded};
use super::limits::DeviceLimits;
use super::schedule::Schedule;
use crate::problem::Problem;

use builder::Builder;

pub(super) use builder::{
    Common, chain_reads_fused, cuts_when_read, operands, output_len, rows_read_fused,
};

/// A pipeline with its open choices made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pipeline {
    /// `rollout_rows`.
    Rows {
        /// Start rows that the kernel holds.
        rows: u32,
        /// How each layer's rows are divided.
        splits: Splits,
    },
    /// `rows_stream`.
    RingRows(RingRows),
    /// `rollout_chain`.
    Chain {
        /// How products are computed.
        arithmetic: Arithmetic,
        /// The most tokens that the kernel takes.
        tokens: u32,
    },
    /// `head_fusion` and `rollout_product`.
    Product {
        /// How products are computed.
        arithmetic: Arithmetic,
        /// Which factor a layer is; rows are always [`Form::Rows`], and cumulative outputs [`Form::Matrix`].
        form: Form,
    },
}

impl Pipeline {
    /// The schedule of `batch` items of `problem` at a time. The tables are those of all items.
    pub fn schedule(self, problem: &Problem, batch: usize, limits: &DeviceLimits) -> Schedule {
        let mut builder = self.builder(problem, batch, limits);
        if batch == 0 || builder.common.window_len == 0 {
            builder.zero_output();
            return builder.finish();
        }
        match self {
            Pipeline::Rows { rows, splits } => builder.rows_of_batch(rows, splits),
            Pipeline::RingRows(ring_rows) => builder.ring_rows_of_batch(ring_rows),
            Pipeline::Chain { arithmetic, tokens } => builder.chain_of_batch(arithmetic, tokens),
            Pipeline::Product { arithmetic, form } => builder.product(arithmetic, form),
        }
        builder.finish()
    }

    /// The schedule of `problem` when its layers are pushed one by one, in forward order.
    pub(super) fn streaming(self, problem: &Problem, limits: &DeviceLimits) -> Schedule {
        let mut builder = self.builder(problem, problem.shape().batch, limits);
        builder.streaming(self);
        builder.finish()
    }

    fn builder<'a>(
        self,
        problem: &'a Problem,
        batch: usize,
        limits: &'a DeviceLimits,
    ) -> Builder<'a> {
        let tokens = problem.shape().tokens;
        let start_stride = match self {
            // A state like any other.
            Pipeline::Product { .. } => padded(tokens),
            Pipeline::Rows { .. } | Pipeline::RingRows(_) | Pipeline::Chain { .. } => tokens,
        };
        Builder::new(problem, batch, limits, start_stride)
    }
}
