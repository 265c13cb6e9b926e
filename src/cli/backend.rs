//! The machine a command computes on, from its options.

use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use attention_rollout::Problem;
use attention_rollout::cpu;
use attention_rollout::device::Device;

use crate::error::{Error, Result};
use crate::options::{DeviceArg, DeviceArgs};
use crate::report;

/// The device the options ask for. `auto` is the first GPU that can compute, or else the CPU, and says why.
pub fn open(args: &DeviceArgs) -> Result<Device> {
    limit_threads(args)?;
    if args.device == DeviceArg::Cpu {
        return open_cpu(args);
    }
    match open_cuda(args) {
        Ok(device) => Ok(device),
        Err(reason) if args.device == DeviceArg::Auto => {
            report::note(format_args!("computing on the CPU: {reason}"));
            open_cpu(args)
        }
        Err(reason) => Err(Error::Device {
            device: args.device.to_string(),
            reason,
        }),
    }
}

/// As [`open`], for these problems: `auto` is the CPU where the GPU cannot compute one of them.
pub fn open_for<'p>(
    args: &DeviceArgs,
    mut problems: impl Iterator<Item = &'p Problem>,
) -> Result<Device> {
    let device = open(args)?;
    if args.device != DeviceArg::Auto {
        return Ok(device);
    }
    match problems.try_for_each(|problem| device.check(problem)) {
        Ok(()) => Ok(device),
        Err(reason) => {
            report::note(format_args!("computing on the CPU: {reason}"));
            open_cpu(args)
        }
    }
}

/// The CPU, with the threads that the options ask for.
pub fn open_cpu(args: &DeviceArgs) -> Result<Device> {
    let threads = Some(threads(args)?);
    Ok(Device::cpu(&cpu::Options { threads }))
}

/// Lets `--validate` and the reference, which take the threads of the process, take as many as the options ask for.
fn limit_threads(args: &DeviceArgs) -> Result<()> {
    let threads = threads(args)?;
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.get())
        .build_global()
        .map_err(|error| {
            Error::rollout("threads")(attention_rollout::Error::Threads {
                threads: threads.get(),
                reason: error.to_string(),
            })
        })
}

/// The GPUs that the options name, with the compiler for their kernels.
#[cfg(feature = "cuda")]
fn open_cuda(args: &DeviceArgs) -> Result<Device, String> {
    cuda_device(args).map_err(|error| error.to_string())
}

#[cfg(feature = "cuda")]
fn cuda_device(args: &DeviceArgs) -> attention_rollout::Result<Device> {
    let (runtimes, options) = cuda_runtimes(args)?;
    Device::on(&runtimes, &options)
}

/// How plans are made for GPUs.
#[cfg(feature = "cuda")]
pub fn cuda_options(args: &DeviceArgs) -> attention_rollout::cuda::Options {
    use crate::options::PrecisionArg;
    use attention_rollout::cuda::{Options, Precision};
    Options {
        precision: match args.precision {
            PrecisionArg::F32 => Precision::F32,
            PrecisionArg::Half => Precision::Half,
        },
        ..Options::default()
    }
}

/// The GPUs that the options name, with one compiler for all, and how plans are made for them.
#[cfg(feature = "cuda")]
pub fn cuda_runtimes(
    args: &DeviceArgs,
) -> attention_rollout::Result<(
    Vec<attention_rollout::cuda::Runtime>,
    attention_rollout::cuda::Options,
)> {
    use attention_rollout::cuda::{self, Compiler, Runtime, nvrtc::Nvrtc};
    let devices = cuda::available()?;
    let ordinals = match args.device {
        DeviceArg::CudaAll => 0..devices.len(),
        DeviceArg::Cuda(ordinal) => ordinal..ordinal.saturating_add(1),
        DeviceArg::Auto | DeviceArg::Cpu => 0..1,
    };
    let contexts = ordinals.map(cuda::context);
    let contexts = contexts.collect::<attention_rollout::Result<Vec<_>>>()?;
    let options = cuda_options(args);
    let compiler = Compiler {
        nvrtc: Some(Nvrtc::load_for_driver(cuda::driver_version()?)?),
        ..Compiler::default()
    };
    let runtimes = contexts
        .iter()
        .map(|context| Runtime::new(context, &compiler));
    Ok((runtimes.collect::<attention_rollout::Result<_>>()?, options))
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_args: &DeviceArgs) -> Result<Device, String> {
    Err("this binary was built without the CUDA backend".to_owned())
}

/// Threads for each core that are still accepted. More only wait for each other.
const MAX_THREADS_PER_CORE: usize = 4;

fn threads(args: &DeviceArgs) -> Result<NonZeroUsize> {
    let cores = cpu_threads();
    let threads = args.threads.unwrap_or(cores);
    let most = MAX_THREADS_PER_CORE * cores.get();
    if threads.get() > most {
        return Err(Error::argument(
            "--threads",
            format!("at most {most} on {cores} cores"),
            threads.to_string(),
        ));
    }
    Ok(threads)
}

/// Cores this process may use.
pub fn cpu_threads() -> NonZeroUsize {
    available_parallelism().unwrap_or(NonZeroUsize::MIN)
}
