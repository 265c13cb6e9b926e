//! A rollout problem: a configuration together with the shape, element type, strides and windows of its maps.
//! Once built it is valid; every backend takes it as it is.

mod builder;
mod check;
#[cfg(any(feature = "cpu", feature = "cuda"))]
mod mass;
#[cfg(any(feature = "cpu", feature = "cuda"))]
mod run_inputs;

use std::ops::Range;

use crate::config::{HeadFusion, Output, Residual, ResidualWeights, RolloutConfig, StartRows};
use crate::dtype::DType;
use crate::error::Result;
use crate::layout::{Shape, Strides, Window};
use crate::queries_keys::QueriesKeys;

pub use builder::ProblemBuilder;
#[cfg(any(feature = "cpu", feature = "cuda"))]
pub(crate) use mass::Mass;

/// A validated rollout problem.
///
/// ```
/// use attention_rollout::{DType, Problem, RolloutConfig, Shape};
///
/// let shape = Shape { layers: 12, batch: 8, heads: 12, tokens: 197 };
/// let problem = Problem::new(shape, DType::F32, RolloutConfig::default())?;
/// assert_eq!(problem.output_shape(), [8, 197]);
/// # Ok::<(), attention_rollout::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    shape: Shape,
    dtype: DType,
    config: RolloutConfig,
    strides: Vec<Strides>,
    /// Where attention is computed from queries and keys.
    queries_keys: Option<QueriesKeys>,
    windows: Vec<Window>,
    /// The longest window that a run may be given; none where every run has all tokens.
    max_window: Option<usize>,
    layers: Range<usize>,
}

impl Problem {
    /// A problem over contiguous `[batch, heads, tokens, tokens]` maps whose tokens are all valid.
    ///
    /// # Errors
    /// As [`ProblemBuilder::build`].
    pub fn new(shape: Shape, dtype: DType, config: RolloutConfig) -> Result<Self> {
        Problem::builder(shape, dtype).config(config).build()
    }

    /// Starts a problem over maps of `dtype` with these extents.
    pub fn builder(shape: Shape, dtype: DType) -> ProblemBuilder {
        ProblemBuilder::new(shape, dtype)
    }

    /// Extents of the maps.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Element type of the maps.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// What to compute; without a discard whose ratio is 0, and with excluded tokens in ascending order, each once.
    pub fn config(&self) -> &RolloutConfig {
        &self.config
    }

    /// How attention follows from queries and keys, where it does.
    pub fn queries_keys(&self) -> Option<&QueriesKeys> {
        self.queries_keys.as_ref()
    }

    /// How far sums of relevance may be from what is known of them, relative to it; `None` where nothing is known
    /// ([`QueriesKeys::mass_tolerance`] says when), or nobody shall look.
    pub fn mass_tolerance(&self) -> Option<f32> {
        let RolloutConfig {
            head_fusion,
            normalize_rows,
            discard,
            exclude_from_attention,
            ..
        } = &self.config;
        let source = self.queries_keys()?;
        let is_known = source.has_lse()
            && source.sinks.is_empty()
            && matches!(head_fusion, HeadFusion::Mean | HeadFusion::Weighted(_))
            && !normalize_rows
            && discard.is_none()
            && exclude_from_attention.is_empty();
        source.mass_tolerance.filter(|_| is_known)
    }

    /// Strides of `layer`, of maps.
    pub fn strides(&self, layer: usize) -> &Strides {
        &self.strides[layer]
    }

    /// Windows of valid tokens, one per item.
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// The longest window that a run may be given; none where every run has all tokens, because the problem was made
    /// without windows.
    pub fn max_window(&self) -> Option<usize> {
        self.max_window
    }

    /// The layers that are multiplied.
    pub fn layers(&self) -> Range<usize> {
        self.layers.clone()
    }

    /// Residual weights of `layer`.
    pub fn residual(&self, layer: usize) -> Residual {
        match &self.config.residual {
            ResidualWeights::Uniform(residual) => *residual,
            ResidualWeights::PerLayer(residuals) => residuals[layer],
        }
    }

    /// Start rows per item (`M`); 0 where the output is a matrix.
    pub fn start_rows(&self) -> usize {
        match &self.config.output {
            Output::Rows(StartRows::Rows(rows)) => rows.len(),
            Output::Rows(StartRows::PerItem(rows)) => StartRows::per_item(rows, self.shape.batch),
            Output::Rows(StartRows::Weights { rows, .. }) => *rows,
            Output::Rows(StartRows::Last | StartRows::Mean) => 1,
            Output::Matrix | Output::Cumulative => 0,
        }
    }

