//! The instruction set that the inner loops are compiled for, chosen once per plan.
//!
//! An inner loop is written once, generic over [`Lanes`]; [`Simd::dispatch`] compiles it for each instruction set and
//! calls the one that was found at run time.

use std::fmt;

use crate::dtype::Element;

mod portable;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

use portable::Portable;
pub(crate) use scalar::Scalar;
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

/// An instruction set for the inner loops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Simd {
    /// What the compilation target guarantees.
    Portable,
    /// AVX2 with FMA and the F16C conversions.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// AVX-512 (F, BW, DQ and VL).
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl Simd {
    /// The widest instruction set of this machine.
    pub fn detect() -> Self {
        Self::available().last().unwrap_or(Simd::Portable)
    }

    /// The instruction sets of this machine, from the narrowest to the widest.
    pub fn available() -> impl Iterator<Item = Self> {
        let mut available = [Some(Simd::Portable), None, None];
        #[cfg(target_arch = "x86_64")]
        {
            available[1] = Avx2::detect().map(Simd::Avx2);
            available[2] = Avx512::detect().map(Simd::Avx512);
        }
        available.into_iter().flatten()
    }

    /// This instruction set, or a narrower one where rows of `len` elements do not fill its vectors.
    pub(crate) fn for_rows(self, len: usize) -> Self {
        match len < MOST_LANES {
            true => self.narrow(),
            false => self,
        }
    }

    /// This instruction set, or one whose vectors are 32 bytes where these are wider.
    pub(crate) fn narrow(self) -> Self {
        match self {
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512(wide) => Simd::Avx2(wide.narrow()),
            simd => simd,
        }
    }

    /// Runs `inner_loop` compiled for this instruction set.
    pub(crate) fn dispatch<I: InnerLoop>(self, inner_loop: I) -> I::Output {
        match self {
            Simd::Portable => inner_loop.run(Portable),
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2(lanes) => lanes.run(inner_loop),
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512(lanes) => lanes.run(inner_loop),
        }
    }
}

impl fmt::Display for Simd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Simd::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2(_) => "avx2+fma+f16c",
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512(_) => "avx512",
        })
    }
}

/// Throws `memory` out of all caches; whether this machine can.
pub(crate) fn leave_caches(memory: &[f32]) -> bool {
    #[cfg(target_arch = "x86_64")]
    x86::leave_caches(memory);
    let _ = memory;
    cfg!(target_arch = "x86_64")
}

/// Asks for the cache line of `address`, which need not be valid.
#[inline(always)]
pub(crate) fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    x86::prefetch(address.cast());
    let _ = address;
}

/// An inner loop. Implementations of `run`, and what they call, are `#[inline(always)]`.
pub(crate) trait InnerLoop {
    type Output;

    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Elements of the widest vector.
pub(crate) const MOST_LANES: usize = 16;

/// The operations of an instruction set, lane by lane on vectors of [`LANES`](Lanes::LANES) f32.
pub(crate) trait Lanes: Copy {
    type Vector: Copy;

    /// Elements of a vector, at most [`MOST_LANES`].
    const LANES: usize;

    /// `value` in every lane.
    fn splat(self, value: f32) -> Self::Vector;

    /// The first elements of `from` as f32, exactly.
    ///
    /// # Panics
    /// Where there are too few.
    #[inline(always)]
    fn load<T: Element>(self, from: &[T]) -> Self::Vector {
        // SAFETY: as many elements are borrowed.
        unsafe { self.read(from[..Self::LANES].as_ptr()) }
    }

    /// The elements from `from` on as f32, exactly.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn read<T: Element>(self, from: *const T) -> Self::Vector;

    /// Writes the first elements of `to`.
    ///
    /// # Panics
    /// Where there are too few.
    fn store(self, vector: Self::Vector, to: &mut [f32]);

    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;

