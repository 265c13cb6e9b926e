//! A layer: the tensors that its source of attention has, wherever they lie.
//!
//! What only asks where, how long and of what type the tensors are goes through [`Layer::operands`] and need not know the
//! source. What computes takes the arms apart, so that the compiler points at all of it when a source is added.

use std::convert::Infallible;

use crate::dtype::{DType, Element, with_element};
use crate::error::{Error, Result};
use crate::problem::Problem;

/// One layer, of tensors `T`.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Layer<T> {
    /// Post-softmax attention, `[batch, heads, tokens, tokens]`, laid out by the problem's
    /// [`Strides`](crate::Strides).
    Maps(T),
    /// Attention and the gradients by which it is weighed, as
    /// [`RolloutConfig::gradients`](crate::RolloutConfig::gradients) says: both of the problem's element type, and laid
    /// out by the same strides.
    Gradients {
        /// Post-softmax attention.
        maps: T,
        /// Derivatives of a score with respect to each entry of `maps`.
        gradients: T,
    },
    /// Queries and keys, after whatever the model does to them (rotary embedding, normalisation), of the problem's element
    /// type, laid out as [`QueriesKeys`](crate::QueriesKeys) says.
    QueriesKeys {
        /// `[batch, heads, tokens, head_dim]`.
        queries: T,
        /// `[batch, key_heads, tokens, head_dim]`.
        keys: T,
        /// `[batch, heads, tokens]`, f32, where it is given.
        lse: Option<T>,
    },
}

/// One layer in host memory. `From` makes it from the maps: `&[f32]`, `&[f16]` or `&[bf16]`.
pub type HostLayer<'a> = Layer<HostTensor<'a>>;

impl<T> Layer<T> {
    /// What the tensors are, in words.
    pub fn source(&self) -> &'static str {
        match self {
            Layer::Maps(_) => "maps",
            Layer::Gradients { .. } => "maps and gradients",
            Layer::QueriesKeys { lse: None, .. } => "queries and keys",
            Layer::QueriesKeys { lse: Some(_), .. } => "queries, keys and LSE",
        }
    }

    /// The tensors, in the order of their names in the arms.
    pub fn operands(&self) -> impl Iterator<Item = &T> {
        let operands = match self {
            Layer::Maps(maps) => [Some(maps), None, None],
            Layer::Gradients { maps, gradients } => [Some(maps), Some(gradients), None],
            Layer::QueriesKeys { queries, keys, lse } => [Some(queries), Some(keys), lse.as_ref()],
        };
        operands.into_iter().flatten()
    }

    /// The layer of what `make` makes of each tensor.
    pub fn map<'s, U>(&'s self, mut make: impl FnMut(&'s T) -> U) -> Layer<U> {
        let made: Result<_, Infallible> = self.try_map(|tensor| Ok(make(tensor)));
        match made {
            Ok(layer) => layer,
            Err(never) => match never {},
        }
    }

    /// As [`map`](Layer::map), up to the first tensor of which nothing can be made.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn try_map<'s, U, E>(
        &'s self,
        mut make: impl FnMut(&'s T) -> Result<U, E>,
    ) -> Result<Layer<U>, E> {
        Ok(match self {
            Layer::Maps(maps) => Layer::Maps(make(maps)?),
            Layer::Gradients { maps, gradients } => Layer::Gradients {
                maps: make(maps)?,
                gradients: make(gradients)?,
            },
            Layer::QueriesKeys { queries, keys, lse } => Layer::QueriesKeys {
                queries: make(queries)?,
                keys: make(keys)?,
                lse: lse.as_ref().map(make).transpose()?,
            },
        })
    }
}

impl<'a> From<HostTensor<'a>> for HostLayer<'a> {
    fn from(maps: HostTensor<'a>) -> Self {
        Layer::Maps(maps)
    }
}

impl<'a, T: Element> From<&'a [T]> for HostLayer<'a> {
    fn from(maps: &'a [T]) -> Self {
        Layer::Maps(maps.into())
    }
}

/// What a problem can check of a tensor in any memory.
pub(crate) trait Tensor {
    /// Element type.
    fn dtype(&self) -> DType;

    /// Number of elements.
    fn len(&self) -> usize;
}

