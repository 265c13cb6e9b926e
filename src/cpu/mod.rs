//! The CPU backend: the same problem, plan and run as on a GPU, on all cores.

mod discard;
mod engine;
mod fuse;
mod gemm;
mod group;
mod map;
mod memory;
mod panels;
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

pub use crate::progress::Progress;

/// How to run on the CPU.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Threads to use; `None` is one per available core.
    pub threads: Option<NonZeroUsize>,
}
