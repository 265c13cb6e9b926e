//! Schedules with everything they need on a device, and their submission. Plans of all kinds are made of it.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, sys};

use super::bind::{Addresses, Binder};
use super::compile::{Kernels, Wanted};
use super::driver::driver_error;
use super::entry::Entry;
use super::handles::{DeviceMemory, Event, Stream, bind};
use super::launch;
use super::options::Options;
use super::schedule::{Lane, Schedule, Step};
use crate::error::Result;
use crate::problem::Problem;

/// Schedules of one problem that share kernels, workspace and constants.
pub(super) struct Engine {
    // Freed first: the driver waits for running kernels before it frees memory, and only then may modules go.
    workspace: DeviceMemory,
    constants: DeviceMemory,
    kernels: Arc<Kernels>,
    side: Option<Side>,
    events: Vec<Event>,
    schedules: Vec<Schedule>,
    problem: Problem,
    context: Arc<CudaContext>,
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
    workspace: DeviceMemory,
    constants: DeviceMemory,
}

impl Memory {
    /// Allocates what `schedules`, which share their constants, need.
    pub fn new(context: &Arc<CudaContext>, schedules: &[Schedule]) -> Result<Self> {
        let workspace = schedules.iter().map(Schedule::workspace_bytes).max();
        let constants = schedules
            .first()
            .map_or(&[][..], |first| &first.constants.bytes);
        Ok(Memory {
            workspace: DeviceMemory::new(context, "the workspace", workspace.unwrap_or(0))?,
            constants: DeviceMemory::upload(context, "windows, weights and start rows", constants)?,
        })
    }
}

impl Engine {
    /// Allocates what `schedules` need, and compiles and loads their kernels.
    pub fn alone(
        context: &Arc<CudaContext>,
        problem: &Problem,
        arch: u32,
        schedules: Vec<Schedule>,
        options: &Options,
    ) -> Result<Self> {
        // Memory first: what does not fit need not be compiled.
        let memory = Memory::new(context, &schedules)?;
        let wanted = schedules
            .iter()
            .flat_map(|schedule| Wanted::of(Entry::Alone, schedule));
        let kernels = Arc::new(Kernels::load(context, arch, wanted, options)?);
        Engine::new(context, problem, schedules, memory, kernels)
    }

    /// Puts together what `schedules` need.
    pub fn new(
        context: &Arc<CudaContext>,
        problem: &Problem,
        schedules: Vec<Schedule>,
        memory: Memory,
        kernels: Arc<Kernels>,
    ) -> Result<Self> {
        bind(context)?;
        let Memory {
            workspace,
            constants,
        } = memory;
        let side = if schedules.iter().any(Schedule::has_two_lanes) {
            Some(Side {
                stream: Stream::new(context)?,
                fork: Event::new(context)?,
            })
        } else {
            None
        };
        let events = schedules.iter().map(|schedule| schedule.events).max();
        let events = (0..events.unwrap_or(0))
            .map(|_| Event::new(context))
            .collect::<Result<_>>()?;
        Ok(Engine {
            workspace,
            constants,
            kernels,
            side,
            events,
            schedules,
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
        &self.schedules[index]
    }

    /// Device memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.workspace.bytes() + self.constants.bytes()
    }

    /// Submits steps `steps` of a schedule.
    ///
    /// # Safety
    /// The context is bound to this thread and `main` is a stream of it. `layers` holds, for every layer that the
    /// steps read, the address of maps laid out as the problem says, for the schedule's batch; `output` is the address
    /// of an output of the schedule's batch. Both stay valid, the layers unwritten and the output unused by others,
    /// until the work is done. Items `first_item..first_item + batch` are items of the problem.
    pub unsafe fn submit(
        &self,
        schedule: usize,
        steps: Range<usize>,
        main: sys::CUstream,
        layers: &[u64],
        output: u64,
        first_item: usize,
    ) -> Result<()> {
        let binder = self.binder(schedule, layers, output, first_item);
        let schedule = &self.schedules[schedule];
        let bases_aligned = layers.iter().all(|address| address.is_multiple_of(16));
        if let Some(side) = &self.side {
            side.fork.order(main, side.stream.raw())?;
        }
        for step in &schedule.steps[steps] {
            let stream = match (step.lane, &self.side) {
                (Lane::Side, Some(side)) => side.stream.raw(),
                _ => main,
            };
            if let Some(event) = step.wait {
                self.events[event].gate(stream)?;
            }
            // SAFETY: as promised by the caller.
            unsafe { self.launch(schedule, step, stream, &binder, bases_aligned) }?;
            if let Some(event) = step.signal {
                self.events[event].record(stream)?;
            }
        }
        Ok(())
    }

    /// What gives the steps of a schedule their addresses.
    pub fn binder<'a>(
        &'a self,
        schedule: usize,
        layers: &'a [u64],
        output: u64,
        first_item: usize,
    ) -> Binder<'a> {
        Binder {
            problem: &self.problem,
            constants: &self.schedules[schedule].constants,
            addresses: Addresses {
                workspace: self.workspace.address(),
                constants: self.constants.address(),
                output,
                layers,
            },
            first_item,
        }
    }

    /// Launches one step.
    ///
    /// # Safety
    /// As [`submit`](Engine::submit).
    unsafe fn launch(
        &self,
        schedule: &Schedule,
        step: &Step,
        stream: sys::CUstream,
        binder: &Binder<'_>,
        bases_aligned: bool,
    ) -> Result<()> {
        let (geometry, columns) = step.geometry(&schedule.common, bases_aligned);
        let Some(kernel) = self.kernels.get(Entry::Alone, &step.variant) else {
            return Ok(());
        };
        let params = binder.params(step, columns);
        // SAFETY: kernel and parameters are those of the step's variant; workspace and constants belong to this engine,
        // and the rest is promised by the caller.
        unsafe { launch::kernel(kernel, &geometry, stream, params.bytes()) }
    }
}

/// Whether work submitted to `stream` is captured into a graph instead of run.
pub(super) fn is_capturing(stream: &CudaStream) -> Result<bool> {
    let status = stream
        .capture_status()
        .map_err(driver_error("cuStreamIsCapturing"))?;
    Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}
