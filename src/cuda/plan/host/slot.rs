//! A chunk on its way through a device.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::thread::available_parallelism;

use cudarc::driver::result;

use super::packed::{Packing, pack_layer};
use crate::cuda::driver::{DeviceMemory, Event, PinnedMemory, Stream, driver_error};
use crate::cuda::evidence::Evidence;
use crate::cuda::pipeline::output_len;
use crate::cuda::plan::engine::Engine;
use crate::error::Result;
use crate::layer::HostLayer;
use crate::problem::Problem;

/// Chunks of at least this many bytes are packed by several threads, which take longer to start than less is to copy.
const PARALLEL_BYTES: usize = 1 << 20;

/// Buffers of one chunk. Waits for its work before they go.
pub(super) struct Slot {
    pub(super) stream: Stream,
    done: Event,
    packing: Packing,
    maps: DeviceMemory,
    output: DeviceMemory,
    staged_maps: PinnedMemory,
    staged_output: PinnedMemory,
    staged_evidence: PinnedMemory,
    evidence: Evidence,
    /// Items under way.
    pub(super) items: Range<usize>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        // A failure here was or will be reported by whatever failed first.
        let _ = self.stream.synchronize();
    }
}

impl Slot {
    pub(super) fn new(engine: &Engine, chunk: usize) -> Result<Self> {
        let (context, packed) = (engine.context(), engine.problem());
        let packing = Packing::new(packed)?;
        let maps = packing.bytes(packed, chunk);
        let output = size_of::<f32>() * output_len(packed, chunk);
        let evidence = engine.evidence();
        Ok(Slot {
            stream: Stream::new(context)?,
            done: Event::new(context)?,
            packing,
            maps: DeviceMemory::new(context, "a chunk of maps", maps)?,
            output: DeviceMemory::new(context, "the output of a chunk", output)?,
            staged_maps: PinnedMemory::new(context, maps)?,
            staged_output: PinnedMemory::new(context, output)?,
            staged_evidence: PinnedMemory::new(context, evidence.bytes())?,
            evidence,
            items: 0..0,
        })
    }

    /// Waits for a chunk that a failed run left under way, and forgets it.
    pub(super) fn abandon(&mut self) -> Result<()> {
        if self.items.is_empty() {
            return Ok(());
        }
        self.items = 0..0;
        self.stream.synchronize()
    }

    /// Waits for the chunk under way; its items and their output.
    ///
    /// # Errors
    /// [`Error::Lse`](crate::Error::Lse), [`Error::Mass`](crate::Error::Mass), [`Error::Driver`](crate::Error::Driver).
    pub(super) fn collect(&mut self, problem: &Problem) -> Result<(Range<usize>, &[f32])> {
        let items = std::mem::replace(&mut self.items, 0..0);
        self.done.synchronize()?;
        let evidence = self.staged_evidence.as_slice();
        self.evidence.check(problem, items.clone(), evidence)?;
        let len = output_len(problem, items.len());
        let staged = &self.staged_output.as_slice()[..size_of::<f32>() * len];
        Ok((items, bytemuck::cast_slice(staged)))
    }

    /// Packs the layers of `problem`, which are those of the items `items` of the whole.
    pub(super) fn pack(
        &mut self,
        problem: &Problem,
        layers: &[HostLayer<'_>],
        items: Range<usize>,
    ) {
        let (packing, count) = (&self.packing, items.len());
        let bytes = packing.layer_bytes(count);
        let range = problem.layers();
        let staged = &mut self.staged_maps.as_mut_slice()[..range.len() * bytes];
        let threads = match staged.len() {
            0..PARALLEL_BYTES => 1,
            _ => available_parallelism().map_or(1, NonZeroUsize::get),
        };
        let share = range.len().div_ceil(threads);
        std::thread::scope(|scope| {
            for (part, staged) in staged.chunks_mut((share * bytes).max(1)).enumerate() {
                let start = range.start + part * share;
                let mut pack = move || {
                    for (layer, staged) in (start..).zip(staged.chunks_exact_mut(bytes)) {
                        pack_layer(problem, layer, &layers[layer], packing, staged);
                    }
                };
                if threads == 1 {
                    pack();
                } else {
                    scope.spawn(pack);
                }
            }
        });
        self.items = items;
    }

    /// Copies the packed chunk to the device, computes it and copies its output back.
    pub(super) fn submit(&mut self, engine: &mut Engine, computed: &Event) -> Result<()> {
        let items = self.items.len();
        engine.prepare(items)?;
        let packed = engine.problem();
        let stream = self.stream.raw();
        let packing = &self.packing;
        let maps = &self.staged_maps.as_slice()[..packing.bytes(packed, items)];
        // SAFETY: both buffers are at least as long as the copy; the host leaves the staging buffer alone until `done`.
        unsafe { result::memcpy_htod_async(self.maps.address(), maps, stream) }
            .map_err(driver_error("cuMemcpyHtoDAsync_v2"))?;
        let layers = packed.layers();
        let layer = packing.layer_bytes(items);
        let output_bytes = size_of::<f32>() * output_len(packed, items);
        let tensors = |index: usize| {
            let first = layer * index.saturating_sub(layers.start);
            packing
                .tensors(items)
                .map(move |tensor| first + tensor.start)
        };
        let addresses: Vec<u64> = (0..packed.shape().layers)
            .flat_map(tensors)
            .map(|offset| self.maps.address() + offset as u64)
            .collect();
        let steps = 0..engine.schedule_of(items).steps.len();
        // The chunk before this one uses the same workspace.
        computed.gate(stream)?;
        // SAFETY: the context is bound; the buffers are as long as the packed problem says, belong to this slot, and
        // are ordered by its stream.
        unsafe {
            engine.submit(
                self.items.clone(),
                steps,
                stream,
                &addresses,
                self.output.address(),
            )
        }?;
        // SAFETY: as above; the slot leaves its copy alone until `done`.
        unsafe { engine.copy_evidence(stream, self.staged_evidence.as_mut_slice()) }?;
        computed.record(stream)?;
        let staged = &mut self.staged_output.as_mut_slice()[..output_bytes];
        // SAFETY: as above.
        unsafe { result::memcpy_dtoh_async(staged, self.output.address(), stream) }
            .map_err(driver_error("cuMemcpyDtoHAsync_v2"))?;
        self.done.record(stream)
    }
}
