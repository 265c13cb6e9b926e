//! What a call returns, and what it says about it.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::CString;
use std::panic::{AssertUnwindSafe, catch_unwind};

use attention_rollout::Error as RolloutError;

/// What became of a call.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArStatus {
    /// It is done.
    Ok = 0,
    /// A pointer is NULL that must not be.
    NullPointer = 1,
    /// A struct is not of the size that this library knows: header and library are of different versions, or `size` was
    /// not set.
    StructSize = 2,
    /// A value is out of its range, or does not fit the others.
    Invalid = 3,
    /// Another thread is using the plan.
    Busy = 4,
    /// The machine cannot: no driver, no such GPU, no compiler, no memory, a failure of the driver.
    Machine = 5,
    /// A fault of the library. The plan it happened in can only be freed.
    Panic = 6,
    /// Queries, keys and LSE do not belong together. The run has been computed, and its output is of no use; the message
    /// says where, what was expected and what was got.
    Mismatch = 7,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// See [`ArStatus::NullPointer`].
    #[error("{what}: expected a pointer, got NULL")]
    NullPointer {
        /// Which pointer.
        what: &'static str,
    },
    /// See [`ArStatus::StructSize`].
    #[error("{what}: expected size {expected}, got {got}")]
    StructSize {
        /// Which struct.
        what: &'static str,
        /// Its size here.
        expected: usize,
        /// The size it says.
        got: usize,
    },
    /// A number that stands for none of the choices.
    #[error("{what}: expected one of 0 to {last}, got {got}")]
    Choice {
        /// Which field.
        what: &'static str,
        /// The last choice.
        last: usize,
        /// The number given.
        got: u32,
    },
    /// An address that is not a multiple of what its elements need.
    #[error("{what}: expected a multiple of {required} bytes, got {address:#x}")]
    Misaligned {
        /// Which pointer.
        what: &'static str,
        /// The alignment needed.
        required: usize,
        /// The address.
        address: usize,
    },
    /// A list that no memory can hold.
    #[error("{what}: {count} elements overflow the address space")]
    Overflow {
        /// Which list.
        what: &'static str,
        /// Its length.
        count: usize,
    },
    /// The output lies in memory of a layer.
    #[error("the output overlaps layer {layer}")]
    Overlap {
        /// The layer.
        layer: usize,
    },
    /// Tensors of two sources in one layer.
    #[error("layer {layer}: expected maps or queries and keys, got both")]
    Sources {
        /// The layer.
        layer: usize,
    },
    /// Layers in device memory, and a device without any.
    #[error("memory: expected AR_MEMORY_HOST on the CPU, got AR_MEMORY_DEVICE")]
    DeviceMemory,
    /// A stream for layers in host memory.
    #[error("stream: expected NULL for layers in host memory, got a stream")]
    Stream,
    /// Windows or rows of one run in host memory.
    #[error("{what} of a run: expected NULL for layers in host memory, got an address")]
    DeviceInputs {
        /// Which of them.
        what: &'static str,
    },
    /// See [`ArStatus::Busy`].
    #[error("the plan is in use by another thread")]
    Busy,
    /// The plan panicked before.
    #[error("the plan failed with a fault of the library before, and can only be freed")]
    Poisoned,
    /// What the library says.
    #[error(transparent)]
    Rollout(#[from] RolloutError),
}

/// Result with this crate's [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn status(&self) -> ArStatus {
        match self {
            Error::NullPointer { .. } => ArStatus::NullPointer,
            Error::StructSize { .. } => ArStatus::StructSize,
            Error::Busy => ArStatus::Busy,
            Error::Poisoned => ArStatus::Panic,
            Error::Rollout(RolloutError::Mass { .. } | RolloutError::Lse { .. }) => {
                ArStatus::Mismatch
            }
            Error::Rollout(
                RolloutError::Threads { .. }
                | RolloutError::HostMemory { .. }
                | RolloutError::NoDriver
                | RolloutError::DriverTooOld { .. }
                | RolloutError::NoDevice
                | RolloutError::DeviceOrdinal { .. }
                | RolloutError::Architecture { .. }
                | RolloutError::Driver { .. }
                | RolloutError::Launch { .. }
                | RolloutError::OutOfDeviceMemory { .. }
                | RolloutError::Nvrtc(_),
            ) => ArStatus::Machine,
            _ => ArStatus::Invalid,
        }
    }
}

thread_local! {
    static MESSAGE: RefCell<CString> = RefCell::default();
}

/// Runs what a function of the interface does; a failure becomes the thread's message.
pub fn guard(call: impl FnOnce() -> Result<()>) -> ArStatus {
    // What a panic leaves half done is a plan's, and that is refused from then on.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => ArStatus::Ok,
        Ok(Err(error)) => {
            keep(error.to_string());
            error.status()
        }
        Err(panic) => {
            keep(format!("a fault of the library: {}", words(&*panic)));
            ArStatus::Panic
        }
    }
}

/// What a panic says.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("it panicked")
}

/// Keeps the message for [`message`]; it ends at the first zero byte.
fn keep(message: String) {
    let text: Vec<u8> = message
        .into_bytes()
        .into_iter()
        .take_while(|&byte| byte != 0)
        .collect();
    let text = CString::new(text).unwrap_or_default();
    // A thread that is ending has no message any more.
    let _ = MESSAGE.try_with(|kept| kept.replace(text));
}

/// The thread's last message, empty where no call has failed.
pub fn message() -> *const std::ffi::c_char {
    MESSAGE
        .try_with(|kept| kept.borrow().as_ptr())
        .unwrap_or(c"".as_ptr())
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn said() -> String {
        // SAFETY: the message lives until the next failure of this thread.
        unsafe { CStr::from_ptr(message()) }
            .to_str()
            .unwrap()
            .to_owned()
    }

    #[test]
    fn a_panic_is_a_status_and_each_thread_has_its_own_message() {
        assert_eq!(said(), "");
        assert_eq!(guard(|| panic!("layer {}", 3)), ArStatus::Panic);
        assert_eq!(said(), "a fault of the library: layer 3");
        assert_eq!(std::thread::spawn(said).join().unwrap(), "");
        assert_eq!(guard(|| Err(Error::Busy)), ArStatus::Busy);
        assert_eq!(said(), "the plan is in use by another thread");
        assert_eq!(guard(|| Ok(())), ArStatus::Ok);
        assert_eq!(
            said(),
            "the plan is in use by another thread",
            "until the next failure"
        );
    }
}
