//! Driver objects that a plan owns. Each is given back when it is dropped, so that a plan that fails half way through
//! its creation leaves nothing behind.
//!
//! cudarc's own types are not used here: its slices record two events each and its streams switch the whole context to
//! another mode, which would change what the caller's launches cost; its modules need its NVRTC feature.

use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, result, sys};

use super::library::driver_error;
use crate::error::{Error, Result};

/// Binds the context to this thread, which every driver call below needs.
pub(crate) fn bind(context: &Arc<CudaContext>) -> Result<()> {
    context
        .bind_to_thread()
        .map_err(driver_error("cuCtxSetCurrent"))
}

/// Drops the result of giving something back: nobody can do anything about it. cudarc would keep it and hand it to the
/// next user of the context, as the failure of a call that had nothing to do with it; what is wrong with the device or
/// the context, the next call finds by itself.
fn forget(_result: std::result::Result<(), result::DriverError>) {}

/// Turns a failure of `call` to allocate `required` bytes for `what` on the bound context into an error.
pub(crate) fn allocation_error(
    call: &'static str,
    what: &'static str,
    required: usize,
) -> impl Fn(result::DriverError) -> Error {
    move |error| match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfDeviceMemory {
            what,
            required,
            available: result::mem_get_info().map_or(0, |(free, _)| free),
        },
        _ => driver_error(call)(error),
    }
}

/// Device memory, aligned to at least 256 bytes.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    context: Arc<CudaContext>,
    address: u64,
    bytes: usize,
}

impl DeviceMemory {
    /// Allocates `bytes` for `what`; nothing, at address 0, where `bytes` is 0.
    pub fn new(context: &Arc<CudaContext>, what: &'static str, bytes: usize) -> Result<Self> {
        bind(context)?;
        let address = if bytes == 0 {
            0
        } else {
            // SAFETY: a context is bound.
            unsafe { result::malloc_sync(bytes) }.map_err(allocation_error(
                "cuMemAlloc_v2",
                what,
                bytes,
            ))?
        };
        Ok(DeviceMemory {
            context: context.clone(),
            address,
            bytes,
        })
    }

    /// Allocates room for `values` and copies them there, returning when they have arrived.
    pub fn upload<T: bytemuck::Pod>(
        context: &Arc<CudaContext>,
        what: &'static str,
        values: &[T],
    ) -> Result<Self> {
        let memory = DeviceMemory::new(context, what, size_of_val(values))?;
        if !values.is_empty() {
            // Even the driver's synchronous copy may return before the last bytes have arrived, and orders nothing with
            // streams that do not wait for the default one.
            let stream = Stream::new(context)?;
            // SAFETY: the allocation is as long as the values, which live until the copy has been waited for.
            unsafe { result::memcpy_htod_async(memory.address, values, stream.raw()) }
                .map_err(driver_error("cuMemcpyHtoDAsync_v2"))?;
            stream.synchronize()?;
        }
        Ok(memory)
    }

    /// Sets `bytes` bytes from `offset` on to `value`, in the order of `stream`.
    pub fn fill(&self, offset: usize, bytes: usize, value: u8, stream: &Stream) -> Result<()> {
        assert!(offset + bytes <= self.bytes, "fills beyond the allocation");
        if bytes == 0 {
            return Ok(());
        }
        bind(&self.context)?;
        // SAFETY: the bytes lie in the allocation, and the stream is alive.
        unsafe { result::memset_d8_async(self.address + offset as u64, value, bytes, stream.raw()) }
            .map_err(driver_error("cuMemsetD8Async"))
    }

    /// First address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.address != 0 {
            let context = &self.context;
            context.record_err(context.bind_to_thread());
            // SAFETY: this value owns the allocation. The driver waits for work that uses it before it frees it.
            forget(unsafe { result::free_sync(self.address) });
        }
    }
}

