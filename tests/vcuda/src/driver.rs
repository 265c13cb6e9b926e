//! The one driver of the process: devices, contexts, and the way into it.

use crate::{
    capture::{Capture, Graph},
    codes::Code,
    memory::{DeviceMemory, HostMemory},
    models::{MODELS, Model},
    modules::{Function, Module},
    orders::Orders,
    report::{Counters, LaunchReport, Usage},
    schedule::Schedule,
    trace::Traces,
};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    env,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock, Mutex, PoisonError},
    thread::ThreadId,
};

/// Names a context, stream, event, module, function, graph... Never used twice, so that a handle kept
/// beyond its object's life is told from a live one.
pub type Handle = u64;

/// The driver version claimed at first: new enough for the PTX of any NVRTC 12 or 13.
pub const DEFAULT_DRIVER_VERSION: u32 = 13050;

/// The state behind every exported function.
pub struct Driver {
    pub initialised: bool,
    pub version: u32,
    pub devices: Vec<Device>,
    pub contexts: BTreeMap<Handle, Context>,
    pub memory: DeviceMemory,
    pub host: HostMemory,
    pub schedule: Schedule,
    pub captures: BTreeMap<Handle, Capture>,
    pub graphs: BTreeMap<Handle, (Handle, Arc<Graph>)>,
    pub executables: BTreeMap<Handle, (Handle, Arc<Graph>)>,
    pub modules: BTreeMap<Handle, Module>,
    pub functions: BTreeMap<Handle, Arc<Function>>,
    pub orders: Orders,
    pub counters: Counters,
    pub reports: Vec<LaunchReport>,
    pub traces: Traces,
    pub leaked: BTreeMap<String, u64>,
    /// Why the last refused or failed call did so.
    pub message: Option<String>,
    /// Race checks of the interpreter.
    pub check_races: bool,
    /// Threads of the interpreter; 0 for its own choice.
    pub threads: usize,
    last_handle: Handle,
}

/// One GPU.
pub struct Device {
    pub model: Model,
    /// What every call on it answers once it is lost.
    pub lost: Option<Code>,
    /// Most bytes that may be alive on it.
    pub limit: u64,
    primary: Option<Handle>,
}

/// One context.
pub struct Context {
    pub device: usize,
    /// Times the primary context is retained; `None` for a context of `cuCtxCreate`.
    retained: Option<u32>,
    /// The error that spoilt the context.
    pub sticky: Option<Code>,
    /// Its `NULL` stream.
    pub legacy: Handle,
    /// Its per-thread default streams.
    pub per_thread: Vec<(ThreadId, Handle)>,
    /// `cuCtxSetLimit` by number.
    pub limits: BTreeMap<u32, usize>,
}

static DRIVER: LazyLock<Mutex<Driver>> = LazyLock::new(|| Mutex::new(Driver::at_start()));

thread_local! {
    /// Contexts of this thread, the current one last.
    static CURRENT: RefCell<Vec<Handle>> = const { RefCell::new(Vec::new()) };
    /// Whether this thread is inside the driver: a host callback that calls back is refused, not deadlocked.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `body` with the driver locked; `None` from inside a host callback.
pub fn with_driver<T>(body: impl FnOnce(&mut Driver) -> T) -> Option<T> {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            INSIDE.set(false);
        }
    }
    if INSIDE.replace(true) {
        return None;
    }
    let _leave = Leave;
    let mut driver = DRIVER.lock().unwrap_or_else(PoisonError::into_inner);
    Some(body(&mut driver))
}

/// The way in of the driver function `name`: counts it, obeys an ordered failure, and turns what happens
/// into a `CUresult`. A panic must not cross into C: it becomes `CUDA_ERROR_UNKNOWN`.
pub fn enter(name: &'static str, body: impl FnOnce(&mut Driver) -> Result<(), Code>) -> u32 {
    let result = with_driver(|driver| {
        *driver.counters.calls.entry(name.to_owned()).or_default() += 1;
        if let Some(code) = driver.orders.take_call(name) {
            driver.message = Some(format!("{name} fails by order"));
            return Err(code);
        }
        catch_unwind(AssertUnwindSafe(|| body(driver))).unwrap_or_else(|panic| {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            driver.message = Some(format!("{name} panicked: {}", text.unwrap_or_default()));
            Err(Code::Unknown)
        })
    });
    match result {
        Some(Ok(())) => 0,
        Some(Err(code)) => code as u32,
        None => Code::NotPermitted as u32,
    }
}

