//! Which pipeline, and how.

use std::fmt;

use crate::cuda::kernel::{
    Arithmetic, Exchange, Form, RingMatrix, RingRows, ScoreSets, ScoreSplits, ShortRows,
    SplitProduct, Splits,
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
    /// `matrix_stream`.
    RingMatrix(RingMatrix),
    /// `score_rows` and `score_residual`.
    ScoreRows(ScoreSplits),
    /// `score_stream`.
    ScoreStream(ScoreSets),
    /// `score_short` and `score_residual`.
    ShortRows(ShortRows),
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

/// For people: what it is called, and its choices.
impl fmt::Display for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pipeline::Rows { splits, .. } => match (splits.blocks, splits.clustered) {
                (1, _) => write!(f, "rows, a block to an item"),
                (blocks, true) => write!(f, "rows, a cluster of {blocks} to an item"),
                (blocks, false) => write!(f, "rows, {blocks} blocks to an item"),
            },
            Pipeline::RingRows(RingRows { sets, .. }) => match (sets.blocks, sets.exchange) {
                (1, _) => write!(f, "ring rows, a block to an item"),
                (blocks, Exchange::Cluster) => {
                    write!(f, "ring rows, a cluster of {blocks} to an item")
                }
                (blocks, Exchange::Words) => {
                    write!(f, "ring rows, {blocks} blocks to an item, by words")
                }
            },
            Pipeline::RingMatrix(RingMatrix { kernel, .. }) => {
                let arithmetic = kernel.arithmetic.name();
                match kernel.cluster() {
                    1 => write!(f, "ring matrix, {arithmetic}, a block to an item"),
                    blocks => write!(
                        f,
                        "ring matrix, {arithmetic}, a cluster of {blocks} to an item"
                    ),
                }
            }
            Pipeline::ScoreRows(ScoreSplits { queries, heads }) => {
                write!(
                    f,
                    "score rows, {queries} x {heads} blocks to a tile of keys"
                )
            }
            Pipeline::ScoreStream(sets) => {
                write!(f, "score stream, {} blocks to an item", sets.blocks())
            }
            Pipeline::ShortRows(ShortRows { query_splits, .. }) => {
                write!(f, "short score rows, {query_splits} blocks to a head")
            }
            Pipeline::Tree(None) => write!(f, "tree"),
            Pipeline::Tree(Some(SplitProduct { tile, apart })) => {
                write!(f, "tree, tiles of {tile}")?;
                if *apart {
                    write!(f, ", copied by warps of their own")?;
                }
                Ok(())
            }
            Pipeline::Product { arithmetic, form } => {
                write!(f, "product, {}, {}", arithmetic.name(), form.name())
            }
        }
    }
}
