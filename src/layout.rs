//! Where the elements of a layer's attention maps lie: extents, strides and windows of valid tokens.

use crate::error::{Error, Result};

/// Extents of one problem: `layers` attention tensors `[batch, heads, tokens, tokens]`.
///
/// A batch of 0 is a valid, empty problem; the other extents are at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Layers, first to last.
    pub layers: usize,
    /// Items of the batch.
    pub batch: usize,
    /// Heads of a layer; 1 where they are fused already.
    pub heads: usize,
    /// Tokens: rows (queries) and columns (keys) of a map.
    pub tokens: usize,
}

impl Shape {
    /// Checks that layers, heads and tokens are not zero and that the whole problem can be addressed.
    ///
    /// # Errors
    /// [`Error::ZeroExtent`], [`Error::SizeOverflow`].
    pub fn validate(&self) -> Result<()> {
        for (what, extent) in [
            ("layers", self.layers),
            ("heads", self.heads),
            ("tokens", self.tokens),
        ] {
            if extent == 0 {
                return Err(Error::ZeroExtent { what });
            }
        }
        // The largest things ever indexed: all maps of all layers, and a cumulative f32 output. An empty batch has
        // none, but what is kept per layer must still have room.
        let batch = self.batch.max(1);
        for what in [
            product(
                "attention maps",
                &[self.layers, batch, self.heads, self.tokens, self.tokens, 4],
            )?,
            product(
                "rollout",
                &[self.layers, batch, self.tokens, self.tokens, 4],
            )?,
        ] {
            if what > isize::MAX as usize {
                return Err(Error::SizeOverflow {
                    what: "attention maps",
                });
            }
        }
        Ok(())
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shape {
            layers,
            batch,
            heads,
            tokens,
        } = self;
        write!(
            f,
            "{layers} layers of [{batch}, {heads}, {tokens}, {tokens}]"
        )
    }
}

/// The product of `factors`, or [`Error::SizeOverflow`].
pub(crate) fn product(what: &'static str, factors: &[usize]) -> Result<usize> {
    factors
        .iter()
        .try_fold(1usize, |product, &factor| product.checked_mul(factor))
        .ok_or(Error::SizeOverflow { what })
}

/// Strides of one layer, in elements. The last axis (keys) always has stride 1.
///
/// Strides of 0 repeat an axis; a head stride of 0 over several heads reads one map as all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Strides {
    /// From one item of the batch to the next.
    pub batch: usize,
    /// From one head to the next.
    pub head: usize,
    /// From one query row to the next.
    pub row: usize,
}

impl Strides {
    /// Strides of a contiguous `[batch, heads, tokens, tokens]` tensor (and so of `[batch * heads, tokens,
    /// tokens]`, and with one head of `[batch, tokens, tokens]`).
    pub fn contiguous(shape: &Shape) -> Self {
        let head = shape.tokens.saturating_mul(shape.tokens);
        Strides {
            batch: shape.heads.saturating_mul(head),
            head,
            row: shape.tokens,
        }
    }

