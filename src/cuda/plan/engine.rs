//! Schedules with everything they need on a device, and their submission. Plans of all kinds are made of it.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaContext, result, sys};

use super::inputs::{Given, InputRing};
use super::prepared::{Memory, Prepared};
use super::workspace::Workspace;
use crate::cuda::address::{Address, Base, Bases};
use crate::cuda::driver::{self, Event, Stream, bind, driver_error};
use crate::cuda::evidence::Evidence;
use crate::cuda::launch::MAX_WORDS;
use crate::cuda::runtime::Runtime;
use crate::cuda::schedule::{Lane, Schedule};
use crate::error::Result;
use crate::layout::Window;
use crate::problem::Problem;
use crate::recent::Recent;

/// Numbers of items whose schedules are kept, beside the one that was planned for.
const SIZES: NonZeroUsize = NonZeroUsize::new(8).unwrap();

/// A schedule of one problem, and those of fewer items, which share its kernels, workspace and tables.
pub(super) struct Engine {
    // Freed first: the driver waits for running kernels before it frees memory, and only then may modules go.
    memory: Memory,
    bases: Bases,
    side: Option<Side>,
    events: Vec<Event>,
    whole: Prepared,
    /// Made when a run first takes so few items.
    shorter: Recent<Shorter>,
    /// Where runs are given something beside their layers.
    inputs: Option<InputRing>,
    /// The windows of the run under way start at multiples of 16 bytes, as those for which the launches were chosen.
    aligned: bool,
    problem: Problem,
    runtime: Runtime,
}

/// What a run of fewer items needs.
struct Shorter {
    prepared: Prepared,
    /// As many items of the problem.
    problem: Problem,
}

/// The engine's own stream, and the event by which it starts after the caller's.
struct Side {
    stream: Stream,
    fork: Event,
}

impl Engine {
    /// Allocates what `schedule` needs, and compiles and loads its kernels.
    pub fn alone(
        runtime: &Runtime,
        problem: &Problem,
        schedule: Schedule,
        workspace: &Workspace,
    ) -> Result<Self> {
        // Memory first: what does not fit need not be compiled.
        let memory = Memory::new(runtime.context(), &schedule, workspace)?;
        Engine::member(runtime, problem, schedule, memory, true)
    }

    /// As [`alone`](Engine::alone) in `memory` that it was given; only what its launches need that are shared with other
    /// problems where it is not `alone`.
    pub fn member(
        runtime: &Runtime,
        problem: &Problem,
        schedule: Schedule,
        memory: Memory,
        alone: bool,
    ) -> Result<Self> {
        let whole = match alone {
            true => Prepared::alone(runtime, schedule)?,
            false => Prepared {
                functions: Vec::new(),
                schedule,
            },
        };
        let context = runtime.context();
        bind(context)?;
        let inputs = InputRing::new(runtime, problem, &whole.schedule)?;
        let side = if whole.schedule.has_two_lanes() {
            Some(Side {
                stream: Stream::new(context)?,
                fork: Event::new(context)?,
            })
        } else {
            None
        };
        let events = (0..whole.schedule.events)
            .map(|_| Event::new(context))
            .collect::<Result<_>>()?;
        Ok(Engine {
            bases: memory.bases(&whole.schedule),
            memory,
            side,
            events,
            whole,
            shorter: Recent::new(SIZES),
            inputs,
            aligned: true,
            problem: problem.clone(),
            runtime: runtime.clone(),
        })
    }

    /// Makes ready for runs of `items` items, which are not more than were planned for.
    pub fn prepare(&mut self, items: usize) -> Result<()> {
        if items == self.whole.schedule.batch {
            return Ok(());
        }
        let Engine {
            whole,
            shorter,
            problem,
            runtime,
            ..
        } = self;
        let make = || {
            let mut schedule = whole.schedule.of_items(problem, items, runtime.limits());
            // The whole one's are there.
            schedule.tables = Vec::new();
            let prepared = Prepared::alone(runtime, schedule)?;
            let problem = problem.slice_batch(0..items);
            Ok(Shorter { prepared, problem })
        };
        shorter.get(|shorter| shorter.problem.shape().batch == items, make)?;
        Ok(())
    }

    /// The problem of runs of `items` items, for which the engine is [prepared](Engine::prepare); of their windows and rows
    /// it does not tell.
    pub fn problem_of(&self, items: usize) -> &Problem {
        of_items(&self.shorter, items).map_or(&self.problem, |shorter| &shorter.problem)
    }

    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    pub fn context(&self) -> &Arc<CudaContext> {
        self.runtime.context()
    }

