//! Running a case on a GPU: maps in device memory, times by CUDA events.
//!
//! Whatever is timed follows straight after the same work on another copy of the maps, as in a pipeline that never waits:
//! the time is the device's, or that of the launches where these take longer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaEvent, CudaGraph, CudaSlice, CudaStream, DevicePtr, DriverError, sys};

use super::device_maps::DeviceMaps;
use super::device_read::DeviceRead;
use super::inputs::Inputs;
use super::runner::{Replay, Runner, Setup};
use crate::cuda::driver::{allocation_error, bind, driver_error};
use crate::cuda::kernel::Arithmetic;
use crate::cuda::{DeviceOutput, GroupItem, GroupPlan, Options, Plan, Runtime, cudarc};
use crate::error::Result;
use crate::problem::Problem;

/// Events tell times to half a microsecond: this is 400 times that.
const CLOCK: Duration = Duration::from_micros(200);

/// Errors of f32 arithmetic on a GPU beside those of its sums, as a share of the largest entry (kernels/README.md).
const OF_LARGEST: f64 = 1e-6;

/// Problems on a GPU, and copies of their maps.
pub(super) struct CudaRunner {
    // What uses memory goes before it.
    graphs: Vec<Option<CudaGraph>>,
    plan: DevicePlan,
    floor: DeviceRead,
    floor_bytes: usize,
    maps: DeviceMaps,
    next: usize,
    outputs: Vec<CudaSlice<f32>>,
    output_addresses: Vec<u64>,
    start: CudaEvent,
    end: CudaEvent,
    stream: Arc<CudaStream>,
}

/// One problem, or several in one submission.
enum DevicePlan {
    One(Box<Plan>),
    Many(Box<GroupPlan>),
}

impl CudaRunner {
    /// Plans `problems` on the device of `runtime`.
    ///
    /// # Errors
    /// As [`Plan::new`]; [`Error::OutOfDeviceMemory`] where the maps do not fit beside the workspace.
    pub fn new(
        problems: &[Problem],
        inputs: &[Inputs],
        runtime: &Runtime,
        options: &Options,
    ) -> Result<Self> {
        let context = runtime.context();
        let plan = match problems {
            [problem] => DevicePlan::One(Box::new(Plan::on(runtime, problem, options)?)),
            problems => DevicePlan::Many(Box::new(GroupPlan::on(runtime, problems, options)?)),
        };
        let stream = context
            .new_stream()
            .map_err(driver_error("cuStreamCreate"))?;
        let output = |problem: &Problem| {
            let bytes = 4 * problem.output_len().max(1);
            stream
                .alloc_zeros(problem.output_len().max(1))
                .map_err(allocation_error("cuMemAllocAsync", "the output", bytes))
        };
        let outputs = problems.iter().map(output).collect::<Result<Vec<_>>>()?;
        let map_bytes = problems.iter().map(Problem::map_bytes).sum();
        let floor = DeviceRead::new(runtime, map_bytes)?;
        let maps = DeviceMaps::new(&stream, inputs, map_bytes)?;
        let event = || {
            context
                .new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT))
                .map_err(driver_error("cuEventCreate"))
        };
        let mut runner = CudaRunner {
            graphs: Vec::new(),
            plan,
            floor_bytes: floor.bytes(),
            floor,
            maps,
            next: 0,
            output_addresses: outputs
                .iter()
                .map(|out| out.device_ptr(&stream).0)
                .collect(),
            outputs,
            start: event()?,
            end: event()?,
            stream,
        };
        let copies = runner.maps.layers.len();
        runner.graphs.resize_with(copies, || None);
        runner.choose_grid()?;
        Ok(runner)
    }

    /// Lets the floor take the grid that reads fastest.
    fn choose_grid(&mut self) -> Result<()> {
        let mut best = (Duration::MAX, u32::MAX);
        for blocks in self.floor.grids() {
            self.floor.limit(blocks);
            for _ in 0..3 {
                best = best.min((self.read(1)?, blocks));
            }
        }
        self.floor.limit(best.1);
        Ok(())
    }

    /// The next copy of the maps, which comes up again only after all others.
    fn next(&mut self) -> usize {
        self.next += 1;
        self.next % self.graphs.len()
    }

    /// Submits a run over a copy.
    fn submit_run(&mut self, copy: usize) -> Result<()> {
        let layers = &self.maps.layers[copy];
        let stream = &self.stream;
        let outputs = self.output_addresses.iter().zip(&self.outputs);
        let outputs = outputs.map(|(&address, out)| {
            // SAFETY: this runner owns the output, uses it on one stream, and keeps it until its work is done.
            unsafe { DeviceOutput::from_raw(address, out.len()) }
        });
        match &mut self.plan {
            DevicePlan::One(plan) => {
                for (layers, out) in layers.iter().zip(outputs) {
                    plan.run(stream, layers, out)?;
                }
                Ok(())
            }
            DevicePlan::Many(group) => {
                let mut items: Vec<_> = layers
                    .iter()
                    .zip(outputs)
                    .map(|(layers, out)| GroupItem::new(layers, out))
                    .collect();
                group.run(stream, &mut items)
            }
        }
    }

    /// Submits the reading of a copy.
    fn submit_read(&mut self, copy: usize) -> Result<()> {
        let address = self.maps.addresses[copy];
        bind(self.stream.context())?;
        // SAFETY: a copy is at least as long as the bytes that a run must read, aligned, initialised, and never written.
        unsafe { self.floor.submit(&self.stream, address) }
    }

    /// The graph of a run over the next copy, captured now if it never was; its place.
    fn next_graph(&mut self) -> Result<usize> {
        let copy = self.next();
        if self.graphs[copy].is_none() {
            self.stream
                .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
                .map_err(driver_error("cuStreamBeginCapture_v2"))?;
            let submitted = self.submit_run(copy);
            // Whatever happened, the stream has to leave its capture.
            let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0));
            submitted?;
            let graph = graph.map_err(driver_error("cuStreamEndCapture"))?;
            if let Some(graph) = &graph {
                graph.upload().map_err(driver_error("cuGraphUpload"))?;
            }
            self.graphs[copy] = graph;
        }
        Ok(copy)
    }

    fn launch_graph(&self, copy: usize) -> Result<()> {
        match &self.graphs[copy] {
            Some(graph) => graph.launch().map_err(driver_error("cuGraphLaunch")),
            None => Ok(()),
        }
    }

    /// Marks the point from which on the device is timed.
    fn start(&self) -> Result<()> {
        self.start
            .record(&self.stream)
            .map_err(driver_error("cuEventRecord"))
    }

    /// Waits for the device; the time since [`start`](CudaRunner::start).
    fn stop(&self) -> Result<Duration> {
        self.end
            .record(&self.stream)
            .map_err(driver_error("cuEventRecord"))?;
        self.end
            .synchronize()
            .map_err(driver_error("cuEventSynchronize"))?;
        let milliseconds = self
            .start
            .elapsed_ms(&self.end)
            .map_err(driver_error("cuEventElapsedTime"))?;
        Ok(Duration::try_from_secs_f64(1e-3 * f64::from(milliseconds)).unwrap_or_default())
    }

    fn synchronize(&self) -> Result<()> {
        self.stream
            .synchronize()
            .map_err(driver_error("cuStreamSynchronize"))
    }
}

