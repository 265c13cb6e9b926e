//! The machine a command computes on.

use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use attention_rollout::cpu::{self, Choice, Form, Simd};
use attention_rollout::measure::{Case, Inputs};
use attention_rollout::{HostLayer, Output, Problem};

use crate::error::{Error, Result};
#[cfg(feature = "cuda")]
use crate::gpu::{GpuPlan, Gpus};
use crate::options::{DeviceArg, DeviceArgs};
use crate::report;

/// A device that is ready to compute.
#[derive(Clone)]
pub enum Backend {
    Cpu {
        threads: NonZeroUsize,
        /// How to compute, where the plan shall not choose.
        choice: Option<Choice>,
    },
    #[cfg(feature = "cuda")]
    Cuda(Gpus),
}

impl Backend {
    /// The device the options ask for. `auto` is the first GPU that can compute, or else the CPU, and says why.
    pub fn open(args: &DeviceArgs) -> Result<Self> {
        if args.device == DeviceArg::Cpu {
            return Backend::cpu(args);
        }
        match Backend::cuda(args) {
            Ok(backend) => Ok(backend),
            Err(reason) if args.device == DeviceArg::Auto => {
                report::note(format_args!("computing on the CPU: {reason}"));
                Backend::cpu(args)
            }
            Err(reason) => Err(Error::Device {
                device: args.device.to_string(),
                reason,
            }),
        }
    }

    /// The CPU.
    pub fn cpu(args: &DeviceArgs) -> Result<Self> {
        Ok(Backend::Cpu {
            threads: threads(args)?,
            choice: None,
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda(args: &DeviceArgs) -> Result<Self, String> {
        Gpus::open(args.device, args.precision)
            .map(Backend::Cuda)
            .map_err(|error| error.to_string())
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(_args: &DeviceArgs) -> Result<Self, String> {
        Err("this binary was built without the CUDA backend".to_owned())
    }

    /// Every way this device can compute `problem`. On the CPU: the plan's own choice, on one thread and on all, and
    /// then each form with each instruction set. On a GPU: the plan's own choice, and each product kernel.
    pub fn variants(&self, problem: &Problem) -> attention_rollout::Result<Vec<Self>> {
        match self {
            Backend::Cpu { threads, .. } => Ok(cpu_variants(*threads, problem)),
            #[cfg(feature = "cuda")]
            Backend::Cuda(gpus) => {
                let variants = gpus.variants(problem)?;
                Ok(variants.into_iter().map(Backend::Cuda).collect())
            }
        }
    }

    /// Name for the summary.
    pub fn device(&self) -> &str {
        match self {
            Backend::Cpu { .. } => "cpu",
            #[cfg(feature = "cuda")]
            Backend::Cuda(gpus) => gpus.name(),
        }
    }

    /// The device, with the threads it computes on where it is the CPU.
    pub fn label(&self) -> String {
        match self {
            Backend::Cpu { threads, .. } => {
                let plural = if threads.get() == 1 { "" } else { "s" };
                format!("cpu, {threads} thread{plural}")
            }
            #[cfg(feature = "cuda")]
            Backend::Cuda(gpus) => gpus.name().to_owned(),
        }
    }

    /// The name that the device gives itself.
    pub fn device_name(&self) -> String {
        match self {
            Backend::Cpu { .. } => std::env::consts::ARCH.to_owned(),
            #[cfg(feature = "cuda")]
            Backend::Cuda(gpus) => gpus.device_name(),
        }
    }

    /// Whether products may be rounded to f16.
    pub fn is_half(&self) -> bool {
        match self {
            Backend::Cpu { .. } => false,
            #[cfg(feature = "cuda")]
            Backend::Cuda(gpus) => gpus.is_half(),
        }
    }

    /// CPU threads in use.
    pub fn threads(&self) -> NonZeroUsize {
        match self {
            Backend::Cpu { threads, .. } => *threads,
            #[cfg(feature = "cuda")]
            Backend::Cuda(_) => NonZeroUsize::MIN,
        }
    }

    /// Makes problems, each with its maps, ready to be timed.
    pub fn case(&self, members: Vec<(Problem, Inputs)>) -> attention_rollout::Result<Case> {
        match self {
            Backend::Cpu { threads, .. } => Case::cpu(members, *threads),
            #[cfg(feature = "cuda")]
            Backend::Cuda(gpus) => Case::cuda(members, gpus.context(), gpus.options()),
        }
    }

    /// Makes `problem` ready to run.
    pub fn plan(&self, problem: &Problem) -> attention_rollout::Result<Plan> {
        match self {
            Backend::Cpu { threads, choice } => {
                let options = cpu::Options {
                    threads: Some(*threads),
                };
                Ok(Plan::Cpu(match *choice {
                    Some(choice) => cpu::Plan::with_choice(problem, &options, choice)?,
                    None => cpu::Plan::new(problem, &options)?,
                }))
            }
            #[cfg(feature = "cuda")]
            Backend::Cuda(gpus) => Ok(Plan::Cuda(Box::new(gpus.plan(problem)?))),
        }
    }
}

/// A problem made ready to run on a [`Backend`].
pub enum Plan {
    Cpu(cpu::Plan),
    #[cfg(feature = "cuda")]
    Cuda(Box<GpuPlan>),
}

impl Plan {
    /// What computes the problem, in a few words.
    pub fn variant(&self) -> String {
        match self {
            Plan::Cpu(plan) => {
                let Choice {
                    form,
                    simd,
                    share_rest,
                } = plan.choice();
                let sharing = if share_rest && plan.threads() > 1 {
                    ", items shared"
                } else {
                    ""
                };
                format!("{form}, {simd}{sharing}")
            }
            #[cfg(feature = "cuda")]
            Plan::Cuda(plan) => plan.variant(),
        }
    }

    /// Bytes of memory beside inputs and outputs.
    pub fn workspace_bytes(&self) -> usize {
        match self {
            Plan::Cpu(plan) => plan.workspace_bytes(),
            #[cfg(feature = "cuda")]
            Plan::Cuda(plan) => plan.schedule().workspace_bytes(),
        }
    }

    /// Computes the rollout of `layers` into `out`.
    pub fn run(
        &mut self,
        layers: &[HostLayer<'_>],
        out: &mut [f32],
    ) -> attention_rollout::Result<()> {
        match self {
            Plan::Cpu(plan) => plan.run(layers, out),
            #[cfg(feature = "cuda")]
            Plan::Cuda(plan) => plan.run(layers, out),
        }
    }
}

fn cpu_variants(threads: NonZeroUsize, problem: &Problem) -> Vec<Backend> {
    let mut counts = vec![NonZeroUsize::MIN, threads];
    counts.dedup();
    let mut variants: Vec<Backend> = counts
        .into_iter()
        .map(|threads| Backend::Cpu {
            threads,
            choice: None,
        })
        .collect();
    let forms: &[Form] = match problem.config().output {
        Output::Rows(_) => &[Form::Rows, Form::Product],
        Output::Matrix | Output::Cumulative => &[Form::Product],
    };
    let instruction_sets: Vec<Simd> = Simd::available().collect();
    for &form in forms {
        for &simd in &instruction_sets {
            for share_rest in [false, true] {
                let choice = Some(Choice {
                    form,
                    simd,
                    share_rest,
                });
                variants.push(Backend::Cpu { threads, choice });
            }
        }
    }
    variants
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
