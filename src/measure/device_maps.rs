//! The maps of a case in device memory, as often as it takes to read them past the caches.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use super::inputs::Inputs;
use super::rotation;
use crate::cuda::driver::{allocation_error, driver_error};
use crate::cuda::{self, DeviceLayer, DeviceTensor, cudarc};
use crate::error::Result;
use crate::layer::{HostTensor, Layer};

/// Every layer starts at a multiple of this, as allocations do.
const ALIGNMENT: usize = 256;

/// The share of the free memory that copies of the maps may take, in percent.
const MEMORY_PERCENT: usize = 90;

/// Copies of the maps of all problems in device memory.
pub(super) struct DeviceMaps {
    /// By copy and problem; they point into `memory`.
    pub(super) layers: Vec<Vec<Vec<DeviceLayer<'static>>>>,
    /// Where each copy begins.
    pub(super) addresses: Vec<u64>,
    _memory: CudaSlice<u8>,
}

impl DeviceMaps {
    /// Copies `inputs`, one beside the other, until the `map_bytes` bytes that a run reads of each are together twice what
    /// L2 holds, as far as memory goes.
    pub(super) fn new(
        stream: &Arc<CudaStream>,
        inputs: &[Inputs],
        map_bytes: usize,
    ) -> Result<Self> {
        let context = stream.context();
        let padded = |bytes: usize| bytes.next_multiple_of(ALIGNMENT);
        let copy_bytes: usize = inputs
            .iter()
            .flat_map(Inputs::layers)
            .map(|layer| {
                let tensors = layer.operands();
                tensors
                    .map(|tensor| padded(tensor.bytes().len()))
                    .sum::<usize>()
            })
            .sum();
        let copy_bytes = copy_bytes.max(ALIGNMENT);
        let rotation_bytes = 2 * cuda::limits(context)?.l2_bytes;
        let (free, _) = cuda::memory(context)?;
        let fitting = free / 100 * MEMORY_PERCENT / copy_bytes;
        let copies = rotation::copies(rotation_bytes, map_bytes).min(fitting.max(1));
        let mut memory =
            stream
                .alloc_zeros::<u8>(copies * copy_bytes)
                .map_err(allocation_error(
                    "cuMemAllocAsync",
                    "attention maps",
                    copy_bytes,
                ))?;
        let first = memory.device_ptr(stream).0;
        let mut offset = 0;
        let layers: Vec<_> = inputs.iter().flat_map(Inputs::layers).collect();
        for tensor in layers.iter().flat_map(Layer::operands) {
            let bytes = tensor.bytes();
            if !bytes.is_empty() {
                stream
                    .memcpy_htod(bytes, &mut memory.slice_mut(offset..))
                    .map_err(driver_error("cuMemcpyHtoDAsync_v2"))?;
            }
            offset += padded(bytes.len());
        }
        let (original, mut others) = memory.split_at_mut(copy_bytes);
        for copy in 1..copies {
            let mut to = others.slice_mut((copy - 1) * copy_bytes..);
            stream
                .memcpy_dtod(&original, &mut to)
                .map_err(driver_error("cuMemcpyDtoDAsync_v2"))?;
        }
        stream
            .synchronize()
            .map_err(driver_error("cuStreamSynchronize"))?;

        let addresses: Vec<u64> = (0..copies)
            .map(|copy| first + (copy * copy_bytes) as u64)
            .collect();
        let layers_at = |mut address: u64| {
            let mut place = |bytes: usize| {
                let here = address;
                address += padded(bytes) as u64;
                here
            };
            let of_problem = |inputs: &Inputs| {
                let mut tensor = |tensor: &HostTensor<'_>| {
                    let address = place(tensor.bytes().len());
                    // SAFETY: the elements have just been copied there. Nothing writes them any more, and they are
                    // kept as long as the layers.
                    unsafe { DeviceTensor::from_raw(address, tensor.len(), tensor.dtype()) }
                };
                let layers = inputs.layers();
                layers.iter().map(|layer| layer.map(&mut tensor)).collect()
            };
            inputs.iter().map(of_problem).collect()
        };
        Ok(DeviceMaps {
            layers: addresses.iter().copied().map(layers_at).collect(),
            addresses,
            _memory: memory,
        })
    }
}
