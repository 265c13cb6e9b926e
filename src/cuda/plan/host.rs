//! Maps in host memory, through one or several GPUs, a chunk of the batch at a time.
//!
//! Each chunk is packed into page-locked memory, copied, computed and copied back on one of two streams in turn, so
//! that packing, both copies and the kernels of neighbouring chunks overlap, and a data set may be larger than the
//! device's memory. Only what lies in a window is packed: elements outside may hold anything.

mod packed;

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::available_parallelism;

use cudarc::driver::{CudaContext, result};

use super::engine::Engine;
use crate::config::Output;
use crate::cuda::choose::choose_for;
use crate::cuda::driver::{self, DeviceMemory, Event, PinnedMemory, Stream, bind, driver_error};
use crate::cuda::options::Options;
use crate::cuda::pipeline::output_len;
use crate::cuda::runtime::Runtime;
use crate::cuda::schedule::Schedule;
use crate::error::{Error, Result};
use crate::layer::HostLayer;
use crate::problem::Problem;
use crate::progress::Progress;

use packed::{layer_bytes, map_bytes, pack_layer, packed};

/// Page-locked memory that one chunk may take unless the caller says otherwise: enough to hide latencies, little enough
/// to be had everywhere.
const CHUNK_BYTES: usize = 256 << 20;

/// Chunks of at least this many bytes are packed by several threads, which take longer to start than less is to copy.
const PARALLEL_BYTES: usize = 1 << 20;

/// Chunks on their way at a time.
const SLOTS: usize = 2;

/// A problem over host memory made ready on one device.
pub struct HostPlan {
    // First, so that chunks under way are waited for before anything they use goes.
    slots: Vec<Slot>,
    /// Orders the kernels of neighbouring chunks, which share the workspace.
    computed: Event,
    /// Runs the problem over packed maps.
    engine: Engine,
    problem: Problem,
    chunk: usize,
}

/// Buffers of one chunk. Waits for its work before they go.
struct Slot {
    stream: Stream,
    done: Event,
    maps: DeviceMemory,
    output: DeviceMemory,
    staged_maps: PinnedMemory,
    staged_output: PinnedMemory,
    /// Items under way.
    items: Range<usize>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        // A failure here was or will be reported by whatever failed first.
        let _ = self.stream.synchronize();
    }
}

impl HostPlan {
    /// Makes `problem` ready on the device of `context`, `items_per_chunk` items at a time; by default as many as a
    /// buffer of 256 MiB and a quarter of the free device memory hold.
    ///
    /// # Errors
    /// As [`Plan::new`](crate::cuda::Plan::new); [`Error::HostMemory`].
    pub fn new(
        context: &Arc<CudaContext>,
        problem: &Problem,
        options: &Options,
        items_per_chunk: Option<NonZeroUsize>,
    ) -> Result<Self> {
        let runtime = Runtime::new(context, options)?;
        HostPlan::on(&runtime, problem, options, items_per_chunk)
    }

    /// As [`new`](HostPlan::new), with the compiler and the kernels of `runtime`.
    ///
    /// # Errors
    /// As [`new`](HostPlan::new).
    pub fn on(
        runtime: &Runtime,
        problem: &Problem,
        options: &Options,
        items_per_chunk: Option<NonZeroUsize>,
    ) -> Result<Self> {
        let (context, limits) = (runtime.context(), runtime.limits());
        let options = options.with_environment();
        let packed = packed(problem)?;
        let batch = problem.shape().batch;
        let item_bytes = map_bytes(&packed, 1) + size_of::<f32>() * output_len(&packed, 1);
        let chunk = match items_per_chunk {
            Some(items) => items.get(),
            None => {
                let (free, _) = driver::memory(context)?;
                (free / 4 / SLOTS).min(CHUNK_BYTES) / item_bytes.max(1)
            }
        }
        .clamp(1, batch.max(1));
        let (pipeline, whole) = choose_for(&packed, chunk, limits, &options)?;
        let rest = pipeline.schedule(&packed, batch % chunk, limits);
        let engine = Engine::alone(runtime, &packed, vec![whole, rest])?;
        let slots = (0..SLOTS.min(batch.div_ceil(chunk)))
            .map(|_| Slot::new(context, &packed, chunk))
            .collect::<Result<_>>()?;
        Ok(HostPlan {
            problem: problem.clone(),
            engine,
            slots,
            computed: Event::new(context)?,
            chunk,
        })
    }

    /// The problem this plan runs.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// What a full chunk launches.
    pub fn schedule(&self) -> &Schedule {
        self.engine.schedule(0)
    }

