//! Schedules with everything they need on a device, and their submission. Plans of all kinds are made of it.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, sys};

use super::inputs::{Given, InputRing};
use super::workspace::{Room, Workspace};
use crate::cuda::address::{Address, Base, Bases};
use crate::cuda::driver::{self, DeviceMemory, Event, Function, Stream, bind, driver_error};
use crate::cuda::launch::MAX_WORDS;
use crate::cuda::runtime::Runtime;
use crate::cuda::schedule::{Lane, Schedule};
use crate::cuda::variant::{Entry, Variant};
use crate::error::Result;
use crate::layout::Window;
use crate::problem::Problem;

/// Schedules of one problem that share kernels, workspace and tables.
pub(super) struct Engine {
    // Freed first: the driver waits for running kernels before it frees memory, and only then may modules go.
    memory: Memory,
    side: Option<Side>,
    events: Vec<Event>,
    prepared: Vec<Prepared>,
    /// Where runs are given something beside their layers.
    inputs: Option<InputRing>,
    /// The windows of the run under way start at multiples of 16 bytes, as those for which the launches were chosen.
    aligned: bool,
    problem: Problem,
    context: Arc<CudaContext>,
}

/// A schedule with what its launches need.
struct Prepared {
    schedule: Schedule,
    bases: Bases,
    /// Those of the steps; none where launches are shared with other problems.
    functions: Vec<Arc<Function>>,
}

/// The engine's own stream, and the event by which it starts after the caller's.
struct Side {
    stream: Stream,
    fork: Event,
}

/// Orders runs that share a workspace across streams.
pub(super) struct Handover {
    event: Event,
    last: Option<Arc<CudaStream>>,
}

impl Handover {
    pub fn new(context: &Arc<CudaContext>) -> Result<Self> {
        Ok(Handover {
            event: Event::new(context)?,
            last: None,
        })
    }

    /// Makes `stream` wait for the last run where that was submitted to another stream. Not while it is capturing.
    pub fn follow(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        match &self.last {
            Some(last) if last.cu_stream() == stream.cu_stream() => return Ok(()),
            Some(last) => self.event.order(last.cu_stream(), stream.cu_stream())?,
            None => {}
        }
        self.last = Some(stream.clone());
        Ok(())
    }
}

/// The device memory of an engine.
pub(super) struct Memory {
    workspace: Room,
    tables: DeviceMemory,
}

impl Memory {
    /// What `schedules`, which share their tables, need: tables, and what they take of `workspace`.
    pub fn new(
        context: &Arc<CudaContext>,
        schedules: &[Schedule],
        workspace: &Workspace,
    ) -> Result<Self> {
        let required = schedules.iter().map(Schedule::workspace_bytes).max();
        let tables = schedules.first().map(Schedule::table_bytes);
        let tables = tables.unwrap_or_default();
        Ok(Memory {
            workspace: workspace.take(context, required.unwrap_or(0))?,
            tables: DeviceMemory::upload(context, "windows, weights and start rows", &tables)?,
        })
    }

    /// Where the bases of `schedule` begin, but for layers and output.
    fn bases(&self, schedule: &Schedule) -> Bases {
        let mut bases = schedule.bases();
        schedule.place_buffers(&mut bases, self.workspace.address());
        schedule.place_tables(&mut bases, self.tables.address(), 0);
        bases
    }
}

impl Prepared {
    /// Compiles and loads the kernels of `schedule`, which works in `memory`.
    fn alone(runtime: &Runtime, memory: &Memory, schedule: Schedule) -> Result<Self> {
        let load = |variant: &Arc<Variant>| {
            let shared_bytes = schedule.shared_bytes(variant);
            runtime.function(Entry::Alone, variant, shared_bytes)
        };
        let loaded = schedule.variants.iter().map(load);
        let loaded = loaded.collect::<Result<Vec<_>>>()?;
        let known = || schedule.variants.iter().zip(&loaded);
        let functions = schedule.steps.iter().filter_map(|step| {
            let mut known = known();
            let (_, function) = known.find(|(variant, _)| *variant == step.launch.variant())?;
            Some(function.clone())
        });
        Ok(Prepared {
            functions: functions.collect(),
            bases: memory.bases(&schedule),
            schedule,
        })
    }
}

impl Engine {
    /// Allocates what `schedules` need, and compiles and loads their kernels.
    pub fn alone(
        runtime: &Runtime,
        problem: &Problem,
        schedules: Vec<Schedule>,
        workspace: &Workspace,
    ) -> Result<Self> {
        // Memory first: what does not fit need not be compiled.
        let memory = Memory::new(runtime.context(), &schedules, workspace)?;
        let prepared = schedules
            .into_iter()
            .map(|schedule| Prepared::alone(runtime, &memory, schedule))
            .collect::<Result<_>>()?;
        Engine::new(runtime, problem, prepared, memory)
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
        let prepared = match alone {
            true => Prepared::alone(runtime, &memory, schedule)?,
            false => Prepared {
                bases: memory.bases(&schedule),
                functions: Vec::new(),
                schedule,
            },
        };
        Engine::new(runtime, problem, vec![prepared], memory)
    }

