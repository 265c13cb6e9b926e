//! AVX2 and AVX-512.
//!
//! The intrinsics are safe to call because the tokens [`Avx2`] and [`Avx512`] prove that the machine has them; they
//! become single instructions inside `run`, which is compiled with their features.

use std::arch::x86_64::*;

use crate::cpu::simd::{InnerLoop, Lanes};
use crate::dtype::{DType, Element};

/// Proof that this machine has AVX2, FMA and F16C: only detection makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

/// Proof that this machine has AVX-512 F, BW, DQ and VL, and what [`Avx2`] proves: only detection makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512(Avx2);

impl Avx2 {
    pub(crate) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("popcnt");
        found.then_some(Avx2(()))
    }

    pub(crate) fn run<I: InnerLoop>(self, inner_loop: I) -> I::Output {
        #[target_feature(enable = "avx2,fma,f16c,popcnt")]
        fn run<I: InnerLoop>(inner_loop: I, lanes: Avx2) -> I::Output {
            inner_loop.run(lanes)
        }
        // SAFETY: `self` proves that the machine has these features.
        unsafe { run(inner_loop, self) }
    }
}

impl Avx512 {
    pub(crate) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        Avx2::detect().filter(|_| found).map(Avx512)
    }

    pub(crate) fn narrow(self) -> Avx2 {
        self.0
    }

    pub(crate) fn run<I: InnerLoop>(self, inner_loop: I) -> I::Output {
        #[target_feature(enable = "avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
        fn run<I: InnerLoop>(inner_loop: I, lanes: Avx512) -> I::Output {
            inner_loop.run(lanes)
        }
        // SAFETY: `self` proves that the machine has these features.
        unsafe { run(inner_loop, self) }
    }
}

/// The bits that are set in each byte, from the lowest on, and zeros.
static SET_BITS: [[u8; 8]; 256] = {
    let mut bits = [[0; 8]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut bit, mut at) = (0, 0);
        while bit < 8 {
            if byte >> bit & 1 == 1 {
                bits[byte][at] = bit as u8;
                at += 1;
            }
            bit += 1;
        }
        byte += 1;
    }
    bits
};

/// Asks for the cache line of `address`.
#[inline(always)]
pub(super) fn prefetch(address: *const u8) {
    // SAFETY: a prefetch never faults, whatever the address; SSE, of every x86-64, has the instruction.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
}

/// Throws `memory` out of all caches.
pub(super) fn leave_caches(memory: &[f32]) {
    let line_floats = 64 / size_of::<f32>();
    for float in memory.iter().step_by(line_floats) {
        // SAFETY: it is borrowed; SSE2, of every x86-64, has the instruction.
        unsafe { _mm_clflush(std::ptr::from_ref(float).cast()) }
    }
    // SAFETY: as above.
    unsafe { _mm_mfence() }
}

impl Lanes for Avx2 {
    type Vector = __m256;
    const LANES: usize = 8;

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn read<T: Element>(self, from: *const T) -> __m256 {
        // SAFETY: as the caller vouches; T's bits are those of its tag's type; `self` proves AVX2 and F16C.
        unsafe {
            match T::DTYPE {
                DType::F32 => _mm256_loadu_ps(from.cast()),
                DType::F16 => _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                DType::Bf16 => {
                    let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
                }
            }
        }
    }

    #[inline(always)]
    fn store(self, vector: __m256, to: &mut [f32]) {
        // SAFETY: eight elements are borrowed; `self` proves AVX.
        unsafe { _mm256_storeu_ps(to[..8].as_mut_ptr(), vector) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: `self` proves FMA.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, kept: __m256, value: __m256) -> __m256 {
        // SAFETY: `self` proves AVX.
        unsafe {
            // `kept` where they are equal or one is NaN.
            let larger = _mm256_max_ps(value, kept);
            _mm256_blendv_ps(larger, value, _mm256_cmp_ps::<_CMP_UNORD_Q>(value, value))
        }
    }

    #[inline(always)]
    fn min(self, kept: __m256, value: __m256) -> __m256 {
        // SAFETY: `self` proves AVX.
        unsafe {
            let smaller = _mm256_min_ps(value, kept);
            _mm256_blendv_ps(smaller, value, _mm256_cmp_ps::<_CMP_UNORD_Q>(value, value))
        }
    }

    #[inline(always)]
    fn at_least(self, least: __m256, value: __m256) -> __m256 {
        // SAFETY: `self` proves AVX. The second where either is NaN.
        unsafe { _mm256_max_ps(least, value) }
    }

    #[inline(always)]
    fn times_power_of_two(self, value: __m256, power: __m256) -> __m256 {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let most = _mm256_min_ps(power, _mm256_set1_ps(128.0));
            let power = _mm256_max_ps(most, _mm256_set1_ps(-127.0));
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(127));
            let factor = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent));
            _mm256_mul_ps(value, factor)
        }
    }

    #[inline(always)]
    fn sum(self, vector: __m256) -> f32 {
        // SAFETY: `self` proves AVX.
        unsafe {
            let (low, high) = (
                _mm256_castps256_ps128(vector),
                _mm256_extractf128_ps::<1>(vector),
            );
            let four = _mm_add_ps(low, high);
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    fn four_sums(self, [a, b, c, d]: [__m256; 4]) -> [f32; 4] {
        let mut sums = [0.0; 4];
        // SAFETY: `self` proves AVX; there are four sums.
        unsafe {
            // Per 128 bits: two partial sums of a and two of b, then one of each vector.
            let ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            let (low, high) = (
                _mm256_shuffle_ps::<0b01_00_01_00>(ab, cd),
                _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd),
            );
            let two = _mm256_add_ps(low, high);
            let (low, high) = (_mm256_castps256_ps128(two), _mm256_extractf128_ps::<1>(two));
            _mm_storeu_ps(sums.as_mut_ptr(), _mm_add_ps(low, high));
        }
        sums
    }

    #[inline(always)]
    fn at_most(self, a: __m256, b: __m256) -> u32 {
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LE_OQ>(a, b)) as u32 }
    }

    #[inline(always)]
    fn zero_at_most(self, a: __m256, most: __m256) -> __m256 {
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LE_OQ>(a, most), a) }
    }

    #[inline(always)]
    fn join(self, count: usize, first: __m256, rest: __m256) -> __m256 {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let is_first = _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), lane);
            _mm256_blendv_ps(rest, first, _mm256_castsi256_ps(is_first))
        }
    }

    #[inline(always)]
    fn compress(self, vector: __m256, mask: u32, to: &mut [f32]) {
        let lanes = &SET_BITS[mask as usize & 0xff];
        // SAFETY: `self` proves AVX2; eight bytes are borrowed.
        let packed = unsafe {
            let lanes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(lanes.as_ptr().cast()));
            _mm256_permutevar8x32_ps(vector, lanes)
        };
        self.store(packed, to);
    }
}

