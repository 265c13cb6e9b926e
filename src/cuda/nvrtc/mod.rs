//! NVRTC, the run-time compiler for CUDA C++: finding it, compiling with it, and keeping what it made.
//!
//! The library is opened at run time, so building this crate needs no CUDA toolkit; compiling needs neither a driver
//! nor a GPU. [`Nvrtc::load`] looks, in this order, at
//!
//! 1. `ROLLOUT_NVRTC`, a library file or a directory that holds one; when it is set, nothing else is tried;
//! 2. the loader path, for `libnvrtc.so.13`, `libnvrtc.so.12` and `libnvrtc.so`;
//! 3. `CUDA_PATH`, `CUDA_HOME` and `/usr/local/cuda`;
//! 4. the active Python environment (`VIRTUAL_ENV`, `CONDA_PREFIX`, the `python3` on `PATH`, the user's own packages),
//!    where `pip install nvidia-cuda-nvrtc` and PyTorch put it.
//!
//! Relative paths in variables other than the first are not followed. A library found is tried out on an empty kernel, and
//! passed over if it cannot compile that.
//!
//! Several versions can be open side by side. [`Cache`] keeps compiled kernels on disk.
//!
//! ```no_run
//! use attention_rollout::cuda::nvrtc::{Cache, Nvrtc, Options, Source, Target};
//!
//! # fn main() -> Result<(), attention_rollout::cuda::nvrtc::NvrtcError> {
//! let nvrtc = Nvrtc::load()?;
//! let source = Source {
//!     name: "fill.cu",
//!     text: r#"extern "C" __global__ void fill(float* out) { out[threadIdx.x] = VALUE; }"#,
//!     headers: &[],
//! };
//! let options = Options::new(Target::Cubin(90.into())).define("VALUE", "1.0f");
//! let compiled = Cache::from_env().compile(&nvrtc, &source, &options)?;
//! assert_eq!(compiled.resources[0].name, "fill");
//! # Ok(())
//! # }
//! ```

mod api;
mod cache;
mod compile;
mod error;
mod log;
mod search;
mod source;
mod target;
mod version;

use std::path::Path;
use std::sync::Arc;

use api::Api;

pub use cache::Cache;
pub use compile::{Compiled, Image, Options};
pub use error::{Looked, NvrtcError};
pub use log::KernelResources;
pub use source::{Source, embedded_digest, embedded_sources};
pub use target::{Arch, ArchFeature, ParseArchError, Target};
pub use version::Version;

/// An open NVRTC library. Cheap to clone; may be used from several threads at once.
///
/// The library stays in memory until the process ends: NVRTC leaves state behind that does not survive being unloaded.
#[derive(Clone, Debug)]
pub struct Nvrtc {
    api: Arc<Api>,
    version: Version,
    archs: Vec<u32>,
}

impl Nvrtc {
    /// Finds and opens NVRTC; the [module](self) lists where it looks.
    ///
    /// # Errors
    ///
    /// [`NvrtcError::NotFound`] with every place looked at. When `ROLLOUT_NVRTC` is set, whatever is wrong with the
    /// library it names.
    pub fn load() -> Result<Self, NvrtcError> {
        search::find(&|name| std::env::var_os(name), &Self::try_out)
    }

    /// Finds and opens an NVRTC whose cubins a driver can load: like [`load`](Self::load), but passes over a library
    /// whose major version is above the driver's. `driver` is what `cuDriverGetVersion` reports.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load); [`NvrtcError::NewerThanDriver`] when `ROLLOUT_NVRTC` names such a library.
    pub fn load_for_driver(driver: Version) -> Result<Self, NvrtcError> {
        search::find(&|name| std::env::var_os(name), &|nvrtc| {
            if nvrtc.version.major > driver.major {
                return Err(NvrtcError::NewerThanDriver {
                    path: nvrtc.path().to_owned(),
                    version: nvrtc.version,
                    driver,
                });
            }
            nvrtc.try_out()
        })
    }

    /// Compiles an empty kernel: opening a library does not tell whether it can. The cache remembers that it could, so
    /// that only the first process pays for it.
    fn try_out(&self) -> Result<(), NvrtcError> {
        let Some(&arch) = self.archs.last() else {
            return Ok(());
        };
        let source = Source {
            // Tells libraries of one version in different places apart.
            name: &format!("empty.cu for {}", self.path().display()),
            text: "extern \"C\" __global__ void empty() {}",
            headers: &[],
        };
        let options = Options::new(Target::Ptx(arch.into()));
        Cache::from_env().compile(self, &source, &options).map(drop)
    }

    /// Opens a library file, or the library in a directory.
    ///
    /// # Errors
    ///
    /// [`NvrtcError::Open`] when there is no library that can be opened, [`NvrtcError::MissingSymbol`] when it is not
    /// NVRTC, [`NvrtcError::TooOld`] when it is older than [`Version::OLDEST_NVRTC`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NvrtcError> {
        search::open(path.as_ref())
    }

    fn from_api(api: Api) -> Result<Self, NvrtcError> {
        let version = api.version()?;
        if version < Version::OLDEST_NVRTC {
            return Err(NvrtcError::TooOld {
                path: api.path().to_owned(),
                version,
            });
        }
        let archs = api.supported_archs()?;
        Ok(Self {
            api: Arc::new(api),
            version,
            archs,
        })
    }

    /// The library's version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The library's file; its bare name when the loader path found it and the system does not say where.
    pub fn path(&self) -> &Path {
        self.api.path()
    }

    /// The GPU architectures it compiles for, ascending: 90 for compute capability 9.0.
    pub fn supported_archs(&self) -> &[u32] {
        &self.archs
    }
}
