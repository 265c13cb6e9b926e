//! Integer arithmetic.

use super::alu::Decoder;
use super::{Result, alu};
use crate::op::Op;
use crate::parse::Type;
use crate::registers::{LANES, Slot};

/// Bits of a product that an instruction keeps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Low,
    High,
    Wide,
}

const HALVES: [(&str, Half); 3] = [("lo", Half::Low), ("hi", Half::High), ("wide", Half::Wide)];

/// Implements an instruction for every integer type that it allows, by a generic expression.
macro_rules! for_types {
    ($ty:expr, $d:expr, $method:ident, [$($variant:ident => $t:ty),* $(,)?], $f:expr) => {
        match $ty {
            $(Type::$variant => {
                #[allow(clippy::unnecessary_cast)]
                { type T = $t; $d.$method($ty, $f(std::marker::PhantomData::<T>)) }
            })*
            other => Err(format!("{other:?} is not modelled here")),
        }
    };
}

/// `add`, `sub`, `mul`, `mad`, `div`, `rem`, `min`, `max`, `neg`, `abs`, `sad` and dot products.
pub(super) fn arithmetic(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let opcode = d.statement.opcode;
    match opcode {
        "dp4a" => return dot_product(d, 4),
        "dp2a" => return dot_product(d, 2),
        "mul24" | "mad24" => return narrow_product(d),
        _ => {}
    }
    let half = d.take_one(&HALVES);
    let sets_carry = d.take("cc");
    let saturates = d.take("sat");
    let ty = d.take_type()?;
    if saturates && (ty != Type::S32 || half.is_some()) {
        return Err("this form of .sat is not modelled".to_owned());
    }
    if sets_carry || matches!(opcode, "addc" | "subc" | "madc") {
        return with_carry(d, ty, half, sets_carry);
    }
    match opcode {
        "add" if saturates => d.binary(ty, i32::saturating_add),
        "sub" if saturates => d.binary(ty, i32::saturating_sub),
        "mul" => product(
            d,
            ty,
            half.ok_or("mul of integers needs .lo, .hi or .wide")?,
        ),
        "mad" => product_sum(
            d,
            ty,
            half.ok_or("mad of integers needs .lo, .hi or .wide")?,
        ),
        "add" => wrapping(d, ty, |a, b| a.wrapping_add(b)),
        "sub" => wrapping(d, ty, |a, b| a.wrapping_sub(b)),
        "div" | "rem" => quotient(d, ty),
        "min" | "max" => extremum(d, ty),
        "neg" | "abs" => sign(d, ty),
        "sad" => difference(d, ty),
        _ => Err("this form is not modelled".to_owned()),
    }
}

/// Sums and differences: only the low bits matter, whatever the sign.
fn wrapping(d: &mut Decoder<'_, '_>, ty: Type, f: fn(u64, u64) -> u64) -> Result<Op> {
    match (d.statement.opcode, ty) {
        ("add", Type::U32 | Type::S32) => d.binary(ty, u32::wrapping_add),
        ("sub", Type::U32 | Type::S32) => d.binary(ty, u32::wrapping_sub),
        (_, Type::U16 | Type::S16) => {
            d.binary(ty, move |a: u16, b: u16| f(a.into(), b.into()) as u16)
        }
        (_, Type::U64 | Type::S64) => d.binary(ty, f),
        _ => Err(format!("{ty:?} is not modelled here")),
    }
}

fn product(d: &mut Decoder<'_, '_>, ty: Type, half: Half) -> Result<Op> {
    match (ty, half) {
        (Type::U16 | Type::S16, Half::Low) => d.binary(ty, u16::wrapping_mul),
        (Type::U32 | Type::S32, Half::Low) => d.binary(ty, u32::wrapping_mul),
        (Type::U64 | Type::S64, Half::Low) => d.binary(ty, u64::wrapping_mul),
        (Type::U16, Half::High) => d.binary(ty, |a: u16, b: u16| {
            ((u32::from(a) * u32::from(b)) >> 16) as u16
        }),
        (Type::S16, Half::High) => d.binary(ty, |a: i16, b: i16| {
            ((i32::from(a) * i32::from(b)) >> 16) as i16
        }),
        (Type::U32, Half::High) => d.binary(ty, high_u32),
        (Type::S32, Half::High) => d.binary(ty, high_s32),
        (Type::U64, Half::High) => d.binary(ty, high_u64),
        (Type::S64, Half::High) => d.binary(ty, high_s64),
        (Type::U16, Half::Wide) => d.binary(ty, |a: u16, b: u16| u32::from(a) * u32::from(b)),
        (Type::S16, Half::Wide) => d.binary(ty, |a: i16, b: i16| i32::from(a) * i32::from(b)),
        (Type::U32, Half::Wide) => d.binary(ty, |a: u32, b: u32| u64::from(a) * u64::from(b)),
        (Type::S32, Half::Wide) => d.binary(ty, |a: i32, b: i32| i64::from(a) * i64::from(b)),
        _ => Err(format!("{ty:?} is not modelled here")),
    }
}

