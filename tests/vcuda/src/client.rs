//! The test's side: loads the library into the process and directs it.
//!
//! ```no_run
//! # fn main() -> Result<(), vcuda::client::InstallError> {
//! let vcuda = vcuda::client::install("sm_90")?;
//! vcuda.fail_allocation(2);
//! // ... host code under test, through any CUDA binding ...
//! assert_eq!(vcuda.counters().host_waits, 0);
//! # Ok(())
//! # }
//! ```

use crate::{
    Code,
    control::INTERFACE,
    report::{Counters, LaunchReport, Usage},
};
use libloading::{Library, Symbol};
use ptxemu::trace::LaunchTrace;
use serde::de::DeserializeOwned;
use std::{
    env,
    ffi::{CStr, CString, c_char},
    fmt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    thread::{self, ThreadId},
};

/// The file cargo builds.
const FILE: &str = "libvcuda.so";
const BUILD_COMMAND: &str = "cargo build -p vcuda";

/// Why the library could not be installed.
#[derive(Clone, Debug)]
pub enum InstallError {
    /// No file where cargo puts it.
    Missing {
        /// Where it was looked for.
        looked: Vec<PathBuf>,
    },
    /// The file could not be loaded.
    Load {
        /// The file.
        path: PathBuf,
        /// The loader's words.
        reason: String,
    },
    /// The file was built from other sources.
    Stale {
        /// The file.
        path: PathBuf,
    },
    /// A driver that is not this library was loaded before.
    RealDriver,
    /// This thread holds a `Vcuda` already, and would wait for itself.
    Nested,
    /// There is no such device model.
    UnknownModel {
        /// What was asked for.
        models: String,
    },
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InstallError::Missing { looked } => {
                write!(f, "no {FILE} in {looked:?}: run `{BUILD_COMMAND}`")
            }
            InstallError::Load { path, reason } => {
                write!(f, "{} does not load: {reason}", path.display())
            }
            InstallError::Stale { path } => {
                write!(
                    f,
                    "{} is of another version: run `{BUILD_COMMAND}`",
                    path.display()
                )
            }
            InstallError::RealDriver => f.write_str("a CUDA driver was loaded before the stand-in"),
            InstallError::Nested => f.write_str("this thread has the stand-in installed already"),
            InstallError::UnknownModel { models } => write!(f, "no device model {models:?}"),
        }
    }
}

impl std::error::Error for InstallError {}

/// When queued work is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ordering {
    /// At once, in submission order; a launch reports its own fault.
    Eager,
    /// As late as the API allows, and only what a waiting host asked for.
    Lazy,
    /// Whenever the host waits, pieces of all streams in an order drawn from the seed.
    Shuffled(u64),
}

/// The installed library, this test's alone while it lives.
///
/// The driver is one per process, so tests that use it take turns: [`install`] waits for the one before to
/// drop its `Vcuda`. Drop it last, after contexts, streams and buffers, which would otherwise call into the
/// next test's machine: bind it first among a function's variables, declare it last among a struct's fields.
pub struct Vcuda {
    library: &'static Library,
    _turn: MutexGuard<'static, ()>,
}

/// Loads the library, on the first call, and makes the process's machine one with the given device models
/// (`"sm_90"`, `"sm_90,sm_80"`, `""` for none), freshly reset.
///
/// From then on this process's CUDA driver is the stand-in; a process that never calls this is not
/// affected. Must come before anything loads a real driver.
pub fn install(models: &str) -> Result<Vcuda, InstallError> {
    static TURN: Mutex<()> = Mutex::new(());
    static LIBRARY: OnceLock<Result<Library, InstallError>> = OnceLock::new();
    if *holder() == Some(thread::current().id()) {
        return Err(InstallError::Nested);
    }
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let library = LIBRARY.get_or_init(load).as_ref().map_err(Clone::clone)?;
    let vcuda = Vcuda {
        library,
        _turn: turn,
    };
    *holder() = Some(thread::current().id());
    vcuda.reset();
    if !vcuda.try_set_devices(models) {
        return Err(InstallError::UnknownModel {
            models: models.to_owned(),
        });
    }
    Ok(vcuda)
}

/// The thread whose turn it is.
fn holder() -> MutexGuard<'static, Option<ThreadId>> {
    static HOLDER: Mutex<Option<ThreadId>> = Mutex::new(None);
    HOLDER.lock().unwrap_or_else(PoisonError::into_inner)
}

