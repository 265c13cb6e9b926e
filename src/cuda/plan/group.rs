//! Several problems of any shapes in one submission: the features of a model, each with its own layers and tokens.

mod launches;
mod merge;
pub mod pack;
mod queue;

use std::cmp::Reverse;
use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};

use super::buffers::{self, DeviceLayer, DeviceOutput, check_run, check_stream, track};
use super::engine::Engine;
use super::handover::{Handover, ready_to_check};
use super::inputs::{Given, RunInputs};
use super::prepared::Memory;
use super::workspace::Workspace;
use crate::cuda::choose::{choose, choose_grouped};
use crate::cuda::driver::{bind, is_capturing};
use crate::cuda::kernel::{MAX_BLOCKS, SHARED_PARAMS};
use crate::cuda::limits::DeviceLimits;
use crate::cuda::options::{Compiler, Options};
use crate::cuda::runtime::Runtime;
use crate::cuda::schedule::{Schedule, Step};
use crate::error::{Error, Result};
use crate::layout::Window;
use crate::problem::Problem;

use launches::Launches;

/// Several problems made ready to run together on one device.
///
/// The problems share their launches: the next steps of all problems that take the same kernel are one launch, whose
/// blocks are those of all. How many launches there are depends on how many different kernels, and how many steps, the
/// problems need, and not on how many problems there are. Many small problems that ask for rows take one launch
/// together; with discard three. Problems of different element types, head fusions or normalisation need different
/// kernels and so launches of their own.
///
/// Two things add launches. A launch has room for 508 addresses, one for each tensor of a layer that it reads and each output that
/// it writes; where there are more, it is divided. And some problems run by themselves, after the others: one whose fused maps
/// do not stay in L2, which takes the product on two streams, and one whose items are so few and large that a block would
/// go on with one of them when all others are done.
///
/// Printing it (`{group}`) shows the launches.
pub struct GroupPlan {
    launches: Launches,
    engines: Vec<Engine>,
    /// Problems that run by themselves.
    alone: Vec<usize>,
    handover: Handover,
    context: Arc<CudaContext>,
    /// The layers and the output of each problem, one problem after the other.
    addresses: Vec<u64>,
    /// What each problem is given.
    given: Vec<Given>,
}

/// The buffers of one problem of a group.
pub struct GroupItem<'a> {
    /// Every layer of the problem, first to last.
    pub layers: &'a [DeviceLayer<'a>],
    /// Its output, shaped as [`Problem::output_shape`].
    pub out: DeviceOutput<'a>,
    /// Its windows and rows in device memory, for this run alone.
    pub inputs: RunInputs<'a>,
}

impl<'a> GroupItem<'a> {
    /// The layers of a problem, and its output.
    pub fn new(layers: &'a [DeviceLayer<'a>], out: impl Into<DeviceOutput<'a>>) -> Self {
        GroupItem {
            layers,
            out: out.into(),
            inputs: RunInputs::default(),
        }
    }

    /// With windows and rows from device memory for this run alone, as those of
    /// [`Plan::run_with`](crate::cuda::Plan::run_with).
    pub fn with(self, inputs: RunInputs<'a>) -> Self {
        GroupItem { inputs, ..self }
    }
}

impl GroupPlan {
    /// Makes `problems` ready on the device of `context`. Kernels that several of them use are compiled and loaded once.
    ///
    /// # Errors
    /// As [`Plan::new`](crate::cuda::Plan::new).
    pub fn new(
        context: &Arc<CudaContext>,
        problems: &[Problem],
        options: &Options,
    ) -> Result<Self> {
        GroupPlan::on(
            &Runtime::new(context, &Compiler::default())?,
            problems,
            options,
        )
    }

