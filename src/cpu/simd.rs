//! The instruction set that the inner loops are compiled for, chosen once per plan.
//!
//! A kernel is written once, generic over [`Lanes`]; [`Simd::dispatch`] compiles it for each instruction set and
//! calls the one that was found at run time.

use std::fmt;

use crate::dtype::{DType, Element};

/// Elements that one step of an inner loop handles.
pub(crate) const LANES: usize = 8;

/// An instruction set for the inner loops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Simd {
    /// What the compilation target guarantees.
    Portable,
    /// AVX2 with FMA and the F16C conversions.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
}

/// Proof that this machine has AVX2, FMA and F16C: only [`Simd::detect`] makes one.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

impl Simd {
    /// The widest instruction set of this machine.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            return Simd::Avx2(Avx2(()));
        }
        Simd::Portable
    }

    /// Runs `kernel` compiled for this instruction set.
    pub(crate) fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Simd::Portable => kernel.run(Portable),
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2(lanes) => {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn run<K: Kernel>(kernel: K, lanes: Avx2) -> K::Output {
                    kernel.run(lanes)
                }
                // SAFETY: `lanes` proves that the machine has these features.
                unsafe { run(kernel, lanes) }
            }
        }
    }
}

impl fmt::Display for Simd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Simd::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2(_) => "avx2+fma+f16c",
        })
    }
}

/// An inner loop. Implementations of `run`, and what they call, are `#[inline(always)]`.
pub(crate) trait Kernel {
    type Output;

    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// What differs between instruction sets beyond what the compiler finds by itself.
pub(crate) trait Lanes: Copy {
    /// `a * b + c`, in one rounding where the instruction set has it.
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32;

    /// Eight elements as f32, exactly.
    fn widen<T: Element>(self, elements: &[T; LANES]) -> [f32; LANES];

    /// Asks for the cache line of `address`, which need not be valid.
    fn prefetch<T>(self, address: *const T);
}

#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Lanes for Portable {
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }

    #[inline(always)]
    fn widen<T: Element>(self, elements: &[T; LANES]) -> [f32; LANES] {
        elements.map(T::to_f32)
    }

    #[inline(always)]
    fn prefetch<T>(self, _address: *const T) {}
}

#[cfg(target_arch = "x86_64")]
impl Lanes for Avx2 {
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn widen<T: Element>(self, elements: &[T; LANES]) -> [f32; LANES] {
        match T::DTYPE {
            DType::F16 => {
                // SAFETY: `self` proves F16C.
                let wide = unsafe { std::arch::x86_64::_mm256_cvtph_ps(bytemuck::cast(*elements)) };
                bytemuck::cast(wide)
            }
            DType::F32 | DType::Bf16 => elements.map(T::to_f32),
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
}