/// Page-locked host memory, which copies to and from a device run beside the host's own work.
#[derive(Debug)]
pub(crate) struct PinnedMemory {
    context: Arc<CudaContext>,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the memory is plain bytes that this value alone owns.
unsafe impl Send for PinnedMemory {}
// SAFETY: the bytes change only through an exclusive borrow.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    /// Allocates `bytes`, zeroed.
    pub fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self> {
        bind(context)?;
        let start = if bytes == 0 {
            std::ptr::NonNull::dangling().as_ptr()
        } else {
            // SAFETY: a context is bound.
            let start =
                unsafe { result::malloc_host(bytes, 0) }.map_err(|error| match error.0 {
                    sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::HostMemory {
                        what: "pinned staging buffers",
                        required: bytes,
                    },
                    _ => driver_error("cuMemHostAlloc")(error),
                })?;
            // SAFETY: the allocation is `bytes` long.
            unsafe { std::ptr::write_bytes(start.cast::<u8>(), 0, bytes) };
            start.cast()
        };
        Ok(PinnedMemory {
            context: context.clone(),
            start,
            bytes,
        })
    }

    /// The bytes. No copy from or to them may be under way.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the allocation is `bytes` long and initialised, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }

    /// The bytes. No copy to them may be under way.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the allocation is `bytes` long and initialised.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if self.bytes != 0 {
            let context = &self.context;
            context.record_err(context.bind_to_thread());
            // SAFETY: this value owns the allocation; whoever copies from or to it waits before letting it go.
            forget(unsafe { result::free_host(self.start.cast::<c_void>()) });
        }
    }
}

/// A stream beside the caller's.
#[derive(Debug)]
pub(crate) struct Stream {
    context: Arc<CudaContext>,
    raw: sys::CUstream,
}

// SAFETY: stream handles may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// Creates a stream that does not synchronise with the default stream.
    pub fn new(context: &Arc<CudaContext>) -> Result<Self> {
        bind(context)?;
        let raw = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(driver_error("cuStreamCreate"))?;
        Ok(Stream {
            context: context.clone(),
            raw,
        })
    }

    /// The handle.
    pub fn raw(&self) -> sys::CUstream {
        self.raw
    }

    /// Waits until everything submitted so far is done.
    pub fn synchronize(&self) -> Result<()> {
        bind(&self.context)?;
        // SAFETY: the stream is alive.
        unsafe { result::stream::synchronize(self.raw) }
            .map_err(driver_error("cuStreamSynchronize"))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.context.record_err(self.context.bind_to_thread());
        // SAFETY: this value owns the stream; the driver lets its work finish.
        forget(unsafe { result::stream::destroy(self.raw) });
    }
}

/// A point in a stream that another one waits for.
#[derive(Debug)]
pub(crate) struct Event {
    context: Arc<CudaContext>,
    raw: sys::CUevent,
}