    /// As [`new`](GroupPlan::new), with the compiler and the kernels of `runtime`.
    ///
    /// # Errors
    /// As [`new`](GroupPlan::new).
    pub fn on(runtime: &Runtime, problems: &[Problem], options: &Options) -> Result<Self> {
        let context = runtime.context();
        let options = options.with_environment();
        let planned = plan(problems, runtime.limits(), &options)?;
        // Memory first: what does not fit need not be compiled.
        let mut workspace = options.workspace.clone();
        workspace.check(workspace_bytes(&planned))?;
        let mut memory = Vec::with_capacity(planned.len());
        for Planned { schedule, .. } in &planned {
            memory.push(Memory::new(context, schedule, &workspace)?);
            workspace = workspace.after(part_bytes(schedule));
        }
        let (mut together, alone): (Vec<usize>, Vec<usize>) =
            (0..planned.len()).partition(|&index| !planned[index].alone);
        let engines = problems
            .iter()
            .zip(planned)
            .zip(memory)
            .map(|((problem, Planned { schedule, alone }), memory)| {
                Engine::member(runtime, problem, schedule, memory, alone)
            })
            .collect::<Result<Vec<_>>>()?;
        // Long blocks first: short ones fill the end of a launch.
        together.sort_by_key(|&index| Reverse(item_bytes(engines[index].problem())));
        let addresses = problems.iter().map(launches::addresses).sum();
        Ok(GroupPlan {
            launches: Launches::new(runtime, &engines, &together)?,
            engines,
            alone,
            handover: Handover::new(context)?,
            context: context.clone(),
            addresses: Vec::with_capacity(addresses),
            given: Vec::with_capacity(problems.len()),
        })
    }

    /// As [`Plan::required_workspace`](crate::cuda::Plan::required_workspace), for all `problems` together.
    ///
    /// # Errors
    /// As [`choose`](crate::cuda::choose()).
    pub fn required_workspace(
        problems: &[Problem],
        limits: &DeviceLimits,
        options: &Options,
    ) -> Result<usize> {
        let planned = plan(problems, limits, &options.with_environment())?;
        Ok(workspace_bytes(&planned))
    }

