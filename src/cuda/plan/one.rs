//! A plan: one problem made ready on one device.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream};

use super::buffers::{
    DeviceLayer, DeviceOutput, addresses, alloc_output, check_run, check_stream, track,
};
use super::engine::Engine;
use super::handover::{Handover, ready_to_check};
use super::inputs::RunInputs;
use super::tune;
use crate::cuda::choose::choose;
use crate::cuda::driver::{bind, is_capturing};
use crate::cuda::limits::DeviceLimits;
use crate::cuda::options::{Compiler, Options};
use crate::cuda::pipeline::operands;
use crate::cuda::runtime::Runtime;
use crate::cuda::schedule::Schedule;
use crate::error::Result;
use crate::layout::Window;
use crate::problem::Problem;

/// A problem made ready to run on a GPU: kernels chosen, compiled and loaded, workspace allocated.
///
/// Printing it (`{plan}`) shows the kernels, their launch geometry, the workspace, and the bytes that have to move.
///
/// A plan may be moved to another thread. Two threads cannot run it at the same time, for its workspace holds one run:
///
/// ```compile_fail,E0499
/// # use attention_rollout::cuda::{DeviceLayer, Plan, cudarc::driver::{CudaSlice, CudaStream}};
/// # use std::sync::Arc;
/// # fn twice(mut plan: Plan, stream: Arc<CudaStream>, layers: &[DeviceLayer], mut outs: [CudaSlice<f32>; 2]) {
/// let [first, second] = &mut outs;
/// std::thread::scope(|scope| {
///     scope.spawn(|| plan.run(&stream, layers, first));
///     scope.spawn(|| plan.run(&stream, layers, second));
/// });
/// # }
/// ```
pub struct Plan {
    engine: Engine,
    handover: Handover,
    layer_addresses: Vec<u64>,
    last_items: Range<usize>,
}

impl Plan {
    /// Makes `problem` ready on the device of `context` (see [`context`](crate::cuda::context())).
    ///
    /// # Errors
    /// As [`choose`](crate::cuda::choose()); [`Error::Nvrtc`](crate::Error::Nvrtc) where the compiler is missing or fails;
    /// [`Error::OutOfDeviceMemory`](crate::Error::OutOfDeviceMemory) where the workspace does not fit, after which
    /// nothing stays allocated; [`Error::WorkspaceLen`](crate::Error::WorkspaceLen) and
    /// [`Error::Misaligned`](crate::Error::Misaligned) where a borrowed one cannot be used; with [`Options::tune`] as
    /// [`tune`](crate::cuda::tune()); [`Error::Driver`](crate::Error::Driver).
    pub fn new(context: &Arc<CudaContext>, problem: &Problem, options: &Options) -> Result<Self> {
        Plan::on(
            &Runtime::new(context, &Compiler::default())?,
            problem,
            options,
        )
    }

    /// As [`new`](Plan::new), with the compiler and the kernels of `runtime`.
    ///
    /// # Errors
    /// As [`new`](Plan::new).
    pub fn on(runtime: &Runtime, problem: &Problem, options: &Options) -> Result<Self> {
        let options = options.with_environment();
        let options = tune::decided(runtime, problem, problem.shape().batch, &options)?;
        let schedule = choose(problem, runtime.limits(), &options)?;
        Ok(Plan {
            engine: Engine::alone(runtime, problem, schedule, &options.workspace)?,
            handover: Handover::new(runtime.context())?,
            layer_addresses: Vec::with_capacity(problem.shape().layers * operands(problem)),
            last_items: 0..0,
        })
    }

    /// Bytes of [workspace](crate::cuda::Workspace) that a plan of `problem` takes on a device with these limits. Asks
    /// no driver, and so does not know what [`tune`](crate::cuda::tune()) finds: whoever lends a workspace gives the way of
    /// computing that it found as [`Options::pipeline`], here and to the plan.
    ///
    /// # Errors
    /// As [`choose`](crate::cuda::choose()).
    pub fn required_workspace(
        problem: &Problem,
        limits: &DeviceLimits,
        options: &Options,
    ) -> Result<usize> {
        let schedule = choose(problem, limits, &options.with_environment())?;
        Ok(schedule.workspace_bytes())
    }

    /// Gives the runs to come what `problem`, of which it is a plan too, is given.
    pub(super) fn restore(&mut self, problem: &Problem) {
        self.engine.restore(problem);
    }

    /// The problem this plan runs, with the windows and rows that it was told last.
    pub fn problem(&self) -> &Problem {
        self.engine.problem()
    }

    /// What a run launches.
    pub fn schedule(&self) -> &Schedule {
        self.engine.schedule()
    }

    /// The context the plan belongs to.
    pub fn context(&self) -> &Arc<CudaContext> {
        self.engine.context()
    }

    /// Device memory that a run works in, in bytes, the plan's own or borrowed.
    pub fn workspace_bytes(&self) -> usize {
        self.engine.workspace_bytes()
    }

    /// Device memory that the plan has beside the workspace, in bytes: what lasts from run to run.
    pub fn owned_bytes(&self) -> usize {
        self.engine.owned_bytes()
    }