fn high_u32(a: u32, b: u32) -> u32 {
    ((u64::from(a) * u64::from(b)) >> 32) as u32
}

fn high_s32(a: i32, b: i32) -> i32 {
    ((i64::from(a) * i64::from(b)) >> 32) as i32
}

fn high_u64(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> 64) as u64
}

fn high_s64(a: i64, b: i64) -> i64 {
    ((i128::from(a) * i128::from(b)) >> 64) as i64
}

fn product_sum(d: &mut Decoder<'_, '_>, ty: Type, half: Half) -> Result<Op> {
    match (ty, half) {
        (Type::U16 | Type::S16, Half::Low) => d.ternary(ty, |a: u16, b: u16, c: u16| {
            a.wrapping_mul(b).wrapping_add(c)
        }),
        (Type::U32 | Type::S32, Half::Low) => d.ternary(ty, |a: u32, b: u32, c: u32| {
            a.wrapping_mul(b).wrapping_add(c)
        }),
        (Type::U64 | Type::S64, Half::Low) => d.ternary(ty, |a: u64, b: u64, c: u64| {
            a.wrapping_mul(b).wrapping_add(c)
        }),
        (Type::U32, Half::High) => {
            d.ternary(ty, |a: u32, b: u32, c: u32| high_u32(a, b).wrapping_add(c))
        }
        (Type::S32, Half::High) => {
            d.ternary(ty, |a: i32, b: i32, c: i32| high_s32(a, b).wrapping_add(c))
        }
        (Type::U64, Half::High) => {
            d.ternary(ty, |a: u64, b: u64, c: u64| high_u64(a, b).wrapping_add(c))
        }
        (Type::S64, Half::High) => {
            d.ternary(ty, |a: i64, b: i64, c: i64| high_s64(a, b).wrapping_add(c))
        }
        (Type::U16, Half::Wide) => d.ternary(ty, |a: u16, b: u16, c: u32| {
            (u32::from(a) * u32::from(b)).wrapping_add(c)
        }),
        (Type::S16, Half::Wide) => d.ternary(ty, |a: i16, b: i16, c: i32| {
            (i32::from(a) * i32::from(b)).wrapping_add(c)
        }),
        (Type::U32, Half::Wide) => d.ternary(ty, |a: u32, b: u32, c: u64| {
            (u64::from(a) * u64::from(b)).wrapping_add(c)
        }),
        (Type::S32, Half::Wide) => d.ternary(ty, |a: i32, b: i32, c: i64| {
            (i64::from(a) * i64::from(b)).wrapping_add(c)
        }),
        _ => Err(format!("{ty:?} is not modelled here")),
    }
}

/// `mul24` and `mad24` keep the low 32 bits of a product of 24-bit operands.
fn narrow_product(d: &mut Decoder<'_, '_>) -> Result<Op> {
    if !d.take("lo") {
        return Err("only .lo is modelled".to_owned());
    }
    let ty = d.take_type()?;
    let extend: fn(u32) -> u32 = match ty {
        Type::U32 => |x| x & 0xff_ffff,
        Type::S32 => |x| ((x << 8) as i32 >> 8) as u32,
        _ => return Err(format!("{ty:?} is not modelled here")),
    };
    let times = move |a, b| extend(a).wrapping_mul(extend(b));
    match d.statement.opcode {
        "mul24" => d.binary(ty, times),
        _ => d.ternary(ty, move |a, b, c: u32| times(a, b).wrapping_add(c)),
    }
}

