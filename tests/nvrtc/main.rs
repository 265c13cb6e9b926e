//! Tier 1: NVRTC found, loaded, used and its results kept, with every NVRTC there is to test with.

mod cache;
#[path = "../common/mod.rs"]
mod common;
mod compiler;
#[cfg(unix)]
mod search;
