//! Conversions between number formats, each with a single rounding.

/// Rounding modes of PTX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// To nearest, ties to even: `.rn`, `.rni`.
    Nearest,
    /// To nearest, ties away from zero: `.rna`.
    NearestAway,
    /// Towards zero: `.rz`, `.rzi`.
    Zero,
    /// Towards minus infinity: `.rm`, `.rmi`.
    Down,
    /// Towards plus infinity: `.rp`, `.rpi`.
    Up,
}

/// A binary floating-point format with an implicit leading bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    exponent_bits: u32,
    fraction_bits: u32,
}

impl Format {
    pub(crate) const F16: Self = Self {
        exponent_bits: 5,
        fraction_bits: 10,
    };
    pub(crate) const BF16: Self = Self {
        exponent_bits: 8,
        fraction_bits: 7,
    };
    /// The 19 bits of tf32; in a register they are the high bits of an f32.
    pub(crate) const TF32: Self = Self {
        exponent_bits: 8,
        fraction_bits: 10,
    };
    pub(crate) const F32: Self = Self {
        exponent_bits: 8,
        fraction_bits: 23,
    };
    pub(crate) const F64: Self = Self {
        exponent_bits: 11,
        fraction_bits: 52,
    };

    /// The NaN that PTX instructions return.
    fn nan(self) -> u64 {
        match self {
            Self::F64 => 0x7ff8_0000_0000_0000,
            _ => (1 << (self.exponent_bits + self.fraction_bits)) - 1,
        }
    }

    fn infinity(self) -> u64 {
        ((1 << self.exponent_bits) - 1) << self.fraction_bits
    }
}

/// Whether the part below the last kept bit makes the magnitude go up.
fn rounds_up(mode: Rounding, negative: bool, odd: bool, half: bool, rest: bool) -> bool {
    match mode {
        Rounding::Nearest => half && (rest || odd),
        Rounding::NearestAway => half,
        Rounding::Zero => false,
        Rounding::Down => negative && (half || rest),
        Rounding::Up => !negative && (half || rest),
    }
}

/// Bits in `format` of `±mantissa * 2^exponent`.
fn round_parts(
    negative: bool,
    mantissa: u64,
    exponent: i32,
    format: Format,
    mode: Rounding,
) -> u64 {
    let sign = u64::from(negative) << (format.exponent_bits + format.fraction_bits);
    if mantissa == 0 {
        return sign;
    }
    let bias = (1 << (format.exponent_bits - 1)) - 1;
    let top = 63 - mantissa.leading_zeros() as i32 + exponent;
    // Exponent of the last bit that the format keeps for this magnitude.
    let last = top.max(1 - bias) - format.fraction_bits as i32;
    let shift = last - exponent;
    let kept = if shift <= 0 {
        mantissa << -shift
    } else if shift > 64 {
        u64::from(rounds_up(mode, negative, false, false, true))
    } else {
        let kept = if shift == 64 { 0 } else { mantissa >> shift };
        let half = mantissa >> (shift - 1) & 1 == 1;
        let rest = mantissa & ((1 << (shift - 1)) - 1) != 0;
        kept + u64::from(rounds_up(mode, negative, kept & 1 == 1, half, rest))
    };
    // With the implicit bit added in, a carry out of the fraction moves the exponent by itself.
    let biased = (top + bias).max(1) as u64 - 1;
    let bits = (biased << format.fraction_bits) + kept;
    if bits < format.infinity() {
        return sign | bits;
    }
    let finite = match mode {
        Rounding::Zero => true,
        Rounding::Down => !negative,
        Rounding::Up => negative,
        Rounding::Nearest | Rounding::NearestAway => false,
    };
    sign | (format.infinity() - u64::from(finite))
}

/// Bits in `format` of a float.
pub(crate) fn round_float(x: f64, format: Format, mode: Rounding) -> u64 {
    let bits = x.to_bits();
    if x.is_nan() {
        return format.nan();
    }
    if x.is_infinite() {
        let sign = bits >> 63 << (format.exponent_bits + format.fraction_bits);
        return sign | format.infinity();
    }
    let fraction = bits & ((1 << 52) - 1);
    let biased = (bits >> 52 & 0x7ff) as i32;
    let (mantissa, exponent) = if biased == 0 {
        (fraction, -1074)
    } else {
        (fraction | 1 << 52, biased - 1075)
    };
    round_parts(bits >> 63 == 1, mantissa, exponent, format, mode)
}

/// Bits in `format` of an integer.
pub(crate) fn round_int(x: i128, format: Format, mode: Rounding) -> u64 {
    round_parts(x < 0, x.unsigned_abs() as u64, 0, format, mode)
}

/// The integer nearest to `x` in the given direction, clamped to `[low, high]`; NaN becomes 0.
pub(crate) fn float_to_int(x: f64, mode: Rounding, low: i128, high: i128) -> i128 {
    let rounded = match mode {
        Rounding::Nearest => x.round_ties_even(),
        Rounding::NearestAway => x.round(),
        Rounding::Zero => x.trunc(),
        Rounding::Down => x.floor(),
        Rounding::Up => x.ceil(),
    };
    (rounded as i128).clamp(low, high)
}

