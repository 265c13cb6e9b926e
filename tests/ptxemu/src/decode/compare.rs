//! Comparisons and selections.

use std::cmp::Ordering;

use super::Result;
use super::alu::{Decoder, binary, compare_lanes, ternary};
use crate::num::{Bf16, F16, Value, flush};
use crate::op::{Guard, Op};
use crate::parse::Type;
use crate::registers::{LANES, PredSlot, Registers, Slot};

/// One bit per lane.
type Predicate = Box<dyn Fn(&Registers) -> u32 + Send + Sync>;

/// The outcome of a comparison: what each ordering gives, and what NaN gives.
#[derive(Clone, Copy)]
struct Test {
    less: bool,
    equal: bool,
    greater: bool,
    unordered: bool,
}

impl Test {
    fn holds(self, ordering: Option<Ordering>) -> bool {
        match ordering {
            Some(Ordering::Less) => self.less,
            Some(Ordering::Equal) => self.equal,
            Some(Ordering::Greater) => self.greater,
            None => self.unordered,
        }
    }
}

/// Comparison operators; the last column says whether they exist for integers.
const TESTS: [(&str, (Test, bool)); 18] = {
    const fn test(less: bool, equal: bool, greater: bool, unordered: bool) -> Test {
        Test {
            less,
            equal,
            greater,
            unordered,
        }
    }
    const F: bool = false;
    const T: bool = true;
    [
        ("eq", (test(F, T, F, F), T)),
        ("ne", (test(T, F, T, F), T)),
        ("lt", (test(T, F, F, F), T)),
        ("le", (test(T, T, F, F), T)),
        ("gt", (test(F, F, T, F), T)),
        ("ge", (test(F, T, T, F), T)),
        ("lo", (test(T, F, F, F), T)),
        ("ls", (test(T, T, F, F), T)),
        ("hi", (test(F, F, T, F), T)),
        ("hs", (test(F, T, T, F), T)),
        ("equ", (test(F, T, F, T), F)),
        ("neu", (test(T, F, T, T), F)),
        ("ltu", (test(T, F, F, T), F)),
        ("leu", (test(T, T, F, T), F)),
        ("gtu", (test(F, F, T, T), F)),
        ("geu", (test(F, T, T, T), F)),
        ("num", (test(T, T, T, F), F)),
        ("nan", (test(F, F, F, T), F)),
    ]
};

#[derive(Clone, Copy)]
enum Combine {
    And,
    Or,
    Xor,
}

impl Combine {
    fn apply(self, a: u32, b: u32) -> u32 {
        match self {
            Self::And => a & b,
            Self::Or => a | b,
            Self::Xor => a ^ b,
        }
    }
}

pub(super) fn decode(d: &mut Decoder<'_, '_>) -> Result<Op> {
    match d.statement.opcode {
        "setp" => set_predicate(d),
        "set" => set_value(d),
        "selp" => select(d),
        _ => select_by_sign(d),
    }
}

/// The comparison of operands 1 and 2, with the modifiers before the type already taken.
fn comparison(d: &mut Decoder<'_, '_>, test: Test, integer: bool, ty: Type) -> Result<Predicate> {
    let flushes = d.take("ftz");
    fn compare<T: Value>(
        d: &mut Decoder<'_, '_>,
        ty: Type,
        f: impl Fn(T, T) -> bool + Send + Sync + 'static,
    ) -> Result<Predicate> {
        let (a, b) = (d.source::<T::Lane>(1, ty)?, d.source::<T::Lane>(2, ty)?);
        Ok(Box::new(move |r| compare_lanes(r.get(a), r.get(b), &f)))
    }
    macro_rules! ordered {
        ($t:ty) => {
            compare(d, ty, move |a: $t, b: $t| test.holds(a.partial_cmp(&b)))
        };
    }
    match ty {
        Type::F32 if flushes => compare(d, ty, move |a, b| {
            test.holds(flush(a).partial_cmp(&flush(b)))
        }),
        Type::F32 => ordered!(f32),
        Type::F64 => ordered!(f64),
        Type::F16 => compare(d, ty, move |a: F16, b: F16| {
            test.holds(a.get().partial_cmp(&b.get()))
        }),
        Type::Bf16 => compare(d, ty, move |a: Bf16, b: Bf16| {
            test.holds(a.get().partial_cmp(&b.get()))
        }),
        _ if !integer || flushes => Err("this comparison is for floats only".to_owned()),
        Type::B16 | Type::U16 => ordered!(u16),
        Type::S16 => ordered!(i16),
        Type::B32 | Type::U32 => ordered!(u32),
        Type::S32 => ordered!(i32),
        Type::B64 | Type::U64 => ordered!(u64),
        Type::S64 => ordered!(i64),
        _ => Err(format!("{ty:?} is not modelled here")),
    }
}

/// A test, whether it exists for integers, and what its outcome is combined with.
type Comparison = (Test, bool, Option<(Combine, Guard)>);

/// Takes the test and the combining operator, with its predicate operand.
fn test_and_combine(d: &mut Decoder<'_, '_>) -> Result<Comparison> {
    let (test, integer) = d
        .take_one(&TESTS)
        .ok_or("this comparison is not modelled")?;
    let combine = d.take_one(&[
        ("and", Combine::And),
        ("or", Combine::Or),
        ("xor", Combine::Xor),
    ]);
    let combine = match combine {
        Some(combine) => {
            d.expect_operands(4)?;
            Some((combine, d.guard(3)?))
        }
        None => {
            d.expect_operands(3)?;
            None
        }
    };
    Ok((test, integer, combine))
}