    /// The problems, in order.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.engines.iter().map(Engine::problem)
    }

    /// What each problem would launch by itself, in order.
    pub fn schedules(&self) -> impl Iterator<Item = &Schedule> {
        self.engines.iter().map(|engine| engine.schedule())
    }

    /// Kernels that one run launches for all problems.
    pub fn launches(&self) -> usize {
        let alone = self.alone.iter();
        let alone = alone.map(|&index| self.engines[index].schedule().launches());
        self.launches.aligned().len() + alone.sum::<usize>()
    }

    /// Device memory that a run works in, in bytes, the group's own or borrowed.
    pub fn workspace_bytes(&self) -> usize {
        self.engines.iter().map(Engine::workspace_bytes).sum()
    }

    /// Device memory that the group has beside the workspace, in bytes: what lasts from run to run.
    pub fn owned_bytes(&self) -> usize {
        self.launches.bytes() + self.engines.iter().map(Engine::owned_bytes).sum::<usize>()
    }

    /// As [`Plan::set_windows`](crate::cuda::Plan::set_windows), of the problem at place `member`.
    ///
    /// # Errors
    /// [`Error::Count`] where there is no such problem; [`Error::Member`] around what is wrong with the windows.
    pub fn set_windows(&mut self, member: usize, windows: &[Window]) -> Result<()> {
        self.change(member, |engine| engine.set_windows(windows))
    }

    /// As [`Plan::set_rows`](crate::cuda::Plan::set_rows), of the problem at place `member`.
    ///
    /// # Errors
    /// [`Error::Count`] where there is no such problem; [`Error::Member`] around what is wrong with the rows.
    pub fn set_rows(&mut self, member: usize, rows: &[usize]) -> Result<()> {
        self.change(member, |engine| engine.set_rows(rows))
    }

    /// As [`Plan::check`](crate::cuda::Plan::check), of all problems.
    ///
    /// # Errors
    /// [`Error::Member`] around what [`Plan::check`](crate::cuda::Plan::check) says of a problem.
    pub fn check(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        ready_to_check(&self.context, stream, &mut self.handover)?;
        let of_member = |(member, engine): (usize, &Engine)| {
            let all = 0..engine.problem().shape().batch;
            // SAFETY: the context is bound, and the stream is behind the last run's.
            let checked = unsafe { engine.check(stream.cu_stream(), all) };
            checked.map_err(|source| Error::Member {
                member,
                source: Box::new(source),
            })
        };
        self.engines.iter().enumerate().try_for_each(of_member)
    }

    fn change(
        &mut self,
        member: usize,
        change: impl FnOnce(&mut Engine) -> Result<()>,
    ) -> Result<()> {
        let expected = self.engines.len();
        let Some(engine) = self.engines.get_mut(member) else {
            return Err(Error::Count {
                what: "problems of the group, up to the one named",
                expected,
                got: member.saturating_add(1),
            });
        };
        change(engine).map_err(|error| Error::Member {
            member,
            source: Box::new(error),
        })
    }

    /// Submits all problems, `items` holding their buffers in the order of the problems. Launches only, as
    /// [`Plan::run`](crate::cuda::Plan::run), under the same conditions.
    ///
    /// # Errors
    /// [`Error::Count`] where there are not as many items as problems; otherwise as [`Plan::run`](crate::cuda::Plan::run).
    /// Nothing is submitted where any item does not fit its problem.
    pub fn run(&mut self, stream: &Arc<CudaStream>, items: &mut [GroupItem<'_>]) -> Result<()> {
        if items.len() != self.engines.len() {
            return Err(Error::Count {
                what: "items of a group, one per problem",
                expected: self.engines.len(),
                got: items.len(),
            });
        }
        bind(&self.context)?;
        check_stream(&self.context, stream)?;
        for (engine, item) in self.engines.iter().zip(&*items) {
            let problem = engine.problem();
            check_run(problem, &self.context, item.layers, &item.out)?;
            item.inputs.check(problem, &self.context)?;
            // What the device says of windows or rows, it holds to each other.
            if !item.inputs.addresses().is_any() {
                problem.check_rows()?;
            }
        }
        let capturing = is_capturing(stream)?;
        let tracked = self.context.is_managing_stream_synchronization() && !capturing;
        if !capturing {
            self.handover.follow(stream)?;
        }
        self.addresses.clear();
        self.given.clear();
        for item in &*items {
            self.given.push(item.inputs.addresses());
            self.addresses.extend(buffers::addresses(item.layers));
            self.addresses.push(item.out.address());
        }
        let mut guards = Vec::new();
        for item in items.iter_mut().filter(|_| tracked) {
            guards.extend(track(stream, item.layers, &mut item.out));
            guards.extend(item.inputs.track(stream));
        }
        for (engine, given) in self.engines.iter_mut().zip(&self.given) {
            let all = 0..engine.problem().shape().batch;
            // SAFETY: the context is bound; the inputs have been checked against their problem, and are promised to stay
            // valid.
            unsafe { engine.give(stream.cu_stream(), capturing, *given, all) }?;
        }
        let aligned = self.engines.iter().all(Engine::is_aligned);
        // SAFETY: the context is bound. Layers and outputs have been checked against their problems; that they stay valid
        // is promised by whoever made them, and ordered with other uses above.
        unsafe {
            self.launches
                .submit(stream.cu_stream(), &self.addresses, aligned)
        }?;
        let mut first = 0;
        for (index, engine) in self.engines.iter_mut().enumerate() {
            let tensors = launches::addresses(engine.problem()) - 1;
            if self.alone.contains(&index) {
                let addresses = &self.addresses[first..first + tensors];
                let steps = 0..engine.schedule().steps.len();
                let output = self.addresses[first + tensors];
                let all = 0..engine.problem().shape().batch;
                // SAFETY: as above.
                unsafe { engine.submit(all, steps, stream.cu_stream(), addresses, output) }?;
            }
            first += tensors + 1;
        }
        Ok(())
    }
}