/// `div` and `rem`. Division by zero is undefined in PTX; all bits set is what GPUs return.
fn quotient(d: &mut Decoder<'_, '_>, ty: Type) -> Result<Op> {
    macro_rules! divide {
        ($t:ty, $div:ident, $rem:ident) => {
            match d.statement.opcode {
                "div" => d.binary(ty, |a: $t, b: $t| if b == 0 { !0 } else { a.$div(b) }),
                _ => d.binary(ty, |a: $t, b: $t| if b == 0 { a } else { a.$rem(b) }),
            }
        };
    }
    match ty {
        Type::U16 => divide!(u16, wrapping_div, wrapping_rem),
        Type::S16 => divide!(i16, wrapping_div, wrapping_rem),
        Type::U32 => divide!(u32, wrapping_div, wrapping_rem),
        Type::S32 => divide!(i32, wrapping_div, wrapping_rem),
        Type::U64 => divide!(u64, wrapping_div, wrapping_rem),
        Type::S64 => divide!(i64, wrapping_div, wrapping_rem),
        _ => Err(format!("{ty:?} is not modelled here")),
    }
}

fn extremum(d: &mut Decoder<'_, '_>, ty: Type) -> Result<Op> {
    let relu = d.take("relu");
    if relu && ty != Type::S32 {
        return Err("this form of .relu is not modelled".to_owned());
    }
    let types = ty;
    match (d.statement.opcode, relu) {
        ("min", true) => d.binary(ty, |a: i32, b: i32| a.min(b).max(0)),
        (_, true) => d.binary(ty, |a: i32, b: i32| a.max(b).max(0)),
        ("min", false) => for_types!(
            types, d, binary,
            [U16 => u16, S16 => i16, U32 => u32, S32 => i32, U64 => u64, S64 => i64],
            minimum
        ),
        (_, false) => for_types!(
            types, d, binary,
            [U16 => u16, S16 => i16, U32 => u32, S32 => i32, U64 => u64, S64 => i64],
            maximum
        ),
    }
}

fn minimum<T: Ord>(_: std::marker::PhantomData<T>) -> fn(T, T) -> T {
    std::cmp::min
}

fn maximum<T: Ord>(_: std::marker::PhantomData<T>) -> fn(T, T) -> T {
    std::cmp::max
}

fn sign(d: &mut Decoder<'_, '_>, ty: Type) -> Result<Op> {
    match (d.statement.opcode, ty) {
        ("neg", Type::S16) => d.unary(ty, i16::wrapping_neg),
        ("neg", Type::S32) => d.unary(ty, i32::wrapping_neg),
        ("neg", Type::S64) => d.unary(ty, i64::wrapping_neg),
        ("abs", Type::S16) => d.unary(ty, i16::wrapping_abs),
        ("abs", Type::S32) => d.unary(ty, i32::wrapping_abs),
        ("abs", Type::S64) => d.unary(ty, i64::wrapping_abs),
        _ => Err(format!("{ty:?} is not modelled here")),
    }
}

/// `sad`: `c + |a - b|`.
fn difference(d: &mut Decoder<'_, '_>, ty: Type) -> Result<Op> {
    macro_rules! sad {
        ($t:ty, $u:ty) => {
            d.ternary(ty, |a: $t, b: $t, c: $u| c.wrapping_add(a.abs_diff(b)))
        };
    }
    match ty {
        Type::U16 => sad!(u16, u16),
        Type::S16 => sad!(i16, u16),
        Type::U32 => sad!(u32, u32),
        Type::S32 => sad!(i32, u32),
        Type::U64 => sad!(u64, u64),
        Type::S64 => sad!(i64, u64),
        _ => Err(format!("{ty:?} is not modelled here")),
    }
}

/// Adds with the carry of the lane: `(sum, carry out)`.
fn add_with_carry(a: u64, b: u64, carry: bool, bits: u32) -> (u64, bool) {
    let sum = u128::from(a) + u128::from(b) + u128::from(carry);
    (sum as u64, sum >> bits & 1 == 1)
}