    /// Items of a full chunk.
    pub fn items_per_chunk(&self) -> usize {
        self.chunk
    }

    /// Computes the rollout of `layers` (every layer of the problem, first to last) into `out`, shaped as
    /// [`Problem::output_shape`], and waits for it. `progress` is called after each chunk, in order.
    ///
    /// # Errors
    /// As [`Problem::check_layers`]; [`Error::Launch`], [`Error::Driver`].
    pub fn run(
        &mut self,
        layers: &[HostLayer<'_>],
        out: &mut [f32],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        self.problem.check_layers(layers, out.len())?;
        let all = 0..self.problem.shape().batch;
        let mut planes = planes(&self.problem, out, std::slice::from_ref(&all)).remove(0);
        self.run_items(layers, 0, &mut planes, progress)
    }

    /// As [`run`](HostPlan::run), where item 0 of the plan is item `first` of `layers`, which have been checked, and the
    /// output is given plane by plane.
    fn run_items(
        &mut self,
        layers: &[HostLayer<'_>],
        first: usize,
        planes: &mut [&mut [f32]],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        bind(self.engine.context())?;
        for slot in &mut self.slots {
            slot.abandon()?;
        }
        let total = self.engine.problem().shape().batch;
        let mut done = 0;
        let chunks = (0..total).step_by(self.chunk);
        let turns = chunks.clone().count() + self.slots.len();
        let mut chunks = chunks.map(|start| start..total.min(start + self.chunk));
        for turn in 0..turns {
            if self.slots.is_empty() {
                break;
            }
            let slot = turn % self.slots.len();
            if let Some(items) = self.slots[slot].collect(self.engine.problem(), planes)? {
                done += items;
                progress(Progress { done, total });
            }
            if let Some(items) = chunks.next() {
                let slot = &mut self.slots[slot];
                slot.pack(&self.problem, layers, first, items);
                slot.submit(&mut self.engine, &self.computed, self.chunk)?;
            }
        }
        Ok(())
    }
}

impl Slot {
    fn new(context: &Arc<CudaContext>, packed: &Problem, chunk: usize) -> Result<Self> {
        let maps = map_bytes(packed, chunk);
        let output = size_of::<f32>() * output_len(packed, chunk);
        Ok(Slot {
            stream: Stream::new(context)?,
            done: Event::new(context)?,
            maps: DeviceMemory::new(context, "a chunk of maps", maps)?,
            output: DeviceMemory::new(context, "the output of a chunk", output)?,
            staged_maps: PinnedMemory::new(context, maps)?,
            staged_output: PinnedMemory::new(context, output)?,
            items: 0..0,
        })
    }

    /// Waits for a chunk that a failed run left under way, and forgets it.
    fn abandon(&mut self) -> Result<()> {
        if self.items.is_empty() {
            return Ok(());
        }
        self.items = 0..0;
        self.stream.synchronize()
    }

    /// Waits for the chunk under way, if there is one, and copies its output to `planes`. Returns its items.
    fn collect(&mut self, packed: &Problem, planes: &mut [&mut [f32]]) -> Result<Option<usize>> {
        let items = std::mem::replace(&mut self.items, 0..0);
        if items.is_empty() {
            return Ok(None);
        }
        self.done.synchronize()?;
        let len = output_len(packed, items.len());
        let staged: &[f32] = bytemuck::cast_slice(&self.staged_output.as_slice()[..4 * len]);
        let plane = len / planes.len();
        for (plane, staged) in planes.iter_mut().zip(staged.chunks_exact(plane)) {
            let item = staged.len() / items.len();
            plane[items.start * item..items.end * item].copy_from_slice(staged);
        }
        Ok(Some(items.len()))
    }

    /// Packs `items` of the problem, which are items `first + items` of the layers.
    fn pack(
        &mut self,
        problem: &Problem,
        layers: &[HostLayer<'_>],
        first: usize,
        items: Range<usize>,
    ) {
        let bytes = layer_bytes(problem, items.len());
        let range = problem.layers();
        let staged = &mut self.staged_maps.as_mut_slice()[..range.len() * bytes];
        let threads = match staged.len() {
            0..PARALLEL_BYTES => 1,
            _ => available_parallelism().map_or(1, NonZeroUsize::get),
        };
        let share = range.len().div_ceil(threads);
        std::thread::scope(|scope| {
            for (part, staged) in staged.chunks_mut((share * bytes).max(1)).enumerate() {
                let items = &items;
                let start = range.start + part * share;
                let mut pack = move || {
                    for (layer, staged) in (start..).zip(staged.chunks_exact_mut(bytes)) {
                        pack_layer(problem, layer, &layers[layer], first, items.clone(), staged);
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
    fn submit(&mut self, engine: &mut Engine, computed: &Event, chunk: usize) -> Result<()> {
        let packed = engine.problem();
        let items = self.items.len();
        let stream = self.stream.raw();
        let maps = &self.staged_maps.as_slice()[..map_bytes(packed, items)];
        // SAFETY: both buffers are at least as long as the copy; the host leaves the staging buffer alone until `done`.
        unsafe { result::memcpy_htod_async(self.maps.address(), maps, stream) }
            .map_err(driver_error("cuMemcpyHtoDAsync_v2"))?;
        let layers = packed.layers();
        let bytes = layer_bytes(packed, items) as u64;
        let output_bytes = size_of::<f32>() * output_len(packed, items);
        let addresses: Vec<u64> = (0..packed.shape().layers)
            .map(|layer| self.maps.address() + bytes * layer.saturating_sub(layers.start) as u64)
            .collect();
        let schedule = usize::from(items < chunk);
        let steps = 0..engine.schedule(schedule).steps.len();
        // The chunk before this one uses the same workspace.
        computed.gate(stream)?;
        // SAFETY: the context is bound; the buffers are as long as the packed problem says, belong to this slot, and
        // are ordered by its stream.
        unsafe {
            engine.submit(
                schedule,
                steps,
                stream,
                &addresses,
                self.output.address(),
                self.items.start,
            )
        }?;
        computed.record(stream)?;
        let staged = &mut self.staged_output.as_mut_slice()[..output_bytes];
        // SAFETY: as above.
        unsafe { result::memcpy_dtoh_async(staged, self.output.address(), stream) }
            .map_err(driver_error("cuMemcpyDtoHAsync_v2"))?;
        self.done.record(stream)
    }
}

/// Computes the rollout of host `layers` into `out` on one or several devices, each taking a share of the batch.
///
/// The simple entry: makes the plans, runs once, and waits. `contexts` holds at least one context; `progress` is called
/// from the devices' threads, one call at a time.
///
/// # Errors
/// [`Error::ZeroExtent`] where there is no context; as [`HostPlan::new`] and [`HostPlan::run`], the first error of any
/// device.
pub fn run_host(
    contexts: &[Arc<CudaContext>],
    problem: &Problem,
    layers: &[HostLayer<'_>],
    out: &mut [f32],
    options: &Options,
    items_per_chunk: Option<NonZeroUsize>,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<()> {
    problem.check_layers(layers, out.len())?;
    let batch = problem.shape().batch;
    if contexts.is_empty() {
        return Err(Error::ZeroExtent { what: "devices" });
    }
    let share = batch.div_ceil(contexts.len()).max(1);
    let shares: Vec<Range<usize>> = (0..batch)
        .step_by(share)
        .map(|start| start..batch.min(start + share))
        .collect();
    let done = Mutex::new((0, progress));
    let shard = |context, items: Range<usize>, mut planes: Vec<&mut [f32]>| {
        let part = problem.slice_batch(items.clone());
        let mut plan = HostPlan::new(context, &part, options, items_per_chunk)?;
        let mut before = 0;
        let mut report = |step: Progress| {
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            done.0 += step.done - before;
            before = step.done;
            let progress = Progress {
                done: done.0,
                total: batch,
            };
            (done.1)(progress);
        };
        plan.run_items(layers, items.start, &mut planes, &mut report)
    };
    let planes = planes(problem, out, &shares);
    std::thread::scope(|scope| {
        let shard = &shard;
        let threads: Vec<_> = contexts
            .iter()
            .zip(shares)
            .zip(planes)
            .map(|((context, items), planes)| scope.spawn(move || shard(context, items, planes)))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

/// The parts of `out` for each of `shares`, one per layer where the output is cumulative.
fn planes<'o>(
    problem: &Problem,
    out: &'o mut [f32],
    shares: &[Range<usize>],
) -> Vec<Vec<&'o mut [f32]>> {
    let count = match problem.config().output {
        Output::Cumulative => problem.layers().len(),
        _ => 1,
    };
    let item = output_len(problem, 1) / count;
    let mut parts: Vec<Vec<&mut [f32]>> = shares.iter().map(|_| Vec::new()).collect();
    let plane = out.len() / count;
    for mut plane in out.chunks_exact_mut(plane.max(1)) {
        for (items, parts) in shares.iter().zip(&mut parts) {
            let (part, rest) = plane.split_at_mut(items.len() * item);
            parts.push(part);
            plane = rest;
        }
    }
    parts
}
