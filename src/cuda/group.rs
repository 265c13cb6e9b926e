//! Several problems of any shapes in one submission: the features of a model, each with its own layers and tokens.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};

use super::buffers::{DeviceLayer, DeviceOutput, check_context, check_run, track};
use super::compile::Kernels;
use super::engine::{Engine, Handover, Memory, is_capturing};
use super::handles::{Event, Stream, bind};
use super::limits::DeviceLimits;
use super::options::Options;
use super::schedule::Schedule;
use super::{device, heuristics};
use crate::error::{Error, Result};
use crate::problem::Problem;

/// Streams among which a group divides its problems: kernels of small problems run side by side.
const LANES: usize = 8;

/// Several problems made ready to run together on one device.
///
/// The problems run side by side on streams of the group's own, between one fork from the caller's stream and one join
/// back to it. Captured into a CUDA graph, the whole group is one launch, however many problems there are.
pub struct GroupPlan {
    engines: Vec<Engine>,
    lanes: Vec<Lane>,
    fork: Event,
    handover: Handover,
    context: Arc<CudaContext>,
    addresses: Vec<u64>,
}

/// A stream of the group, and the event that marks the end of its work.
struct Lane {
    stream: Stream,
    done: Event,
}

/// The buffers of one problem of a group.
pub struct GroupItem<'a> {
    /// Every layer of the problem, first to last.
    pub layers: &'a [DeviceLayer<'a>],
    /// Its output, shaped as [`Problem::output_shape`].
    pub out: DeviceOutput<'a>,
}

impl GroupPlan {
    /// Makes `problems` ready on the device of `context`. Kernels that several of them use are compiled and loaded once.
    ///
    /// # Errors
    /// As [`Plan::new`](super::Plan::new).
    pub fn new(
        context: &Arc<CudaContext>,
        problems: &[Problem],
        options: &Options,
    ) -> Result<Self> {
        let options = options.with_environment();
        let limits = device::limits(context)?;
        // The problems share the device, so each is planned for its share: few launches rather than many blocks.
        let share = DeviceLimits {
            multiprocessors: (limits.multiprocessors / problems.len().clamp(1, LANES) as u32)
                .max(1),
            ..limits
        };
        let schedules = problems
            .iter()
            .map(|problem| heuristics::choose(problem, &share, &options))
            .collect::<Result<Vec<_>>>()?;
        let memory = schedules
            .iter()
            .map(|schedule| Memory::new(context, std::slice::from_ref(schedule)))
            .collect::<Result<Vec<_>>>()?;
        let kernels = Arc::new(Kernels::load(context, share.arch, &schedules, &options)?);
        let engines = problems
            .iter()
            .zip(schedules)
            .zip(memory)
            .map(|((problem, schedule), memory)| {
                Engine::new(context, problem, vec![schedule], memory, kernels.clone())
            })
            .collect::<Result<_>>()?;
        let lanes = (0..problems.len().min(LANES))
            .map(|_| {
                Ok(Lane {
                    stream: Stream::new(context)?,
                    done: Event::new(context)?,
                })
            })
            .collect::<Result<_>>()?;
        let layers = problems.iter().map(|problem| problem.shape().layers).max();
        Ok(GroupPlan {
            engines,
            lanes,
            fork: Event::new(context)?,
            handover: Handover::new(context)?,
            context: context.clone(),
            addresses: Vec::with_capacity(layers.unwrap_or(0)),
        })
    }

    /// The problems, in order.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.engines.iter().map(Engine::problem)
    }

    /// What each problem launches, in order.
    pub fn schedules(&self) -> impl Iterator<Item = &Schedule> {
        self.engines.iter().map(|engine| engine.schedule(0))
    }

    /// Device memory the group holds, in bytes.
    pub fn workspace_bytes(&self) -> usize {
        self.engines.iter().map(Engine::bytes).sum()
    }

    /// Submits all problems, `items` holding their buffers in the order of the problems. Launches only, as
    /// [`Plan::run`](super::Plan::run), under the same conditions.
    ///
    /// # Errors
    /// [`Error::Count`] where there are not as many items as problems; otherwise as [`Plan::run`](super::Plan::run).
    /// Nothing is submitted where any item does not fit its problem.
    pub fn run(&mut self, stream: &Arc<CudaStream>, items: &mut [GroupItem<'_>]) -> Result<()> {
        if items.len() != self.engines.len() {
            return Err(Error::Count {
                what: "items of a group, one per problem",
                expected: self.engines.len(),
                got: items.len(),
            });
        }
        check_context(&self.context, Some(stream.context()), || {
            "the stream".to_owned()
        })?;
        for (engine, item) in self.engines.iter().zip(&*items) {
            check_run(engine.problem(), &self.context, item.layers, &item.out)?;
        }
        bind(&self.context)?;
        let capturing = is_capturing(stream)?;
        let tracked = self.context.is_managing_stream_synchronization() && !capturing;
        if !capturing {
            self.handover.follow(stream)?;
        }
        let outputs: Vec<u64> = items.iter().map(|item| item.out.address()).collect();
        let layers: Vec<_> = items.iter().map(|item| item.layers).collect();
        let mut guards = Vec::new();
        for item in items.iter_mut().filter(|_| tracked) {
            guards.extend(track(stream, item.layers, &mut item.out));
        }
        self.fork.record(stream.cu_stream())?;
        for lane in &self.lanes {
            self.fork.gate(lane.stream.raw())?;
        }
        for (index, engine) in self.engines.iter().enumerate() {
            let lane = self.lanes[index % self.lanes.len()].stream.raw();
            self.addresses.clear();
            self.addresses
                .extend(layers[index].iter().map(DeviceLayer::address));
            let steps = 0..engine.schedule(0).steps.len();
            // SAFETY: the context is bound; layers and output have been checked against the engine's problem, and the
            // lane lies between the fork and the join, so that it is ordered as the caller's stream is.
            unsafe { engine.submit(0, steps, lane, &self.addresses, outputs[index], 0) }?;
        }
        for lane in &self.lanes {
            lane.done.order(lane.stream.raw(), stream.cu_stream())?;
        }
        Ok(())
    }
}
