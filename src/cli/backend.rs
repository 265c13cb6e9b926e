//! The machine a command computes on.

use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use attention_rollout::cpu::{self, Choice, Form, Simd};
use attention_rollout::{HostLayer, Output, Problem};

use crate::error::{Error, Result};
use crate::options::{DeviceArg, DeviceArgs};

/// A device that is ready to compute.
#[derive(Clone, Copy, Debug)]
pub enum Backend {
    Cpu {
        threads: NonZeroUsize,
        /// How to compute, where the plan shall not choose.
        choice: Option<Choice>,
    },
}

impl Backend {
    /// The device the options ask for.
    pub fn open(args: &DeviceArgs) -> Result<Self> {
        match args.device {
            DeviceArg::Auto | DeviceArg::Cpu => Ok(Backend::Cpu {
                threads: threads(args)?,
                choice: None,
            }),
            DeviceArg::Cuda(ordinal) => Err(Error::Device {
                device: format!("cuda:{ordinal}"),
                reason: "this binary has no CUDA backend; use --device cpu".to_owned(),
            }),
        }
    }

    /// Every way this device can compute `problem`: the plan's own choice, on one thread and on all, and then each
    /// form with each instruction set.
    pub fn variants(&self, problem: &Problem) -> Vec<Self> {
        let Backend::Cpu { threads, .. } = *self;
        let mut variants: Vec<Backend> = if threads == NonZeroUsize::MIN {
            vec![*self]
        } else {
            let single = NonZeroUsize::MIN;
            vec![
                Backend::Cpu {
                    threads: single,
                    choice: None,
                },
                *self,
            ]
        };
        let forms: &[Form] = match problem.config().output {
            Output::Rows(_) => &[Form::Rows, Form::Product],
            Output::Matrix | Output::Cumulative => &[Form::Product],
        };
        let mut instruction_sets = vec![Simd::Portable];
        if Simd::detect() != Simd::Portable {
            instruction_sets.push(Simd::detect());
        }
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

    /// Name for the summary.
    pub fn device(&self) -> &'static str {
        match self {
            Backend::Cpu { .. } => "cpu",
        }
    }

    /// CPU threads in use.
    pub fn threads(&self) -> NonZeroUsize {
        match self {
            Backend::Cpu { threads, .. } => *threads,
        }
    }

    /// Makes `problem` ready to run.
    pub fn plan(&self, problem: &Problem) -> attention_rollout::Result<Plan> {
        match *self {
            Backend::Cpu { threads, choice } => {
                let options = cpu::Options {
                    threads: Some(threads),
                };
                Ok(Plan::Cpu(match choice {
                    Some(choice) => cpu::Plan::with_choice(problem, &options, choice)?,
                    None => cpu::Plan::new(problem, &options)?,
                }))
            }
        }
    }
}

/// A problem made ready to run on a [`Backend`].
pub enum Plan {
    Cpu(cpu::Plan),
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
        }
    }

    /// Bytes of memory beside inputs and outputs.
    pub fn workspace_bytes(&self) -> usize {
        match self {
            Plan::Cpu(plan) => plan.workspace_bytes(),
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
        }
    }
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
