//! The machine a command computes on.

use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use attention_rollout::{HostLayer, Problem, cpu};

use crate::error::{Error, Result};
use crate::options::{DeviceArg, DeviceArgs};

/// A device that is ready to compute.
pub enum Backend {
    Cpu { threads: NonZeroUsize },
}

impl Backend {
    /// The device the options ask for.
    pub fn open(args: &DeviceArgs) -> Result<Self> {
        match args.device {
            DeviceArg::Auto | DeviceArg::Cpu => Ok(Backend::Cpu {
                threads: args.threads.unwrap_or_else(cpu_threads),
            }),
            DeviceArg::Cuda(ordinal) => Err(Error::Device {
                device: format!("cuda:{ordinal}"),
                reason: "this binary has no CUDA backend; use --device cpu".to_owned(),
            }),
        }
    }

    /// Every device and way to run that `verify` compares: all there are, unless the options name one.
    pub fn all(args: &DeviceArgs) -> Result<Vec<Self>> {
        let Backend::Cpu { threads } = Backend::open(args)?;
        let single = Backend::Cpu {
            threads: NonZeroUsize::MIN,
        };
        let all = Backend::Cpu { threads };
        Ok(if threads == NonZeroUsize::MIN {
            vec![all]
        } else {
            vec![single, all]
        })
    }

    /// Device and threads, for a table.
    pub fn label(&self) -> String {
        match self {
            Backend::Cpu { threads } if threads.get() == 1 => "cpu, 1 thread".to_owned(),
            Backend::Cpu { threads } => format!("cpu, {threads} threads"),
        }
    }

    /// Name for the summary.
    pub fn device(&self) -> &'static str {
        match self {
            Backend::Cpu { .. } => "cpu",
        }
    }

    /// CPU threads in use.
    pub fn threads(&self) -> usize {
        match self {
            Backend::Cpu { threads } => threads.get(),
        }
    }

    /// Computes `problem` over `layers` into `out`.
    pub fn run(
        &self,
        problem: &Problem,
        layers: &[HostLayer<'_>],
        out: &mut [f32],
    ) -> attention_rollout::Result<()> {
        match self {
            Backend::Cpu { threads } => {
                let options = cpu::Options {
                    threads: Some(*threads),
                };
                cpu::Plan::new(problem, &options)?.run(layers, out)
            }
        }
    }
}

/// Cores this process may use.
pub fn cpu_threads() -> NonZeroUsize {
    available_parallelism().unwrap_or(NonZeroUsize::MIN)
}
