//! `cvt`, in all directions.

use super::Result;
use super::alu::{Decoder, binary};
use crate::num::{
    Format, Rounding, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16, float_to_int, flush,
    round_float, round_int, saturate,
};
use crate::op::Op;
use crate::parse::Type;
use crate::registers::{AnySlot, LANES};

const ROUNDINGS: [(&str, (Rounding, bool)); 9] = [
    ("rn", (Rounding::Nearest, false)),
    ("rz", (Rounding::Zero, false)),
    ("rm", (Rounding::Down, false)),
    ("rp", (Rounding::Up, false)),
    ("rna", (Rounding::NearestAway, false)),
    ("rni", (Rounding::Nearest, true)),
    ("rzi", (Rounding::Zero, true)),
    ("rmi", (Rounding::Down, true)),
    ("rpi", (Rounding::Up, true)),
];

#[derive(Clone, Copy)]
struct Conversion {
    to: Type,
    from: Type,
    rounding: Option<Rounding>,
    /// Round to an integer, although the result may be a float.
    to_integer: bool,
    flushes: bool,
    saturates: bool,
    relu: bool,
    /// `.satfinite`: overflow gives the largest finite value.
    finite: bool,
}

pub(super) fn decode(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let rounding = d.take_one(&ROUNDINGS);
    let flushes = d.take("ftz");
    let saturates = d.take("sat");
    let relu = d.take("relu");
    let finite = d.take("satfinite");
    let (to, from) = (d.take_type()?, d.take_type()?);
    let conversion = Conversion {
        to,
        from,
        rounding: rounding.map(|r| r.0),
        to_integer: rounding.is_some_and(|r| r.1),
        flushes,
        saturates,
        relu,
        finite,
    };
    if matches!(to, Type::F16x2 | Type::Bf16x2) {
        return packed(d, conversion);
    }
    d.expect_operands(2)?;
    let narrows = to.is_float() && from.is_float() && to.bytes() < from.bytes();
    let int_to_float = to.is_float() && !from.is_float();
    let float_to_int = !to.is_float() && from.is_float();
    if (narrows || int_to_float || float_to_int || to == Type::Tf32) && rounding.is_none() {
        return Err("this conversion needs a rounding mode".to_owned());
    }
    if relu && !to.is_float() {
        return Err(".relu of an integer is not modelled".to_owned());
    }
    match (to, from) {
        (Type::F32, Type::F16) if !saturates && !conversion.to_integer => {
            return d.unary(from, |a: u16| f16_to_f32(a));
        }
        (Type::F16, Type::F32) if conversion.is_plain_nearest() => {
            return d.unary(from, |a: f32| f32_to_f16(a));
        }
        (Type::Bf16, Type::F32) if conversion.is_plain_nearest() => {
            return d.unary(from, |a: f32| f32_to_bf16(a));
        }
        _ => {}
    }
    let target = d.any_target(0)?;
    let source = d.any_source(1, from)?;
    Ok(Op::Alu(Box::new(move |r, mask| {
        let out: [u64; LANES] = std::array::from_fn(|l| conversion.apply(r.wide(source, l)));
        match target {
            AnySlot::Narrow(slot) => r.set(slot, &out.map(|x| x as u32), mask),
            AnySlot::Wide(slot) => r.set(slot, &out, mask),
        }
    })))
}

impl Conversion {
    fn is_plain_nearest(self) -> bool {
        self.rounding == Some(Rounding::Nearest)
            && !(self.flushes || self.saturates || self.relu || self.finite || self.to_integer)
    }

    /// Converts one lane. Integer results are extended to 64 bits by their own sign, which fills
    /// registers that are wider than the type.
    fn apply(self, bits: u64) -> u64 {
        if self.from.is_float() {
            let x = self.float_operand(bits);
            if self.to.is_float() {
                self.float_result(x)
            } else {
                self.integer_from_float(x)
            }
        } else {
            let x = integer_operand(self.from, bits);
            if !self.to.is_float() {
                let (low, high) = range(self.to);
                let x = if self.saturates {
                    x.clamp(low, high)
                } else {
                    x
                };
                return extend(self.to, x);
            }
            if self.saturates {
                return self.float_result(x as f64);
            }
            let mode = self.rounding.unwrap_or(Rounding::Nearest);
            place(self.to, round_int(x, format(self.to), mode))
        }
    }

