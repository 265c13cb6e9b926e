//! Runs programs: launches, groups of blocks, warps, and what their instructions do.

mod access;
pub(crate) mod address;
mod barrier;
mod bulk;
mod clocks;
mod collective;
mod copy;
mod counts;
mod engine;
mod global;
mod launch;
mod matrix;
mod mbarrier;
mod setup;
mod shared;
mod step;
mod stop;
mod warp;

pub use launch::launch;
pub(crate) use launch::trace;
