//! One element at a time: what is left of a row that does not fill a vector.

use crate::cpu::simd::Lanes;
use crate::dtype::Element;

#[derive(Clone, Copy)]
pub(crate) struct Scalar;

impl Lanes for Scalar {
    type Vector = f32;
    const LANES: usize = 1;

    #[inline(always)]
    fn splat(self, value: f32) -> f32 {
        value
    }

    #[inline(always)]
    unsafe fn read<T: Element>(self, from: *const T) -> f32 {
        // SAFETY: as the caller vouches.
        unsafe { *from }.to_f32()
    }

    #[inline(always)]
    fn store(self, vector: f32, to: &mut [f32]) {
        to[0] = vector;
    }

    #[inline(always)]
    fn add(self, a: f32, b: f32) -> f32 {
        a + b
    }

    #[inline(always)]
    fn mul(self, a: f32, b: f32) -> f32 {
        a * b
    }

    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }

    #[inline(always)]
    fn max(self, kept: f32, value: f32) -> f32 {
        if kept.is_nan() || value <= kept {
            kept
        } else {
            value
        }
    }

    #[inline(always)]
    fn min(self, kept: f32, value: f32) -> f32 {
        if kept.is_nan() || value >= kept {
            kept
        } else {
            value
        }
    }

    #[inline(always)]
    fn at_least(self, least: f32, value: f32) -> f32 {
        if value < least { least } else { value }
    }

    #[inline(always)]
    fn times_power_of_two(self, value: f32, power: f32) -> f32 {
        let exponent = power.clamp(-127.0, 128.0) as i32 + 127;
        value * f32::from_bits((exponent as u32) << 23)
    }

    #[inline(always)]
    fn sum(self, vector: f32) -> f32 {
        vector
    }

    #[inline(always)]
    fn four_sums(self, vectors: [f32; 4]) -> [f32; 4] {
        vectors
    }

    #[inline(always)]
    fn at_most(self, a: f32, b: f32) -> u32 {
        u32::from(a <= b)
    }

    #[inline(always)]
    fn zero_at_most(self, a: f32, most: f32) -> f32 {
        if a <= most { 0.0 } else { a }
    }

    #[inline(always)]
    fn join(self, count: usize, first: f32, rest: f32) -> f32 {
        if count > 0 { first } else { rest }
    }

    #[inline(always)]
    fn compress(self, vector: f32, _mask: u32, to: &mut [f32]) {
        to[0] = vector;
    }
}