    /// Writes start row `row` of `item` into `weights`, one weight per valid token of the item's window.
    ///
    /// # Panics
    /// Where `weights` is not as long as the item's window, or the output has no such start row.
    pub fn start_weights(&self, item: usize, row: usize, weights: &mut [f32]) {
        let Output::Rows(rows) = &self.config.output else {
            panic!("the output has no start rows");
        };
        let len = self.windows[item].len;
        assert_eq!(weights.len(), len, "one weight per valid token");
        weights.fill(0.0);
        if len == 0 {
            return;
        }
        match rows {
            StartRows::Rows(rows) => weights[rows[row]] = 1.0,
            StartRows::PerItem(rows) => weights[rows[item * self.start_rows() + row]] = 1.0,
            StartRows::Last => weights[len - 1] = 1.0,
            StartRows::Mean => weights.fill(1.0 / len as f32),
            StartRows::Weights { rows, weights: all } => {
                let tokens = self.shape.tokens;
                let shared = all.len() == rows * tokens;
                let first = if shared { row } else { item * rows + row };
                weights.copy_from_slice(&all[first * tokens..][..len]);
            }
        }
    }

    /// How many of the smallest entries of `item`'s fused map the [discard](crate::Discard) takes; 0 without it.
    pub fn discard_count(&self, item: usize) -> usize {
        self.discard_count_of(self.windows[item].len)
    }

    /// The same of a window of `len` tokens.
    pub(crate) fn discard_count_of(&self, len: usize) -> usize {
        let Some(discard) = self.config.discard else {
            return 0;
        };
        let side = len.saturating_sub(discard.scope.first());
        (discard.ratio * (side * side) as f64).floor() as usize
    }

    /// Shape of the output: `[batch, tokens]` for one start row, `[batch, rows, tokens]` for more,
    /// `[batch, tokens, tokens]` or `[layers, batch, tokens, tokens]`.
    pub fn output_shape(&self) -> Vec<usize> {
        let (extents, rank) = self.output_extents();
        extents[extents.len() - rank..].to_vec()
    }

    /// Elements of the output.
    pub fn output_len(&self) -> usize {
        self.output_extents().0.iter().product()
    }

    /// Extents of the output behind leading ones, and how many of them are its own.
    fn output_extents(&self) -> ([usize; 4], usize) {
        let Shape { batch, tokens, .. } = self.shape;
        match &self.config.output {
            Output::Rows(_) if self.start_rows() == 1 => ([1, 1, batch, tokens], 2),
            Output::Rows(_) => ([1, batch, self.start_rows(), tokens], 3),
            Output::Matrix => ([1, batch, tokens, tokens], 3),
            Output::Cumulative => ([self.layers.len(), batch, tokens, tokens], 4),
        }
    }

    /// Bytes of map elements, and of as many gradients where they take part, that any evaluation must read at least once:
    /// the windows, of the triangle where the maps are causal, up to the last start row, and of the last layer only rows that
    /// carry start weight. Of queries, keys and LSE those inside the windows.
    pub fn map_bytes(&self) -> usize {
        let Shape { heads, .. } = self.shape;
        if let Some(source) = &self.queries_keys {
            let tokens: usize = self.windows.iter().map(|window| window.len).sum();
            let elements = (heads + source.key_heads) * source.head_dim;
            let lse = usize::from(source.has_lse()) * heads * size_of::<f32>();
            return self.layers.len() * tokens * (elements * self.dtype.size_bytes() + lse);
        }
        let mut elements = 0;
        for (item, window) in self.windows.iter().enumerate() {
            let rows = |count: usize| match self.config.causal {
                true => count * (count + 1) / 2,
                false => count * window.len,
            };
            let all = rows(window.len);
            // Discard selects over the whole map, so it reads the rows without weight too.
            let (others, last) = match self.config.output {
                Output::Rows(_) if self.config.discard.is_none() => {
                    let carry = self.rows_that_carry(item);
                    let end = carry.last().map_or(0, |&row| row + 1);
                    let others = if self.config.causal { rows(end) } else { all };
                    (others, carry.iter().map(|&i| rows(i + 1) - rows(i)).sum())
                }
                _ => (all, all),
            };
            elements += heads * (others * (self.layers.len() - 1) + last);
        }
        let operands = 1 + usize::from(self.config.gradients.is_some());
        elements * operands * self.dtype.size_bytes()
    }

