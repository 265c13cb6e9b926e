//! Number formats: conversions with one rounding, and the values lanes hold.

mod convert;
mod value;

pub(crate) use convert::{
    Format, Rounding, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16, float_to_int, odd_add,
    round_float, round_int,
};
pub(crate) use value::{Bf16, Bf16x2, F16, F16x2, Half, Value};

/// A subnormal becomes a zero of the same sign, as `.ftz` asks.
#[inline(always)]
pub(crate) fn flush(x: f32) -> f32 {
    if x.is_subnormal() {
        0f32.copysign(x)
    } else {
        x
    }
}

/// Clamps to `[0, 1]`, NaN becoming 0, as `.sat` asks.
#[inline(always)]
pub(crate) fn saturate(x: f64) -> f64 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}
