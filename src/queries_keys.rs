//! Attention that is computed from queries and keys, one layer at a time: what its entries are, and where the tensors lie.

use crate::error::{Error, Result};
use crate::layout::Shape;

/// Head sizes are multiples of this ...
const HEAD_DIM_STEP: usize = 8;

/// ... and at most this.
pub(crate) const MOST_HEAD_DIM: usize = 256;

/// How attention follows from queries and keys: the entry of head `h` from token `i` to token `j` is
///
/// ```text
/// A[h, i, j] = exp(s - lse[h, i])    where    s = cap(scale * q[h, i] . k[g(h), j]) - slope[h] * |i - j|
/// ```
///
/// with `cap(x) = soft_cap * tanh(x / soft_cap)`, and 0 where `j` is masked: outside the item's window, later than `i`
/// where the problem is [causal](crate::RolloutConfig::causal), `sliding_window` tokens or more away. Queries have
/// [`Shape::heads`] heads; each key head `g(h) = h / (heads / key_heads)` serves as many of them (grouped queries).
///
/// `lse` is the logarithm of the sum of `exp(s)` over the keys that are not masked, and over the head's sink where there
/// is one. Masks, slopes, caps and sinks must be those with which the model ran: where the LSE is given they must be in it
/// already, and a run [looks whether they are](QueriesKeys::mass_tolerance).
///
/// What may differ by layer is empty (nothing of it), has the values of one layer, which all share, or those of every
/// layer, one layer after the other.
///
/// ```
/// use attention_rollout::{DType, Layer, Problem, QueriesKeys, RolloutConfig, Shape, cpu};
///
/// // Two heads of queries that share one of keys, in one layer of three tokens.
/// let shape = Shape { layers: 1, batch: 1, heads: 2, tokens: 3 };
/// let problem = Problem::builder(shape, DType::F32)
///     .queries_keys(QueriesKeys { key_heads: 1, ..QueriesKeys::new(&shape, 8) })
///     .build()?;
/// let (queries, keys) = ([0.5_f32; 2 * 3 * 8], [0.0_f32; 3 * 8]);
/// let layer = Layer::QueriesKeys { queries: queries[..].into(), keys: keys[..].into(), lse: None };
/// let mut plan = cpu::Plan::new(&problem, &cpu::Options::default())?;
/// let relevance = plan.run_to_vec(&[layer])?;
/// assert!((relevance[0] - (0.5 + 0.5 / 3.0)).abs() < 1e-6);
/// # Ok::<(), attention_rollout::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct QueriesKeys {
    /// Elements of a query and of a key: a multiple of 8, at most 256.
    pub head_dim: usize,
    /// Heads of the keys, which divide those of the queries.
    pub key_heads: usize,
    /// What products of queries and keys are multiplied by; `None` is `1 / sqrt(head_dim)`.
    pub scale: Option<f32>,
    /// Where the LSE comes from.
    pub lse: Lse,
    /// Where the elements lie, layer by layer; contiguous, heads first, where it is empty.
    pub strides: Vec<QueriesKeysStrides>,
    /// Tokens attend to those less than so many tokens away, themselves included, layer by layer; 0 is all of them. What
    /// Mistral's configuration calls `sliding_window`, to both sides where the problem is not causal.
    pub sliding_windows: Vec<usize>,
    /// Largest absolute scores, layer by layer; 0 is no cap.
    pub soft_caps: Vec<f32>,
    /// By how much scores fall per token of distance (ALiBi), `[heads]` layer by layer.
    pub alibi_slopes: Vec<f32>,
    /// Scores of a key that every query has and that is no token, `[heads]` layer by layer.
    pub sinks: Vec<f32>,
    /// How far sums of relevance may be from what is known of them, relative to it; 1e-3 unless set. `None` lets
    /// everything pass.
    ///
    /// Rows of attention sum to 1, so the sum of a row of relevance is known after every layer, wherever the LSE is given,
    /// heads are fused to their mean or a weighted sum, and nothing is discarded, excluded, normalised or lost to a sink.
    /// Beside it, [`PROBED_ROWS`](QueriesKeys::PROBED_ROWS) rows per head of every layer have a given LSE recomputed; it
    /// may be off by [`PROBE_TOLERANCE`](QueriesKeys::PROBE_TOLERANCE). Together they notice a wrong scale, base or mask,
    /// the LSE of another layer, and queries or keys that were rounded after the model ran
    /// ([`Error::Mass`](crate::Error::Mass), [`Error::Lse`](crate::Error::Lse)). Layers in a wrong order they cannot see, nor
    /// anything where the LSE is recomputed.
    pub mass_tolerance: Option<f32>,
}

/// Where the logarithms of the sums come from by which rows are normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lse {
    /// Every layer has them, f32, as the forward pass returned them, to this base. Where it is infinite, of either sign,
    /// the row is empty.
    Given(LogBase),
    /// They are recomputed; layers have none.
    Recomputed,
}

