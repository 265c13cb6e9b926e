//! `atom` and `red`.

use super::Result;
use super::alu::Decoder;
use super::memory::{drop_cache_policy, take_hints, take_order, take_space};
use crate::num::{Bf16, Bf16x2, F16, F16x2, Half, odd_add};
use crate::op::{Atomic, Combine, Op};
use crate::parse::{Space, Type};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Add,
    Min,
    Max,
    Inc,
    Dec,
    And,
    Or,
    Xor,
    Exch,
    Cas,
}

pub(super) fn decode(d: &mut Decoder<'_, '_>) -> Result<Op> {
    if d.take("async") {
        return Err("red.async is not modelled".to_owned());
    }
    let mut order = take_order(d);
    order.strong = true;
    let space = take_space(d);
    let operations = [
        ("add", Operation::Add),
        ("min", Operation::Min),
        ("max", Operation::Max),
        ("inc", Operation::Inc),
        ("dec", Operation::Dec),
        ("and", Operation::And),
        ("or", Operation::Or),
        ("xor", Operation::Xor),
        ("exch", Operation::Exch),
        ("cas", Operation::Cas),
    ];
    let operation = d
        .take_one(&operations)
        .ok_or("this operation is not modelled")?;
    let policy = d.statement.has("L2::cache_hint");
    take_hints(d);
    d.take("noftz");
    let count = d.take_one(&[("v2", 2), ("v4", 4), ("v8", 8)]).unwrap_or(1);
    let ty = d.take_type()?;
    drop_cache_policy(d, policy);
    if !matches!(
        space,
        Space::Global | Space::Generic | Space::Shared | Space::SharedCluster
    ) {
        return Err("atomics in this space are not modelled".to_owned());
    }
    let returns = d.statement.opcode == "atom";
    let first = usize::from(returns);
    d.expect_operands(first + 2 + usize::from(operation == Operation::Cas))?;
    let address = d.address(first)?.0;
    let wide = ty.bytes() == 8;
    let b_names = d.names(first + 1)?;
    if b_names.len() != count {
        return Err(format!(
            "{} registers where {count} are needed",
            b_names.len()
        ));
    }
    let b = b_names
        .iter()
        .map(|n| d.builder.any_source(n, ty, wide))
        .collect::<Result<_>>()?;
    let c = match operation {
        Operation::Cas => Some(d.any_source(first + 2, ty)?),
        _ => None,
    };
    let to = if returns {
        let names = d.names(0)?;
        names
            .iter()
            .map(|n| d.builder.any_target(n))
            .collect::<Result<_>>()?
    } else {
        Vec::new()
    };
    let combine = combine(operation, ty)?;
    Ok(Op::Atomic(Atomic {
        space,
        bytes: ty.bytes(),
        to,
        address,
        b,
        c,
        combine,
        order,
    }))
}

fn half_add<H: Half<Lane = u32>>(old: u64, b: u64, _: u64) -> u64 {
    H::from_lane(old as u32)
        .map2(H::from_lane(b as u32), odd_add)
        .to_lane()
        .into()
}

fn half_extremum<H: Half<Lane = u32>>(old: u64, b: u64, f: fn(f64, f64) -> f64) -> u64 {
    H::from_lane(old as u32)
        .map2(H::from_lane(b as u32), f)
        .to_lane()
        .into()
}

/// The function for an operation on a type; results are cut to the width when they are stored.
fn combine(operation: Operation, ty: Type) -> Result<Combine> {
    use Operation as O;
    use Type as T;
    let f: Combine = match (operation, ty) {
        (O::Add, T::F32) => |old, b, _| {
            (f32::from_bits(old as u32) + f32::from_bits(b as u32))
                .to_bits()
                .into()
        },
        (O::Add, T::F64) => |old, b, _| (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        (O::Add, T::F16) => half_add::<F16>,
        (O::Add, T::F16x2) => half_add::<F16x2>,
        (O::Add, T::Bf16) => half_add::<Bf16>,
        (O::Add, T::Bf16x2) => half_add::<Bf16x2>,
        (O::Add, T::U32 | T::S32 | T::U64 | T::S64) => |old, b, _| old.wrapping_add(b),
        (O::Min, T::S32) => |old, b, _| (old as i32).min(b as i32) as u32 as u64,
        (O::Max, T::S32) => |old, b, _| (old as i32).max(b as i32) as u32 as u64,
        (O::Min, T::S64) => |old, b, _| (old as i64).min(b as i64) as u64,
        (O::Max, T::S64) => |old, b, _| (old as i64).max(b as i64) as u64,
        (O::Min, T::U32) => |old, b, _| old.min(b & 0xffff_ffff),
        (O::Max, T::U32) => |old, b, _| old.max(b & 0xffff_ffff),
        (O::Min, T::U64) => |old, b, _| old.min(b),
        (O::Max, T::U64) => |old, b, _| old.max(b),
        (O::Min, T::F16) => |old, b, _| half_extremum::<F16>(old, b, f64::min),
        (O::Max, T::F16) => |old, b, _| half_extremum::<F16>(old, b, f64::max),
        (O::Min, T::F16x2) => |old, b, _| half_extremum::<F16x2>(old, b, f64::min),
        (O::Max, T::F16x2) => |old, b, _| half_extremum::<F16x2>(old, b, f64::max),
        (O::Min, T::Bf16x2) => |old, b, _| half_extremum::<Bf16x2>(old, b, f64::min),
        (O::Max, T::Bf16x2) => |old, b, _| half_extremum::<Bf16x2>(old, b, f64::max),
        (O::Inc, T::U32) => |old, b, _| if old as u32 >= b as u32 { 0 } else { old + 1 },
        (O::Dec, T::U32) => |old, b, _| {
            if old as u32 == 0 || old as u32 > b as u32 {
                b & 0xffff_ffff
            } else {
                old - 1
            }
        },
        (O::And, T::B32 | T::B64) => |old, b, _| old & b,
        (O::Or, T::B32 | T::B64) => |old, b, _| old | b,
        (O::Xor, T::B32 | T::B64) => |old, b, _| old ^ b,
        (O::Exch, T::B32 | T::B64) => |_, b, _| b,
        (O::Cas, T::B16) => |old, b, c| if old as u16 == b as u16 { c } else { old },
        (O::Cas, T::B32) => |old, b, c| if old as u32 == b as u32 { c } else { old },
        (O::Cas, T::B64) => |old, b, c| if old == b { c } else { old },
        _ => return Err(format!("this operation on {ty:?} is not modelled")),
    };
    Ok(f)
}