    fn mul(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;

    /// `a * b + c`, in one rounding where the instruction set has it.
    fn mul_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;

    /// The larger of the two, `kept` where they are equal, NaN where one of them is.
    fn max(self, kept: Self::Vector, value: Self::Vector) -> Self::Vector;

    /// The smaller of the two, `kept` where they are equal, NaN where one of them is.
    fn min(self, kept: Self::Vector, value: Self::Vector) -> Self::Vector;

    /// `value` where it is more than `least` or one of them is NaN, else `least`.
    fn at_least(self, least: Self::Vector, value: Self::Vector) -> Self::Vector;

    /// `value * 2^power` of whole powers: at most some subnormal number where it is below 2^-126, infinite from 2^128 on.
    fn times_power_of_two(self, value: Self::Vector, power: Self::Vector) -> Self::Vector;

    /// The sum of all lanes.
    fn sum(self, vector: Self::Vector) -> f32;

    /// The sum of all lanes of each of four vectors.
    fn four_sums(self, vectors: [Self::Vector; 4]) -> [f32; 4];

    /// The sum of all lanes of each vector.
    #[inline(always)]
    fn sums<const K: usize>(self, vectors: [Self::Vector; K]) -> [f32; K] {
        let mut sums = [0.0; K];
        let mut k = 0;
        while let [a, b, c, d, ..] = vectors[k..] {
            sums[k..k + 4].copy_from_slice(&self.four_sums([a, b, c, d]));
            k += 4;
        }
        while k < K {
            sums[k] = self.sum(vectors[k]);
            k += 1;
        }
        sums
    }

    /// `2^x`, to a unit in the last place from 2^-126 to 2^127; 0 below 2^-150, and NaN where `x` is. Vectors take each step side by
    /// side: one alone would wait for every step before the next.
    ///
    /// A power of two of the nearest whole number, and of what is left the polynomial of degree 6 that is 1 at 0 and whose
    /// largest relative error is least: 2e-9, before rounding.
    #[inline(always)]
    fn exp2<const V: usize>(self, mut x: [Self::Vector; V]) -> [Self::Vector; V] {
        /// Beside this, the places after the binary point are gone: numbers are rounded to whole ones.
        const ROUNDS: f32 = 12_582_912.0;
        const POLYNOMIAL: [f32; 6] = [
            1.535_336_2e-4,
            1.339_887_5e-3,
            9.618_437e-3,
            5.550_332_4e-2,
            2.402_264_8e-1,
            std::f32::consts::LN_2,
        ];
        let mut power = x;
        for v in 0..V {
            // So far down that the power of two vanishes, and an infinite x does no harm.
            x[v] = self.at_least(self.splat(-160.0), x[v]);
            power[v] = self.add(self.add(x[v], self.splat(ROUNDS)), self.splat(-ROUNDS));
            x[v] = self.add(x[v], self.mul(power[v], self.splat(-1.0)));
        }
        let mut sum = [self.splat(POLYNOMIAL[0]); V];
        for coefficient in &POLYNOMIAL[1..] {
            for v in 0..V {
                sum[v] = self.mul_add(sum[v], x[v], self.splat(*coefficient));
            }
        }
        for v in 0..V {
            sum[v] = self.mul_add(sum[v], x[v], self.splat(1.0));
            sum[v] = self.times_power_of_two(sum[v], power[v]);
        }
        sum
    }

    /// Bit by bit from the lowest, whether the lanes have `a <= b`; false where one of them is NaN.
    fn at_most(self, a: Self::Vector, b: Self::Vector) -> u32;

    /// `a` where it is more than `most` or NaN, else 0.
    fn zero_at_most(self, a: Self::Vector, most: Self::Vector) -> Self::Vector;

    /// The first `count` lanes of `first`, the others of `rest`.
    fn join(self, count: usize, first: Self::Vector, rest: Self::Vector) -> Self::Vector;

    /// Writes the lanes whose bits are set in `mask` to the front of `to`, in order, and anything behind them, up to
    /// as many elements as a vector has.
    ///
    /// # Panics
    /// Where `to` has fewer elements than a vector.
    fn compress(self, vector: Self::Vector, mask: u32, to: &mut [f32]);
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    const VALUES: [f32; 10] = [
        0.0,
        -0.0,
        1.0,
        -1.5,
        3.0,
        f32::MIN_POSITIVE,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        0.25,
    ];

    fn bits(values: &[f32]) -> Vec<u32> {
        // One NaN is as good as another.
        let bits = |v: &f32| if v.is_nan() { f32::NAN } else { *v }.to_bits();
        values.iter().map(bits).collect()
    }

    /// Every operation on all pairs of values, lane by lane the same as one element at a time.
    struct LikeScalar;

    impl InnerLoop for LikeScalar {
        type Output = ();

        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) {
            let pairs = VALUES.map(|a| VALUES.map(|b| (a, b))).into_iter().flatten();
            let (a, b): (Vec<f32>, Vec<f32>) = pairs.cycle().take(100 * L::LANES).unzip();
            let vectors = a.chunks_exact(L::LANES).zip(b.chunks_exact(L::LANES));
            for (number, (a, b)) in vectors.enumerate() {
                let same = |what: &str, vector: L::Vector, one: &dyn Fn(usize) -> f32| {
                    let mut got = vec![0.0; L::LANES];
                    lanes.store(vector, &mut got);
                    let want: Vec<f32> = (0..L::LANES).map(one).collect();
                    assert_eq!(bits(&got), bits(&want), "{what} of {a:?} and {b:?}");
                };
                let (x, y) = (lanes.load(a), lanes.load(b));
                same("load", x, &|i| a[i]);
                same("splat", lanes.splat(a[0]), &|_| a[0]);
                same("add", lanes.add(x, y), &|i| a[i] + b[i]);
                same("mul", lanes.mul(x, y), &|i| a[i] * b[i]);
                same("mul_add", lanes.mul_add(x, y, y), &|i| a[i] * b[i] + b[i]);
                same("max", lanes.max(x, y), &|i| Scalar.max(a[i], b[i]));
                same("min", lanes.min(x, y), &|i| Scalar.min(a[i], b[i]));
                let zeroed = |i: usize| Scalar.zero_at_most(a[i], b[i]);
                same("zero_at_most", lanes.zero_at_most(x, y), &zeroed);
                let count = number % (L::LANES + 1);
                let joined = |i: usize| if i < count { a[i] } else { b[i] };
                same("join", lanes.join(count, x, y), &joined);
                let mask = lanes.at_most(x, y);
                let want = (0..L::LANES)
                    .map(|i| Scalar.at_most(a[i], b[i]) << i)
                    .sum::<u32>();
                assert_eq!(mask, want, "{a:?} at most {b:?}");
                let mut packed = vec![0.0; L::LANES];
                lanes.compress(x, mask, &mut packed);
                let want: Vec<f32> = (0..L::LANES)
                    .filter(|i| mask >> i & 1 == 1)
                    .map(|i| a[i])
                    .collect();
                assert_eq!(
                    bits(&packed[..want.len()]),
                    bits(&want),
                    "{mask:b} of {a:?}"
                );
                let half: Vec<f16> = a.iter().map(|&v| f16::from_f32(v)).collect();
                same("f16", lanes.load(&half), &|i| half[i].to_f32());
                let brain: Vec<bf16> = a.iter().map(|&v| bf16::from_f32(v)).collect();
                same("bf16", lanes.load(&brain), &|i| brain[i].to_f32());
            }
        }
    }

