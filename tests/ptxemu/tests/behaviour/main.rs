//! Memory, warps, barriers, copies, matrices, clusters, and every kind of fault.

mod atomic;
mod bench;
mod cluster;
mod copy;
mod counts;
mod faults;
mod matrix;
mod memory;
mod races;
mod schedule;
mod warp;