/// `a + b` rounded to odd: inexact sums get their last bit set, so that a second rounding to a
/// format at least two bits narrower gives the correctly rounded sum.
#[inline(always)]
pub(crate) fn odd_add(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let b_part = sum - a;
    let error = (a - (sum - b_part)) + (b - b_part);
    // Not so for infinities, whose error is NaN.
    let inexact = error.abs() > 0.0;
    let bits = sum.to_bits();
    if inexact && bits & 1 == 0 {
        let away_from_zero = (error > 0.0) == (sum > 0.0);
        f64::from_bits(if away_from_zero { bits + 1 } else { bits - 1 })
    } else {
        sum
    }
}

/// An f16, exactly.
#[inline(always)]
pub(crate) fn f16_to_f32(h: u16) -> f32 {
    let sign = u32::from(h & 0x8000) << 16;
    let magnitude = u32::from(h & 0x7fff);
    // Rebias by multiplication, which also makes subnormals normal; then restore infinity and NaN.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000);
    let special = if magnitude >= 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled.to_bits() | special | sign)
}

/// To the nearest f16, ties to even.
#[inline(always)]
pub(crate) fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return 0x7fff;
    }
    if magnitude < 0x3880_0000 {
        // Subnormal result: adding 0.5 aligns the last kept bit with the end of the fraction.
        let sum = f32::from_bits(magnitude) + 0.5;
        return sign | (sum.to_bits() - 0.5f32.to_bits()) as u16;
    }
    let rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    let half = (rounded >> 13).wrapping_sub(112 << 10);
    sign | half.min(0x7c00) as u16
}

/// A bf16, exactly.
#[inline(always)]
pub(crate) fn bf16_to_f32(h: u16) -> f32 {
    f32::from_bits(u32::from(h) << 16)
}

/// To the nearest bf16, ties to even.
#[inline(always)]
pub(crate) fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        0x7fff
    } else {
        ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_survives_the_round_trip() {
        for h in 0..=u16::MAX {
            let x = f16_to_f32(h);
            let exponent = i32::from(h >> 10 & 31);
            let fraction = f64::from(h & 0x3ff);
            let sign = if h >> 15 == 1 { -1.0 } else { 1.0 };
            let expected = match exponent {
                0 => sign * fraction * 2f64.powi(-24),
                31 if fraction == 0.0 => sign * f64::INFINITY,
                31 => f64::NAN,
                e => sign * (1024.0 + fraction) * 2f64.powi(e - 25),
            };
            if expected.is_nan() {
                assert!(x.is_nan());
                assert_eq!(f32_to_f16(x), 0x7fff);
            } else {
                assert_eq!(f64::from(x), expected, "{h:#x}");
                assert_eq!(f32_to_f16(x), h);
                assert_eq!(
                    round_float(expected, Format::F16, Rounding::Nearest),
                    u64::from(h)
                );
            }
        }
    }

    #[test]
    fn the_short_ways_agree_with_the_general_one() {
        let mut x = 1u32;
        for _ in 0..200_000 {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            for bits in [x, x & 0xffff_f000, (x & 0x8fff_ffff) | 0x3000_0000] {
                let f = f32::from_bits(bits);
                let nearest = |format| round_float(f.into(), format, Rounding::Nearest) as u16;
                assert_eq!(f32_to_f16(f), nearest(Format::F16), "{bits:#x}");
                assert_eq!(f32_to_bf16(f), nearest(Format::BF16), "{bits:#x}");
                let back = round_float(f.into(), Format::F32, Rounding::Nearest) as u32;
                assert!(f.is_nan() || back == bits, "{bits:#x}");
            }
        }
    }

    #[test]
    fn directed_rounding_brackets_the_value() {
        for x in [
            1.0 + 2f64.powi(-30),
            -1.0 - 2f64.powi(-30),
            2f64.powi(-160),
            -1e300,
        ] {
            let f = |mode| f64::from(f32::from_bits(round_float(x, Format::F32, mode) as u32));
            assert!(f(Rounding::Down) < x && x < f(Rounding::Up), "{x}");
            let truncated = if x > 0.0 {
                f(Rounding::Down)
            } else {
                f(Rounding::Up)
            };
            assert_eq!(f(Rounding::Zero), truncated);
        }
    }

    #[test]
    fn integers_round_once() {
        for x in [
            0i64,
            1,
            -1,
            16_777_217,
            i64::MAX,
            i64::MIN,
            0x7fff_ffbf_ffff_ffff,
        ] {
            let rounded = round_int(x.into(), Format::F32, Rounding::Nearest) as u32;
            assert_eq!(f32::from_bits(rounded), x as f32);
        }
        let rounded = round_int(u64::MAX.into(), Format::F64, Rounding::Nearest);
        assert_eq!(f64::from_bits(rounded), u64::MAX as f64);
        assert_eq!(
            round_int(16_777_217, Format::F32, Rounding::Zero) as u32,
            0x4b80_0000
        );
    }

    #[test]
    fn odd_sums_round_like_a_fused_multiply_add() {
        let mut state = 7u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let bits = (state >> 32) as u32;
            f32::from_bits(bits & 0x8fff_ffff | 0x3000_0000)
        };
        for _ in 0..200_000 {
            let (a, b, c) = (next(), next(), next());
            let fused = odd_add(f64::from(a) * f64::from(b), c.into()) as f32;
            assert_eq!(fused.to_bits(), a.mul_add(b, c).to_bits(), "{a} {b} {c}");
        }
    }
}