/// Whether a problem's steps can be parts of launches: they follow one another in one stream, and their blocks can be
/// counted and need no neighbours.
fn shares_launches(schedule: &Schedule) -> bool {
    let fits = |step: &Step| {
        let mut geometries = step.launches().map(|launch| *launch.geometry());
        geometries.all(|geometry| geometry.blocks() <= MAX_BLOCKS && geometry.cluster == 1)
    };
    !schedule.has_two_lanes() && schedule.steps.iter().all(fits)
}

/// Bytes of a workspace that a problem of a group takes, to where the next one's begins.
fn part_bytes(schedule: &Schedule) -> usize {
    schedule
        .workspace_bytes()
        .next_multiple_of(Workspace::ALIGNMENT)
}

/// Bytes of the workspace of a group.
fn workspace_bytes(planned: &[Planned]) -> usize {
    planned.iter().map(|part| part_bytes(&part.schedule)).sum()
}

/// Bytes of the maps of one item.
fn item_bytes(problem: &Problem) -> usize {
    problem.map_bytes() / problem.shape().batch.max(1)
}

/// How a problem of a group is computed.
struct Planned {
    schedule: Schedule,
    /// By itself, in launches of its own.
    alone: bool,
}

/// How each of `problems` is computed. Blocks of all problems run side by side. So an item takes one block, and few
/// launches, where the others give the rest of the device as much to read as that block; else its problem is planned for
/// its share of the device, by the bytes of its maps. One that runs by itself has the whole device.
fn plan(problems: &[Problem], limits: &DeviceLimits, options: &Options) -> Result<Vec<Planned>> {
    let leaving = queue::leaving(problems, limits, options)?;
    let stays = |index: &usize| !leaving.contains(index);
    let staying = || {
        (0..problems.len())
            .filter(stays)
            .map(|index| &problems[index])
    };
    let total: usize = staying().map(Problem::map_bytes).sum();
    let sharing = queue::sharing(staying(), limits);
    let planned = |(index, problem): (usize, &Problem)| {
        let by_itself = || {
            let schedule = choose(problem, limits, options)?;
            Ok(Planned {
                schedule,
                alone: true,
            })
        };
        if !stays(&index) {
            return by_itself();
        }
        let multiprocessors = f64::from(limits.multiprocessors);
        let part = |bytes: usize| bytes as f64 / total.max(1) as f64 * multiprocessors;
        let share = match part(item_bytes(problem)) {
            part_of_item if part_of_item <= 1.0 => 1,
            _ => part(problem.map_bytes()).ceil() as u32,
        };
        let memory = f64::from(limits.memory_bytes_per_us) / multiprocessors;
        let share = DeviceLimits {
            multiprocessors: share,
            memory_bytes_per_us: (memory * f64::from(share)) as u32,
            // Grouped kernels keep their parameters there.
            shared_bytes_per_block: limits.shared_bytes_per_block - SHARED_PARAMS,
            ..limits.clone()
        };
        let schedule = choose_grouped(problem, &share, options, sharing)?;
        match shares_launches(&schedule) {
            true => Ok(Planned {
                schedule,
                alone: false,
            }),
            false => by_itself(),
        }
    };
    problems.iter().enumerate().map(planned).collect()
}

impl fmt::Display for GroupPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} problems, launches {}, workspace {} B",
            self.engines.len(),
            self.launches(),
            self.workspace_bytes()
        )?;
        for launch in self.launches.aligned() {
            writeln!(f, "  {launch}")?;
        }
        for &index in &self.alone {
            write!(f, "by itself: {}", self.engines[index].schedule())?;
        }
        Ok(())
    }
}