/// The base of logarithms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogBase {
    /// Natural: PyTorch, flash-attn.
    E,
    /// Base 2: FlashInfer.
    Two,
}

impl LogBase {
    /// The natural logarithm of the base.
    #[cfg(any(feature = "cpu", feature = "cuda"))]
    pub(crate) fn ln(self) -> f64 {
        match self {
            LogBase::E => 1.0,
            LogBase::Two => std::f64::consts::LN_2,
        }
    }
}

/// Strides of a layer's queries, keys and LSE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueriesKeysStrides {
    /// Of the queries `[batch, heads, tokens, head_dim]`.
    pub queries: TokenStrides,
    /// Of the keys `[batch, key_heads, tokens, head_dim]`.
    pub keys: TokenStrides,
    /// Of the LSE `[batch, heads, tokens]`.
    pub lse: TokenStrides,
}

/// Strides of what each token of each head has, in elements. The elements of a query or a key lie side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenStrides {
    /// From one item of the batch to the next.
    pub batch: usize,
    /// From one head to the next.
    pub head: usize,
    /// From one token to the next.
    pub token: usize,
}

impl TokenStrides {
    /// Of a contiguous `[batch, heads, tokens, width]`; the LSE has a `width` of 1.
    pub fn heads_first(heads: usize, tokens: usize, width: usize) -> Self {
        let head = tokens.saturating_mul(width);
        TokenStrides {
            batch: heads.saturating_mul(head),
            head,
            token: width,
        }
    }

    /// Of a contiguous `[batch, tokens, heads, width]`.
    pub fn tokens_first(heads: usize, tokens: usize, width: usize) -> Self {
        let token = heads.saturating_mul(width);
        TokenStrides {
            batch: tokens.saturating_mul(token),
            head: width,
            token,
        }
    }

    /// Where the elements of a token begin.
    pub(crate) fn at(&self, item: usize, head: usize, token: usize) -> usize {
        item * self.batch + head * self.head + token * self.token
    }

    /// Elements from the first to the last, both included; 0 for an empty batch.
    fn span(&self, batch: usize, heads: usize, tokens: usize, width: usize) -> Result<usize> {
        if batch == 0 {
            return Ok(0);
        }
        [
            (batch - 1, self.batch),
            (heads - 1, self.head),
            (tokens - 1, self.token),
        ]
        .into_iter()
        .try_fold(width, |span, (steps, stride)| {
            span.checked_add(steps.checked_mul(stride)?)
        })
        .filter(|&span| span <= isize::MAX as usize / 4)
        .ok_or(Error::SizeOverflow {
            what: "strides times extents",
        })
    }
}

/// Elements that the tensors of a layer reach.
pub(crate) struct Spans {
    pub queries: usize,
    pub keys: usize,
    pub lse: usize,
}

impl QueriesKeys {
    /// Rows per head of a layer whose LSE is probed, over all items; at least 16 of each item, where it has as many.
    pub const PROBED_ROWS: usize = 64;

    /// How far a given LSE may be from a recomputed one.
    pub const PROBE_TOLERANCE: f32 = 1e-2;

    /// Softmax of `q . k / sqrt(head_dim)`, contiguous and heads first, as many heads of keys as of queries, whose LSE is
    /// recomputed.
    pub fn new(shape: &Shape, head_dim: usize) -> Self {
        QueriesKeys {
            head_dim,
            key_heads: shape.heads,
            scale: None,
            lse: Lse::Recomputed,
            strides: Vec::new(),
            sliding_windows: Vec::new(),
            soft_caps: Vec::new(),
            alibi_slopes: Vec::new(),
            sinks: Vec::new(),
            mass_tolerance: Some(1e-3),
        }
    }

    /// What products are multiplied by.
    pub fn scale(&self) -> f32 {
        self.scale
            .unwrap_or_else(|| (1.0 / (self.head_dim as f64).sqrt()) as f32)
    }

    /// Whether layers have an LSE.
    pub fn has_lse(&self) -> bool {
        self.lse != Lse::Recomputed
    }

    /// Strides of `layer` of a problem of this shape.
    pub fn strides(&self, shape: &Shape, layer: usize) -> QueriesKeysStrides {
        let Shape { heads, tokens, .. } = *shape;
        let contiguous = QueriesKeysStrides {
            queries: TokenStrides::heads_first(heads, tokens, self.head_dim),
            keys: TokenStrides::heads_first(self.key_heads, tokens, self.head_dim),
            lse: TokenStrides::heads_first(heads, tokens, 1),
        };
        of_layer(&self.strides, 1, layer)
            .first()
            .copied()
            .unwrap_or(contiguous)
    }

    /// The key head of a query head.
    #[cfg(feature = "cpu")]
    pub(crate) fn key_head(&self, heads: usize, head: usize) -> usize {
        head / (heads / self.key_heads)
    }

