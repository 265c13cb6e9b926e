//! Attention maps and outputs in device memory, as a plan takes them, and the checks before it does.

use std::sync::Arc;

use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, SyncOnDrop,
};
use half::{bf16, f16};

use crate::cuda::driver::{allocation_error, bind, foreign_device, is_capturing};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::layer::{Layer, Tensor};
use crate::problem::Problem;

/// One layer in device memory. `From` makes it from the maps: a reference to a cudarc slice or view of `f32`, `f16` or
/// `bf16`.
pub type DeviceLayer<'a> = Layer<DeviceTensor<'a>>;

/// A tensor in device memory, elements of one of three types: what a layer's maps or gradients are.
///
/// Made by `From` from a reference to a cudarc slice or view of `f32`, `f16` or `bf16`, or from any device address by
/// [`from_raw`](DeviceTensor::from_raw). Make it before a stream capture begins: cudarc gives a buffer's address only
/// together with a wait for the buffer's last write, which a capture does not allow.
pub struct DeviceTensor<'a> {
    address: u64,
    len: usize,
    dtype: DType,
    owner: Option<Owner<'a>>,
}

/// A buffer whose uses cudarc tracks.
enum Owner<'a> {
    F32(&'a (dyn DevicePtr<f32> + Sync)),
    F16(&'a (dyn DevicePtr<f16> + Sync)),
    Bf16(&'a (dyn DevicePtr<bf16> + Sync)),
}

impl<'a> DeviceLayer<'a> {
    /// Maps of `len` elements at a device address.
    ///
    /// # Safety
    /// As [`DeviceTensor::from_raw`].
    pub unsafe fn from_raw(address: u64, len: usize, dtype: DType) -> Self {
        // SAFETY: promised by the caller.
        Layer::Maps(unsafe { DeviceTensor::from_raw(address, len, dtype) })
    }
}

impl<'a> From<DeviceTensor<'a>> for DeviceLayer<'a> {
    fn from(maps: DeviceTensor<'a>) -> Self {
        Layer::Maps(maps)
    }
}

impl Tensor for DeviceTensor<'_> {
    fn dtype(&self) -> DType {
        self.dtype
    }

    fn len(&self) -> usize {
        self.len
    }
}

impl<'a> DeviceTensor<'a> {
    /// `len` elements at a device address.
    ///
    /// # Safety
    /// From each `run` that takes the tensor until the work it submitted is done:
    /// - `address` points to `len` initialised elements of `dtype` in memory that the plan's device can read;
    /// - nothing writes them, and every earlier write is ordered before the run's stream.
    pub unsafe fn from_raw(address: u64, len: usize, dtype: DType) -> Self {
        DeviceTensor {
            address,
            len,
            dtype,
            owner: None,
        }
    }

    /// First address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    fn tracked<T: Element, B: DevicePtr<T>>(buffer: &'a B, owner: Owner<'a>) -> Self {
        let (address, guard) = buffer.device_ptr(buffer.stream());
        // The guard would mark a read that has not been submitted.
        std::mem::forget(guard);
        DeviceTensor {
            address,
            len: buffer.len(),
            dtype: T::DTYPE,
            owner: Some(owner),
        }
    }

    fn context(&self) -> Option<&Arc<CudaContext>> {
        let stream = match self.owner.as_ref()? {
            Owner::F32(buffer) => buffer.stream(),
            Owner::F16(buffer) => buffer.stream(),
            Owner::Bf16(buffer) => buffer.stream(),
        };
        Some(stream.context())
    }

    /// Makes `stream` wait for the buffer's last write; the guard marks the read when it is dropped.
    pub(super) fn reading<'b>(&'b self, stream: &'b CudaStream) -> Option<SyncOnDrop<'b>> {
        Some(match self.owner.as_ref()? {
            Owner::F32(buffer) => buffer.device_ptr(stream).1,
            Owner::F16(buffer) => buffer.device_ptr(stream).1,
            Owner::Bf16(buffer) => buffer.device_ptr(stream).1,
        })
    }
}

