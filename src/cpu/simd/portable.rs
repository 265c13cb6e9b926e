//! Vectors of four, which every compilation target has or the compiler takes apart.

use std::array;

use crate::cpu::simd::{Lanes, Scalar};
use crate::dtype::Element;

#[derive(Clone, Copy)]
pub(crate) struct Portable;

type Vector = [f32; 4];

impl Lanes for Portable {
    type Vector = Vector;
    const LANES: usize = 4;

    #[inline(always)]
    fn splat(self, value: f32) -> Vector {
        [value; 4]
    }

    #[inline(always)]
    unsafe fn read<T: Element>(self, from: *const T) -> Vector {
        // SAFETY: as the caller vouches.
        array::from_fn(|lane| unsafe { *from.add(lane) }.to_f32())
    }

    #[inline(always)]
    fn store(self, vector: Vector, to: &mut [f32]) {
        to[..4].copy_from_slice(&vector);
    }

    #[inline(always)]
    fn add(self, a: Vector, b: Vector) -> Vector {
        array::from_fn(|lane| a[lane] + b[lane])
    }

    #[inline(always)]
    fn mul(self, a: Vector, b: Vector) -> Vector {
        array::from_fn(|lane| a[lane] * b[lane])
    }

    #[inline(always)]
    fn mul_add(self, a: Vector, b: Vector, c: Vector) -> Vector {
        self.add(self.mul(a, b), c)
    }

    #[inline(always)]
    fn max(self, kept: Vector, value: Vector) -> Vector {
        array::from_fn(|lane| Scalar.max(kept[lane], value[lane]))
    }

    #[inline(always)]
    fn min(self, kept: Vector, value: Vector) -> Vector {
        array::from_fn(|lane| Scalar.min(kept[lane], value[lane]))
    }

    #[inline(always)]
    fn at_least(self, least: Vector, value: Vector) -> Vector {
        array::from_fn(|lane| Scalar.at_least(least[lane], value[lane]))
    }

    #[inline(always)]
    fn times_power_of_two(self, value: Vector, power: Vector) -> Vector {
        array::from_fn(|lane| Scalar.times_power_of_two(value[lane], power[lane]))
    }

    #[inline(always)]
    fn sum(self, vector: Vector) -> f32 {
        (vector[0] + vector[1]) + (vector[2] + vector[3])
    }

    #[inline(always)]
    fn four_sums(self, vectors: [Vector; 4]) -> [f32; 4] {
        vectors.map(|vector| self.sum(vector))
    }

    #[inline(always)]
    fn at_most(self, a: Vector, b: Vector) -> u32 {
        (0..4).fold(0, |mask, lane| mask | u32::from(a[lane] <= b[lane]) << lane)
    }

    #[inline(always)]
    fn zero_at_most(self, a: Vector, most: Vector) -> Vector {
        array::from_fn(|lane| Scalar.zero_at_most(a[lane], most[lane]))
    }

    #[inline(always)]
    fn join(self, count: usize, first: Vector, rest: Vector) -> Vector {
        array::from_fn(|lane| {
            if lane < count {
                first[lane]
            } else {
                rest[lane]
            }
        })
    }

    #[inline(always)]
    fn compress(self, vector: Vector, mask: u32, to: &mut [f32]) {
        let to = &mut to[..4];
        let mut at = 0;
        for (lane, value) in vector.into_iter().enumerate() {
            to[at] = value;
            at += (mask >> lane & 1) as usize;
        }
    }
}