    /// The strides of a tensor of these extents, outermost axis first, that a layer can be read from where it lies:
    /// `[batch, heads, tokens, tokens]`, or `[batch, tokens, tokens]` with heads that are fused already. Both in elements,
    /// as every framework tells them.
    ///
    /// ```
    /// use attention_rollout::Strides;
    ///
    /// // A slice of a tensor [batch, layers, heads, tokens, tokens]: 2 of 8 layers apart, 4 heads, 5 tokens.
    /// let strides = Strides::of(&[2, 4, 5, 5], &[8 * 4 * 25, 25, 5, 1])?;
    /// assert_eq!((strides.batch, strides.head, strides.row), (800, 25, 5));
    /// let transposed = Strides::of(&[2, 4, 5, 5], &[100, 25, 1, 5]).unwrap_err();
    /// assert!(transposed.to_string().contains("axis 3 must be contiguous"));
    /// # Ok::<(), attention_rollout::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] where there are not 3 or 4 axes, or a map is not square; [`Error::Count`] where there is not one
    /// stride per axis; [`Error::AxisStride`] where the last axis is not contiguous.
    pub fn of(shape: &[usize], strides: &[usize]) -> Result<Self> {
        let expected = "[batch, heads, tokens, tokens] or [batch, tokens, tokens]";
        let wrong = || Error::Shape {
            what: "the extents of a layer",
            expected: expected.to_owned(),
            got: shape.to_vec(),
        };
        let (rows, columns) = match *shape {
            [_, _, rows, columns] | [_, rows, columns] => (rows, columns),
            _ => return Err(wrong()),
        };
        if rows != columns {
            return Err(wrong());
        }
        let (of, column) = match *strides {
            [batch, head, row, column] if shape.len() == 4 => {
                (Strides { batch, head, row }, column)
            }
            [batch, row, column] if shape.len() == 3 => {
                let head = 0;
                (Strides { batch, head, row }, column)
            }
            _ => {
                return Err(Error::Count {
                    what: "strides, one per axis",
                    expected: shape.len(),
                    got: strides.len(),
                });
            }
        };
        // Where there is but one column, nothing lies beside it.
        if column != 1 && columns > 1 {
            return Err(Error::AxisStride {
                axis: shape.len() - 1,
                got: column,
            });
        }
        Ok(of)
    }

    /// Number of elements from the first to the last one that `shape` reaches, both included; 0 for an empty batch.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`] where the last element cannot be addressed.
    pub fn span(&self, shape: &Shape) -> Result<usize> {
        if shape.batch == 0 {
            return Ok(0);
        }
        let what = "strides times extents";
        [
            (shape.batch - 1, self.batch),
            (shape.heads - 1, self.head),
            (shape.tokens - 1, self.row),
        ]
        .into_iter()
        .try_fold(shape.tokens, |span, (steps, stride)| {
            span.checked_add(steps.checked_mul(stride)?)
        })
        .filter(|&span| span <= isize::MAX as usize / 4)
        .ok_or(Error::SizeOverflow { what })
    }
}

/// The valid tokens of one item: `start .. start + len`. Everything outside is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// First valid token.
    pub start: usize,
    /// Number of valid tokens.
    pub len: usize,
}

impl Window {
    /// The window that holds all `tokens`.
    pub const fn full(tokens: usize) -> Self {
        Window {
            start: 0,
            len: tokens,
        }
    }

    /// One past the last valid token.
    pub const fn end(&self) -> usize {
        self.start + self.len
    }

    /// One window per item from an attention mask `[batch, tokens]`, `true` where a token is valid.
    ///
    /// An item without a valid token gets an empty window.
    ///
    /// # Errors
    /// [`Error::Len`] where `mask` is not `batch * tokens` long; [`Error::MaskGap`], naming the item, where the
    /// valid tokens of an item are not one contiguous run.
    pub fn from_mask(mask: &[bool], batch: usize, tokens: usize) -> Result<Vec<Window>> {
        let expected = product("attention mask", &[batch, tokens])?;
        if tokens == 0 {
            return Err(Error::ZeroExtent { what: "tokens" });
        }
        if mask.len() != expected {
            return Err(Error::Len {
                what: "attention mask",
                expected,
                got: mask.len(),
            });
        }
        mask.chunks_exact(tokens)
            .enumerate()
            .map(|(item, valid)| {
                let Some(start) = valid.iter().position(|&v| v) else {
                    return Ok(Window { start: 0, len: 0 });
                };
                let len = valid[start..].iter().take_while(|&&v| v).count();
                match valid[start + len..].iter().position(|&v| v) {
                    Some(gap) => Err(Error::MaskGap {
                        item,
                        token: start + len + gap,
                    }),
                    None => Ok(Window { start, len }),
                }
            })
            .collect()
    }
}
