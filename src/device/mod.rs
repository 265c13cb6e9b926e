//! CPU and GPUs behind one surface, for maps in host memory: a problem is planned once, and its batch goes through the
//! plan chunk by chunk.
//!
//! ```
//! use attention_rollout::device::Device;
//! use attention_rollout::{DType, Problem, RolloutConfig, Shape};
//!
//! let shape = Shape { layers: 2, batch: 3, heads: 1, tokens: 4 };
//! let problem = Problem::new(shape, DType::F32, RolloutConfig::default())?;
//! let maps = vec![0.25f32; 3 * 4 * 4];
//! let layers = [maps.as_slice().into(), maps.as_slice().into()];
//!
//! # #[cfg(feature = "cpu")] {
//! let device = Device::cpu(&Default::default());
//! let mut plan = device.plan(&problem)?;
//! println!("{} on {}", plan.variant(), device.name());
//! let mut relevance = vec![0.0; problem.output_len()];
//! plan.run(&layers, &mut relevance, &mut |_| ())?;
//! # }
//! # Ok::<(), attention_rollout::Error>(())
//! ```

#[cfg(feature = "cpu")]
mod cpu;
#[cfg(feature = "cuda")]
mod gpus;

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use crate::chunk::{Chunk, Progress, layers_from};
use crate::error::Result;
use crate::layer::HostLayer;
use crate::layout::Window;
use crate::problem::Problem;

/// Something that computes: the CPU, a GPU, or several GPUs that share the batch.
#[derive(Clone)]
pub struct Device(Arc<dyn Backend>);

/// What every device can do.
trait Backend: Send + Sync {
    fn name(&self) -> String;

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;

    fn model(&self) -> String;

    fn threads(&self) -> NonZeroUsize;

    fn is_half(&self) -> bool;

    fn candidates(&self, problem: &Problem) -> Result<Vec<Device>>;

    fn check(&self, problem: &Problem) -> Result<()>;

    fn plan(
        &self,
        problem: &Problem,
        items_per_chunk: Option<NonZeroUsize>,
    ) -> Result<Box<dyn Chunked>>;

    #[cfg(feature = "measure")]
    fn case(&self, members: Vec<(Problem, crate::measure::Inputs)>)
    -> Result<crate::measure::Case>;
}

/// A problem made ready on a device. A run begins with `restart`; then whatever the plan wants is pushed, and what has
/// been pushed comes out in the same order.
trait Chunked: Send + fmt::Display {
    fn variant(&self) -> String;

    fn workspace_bytes(&self) -> usize;

    fn items_per_chunk(&self) -> usize;

    fn set_windows(&mut self, windows: &[Window]) -> Result<()>;

    fn set_rows(&mut self, rows: &[usize]) -> Result<()>;

    fn restart(&mut self, items: Range<usize>) -> Result<()>;

    fn wants(&self) -> Option<Range<usize>>;

    fn push(&mut self, layers: &[HostLayer<'_>]) -> Result<()>;

    fn pop(&mut self) -> Result<Option<Chunk<'_>>>;
}

impl Device {
    fn new(backend: impl Backend + 'static) -> Self {
        Device(Arc::new(backend))
    }

    /// `cpu`, `cuda:0`, or several GPUs.
    pub fn name(&self) -> String {
        self.0.name()
    }

    /// What the device calls itself; of several GPUs the first.
    pub fn model(&self) -> String {
        self.0.model()
    }

    /// Threads of the CPU that compute; 1 where a GPU does.
    pub fn threads(&self) -> NonZeroUsize {
        self.0.threads()
    }

    /// Whether products may be rounded to f16.
    pub fn is_half(&self) -> bool {
        self.0.is_half()
    }

    /// This device in every way in which it can compute `problem`: first as it chooses by itself (the CPU on one thread,
    /// then on all), then with each form and instruction set of the CPU, or each product kernel of a GPU.
    ///
    /// # Errors
    /// [`Error::Driver`](crate::Error::Driver).
    pub fn candidates(&self, problem: &Problem) -> Result<Vec<Device>> {
        self.0.candidates(problem)
    }

    /// Checks that the device has kernels for `problem`, without making it ready.
    ///
    /// # Errors
    /// Those of `cuda::choose`; none of the CPU.
    pub fn check(&self, problem: &Problem) -> Result<()> {
        self.0.check(problem)
    }

    /// Makes `problem` ready to run: chooses, compiles, allocates.
    ///
    /// # Errors
    /// As the `Plan::new` of the device's backend.
    pub fn plan(&self, problem: &Problem) -> Result<AnyPlan> {
        self.plan_chunked(problem, None)
    }

    /// As [`plan`](Device::plan), to be run `items_per_chunk` items at a time; by default as many as 256 MiB of maps and
    /// output are, on a GPU as many as a quarter of its free memory holds where that is less.
    ///
    /// # Errors
    /// As [`plan`](Device::plan).
    pub fn plan_chunked(
        &self,
        problem: &Problem,
        items_per_chunk: Option<NonZeroUsize>,
    ) -> Result<AnyPlan> {
        Ok(AnyPlan {
            problem: problem.clone(),
            chunks: self.0.plan(problem, items_per_chunk)?,
        })
    }

    /// Makes problems, each with its maps, ready to be timed on this device; of several GPUs on the first.
    ///
    /// # Errors
    /// As [`plan`](Device::plan), and where the maps do not fit.
    #[cfg(feature = "measure")]
    #[doc(hidden)]
    pub fn case(
        &self,
        members: Vec<(Problem, crate::measure::Inputs)>,
    ) -> Result<crate::measure::Case> {
        self.0.case(members)
    }
}

/// The name, with the threads where it is the CPU.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.describe(f)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.name())
    }
}

