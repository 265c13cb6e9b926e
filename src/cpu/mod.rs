//! The CPU backend: the same problem, plan and run as on a GPU, on all cores.

mod discard;
mod engine;
mod fuse;
mod gemm;
mod group;
mod map;
mod plan;
mod prepared;
mod product;
mod rows;
mod simd;
mod stream;
mod team;

use std::num::NonZeroUsize;

pub use group::{Group, GroupMember};
pub use plan::Plan;
pub use prepared::{Choice, Form};
pub use simd::Simd;
pub use stream::Stream;

/// How to run on the CPU.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Threads to use; `None` is one per available core.
    pub threads: Option<NonZeroUsize>,
}

/// How far a chunked run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Items finished.
    pub done: usize,
    /// Items in all.
    pub total: usize,
}