/// `add.cc`, `addc`, `sub.cc`, `subc`, `mad.cc`: a subtraction adds the complement, so that its
/// carry flag holds "no borrow".
fn with_carry(
    d: &mut Decoder<'_, '_>,
    ty: Type,
    half: Option<Half>,
    sets_carry: bool,
) -> Result<Op> {
    let opcode = d.statement.opcode;
    let flag = d.builder.carry();
    let reads_carry = matches!(opcode, "addc" | "subc" | "madc");
    let subtracts = matches!(opcode, "sub" | "subc");
    macro_rules! chain {
        ($lane:ty, $bits:expr, $product:expr) => {{
            let target: Slot<$lane> = d.target(0)?;
            let a: Slot<$lane> = d.source(1, ty)?;
            let b: Slot<$lane> = d.source(2, ty)?;
            let product: Option<fn($lane, $lane) -> $lane> = $product;
            d.expect_operands(if product.is_some() { 4 } else { 3 })?;
            let c: Option<Slot<$lane>> = product.map(|_| d.source(3, ty)).transpose()?;
            Ok(Op::Alu(Box::new(move |registers, mask| {
                let carry_in = match (reads_carry, subtracts) {
                    (true, _) => registers.pred(flag),
                    (false, true) => u32::MAX,
                    (false, false) => 0,
                };
                let mut carry_out = 0;
                let out: [$lane; LANES] = std::array::from_fn(|l| {
                    let (a, b) = (registers.get(a)[l], registers.get(b)[l]);
                    let (a, b) = match (product, c) {
                        (Some(product), Some(c)) => (product(a, b), registers.get(c)[l]),
                        _ => (a, if subtracts { !b } else { b }),
                    };
                    let carry = carry_in >> l & 1 == 1;
                    let (sum, carry) = add_with_carry(a.into(), b.into(), carry, $bits);
                    carry_out |= u32::from(carry) << l;
                    sum as $lane
                });
                registers.set(target, &out, mask);
                if sets_carry {
                    registers.set_pred(flag, carry_out, mask);
                }
            })))
        }};
    }
    let is_product = matches!(opcode, "mad" | "madc");
    match (ty, half) {
        (Type::U32 | Type::S32, None) if !is_product => chain!(u32, 32, None),
        (Type::U64 | Type::S64, None) if !is_product => chain!(u64, 64, None),
        (Type::U32 | Type::S32, Some(Half::Low)) if is_product => {
            chain!(u32, 32, Some(u32::wrapping_mul))
        }
        (Type::U32, Some(Half::High)) if is_product => chain!(u32, 32, Some(high_u32)),
        (Type::U64 | Type::S64, Some(Half::Low)) if is_product => {
            chain!(u64, 64, Some(u64::wrapping_mul))
        }
        (Type::U64, Some(Half::High)) if is_product => chain!(u64, 64, Some(high_u64)),
        _ => Err("this form of carry arithmetic is not modelled".to_owned()),
    }
}

/// `dp4a` (bytes) and `dp2a` (halves of `a` with two bytes of `b`).
fn dot_product(d: &mut Decoder<'_, '_>, terms: u32) -> Result<Op> {
    let high = match terms {
        2 => d
            .take_one(&[("lo", false), ("hi", true)])
            .ok_or("dp2a needs .lo or .hi")?,
        _ => false,
    };
    let (a_type, b_type) = (d.take_type()?, d.take_type()?);
    let signed = |ty| match ty {
        Type::S32 => Ok(true),
        Type::U32 => Ok(false),
        _ => Err(format!("{ty:?} is not modelled here")),
    };
    let (a_signed, b_signed) = (signed(a_type)?, signed(b_type)?);
    let field = |x: u32, index: u32, bits: u32, signed: bool| -> i64 {
        let moved = x << (32 - bits * (index + 1));
        if signed {
            i64::from(moved as i32 >> (32 - bits))
        } else {
            (moved >> (32 - bits)).into()
        }
    };
    d.expect_operands(4)?;
    let target = d.target(0)?;
    let (a, b) = (d.source(1, a_type)?, d.source(2, b_type)?);
    let c = d.source(3, Type::S32)?;
    let f = move |a: u32, b: u32, c: u32| {
        let sum: i64 = (0..terms)
            .map(|i| {
                let b_index = if high { i + 2 } else { i };
                field(a, i, 32 / terms, a_signed) * field(b, b_index, 8, b_signed)
            })
            .sum();
        c.wrapping_add(sum as u32)
    };
    Ok(Op::Alu(alu::ternary(target, a, b, c, f)))
}