/// A problem made ready to run on a [`Device`]. Printing it shows how it is computed.
pub struct AnyPlan {
    problem: Problem,
    chunks: Box<dyn Chunked>,
}

/// What a run of an [`AnyPlan`] asks for next.
#[derive(Debug)]
pub enum Next<'a> {
    /// These items are to be pushed.
    Push(Range<usize>),
    /// These items are done.
    Done(Chunk<'a>),
}

impl AnyPlan {
    /// The problem, whole.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// What computes it, in a few words: kernel symbols, or form and instruction set of the CPU.
    pub fn variant(&self) -> String {
        self.chunks.variant()
    }

    /// Bytes of memory beside inputs and outputs, on the device that computes.
    pub fn workspace_bytes(&self) -> usize {
        self.chunks.workspace_bytes()
    }

    /// Items that go through the device at a time.
    pub fn items_per_chunk(&self) -> usize {
        self.chunks.items_per_chunk()
    }

    /// Computes the rollout of `layers` (every layer of the problem, first to last) into `out`, shaped as
    /// [`Problem::output_shape`]. `progress` is called after each chunk, in order.
    ///
    /// # Errors
    /// As [`Problem::check_layers`], and those of the device.
    pub fn run(
        &mut self,
        layers: &[HostLayer<'_>],
        out: &mut [f32],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        self.run_items(0..self.problem.shape().batch, layers, out, progress)
    }

    /// As [`run`](AnyPlan::run), of the items `items` of the batch alone: `layers` hold every layer of theirs, and `out` is
    /// shaped as [`Problem::output_shape`] of a problem of these items.
    ///
    /// # Errors
    /// As [`run`](AnyPlan::run) for the items; [`Error::Items`](crate::Error::Items) where they leave the batch.
    pub fn run_items(
        &mut self,
        items: Range<usize>,
        layers: &[HostLayer<'_>],
        out: &mut [f32],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        self.problem.check_layers_of(&items, layers, out.len())?;
        self.chunks.restart(items.clone())?;
        while let Some(next) = self.step()? {
            match next {
                Next::Push(chunk) => {
                    let first = chunk.start - items.start;
                    let layers = layers_from(&self.problem, layers, first)?;
                    self.push(&layers)?;
                }
                Next::Done(chunk) => {
                    chunk.copy_to(out);
                    progress(chunk.progress());
                }
            }
        }
        Ok(())
    }

    /// As [`cpu::Plan::set_windows`](crate::cpu::Plan::set_windows), for the runs to come: between runs.
    ///
    /// # Errors
    /// As [`cpu::Plan::set_windows`](crate::cpu::Plan::set_windows).
    pub fn set_windows(&mut self, windows: &[Window]) -> Result<()> {
        self.problem.set_windows(windows)?;
        self.chunks.set_windows(windows)
    }

    /// As [`cpu::Plan::set_rows`](crate::cpu::Plan::set_rows), for the runs to come: between runs.
    ///
    /// # Errors
    /// As [`cpu::Plan::set_rows`](crate::cpu::Plan::set_rows).
    pub fn set_rows(&mut self, rows: &[usize]) -> Result<()> {
        self.problem.set_rows(rows)?;
        self.chunks.set_rows(rows)
    }

    /// Begins a run whose maps and outputs are held a chunk at a time, by [`step`](AnyPlan::step) and
    /// [`push`](AnyPlan::push). What a run before it left unfinished is forgotten.
    ///
    /// # Errors
    /// [`Error::StartRow`](crate::Error::StartRow) where a start row of [`set_rows`](AnyPlan::set_rows) lies outside its
    /// window; those of the device.
    pub fn restart(&mut self) -> Result<()> {
        self.chunks.restart(0..self.problem.shape().batch)
    }

    /// What is to be done next: to push items as long as the device has room for them, else to take what is done. `None`
    /// where all items are done.
    ///
    /// # Errors
    /// Those of the device.
    pub fn step(&mut self) -> Result<Option<Next<'_>>> {
        if let Some(items) = self.chunks.wants() {
            return Ok(Some(Next::Push(items)));
        }
        Ok(self.chunks.pop()?.map(Next::Done))
    }

    /// Takes in the items that [`step`](AnyPlan::step) asked for: `layers` hold every layer of theirs and are not needed
    /// any more once this returns.
    ///
    /// # Errors
    /// As [`Problem::check_layers`] for the layers, and those of the device.
    pub fn push(&mut self, layers: &[HostLayer<'_>]) -> Result<()> {
        self.chunks.push(layers)
    }
}

impl fmt::Display for AnyPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.chunks.fmt(f)
    }
}
