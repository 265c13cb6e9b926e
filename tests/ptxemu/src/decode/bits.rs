//! Logic, shifts and bit fields.

use super::Result;
use super::alu::Decoder;
use crate::op::Op;
use crate::parse::{Type, parse_int};

pub(super) fn decode(d: &mut Decoder<'_, '_>) -> Result<Op> {
    match d.statement.opcode {
        "and" | "or" | "xor" => logic(d),
        "not" => complement(d),
        "cnot" => match d.take_type()? {
            Type::B16 => d.unary(Type::B16, |a: u16| u16::from(a == 0)),
            Type::B32 => d.unary(Type::B32, |a: u32| u32::from(a == 0)),
            Type::B64 => d.unary(Type::B64, |a: u64| u64::from(a == 0)),
            ty => Err(format!("{ty:?} is not modelled here")),
        },
        "lop3" => lop3(d),
        "shl" | "shr" => shift(d),
        "shf" => funnel_shift(d),
        "bfe" | "bfi" | "bfind" | "bmsk" | "szext" => field(d),
        "prmt" => permute(d),
        "brev" => match d.take_type()? {
            Type::B32 => d.unary(Type::B32, u32::reverse_bits),
            Type::B64 => d.unary(Type::B64, u64::reverse_bits),
            ty => Err(format!("{ty:?} is not modelled here")),
        },
        "clz" => match d.take_type()? {
            Type::B32 => d.unary(Type::B32, u32::leading_zeros),
            Type::B64 => d.unary(Type::B64, u64::leading_zeros),
            ty => Err(format!("{ty:?} is not modelled here")),
        },
        _ => match d.take_type()? {
            Type::B32 => d.unary(Type::B32, u32::count_ones),
            Type::B64 => d.unary(Type::B64, u64::count_ones),
            ty => Err(format!("{ty:?} is not modelled here")),
        },
    }
}

fn logic(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let f: fn(u64, u64) -> u64 = match d.statement.opcode {
        "and" => |a, b| a & b,
        "or" => |a, b| a | b,
        _ => |a, b| a ^ b,
    };
    match d.take_type()? {
        Type::Pred => {
            d.expect_operands(3)?;
            let (target, a, b) = (d.pred_target(0)?, d.guard(1)?, d.guard(2)?);
            Ok(Op::Alu(Box::new(move |r, mask| {
                let bits = f(a.bits(r).into(), b.bits(r).into()) as u32;
                r.set_pred(target, bits, mask);
            })))
        }
        Type::B16 => d.binary(Type::B16, move |a: u16, b: u16| {
            f(a.into(), b.into()) as u16
        }),
        Type::B32 => match d.statement.opcode {
            "and" => d.binary(Type::B32, |a: u32, b: u32| a & b),
            "or" => d.binary(Type::B32, |a: u32, b: u32| a | b),
            _ => d.binary(Type::B32, |a: u32, b: u32| a ^ b),
        },
        Type::B64 => d.binary(Type::B64, f),
        ty => Err(format!("{ty:?} is not modelled here")),
    }
}

fn complement(d: &mut Decoder<'_, '_>) -> Result<Op> {
    match d.take_type()? {
        Type::Pred => {
            d.expect_operands(2)?;
            let (target, a) = (d.pred_target(0)?, d.guard(1)?);
            Ok(Op::Alu(Box::new(move |r, mask| {
                let bits = !a.bits(r);
                r.set_pred(target, bits, mask);
            })))
        }
        Type::B16 => d.unary(Type::B16, |a: u16| !a),
        Type::B32 => d.unary(Type::B32, |a: u32| !a),
        Type::B64 => d.unary(Type::B64, |a: u64| !a),
        ty => Err(format!("{ty:?} is not modelled here")),
    }
}

/// `lop3` looks each bit triple up in an 8-entry table.
fn lop3(d: &mut Decoder<'_, '_>) -> Result<Op> {
    if d.take_type()? != Type::B32 {
        return Err("only .b32 is modelled".to_owned());
    }
    let table = d
        .statement
        .operands
        .pop()
        .and_then(parse_int)
        .ok_or("no lookup table")? as u32;
    d.ternary(Type::B32, move |a: u32, b: u32, c: u32| {
        let term = |index: u32| {
            let pick = |x: u32, bit: u32| if index >> bit & 1 == 1 { x } else { !x };
            if table >> index & 1 == 1 {
                pick(a, 2) & pick(b, 1) & pick(c, 0)
            } else {
                0
            }
        };
        (0..8).fold(0, |bits, index| bits | term(index))
    })
}

