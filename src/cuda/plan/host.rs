//! Maps in host memory, through one or several GPUs, a chunk of the batch at a time.
//!
//! Each chunk is packed into page-locked memory, copied, computed and copied back on one of two streams in turn, so
//! that packing, both copies and the kernels of neighbouring chunks overlap, and a data set may be larger than the
//! device's memory. Only what lies in a window is packed: elements outside may hold anything.

mod packed;
mod slot;

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::CudaContext;

use super::engine::Engine;
use super::inputs::Given;
use super::tune;
use crate::chunk::{self, CHUNK_BYTES, Chunk, Progress, layers_from};
use crate::cuda::choose::choose_for;
use crate::cuda::driver::{self, Event, bind};
use crate::cuda::options::{Compiler, Options};
use crate::cuda::runtime::Runtime;
use crate::cuda::schedule::Schedule;
use crate::error::{Error, Result};
use crate::layer::HostLayer;
use crate::layout::Window;
use crate::problem::Problem;

use slot::Slot;

/// Chunks on their way at a time, on each device.
const SLOTS: usize = 2;

/// A problem over host memory made ready on one or several devices, which take its chunks in turn.
pub struct HostPlan {
    devices: Vec<OnDevice>,
    problem: Problem,
    chunk: usize,
    /// Items of the run under way.
    items: Range<usize>,
    /// One past the last of them that has been submitted.
    pushed: usize,
    /// One past the last that has been collected.
    popped: usize,
}

/// The plan on one device.
struct OnDevice {
    // First, so that chunks under way are waited for before anything they use goes.
    slots: Vec<Slot>,
    /// Orders the kernels of neighbouring chunks, which share the workspace.
    computed: Event,
    /// Runs the problem over packed maps.
    engine: Engine,
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
        let runtime = Runtime::new(context, &Compiler::default())?;
        HostPlan::on(&[runtime], problem, options, items_per_chunk)
    }

    /// As [`new`](HostPlan::new), on the devices of `runtimes`, with their compilers and kernels; by default a chunk is
    /// at most a device's share of the batch.
    ///
    /// # Errors
    /// As [`new`](HostPlan::new); [`Error::ZeroExtent`] where there is no device; [`Error::BorrowedWorkspace`] where
    /// `options` lend a workspace, for the buffers of chunks and their workspace are a plan's own.
    pub fn on(
        runtimes: &[Runtime],
        problem: &Problem,
        options: &Options,
        items_per_chunk: Option<NonZeroUsize>,
    ) -> Result<Self> {
        if runtimes.is_empty() {
            return Err(Error::ZeroExtent { what: "devices" });
        }
        let options = options.with_environment();
        if !options.workspace.is_owned() {
            return Err(Error::BorrowedWorkspace);
        }
        let packed = problem.clone().contiguous();
        let batch = problem.shape().batch;
        let chunk = match items_per_chunk {
            Some(items) => items.get().clamp(1, batch.max(1)),
            None => {
                let mut bytes = CHUNK_BYTES;
                for runtime in runtimes {
                    let (free, _) = driver::memory(runtime.context())?;
                    bytes = bytes.min(free / 4 / SLOTS);
                }
                let share = batch.div_ceil(runtimes.len()).max(1);
                chunk::items_per_chunk(&packed, bytes).min(share)
            }
        };
        let chunks = batch.div_ceil(chunk);
        let devices = runtimes
            .iter()
            .take(chunks.max(1))
            .map(|runtime| {
                let slots = SLOTS.min(chunks.div_ceil(runtimes.len()));
                OnDevice::new(runtime, &packed, chunk, slots, &options)
            })
            .collect::<Result<_>>()?;
        Ok(HostPlan {
            devices,
            problem: problem.clone(),
            chunk,
            items: 0..0,
            pushed: 0,
            popped: 0,
        })
    }

    /// The problem this plan runs.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// What a full chunk launches, on the first device.
    pub fn schedule(&self) -> &Schedule {
        self.devices[0].engine.schedule()
    }

    /// Items of a full chunk.
    pub fn items_per_chunk(&self) -> usize {
        self.chunk
    }

    /// Device memory the plan holds beside the chunks' maps and outputs, in bytes, all devices together.
    pub fn workspace_bytes(&self) -> usize {
        let engines = self.devices.iter().map(|device| &device.engine);
        engines
            .map(|engine| engine.workspace_bytes() + engine.owned_bytes())
            .sum()
    }

    /// As [`Plan::set_windows`](crate::cuda::Plan::set_windows). The next run waits until they are on the devices.
    ///
    /// # Errors
    /// As [`Plan::set_windows`](crate::cuda::Plan::set_windows).
    pub fn set_windows(&mut self, windows: &[Window]) -> Result<()> {
        self.problem.set_windows(windows)?;
        let mut engines = self.devices.iter_mut().map(|device| &mut device.engine);
        engines.try_for_each(|engine| engine.set_windows(windows))
    }

    /// As [`Plan::set_rows`](crate::cuda::Plan::set_rows). The next run waits until they are on the devices.
    ///
    /// # Errors
    /// As [`Plan::set_rows`](crate::cuda::Plan::set_rows).
    pub fn set_rows(&mut self, rows: &[usize]) -> Result<()> {
        self.problem.set_rows(rows)?;
        let mut engines = self.devices.iter_mut().map(|device| &mut device.engine);
        engines.try_for_each(|engine| engine.set_rows(rows))
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
        self.run_items(0..self.problem.shape().batch, layers, out, progress)
    }

    /// As [`run`](HostPlan::run), of the items `items` of the batch alone: `layers` hold every layer of theirs, and `out` is
    /// shaped as [`Problem::output_shape`] of a problem of these items.
    ///
    /// # Errors
    /// As [`run`](HostPlan::run) for the items; [`Error::Items`] where they leave the batch.
    pub fn run_items(
        &mut self,
        items: Range<usize>,
        layers: &[HostLayer<'_>],
        out: &mut [f32],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        self.problem.check_layers_of(&items, layers, out.len())?;
        self.restart(items.clone())?;
        loop {
            while let Some(chunk) = self.wants() {
                let first = chunk.start - items.start;
                self.push(&layers_from(&self.problem, layers, first)?)?;
            }
            let Some(chunk) = self.pop()? else {
                return Ok(());
            };
            chunk.copy_to(out);
            progress(chunk.progress());
        }
    }

    /// Begins a run of `items`: forgets the chunks of one that was not finished.
    ///
    /// # Errors
    /// [`Error::Items`], [`Error::StartRow`], [`Error::Driver`].
    pub(crate) fn restart(&mut self, items: Range<usize>) -> Result<()> {
        self.problem.check_items(&items)?;
        self.problem.check_rows_of(items.clone())?;
        (self.pushed, self.popped) = (items.start, items.start);
        self.items = items;
        for device in &mut self.devices {
            bind(device.engine.context())?;
            device.slots.iter_mut().try_for_each(Slot::abandon)?;
            if let Some(slot) = device.slots.first() {
                let (stream, all) = (slot.stream.raw(), 0..self.problem.shape().batch);
                // SAFETY: the context is bound, and nothing is under way.
                let given = unsafe { device.engine.give(stream, false, Given::default(), all) };
                // All slots' streams find the tables complete.
                if given? {
                    slot.stream.synchronize()?;
                }
            }
        }
        Ok(())
    }

    /// The items to [`push`](HostPlan::push) next; none where all have been pushed, or all buffers are in use.
    pub(crate) fn wants(&self) -> Option<Range<usize>> {
        let Range { start, end } = self.items;
        let buffers: usize = self.devices.iter().map(|device| device.slots.len()).sum();
        let chunks = |until: usize| (until - start).div_ceil(self.chunk);
        let under_way = chunks(self.pushed) - chunks(self.popped);
        let has_room = self.pushed < end && under_way < buffers;
        has_room.then(|| self.pushed..end.min(self.pushed + self.chunk))
    }

    /// Device and slot of the chunk that begins with item `first`.
    fn place(&self, first: usize) -> (usize, usize) {
        let chunk = (first - self.items.start) / self.chunk;
        let device = chunk % self.devices.len();
        let turn = chunk / self.devices.len();
        (device, turn % self.devices[device].slots.len())
    }

    /// Submits the items that [`wants`](HostPlan::wants) names; `layers` hold every layer of theirs, and are not needed
    /// any more once this returns. Nothing where it names none.
    ///
    /// # Errors
    /// As [`Problem::check_layers`] for the layers; [`Error::Launch`], [`Error::Driver`].
    pub(crate) fn push(&mut self, layers: &[HostLayer<'_>]) -> Result<()> {
        let Some(items) = self.wants() else {
            return Ok(());
        };
        let part = self.problem.slice_batch(items.clone());
        part.check_layers(layers, part.output_len())?;
        let (device, slot) = self.place(items.start);
        let OnDevice {
            slots,
            computed,
            engine,
        } = &mut self.devices[device];
        bind(engine.context())?;
        let slot = &mut slots[slot];
        slot.pack(&part, layers, items.clone());
        slot.submit(engine, computed)?;
        self.pushed = items.end;
        Ok(())
    }

    /// Waits for the chunk pushed first; none where there is none under way.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub(crate) fn pop(&mut self) -> Result<Option<Chunk<'_>>> {
        if self.popped == self.pushed {
            return Ok(None);
        }
        let (device, slot) = self.place(self.popped);
        let OnDevice { slots, engine, .. } = &mut self.devices[device];
        bind(engine.context())?;
        let (items, out) = slots[slot].collect(&self.problem)?;
        self.popped = items.end;
        Ok(Some(Chunk::new(
            &self.problem,
            self.items.clone(),
            items,
            out,
        )))
    }
}