    /// The rows of an item's window that carry start weight, in order.
    fn rows_that_carry(&self, item: usize) -> Vec<usize> {
        let len = self.windows[item].len;
        let mut carries = vec![false; len];
        let mut weights = vec![0.0; len];
        for row in 0..self.start_rows() {
            self.start_weights(item, row, &mut weights);
            for (carries, &weight) in carries.iter_mut().zip(&weights) {
                *carries |= weight != 0.0;
            }
        }
        (0..len).filter(|&row| carries[row]).collect()
    }

    /// The largest absolute value that an entry of the rollout or of a fused map can reach, on the way too, if every
    /// row of every head is a probability distribution. Infinite where the maps are weighed by gradients.
    ///
    /// A layer multiplies the largest row sum by at most `|a| f + |b|`, where `f` is 1 for the mean and the smallest
    /// head, the number of heads for the largest, and the sum of the absolute weights for a weighted sum. With row
    /// normalisation and no negative weight, rows sum to 1 whatever the weights are. Backends whose arithmetic has a
    /// narrow range (f16) ask this before they use it.
    pub fn growth_bound(&self) -> f64 {
        if self.config.gradients.is_some() {
            return f64::INFINITY;
        }
        let (fused, negative) = match &self.config.head_fusion {
            HeadFusion::Mean | HeadFusion::Min => (1.0, false),
            HeadFusion::Max => (self.shape.heads as f64, false),
            HeadFusion::Weighted(weights) => (
                weights.iter().map(|&w| f64::from(w).abs()).sum(),
                weights.iter().any(|&w| w < 0.0),
            ),
        };
        let entry = match self.config.head_fusion {
            HeadFusion::Max => 1.0,
            _ => fused,
        };
        let mut largest = f64::max(1.0, entry);
        // What is left of a row is divided by its sum, which may be arbitrarily close to 0 where entries are negative.
        let (fused, entry) = match (self.config.exclude_from_attention.is_empty(), negative) {
            (true, _) => (fused, entry),
            (false, false) => (1.0, 1.0),
            (false, true) => (f64::INFINITY, f64::INFINITY),
        };
        let mut rollout = 1.0;
        for residual in self.layers().map(|layer| self.residual(layer)) {
            let negative = negative || residual.attention < 0.0 || residual.identity < 0.0;
            let (a, b) = (
                f64::from(residual.attention).abs(),
                f64::from(residual.identity).abs(),
            );
            let layer = match (self.config.normalize_rows, negative) {
                (true, false) => 1.0,
                // The sum that a row is divided by may be arbitrarily close to 0.
                (true, true) => f64::INFINITY,
                (false, _) => a * fused + b,
            };
            // Of all layers from any one on: they may be multiplied in any order.
            rollout = f64::max(rollout, 1.0) * layer;
            largest = largest.max(rollout).max(a * entry + b);
        }
        largest
    }

    /// The same problem over contiguous tensors.
    #[cfg(feature = "cuda")]
    pub(crate) fn contiguous(mut self) -> Problem {
        self.strides.fill(Strides::contiguous(&self.shape));
        if let Some(source) = &mut self.queries_keys {
            source.strides.clear();
        }
        self
    }

    /// The same problem with other windows, one per item, each within the tokens.
    #[cfg(feature = "cuda")]
    pub(crate) fn with_windows(mut self, windows: Vec<Window>) -> Problem {
        debug_assert_eq!(windows.len(), self.shape.batch);
        self.windows = windows;
        self
    }

    /// Tokens of the longest window that a run may have.
    #[cfg(any(feature = "cpu", feature = "cuda"))]
    pub(crate) fn longest_window(&self) -> usize {
        self.max_window.unwrap_or(self.shape.tokens)
    }

    /// The same problem over the items `items` alone.
    ///
    /// # Panics
    /// Where `items` leaves the batch.
    pub fn slice_batch(&self, items: Range<usize>) -> Problem {
        let mut part = self.clone();
        part.windows = self.windows[items.clone()].to_vec();
        part.shape.batch = items.len();
        match &mut part.config.output {
            Output::Rows(StartRows::PerItem(rows)) => {
                let count = self.start_rows();
                *rows = rows[items.start * count..items.end * count].to_vec();
            }
            Output::Rows(StartRows::Weights { rows, weights })
                if weights.len() != *rows * self.shape.tokens =>
            {
                let item = *rows * self.shape.tokens;
                *weights = weights[items.start * item..items.end * item].to_vec();
            }
            _ => {}
        }
        part
    }
}
