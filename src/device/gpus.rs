//! One or several GPUs as a device.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::CudaContext;

use super::{Backend, Chunked, Device};
use crate::chunk::Chunk;
use crate::cuda::kernel::{Arithmetic, Form, Kernel, RolloutProduct};
use crate::cuda::{self, Compiler, HostPlan, Options, Precision, Runtime};
use crate::error::{Error, Result};
use crate::layer::HostLayer;
use crate::layout::Window;
use crate::problem::Problem;

struct Gpus {
    runtimes: Arc<[Runtime]>,
    options: Options,
}

impl Device {
    /// The GPUs of `contexts`, each of which takes chunks of the batch in turn. All plans share loaded kernels.
    ///
    /// # Errors
    /// [`Error::ZeroExtent`] where there is no context; [`Error::Driver`].
    pub fn cuda(contexts: &[Arc<CudaContext>], options: &Options) -> Result<Self> {
        let compiler = Compiler::default();
        let runtimes = contexts
            .iter()
            .map(|context| Runtime::new(context, &compiler));
        Device::on(&runtimes.collect::<Result<Vec<_>>>()?, options)
    }

    /// As [`cuda`](Device::cuda), with the compilers and the kernels of `runtimes`.
    ///
    /// # Errors
    /// [`Error::ZeroExtent`] where there is no runtime.
    pub fn on(runtimes: &[Runtime], options: &Options) -> Result<Self> {
        if runtimes.is_empty() {
            return Err(Error::ZeroExtent { what: "devices" });
        }
        Ok(Device::new(Gpus {
            runtimes: runtimes.into(),
            options: options.with_environment(),
        }))
    }
}

impl Gpus {
    fn context(&self) -> &Arc<CudaContext> {
        self.runtimes[0].context()
    }
}

impl Backend for Gpus {
    fn name(&self) -> String {
        let ordinals: Vec<String> = self
            .runtimes
            .iter()
            .map(|runtime| format!("cuda:{}", runtime.context().ordinal()))
            .collect();
        ordinals.join(",")
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }

    fn model(&self) -> String {
        self.context().name().unwrap_or_default()
    }

    fn threads(&self) -> NonZeroUsize {
        NonZeroUsize::MIN
    }

    fn is_half(&self) -> bool {
        let forced = self.options.variant.as_deref().unwrap_or_default();
        self.options.precision == Precision::Half || forced.contains(Arithmetic::F16x2.name())
    }

    fn candidates(&self, problem: &Problem) -> Result<Vec<Device>> {
        let discard = problem.config().discard.is_some();
        let products = Arithmetic::ALL.into_iter().flat_map(|arithmetic| {
            Form::ALL.map(|form| RolloutProduct {
                arithmetic,
                form,
                discard,
            })
        });
        let forced = products.map(|product| Options {
            variant: Some(product.variant().symbol),
            ..self.options.clone()
        });
        let limits = self.runtimes[0].limits();
        let usable = forced.filter(|options| cuda::choose(problem, limits, options).is_ok());
        let with = |options| {
            Device::new(Gpus {
                runtimes: self.runtimes.clone(),
                options,
            })
        };
        Ok(std::iter::once(self.options.clone())
            .chain(usable)
            .map(with)
            .collect())
    }

    fn check(&self, problem: &Problem) -> Result<()> {
        let mut runtimes = self.runtimes.iter();
        runtimes.try_for_each(|runtime| {
            cuda::choose(problem, runtime.limits(), &self.options).map(|_| ())
        })
    }

    fn plan(
        &self,
        problem: &Problem,
        items_per_chunk: Option<NonZeroUsize>,
    ) -> Result<Box<dyn Chunked>> {
        let plan = HostPlan::on(&self.runtimes, problem, &self.options, items_per_chunk)?;
        Ok(Box::new(plan))
    }

    #[cfg(feature = "measure")]
    fn case(
        &self,
        members: Vec<(Problem, crate::measure::Inputs)>,
    ) -> Result<crate::measure::Case> {
        crate::measure::Case::cuda(members, &self.runtimes[0], &self.options)
    }
}

impl Chunked for HostPlan {
    fn variant(&self) -> String {
        let symbols: Vec<&str> = self
            .schedule()
            .variants()
            .iter()
            .map(|variant| variant.symbol.as_str())
            .collect();
        symbols.join(" + ")
    }

    fn workspace_bytes(&self) -> usize {
        HostPlan::workspace_bytes(self)
    }

    fn items_per_chunk(&self) -> usize {
        HostPlan::items_per_chunk(self)
    }

    fn set_windows(&mut self, windows: &[Window]) -> Result<()> {
        HostPlan::set_windows(self, windows)
    }

    fn set_rows(&mut self, rows: &[usize]) -> Result<()> {
        HostPlan::set_rows(self, rows)
    }

    fn restart(&mut self, items: Range<usize>) -> Result<()> {
        HostPlan::restart(self, items)
    }

    fn wants(&self) -> Option<Range<usize>> {
        HostPlan::wants(self)
    }

    fn push(&mut self, layers: &[HostLayer<'_>]) -> Result<()> {
        HostPlan::push(self, layers)
    }

    fn pop(&mut self) -> Result<Option<Chunk<'_>>> {
        HostPlan::pop(self)
    }
}
