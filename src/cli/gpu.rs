//! The CUDA backend as a device of the command line.

use std::sync::Arc;

use attention_rollout::cuda::cudarc::driver::CudaContext;
use attention_rollout::cuda::kernel::{Arithmetic, Form, Kernel, RolloutProduct};
use attention_rollout::cuda::nvrtc::Nvrtc;
use attention_rollout::cuda::{self, Options, Precision, Schedule};
use attention_rollout::{HostLayer, Problem, Result};

use crate::options::{DeviceArg, PrecisionArg};

/// One or several GPUs of one kind of work: each takes a share of the batch.
#[derive(Clone)]
pub struct Gpus {
    contexts: Vec<Arc<CudaContext>>,
    options: Options,
    name: String,
}

impl Gpus {
    /// The GPUs that `device` names, with the compiler for their kernels.
    pub fn open(device: DeviceArg, precision: PrecisionArg) -> Result<Self> {
        let devices = cuda::available()?;
        let ordinals = match device {
            DeviceArg::CudaAll => 0..devices.len(),
            DeviceArg::Cuda(ordinal) => ordinal..ordinal.saturating_add(1),
            DeviceArg::Auto | DeviceArg::Cpu => 0..1,
        };
        let contexts = ordinals.map(cuda::context).collect::<Result<Vec<_>>>()?;
        let nvrtc = Nvrtc::load_for_driver(cuda::driver_version()?)?;
        let options = Options {
            precision: match precision {
                PrecisionArg::F32 => Precision::F32,
                PrecisionArg::Half => Precision::Half,
            },
            nvrtc: Some(nvrtc),
            ..Options::default()
        };
        let ordinals: Vec<String> = contexts
            .iter()
            .map(|context| format!("cuda:{}", context.ordinal()))
            .collect();
        Ok(Gpus {
            contexts,
            options,
            name: ordinals.join(","),
        })
    }

    /// `cuda:0`, or several of them.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of the first GPU's model.
    pub fn device_name(&self) -> String {
        self.context().name().unwrap_or_default()
    }

    /// The first GPU's context.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.contexts[0]
    }

    /// How plans are made.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Whether fused maps may be rounded to f16.
    pub fn is_half(&self) -> bool {
        let forced = self.options.variant.as_deref().unwrap_or_default();
        self.options.precision == Precision::Half || forced.contains(Arithmetic::F16x2.name())
    }

    /// These GPUs, with the kernel of that symbol.
    pub fn forcing(&self, symbol: String) -> Self {
        let mut forcing = self.clone();
        forcing.options.variant = Some(symbol);
        forcing
    }

    /// These GPUs as they choose by themselves, and with each product kernel that can compute `problem`.
    pub fn variants(&self, problem: &Problem) -> Result<Vec<Self>> {
        let limits = cuda::limits(self.context())?;
        let discard = problem.config().discard.is_some();
        let products = Arithmetic::ALL.into_iter().flat_map(|arithmetic| {
            Form::ALL.map(|form| RolloutProduct {
                arithmetic,
                form,
                discard,
            })
        });
        let usable = products
            .map(|product| self.forcing(product.variant().symbol))
            .filter(|gpus| cuda::choose(problem, &limits, &gpus.options).is_ok());
        Ok(std::iter::once(self.clone()).chain(usable).collect())
    }

    /// Makes `problem` ready to run.
    pub fn plan(&self, problem: &Problem) -> Result<GpuPlan> {
        let limits = cuda::limits(self.context())?;
        Ok(GpuPlan {
            schedule: cuda::choose(problem, &limits, &self.options)?,
            gpus: self.clone(),
            problem: problem.clone(),
        })
    }
}

/// A problem over host memory, to be run on [`Gpus`].
pub struct GpuPlan {
    gpus: Gpus,
    problem: Problem,
    schedule: Schedule,
}

impl GpuPlan {
    /// The kernels of a run over the whole batch at once.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The symbols of its kernels.
    pub fn variant(&self) -> String {
        let symbols: Vec<String> = self
            .schedule
            .variants()
            .iter()
            .map(|variant| variant.symbol.clone())
            .collect();
        symbols.join(" + ")
    }

    /// Computes the rollout of `layers` into `out`.
    pub fn run(&mut self, layers: &[HostLayer<'_>], out: &mut [f32]) -> Result<()> {
        let Gpus {
            contexts, options, ..
        } = &self.gpus;
        cuda::run_host(
            contexts,
            &self.problem,
            layers,
            out,
            options,
            None,
            &mut |_| (),
        )
    }
}
