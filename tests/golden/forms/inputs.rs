//! Input words: edge cases first, then random ones, the same on every machine.

/// What the input words are.
#[derive(Clone, Copy, Debug)]
pub enum Input {
    /// Edge cases of 32-bit integers, then random words.
    Words,
    /// Edge cases of f32 (signed zeros, subnormals, infinities, NaN, halfway cases), then random bit patterns.
    F32,
    /// Random f32 of magnitude 2^-8 to 2^8.
    F32Moderate,
    /// Pairs of f16: edge cases, then random bit patterns.
    F16x2,
    /// Pairs of f16 in [-1, 1].
    F16x2Unit,
    /// Pairs of bf16 in [-1, 1].
    Bf16x2Unit,
    /// f32 in [-1, 1], not rounded to tf32.
    F32Unit,
    /// 0 to 31.
    Lane,
    /// 0 to 40: shift counts, also beyond the word.
    Shift,
}

const WORD_EDGES: [u32; 8] = [
    0,
    1,
    2,
    31,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fffe,
    0xffff_ffff,
];
const F32_EDGES: [u32; 14] = [
    0x0000_0000, // 0
    0x8000_0000, // -0
    0x0000_0001, // smallest subnormal
    0x807f_ffff, // largest subnormal, negative
    0x3f80_0000, // 1
    0xbf00_0000, // -0.5
    0x7f80_0000, // infinity
    0xff80_0000, // -infinity
    0x7fc0_0000, // NaN
    0x477f_f000, // 65520: halfway to the f16 overflow
    0x3f80_1000, // halfway between two f16
    0x3f80_8000, // halfway between two bf16
    0x3380_0000, // 2^-24: smallest f16 subnormal
    0x4f00_0000, // 2^31
];
const F16_EDGES: [u16; 10] = [
    0x0000, 0x8000, 0x0001, 0x83ff, 0x3c00, 0xbc00, 0x7bff, 0x7c00, 0xfc00, 0x7e00,
];

impl Input {
    pub fn word(self, random: &mut SplitMix, which: usize, lane: usize) -> u32 {
        // Operands take the edge cases in different orders, so that different pairs meet.
        let edge = (lane + 3 * which) % 16;
        match self {
            Input::Words => WORD_EDGES
                .get(edge)
                .copied()
                .unwrap_or_else(|| random.word()),
            Input::F32 => F32_EDGES
                .get(edge)
                .copied()
                .unwrap_or_else(|| random.word()),
            Input::F16x2 => {
                let low = F16_EDGES
                    .get(edge)
                    .copied()
                    .unwrap_or_else(|| random.word() as u16);
                let high = F16_EDGES
                    .get(15 - edge)
                    .copied()
                    .unwrap_or_else(|| random.word() as u16);
                u32::from(low) | u32::from(high) << 16
            }
            Input::F32Moderate => {
                let exponent = 127 - 8 + random.word() % 17;
                (random.word() & 0x807f_ffff) | exponent << 23
            }
            Input::F32Unit => random.unit().to_bits(),
            Input::F16x2Unit => {
                let pair = [random.unit(), random.unit()].map(|v| half::f16::from_f32(v).to_bits());
                u32::from(pair[0]) | u32::from(pair[1]) << 16
            }
            Input::Bf16x2Unit => {
                let pair =
                    [random.unit(), random.unit()].map(|v| half::bf16::from_f32(v).to_bits());
                u32::from(pair[0]) | u32::from(pair[1]) << 16
            }
            Input::Lane => random.word() % 32,
            Input::Shift => random.word() % 41,
        }
    }
}

/// Sebastiano Vigna's splitmix64: seeded, and the same everywhere.
pub struct SplitMix(pub u64);

impl SplitMix {
    pub fn word(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 32) as u32
    }

    pub fn unit(&mut self) -> f32 {
        self.word() as f32 / u32::MAX as f32 * 2.0 - 1.0
    }
}
