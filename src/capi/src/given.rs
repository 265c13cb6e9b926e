//! What the caller gives, checked before it is looked at.

use crate::error::{Error, Result};
use crate::types::{
    ArDeviceKind, ArDeviceOptions, ArDiscardScope, ArDtype, ArGradients, ArHeadFusion, ArInputs,
    ArLayer, ArLse, ArMemory, ArOutput, ArPlanInfo, ArPrecision, ArProblem, ArQueriesKeys, ArRows,
    ArRun,
};

/// A struct that starts with a `size_t` of its own size.
///
/// # Safety
/// It does, and any bytes are a value of the type.
pub unsafe trait Struct {
    /// Its name.
    const NAME: &'static str;
}

/// A number that stands for a choice: its place among [`ALL`](Choice::ALL).
pub trait Choice: Copy + 'static {
    /// The choices.
    const ALL: &'static [Self];
}

macro_rules! interface {
    (structs: $($structs:ident),*; choices: $($choices:ident { $($variants:ident),* })*) => {
        // SAFETY: the first field is `size: usize`, and the others are numbers and raw pointers.
        $(unsafe impl Struct for $structs {
            const NAME: &'static str = stringify!($structs);
        })*
        $(impl Choice for $choices {
            const ALL: &'static [Self] = &[$(Self::$variants),*];
        })*

        #[cfg(test)]
        mod tests {
            use super::*;

            #[test]
            fn numbers_are_places() {
                $(for (place, &choice) in $choices::ALL.iter().enumerate() {
                    assert_eq!(choice as usize, place, stringify!($choices));
                })*
            }
        }
    };
}

interface! {
    structs: ArDeviceOptions, ArProblem, ArQueriesKeys, ArLayer, ArInputs, ArRun, ArPlanInfo;
    choices:
        ArDeviceKind { Cpu, Cuda }
        ArPrecision { F32, Half }
        ArMemory { Host, Device }
        ArDtype { F32, F16, Bf16 }
        ArHeadFusion { Mean, Max, Min, Weighted }
        ArGradients { None, Heads, Fused }
        ArLse { Recomputed, Natural, BaseTwo }
        ArDiscardScope { Map, Patches }
        ArOutput { Rows, Matrix, Cumulative }
        ArRows { List, PerItem, Last, Mean, Weights }
}

/// The choice that `code` stands for.
pub fn choice<T: Choice>(what: &'static str, code: u32) -> Result<T> {
    T::ALL.get(code as usize).copied().ok_or(Error::Choice {
        what,
        last: T::ALL.len() - 1,
        got: code,
    })
}

/// Checks that a pointer is neither null nor misaligned for `T`.
pub fn checked<T>(what: &'static str, pointer: *const T) -> Result<*const T> {
    if pointer.is_null() {
        return Err(Error::NullPointer { what });
    }
    if !pointer.is_aligned() {
        return Err(Error::Misaligned {
            what,
            required: align_of::<T>(),
            address: pointer.addr(),
        });
    }
    Ok(pointer)
}

/// Checks a struct of the caller's by its size, before more of it is touched.
///
/// # Safety
/// `pointer` is null, or points to a `T` or at least to the size of one.
pub unsafe fn sized<T: Struct>(pointer: *const T) -> Result<*const T> {
    let pointer = checked(T::NAME, pointer)?;
    // SAFETY: it starts with its size.
    let got = unsafe { pointer.cast::<usize>().read() };
    match got == size_of::<T>() {
        true => Ok(pointer),
        false => Err(Error::StructSize {
            what: T::NAME,
            expected: size_of::<T>(),
            got,
        }),
    }
}

/// A list of the caller's; null is an empty one where `count` is 0.
///
/// # Safety
/// `pointer` is null or misaligned, or points to `count` elements that stay as they are for `'a`.
pub unsafe fn list<'a, T>(what: &'static str, pointer: *const T, count: usize) -> Result<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    let pointer = checked(what, pointer)?;
    fits::<T>(what, count)?;
    // SAFETY: not null, aligned, and of a size that memory can have; the rest is the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

/// Checks that memory can hold `count` elements.
pub fn fits<T>(what: &'static str, count: usize) -> Result<()> {
    match count.checked_mul(size_of::<T>()) {
        Some(bytes) if bytes <= isize::MAX as usize => Ok(()),
        _ => Err(Error::Overflow { what, count }),
    }
}