impl Runner for CudaRunner {
    fn run(&mut self, runs: u64) -> Result<Duration> {
        let lead = self.next();
        self.submit_run(lead)?;
        self.start()?;
        for _ in 0..runs {
            let copy = self.next();
            self.submit_run(copy)?;
        }
        self.stop()
    }

    fn read(&mut self, reads: u64) -> Result<Duration> {
        let lead = self.next();
        self.submit_read(lead)?;
        self.start()?;
        for _ in 0..reads {
            let copy = self.next();
            self.submit_read(copy)?;
        }
        self.stop()
    }

    fn replay(&mut self, replays: u64) -> Result<Option<Replay>> {
        // All are captured before the first is launched.
        let (lead, alone) = (self.next_graph()?, self.next_graph()?);
        let timed = (0..replays)
            .map(|_| self.next_graph())
            .collect::<Result<Vec<_>>>()?;
        self.launch_graph(lead)?;
        self.start()?;
        for copy in timed {
            self.launch_graph(copy)?;
        }
        let device = self.stop()?;
        self.synchronize()?;
        let launched = Instant::now();
        self.launch_graph(alone)?;
        self.synchronize()?;
        Ok(Some(Replay {
            device,
            latency: launched.elapsed(),
        }))
    }

    fn clock(&self) -> Duration {
        CLOCK
    }

    fn answers(&mut self) -> Result<Vec<Vec<f32>>> {
        for out in &mut self.outputs {
            let unset = vec![f32::NAN; out.len()];
            self.stream
                .memcpy_htod(&unset, out)
                .and_then(|()| self.stream.synchronize())
                .map_err(driver_error("cuMemcpyHtoDAsync_v2"))?;
        }
        let copy = self.next();
        self.submit_run(copy)?;
        let copied = self.outputs.iter().map(|out| self.stream.clone_dtoh(out));
        let answers = copied
            .collect::<Result<_, DriverError>>()
            .map_err(driver_error("cuMemcpyDtoHAsync_v2"))?;
        self.synchronize()?;
        Ok(answers)
    }

    fn setup(&self) -> Setup {
        let (schedules, workspace_bytes): (Vec<_>, _) = match &self.plan {
            DevicePlan::One(plan) => (vec![plan.schedule()], plan.workspace_bytes()),
            DevicePlan::Many(group) => (group.schedules().collect(), group.workspace_bytes()),
        };
        let mut variants: Vec<String> = Vec::new();
        for variant in schedules.iter().flat_map(|schedule| schedule.variants()) {
            if !variants.contains(&variant.symbol) {
                variants.push(variant.symbol.clone());
            }
        }
        let half = variants
            .iter()
            .any(|symbol| symbol.contains(Arithmetic::F16x2.name()));
        let steps = self.maps.layers[0].iter().map(Vec::len).max();
        Setup {
            variants,
            workspace_bytes,
            copies: self.graphs.len(),
            floor_bytes: self.floor_bytes,
            of_largest: match half {
                // Each layer rounds one factor, by at most 2^-11 of its value.
                true => steps.unwrap_or(0) as f64 / 2048.0,
                false => OF_LARGEST,
            },
        }
    }
}
