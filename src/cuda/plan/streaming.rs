//! A rollout that takes its layers one by one, as a model produces them, or from the last to the first.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};

use super::buffers::{
    DeviceLayer, DeviceOutput, addresses, check_layer, check_output, check_stream, track,
};
use super::engine::Engine;
use super::handover::{Handover, ready_to_check};
use super::inputs::RunInputs;
use crate::cuda::choose::choose_streaming;
use crate::cuda::driver::{bind, is_capturing};
use crate::cuda::limits::DeviceLimits;
use crate::cuda::options::{Compiler, LayerOrder, Options};
use crate::cuda::pipeline::operands;
use crate::cuda::runtime::Runtime;
use crate::cuda::schedule::Schedule;
use crate::error::{Error, Result};
use crate::layout::Window;
use crate::problem::Problem;

/// A problem made ready to take its layers one by one.
///
/// Heads are fused when a layer is pushed, so its maps may go as soon as the stream has passed. What stays, per item:
/// the rollout so far, `O(tokens^2)`, where the output is a matrix; the fused maps, `O(layers * tokens^2)`, where it is
/// rows, because rows are computed from the last layer to the first. Pushed in that order
/// ([`LayerOrder::TopDown`](crate::cuda::LayerOrder::TopDown)), they take one fused map at a time, and of queries and keys
/// none.
pub struct StreamingPlan {
    engine: Engine,
    handover: Handover,
    layer_addresses: Vec<u64>,
    last_items: Range<usize>,
}

impl StreamingPlan {
    /// Makes `problem` ready on the device of `context`.
    ///
    /// # Errors
    /// As [`Plan::new`](crate::cuda::Plan::new); [`Error::Conflict`] where the last layer comes first and the output is not
    /// relevance rows.
    pub fn new(context: &Arc<CudaContext>, problem: &Problem, options: &Options) -> Result<Self> {
        StreamingPlan::on(
            &Runtime::new(context, &Compiler::default())?,
            problem,
            options,
        )
    }

    /// As [`new`](StreamingPlan::new), with the compiler and the kernels of `runtime`.
    ///
    /// # Errors
    /// As [`new`](StreamingPlan::new).
    pub fn on(runtime: &Runtime, problem: &Problem, options: &Options) -> Result<Self> {
        let options = options.with_environment();
        let schedule = choose_streaming(problem, runtime.limits(), &options)?;
        Ok(StreamingPlan {
            engine: Engine::alone(runtime, problem, schedule, &options.workspace)?,
            handover: Handover::new(runtime.context())?,
            layer_addresses: vec![0; problem.shape().layers * operands(problem)],
            last_items: 0..0,
        })
    }

    /// As [`Plan::required_workspace`](crate::cuda::Plan::required_workspace).
    ///
    /// # Errors
    /// As [`choose_streaming`](crate::cuda::choose_streaming).
    pub fn required_workspace(
        problem: &Problem,
        limits: &DeviceLimits,
        options: &Options,
    ) -> Result<usize> {
        let schedule = choose_streaming(problem, limits, &options.with_environment())?;
        Ok(schedule.workspace_bytes())
    }

    /// The problem this plan runs.
    pub fn problem(&self) -> &Problem {
        self.engine.problem()
    }

    /// What a whole pass launches.
    pub fn schedule(&self) -> &Schedule {
        self.engine.schedule()
    }

    /// Device memory that a pass works in, in bytes, the plan's own or borrowed.
    pub fn workspace_bytes(&self) -> usize {
        self.engine.workspace_bytes()
    }

    /// Device memory that the plan has beside the workspace, in bytes: what lasts from pass to pass.
    pub fn owned_bytes(&self) -> usize {
        self.engine.owned_bytes()
    }

