//! Typed views of what a lane's register holds.

use super::{Format, Rounding, round_float};
use super::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use crate::registers::Lane;

/// A type that lanes compute with, and the register width it lives in.
pub(crate) trait Value: Copy + Send + Sync + 'static {
    /// `u32` for up to 32 bits, `u64` for 64.
    type Lane: Lane;
    fn from_lane(lane: Self::Lane) -> Self;
    fn to_lane(self) -> Self::Lane;
}

macro_rules! integer_value {
    ($($value:ty, $unsigned:ty, $lane:ty;)*) => { $(
        impl Value for $value {
            type Lane = $lane;
            #[inline(always)]
            fn from_lane(lane: $lane) -> Self { lane as Self }
            #[inline(always)]
            fn to_lane(self) -> $lane { self as $unsigned as $lane }
        }
    )* };
}

integer_value! {
    u8, u8, u32; i8, u8, u32;
    u16, u16, u32; i16, u16, u32;
    u32, u32, u32; i32, u32, u32;
    u64, u64, u64; i64, u64, u64;
}

impl Value for f32 {
    type Lane = u32;
    #[inline(always)]
    fn from_lane(lane: u32) -> Self {
        Self::from_bits(lane)
    }
    #[inline(always)]
    fn to_lane(self) -> u32 {
        self.to_bits()
    }
}

impl Value for f64 {
    type Lane = u64;
    #[inline(always)]
    fn from_lane(lane: u64) -> Self {
        Self::from_bits(lane)
    }
    #[inline(always)]
    fn to_lane(self) -> u64 {
        self.to_bits()
    }
}

/// One or two 16-bit floats, computed with in f64 and rounded once.
pub(crate) trait Half: Value {
    fn map1(self, f: impl Fn(f64) -> f64) -> Self;
    fn map2(self, b: Self, f: impl Fn(f64, f64) -> f64) -> Self;
    fn map3(self, b: Self, c: Self, f: impl Fn(f64, f64, f64) -> f64) -> Self;
}

/// Bits of an f16.
#[derive(Clone, Copy)]
pub(crate) struct F16(pub(crate) u16);

/// Bits of a bf16.
#[derive(Clone, Copy)]
pub(crate) struct Bf16(pub(crate) u16);

/// Two f16 in one register, the first in the low half.
#[derive(Clone, Copy)]
pub(crate) struct F16x2(F16, F16);

/// Two bf16 in one register, the first in the low half.
#[derive(Clone, Copy)]
pub(crate) struct Bf16x2(Bf16, Bf16);

impl F16 {
    pub(crate) fn get(self) -> f64 {
        f16_to_f32(self.0).into()
    }
    pub(crate) fn nearest(x: f64) -> Self {
        let short = x as f32;
        if f64::from(short) == x {
            return Self(f32_to_f16(short));
        }
        Self(round_float(x, Format::F16, Rounding::Nearest) as u16)
    }
}

impl Bf16 {
    pub(crate) fn get(self) -> f64 {
        bf16_to_f32(self.0).into()
    }
    pub(crate) fn nearest(x: f64) -> Self {
        let short = x as f32;
        if f64::from(short) == x {
            return Self(f32_to_bf16(short));
        }
        Self(round_float(x, Format::BF16, Rounding::Nearest) as u16)
    }
}

macro_rules! half_value {
    ($($one:ident, $two:ident;)*) => { $(
        impl Value for $one {
            type Lane = u32;
            fn from_lane(lane: u32) -> Self { Self(lane as u16) }
            fn to_lane(self) -> u32 { self.0.into() }
        }
        impl Half for $one {
            fn map1(self, f: impl Fn(f64) -> f64) -> Self {
                Self::nearest(f(self.get()))
            }
            fn map2(self, b: Self, f: impl Fn(f64, f64) -> f64) -> Self {
                Self::nearest(f(self.get(), b.get()))
            }
            fn map3(self, b: Self, c: Self, f: impl Fn(f64, f64, f64) -> f64) -> Self {
                Self::nearest(f(self.get(), b.get(), c.get()))
            }
        }
        impl Value for $two {
            type Lane = u32;
            fn from_lane(lane: u32) -> Self {
                Self($one(lane as u16), $one((lane >> 16) as u16))
            }
            fn to_lane(self) -> u32 { u32::from(self.0.0) | u32::from(self.1.0) << 16 }
        }
        impl Half for $two {
            fn map1(self, f: impl Fn(f64) -> f64) -> Self {
                Self(self.0.map1(&f), self.1.map1(&f))
            }
            fn map2(self, b: Self, f: impl Fn(f64, f64) -> f64) -> Self {
                Self(self.0.map2(b.0, &f), self.1.map2(b.1, &f))
            }
            fn map3(self, b: Self, c: Self, f: impl Fn(f64, f64, f64) -> f64) -> Self {
                Self(self.0.map3(b.0, c.0, &f), self.1.map3(b.1, c.1, &f))
            }
        }
    )* };
}

half_value! { F16, F16x2; Bf16, Bf16x2; }