fn set_predicate(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let (test, integer, combine) = test_and_combine(d)?;
    let ty = d.take_type()?;
    let targets: Vec<String> = d
        .operand(0)?
        .split('|')
        .map(|t| t.trim().to_owned())
        .collect();
    let targets: Vec<PredSlot> = targets
        .iter()
        .map(|t| d.builder.pred_target(t))
        .collect::<Result<_>>()?;
    let predicate = comparison(d, test, integer, ty)?;
    let (p, q) = (targets[0], targets.get(1).copied());
    Ok(Op::Alu(Box::new(move |r, mask| {
        let bits = predicate(r);
        let (yes, no) = match combine {
            Some((combine, guard)) => {
                let with = guard.bits(r);
                (combine.apply(bits, with), combine.apply(!bits, with))
            }
            None => (bits, !bits),
        };
        r.set_pred(p, yes, mask);
        if let Some(q) = q {
            r.set_pred(q, no, mask);
        }
    })))
}

/// `set` gives all bits, or 1.0 for a float result.
fn set_value(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let (test, integer, combine) = test_and_combine(d)?;
    let to = d.take_type()?;
    let ty = d.take_type()?;
    let predicate = comparison(d, test, integer, ty)?;
    let yes = match to {
        Type::U32 | Type::S32 => u32::MAX,
        Type::F32 => 1f32.to_bits(),
        _ => return Err(format!("a result of type {to:?} is not modelled")),
    };
    let target: Slot<u32> = d.target(0)?;
    Ok(Op::Alu(Box::new(move |r, mask| {
        let bits = predicate(r);
        let bits = combine.map_or(bits, |(combine, guard)| combine.apply(bits, guard.bits(r)));
        let out: [u32; LANES] = std::array::from_fn(|l| if bits >> l & 1 == 1 { yes } else { 0 });
        r.set(target, &out, mask);
    })))
}

fn select(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let ty = d.take_type()?;
    d.expect_operands(4)?;
    let p = d.guard(3)?;
    macro_rules! pick {
        ($lane:ty) => {{
            let target: Slot<$lane> = d.target(0)?;
            let (a, b) = (d.source::<$lane>(1, ty)?, d.source::<$lane>(2, ty)?);
            Ok(Op::Alu(Box::new(move |r, mask| {
                let bits = p.bits(r);
                let (a, b) = (r.get(a), r.get(b));
                let out = std::array::from_fn(|l| if bits >> l & 1 == 1 { a[l] } else { b[l] });
                r.set(target, &out, mask);
            })))
        }};
    }
    match ty.bytes() {
        2 | 4 => pick!(u32),
        8 => pick!(u64),
        _ => Err(format!("{ty:?} is not modelled here")),
    }
}

/// `slct`: `c >= 0 ? a : b`.
fn select_by_sign(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let flushes = d.take("ftz");
    let ty = d.take_type()?;
    let by = d.take_type()?;
    d.expect_operands(4)?;
    let c: Slot<u32> = d.source(3, by)?;
    let first: fn(u32) -> bool = match (by, flushes) {
        (Type::S32, false) => |c| c as i32 >= 0,
        (Type::F32, false) => |c| f32::from_bits(c) >= 0.0,
        (Type::F32, true) => |c| flush(f32::from_bits(c)) >= 0.0,
        _ => return Err(format!("{by:?} is not modelled here")),
    };
    match ty.bytes() {
        2 | 4 => {
            let (target, a, b) = (d.target(0)?, d.source(1, ty)?, d.source(2, ty)?);
            let pick = move |a: u32, b: u32, c: u32| if first(c) { a } else { b };
            Ok(Op::Alu(ternary(target, a, b, c, pick)))
        }
        8 => {
            let (target, a, b) = (d.target(0)?, d.source(1, ty)?, d.source(2, ty)?);
            let pick = move |a: u64, b: u64, c: u32| if first(c) { a } else { b };
            Ok(Op::Alu(ternary(target, a, b, c, pick)))
        }
        _ => Err(format!("{ty:?} is not modelled here")),
    }
}

/// `isspacep` and its like: a predicate from one value.
pub(super) fn test_value(
    target: PredSlot,
    a: Slot<u64>,
    f: impl Fn(u64) -> bool + Send + Sync + 'static,
) -> Op {
    Op::Alu(Box::new(move |r, mask| {
        let bits = compare_lanes(r.get(a), r.get(a), |a, _| f(a));
        r.set_pred(target, bits, mask);
    }))
}

/// `copysign`: the sign of `a` on the magnitude of `b`.
pub(super) fn copysign(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let ty = d.take_type()?;
    d.expect_operands(3)?;
    match ty {
        Type::F32 => {
            let (t, a, b) = (d.target(0)?, d.source(1, ty)?, d.source(2, ty)?);
            Ok(Op::Alu(binary(t, a, b, |a: f32, b: f32| b.copysign(a))))
        }
        Type::F64 => {
            let (t, a, b) = (d.target(0)?, d.source(1, ty)?, d.source(2, ty)?);
            Ok(Op::Alu(binary(t, a, b, |a: f64, b: f64| b.copysign(a))))
        }
        _ => Err(format!("{ty:?} is not modelled here")),
    }
}