/// A tensor in host memory: elements of one of three types, in no order of its own.
#[derive(Clone, Copy, Debug)]
pub struct HostTensor<'a> {
    dtype: DType,
    /// As aligned as the elements.
    bytes: &'a [u8],
}

impl<'a, T: Element> From<&'a [T]> for HostTensor<'a> {
    fn from(elements: &'a [T]) -> Self {
        HostTensor {
            dtype: T::DTYPE,
            bytes: bytemuck::cast_slice(elements),
        }
    }
}

impl<'a> HostTensor<'a> {
    /// Elements of type `dtype` from their bytes; `None` where `bytes` is not as aligned as they are, or not a whole
    /// number of them.
    pub fn from_bytes(dtype: DType, bytes: &'a [u8]) -> Option<Self> {
        let size = dtype.size_bytes();
        let fits = bytes.len().is_multiple_of(size) && bytes.as_ptr().addr().is_multiple_of(size);
        fits.then_some(HostTensor { dtype, bytes })
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size_bytes()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The elements' bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The elements from the `first` on; none where there are not so many.
    #[cfg(any(feature = "cpu", feature = "cuda"))]
    pub(crate) fn starting_at(&self, first: usize) -> Self {
        let first = first.saturating_mul(self.dtype.size_bytes());
        HostTensor {
            dtype: self.dtype,
            bytes: self.bytes.get(first..).unwrap_or_default(),
        }
    }

    /// The elements, where they are of type `T`.
    pub fn as_slice<T: Element>(&self) -> Option<&'a [T]> {
        (T::DTYPE == self.dtype).then(|| bytemuck::cast_slice(self.bytes))
    }

    /// Element `index`, exactly.
    ///
    /// # Panics
    /// Where `index` is out of bounds.
    pub fn get(&self, index: usize) -> f32 {
        let at = index * self.dtype.size_bytes();
        with_element!(self.dtype, T => {
            bytemuck::pod_read_unaligned::<T>(&self.bytes[at..at + size_of::<T>()]).to_f32()
        })
    }
}

impl Tensor for HostTensor<'_> {
    fn dtype(&self) -> DType {
        self.dtype
    }

    fn len(&self) -> usize {
        HostTensor::len(self)
    }
}

/// A tensor in host memory of its own, as aligned as any element type.
#[derive(Clone, Debug)]
pub struct OwnedTensor {
    dtype: DType,
    words: Vec<u32>,
    len: usize,
}

impl OwnedTensor {
    /// `len` elements of 0.
    ///
    /// # Errors
    /// [`Error::HostMemory`] where there is not so much memory.
    pub fn zeroed(dtype: DType, len: usize) -> Result<Self> {
        let required = len.saturating_mul(dtype.size_bytes());
        let count = required.div_ceil(size_of::<u32>());
        let mut words = Vec::new();
        words
            .try_reserve_exact(count)
            .map_err(|_| Error::HostMemory {
                what: "maps",
                required,
            })?;
        words.resize(count, 0);
        Ok(OwnedTensor { dtype, words, len })
    }

    /// A copy of as many whole elements as `bytes` holds.
    ///
    /// # Errors
    /// [`Error::HostMemory`] where there is not so much memory.
    pub fn copied(dtype: DType, bytes: &[u8]) -> Result<Self> {
        let len = bytes.len() / dtype.size_bytes();
        let mut copy = OwnedTensor::zeroed(dtype, len)?;
        let whole = len * dtype.size_bytes();
        bytemuck::cast_slice_mut(&mut copy.words)[..whole].copy_from_slice(&bytes[..whole]);
        Ok(copy)
    }

    /// The tensor, to be read.
    pub fn tensor(&self) -> HostTensor<'_> {
        HostTensor {
            dtype: self.dtype,
            bytes: &bytemuck::cast_slice(&self.words)[..self.len * self.dtype.size_bytes()],
        }
    }

    /// The elements, where they are of type `T`.
    pub fn as_mut_slice<T: Element>(&mut self) -> Option<&mut [T]> {
        let len = self.len;
        (T::DTYPE == self.dtype).then(|| &mut bytemuck::cast_slice_mut(&mut self.words)[..len])
    }
}

