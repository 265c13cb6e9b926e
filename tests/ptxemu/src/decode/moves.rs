//! Moves, packing, and conversions of addresses.

use super::Result;
use super::alu::{Decoder, unary};
use super::compare::test_value;
use crate::exec::address::{self, Window};
use crate::op::{Op, Special};
use crate::parse::Type;
use crate::registers::{AnySlot, LANES, Slot};

pub(super) fn decode(d: &mut Decoder<'_, '_>) -> Result<Op> {
    match d.statement.opcode {
        "mov" => mov(d),
        "cvta" => convert_address(d),
        "isspacep" => is_space(d),
        "mapa" => map_address(d),
        _ => rank_of_address(d),
    }
}

fn mov(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let ty = d.take_type()?;
    d.expect_operands(2)?;
    let (to, from) = (d.operand(0)?.to_owned(), d.operand(1)?.to_owned());
    if ty == Type::Pred {
        let (target, source) = (d.pred_target(0)?, d.guard(1)?);
        return Ok(Op::Alu(Box::new(move |r, mask| {
            let bits = source.bits(r);
            r.set_pred(target, bits, mask);
        })));
    }
    if from.starts_with('{') {
        return pack(d, ty);
    }
    if to.starts_with('{') {
        return unpack(d, ty);
    }
    if ty.bytes() == 8 {
        // 32-bit special registers and addresses of shared variables widen.
        let target: Slot<u64> = d.target(0)?;
        return Ok(Op::Alu(match d.any_source(1, ty)? {
            AnySlot::Wide(source) => unary(target, source, |a: u64| a),
            AnySlot::Narrow(source) => unary(target, source, |a: u32| u64::from(a)),
        }));
    }
    d.unary(ty, |a: u32| a)
}

/// `mov.b64 d, {a, b}`: the first register goes to the low bits.
fn pack(d: &mut Decoder<'_, '_>, ty: Type) -> Result<Op> {
    let names = d.names(1)?;
    let bits = ty.bytes() * 8 / names.len() as u32;
    let parts: Vec<Slot<u32>> = names
        .iter()
        .map(|n| d.builder.source(n, Type::B32))
        .collect::<Result<_>>()?;
    let target = d.any_target(0)?;
    check_parts(ty, bits, target)?;
    Ok(Op::Alu(Box::new(move |r, mask| {
        let mut out = [0u64; LANES];
        for (index, part) in parts.iter().enumerate() {
            let part = r.get(*part);
            for (out, &part) in out.iter_mut().zip(part) {
                let part = u64::from(part) & (u64::MAX >> (64 - bits));
                *out |= part << (index as u32 * bits);
            }
        }
        match target {
            AnySlot::Narrow(slot) => r.set(slot, &out.map(|x| x as u32), mask),
            AnySlot::Wide(slot) => r.set(slot, &out, mask),
        }
    })))
}

/// `mov.b64 {a, b}, d`.
fn unpack(d: &mut Decoder<'_, '_>, ty: Type) -> Result<Op> {
    let parts = d.target_list(0)?;
    let bits = ty.bytes() * 8 / parts.len() as u32;
    let source = d.any_source(1, ty)?;
    check_parts(ty, bits, source)?;
    Ok(Op::Alu(Box::new(move |r, mask| {
        let source: [u64; LANES] = std::array::from_fn(|l| r.wide(source, l));
        for (index, part) in parts.iter().enumerate() {
            let out =
                source.map(|x| (x >> (index as u32 * bits) & (u64::MAX >> (64 - bits))) as u32);
            r.set(*part, &out, mask);
        }
    })))
}

fn check_parts(ty: Type, bits: u32, whole: AnySlot) -> Result<()> {
    let wide = matches!(whole, AnySlot::Wide(_));
    if matches!(bits, 8 | 16 | 32) && wide == (ty.bytes() == 8) {
        Ok(())
    } else {
        Err("registers of these widths are not modelled".to_owned())
    }
}

/// `cvta.space` to generic and `cvta.to.space` back.
fn convert_address(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let to_space = d.take("to");
    let window = take_window(d)?;
    match d.take_type()? {
        Type::U64 if to_space => d.unary(Type::U64, move |a: u64| window.strip(a)),
        Type::U64 => d.unary(Type::U64, move |a: u64| window.to_generic(a)),
        ty => Err(format!("{ty:?} is not modelled here")),
    }
}

fn take_window(d: &mut Decoder<'_, '_>) -> Result<Window> {
    let windows = [
        ("shared::cluster", Window::Shared),
        ("shared::cta", Window::Shared),
        ("shared", Window::Shared),
        ("local", Window::Local),
        ("param", Window::Param),
        ("param::entry", Window::Param),
        ("global", Window::Global),
        ("const", Window::Global),
    ];
    d.take_one(&windows)
        .ok_or_else(|| "no state space, or one that is not modelled".to_owned())
}

fn is_space(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let of_cluster = d.statement.has("shared::cluster");
    if d.statement.has("const") {
        return Err("isspacep.const is not modelled".to_owned());
    }
    let window = take_window(d)?;
    d.expect_operands(2)?;
    let (target, a) = (d.pred_target(0)?, d.source(1, Type::U64)?);
    Ok(test_value(target, a, move |a| {
        let own_block = window != Window::Shared || of_cluster || address::is_own_shared(a);
        Window::of(a) == window && own_block
    }))
}

/// `mapa`: the address of the same variable in the block with the given rank.
fn map_address(d: &mut Decoder<'_, '_>) -> Result<Op> {
    d.take("shared::cluster");
    match d.take_type()? {
        Type::U32 => d.binary(Type::U32, |a: u32, rank: u32| {
            address::of_rank(a.into(), rank) as u32
        }),
        Type::U64 => d.binary(Type::U64, address::of_rank),
        ty => Err(format!("{ty:?} is not modelled here")),
    }
}

fn rank_of_address(d: &mut Decoder<'_, '_>) -> Result<Op> {
    d.take("shared::cluster");
    let own = d.builder.special_register(Special::ClusterCtarank);
    let ty = d.take_type()?;
    d.expect_operands(2)?;
    let target = d.target(0)?;
    let AnySlot::Narrow(own) = own else {
        return Err("rank is 32 bits".to_owned());
    };
    Ok(Op::Alu(match ty {
        Type::U32 => {
            let a = d.source(1, ty)?;
            super::alu::binary(target, a, own, |a: u32, own: u32| {
                address::rank(a.into()).unwrap_or(own)
            })
        }
        Type::U64 => {
            let a = d.source(1, ty)?;
            super::alu::binary(target, a, own, |a: u64, own: u32| {
                address::rank(a).unwrap_or(own)
            })
        }
        _ => return Err(format!("{ty:?} is not modelled here")),
    }))
}