    /// Exponentials and sums of lanes, against f64.
    struct Exponentials;

    impl InnerLoop for Exponentials {
        type Output = ();

        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) {
            let exp2 = |x: f32| {
                let mut got = vec![0.0; L::LANES];
                lanes.store(lanes.exp2([lanes.splat(x)])[0], &mut got);
                got[L::LANES - 1]
            };
            for step in 0..=25_300 {
                let x = step as f32 * 1e-2 - 126.0;
                let (got, want) = (f64::from(exp2(x)), f64::from(x).exp2());
                let error = (got - want).abs();
                assert!(error <= 1.2e-7 * want, "2^{x}: {got:e}, {want:e}");
            }
            for whole in -126..=127 {
                assert_eq!(f64::from(exp2(whole as f32)), f64::from(whole).exp2());
            }
            for x in [f32::NEG_INFINITY, f32::MIN, -1e6, -160.0] {
                assert_eq!(exp2(x), 0.0, "2^{x}");
            }
            assert!(exp2(f32::NAN).is_nan());
            assert!([129.0, 1e3, 1e4].iter().all(|&x| exp2(x) == f32::INFINITY));
            let numbers: Vec<f32> = (0..L::LANES).map(|lane| (lane * lane) as f32).collect();
            let vector = lanes.load(&numbers);
            let vectors =
                [1.0, 2.0, 3.0, 4.0, 5.0].map(|times| lanes.mul(vector, lanes.splat(times)));
            let sum: f32 = numbers.iter().sum();
            assert_eq!(
                lanes.sums(vectors),
                [1.0, 2.0, 3.0, 4.0, 5.0].map(|times| times * sum)
            );
        }
    }

    #[test]
    fn powers_of_two_are_exact_to_a_unit_in_the_last_place() {
        for simd in Simd::available() {
            simd.dispatch(Exponentials);
        }
    }

    #[test]
    fn every_instruction_set_computes_the_same() {
        for simd in Simd::available() {
            simd.dispatch(LikeScalar);
        }
        assert_eq!(Simd::available().last(), Some(Simd::detect()));
    }
}
