//! The CPU backend: the same problem, plan and run as on a GPU, on all cores.
//!
//! From a problem to the inner loops: a [`Choice`] says how, the forms measure out their scratch and compute, an
//! engine hands items out to the members of a team. [`Form::Rows`] carries rows through the layers, [`Form::Product`]
//! multiplies matrices; both take fused rows from `map`, which takes them from `fuse`, the only code that reads maps, or
//! from `scores`, which computes them of queries and keys.

mod cache;
mod choice;
mod discard;
mod engine;
mod form;
mod fuse;
pub(crate) mod gemm;
mod group;
mod item;
mod map;
mod memory;
mod panels;
mod plan;
mod prefetch;
pub(crate) mod scores;
pub(crate) mod simd;
mod streaming;
mod team;
mod top_down;

use std::num::NonZeroUsize;

pub use cache::PlanCache;
pub use choice::{Choice, Form};
pub use group::{GroupItem, GroupPlan};
pub use plan::Plan;
pub use prefetch::Prefetch;
pub use simd::Simd;
pub use streaming::StreamingPlan;
pub use top_down::TopDownPlan;

pub use crate::chunk::Progress;
use crate::error::Result;
use crate::layout::Window;
use crate::problem::Problem;

// Made on one thread, run on another. A run takes its plan exclusively.
const _: () = {
    const fn moves_and_is_shared<T: Send + Sync>() {}
    moves_and_is_shared::<Plan>();
    moves_and_is_shared::<PlanCache>();
    moves_and_is_shared::<StreamingPlan>();
    moves_and_is_shared::<TopDownPlan>();
    moves_and_is_shared::<GroupPlan>();
};

/// What one run is given beside its layers; `None` leaves what the plan was told last.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunInputs<'a> {
    /// One window per item of the run, where the problem was made with windows.
    pub windows: Option<&'a [Window]>,
    /// The start rows of each item of the run, counted from its window's start, where the problem was made with
    /// [`StartRows::PerItem`](crate::StartRows::PerItem).
    pub rows: Option<&'a [usize]>,
}

impl RunInputs<'_> {
    /// Tells `problem`, which is that of the run's items.
    fn tell(self, problem: &mut Problem) -> Result<()> {
        self.windows.map_or(Ok(()), |it| problem.set_windows(it))?;
        self.rows.map_or(Ok(()), |it| problem.set_rows(it))
    }
}

/// How to run on the CPU.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Threads to use; `None` is one per available core.
    pub threads: Option<NonZeroUsize>,
    /// How far ahead maps are prefetched; `None` is what is faster on this machine.
    pub prefetch: Option<Prefetch>,
}
