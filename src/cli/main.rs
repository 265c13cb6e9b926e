//! `attention-rollout`: attention rollout of saved attention maps, and pictures of it.
//!
//! One module per subcommand; the rest is what they share.

mod backend;
mod bench;
mod devices;
mod error;
mod header;
mod heatmap;
mod input;
mod job;
mod options;
mod output;
mod pending;
mod plan;
mod progress;
mod relevance;
mod report;
mod run;
#[cfg(feature = "cuda")]
mod selftest;
mod shown;
mod signals;
mod sink;
mod verify;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Attention rollout in batch, on NVIDIA GPUs and CPUs.
///
/// Exit status: 0 done; 2 the input or the arguments are wrong; 1 anything else.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::RunArgs),
    Verify(verify::VerifyArgs),
    Bench(bench::BenchArgs),
    Plan(plan::PlanArgs),
    Devices(devices::DevicesArgs),
    #[cfg(feature = "cuda")]
    Selftest(selftest::SelftestArgs),
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
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}