    /// Begins a pass over the layers, into `out`. Everything is submitted to `stream`.
    ///
    /// Like [`Plan::run`](crate::cuda::Plan::run) a pass only launches, and may be part of a stream capture.
    ///
    /// # Errors
    /// [`Error::WrongDevice`], [`Error::Len`], [`Error::Misaligned`], [`Error::Driver`].
    pub fn begin<'a>(
        &'a mut self,
        stream: &'a Arc<CudaStream>,
        out: impl Into<DeviceOutput<'a>>,
    ) -> Result<Pass<'a>> {
        self.begin_items(stream, 0..self.problem().shape().batch, out)
    }

    /// As [`begin`](StreamingPlan::begin), of the items `items` of the batch alone, as
    /// [`Plan::run_items`](crate::cuda::Plan::run_items).
    ///
    /// # Errors
    /// As [`begin`](StreamingPlan::begin) for the items; [`Error::Items`] where they leave the batch.
    pub fn begin_items<'a>(
        &'a mut self,
        stream: &'a Arc<CudaStream>,
        items: Range<usize>,
        out: impl Into<DeviceOutput<'a>>,
    ) -> Result<Pass<'a>> {
        self.begin_items_with(stream, items, out, RunInputs::default())
    }

    /// As [`Plan::check`](crate::cuda::Plan::check), of the last pass, as far as layers were pushed.
    ///
    /// # Errors
    /// As [`Plan::check`](crate::cuda::Plan::check).
    pub fn check(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        ready_to_check(self.engine.context(), stream, &mut self.handover)?;
        // SAFETY: the context is bound, and the stream is behind the last pass's.
        unsafe {
            self.engine
                .check(stream.cu_stream(), self.last_items.clone())
        }
    }

    /// As [`Plan::set_windows`](crate::cuda::Plan::set_windows), for the passes to come.
    ///
    /// # Errors
    /// As [`Plan::set_windows`](crate::cuda::Plan::set_windows).
    pub fn set_windows(&mut self, windows: &[Window]) -> Result<()> {
        self.engine.set_windows(windows)
    }

    /// As [`Plan::set_rows`](crate::cuda::Plan::set_rows), for the passes to come.
    ///
    /// # Errors
    /// As [`Plan::set_rows`](crate::cuda::Plan::set_rows).
    pub fn set_rows(&mut self, rows: &[usize]) -> Result<()> {
        self.engine.set_rows(rows)
    }

    /// As [`begin`](StreamingPlan::begin) with windows and rows from device memory, for this pass alone. They are read
    /// before the first layer is.
    ///
    /// # Errors
    /// As [`begin`](StreamingPlan::begin), for the inputs too; [`Error::FixedInput`].
    pub fn begin_with<'a>(
        &'a mut self,
        stream: &'a Arc<CudaStream>,
        out: impl Into<DeviceOutput<'a>>,
        inputs: RunInputs<'_>,
    ) -> Result<Pass<'a>> {
        let all = 0..self.problem().shape().batch;
        self.begin_items_with(stream, all, out, inputs)
    }

    /// [`begin_items`](StreamingPlan::begin_items) and [`begin_with`](StreamingPlan::begin_with) in one: the windows and
    /// rows are those of `items`.
    ///
    /// # Errors
    /// As [`begin_items`](StreamingPlan::begin_items) and [`begin_with`](StreamingPlan::begin_with).
    pub fn begin_items_with<'a>(
        &'a mut self,
        stream: &'a Arc<CudaStream>,
        items: Range<usize>,
        out: impl Into<DeviceOutput<'a>>,
        inputs: RunInputs<'_>,
    ) -> Result<Pass<'a>> {
        let out = out.into();
        self.problem().check_items(&items)?;
        let context = self.engine.context().clone();
        bind(&context)?;
        check_stream(&context, stream)?;
        self.engine.prepare(items.len())?;
        // What the device says of windows or rows, it holds to each other.
        if !inputs.addresses().is_any() {
            self.problem().check_rows_of(items.clone())?;
        }
        let problem = self.engine.problem_of(items.len());
        check_output(problem, &context, &out)?;
        inputs.check(problem, &context)?;
        let capturing = is_capturing(stream)?;
        if !capturing {
            self.handover.follow(stream)?;
        }
        let tracked = self.engine.context().is_managing_stream_synchronization() && !capturing;
        let _guards: Vec<_> = inputs.track(stream).filter(|_| tracked).collect();
        // SAFETY: the context is bound; the inputs have been checked against the problem, and are promised to stay valid.
        unsafe {
            self.engine.give(
                stream.cu_stream(),
                capturing,
                inputs.addresses(),
                items.clone(),
            )
        }?;
        self.last_items = items.clone();
        Ok(Pass {
            plan: self,
            items,
            stream,
            out,
            pushed: 0,
        })
    }
}