/// What a tensor of a layer has to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand {
    /// The word for it.
    pub name: &'static str,
    pub dtype: DType,
    /// Elements that its extents and strides reach.
    pub len: usize,
    /// Elements from one item of the batch to the next.
    #[cfg_attr(
        not(any(feature = "cpu", feature = "cuda")),
        expect(dead_code, reason = "only backends run a part of a batch")
    )]
    pub batch_stride: usize,
}

impl Operand {
    fn check(&self, layer: usize, tensor: &impl Tensor) -> Result<()> {
        if tensor.dtype() != self.dtype {
            return Err(Error::LayerDType {
                layer,
                operand: self.name,
                expected: self.dtype,
                got: tensor.dtype(),
            });
        }
        if tensor.len() < self.len {
            return Err(Error::LayerLen {
                layer,
                operand: self.name,
                expected: self.len,
                got: tensor.len(),
            });
        }
        Ok(())
    }
}

impl Problem {
    /// Checks that layer `layer` of the problem can be read from `operands`.
    ///
    /// # Errors
    /// [`Error::LayerSource`], [`Error::LayerDType`], [`Error::LayerLen`].
    pub fn check_layer(&self, layer: usize, operands: &HostLayer<'_>) -> Result<()> {
        self.check_operands(layer, operands)
    }

    /// As [`check_layer`](Problem::check_layer), in any memory.
    pub(crate) fn check_operands<T: Tensor>(
        &self,
        layer: usize,
        operands: &Layer<T>,
    ) -> Result<()> {
        let operand = self.operands(layer)?;
        let (expected, got) = (operand.source(), operands.source());
        if expected != got {
            return Err(Error::LayerSource {
                layer,
                expected,
                got,
            });
        }
        let mut pairs = operand.operands().zip(operands.operands());
        pairs.try_for_each(|(operand, tensor)| operand.check(layer, tensor))
    }

    /// What the tensors of layer `layer` have to be.
    pub(crate) fn operands(&self, layer: usize) -> Result<Layer<Operand>> {
        if let Some(source) = self.queries_keys() {
            let spans = source.spans(self.shape(), layer)?;
            let strides = source.strides(self.shape(), layer);
            let operand = |name, len, batch_stride| Operand {
                name,
                dtype: self.dtype(),
                len,
                batch_stride,
            };
            let lse = Operand {
                dtype: DType::F32,
                ..operand("LSE", spans.lse, strides.lse.batch)
            };
            return Ok(Layer::QueriesKeys {
                queries: operand("queries", spans.queries, strides.queries.batch),
                keys: operand("keys", spans.keys, strides.keys.batch),
                lse: source.has_lse().then_some(lse),
            });
        }
        let strides = self.strides(layer);
        let maps = Operand {
            name: "maps",
            dtype: self.dtype(),
            len: strides.span(self.shape())?,
            batch_stride: strides.batch,
        };
        let gradients = Operand {
            name: "gradients",
            ..maps
        };
        Ok(match self.config().gradients {
            None => Layer::Maps(maps),
            Some(_) => Layer::Gradients { maps, gradients },
        })
    }

    /// Checks that there are as many layers as the problem has.
    pub(crate) fn check_layer_count(&self, got: usize) -> Result<()> {
        let expected = self.shape().layers;
        if got == expected {
            return Ok(());
        }
        Err(Error::Count {
            what: "layers",
            expected,
            got,
        })
    }

    /// Checks that an output has the problem's length.
    pub(crate) fn check_output_len(&self, got: usize) -> Result<()> {
        let expected = self.output_len();
        if got == expected {
            return Ok(());
        }
        Err(Error::Len {
            what: "output",
            expected,
            got,
        })
    }

    /// Checks that `layers` holds every layer of the problem and `out` has the output's length.
    ///
    /// # Errors
    /// [`Error::Count`], [`Error::LayerSource`], [`Error::LayerDType`], [`Error::LayerLen`], [`Error::Len`].
    pub fn check_layers(&self, layers: &[HostLayer<'_>], out_len: usize) -> Result<()> {
        self.check_layer_count(layers.len())?;
        for (layer, operands) in layers.iter().enumerate() {
            self.check_layer(layer, operands)?;
        }
        self.check_output_len(out_len)
    }
}
