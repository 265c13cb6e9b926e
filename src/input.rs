//! Attention maps in host memory, as every backend takes them.

use half::{bf16, f16};

use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::problem::Problem;

/// One layer's attention maps in host memory, laid out by the problem's [`Strides`](crate::Strides).
///
/// `From` is implemented for `&[f32]`, `&[f16]` and `&[bf16]`.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum HostLayer<'a> {
    /// Post-softmax attention in f32.
    F32(&'a [f32]),
    /// Post-softmax attention in f16.
    F16(&'a [f16]),
    /// Post-softmax attention in bf16.
    Bf16(&'a [bf16]),
}

impl<'a> From<&'a [f32]> for HostLayer<'a> {
    fn from(maps: &'a [f32]) -> Self {
        HostLayer::F32(maps)
    }
}

impl<'a> From<&'a [f16]> for HostLayer<'a> {
    fn from(maps: &'a [f16]) -> Self {
        HostLayer::F16(maps)
    }
}

impl<'a> From<&'a [bf16]> for HostLayer<'a> {
    fn from(maps: &'a [bf16]) -> Self {
        HostLayer::Bf16(maps)
    }
}

impl<'a> HostLayer<'a> {
    /// Element type.
    pub fn dtype(&self) -> DType {
        match self {
            HostLayer::F32(_) => DType::F32,
            HostLayer::F16(_) => DType::F16,
            HostLayer::Bf16(_) => DType::Bf16,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            HostLayer::F32(maps) => maps.len(),
            HostLayer::F16(maps) => maps.len(),
            HostLayer::Bf16(maps) => maps.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements, where they are of type `T`.
    pub fn as_slice<T: Element>(&self) -> Option<&'a [T]> {
        match self {
            HostLayer::F32(maps) if T::DTYPE == DType::F32 => Some(bytemuck::cast_slice(maps)),
            HostLayer::F16(maps) if T::DTYPE == DType::F16 => Some(bytemuck::cast_slice(maps)),
            HostLayer::Bf16(maps) if T::DTYPE == DType::Bf16 => Some(bytemuck::cast_slice(maps)),
            _ => None,
        }
    }

    /// Element `index`, exactly.
    ///
    /// # Panics
    /// Where `index` is out of bounds.
    pub fn get(&self, index: usize) -> f32 {
        match self {
            HostLayer::F32(maps) => maps[index],
            HostLayer::F16(maps) => maps[index].to_f32(),
            HostLayer::Bf16(maps) => maps[index].to_f32(),
        }
    }
}

impl Problem {
    /// Checks that `layer` of the problem can be read from `maps`.
    ///
    /// # Errors
    /// [`Error::LayerDType`], [`Error::LayerLen`].
    pub fn check_layer(&self, layer: usize, maps: &HostLayer<'_>) -> Result<()> {
        self.check_layer_extent(layer, maps.dtype(), maps.len())
    }

    /// As [`check_layer`](Problem::check_layer), for maps of `len` elements of `dtype` in any memory.
    pub(crate) fn check_layer_extent(&self, layer: usize, dtype: DType, len: usize) -> Result<()> {
        if dtype != self.dtype() {
            return Err(Error::LayerDType {
                layer,
                expected: self.dtype(),
                got: dtype,
            });
        }
        let expected = self.strides(layer).span(self.shape())?;
        if len < expected {
            return Err(Error::LayerLen {
                layer,
                expected,
                got: len,
            });
        }
        Ok(())
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
    /// [`Error::Count`], [`Error::LayerDType`], [`Error::LayerLen`], [`Error::Len`].
    pub fn check_layers(&self, layers: &[HostLayer<'_>], out_len: usize) -> Result<()> {
        self.check_layer_count(layers.len())?;
        for (layer, maps) in layers.iter().enumerate() {
            self.check_layer(layer, maps)?;
        }
        self.check_output_len(out_len)
    }
}