    /// Submits the rollout of `layers` (every layer of the problem, first to last) into `out`, shaped as
    /// [`Problem::output_shape`], to `stream`.
    ///
    /// Launches only: nothing is allocated, compiled or waited for, so the call may be part of a stream capture. The
    /// result is there when the stream has come past; what this call returns is whether it was submitted.
    ///
    /// The workspace belongs to one run at a time, and what lies in it when a run begins does not matter. Runs on one
    /// stream follow each other; a run on another stream than the last one waits for that stream. Replays of a captured
    /// graph are the caller's to order with other runs. A graph that captured this call takes whatever windows and rows
    /// the plan has on the device when it is replayed; one that captured [`run_with`](Plan::run_with) reads them anew.
    ///
    /// `stream` is one of cudarc, or that of any other library: `CudaContext::wrap_borrowed_stream` (unsafe) makes the
    /// `Arc<CudaStream>` of a foreign `CUstream`, which must be of this context and outlive the plan's runs on it, because
    /// the plan keeps the last one to order the next run after it. Nothing is copied, nothing is created on the device, and
    /// dropping it leaves the foreign stream as it is.
    ///
    /// While `stream` is capturing, cudarc's tracking of buffers is left alone: whoever captures orders the graph's
    /// launches with other uses of the buffers.
    ///
    /// # Errors
    /// [`Error::WrongDevice`], [`Error::Count`], [`Error::LayerSource`], [`Error::LayerDType`], [`Error::LayerLen`], [`Error::Len`],
    /// [`Error::Misaligned`], [`Error::Overlap`] before anything is submitted; [`Error::Launch`], [`Error::Driver`].
    ///
    /// [`Error::WrongDevice`]: crate::Error::WrongDevice
    /// [`Error::Count`]: crate::Error::Count
    /// [`Error::LayerSource`]: crate::Error::LayerSource
    /// [`Error::LayerDType`]: crate::Error::LayerDType
    /// [`Error::LayerLen`]: crate::Error::LayerLen
    /// [`Error::Len`]: crate::Error::Len
    /// [`Error::Misaligned`]: crate::Error::Misaligned
    /// [`Error::Overlap`]: crate::Error::Overlap
    /// [`Error::Launch`]: crate::Error::Launch
    /// [`Error::Driver`]: crate::Error::Driver
    pub fn run<'o>(
        &mut self,
        stream: &Arc<CudaStream>,
        layers: &[DeviceLayer<'_>],
        out: impl Into<DeviceOutput<'o>>,
    ) -> Result<()> {
        self.run_with(stream, layers, out, RunInputs::default())
    }

    /// Gives the runs to come other windows, one per item, where the problem was made with windows.
    ///
    /// The next run copies them to the device, in one copy of 8 bytes per item (and 4 for each of its start rows, where
    /// they differ by item) from a ring of pinned slots, on its own stream; nothing waits unless eight such runs are under way. One kernel more makes
    /// all that depends on them. A run that is captured takes no copy: [`run_with`](Plan::run_with) reads windows from
    /// device memory.
    ///
    /// # Errors
    /// [`Error::FixedInput`] where the problem was made without windows; [`Error::Count`], [`Error::Window`],
    /// [`Error::WindowLen`]; [`Error::StartRow`] where a start row that all items share lies outside one of them. After an
    /// error the windows are as they were.
    ///
    /// [`Error::FixedInput`]: crate::Error::FixedInput
    /// [`Error::Count`]: crate::Error::Count
    /// [`Error::Window`]: crate::Error::Window
    /// [`Error::WindowLen`]: crate::Error::WindowLen
    /// [`Error::StartRow`]: crate::Error::StartRow
    pub fn set_windows(&mut self, windows: &[Window]) -> Result<()> {
        self.engine.set_windows(windows)
    }

    /// Gives the runs to come other start rows, as many per item as before and counted from its window's start, where the problem was
    /// made with [`StartRows::PerItem`](crate::StartRows::PerItem). They travel as [windows](Plan::set_windows) do;
    /// whether they lie in the windows a run says.
    ///
    /// # Errors
    /// [`Error::FixedInput`](crate::Error::FixedInput) where the problem was made otherwise;
    /// [`Error::Count`](crate::Error::Count). After an error the rows are as they were.
    pub fn set_rows(&mut self, rows: &[usize]) -> Result<()> {
        self.engine.set_rows(rows)
    }

    /// As [`run`](Plan::run), of the items `items` of the batch alone: `layers` hold every layer of theirs, and `out` is
    /// shaped as [`Problem::output_shape`] of a problem of these items. So a plan serves batches of fewer items, whose memory
    /// ends with them.
    ///
    /// The first run of a number of items lays out its launches, on the host: no kernel, no device memory and no driver call
    /// more than those of the whole batch. The last eight such numbers are remembered.
    ///
    /// # Errors
    /// As [`run`](Plan::run) for the items; [`Error::Items`](crate::Error::Items) where they leave the batch.
    pub fn run_items<'o>(
        &mut self,
        stream: &Arc<CudaStream>,
        items: Range<usize>,
        layers: &[DeviceLayer<'_>],
        out: impl Into<DeviceOutput<'o>>,
    ) -> Result<()> {
        self.run_items_with(stream, items, layers, out, RunInputs::default())
    }