    /// What was planned for.
    pub fn schedule(&self) -> &Schedule {
        &self.whole.schedule
    }

    /// The schedule of runs of `items` items, for which the engine is [prepared](Engine::prepare).
    pub fn schedule_of(&self, items: usize) -> &Schedule {
        let shorter = of_items(&self.shorter, items);
        &shorter
            .map_or(&self.whole, |shorter| &shorter.prepared)
            .schedule
    }

    /// Where the bases of the schedule begin, but for layers and output.
    pub fn bases(&self) -> &Bases {
        &self.bases
    }

    /// Bytes of workspace.
    pub fn workspace_bytes(&self) -> usize {
        self.memory.workspace.bytes()
    }

    /// Bytes of device memory that is the engine's own and lasts from run to run.
    pub fn owned_bytes(&self) -> usize {
        self.memory.tables.bytes()
    }

    /// Gives the runs to come other windows.
    pub fn set_windows(&mut self, windows: &[Window]) -> Result<()> {
        self.problem.set_windows(windows)?;
        self.change();
        Ok(())
    }

    /// Gives the runs to come other start rows.
    pub fn set_rows(&mut self, rows: &[usize]) -> Result<()> {
        self.problem.set_rows(rows)?;
        self.change();
        Ok(())
    }

    /// Gives the runs to come the windows and rows of `problem`, which has the same plan.
    pub fn restore(&mut self, problem: &Problem) {
        if self.problem != *problem {
            self.problem.restore(problem.windows(), problem.item_rows());
            self.change();
        }
    }

    fn change(&mut self) {
        if let Some(inputs) = &mut self.inputs {
            inputs.change(&self.problem);
        }
    }

    /// Whether the windows of the run under way allow launches for rows that start at multiples of 16 bytes.
    pub fn is_aligned(&self) -> bool {
        self.aligned
    }

    /// Makes the tables say what the run of `items` that follows is given, where they do not yet. Whether anything was
    /// submitted.
    ///
    /// # Safety
    /// The context is bound to this thread and `stream` is a stream of it, behind the last run's; what is `given` is as
    /// [`RunInputs`](super::inputs::RunInputs) says, until the work is done. `items` are items of the problem.
    pub unsafe fn give(
        &mut self,
        stream: sys::CUstream,
        capturing: bool,
        given: Given,
        items: Range<usize>,
    ) -> Result<bool> {
        let Engine {
            memory,
            bases,
            whole: Prepared { schedule, .. },
            inputs,
            problem,
            ..
        } = self;
        let (Some(inputs), Some(launch)) = (inputs, &schedule.inputs) else {
            return Ok(false);
        };
        schedule.place_tables(bases, memory.tables.address(), 0);
        let windows = bases.resolve(Address::of(Base::GivenWindows));
        self.aligned = inputs.aligned(given, capturing);
        // SAFETY: the table has as many windows and rows as the problem; the rest is promised by the caller.
        let derives = unsafe { inputs.bring(problem, stream, capturing, given, windows) }?;
        let batch = problem.shape().batch;
        // What is given is given for the run's items alone.
        let items = if given.is_any() { items } else { 0..batch };
        if derives && !items.is_empty() {
            schedule.place_tables(bases, memory.tables.address(), items.start);
            let own = windows + window_bytes(items.start);
            bases.place(Base::GivenWindows, given.windows.unwrap_or(own));
            if !problem.item_rows().is_empty() {
                let row_bytes = size_of::<i32>() * problem.start_rows();
                let own = windows + window_bytes(batch) + (row_bytes * items.start) as u64;
                bases.place(Base::GivenRows, given.rows.unwrap_or(own));
            }
            let mut params = [0; MAX_WORDS];
            launch.link(bases, &mut params);
            let mut geometry = *launch.geometry();
            geometry.grid[0] = items.len() as u32;
            // SAFETY: the tables are this engine's, and what is given is promised by the caller.
            unsafe { driver::launch(inputs.function(), &geometry, stream, &params) }?;
            inputs.derived(given, capturing);
        }
        Ok(derives)
    }