fn load() -> Result<Library, InstallError> {
    let path = library_path()?;
    // SAFETY: the library's initialisers do nothing.
    let library = unsafe { Library::new(&path) }.map_err(|error| InstallError::Load {
        path: path.clone(),
        reason: error.to_string(),
    })?;
    // SAFETY: the signature is the exported function's.
    let interface = unsafe { library.get::<extern "C" fn() -> u32>(c"vcuda_interface") };
    if interface.is_ok_and(|interface| interface() != INTERFACE) {
        return Err(InstallError::Stale { path });
    }
    // What a binding gets when it asks for the driver has to be this library.
    // SAFETY: either it is this library, or a driver, whose initialisers are to be trusted.
    let driver = unsafe { Library::new("libcuda.so") };
    // SAFETY: only looked up, not called.
    let ours = driver
        .is_ok_and(|driver| unsafe { driver.get::<extern "C" fn()>(c"vcuda_interface").is_ok() });
    if !ours {
        return Err(InstallError::RealDriver);
    }
    Ok(library)
}

/// The library's file. A child process given it as `LD_PRELOAD` has the stand-in as its driver from the
/// start, with the devices that `VCUDA_DEVICES` names (as [`install`] does), or one `sm_90`.
pub fn library_path() -> Result<PathBuf, InstallError> {
    let looked = candidates();
    let found = looked.iter().find(|path| path.is_file()).cloned();
    found.ok_or(InstallError::Missing { looked })
}

/// Where cargo puts the library, seen from a test program in `target/<profile>/deps`: beside it, or, built
/// on its own, one up.
fn candidates() -> Vec<PathBuf> {
    let program = env::current_exe().unwrap_or_default();
    let directories = program.ancestors().skip(1).take(2);
    directories
        .flat_map(|directory: &Path| [directory.join("deps").join(FILE), directory.join(FILE)])
        .collect()
}

impl Vcuda {
    /// Back to the state of a fresh process with the same devices.
    pub fn reset(&self) {
        self.command(c"vcuda_reset", |reset: extern "C" fn() -> u32| reset());
    }

    /// Makes the machine one with other devices; everything on the old ones is gone.
    ///
    /// # Panics
    /// If there is no such model.
    pub fn set_devices(&self, models: &str) {
        assert!(self.try_set_devices(models), "no device model {models:?}");
    }

    fn try_set_devices(&self, models: &str) -> bool {
        let models = CString::new(models).unwrap_or_default();
        type SetDevices = unsafe extern "C" fn(*const c_char) -> u32;
        self.call(c"vcuda_set_devices", |set: SetDevices| {
            // SAFETY: a C string that lives for the call.
            unsafe { set(models.as_ptr()) == 0 }
        })
    }

    /// Chooses what `cuDriverGetVersion` answers (12080 is 12.8).
    pub fn set_driver_version(&self, version: u32) {
        self.command(
            c"vcuda_set_driver_version",
            |set: extern "C" fn(u32) -> u32| set(version),
        );
    }

    /// Limits the bytes alive on a device.
    pub fn set_memory_limit(&self, device: u32, bytes: u64) {
        self.command(
            c"vcuda_set_memory_limit",
            |set: extern "C" fn(u32, u64) -> u32| set(device, bytes),
        );
    }

    /// Chooses when queued work is executed.
    pub fn set_ordering(&self, ordering: Ordering) {
        let (mode, seed) = match ordering {
            Ordering::Eager => (0, 0),
            Ordering::Lazy => (1, 0),
            Ordering::Shuffled(seed) => (2, seed),
        };
        self.command(
            c"vcuda_set_ordering",
            |set: extern "C" fn(u32, u64) -> u32| set(mode, seed),
        );
    }

    /// Turns the interpreter's race checks on or off.
    pub fn set_race_checks(&self, on: bool) {
        self.command(
            c"vcuda_set_race_checks",
            |set: extern "C" fn(u32) -> u32| set(on.into()),
        );
    }

    /// Limits the interpreter's threads; 0 for its own choice.
    pub fn set_threads(&self, threads: u32) {
        self.command(c"vcuda_set_threads", |set: extern "C" fn(u32) -> u32| {
            set(threads)
        });
    }

