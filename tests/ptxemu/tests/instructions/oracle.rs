//! Rounding by searching the list of all values of a format: slow, and plainly right.

use std::sync::OnceLock;

/// A 16-bit float format as the sorted list of its non-negative finite values.
pub struct Format16 {
    values: Vec<f64>,
    exponent_bits: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Nearest,
    Zero,
    Down,
    Up,
}

impl Format16 {
    fn new(exponent_bits: u32) -> Self {
        let fraction_bits = 15 - exponent_bits;
        let bias = (1 << (exponent_bits - 1)) - 1;
        let finite = ((1 << exponent_bits) - 1) << fraction_bits;
        let value = |bits: u32| {
            let exponent = bits >> fraction_bits;
            let fraction =
                f64::from(bits & ((1 << fraction_bits) - 1)) / f64::from(1 << fraction_bits);
            match exponent {
                0 => fraction * 2f64.powi(1 - bias),
                e => (1.0 + fraction) * 2f64.powi(e as i32 - bias),
            }
        };
        Self {
            values: (0..finite).map(value).collect(),
            exponent_bits,
        }
    }

    pub fn f16() -> &'static Self {
        static FORMAT: OnceLock<Format16> = OnceLock::new();
        FORMAT.get_or_init(|| Self::new(5))
    }

    pub fn bf16() -> &'static Self {
        static FORMAT: OnceLock<Format16> = OnceLock::new();
        FORMAT.get_or_init(|| Self::new(8))
    }

    pub fn value(&self, bits: u64) -> f64 {
        let magnitude = (bits & 0x7fff) as usize;
        let sign = if bits >> 15 & 1 == 1 { -1.0 } else { 1.0 };
        match self.values.get(magnitude) {
            Some(value) => sign * value,
            None if magnitude == self.values.len() => sign * f64::INFINITY,
            None => f64::NAN,
        }
    }

    pub fn round(&self, x: f64, direction: Direction) -> u64 {
        if x.is_nan() {
            return 0x7fff;
        }
        let negative = x.is_sign_negative();
        let sign = u64::from(negative) << 15;
        let x = x.abs();
        let infinity = self.values.len();
        if x.is_infinite() {
            return sign | infinity as u64;
        }
        // The largest value that is not above x.
        let below = self.values.partition_point(|&v| v <= x) - 1;
        if self.values[below] == x {
            return sign | below as u64;
        }
        let away = match direction {
            Direction::Zero => false,
            Direction::Down => negative,
            Direction::Up => !negative,
            Direction::Nearest => {
                // The step above the largest finite value is as wide as the one below it.
                let step = if below + 1 < infinity {
                    self.values[below + 1] - self.values[below]
                } else {
                    self.values[below] - self.values[below - 1]
                };
                let rest = x - self.values[below];
                rest > step / 2.0 || rest == step / 2.0 && below % 2 == 1
            }
        };
        sign | (below + usize::from(away)) as u64
    }

    /// Nearest, ties to even.
    pub fn nearest(&self, x: f64) -> u64 {
        self.round(x, Direction::Nearest)
    }

    /// Applies a function to both halves of a pair.
    pub fn pairwise(&self, a: u64, b: u64, c: u64, f: impl Fn(f64, f64, f64) -> f64) -> u64 {
        let half = |shift: u32| {
            let value = |x: u64| self.value(x >> shift & 0xffff);
            self.nearest(f(value(a), value(b), value(c)))
        };
        half(0) | half(16) << 16
    }

    /// The smallest normal value.
    pub fn min_normal(&self) -> f64 {
        2f64.powi(2 - (1 << (self.exponent_bits - 1)))
    }
}

/// An f32, rounded from an f64 in a direction, by stepping to the neighbour where needed.
pub fn f32_towards(x: f64, direction: Direction) -> f32 {
    let nearest = x as f32;
    let (toward_zero, value) = (direction == Direction::Zero, f64::from(nearest));
    if x.is_nan() || value == x {
        return nearest;
    }
    let down = direction == Direction::Down || toward_zero && x > 0.0;
    let up = direction == Direction::Up || toward_zero && x < 0.0;
    if down && value > x {
        nearest.next_down()
    } else if up && value < x {
        nearest.next_up()
    } else {
        nearest
    }
}

/// A subnormal f32 becomes zero.
pub fn flush(x: f32) -> f32 {
    if x != 0.0 && x.abs() < f32::MIN_POSITIVE {
        0f32.copysign(x)
    } else {
        x
    }
}
