//! What parameter structs have in common: each mirrors one of `kernels/params.cuh`, field by field, and knows which of
//! its fields are addresses. Strides count elements, flags are 0 or 1.

use bytemuck::Pod;

use super::address::Address;

/// A field of a parameter struct.
pub trait Field {
    /// Calls `found` with the offset in bytes of every address in a field that lies at `offset`.
    fn addresses(offset: usize, found: &mut dyn FnMut(usize));
}

macro_rules! values {
    ($($type:ty)*) => {$(
        impl Field for $type {
            fn addresses(_: usize, _: &mut dyn FnMut(usize)) {}
        }
    )*};
}

values!(u32 u64 i64 f32);

impl Field for Address {
    fn addresses(offset: usize, found: &mut dyn FnMut(usize)) {
        found(offset);
    }
}

impl<T: Field, const N: usize> Field for [T; N] {
    fn addresses(offset: usize, found: &mut dyn FnMut(usize)) {
        for index in 0..N {
            T::addresses(offset + index * size_of::<T>(), found);
        }
    }
}

/// A struct that mirrors one of the device's. Made by `params!`.
pub trait Parameters: Field + Pod {
    /// Its layout, so that a test can compare it with the device side.
    const LAYOUT: Layout;
}

/// Layout of a parameter struct.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The struct's name, the same on both sides.
    pub name: &'static str,
    /// Its size.
    pub bytes: usize,
    /// Its fields and their offsets in bytes.
    pub fields: &'static [(&'static str, usize)],
}

/// Which words of 8 bytes are addresses.
pub(super) fn addresses_of<P: Parameters>() -> Vec<u16> {
    let mut words = Vec::new();
    P::addresses(0, &mut |offset| words.push((offset / 8) as u16));
    words
}

/// Declares a `#[repr(C)]` struct of parameters.
macro_rules! params {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[allow(missing_docs)] // The fields' one description is in params.cuh.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
        pub struct $name {
            $(pub $field: $type,)*
        }

        impl $crate::cuda::parameters::Field for $name {
            fn addresses(offset: usize, found: &mut dyn FnMut(usize)) {
                $(<$type as $crate::cuda::parameters::Field>::addresses(
                    offset + std::mem::offset_of!($name, $field),
                    found,
                );)*
            }
        }

        impl $crate::cuda::parameters::Parameters for $name {
            const LAYOUT: $crate::cuda::parameters::Layout = $crate::cuda::parameters::Layout {
                name: stringify!($name),
                bytes: size_of::<$name>(),
                fields: &[$((stringify!($field), std::mem::offset_of!($name, $field)),)*],
            };
        }
    };
}

pub(super) use params;