impl Driver {
    /// The driver of a process that may have been told its devices by its parent.
    fn at_start() -> Driver {
        let mut driver = Driver::new();
        if let Some(models) = env::var("VCUDA_DEVICES")
            .ok()
            .and_then(|names| Model::parse(&names))
        {
            driver.set_devices(&models);
        }
        driver
    }

    fn new() -> Driver {
        let mut driver = Driver {
            initialised: false,
            version: DEFAULT_DRIVER_VERSION,
            devices: Vec::new(),
            contexts: BTreeMap::new(),
            memory: DeviceMemory::default(),
            host: HostMemory::default(),
            schedule: Schedule::default(),
            captures: BTreeMap::new(),
            graphs: BTreeMap::new(),
            executables: BTreeMap::new(),
            modules: BTreeMap::new(),
            functions: BTreeMap::new(),
            orders: Orders::default(),
            counters: Counters::default(),
            reports: Vec::new(),
            traces: Traces::default(),
            leaked: BTreeMap::new(),
            message: None,
            check_races: true,
            threads: 0,
            last_handle: 0x1000,
        };
        let default = Model::find("sm_90").unwrap_or(MODELS[0]);
        driver.set_devices(&[default]);
        driver
    }

    /// Back to the state of a fresh process, but with the same devices. Handles are not used again, so
    /// whatever a test still holds is refused rather than mistaken for something new.
    pub fn reset(&mut self) {
        let models: Vec<Model> = self.devices.iter().map(|device| device.model).collect();
        let last_handle = self.last_handle;
        *self = Driver::new();
        self.last_handle = last_handle;
        self.set_devices(&models);
    }

    /// Replaces the machine's devices; everything that lived on the old ones is gone.
    pub fn set_devices(&mut self, models: &[Model]) {
        for context in self.contexts.keys().copied().collect::<Vec<_>>() {
            self.destroy_context(context);
        }
        self.devices = models
            .iter()
            .map(|&model| Device {
                model,
                lost: None,
                limit: model.memory_bytes,
                primary: None,
            })
            .collect();
    }

    /// A handle that was never given out.
    pub fn new_handle(&mut self) -> Handle {
        self.last_handle += 0x10;
        self.last_handle
    }

    /// Records why the call fails and fails it.
    pub fn refuse<T>(&mut self, code: Code, why: impl Into<String>) -> Result<T, Code> {
        self.message = Some(why.into());
        Err(code)
    }

    /// The device of that ordinal, once `cuInit` was called.
    pub fn device(&mut self, ordinal: i32) -> Result<&mut Device, Code> {
        if !self.initialised {
            return Err(Code::NotInitialized);
        }
        usize::try_from(ordinal)
            .ok()
            .and_then(|ordinal| self.devices.get_mut(ordinal))
            .ok_or(Code::InvalidDevice)
    }

    /// Retains the device's primary context, made on the first call.
    pub fn retain_primary(&mut self, ordinal: i32) -> Result<Handle, Code> {
        let device = self.device(ordinal)?;
        if let Some(code) = device.lost {
            return Err(code);
        }
        if let Some(primary) = device.primary {
            if let Some(count) = self.retentions(primary) {
                *count += 1;
            }
            return Ok(primary);
        }
        let handle = self.create_context(ordinal as usize, Some(1));
        self.devices[ordinal as usize].primary = Some(handle);
        Ok(handle)
    }

    /// Makes a context, primary if `retained` is given.
    pub fn create_context(&mut self, device: usize, retained: Option<u32>) -> Handle {
        let handle = self.new_handle();
        let legacy = self.create_stream(handle, true, 0);
        self.contexts.insert(
            handle,
            Context {
                device,
                retained,
                sticky: None,
                legacy,
                per_thread: Vec::new(),
                limits: BTreeMap::new(),
            },
        );
        handle
    }

    /// Gives one retention back; the last one destroys the context.
    pub fn release_primary(&mut self, ordinal: i32) -> Result<(), Code> {
        let primary = self.device(ordinal)?.primary.ok_or(Code::InvalidContext)?;
        if let Some(count) = self.retentions(primary) {
            *count -= 1;
            if *count > 0 {
                return Ok(());
            }
        }
        self.destroy_context(primary);
        Ok(())
    }