/// Shift amounts are unsigned and clamp: everything is shifted out.
fn shift(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let left = d.statement.opcode == "shl";
    match d.take_type()? {
        ty @ (Type::B16 | Type::U16) if left => {
            d.binary(ty, |a: u16, by: u32| a.checked_shl(by).unwrap_or(0))
        }
        ty @ (Type::B32 | Type::U32) if left => {
            d.binary(ty, |a: u32, by: u32| a.checked_shl(by).unwrap_or(0))
        }
        ty @ (Type::B64 | Type::U64) if left => {
            d.binary(ty, |a: u64, by: u32| a.checked_shl(by).unwrap_or(0))
        }
        ty @ (Type::B16 | Type::U16) => {
            d.binary(ty, |a: u16, by: u32| a.checked_shr(by).unwrap_or(0))
        }
        ty @ (Type::B32 | Type::U32) => {
            d.binary(ty, |a: u32, by: u32| a.checked_shr(by).unwrap_or(0))
        }
        ty @ (Type::B64 | Type::U64) => {
            d.binary(ty, |a: u64, by: u32| a.checked_shr(by).unwrap_or(0))
        }
        Type::S16 if !left => d.binary(Type::S16, |a: i16, by: u32| a >> by.min(15)),
        Type::S32 if !left => d.binary(Type::S32, |a: i32, by: u32| a >> by.min(31)),
        Type::S64 if !left => d.binary(Type::S64, |a: i64, by: u32| a >> by.min(63)),
        ty => Err(format!("{ty:?} is not modelled here")),
    }
}

fn funnel_shift(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let left = d
        .take_one(&[("l", true), ("r", false)])
        .ok_or("shf needs .l or .r")?;
    let clamps = d
        .take_one(&[("clamp", true), ("wrap", false)])
        .ok_or("no .clamp or .wrap")?;
    let ty = d.take_type()?;
    if ty != Type::B32 {
        return Err("only .b32 is modelled".to_owned());
    }
    d.ternary(ty, move |low: u32, high: u32, by: u32| {
        let by = if clamps { by.min(32) } else { by & 31 };
        let both = u64::from(high) << 32 | u64::from(low);
        if left {
            ((both << by) >> 32) as u32
        } else {
            (both >> by) as u32
        }
    })
}

fn field(d: &mut Decoder<'_, '_>) -> Result<Op> {
    match d.statement.opcode {
        "bfe" => match d.take_type()? {
            Type::U32 => d.ternary(Type::U32, |a: u32, at: u32, len: u32| {
                extract(a.into(), at & 255, len & 255, 32, false) as u32
            }),
            Type::S32 => d.ternary(Type::S32, |a: i32, at: u32, len: u32| {
                extract(a as i64 as u64, at & 255, len & 255, 32, true) as u32
            }),
            ty @ (Type::U64 | Type::S64) => {
                let signed = ty == Type::S64;
                d.expect_operands(4)?;
                let (target, a) = (d.target(0)?, d.source(1, ty)?);
                let (at, len) = (d.source(2, Type::U32)?, d.source(3, Type::U32)?);
                Ok(Op::Alu(super::alu::ternary(
                    target,
                    a,
                    at,
                    len,
                    move |a, at: u32, len: u32| extract(a, at & 255, len & 255, 64, signed),
                )))
            }
            ty => Err(format!("{ty:?} is not modelled here")),
        },
        "bfi" => {
            let ty = d.take_type()?;
            d.expect_operands(5)?;
            let (at, len) = (
                d.source::<u32>(3, Type::U32)?,
                d.source::<u32>(4, Type::U32)?,
            );
            match ty {
                Type::B32 => {
                    let (target, a) = (d.target::<u32>(0)?, d.source::<u32>(1, ty)?);
                    let b = d.source::<u32>(2, ty)?;
                    Ok(Op::Alu(Box::new(move |r, mask| {
                        let out = std::array::from_fn(|l| {
                            let (at, len) = (r.get(at)[l] & 255, r.get(len)[l] & 255);
                            insert(r.get(a)[l].into(), r.get(b)[l].into(), at, len) as u32
                        });
                        r.set(target, &out, mask);
                    })))
                }
                Type::B64 => {
                    let (target, a) = (d.target::<u64>(0)?, d.source::<u64>(1, ty)?);
                    let b = d.source::<u64>(2, ty)?;
                    Ok(Op::Alu(Box::new(move |r, mask| {
                        let out = std::array::from_fn(|l| {
                            let (at, len) = (r.get(at)[l] & 255, r.get(len)[l] & 255);
                            insert(r.get(a)[l], r.get(b)[l], at, len)
                        });
                        r.set(target, &out, mask);
                    })))
                }
                _ => Err(format!("{ty:?} is not modelled here")),
            }
        }
        "bfind" => find_leading(d),
        "bmsk" => {
            let clamps = d
                .take_one(&[("clamp", true), ("wrap", false)])
                .ok_or("no mode")?;
            if d.take_type()? != Type::B32 {
                return Err("only .b32 is modelled".to_owned());
            }
            d.binary(Type::B32, move |at: u32, len: u32| {
                let (at, len) = if clamps {
                    (at.min(32), len.min(32))
                } else {
                    (at & 31, len & 31)
                };
                (((1u64 << len) - 1) << at) as u32
            })
        }
        _ => {
            let clamps = d
                .take_one(&[("clamp", true), ("wrap", false)])
                .ok_or("no mode")?;
            let bits = move |n: u32| if clamps { n.min(32) } else { n & 31 };
            match d.take_type()? {
                Type::U32 => d.binary(Type::U32, move |a: u32, n: u32| {
                    extract(a.into(), 0, bits(n), 32, false) as u32
                }),
                Type::S32 => d.binary(Type::S32, move |a: i32, n: u32| {
                    extract(a as i64 as u64, 0, bits(n), 32, true) as u32
                }),
                ty => Err(format!("{ty:?} is not modelled here")),
            }
        }
    }
}

