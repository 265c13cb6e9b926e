//! What can go wrong with NVRTC.

use std::fmt;
use std::path::PathBuf;

use super::target::Target;
use super::version::Version;

/// An error of finding NVRTC or compiling with it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NvrtcError {
    /// No usable library was found.
    #[error(
        "no usable NVRTC (the CUDA run-time compiler, version {} or later) was found. Looked at:\n{}\
         Install it with `pip install nvidia-cuda-nvrtc-cu12` (CUDA 12 drivers) or `pip install nvidia-cuda-nvrtc` \
         (CUDA 13 drivers) in the active Python environment, or install the CUDA toolkit, or set ROLLOUT_NVRTC to \
         the library file or to the directory that holds it",
        Version::OLDEST_NVRTC,
        looked.iter().map(|looked| format!("  {looked}\n")).collect::<String>()
    )]
    NotFound {
        /// Every place looked at, in order.
        looked: Vec<Looked>,
    },

    /// A library could not be opened.
    #[error("cannot open NVRTC at {}: {reason}", path.display())]
    Open {
        /// The file or directory asked for.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },

    /// A library lacks a function that every accepted NVRTC has.
    #[error("{} is not a usable NVRTC: it has no function {symbol}", path.display())]
    MissingSymbol {
        /// The library.
        path: PathBuf,
        /// The function it lacks.
        symbol: &'static str,
    },

    /// A library is older than [`Version::OLDEST_NVRTC`].
    #[error("{} is NVRTC {version}; {} or later is needed", path.display(), Version::OLDEST_NVRTC)]
    TooOld {
        /// The library.
        path: PathBuf,
        /// Its version.
        version: Version,
    },

    /// A library's major version is above the driver's, which would refuse what it compiles.
    #[error(
        "{} is NVRTC {version}, but the driver supports CUDA {driver}: update the driver, or use NVRTC {}",
        path.display(),
        driver.major
    )]
    NewerThanDriver {
        /// The library.
        path: PathBuf,
        /// Its version.
        version: Version,
        /// The newest CUDA version the driver supports.
        driver: Version,
    },

    /// The library does not know the architecture.
    #[error(
        "NVRTC {version} cannot compile for {target}; it supports {}",
        supported.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
    )]
    UnsupportedArch {
        /// The target asked for.
        target: Target,
        /// The library's version.
        version: Version,
        /// The architectures it supports.
        supported: Vec<u32>,
    },

    /// The library cannot find its second half, `libnvrtc-builtins.so`, which belongs beside it.
    #[error(
        "NVRTC at {} cannot load its builtins library, which belongs in the same directory: {}",
        path.display(),
        log.trim_end()
    )]
    Builtins {
        /// The library.
        path: PathBuf,
        /// The compiler's log.
        log: String,
    },

    /// The source was rejected.
    #[error("compiling {label} with NVRTC {version} ({}) failed:\n{log}", arguments.join(" "))]
    Compile {
        /// What was compiled: [`Options::label`](super::Options::label), or the source's name.
        label: String,
        /// The library's version.
        version: Version,
        /// The compiler's arguments.
        arguments: Vec<String>,
        /// The compiler's log.
        log: String,
    },

    /// A function of the library failed for another reason.
    #[error("{function} failed with code {code}: {message}")]
    Call {
        /// The function.
        function: &'static str,
        /// Its result code, an `nvrtcResult`.
        code: i32,
        /// What the library says about the code.
        message: String,
    },

    /// A text for the compiler has a zero byte in it.
    #[error("{what} contains a zero byte")]
    ZeroByte {
        /// The text.
        what: String,
    },
}

/// A place where NVRTC was looked for, and what was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looked {
    /// The place.
    pub place: String,
    /// Why it gave no library.
    pub outcome: String,
}

impl fmt::Display for Looked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.outcome)
    }
}