    fn retentions(&mut self, context: Handle) -> Option<&mut u32> {
        self.contexts.get_mut(&context)?.retained.as_mut()
    }

    /// The primary context, if it exists.
    pub fn primary(&mut self, ordinal: i32) -> Result<Option<Handle>, Code> {
        Ok(self.device(ordinal)?.primary)
    }

    /// Destroys the context with all that lives in it; what should have been freed counts as leaked.
    pub fn destroy_context(&mut self, handle: Handle) {
        let mut leaks: Vec<(&str, usize)> = Vec::new();
        let Some(context) = self.contexts.remove(&handle) else {
            return;
        };
        let own: Vec<Handle> = std::iter::once(context.legacy)
            .chain(context.per_thread.iter().map(|&(_, stream)| stream))
            .collect();
        leaks.push(("allocations", self.memory.forget_context(handle)));
        leaks.push(("host_ranges", self.host.forget_context(handle)));
        leaks.push(("streams", self.schedule.forget_context(handle, &own)));
        leaks.push(("events", self.schedule.forget_events(handle)));
        let before = self.modules.len();
        self.modules.retain(|_, module| module.context != handle);
        leaks.push(("modules", before - self.modules.len()));
        self.functions
            .retain(|_, function| function.context != handle);
        self.captures.retain(|_, capture| capture.context != handle);
        let before = self.graphs.len() + self.executables.len();
        self.graphs.retain(|_, (context, _)| *context != handle);
        self.executables
            .retain(|_, (context, _)| *context != handle);
        leaks.push((
            "graphs",
            before - self.graphs.len() - self.executables.len(),
        ));
        for (kind, count) in leaks.into_iter().filter(|&(_, count)| count > 0) {
            *self.leaked.entry(kind.to_owned()).or_default() += count as u64;
        }
        for device in &mut self.devices {
            if device.primary == Some(handle) {
                device.primary = None;
            }
        }
    }

    /// The calling thread's context, fit for work.
    pub fn current(&mut self) -> Result<Handle, Code> {
        if !self.initialised {
            return Err(Code::NotInitialized);
        }
        let handle = current_handle().ok_or(Code::InvalidContext)?;
        self.usable(handle)?;
        Ok(handle)
    }

    /// Fails with the context's sticky error, or its lost device's.
    pub fn usable(&self, context: Handle) -> Result<(), Code> {
        let context = self.contexts.get(&context).ok_or(Code::InvalidContext)?;
        match context.sticky.or(self.devices[context.device].lost) {
            Some(code) => Err(code),
            None => Ok(()),
        }
    }

    /// The model under a context.
    pub fn model(&self, context: Handle) -> Result<Model, Code> {
        let context = self.contexts.get(&context).ok_or(Code::InvalidContext)?;
        Ok(self.devices[context.device].model)
    }

    /// What is alive.
    pub fn usage(&self) -> Usage {
        let defaults: usize = self
            .contexts
            .values()
            .map(|context| 1 + context.per_thread.len())
            .sum();
        let objects = [
            ("contexts", self.contexts.len()),
            ("streams", self.schedule.open_streams() - defaults),
            ("events", self.schedule.events.len()),
            ("modules", self.modules.len()),
            ("graphs", self.graphs.len()),
            ("executable_graphs", self.executables.len()),
        ];
        Usage {
            allocations: self.memory.count() as u64,
            bytes: self.memory.total_bytes(),
            peak_bytes: self.memory.peak_bytes(),
            host_ranges: self.host.count() as u64,
            objects: objects
                .into_iter()
                .map(|(kind, count)| (kind.to_owned(), count as u64))
                .collect(),
            leaked: self.leaked.clone(),
        }
    }
}

/// The calling thread's context, live or not.
pub fn current_handle() -> Option<Handle> {
    CURRENT.with_borrow(|stack| stack.last().copied())
}

/// Replaces the calling thread's context; `None` leaves it without.
pub fn set_current(context: Option<Handle>) {
    CURRENT.with_borrow_mut(|stack| {
        stack.pop();
        stack.extend(context);
    });
}

/// Pushes a context of the calling thread.
pub fn push_current(context: Handle) {
    CURRENT.with_borrow_mut(|stack| stack.push(context));
}

/// Pops the calling thread's context.
pub fn pop_current() -> Option<Handle> {
    CURRENT.with_borrow_mut(Vec::pop)
}