/// `bfe`: `len` bits from bit `at`; a signed field is extended by its last bit inside the value.
fn extract(a: u64, at: u32, len: u32, bits: u32, signed: bool) -> u64 {
    let last = (at + len).saturating_sub(1).min(bits - 1);
    let sign = signed && len > 0 && a >> last & 1 == 1;
    let value = if at < bits {
        a & (u64::MAX >> (64 - bits))
    } else {
        0
    };
    let value = value.checked_shr(at).unwrap_or(0);
    let kept = 1u64
        .checked_shl(len.min(bits.saturating_sub(at)))
        .map_or(u64::MAX, |b| b - 1);
    if sign {
        value & kept | !kept
    } else {
        value & kept
    }
}

/// `bfi`: `len` low bits of `a` put into `b` at bit `at`.
fn insert(a: u64, b: u64, at: u32, len: u32) -> u64 {
    let field = 1u64.checked_shl(len).map_or(u64::MAX, |x| x - 1);
    let field_at = field.checked_shl(at).unwrap_or(0);
    b & !field_at | a.checked_shl(at).unwrap_or(0) & field_at
}

/// `bfind`: position of the highest bit that differs from the sign, or all bits set.
fn find_leading(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let as_shift = d.take("shiftamt");
    let find = move |x: u64, bits: u32| {
        if x == 0 {
            return u32::MAX;
        }
        let top = 63 - x.leading_zeros();
        if as_shift { bits - 1 - top } else { top }
    };
    match d.take_type()? {
        Type::U32 => d.unary(Type::U32, move |a: u32| find(a.into(), 32)),
        Type::S32 => d.unary(Type::S32, move |a: i32| {
            find((if a < 0 { !a } else { a }) as u64, 32)
        }),
        Type::U64 => d.unary(Type::U64, move |a: u64| find(a, 64)),
        Type::S64 => d.unary(Type::S64, move |a: i64| {
            find((if a < 0 { !a } else { a }) as u64, 64)
        }),
        ty => Err(format!("{ty:?} is not modelled here")),
    }
}

/// `prmt`: each result byte picks one of eight source bytes, or its sign.
fn permute(d: &mut Decoder<'_, '_>) -> Result<Op> {
    if d.take_type()? != Type::B32 {
        return Err("only .b32 is modelled".to_owned());
    }
    type Select = fn(u32, u32) -> u32;
    let modes: [(&str, Select); 6] = [
        ("f4e", |c, i| (c & 3) + i),
        ("b4e", |c, i| (c & 3).wrapping_sub(i) & 7),
        ("rc8", |c, _| c & 3),
        ("ecl", |c, i| (c & 3).max(i)),
        ("ecr", |c, i| (c & 3).min(i)),
        ("rc16", |c, i| (c & 1) * 2 + (i & 1)),
    ];
    let select = d.take_one(&modes).unwrap_or(|c, i| c >> (4 * i) & 15);
    d.ternary(Type::B32, move |a: u32, b: u32, c: u32| {
        let bytes = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
        u32::from_le_bytes(std::array::from_fn(|i| {
            let selector = select(c, i as u32);
            let byte = bytes[(selector & 7) as usize];
            if selector & 8 == 0 {
                byte
            } else {
                (byte as i8 >> 7) as u8
            }
        }))
    })
}
