//! Which pipeline, and how.

use crate::cuda::kernel::{Arithmetic, Form, RingRows, ScoreSplits, SplitProduct, Splits};

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
    /// `score_rows` and `score_residual`.
    ScoreRows(ScoreSplits),
    /// `head_fusion` that splits, and `split_product`: one kernel for all levels, or for each the one that fits.
    Tree(Option<SplitProduct>),
    /// `head_fusion` and `rollout_product`.
    Product {
        /// How products are computed.
        arithmetic: Arithmetic,
        /// Which factor a layer is; rows are always [`Form::Rows`], and cumulative outputs [`Form::Matrix`].
        form: Form,
    },
}
