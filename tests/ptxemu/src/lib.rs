//! A checking PTX interpreter.

#![deny(missing_docs)]
#![allow(dead_code)]

mod config;
mod fault;
mod memory;
mod module;
#[rustfmt::skip]
mod poc;
mod report;

pub use config::{Dim3, Launch, Options};
pub use fault::{Fault, FaultKind, MemoryError, ParseError};
pub use memory::Memory;
pub use module::{GlobalVar, Kernel, Module, Param};
pub use report::{AccessCounts, BankConflict, ClassCounts, Report, SharedCounts, Traffic};

/// Runs one kernel launch to its end.
pub fn launch(
    _module: &Module,
    kernel: &Kernel,
    launch: &Launch<'_>,
    memory: &Memory,
    options: &Options,
) -> Result<Report, Fault> {
    let o = poc::exec::Options {
        races: options.check_races,
        max_steps: options.max_steps,
        seed: options.seed,
    };
    let result = poc::exec::launch(
        &kernel.inner,
        launch.grid,
        launch.block,
        launch.dynamic_shared_bytes,
        launch.params,
        memory,
        &o,
    );
    memory.mark_all_initialised();
    match result {
        Ok(s) => {
            let classes = ClassCounts {
                mma: s.mma,
                ..Default::default()
            };
            Ok(Report {
                warp_instructions: s.warp_insts,
                lane_instructions: s.lane_insts,
                divergent_instructions: s.divergent,
                classes,
                ..Default::default()
            })
        }
        Err(e) => {
            let has = |s: &str| e.0.contains(s);
            let kind = if has("invalid launch") || has("parameter bytes") || has("too much shared")
            {
                FaultKind::InvalidLaunch
            } else if has("RACE") {
                FaultKind::SharedRace
            } else if has("isaligned") {
                FaultKind::Misaligned
            } else if has("uninitialised") {
                FaultKind::Uninitialised
            } else if has("cp.async") {
                FaultKind::UnwaitedCopy
            } else if has("divergent") {
                FaultKind::DivergentBarrier
            } else if has("membermask") {
                FaultKind::Membermask
            } else if has("DEADLOCK") {
                FaultKind::Deadlock
            } else if has("step limit") {
                FaultKind::StepLimit
            } else {
                FaultKind::OutOfBounds
            };
            Err(Fault { kind, message: e.0 })
        }
    }
}
