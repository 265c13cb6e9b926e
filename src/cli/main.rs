//! `attention-rollout`: attention rollout of saved attention maps, and pictures of it.
//!
//! One module per subcommand; the rest is what they share.

// Seen by the fuzzing harness, which has this file as a module.
pub(crate) mod backend;
pub(crate) mod bench;
pub(crate) mod devices;
pub(crate) mod error;
pub(crate) mod extents;
pub(crate) mod file_scores;
pub(crate) mod header;
pub(crate) mod heatmap;
pub(crate) mod input;
pub(crate) mod job;
pub(crate) mod options;
pub(crate) mod output;
pub(crate) mod pending;
pub(crate) mod plan;
pub(crate) mod problem;
pub(crate) mod progress;
pub(crate) mod relevance;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod scores;
#[cfg(feature = "cuda")]
pub(crate) mod selftest;
pub(crate) mod shown;
pub(crate) mod signals;
pub(crate) mod sink;
pub(crate) mod tensors;
#[cfg(feature = "cuda")]
pub(crate) mod tune;
pub(crate) mod verify;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Attention rollout in batch, on NVIDIA GPUs and CPUs.
///
/// Exit status: 0 done; 2 the input or the arguments are wrong; 1 anything else.
#[derive(Parser)]
#[command(version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    Run(run::RunArgs),
    Verify(verify::VerifyArgs),
    Bench(bench::BenchArgs),
    Plan(plan::PlanArgs),
    Devices(devices::DevicesArgs),
    #[cfg(feature = "cuda")]
    Selftest(selftest::SelftestArgs),
    #[cfg(feature = "cuda")]
    Tune(tune::TuneArgs),
}

fn main() -> ExitCode {
    signals::install();
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Devices(args) => devices::run(&args),
        #[cfg(feature = "cuda")]
        Command::Selftest(args) => selftest::run(&args),
        #[cfg(feature = "cuda")]
        Command::Tune(args) => tune::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}
