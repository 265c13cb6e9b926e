//! `tune`: which way of computing a problem is the fastest on a GPU.

use attention_rollout::cuda::nvrtc::Cache;
use attention_rollout::cuda::{self, Options};
use clap::Args;

use crate::backend::{self, DeviceArg, DeviceArgs};
use crate::error::{Error, Result};
use crate::problem::ProblemArgs;
use crate::report;

/// Time every way of computing a problem on a GPU, and remember the fastest for `--tune`.
///
/// Prints CSV, the fastest way first, times in microseconds; `estimate_us` is what is gone by without `--tune`. The maps
/// are made on the GPU.
#[derive(Args, Debug)]
#[command(mut_arg("tune", |argument| argument.hide(true)))]
pub struct TuneArgs {
    #[command(flatten)]
    problem: ProblemArgs,

    #[command(flatten)]
    device: DeviceArgs,
}

/// Runs the subcommand.
pub fn run(args: &TuneArgs) -> Result<()> {
    if matches!(args.device.device, DeviceArg::Cpu | DeviceArg::CudaAll) {
        return Err(Error::argument(
            "--device",
            "one GPU: cuda or cuda:N",
            args.device.device.to_string(),
        ));
    }
    let problem = args.problem.problem()?;
    let device = |error: attention_rollout::Error| Error::Device {
        device: args.device.device.to_string(),
        reason: error.to_string(),
    };
    let (runtimes, options) = backend::cuda_runtimes(&args.device).map_err(device)?;
    let options = Options {
        tune: true,
        ..options
    };
    let timed = cuda::tune(&runtimes[0], &problem, &options).map_err(Error::rollout("tune"))?;
    report::line("pipeline,launches,estimate_us,measured_us")?;
    for cuda::Timed {
        candidate,
        measured_us,
    } in timed
    {
        report::line(format_args!(
            "\"{}\",{},{:.2},{measured_us:.2}",
            candidate.schedule.pipeline(),
            candidate.schedule.launches(),
            candidate.estimate_us,
        ))?;
    }
    let cache = Cache::from_env();
    match (cache.directory(), cache.distrusted()) {
        (Some(directory), None) => report::note(format_args!(
            "the first is remembered in {}",
            directory.display()
        )),
        (Some(directory), Some(reason)) => report::note(format_args!(
            "nothing is remembered in {}: {reason}",
            directory.display()
        )),
        (None, _) => report::note("nothing is remembered: ROLLOUT_CACHE is off"),
    }
    Ok(())
}