impl fmt::Display for HostPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.schedule().fmt(f)
    }
}

impl OnDevice {
    fn new(
        runtime: &Runtime,
        packed: &Problem,
        chunk: usize,
        slots: usize,
        options: &Options,
    ) -> Result<Self> {
        let (context, limits) = (runtime.context(), runtime.limits());
        let options = tune::decided(runtime, packed, chunk, options)?;
        let whole = choose_for(packed, chunk, limits, &options)?;
        let mut engine = Engine::alone(runtime, packed, whole, &options.workspace)?;
        engine.prepare(packed.shape().batch % chunk)?;
        let slots = (0..slots).map(|_| Slot::new(&engine, chunk));
        Ok(OnDevice {
            slots: slots.collect::<Result<_>>()?,
            computed: Event::new(context)?,
            engine,
        })
    }
}

/// Computes the rollout of host `layers` into `out` on one or several devices, which take chunks of the batch in turn.
///
/// The simple entry: makes the plan, runs once, and waits. `runtimes` holds at least one device.
///
/// # Errors
/// [`Error::ZeroExtent`] where there is no device; as [`HostPlan::on`] and [`HostPlan::run`].
pub fn run_host(
    runtimes: &[Runtime],
    problem: &Problem,
    layers: &[HostLayer<'_>],
    out: &mut [f32],
    options: &Options,
    items_per_chunk: Option<NonZeroUsize>,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    problem.check_layers(layers, out.len())?;
    HostPlan::on(runtimes, problem, options, items_per_chunk)?.run(layers, out, progress)
}
