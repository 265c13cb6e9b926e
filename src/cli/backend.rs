//! The machine a command computes on, from its options.

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::thread::available_parallelism;

use attention_rollout::Problem;
use attention_rollout::cpu;
use attention_rollout::device::Device;
use clap::{Args, ValueEnum};

use crate::error::{Error, Result};
use crate::report;

/// Where and how to compute.
#[derive(Args, Clone, Debug)]
pub struct DeviceArgs {
    /// auto | cpu | cuda | cuda:N | cuda:all
    #[arg(long, default_value = "auto")]
    pub device: DeviceArg,

    /// How accurate products on a GPU are
    #[arg(long, value_enum, default_value_t = PrecisionArg::F32)]
    pub precision: PrecisionArg,

    /// On a GPU, compute in the way that is the fastest there: as `tune` found it, or timed now, and remembered
    #[arg(long)]
    pub tune: bool,

    /// CPU threads; all cores unless given
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,

    /// How far ahead the CPU asks memory for maps; what is faster on this machine unless given
    #[arg(long, value_enum)]
    pub prefetch: Option<PrefetchArg>,
}

/// `--prefetch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PrefetchArg {
    /// A little: the processor's own prefetchers do the rest
    Near,
    /// As much as hides the latency of fast memory
    Far,
}

impl From<PrefetchArg> for cpu::Prefetch {
    fn from(arg: PrefetchArg) -> Self {
        match arg {
            PrefetchArg::Near => cpu::Prefetch::Near,
            PrefetchArg::Far => cpu::Prefetch::Far,
        }
    }
}

/// `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceArg {
    Auto,
    Cpu,
    Cuda(usize),
    CudaAll,
}

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let cuda = |ordinal: &str| ordinal.parse().ok().map(DeviceArg::Cuda);
        match text {
            "auto" => Some(DeviceArg::Auto),
            "cpu" => Some(DeviceArg::Cpu),
            "cuda" => Some(DeviceArg::Cuda(0)),
            "cuda:all" => Some(DeviceArg::CudaAll),
            text => text.strip_prefix("cuda:").and_then(cuda),
        }
        .ok_or_else(|| "expected auto, cpu, cuda, cuda:N or cuda:all".to_owned())
    }
}

impl fmt::Display for DeviceArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceArg::Auto => f.write_str("auto"),
            DeviceArg::Cpu => f.write_str("cpu"),
            DeviceArg::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            DeviceArg::CudaAll => f.write_str("cuda:all"),
        }
    }
}

/// `--precision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PrecisionArg {
    /// Products as accurate as f32
    F32,
    /// Allow a GPU to take products of f16 operands; the CPU computes in f32 all the same
    Half,
}

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
    let prefetch = args.prefetch.map(cpu::Prefetch::from);
    Ok(Device::cpu(&cpu::Options { threads, prefetch }))
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
    use attention_rollout::cuda::{Options, Precision};
    Options {
        precision: match args.precision {
            PrecisionArg::F32 => Precision::F32,
            PrecisionArg::Half => Precision::Half,
        },
        tune: args.tune,
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