/// One pass over the layers of a [`StreamingPlan`]. Dropped before it is finished, it leaves the output undefined.
pub struct Pass<'a> {
    plan: &'a mut StreamingPlan,
    items: Range<usize>,
    stream: &'a Arc<CudaStream>,
    out: DeviceOutput<'a>,
    pushed: usize,
}

impl Pass<'_> {
    /// Takes the next layer of the problem's layer range, in the order of the plan's options. The maps may be overwritten or freed as soon as the stream
    /// has come past this call.
    ///
    /// # Errors
    /// [`Error::StreamedLayers`] where all layers have been pushed; otherwise as [`Plan::run`](crate::cuda::Plan::run).
    pub fn push_layer<'l>(&mut self, maps: impl Into<DeviceLayer<'l>>) -> Result<()> {
        let maps = maps.into();
        let layers = self.plan.problem().layers();
        if self.pushed == layers.len() {
            return Err(Error::StreamedLayers {
                expected: layers.len(),
                got: self.pushed + 1,
            });
        }
        let layer = match self.schedule().order {
            Some(LayerOrder::TopDown) => layers.end - 1 - self.pushed,
            _ => layers.start + self.pushed,
        };
        let engine = &self.plan.engine;
        check_layer(
            engine.problem_of(self.items.len()),
            engine.context(),
            layer,
            &maps,
        )?;
        let tensors = addresses(std::slice::from_ref(&maps));
        let first = layer * operands(self.plan.problem());
        for (place, address) in self.plan.layer_addresses[first..].iter_mut().zip(tensors) {
            *place = address;
        }
        let ends = &self.schedule().pushes;
        let start = self.pushed.checked_sub(1).map_or(0, |last| ends[last]);
        let steps = start..ends[self.pushed];
        self.submit(steps, Some(&maps))?;
        self.pushed += 1;
        Ok(())
    }

    /// Ends the pass: when the stream has come past this call the output is complete.
    ///
    /// # Errors
    /// [`Error::StreamedLayers`] where layers are missing; otherwise as [`Plan::run`](crate::cuda::Plan::run).
    pub fn finish(mut self) -> Result<()> {
        let expected = self.plan.problem().layers().len();
        if self.pushed < expected {
            return Err(Error::StreamedLayers {
                expected,
                got: self.pushed,
            });
        }
        let schedule = self.schedule();
        let steps = schedule.pushes.last().copied().unwrap_or(0)..schedule.steps.len();
        self.submit(steps, None)
    }

    fn schedule(&self) -> &Schedule {
        self.plan.engine.schedule_of(self.items.len())
    }

    fn submit(&mut self, steps: Range<usize>, maps: Option<&DeviceLayer<'_>>) -> Result<()> {
        let context = self.plan.engine.context();
        bind(context)?;
        let tracked = context.is_managing_stream_synchronization() && !is_capturing(self.stream)?;
        let output = self.out.address();
        let _guards = if tracked {
            let maps = maps.map_or(&[][..], std::slice::from_ref);
            track(self.stream, maps, &mut self.out)
        } else {
            Vec::new()
        };
        // SAFETY: the context is bound; the pushed layer and the output have been checked against the problem, and the
        // steps of a push read no other layer. That both stay valid is promised by whoever made them.
        unsafe {
            self.plan.engine.submit(
                self.items.clone(),
                steps,
                self.stream.cu_stream(),
                &self.plan.layer_addresses,
                output,
            )
        }
    }
}