    /// From now on launches run only a sample of at most `blocks` blocks, of those that one multiprocessor would get, and
    /// are traced; 0: they run as ever. Memory allocated meanwhile holds plausible numbers, since what the other blocks
    /// would write is missing: results mean nothing, and nothing is checked.
    pub fn trace(&self, blocks: u32) {
        self.command(c"vcuda_trace", |trace: extern "C" fn(u32) -> u32| {
            trace(blocks)
        });
    }

    /// The traces since the last reset, in order of execution.
    pub fn traces(&self) -> Vec<LaunchTrace> {
        let bytes = self.bytes(c"vcuda_traces");
        let mut rest = bytes.as_slice();
        let mut traces = Vec::new();
        while !rest.is_empty() {
            let trace = LaunchTrace::from_bytes(&mut rest);
            traces.push(trace.unwrap_or_else(|error| panic!("the library traced {error}")));
        }
        traces
    }

    /// The `k`-th device allocation from now (1: the next) fails with `OutOfMemory`.
    pub fn fail_allocation(&self, k: u64) {
        self.command(
            c"vcuda_fail_allocation",
            |fail: extern "C" fn(u64) -> u32| fail(k),
        );
    }

    /// The `k`-th launch from now fails; see `vcuda_fail_launch` for when.
    pub fn fail_launch(&self, k: u64, code: Code) {
        self.command(
            c"vcuda_fail_launch",
            |fail: extern "C" fn(u64, u32) -> u32| fail(k, code as u32),
        );
    }

    /// The `k`-th call from now of the named driver function fails.
    pub fn fail_call(&self, name: &str, k: u64, code: Code) {
        let name = CString::new(name).unwrap_or_default();
        type FailCall = unsafe extern "C" fn(*const c_char, u64, u32) -> u32;
        self.command(c"vcuda_fail_call", |fail: FailCall| {
            // SAFETY: a C string that lives for the call.
            unsafe { fail(name.as_ptr(), k, code as u32) }
        });
    }

    /// Every later call that needs the device fails, until a reset.
    pub fn lose_device(&self, device: u32, code: Code) {
        self.command(
            c"vcuda_lose_device",
            |lose: extern "C" fn(u32, u32) -> u32| lose(device, code as u32),
        );
    }

    /// One record per kernel executed since the last reset, in order of execution.
    pub fn launches(&self) -> Vec<LaunchReport> {
        self.record(c"vcuda_launches")
    }

    /// The counters since the last reset.
    pub fn counters(&self) -> Counters {
        self.record(c"vcuda_counters")
    }

    /// What is alive and what leaked.
    pub fn usage(&self) -> Usage {
        self.record(c"vcuda_usage")
    }

    /// Why the last call that failed with a reason did so: the interpreter's fault, the rule a launch
    /// broke. Empty if none did since the last reset.
    pub fn message(&self) -> String {
        self.text(c"vcuda_message")
    }

    fn record<T: DeserializeOwned>(&self, name: &CStr) -> T {
        let text = self.text(name);
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{name:?} answered {text}: {error}"))
    }

    fn text(&self, name: &CStr) -> String {
        String::from_utf8_lossy(&self.bytes(name)).into_owned()
    }

    fn bytes(&self, name: &CStr) -> Vec<u8> {
        type Read = unsafe extern "C" fn(*mut u8, usize) -> usize;
        self.call(name, |read: Read| {
            let mut buffer = Vec::new();
            loop {
                // SAFETY: there is as much room as said.
                let length = unsafe { read(buffer.as_mut_ptr(), buffer.len()) };
                if length <= buffer.len() {
                    buffer.truncate(length);
                    return buffer;
                }
                // The text may grow meanwhile: other threads of the test go on.
                buffer.resize(length * 2, 0);
            }
        })
    }

    fn command<F: Copy>(&self, name: &CStr, call: impl FnOnce(F) -> u32) {
        let code = self.call(name, call);
        assert_eq!(code, 0, "{name:?} does not understand its arguments");
    }

    fn call<F: Copy, T>(&self, name: &CStr, call: impl FnOnce(F) -> T) -> T {
        // SAFETY: every caller gives the signature that `control` exports under the name; the interface
        // version was compared.
        let symbol: Result<Symbol<F>, _> = unsafe { self.library.get(name) };
        match symbol {
            Ok(symbol) => call(*symbol),
            Err(error) => panic!("{FILE} lacks {name:?}: {error}"),
        }
    }
}

impl Drop for Vcuda {
    fn drop(&mut self) {
        self.reset();
        *holder() = None;
    }
}
