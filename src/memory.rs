//! Memory whose size somebody else chose.

use crate::error::{Error, Result};

/// `len` times `value`.
///
/// # Errors
/// [`Error::HostMemory`], with `what` the memory is for, where the system has not that much.
pub fn filled<T: Clone>(what: &'static str, len: usize, value: T) -> Result<Vec<T>> {
    let mut memory = Vec::new();
    memory
        .try_reserve_exact(len)
        .map_err(|_| Error::HostMemory {
            what,
            required: len.saturating_mul(size_of::<T>()),
        })?;
    memory.resize(len, value);
    Ok(memory)
}