    /// As [`run`](Plan::run) with windows and rows from device memory, for this run alone. They may be computed on the
    /// device, and a graph that captured the run reads them anew whenever it is replayed.
    ///
    /// # Errors
    /// As [`run`](Plan::run), for the inputs too; [`Error::FixedInput`](crate::Error::FixedInput) where the problem was
    /// made without windows or without start rows per item.
    pub fn run_with<'o>(
        &mut self,
        stream: &Arc<CudaStream>,
        layers: &[DeviceLayer<'_>],
        out: impl Into<DeviceOutput<'o>>,
        inputs: RunInputs<'_>,
    ) -> Result<()> {
        let all = 0..self.problem().shape().batch;
        self.run_items_with(stream, all, layers, out, inputs)
    }

    /// [`run_items`](Plan::run_items) and [`run_with`](Plan::run_with) in one: the windows and rows are those of `items`.
    ///
    /// # Errors
    /// As [`run_items`](Plan::run_items) and [`run_with`](Plan::run_with).
    pub fn run_items_with<'o>(
        &mut self,
        stream: &Arc<CudaStream>,
        items: Range<usize>,
        layers: &[DeviceLayer<'_>],
        out: impl Into<DeviceOutput<'o>>,
        inputs: RunInputs<'_>,
    ) -> Result<()> {
        let mut out = out.into();
        self.problem().check_items(&items)?;
        bind(self.context())?;
        check_stream(self.context(), stream)?;
        self.engine.prepare(items.len())?;
        // What the device says of windows or rows, it holds to each other.
        if !inputs.addresses().is_any() {
            self.problem().check_rows_of(items.clone())?;
        }
        let problem = self.engine.problem_of(items.len());
        check_run(problem, self.context(), layers, &out)?;
        inputs.check(problem, self.context())?;
        let capturing = is_capturing(stream)?;
        let output = out.address();
        let mut guards = Vec::new();
        if self.context().is_managing_stream_synchronization() && !capturing {
            guards.extend(track(stream, layers, &mut out));
            guards.extend(inputs.track(stream));
        }
        if !capturing {
            self.handover.follow(stream)?;
        }
        self.layer_addresses.clear();
        self.layer_addresses.extend(addresses(layers));
        // SAFETY: the context is bound; the inputs have been checked against the problem, and are promised to stay valid.
        unsafe {
            self.engine.give(
                stream.cu_stream(),
                capturing,
                inputs.addresses(),
                items.clone(),
            )
        }?;
        let steps = 0..self.engine.schedule_of(items.len()).steps.len();
        self.last_items = items.clone();
        // SAFETY: the context is bound. The layers and the output have been checked against the problem; that they
        // stay valid is promised by whoever made them, and ordered with other uses above.
        unsafe {
            self.engine.submit(
                items,
                steps,
                stream.cu_stream(),
                &self.layer_addresses,
                output,
            )
        }
    }

    /// Waits for the last run, and checks whether its queries, keys and LSE belong together, as far as that
    /// [is known and wanted](crate::QueriesKeys::mass_tolerance). Of other sources it checks nothing and waits for nothing. Of
    /// a run that was given windows in device memory, the rows that errors name are counted by the host's windows.
    ///
    /// A run itself leaves on the device what its rows of relevance sum to after each layer, or each row of fused maps where it
    /// makes these, and the LSE of the last 64 rows of each window.
    ///
    /// # Errors
    /// [`Error::Lse`](crate::Error::Lse), [`Error::Mass`](crate::Error::Mass);
    /// [`Error::WrongDevice`](crate::Error::WrongDevice); [`Error::Capturing`](crate::Error::Capturing) where `stream` is
    /// capturing; [`Error::Driver`](crate::Error::Driver).
    pub fn check(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        ready_to_check(self.engine.context(), stream, &mut self.handover)?;
        // SAFETY: the context is bound, and the stream is behind the last run's.
        unsafe {
            self.engine
                .check(stream.cu_stream(), self.last_items.clone())
        }
    }

    /// As [`run`](Plan::run), into memory that it allocates on `stream`.
    ///
    /// # Errors
    /// As [`run`](Plan::run); [`Error::OutOfDeviceMemory`]; [`Error::Capturing`] where `stream` is capturing;
    /// [`Error::ZeroExtent`] where the batch is empty, for there is no memory of no bytes.
    ///
    /// [`Error::OutOfDeviceMemory`]: crate::Error::OutOfDeviceMemory
    /// [`Error::Capturing`]: crate::Error::Capturing
    /// [`Error::ZeroExtent`]: crate::Error::ZeroExtent
    pub fn run_alloc(
        &mut self,
        stream: &Arc<CudaStream>,
        layers: &[DeviceLayer<'_>],
    ) -> Result<CudaSlice<f32>> {
        let mut out = alloc_output(self.problem(), self.context(), stream)?;
        self.run(stream, layers, &mut out)?;
        Ok(out)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.schedule().fmt(f)
    }
}