macro_rules! from_buffers {
    ($($element:ty => $variant:ident),*) => {$(
        impl<'a> From<&'a CudaSlice<$element>> for DeviceTensor<'a> {
            fn from(buffer: &'a CudaSlice<$element>) -> Self {
                DeviceTensor::tracked(buffer, Owner::$variant(buffer))
            }
        }

        impl<'a> From<&'a CudaView<'_, $element>> for DeviceTensor<'a> {
            fn from(buffer: &'a CudaView<'_, $element>) -> Self {
                DeviceTensor::tracked(buffer, Owner::$variant(buffer))
            }
        }

        impl<'a> From<&'a CudaSlice<$element>> for DeviceLayer<'a> {
            fn from(maps: &'a CudaSlice<$element>) -> Self {
                DeviceTensor::from(maps).into()
            }
        }

        impl<'a> From<&'a CudaView<'_, $element>> for DeviceLayer<'a> {
            fn from(maps: &'a CudaView<'_, $element>) -> Self {
                DeviceTensor::from(maps).into()
            }
        }
    )*};
}

from_buffers!(f32 => F32, f16 => F16, bf16 => Bf16);

/// Where a plan writes its f32 output.
///
/// Made by `From` from a mutable reference to a cudarc slice or view, or by [`from_raw`](DeviceOutput::from_raw); like
/// a [`DeviceTensor`], before a stream capture begins.
pub struct DeviceOutput<'a> {
    address: u64,
    len: usize,
    owner: Option<&'a mut (dyn DevicePtrMut<f32> + Send + Sync)>,
}

impl<'a> DeviceOutput<'a> {
    /// Room for `len` f32 values at a device address.
    ///
    /// # Safety
    /// From each `run` that takes the output until the work it submitted is done:
    /// - `address` points to memory for `len` f32 values that the plan's device can write;
    /// - nothing else reads or writes them, and every earlier use is ordered before the run's stream.
    pub unsafe fn from_raw(address: u64, len: usize) -> Self {
        DeviceOutput {
            address,
            len,
            owner: None,
        }
    }

    /// First address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Number of f32 values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no room at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn tracked<B: DevicePtrMut<f32> + Send + Sync>(buffer: &'a mut B) -> Self {
        let stream = buffer.stream().clone();
        let (address, guard) = buffer.device_ptr_mut(&stream);
        // The guard would mark a write that has not been submitted.
        std::mem::forget(guard);
        DeviceOutput {
            address,
            len: buffer.len(),
            owner: Some(buffer),
        }
    }

    /// Makes `stream` wait for the buffer's last use; the guard marks the write when it is dropped.
    pub(super) fn writing<'b>(&'b mut self, stream: &'b CudaStream) -> Option<SyncOnDrop<'b>> {
        Some(self.owner.as_mut()?.device_ptr_mut(stream).1)
    }
}

impl<'a> From<&'a mut CudaSlice<f32>> for DeviceOutput<'a> {
    fn from(buffer: &'a mut CudaSlice<f32>) -> Self {
        DeviceOutput::tracked(buffer)
    }
}

impl<'a> From<&'a mut CudaViewMut<'_, f32>> for DeviceOutput<'a> {
    fn from(buffer: &'a mut CudaViewMut<'_, f32>) -> Self {
        DeviceOutput::tracked(buffer)
    }
}

/// Checks that a stream belongs to `expected`, the context of the plan, which is bound; also what another library made,
/// whatever cudarc was told of it.
pub(super) fn check_stream(expected: &Arc<CudaContext>, stream: &CudaStream) -> Result<()> {
    let what = || "the stream".to_owned();
    check_context(expected, Some(stream.context()), what)?;
    match foreign_device(expected, stream.cu_stream())? {
        None => Ok(()),
        Some(got) => Err(Error::WrongDevice {
            what: what(),
            expected: expected.ordinal(),
            got,
        }),
    }
}

/// Room for the output of `problem`, whose plan belongs to `context`, allocated on `stream`.
pub(super) fn alloc_output(
    problem: &Problem,
    context: &Arc<CudaContext>,
    stream: &Arc<CudaStream>,
) -> Result<CudaSlice<f32>> {
    bind(context)?;
    check_stream(context, stream)?;
    if is_capturing(stream)? {
        return Err(Error::Capturing {
            what: "an allocation",
            instead: "run",
        });
    }
    let what = "the output";
    let len = problem.output_len();
    if len == 0 {
        return Err(Error::ZeroExtent { what });
    }
    // SAFETY: a run writes every element, and nothing reads any before.
    unsafe { stream.alloc(len) }.map_err(allocation_error(
        "cuMemAllocAsync",
        what,
        size_of::<f32>() * len,
    ))
}

