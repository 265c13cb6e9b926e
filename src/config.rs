//! What to compute: the meaning of a rollout, apart from shapes and machines.

use std::ops::Range;

use crate::error::{Error, Result};
pub use crate::fusion::{GradientRule, HeadFusion};

/// What to compute. The default is PyHealth's rollout: mean over heads, `0.5 (A + I)`, all layers, row 0.
///
/// # Entries that are not finite
/// A NaN or an infinity inside a window makes what it takes part in NaN or infinite, and no more is promised: a form may
/// skip a row, or a layer, that carries weight 0 (the definition multiplies, and `0 * NaN` is NaN), the causal forms never
/// load what lies above the diagonal, and f32 overflows where f64 does not. So backends may differ in which elements are finite.
/// [`validate()`](crate::validate()) and [`first_not_finite`](crate::first_not_finite) find the first such entry. What
/// lies outside the windows never matters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RolloutConfig {
    /// How the heads of a layer become one map.
    pub head_fusion: HeadFusion,
    /// Weigh the maps by their gradients; `None` takes them as they are.
    pub gradients: Option<GradientRule>,
    /// `a` and `b` of `a * fused + b * I`.
    pub residual: ResidualWeights,
    /// Divide each row of `a * fused + b * I` by its sum; a row whose sum is 0 becomes 0.
    pub normalize_rows: bool,
    /// Zero the smallest entries of the fused map, before the residual.
    pub discard: Option<Discard>,
    /// Tokens that nothing shall attend to (sinks, registers, newlines), counted from the start of each item's window.
    /// After discard and before the residual their columns of the fused map are zeroed and each row is divided by the sum
    /// of what is left; a row of which nothing is left becomes 0. Of an item whose window has none of these tokens, rows are divided all
    /// the same.
    pub exclude_from_attention: Vec<usize>,
    /// Layers to multiply, `start..end`; `None` is all of them.
    pub layers: Option<Range<usize>>,
    /// The caller promises `A[i, j] = 0` for `j > i`; those entries are never loaded.
    pub causal: bool,
    /// What comes out.
    pub output: Output,
}

/// Weights of the attention and of the identity in `Ahat = attention * fused + identity * I`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Residual {
    /// Weight `a` of the fused attention map.
    pub attention: f32,
    /// Weight `b` of the identity (the residual connection).
    pub identity: f32,
}

impl Residual {
    /// Weights `attention` and `identity`.
    pub const fn new(attention: f32, identity: f32) -> Self {
        Residual {
            attention,
            identity,
        }
    }
}

impl Default for Residual {
    /// One half each, as in Abnar & Zuidema 2020, section 3.
    fn default() -> Self {
        Residual::new(0.5, 0.5)
    }
}

/// Residual weights of all layers.
#[derive(Clone, Debug, PartialEq)]
pub enum ResidualWeights {
    /// The same in every layer.
    Uniform(Residual),
    /// One pair per layer of the problem (also of layers outside the range).
    PerLayer(Vec<Residual>),
}

impl Default for ResidualWeights {
    fn default() -> Self {
        ResidualWeights::Uniform(Residual::default())
    }
}

/// Zero the `floor(ratio * n)` smallest of the `n` entries in scope of each item's fused map.
///
/// Ties at the threshold: the lower row-major index is zeroed first. `-0` equals `0`; NaN is larger than everything.
/// Items never influence each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Discard {
    /// Share of the entries to zero, `0 <= ratio < 1`.
    pub ratio: f64,
    /// Which entries take part.
    pub scope: DiscardScope,
}

impl Discard {
    /// Discards the share `ratio` of the entries in `scope`.
    ///
    /// # Errors
    /// [`Error::Parameter`] where `ratio` is not at least 0 and less than 1.
    pub fn new(ratio: f64, scope: DiscardScope) -> Result<Self> {
        if (0.0..1.0).contains(&ratio) {
            return Ok(Discard { ratio, scope });
        }
        Err(Error::Parameter {
            what: "discard ratio",
            expected: "at least 0 and less than 1",
            got: ratio,
        })
    }
}

/// Which entries of a fused map take part in [`Discard`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscardScope {
    /// All entries of the item's window. The entry (first, first) counts and may be among the smallest, but is
    /// never zeroed (what vit-explain intends: attention of the CLS token to itself).
    Map,
    /// Only the block without the first `special_tokens` rows and columns of the window.
    Patches {
        /// Leading tokens that are not patches (CLS, distillation, registers); at most all tokens of the problem.
        special_tokens: usize,
    },
}

impl DiscardScope {
    /// The first token of a window that takes part.
    pub const fn first(self) -> usize {
        match self {
            DiscardScope::Map => 0,
            DiscardScope::Patches { special_tokens } => special_tokens,
        }
    }

    /// Whether the entry (first, first) is never zeroed.
    pub const fn spares_origin(self) -> bool {
        matches!(self, DiscardScope::Map)
    }
}

/// What a rollout returns. All outputs are f32 and 0 outside the windows.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Relevance `r = s R` for start rows `s`: `[batch, tokens]` for one start row, else `[batch, rows, tokens]`.
    Rows(StartRows),
    /// The rollout `R = Ahat_L ... Ahat_1`: `[batch, tokens, tokens]`.
    Matrix,
    /// The rollout after each layer of the range: `[layers, batch, tokens, tokens]`.
    Cumulative,
}

impl Default for Output {
    /// Row 0, where BERT and ViT keep their CLS token.
    fn default() -> Self {
        Output::Rows(StartRows::Rows(vec![0]))
    }
}

/// Start distributions over output tokens. All indices count from the start of the item's window.
#[derive(Clone, Debug, PartialEq)]
pub enum StartRows {
    /// These rows of the rollout, the same for each item.
    Rows(Vec<usize>),
    /// As many rows for each item, `[batch]` or `[batch, rows]`, row-major.
    PerItem(Vec<usize>),
    /// The last valid token of each item.
    Last,
    /// The mean over all valid tokens of each item.
    Mean,
    /// Any weights, `[rows, tokens]` shared by the items or `[batch, rows, tokens]`. Weights beyond an item's
    /// window are ignored.
    Weights {
        /// Start rows per item.
        rows: usize,
        /// The weights, row-major.
        weights: Vec<f32>,
    },
}

impl StartRows {
    /// How many start rows each item of `batch` has where `rows` are those of all items; at least one.
    pub(crate) fn per_item(rows: &[usize], batch: usize) -> usize {
        rows.len().checked_div(batch).unwrap_or(1).max(1)
    }
}
