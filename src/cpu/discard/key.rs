//! Values as whole numbers that order as discard does.

/// A key that orders as discard does: `-0` equals `0`, NaN is larger than everything.
#[inline(always)]
pub(super) fn key(value: f32) -> u32 {
    let bits = (value + 0.0).to_bits();
    let ordered = bits ^ (((bits as i32 >> 31) as u32) | 0x8000_0000);
    if value.is_nan() { NAN_KEY } else { ordered }
}

/// The key of NaN.
pub(super) const NAN_KEY: u32 = u32::MAX;

/// The key that -0 would have, were it less than 0; none has it.
pub(super) const MINUS_ZERO_KEY: u32 = 0x7fff_ffff;

/// The value that has this key, NaN where none has.
pub(super) fn value(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 {
        key ^ 0x8000_0000
    } else {
        !key
    })
}
