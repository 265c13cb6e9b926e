//! A device made ready for plans: its context, the compiler, and the kernels that have been loaded.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::CudaContext;

use super::driver::{self, Function};
use super::limits::DeviceLimits;
use super::nvrtc::{self, Arch, Cache, Image, Nvrtc, Source, Target};
use super::options::{Compiler, ImageKind};
use super::variant::{Entry, Variant};
use crate::error::{Error, Result};

/// A device made ready for plans. The plans made `on` one runtime, or on its clones, on any threads, share the compiler,
/// which is looked for once, and the kernels, each compiled and loaded once and kept for as long as the runtime or a plan
/// lives. A plan whose kernels are all there asks neither the compiler nor any file.
///
/// ```no_run
/// use attention_rollout::cuda::{self, Compiler, Options, Plan, Runtime};
/// use attention_rollout::{DType, Problem, RolloutConfig, Shape};
///
/// let runtime = Runtime::new(&cuda::context(0)?, &Compiler::default())?;
/// for tokens in [128, 256, 512] {
///     let shape = Shape { layers: 12, batch: 8, heads: 12, tokens };
///     let problem = Problem::new(shape, DType::F16, RolloutConfig::default())?;
///     let plan = Plan::on(&runtime, &problem, &Options::default())?; // compiles what is not there yet
/// }
/// # Ok::<(), attention_rollout::Error>(())
/// ```
#[derive(Clone)]
pub struct Runtime(Arc<Inner>);

struct Inner {
    context: Arc<CudaContext>,
    limits: DeviceLimits,
    /// Found when the first kernel is compiled.
    nvrtc: OnceLock<Nvrtc>,
    cache: Cache,
    image: ImageKind,
    /// By symbol.
    functions: Mutex<HashMap<String, Arc<Function>>>,
    /// What plans have found out on the device, by what was asked.
    notes: Mutex<HashMap<[u8; 32], String>>,
}

impl Runtime {
    /// The device of `context` (see [`context`](super::context())), whose kernels come from `compiler`.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn new(context: &Arc<CudaContext>, compiler: &Compiler) -> Result<Self> {
        let compiler = compiler.with_environment();
        let nvrtc = OnceLock::new();
        if let Some(given) = compiler.nvrtc {
            nvrtc.get_or_init(|| given);
        }
        Ok(Runtime(Arc::new(Inner {
            context: context.clone(),
            limits: driver::limits(context)?,
            nvrtc,
            cache: compiler.cache.unwrap_or_else(Cache::from_env),
            image: compiler.image,
            functions: Mutex::default(),
            notes: Mutex::default(),
        })))
    }

    /// The context.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.0.context
    }

    /// What the device offers.
    pub fn limits(&self) -> &DeviceLimits {
        &self.0.limits
    }

    /// The loaded kernel of `variant`, entered as `entry` with at most `shared_bytes` of dynamic shared memory. Compiled
    /// and loaded if it never was.
    ///
    /// # Errors
    /// [`Error::Nvrtc`] where the compiler is missing or rejects the kernel, [`Error::Driver`] where the driver does.
    pub(crate) fn function(
        &self,
        entry: Entry,
        variant: &Variant,
        shared_bytes: usize,
    ) -> Result<Arc<Function>> {
        let symbol = entry.symbol(variant);
        let functions = &self.0.functions;
        let mut functions = functions.lock().unwrap_or_else(PoisonError::into_inner);
        let function = match functions.get(&symbol) {
            Some(function) => function.clone(),
            None => {
                let image = self.compile(&symbol, entry, variant)?;
                let function = Arc::new(Function::load(
                    self.context(),
                    &image,
                    &symbol,
                    variant.arguments,
                )?);
                functions.insert(symbol, function.clone());
                function
            }
        };
        function.allow_shared(shared_bytes)?;
        Ok(function)
    }

    /// What was [noted](Runtime::note) under `key`, by this runtime, or by any with the same directory of compiled kernels.
    pub(crate) fn noted(&self, key: &[u8; 32]) -> Option<String> {
        let notes = self.0.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let own = notes.get(key).cloned();
        own.or_else(|| self.0.cache.noted(key))
    }

    /// Keeps a line of text.
    pub(crate) fn note(&self, key: [u8; 32], text: String) {
        self.0.cache.note(&key, &text);
        let mut notes = self.0.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.insert(key, text);
    }

    /// The compiler.
    fn nvrtc(&self) -> Result<&Nvrtc> {
        if let Some(nvrtc) = self.0.nvrtc.get() {
            return Ok(nvrtc);
        }
        let found = Nvrtc::load_for_driver(driver::version()?)?;
        Ok(self.0.nvrtc.get_or_init(|| found))
    }

    /// The image of a kernel as the driver takes it: PTX ends in a zero byte.
    fn compile(&self, symbol: &str, entry: Entry, variant: &Variant) -> Result<Vec<u8>> {
        let file = format!("{}.cu", variant.stem);
        let source = Source::embedded(&file).ok_or_else(|| Error::Variant {
            name: symbol.to_owned(),
            reason: format!("has no source {file}"),
        })?;
        let nvrtc = self.nvrtc()?;
        let mut options = nvrtc::Options::new(self.target(nvrtc)).label(symbol);
        for (name, value) in entry.defines(variant) {
            options = options.define(name, value);
        }
        match self.0.cache.compile(nvrtc, &source, &options)?.image {
            Image::Cubin(bytes) => Ok(bytes),
            Image::Ptx(text) => Ok(text.into_bytes().into_iter().chain([0]).collect()),
        }
    }

    /// What to compile to: machine code for the device; PTX if that is wanted, or of the newest architecture that NVRTC
    /// knows and the device can run where NVRTC is older than the device.
    fn target(&self, nvrtc: &Nvrtc) -> Target {
        let arch = self.0.limits.arch;
        let archs = nvrtc.supported_archs();
        if archs.contains(&arch) {
            return match self.0.image {
                ImageKind::Cubin => Target::Cubin(arch.into()),
                ImageKind::Ptx => Target::Ptx(arch.into()),
            };
        }
        let older = archs.iter().rev().find(|&&known| known < arch);
        Target::Ptx(older.copied().map_or(Arch::from(arch), Arch::from))
    }
}
