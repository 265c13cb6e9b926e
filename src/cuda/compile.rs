//! From variants to loaded kernels.

use std::sync::Arc;

use cudarc::driver::CudaContext;

use super::driver;
use super::handles::Kernel;
use super::nvrtc::{self, Arch, Cache, Image, Nvrtc, Source, Target};
use super::options::{ImageKind, Options};
use super::schedule::Schedule;
use super::variant::Variant;
use crate::error::{Error, Result};

/// Loaded kernels by variant.
pub(super) struct Kernels(Vec<(Variant, Kernel)>);

impl Kernels {
    /// Compiles and loads the kernels of `schedules`, each once.
    ///
    /// # Errors
    /// [`Error::Nvrtc`] where the compiler is missing or rejects a kernel, [`Error::Driver`] where the driver does.
    pub fn load(
        context: &Arc<CudaContext>,
        arch: u32,
        schedules: &[Schedule],
        options: &Options,
    ) -> Result<Self> {
        let mut variants: Vec<Variant> = Vec::new();
        for &variant in schedules.iter().flat_map(Schedule::variants) {
            if !variants.contains(&variant) {
                variants.push(variant);
            }
        }
        if variants.is_empty() {
            return Ok(Kernels(Vec::new()));
        }
        let nvrtc = match &options.nvrtc {
            Some(nvrtc) => nvrtc.clone(),
            None => Nvrtc::load_for_driver(driver::version()?)?,
        };
        let cache = options.cache.clone().unwrap_or_else(Cache::from_env);
        let target = target(&nvrtc, arch, options.image);
        let load = |variant: Variant| {
            let image = compile(&nvrtc, &cache, &variant, target)?;
            let shared_bytes = schedules
                .iter()
                .map(|schedule| schedule.shared_bytes(&variant));
            let shared_bytes = shared_bytes.max().unwrap_or(0);
            let kernel = Kernel::load(context, &image, &variant.symbol(), shared_bytes)?;
            Ok((variant, kernel))
        };
        variants
            .into_iter()
            .map(load)
            .collect::<Result<_>>()
            .map(Kernels)
    }

    /// The kernel of a variant.
    pub fn get(&self, variant: &Variant) -> Option<&Kernel> {
        let (_, kernel) = self.0.iter().find(|(known, _)| known == variant)?;
        Some(kernel)
    }
}

/// What to compile to: machine code for the device; PTX if that is wanted, or of the newest architecture that NVRTC
/// knows and the device can run where NVRTC is older than the device.
pub(crate) fn target(nvrtc: &Nvrtc, arch: u32, image: ImageKind) -> Target {
    let archs = nvrtc.supported_archs();
    if archs.contains(&arch) {
        return match image {
            ImageKind::Cubin => Target::Cubin(arch.into()),
            ImageKind::Ptx => Target::Ptx(arch.into()),
        };
    }
    let older = archs.iter().rev().find(|&&known| known < arch);
    Target::Ptx(older.copied().map_or(Arch::from(arch), Arch::from))
}

/// The image of one variant as the driver takes it: PTX ends in a zero byte.
fn compile(nvrtc: &Nvrtc, cache: &Cache, variant: &Variant, target: Target) -> Result<Vec<u8>> {
    let file = format!("{}.cu", variant.stem());
    let source = Source::embedded(&file).ok_or_else(|| Error::Variant {
        name: variant.symbol(),
        reason: format!("has no source {file}"),
    })?;
    let mut options = nvrtc::Options::new(target).label(&variant.symbol());
    for (name, value) in variant.defines() {
        options = options.define(name, value);
    }
    match cache.compile(nvrtc, &source, &options)?.image {
        Image::Cubin(bytes) => Ok(bytes),
        Image::Ptx(text) => Ok(text.into_bytes().into_iter().chain([0]).collect()),
    }
}