// SAFETY: event handles may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// Creates an event without a time stamp.
    pub fn new(context: &Arc<CudaContext>) -> Result<Self> {
        Event::with(context, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// Creates an event that notes the time.
    pub fn timed(context: &Arc<CudaContext>) -> Result<Self> {
        Event::with(context, sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn with(context: &Arc<CudaContext>, flags: sys::CUevent_flags) -> Result<Self> {
        bind(context)?;
        let raw = result::event::create(flags).map_err(driver_error("cuEventCreate"))?;
        Ok(Event {
            context: context.clone(),
            raw,
        })
    }

    /// Makes `later` wait for what `earlier` holds now.
    pub fn order(&self, earlier: sys::CUstream, later: sys::CUstream) -> Result<()> {
        self.record(earlier)?;
        self.gate(later)
    }

    /// Marks what `stream` holds now.
    pub fn record(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: event and stream are alive and of the same context.
        unsafe { result::event::record(self.raw, stream) }.map_err(driver_error("cuEventRecord"))
    }

    /// Makes `stream` wait for what was marked last.
    pub fn gate(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: event and stream are alive.
        unsafe {
            result::stream::wait_event(
                stream,
                self.raw,
                sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT,
            )
        }
        .map_err(driver_error("cuStreamWaitEvent"))
    }

    /// Waits on the host for what was marked last, if it has not come yet.
    pub fn wait_if_under_way(&self) -> Result<()> {
        // SAFETY: the event is alive.
        match unsafe { result::event::query(self.raw) } {
            Ok(()) => Ok(()),
            Err(result::DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => self.synchronize(),
            Err(error) => Err(driver_error("cuEventQuery")(error)),
        }
    }

    /// Waits on the host for what was marked last.
    pub fn synchronize(&self) -> Result<()> {
        bind(&self.context)?;
        // SAFETY: the event is alive.
        unsafe { result::event::synchronize(self.raw) }.map_err(driver_error("cuEventSynchronize"))
    }

    /// Microseconds between what was marked last and what `later` marked. Both are timed and have come.
    pub fn microseconds_until(&self, later: &Event) -> Result<f64> {
        // SAFETY: the events are alive.
        let milliseconds = unsafe { result::event::elapsed(self.raw, later.raw) };
        let milliseconds = milliseconds.map_err(driver_error("cuEventElapsedTime"))?;
        Ok(1e3 * f64::from(milliseconds))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.context.record_err(self.context.bind_to_thread());
        // SAFETY: this value owns the event.
        forget(unsafe { result::event::destroy(self.raw) });
    }
}

/// A loaded module with one kernel.
#[derive(Debug)]
pub(crate) struct Function {
    context: Arc<CudaContext>,
    module: sys::CUmodule,
    raw: sys::CUfunction,
    symbol: String,
    arguments: &'static [usize],
    /// The dynamic shared memory that it was given leave to use.
    shared_bytes: Mutex<usize>,
}

// SAFETY: module and function handles may be used from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    /// Loads `image` (a cubin, or PTX text that ends in a zero byte) and finds `symbol` in it, whose arguments begin
    /// at these words of its parameters.
    pub fn load(
        context: &Arc<CudaContext>,
        image: &[u8],
        symbol: &str,
        arguments: &'static [usize],
    ) -> Result<Self> {
        bind(context)?;
        // SAFETY: the image is complete: NVRTC made it, and PTX ends in a zero byte.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) }
            .map_err(driver_error("cuModuleLoadData"))?;
        let mut loaded = Function {
            context: context.clone(),
            module,
            raw: std::ptr::null_mut(),
            symbol: symbol.to_owned(),
            arguments,
            shared_bytes: Mutex::new(0),
        };
        let name = CString::new(symbol).map_err(|_| Error::Variant {
            name: symbol.to_owned(),
            reason: "has a zero byte in its name".to_owned(),
        })?;
        // SAFETY: the module is loaded.
        loaded.raw = unsafe { result::module::get_function(module, name) }
            .map_err(driver_error("cuModuleGetFunction"))?;
        Ok(loaded)
    }

    /// Lets it use `shared_bytes` of dynamic shared memory.
    pub fn allow_shared(&self, shared_bytes: usize) -> Result<()> {
        let allowed = self.shared_bytes.lock();
        let mut allowed = allowed.unwrap_or_else(PoisonError::into_inner);
        // Without leave a kernel gets 48 KB, its own static shared memory among them.
        if shared_bytes > *allowed {
            bind(&self.context)?;
            // SAFETY: the function belongs to a loaded module.
            unsafe {
                result::function::set_function_attribute(
                    self.raw,
                    sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    i32::try_from(shared_bytes).unwrap_or(i32::MAX),
                )
            }
            .map_err(driver_error("cuFuncSetAttribute"))?;
            *allowed = shared_bytes;
        }
        Ok(())
    }

    /// The handle.
    pub fn raw(&self) -> sys::CUfunction {
        self.raw
    }

    /// Where its arguments begin in its parameters, in words.
    pub fn arguments(&self) -> &'static [usize] {
        self.arguments
    }

    /// Its name.
    pub fn symbol(&self) -> &str {
        &self.symbol
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        self.context.record_err(self.context.bind_to_thread());
        // SAFETY: this value owns the module, and nothing launches its kernel any more.
        forget(unsafe { result::module::unload(self.module) });
    }
}