impl Lanes for Avx512 {
    type Vector = __m512;
    const LANES: usize = 16;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn read<T: Element>(self, from: *const T) -> __m512 {
        // SAFETY: as the caller vouches; T's bits are those of its tag's type; `self` proves AVX-512.
        unsafe {
            match T::DTYPE {
                DType::F32 => _mm512_loadu_ps(from.cast()),
                DType::F16 => _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())),
                DType::Bf16 => {
                    let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
                }
            }
        }
    }

    #[inline(always)]
    fn store(self, vector: __m512, to: &mut [f32]) {
        // SAFETY: sixteen elements are borrowed; `self` proves AVX-512.
        unsafe { _mm512_storeu_ps(to[..16].as_mut_ptr(), vector) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, kept: __m512, value: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe {
            // `kept` where they are equal or one is NaN.
            let larger = _mm512_max_ps(value, kept);
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(value, value);
            _mm512_mask_mov_ps(larger, is_nan, value)
        }
    }

    #[inline(always)]
    fn min(self, kept: __m512, value: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let smaller = _mm512_min_ps(value, kept);
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(value, value);
            _mm512_mask_mov_ps(smaller, is_nan, value)
        }
    }

    #[inline(always)]
    fn at_least(self, least: __m512, value: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512. The second where either is NaN.
        unsafe { _mm512_max_ps(least, value) }
    }

    #[inline(always)]
    fn times_power_of_two(self, value: __m512, power: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_scalef_ps(value, power) }
    }

    #[inline(always)]
    fn sum(self, vector: __m512) -> f32 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_reduce_add_ps(vector) }
    }

    #[inline(always)]
    fn four_sums(self, [a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        let mut sums = [0.0; 4];
        // SAFETY: `self` proves AVX-512; there are four sums.
        unsafe {
            // Per 128 bits: two partial sums of a and two of b, then one of each vector.
            let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            let (low, high) = (
                _mm512_shuffle_ps::<0b01_00_01_00>(ab, cd),
                _mm512_shuffle_ps::<0b11_10_11_10>(ab, cd),
            );
            let four = _mm512_add_ps(low, high);
            let (low, high) = (
                _mm512_castps512_ps256(four),
                _mm512_extractf32x8_ps::<1>(four),
            );
            let two = _mm256_add_ps(low, high);
            let (low, high) = (_mm256_castps256_ps128(two), _mm256_extractf128_ps::<1>(two));
            _mm_storeu_ps(sums.as_mut_ptr(), _mm_add_ps(low, high));
        }
        sums
    }

    #[inline(always)]
    fn at_most(self, a: __m512, b: __m512) -> u32 {
        // SAFETY: `self` proves AVX-512.
        unsafe { u32::from(_mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b)) }
    }

    #[inline(always)]
    fn zero_at_most(self, a: __m512, most: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_maskz_mov_ps(!_mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, most), a) }
    }

    #[inline(always)]
    fn join(self, count: usize, first: __m512, rest: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_mask_mov_ps(rest, ((1_u32 << count) - 1) as u16, first) }
    }

    #[inline(always)]
    fn compress(self, vector: __m512, mask: u32, to: &mut [f32]) {
        // SAFETY: `self` proves AVX-512.
        let packed = unsafe { _mm512_maskz_compress_ps(mask as u16, vector) };
        self.store(packed, to);
    }
}
