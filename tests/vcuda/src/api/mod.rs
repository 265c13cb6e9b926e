//! The exported functions of the driver API, under the names and with the signatures of `cuda.h`.
//!
//! Handles and device pointers are 64-bit integers here, which on every platform this runs on are passed
//! as the pointers of `cuda.h` are.

mod context;
mod copy;
mod device;
mod event;
mod function;
mod graph;
mod memory;
mod module;
mod pointer;
mod stream;
mod unsupported;

use crate::{codes::Code, driver::Driver};
use std::ffi::{CStr, c_char};

const _: () = assert!(size_of::<usize>() == size_of::<u64>());

/// Where a call puts an answer.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Stores the answer; a null pointer is an invalid argument.
    fn set(self, value: T) -> Result<(), Code> {
        match self.set_if_wanted(value) {
            true => Ok(()),
            false => Err(Code::InvalidValue),
        }
    }

    /// Stores the answer unless the pointer is null.
    fn set_if_wanted(self, value: T) -> bool {
        if self.0.is_null() {
            return false;
        }
        // SAFETY: every exported function asks its C caller for null or a valid pointer; `cuda.h` aligns
        // these types as Rust does.
        unsafe { self.0.write(value) };
        true
    }
}

impl Out<u8> {
    /// Stores bytes; the caller of the exported function promised room for them.
    fn set_bytes(self, bytes: &[u8]) -> Result<(), Code> {
        if self.0.is_null() {
            return Err(Code::InvalidValue);
        }
        // SAFETY: as above, for as many bytes as the function's contract or its length argument says.
        unsafe { self.0.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }
}

/// A C string from the caller.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Text(*const c_char);

impl Text {
    fn read(self) -> Result<&'static CStr, Code> {
        if self.0.is_null() {
            return Err(Code::InvalidValue);
        }
        // SAFETY: every exported function asks its C caller for null or a terminated string that lives for
        // the call; nobody keeps the reference longer.
        Ok(unsafe { CStr::from_ptr(self.0) })
    }

    fn read_utf8(self) -> Result<&'static str, Code> {
        self.read()?.to_str().map_err(|_| Code::InvalidValue)
    }
}

/// Defines exported functions: each locks the driver, is counted, and may be ordered to fail.
macro_rules! exports {
    ($(
        $(#[$doc:meta])*
        fn $name:ident($driver:ident $(, $argument:ident: $type:ty)* $(,)?) $body:block
    )*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// Pointers have to be null or what the CUDA driver API asks for.
        #[unsafe(no_mangle)]
        #[allow(non_snake_case)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> u32 {
            $crate::driver::enter(
                stringify!($name),
                |$driver: &mut $crate::driver::Driver| -> Result<(), $crate::codes::Code> { $body },
            )
        }
    )*};
}
use exports;

impl Driver {
    /// The stream behind a handle of `cuda.h`: null and 1 are the legacy stream of the current context, 2 its
    /// per-thread stream.
    fn stream_of(&mut self, raw: u64) -> Result<u64, Code> {
        const LEGACY: u64 = 1;
        const PER_THREAD: u64 = 2;
        match raw {
            0 | LEGACY => {
                let current = self.current()?;
                self.contexts
                    .get(&current)
                    .map(|context| context.legacy)
                    .ok_or(Code::InvalidContext)
            }
            PER_THREAD => {
                let current = self.current()?;
                let thread = std::thread::current().id();
                let context = self.contexts.get(&current).ok_or(Code::InvalidContext)?;
                let known = context
                    .per_thread
                    .iter()
                    .find(|&&(owner, _)| owner == thread);
                if let Some(&(_, stream)) = known {
                    return Ok(stream);
                }
                let stream = self.create_stream(current, true, 0);
                if let Some(context) = self.contexts.get_mut(&current) {
                    context.per_thread.push((thread, stream));
                }
                Ok(stream)
            }
            handle => {
                self.stream(handle)?;
                Ok(handle)
            }
        }
    }
}