    /// From how many tokens away on `layer` masks keys, where it does.
    #[cfg(any(feature = "cpu", feature = "cuda"))]
    pub(crate) fn sliding_window(&self, layer: usize) -> Option<usize> {
        let window = of_layer(&self.sliding_windows, 1, layer).first();
        window.copied().filter(|&window| window != 0)
    }

    /// The cap of the scores of `layer`, where it has one.
    #[cfg(any(feature = "cpu", feature = "cuda"))]
    pub(crate) fn soft_cap(&self, layer: usize) -> Option<f32> {
        let cap = of_layer(&self.soft_caps, 1, layer).first();
        cap.copied().filter(|&cap| cap != 0.0)
    }

    /// The slope of a head; 0 where it has none.
    #[cfg(any(feature = "cpu", feature = "cuda"))]
    pub(crate) fn slope(&self, heads: usize, layer: usize, head: usize) -> f32 {
        let slopes = of_layer(&self.alibi_slopes, heads, layer);
        slopes.get(head).copied().unwrap_or(0.0)
    }

    /// The score of a head's sink, where it has one.
    #[cfg(any(feature = "cpu", feature = "cuda"))]
    pub(crate) fn sink(&self, heads: usize, layer: usize, head: usize) -> Option<f32> {
        of_layer(&self.sinks, heads, layer).get(head).copied()
    }

    /// Elements that the tensors of `layer` reach.
    pub(crate) fn spans(&self, shape: &Shape, layer: usize) -> Result<Spans> {
        let Shape {
            batch,
            heads,
            tokens,
            ..
        } = *shape;
        let strides = self.strides(shape, layer);
        let (keys, dim) = (self.key_heads, self.head_dim);
        Ok(Spans {
            queries: strides.queries.span(batch, heads, tokens, dim)?,
            keys: strides.keys.span(batch, keys, tokens, dim)?,
            lse: strides.lse.span(batch, heads, tokens, 1)?,
        })
    }

    /// Checks the description against the extents of a problem.
    pub(crate) fn check(&self, shape: &Shape) -> Result<()> {
        let &Shape { layers, heads, .. } = shape;
        let is_size = (HEAD_DIM_STEP..=MOST_HEAD_DIM).contains(&self.head_dim)
            && self.head_dim.is_multiple_of(HEAD_DIM_STEP);
        if !is_size {
            return Err(Error::Parameter {
                what: "the head size",
                expected: "a multiple of 8, from 8 to 256",
                got: self.head_dim as f64,
            });
        }
        if self.key_heads == 0 || !heads.is_multiple_of(self.key_heads) {
            return Err(Error::KeyHeads {
                heads,
                got: self.key_heads,
            });
        }
        per_layer("strides", layers, 1, self.strides.len())?;
        per_layer("sliding windows", layers, 1, self.sliding_windows.len())?;
        per_layer("soft caps", layers, 1, self.soft_caps.len())?;
        per_layer("ALiBi slopes", layers, heads, self.alibi_slopes.len())?;
        per_layer("sinks", layers, heads, self.sinks.len())?;
        let numbers = [
            ("the scale", &self.scale.map_or(Vec::new(), |s| vec![s])),
            ("a soft cap", &self.soft_caps),
            ("an ALiBi slope", &self.alibi_slopes),
            ("a sink", &self.sinks),
        ];
        for (what, values) in numbers {
            if let Some(&got) = values.iter().find(|value| !value.is_finite()) {
                return Err(Error::Parameter {
                    what,
                    expected: "finite",
                    got: got.into(),
                });
            }
        }
        let not_negative = [
            (
                "a soft cap",
                self.soft_caps.iter().copied().reduce(f32::min),
            ),
            ("the mass tolerance", self.mass_tolerance),
        ];
        for (what, least) in not_negative {
            if let Some(got) = least.filter(|least| least.is_nan() || *least < 0.0) {
                return Err(Error::Parameter {
                    what,
                    expected: "at least 0",
                    got: got.into(),
                });
            }
        }
        (0..layers.min(self.strides.len().max(1)))
            .try_for_each(|layer| self.spans(shape, layer).map(|_| ()))
    }
}

/// The values of `layer` among those of all layers, `width` of each; those that all share, or none.
fn of_layer<T>(values: &[T], width: usize, layer: usize) -> &[T] {
    match values.len() {
        len if len <= width => values,
        _ => &values[layer * width..][..width],
    }
}

/// Checks that there are no values, `width` that all layers share, or `width` for each.
fn per_layer(what: &'static str, layers: usize, width: usize, got: usize) -> Result<()> {
    if got == 0 || got == width || Some(got) == layers.checked_mul(width) {
        return Ok(());
    }
    Err(Error::PerLayer {
        what,
        width,
        layers,
        got,
    })
}