    fn new(
        runtime: &Runtime,
        problem: &Problem,
        prepared: Vec<Prepared>,
        memory: Memory,
    ) -> Result<Self> {
        let context = runtime.context();
        bind(context)?;
        let inputs = match prepared.first() {
            Some(first) => InputRing::new(runtime, problem, &first.schedule)?,
            None => None,
        };
        let schedules = || prepared.iter().map(|prepared| &prepared.schedule);
        let side = if schedules().any(Schedule::has_two_lanes) {
            Some(Side {
                stream: Stream::new(context)?,
                fork: Event::new(context)?,
            })
        } else {
            None
        };
        let events = schedules().map(|schedule| schedule.events).max();
        let events = (0..events.unwrap_or(0))
            .map(|_| Event::new(context))
            .collect::<Result<_>>()?;
        Ok(Engine {
            memory,
            side,
            events,
            prepared,
            inputs,
            aligned: true,
            problem: problem.clone(),
            context: context.clone(),
        })
    }

    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    pub fn schedule(&self, index: usize) -> &Schedule {
        &self.prepared[index].schedule
    }

    /// Where the bases of a schedule begin, but for layers and output.
    pub fn bases(&self, schedule: usize) -> &Bases {
        &self.prepared[schedule].bases
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

    /// Makes the tables say what the run that follows is given, where they do not yet. Whether anything was submitted.
    ///
    /// # Safety
    /// The context is bound to this thread and `stream` is a stream of it, behind the last run's; what is `given` is as
    /// [`RunInputs`](super::inputs::RunInputs) says, until the work is done.
    pub unsafe fn give(
        &mut self,
        stream: sys::CUstream,
        capturing: bool,
        given: Given,
    ) -> Result<bool> {
        let (Some(inputs), Some(first)) = (&mut self.inputs, self.prepared.first_mut()) else {
            return Ok(false);
        };
        let Prepared {
            schedule, bases, ..
        } = first;
        let Some(launch) = &schedule.inputs else {
            return Ok(false);
        };
        schedule.place_tables(bases, self.memory.tables.address(), 0);
        let windows = bases.resolve(Address::of(Base::GivenWindows));
        self.aligned = inputs.aligned(given, capturing);
        // SAFETY: the table has as many windows and rows as the problem; the rest is promised by the caller.
        let derives = unsafe { inputs.bring(&self.problem, stream, capturing, given, windows) }?;
        if derives {
            let rows = windows + (self.problem.shape().batch * size_of::<[i32; 2]>()) as u64;
            bases.place(Base::GivenWindows, given.windows.unwrap_or(windows));
            bases.place(Base::GivenRows, given.rows.unwrap_or(rows));
            let mut params = [0; MAX_WORDS];
            launch.link(bases, &mut params);
            // SAFETY: the tables are this engine's, and what is given is promised by the caller.
            unsafe { driver::launch(inputs.function(), launch.geometry(), stream, &params) }?;
            inputs.derived(given, capturing);
        }
        Ok(derives)
    }

    /// Submits steps `steps` of a schedule.
    ///
    /// # Safety
    /// The context is bound to this thread and `main` is a stream of it. `layers` holds, for every layer that the
    /// steps read, the addresses of its tensors laid out as the problem says, for the schedule's batch; `output` is the address
    /// of an output of the schedule's batch. Both stay valid, the layers unwritten and the output unused by others,
    /// until the work is done. Items `first_item..first_item + batch` are items of the problem.
    pub unsafe fn submit(
        &mut self,
        schedule: usize,
        steps: Range<usize>,
        main: sys::CUstream,
        layers: &[u64],
        output: u64,
        first_item: usize,
    ) -> Result<()> {
        let Prepared {
            schedule,
            bases,
            functions,
        } = &mut self.prepared[schedule];
        let mut layers_aligned = layers.iter().map(|address| address.is_multiple_of(16));
        let aligned = self.aligned && layers_aligned.all(|aligned| aligned);
        for (tensor, &address) in layers.iter().enumerate() {
            bases.place(schedule.tensor(tensor), address);
        }
        bases.place(Base::Output, output);
        schedule.place_tables(bases, self.memory.tables.address(), first_item);
        if let Some(side) = &self.side {
            side.fork.order(main, side.stream.raw())?;
        }
        let mut params = [0; MAX_WORDS];
        let functions = functions[steps.clone()].iter();
        for (step, function) in schedule.steps[steps].iter().zip(functions) {
            let stream = match (step.lane, &self.side) {
                (Lane::Side, Some(side)) => side.stream.raw(),
                _ => main,
            };
            if let Some(event) = step.wait {
                self.events[event].gate(stream)?;
            }
            let launch = step.launch(aligned);
            launch.link(bases, &mut params);
            // SAFETY: function and parameters are those of the step's kernel; workspace and tables belong to this
            // engine, and the rest is promised by the caller.
            unsafe { driver::launch(function, launch.geometry(), stream, &params) }?;
            if let Some(event) = step.signal {
                self.events[event].record(stream)?;
            }
        }
        Ok(())
    }
}

/// Whether work submitted to `stream` is captured into a graph instead of run.
pub(super) fn is_capturing(stream: &CudaStream) -> Result<bool> {
    let status = stream
        .capture_status()
        .map_err(driver_error("cuStreamIsCapturing"))?;
    Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}
