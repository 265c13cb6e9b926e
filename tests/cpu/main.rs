//! Tier 0: the CPU backend.

mod against_reference;
#[path = "../common/mod.rs"]
mod common;
mod queries_keys;
mod real_data;
mod rows;
mod run_inputs;
mod sources;
mod ways;
