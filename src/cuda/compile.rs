//! From variants to loaded kernels.

use std::sync::Arc;

use cudarc::driver::CudaContext;

use super::driver;
use super::entry::Entry;
use super::handles::Kernel;
use super::nvrtc::{self, Arch, Cache, Image, Nvrtc, Source, Target};
use super::options::{ImageKind, Options};
use super::schedule::Schedule;
use super::variant::Variant;
use crate::error::{Error, Result};

/// A kernel to load: how it is entered, and the most dynamic shared memory that it is launched with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub entry: Entry,
    pub variant: Variant,
    pub shared_bytes: usize,
}

impl Wanted {
    /// What `schedule` launches, entered as `entry`.
    pub fn of(entry: Entry, schedule: &Schedule) -> impl Iterator<Item = Wanted> {
        schedule.variants().iter().map(move |variant| Wanted {
            entry,
            variant: *variant,
            shared_bytes: schedule.shared_bytes(variant),
        })
    }
}

/// Loaded kernels by entry and variant.
pub(super) struct Kernels(Vec<(Entry, Variant, Kernel)>);

impl Kernels {
    /// Compiles and loads the kernels that are wanted, each once.
    ///
    /// # Errors
    /// [`Error::Nvrtc`] where the compiler is missing or rejects a kernel, [`Error::Driver`] where the driver does.
    pub fn load(
        context: &Arc<CudaContext>,
        arch: u32,
        wanted: impl IntoIterator<Item = Wanted>,
        options: &Options,
    ) -> Result<Self> {
        let mut kernels: Vec<Wanted> = Vec::new();
        for wanted in wanted {
            let same = |known: &&mut Wanted| {
                (known.entry, known.variant) == (wanted.entry, wanted.variant)
            };
            match kernels.iter_mut().find(same) {
                Some(known) => known.shared_bytes = known.shared_bytes.max(wanted.shared_bytes),
                None => kernels.push(wanted),
            }
        }
        if kernels.is_empty() {
            return Ok(Kernels(Vec::new()));
        }
        let nvrtc = match &options.nvrtc {
            Some(nvrtc) => nvrtc.clone(),
            None => Nvrtc::load_for_driver(driver::version()?)?,
        };
        let cache = options.cache.clone().unwrap_or_else(Cache::from_env);
        let target = target(&nvrtc, arch, options.image);
        let load = |wanted: Wanted| {
            let Wanted {
                entry,
                variant,
                shared_bytes,
            } = wanted;
            let image = compile(&nvrtc, &cache, entry, &variant, target)?;
            let kernel = Kernel::load(context, &image, &entry.symbol(&variant), shared_bytes)?;
            Ok((entry, variant, kernel))
        };
        kernels
            .into_iter()
            .map(load)
            .collect::<Result<_>>()
            .map(Kernels)
    }

    /// The kernel of a variant.
    pub fn get(&self, entry: Entry, variant: &Variant) -> Option<&Kernel> {
        let mut kernels = self.0.iter();
        let (.., kernel) = kernels.find(|(e, v, _)| (*e, v) == (entry, variant))?;
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
fn compile(
    nvrtc: &Nvrtc,
    cache: &Cache,
    entry: Entry,
    variant: &Variant,
    target: Target,
) -> Result<Vec<u8>> {
    let file = format!("{}.cu", variant.stem());
    let source = Source::embedded(&file).ok_or_else(|| Error::Variant {
        name: entry.symbol(variant),
        reason: format!("has no source {file}"),
    })?;
    let mut options = nvrtc::Options::new(target).label(&entry.symbol(variant));
    for (name, value) in entry.defines(variant) {
        options = options.define(name, value);
    }
    match cache.compile(nvrtc, &source, &options)?.image {
        Image::Cubin(bytes) => Ok(bytes),
        Image::Ptx(text) => Ok(text.into_bytes().into_iter().chain([0]).collect()),
    }
}