    /// Waits until `stream` has come past the last run, which was one of `items`, and checks whether its queries, keys and
    /// LSE belong together.
    ///
    /// # Safety
    /// The context is bound to this thread and `stream` is a stream of it, behind the last run's.
    pub unsafe fn check(&self, stream: sys::CUstream, items: Range<usize>) -> Result<()> {
        let evidence = self.evidence();
        let mut bytes = vec![0; evidence.bytes()];
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the copies are waited for below; the rest is promised by the caller.
        unsafe {
            self.copy_evidence(stream, &mut bytes)?;
            result::stream::synchronize(stream)
        }
        .map_err(driver_error("cuStreamSynchronize"))?;
        evidence.check(&self.problem, items, &bytes)
    }

    /// What runs leave of whether queries, keys and LSE belong together.
    pub fn evidence(&self) -> Evidence {
        let window_len = self.problem.longest_window() as u32;
        let Schedule {
            pipeline, batch, ..
        } = self.whole.schedule;
        Evidence::new(&self.problem, pipeline, batch, window_len)
    }

    /// Copies it into `bytes`, as many as there are.
    ///
    /// # Safety
    /// As [`check`](Engine::check); `bytes` are left alone until the copies are done.
    pub unsafe fn copy_evidence(&self, stream: sys::CUstream, mut bytes: &mut [u8]) -> Result<()> {
        for part in self.evidence().parts() {
            let (of_part, rest) = bytes.split_at_mut(part.bytes());
            let from = self.bases.resolve(Address::of(part.base));
            // SAFETY: the table is as long as the part, which the caller leaves alone.
            unsafe { result::memcpy_dtoh_async(of_part, from, stream) }
                .map_err(driver_error("cuMemcpyDtoHAsync_v2"))?;
            bytes = rest;
        }
        Ok(())
    }

    /// Submits steps `steps` of the schedule of runs of so many `items`, for which the engine is
    /// [prepared](Engine::prepare).
    ///
    /// # Safety
    /// The context is bound to this thread and `main` is a stream of it. `layers` holds, for every layer that the
    /// steps read, the addresses of its tensors laid out as the problem says, for the items; `output` is the address
    /// of their output. Both stay valid, the layers unwritten and the output unused by others, until the work is done.
    /// `items` are items of the problem.
    pub unsafe fn submit(
        &mut self,
        items: Range<usize>,
        steps: Range<usize>,
        main: sys::CUstream,
        layers: &[u64],
        output: u64,
    ) -> Result<()> {
        if steps.is_empty() {
            return Ok(());
        }
        let Engine {
            memory,
            bases,
            side,
            events,
            whole,
            shorter,
            ..
        } = self;
        let Prepared {
            schedule,
            functions,
        } = of_items(shorter, items.len()).map_or(&*whole, |shorter| &shorter.prepared);
        let mut layers_aligned = layers.iter().map(|address| address.is_multiple_of(16));
        let aligned = self.aligned && layers_aligned.all(|aligned| aligned);
        for (tensor, &address) in layers.iter().enumerate() {
            bases.place(schedule.tensor(tensor), address);
        }
        bases.place(Base::Output, output);
        whole
            .schedule
            .place_tables(bases, memory.tables.address(), items.start);
        if let Some(side) = side {
            side.fork.order(main, side.stream.raw())?;
        }
        let mut params = [0; MAX_WORDS];
        let functions = functions[steps.clone()].iter();
        for (step, function) in schedule.steps[steps].iter().zip(functions) {
            let stream = match (step.lane, &*side) {
                (Lane::Side, Some(side)) => side.stream.raw(),
                _ => main,
            };
            if let Some(event) = step.wait {
                events[event].gate(stream)?;
            }
            let launch = step.launch(aligned);
            launch.link(bases, &mut params);
            // SAFETY: function and parameters are those of the step's kernel; workspace and tables belong to this
            // engine, and the rest is promised by the caller.
            unsafe { driver::launch(function, launch.geometry(), stream, &params) }?;
            if let Some(event) = step.signal {
                events[event].record(stream)?;
            }
        }
        Ok(())
    }
}

/// What runs of `items` items need, where it is not the whole.
fn of_items(shorter: &Recent<Shorter>, items: usize) -> Option<&Shorter> {
    let mut shorter = shorter.iter();
    shorter.find(|shorter| shorter.problem.shape().batch == items)
}

/// Bytes of the windows of so many items, as runs are given them.
fn window_bytes(items: usize) -> u64 {
    (items * size_of::<[i32; 2]>()) as u64
}