    fn float_operand(self, bits: u64) -> f64 {
        match self.from {
            Type::F16 => f16_to_f32(bits as u16).into(),
            Type::Bf16 => bf16_to_f32(bits as u16).into(),
            Type::F64 => f64::from_bits(bits),
            _ => {
                let x = f32::from_bits(bits as u32);
                f64::from(if self.flushes { flush(x) } else { x })
            }
        }
    }

    fn float_result(self, x: f64) -> u64 {
        let mode = self.rounding.unwrap_or(Rounding::Nearest);
        let x = match (self.to_integer, mode) {
            (false, _) => x,
            (true, Rounding::Zero) => x.trunc(),
            (true, Rounding::Down) => x.floor(),
            (true, Rounding::Up) => x.ceil(),
            (true, _) => x.round_ties_even(),
        };
        let x = if self.saturates { saturate(x) } else { x };
        let x = if self.relu && x <= 0.0 { 0.0 } else { x };
        let format = format(self.to);
        let mut bits = round_float(x, format, mode);
        if self.finite && bits == round_float(f64::INFINITY.copysign(x), format, mode) {
            bits = round_float(f64::MAX.copysign(x), format, Rounding::Zero);
        }
        if self.flushes && self.to == Type::F32 {
            bits = flush(f32::from_bits(bits as u32)).to_bits().into();
        }
        place(self.to, bits)
    }

    fn integer_from_float(self, x: f64) -> u64 {
        let (low, high) = range(self.to);
        let mode = self.rounding.unwrap_or(Rounding::Zero);
        extend(self.to, float_to_int(x, mode, low, high))
    }
}

fn format(ty: Type) -> Format {
    match ty {
        Type::F16 | Type::F16x2 => Format::F16,
        Type::Bf16 | Type::Bf16x2 => Format::BF16,
        Type::Tf32 => Format::TF32,
        Type::F64 => Format::F64,
        _ => Format::F32,
    }
}

/// Puts the bits of a format where a register of the type holds them.
fn place(ty: Type, bits: u64) -> u64 {
    if ty == Type::Tf32 { bits << 13 } else { bits }
}

fn range(ty: Type) -> (i128, i128) {
    let bits = ty.bytes() * 8;
    if ty.is_signed() {
        (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
    } else {
        (0, (1i128 << bits) - 1)
    }
}

fn integer_operand(ty: Type, bits: u64) -> i128 {
    let extended = extend(ty, bits.into());
    if ty.is_signed() {
        (extended as i64).into()
    } else {
        extended.into()
    }
}

/// The low bits of a type, extended to 64 by its signedness.
fn extend(ty: Type, x: i128) -> u64 {
    match ty.bytes() {
        1 if ty.is_signed() => x as i8 as i64 as u64,
        2 if ty.is_signed() => x as i16 as i64 as u64,
        4 if ty.is_signed() => x as i32 as i64 as u64,
        1 => u64::from(x as u8),
        2 => u64::from(x as u16),
        4 => u64::from(x as u32),
        _ => x as u64,
    }
}

/// `cvt.rn.f16x2.f32 d, a, b`: `a` goes to the high half, `b` to the low one.
fn packed(d: &mut Decoder<'_, '_>, conversion: Conversion) -> Result<Op> {
    if conversion.from != Type::F32 || conversion.rounding.is_none() || conversion.saturates {
        return Err("this packed conversion is not modelled".to_owned());
    }
    d.expect_operands(3)?;
    let (target, a) = (d.target(0)?, d.source(1, Type::F32)?);
    let b = d.source(2, Type::F32)?;
    let pack = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
    Ok(Op::Alu(
        match (conversion.is_plain_nearest(), conversion.to) {
            (true, Type::F16x2) => {
                binary(target, a, b, move |a, b| pack(f32_to_f16(b), f32_to_f16(a)))
            }
            (true, _) => binary(target, a, b, move |a, b| {
                pack(f32_to_bf16(b), f32_to_bf16(a))
            }),
            _ => binary(target, a, b, move |a: f32, b: f32| {
                let one = |x: f32| conversion.float_result(x.into()) as u16;
                pack(one(b), one(a))
            }),
        },
    ))
}