/// Checks that a stream or buffer belongs to `expected`, the context of the plan.
pub(super) fn check_context(
    expected: &Arc<CudaContext>,
    got: Option<&Arc<CudaContext>>,
    what: impl FnOnce() -> String,
) -> Result<()> {
    match got {
        Some(got) if got != expected => Err(Error::WrongDevice {
            what: what(),
            expected: expected.ordinal(),
            got: got.ordinal(),
        }),
        _ => Ok(()),
    }
}

/// Checks one layer: its tensors, and of each context, element type, length and alignment.
pub(super) fn check_layer(
    problem: &Problem,
    context: &Arc<CudaContext>,
    layer: usize,
    operands: &DeviceLayer<'_>,
) -> Result<()> {
    let what = || format!("layer {layer}");
    for tensor in operands.operands() {
        check_context(context, tensor.context(), what)?;
    }
    problem.check_operands(layer, operands)?;
    let mut tensors = operands.operands();
    tensors.try_for_each(|tensor| check_alignment(tensor.address, tensor.dtype.size_bytes(), what))
}

/// Where the tensors of `layers` begin, layer by layer.
pub(super) fn addresses<'b>(layers: &'b [DeviceLayer<'_>]) -> impl Iterator<Item = u64> + 'b {
    let tensors = layers.iter().flat_map(Layer::operands);
    tensors.map(DeviceTensor::address)
}

/// Checks everything that a run is given.
pub(super) fn check_run(
    problem: &Problem,
    context: &Arc<CudaContext>,
    layers: &[DeviceLayer<'_>],
    out: &DeviceOutput<'_>,
) -> Result<()> {
    problem.check_layer_count(layers.len())?;
    for (layer, maps) in layers.iter().enumerate() {
        check_layer(problem, context, layer, maps)?;
    }
    check_output(problem, context, out)?;
    check_overlap(problem, layers, out)
}

/// Orders `stream` after earlier uses of `layers` and `out`, as far as cudarc tracks them. The guards, dropped when the
/// run has been submitted, mark its own uses.
pub(super) fn track<'b>(
    stream: &'b CudaStream,
    layers: &'b [DeviceLayer<'_>],
    out: &'b mut DeviceOutput<'_>,
) -> Vec<SyncOnDrop<'b>> {
    layers
        .iter()
        .flat_map(Layer::operands)
        .filter_map(|tensor| tensor.reading(stream))
        .chain(out.writing(stream))
        .collect()
}

/// Checks an output: context, length and alignment.
pub(super) fn check_output(
    problem: &Problem,
    context: &Arc<CudaContext>,
    out: &DeviceOutput<'_>,
) -> Result<()> {
    let owner = out.owner.as_ref().map(|buffer| buffer.stream().context());
    check_context(context, owner, || "the output".to_owned())?;
    problem.check_output_len(out.len)?;
    check_alignment(out.address, size_of::<f32>(), || "the output".to_owned())
}

/// Checks that the output overlaps no layer.
fn check_overlap(
    problem: &Problem,
    layers: &[DeviceLayer<'_>],
    out: &DeviceOutput<'_>,
) -> Result<()> {
    let out = out.address..out.address + 4 * out.len as u64;
    for (layer, operands) in layers.iter().enumerate() {
        let spans = problem.operands(layer)?;
        for (tensor, span) in operands.operands().zip(spans.operands()) {
            let end = tensor.address + (span.len * tensor.dtype.size_bytes()) as u64;
            let overlap = out
                .end
                .min(end)
                .saturating_sub(out.start.max(tensor.address));
            if overlap > 0 {
                return Err(Error::Overlap {
                    layer,
                    bytes: overlap as usize,
                });
            }
        }
    }
    Ok(())
}

/// Checks that an address is a multiple of `required` bytes.
pub(super) fn check_alignment(
    address: u64,
    required: usize,
    what: impl FnOnce() -> String,
) -> Result<()> {
    if address.is_multiple_of(required as u64) {
        return Ok(());
    }
    Err(Error::Misaligned {
        what: what(),
        required,
        address,
    })
}
