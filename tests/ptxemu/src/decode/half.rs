//! f16, bf16 and their packed pairs: computed in f64 and rounded once.

use super::Result;
use super::alu::Decoder;
use super::float::Extremum;
use crate::num::{Bf16, Bf16x2, F16, F16x2, Half, odd_add, saturate};
use crate::op::Op;
use crate::parse::Type;

/// Smallest normal f16: what `.ftz` flushes below.
const MIN_NORMAL_F16: f64 = 6.103515625e-5;

/// Runs a generic function for the 16-bit float type of the statement.
macro_rules! for_half {
    ($ty:expr, $f:ident($($argument:expr),*)) => {
        match $ty {
            Type::F16 => $f::<F16>($($argument),*),
            Type::F16x2 => $f::<F16x2>($($argument),*),
            Type::Bf16 => $f::<Bf16>($($argument),*),
            Type::Bf16x2 => $f::<Bf16x2>($($argument),*),
            other => Err(format!("{other:?} is not modelled here")),
        }
    };
}

/// What the modifiers do to operands and result.
#[derive(Clone, Copy)]
struct Mode {
    flushes: bool,
    saturates: bool,
    relu: bool,
}

impl Mode {
    fn take(d: &mut Decoder<'_, '_>) -> Self {
        d.take("rn");
        Self {
            flushes: d.take("ftz"),
            saturates: d.take("sat"),
            relu: d.take("relu"),
        }
    }

    fn operand(self, x: f64) -> f64 {
        if self.flushes && x.abs() < MIN_NORMAL_F16 {
            0f64.copysign(x)
        } else {
            x
        }
    }

    fn result(self, x: f64) -> f64 {
        let x = if self.saturates { saturate(x) } else { x };
        // NaN stays NaN under .relu, and -0 becomes +0.
        let x = if self.relu && x <= 0.0 { 0.0 } else { x };
        self.operand(x)
    }
}

pub(super) fn arithmetic(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let mode = Mode::take(d);
    let ty = d.take_type()?;
    if mode.flushes && matches!(ty, Type::Bf16 | Type::Bf16x2) {
        return Err(".ftz of bf16 is not modelled".to_owned());
    }
    for_half!(ty, typed(d, ty, mode))
}

fn typed<H: Half>(d: &mut Decoder<'_, '_>, ty: Type, mode: Mode) -> Result<Op> {
    let binary = move |f: fn(f64, f64) -> f64| {
        move |a: H, b: H| a.map2(b, |a, b| mode.result(f(mode.operand(a), mode.operand(b))))
    };
    match d.statement.opcode {
        "add" => d.binary(ty, binary(odd_add)),
        "sub" => d.binary(ty, binary(|a, b| odd_add(a, -b))),
        "mul" => d.binary(ty, binary(|a, b| a * b)),
        "fma" => d.ternary(ty, move |a: H, b: H, c: H| {
            a.map3(b, c, |a, b, c| {
                let product = mode.operand(a) * mode.operand(b);
                mode.result(odd_add(product, mode.operand(c)))
            })
        }),
        "neg" => d.unary(ty, move |a: H| a.map1(|a| -mode.operand(a))),
        "abs" => d.unary(ty, move |a: H| a.map1(|a| mode.operand(a).abs())),
        _ => Err("this form is not modelled".to_owned()),
    }
}

pub(super) fn extremum(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let mode = Mode::take(d);
    let rule = Extremum::take(d);
    let ty = d.take_type()?;
    fn pick<H: Half>(d: &mut Decoder<'_, '_>, ty: Type, mode: Mode, rule: Extremum) -> Result<Op> {
        d.binary(ty, move |a: H, b: H| {
            a.map2(b, |a, b| {
                mode.result(rule.of(mode.operand(a), mode.operand(b)))
            })
        })
    }
    for_half!(ty, pick(d, ty, mode, rule))
}

/// `ex2.approx` and `tanh.approx`.
pub(super) fn function(d: &mut Decoder<'_, '_>, f: fn(f64) -> f64) -> Result<Op> {
    if !matches!(d.statement.opcode, "ex2" | "tanh") {
        return Err("this form is not modelled".to_owned());
    }
    d.take("ftz");
    let ty = d.take_type()?;
    fn apply<H: Half>(d: &mut Decoder<'_, '_>, ty: Type, f: fn(f64) -> f64) -> Result<Op> {
        d.unary(ty, move |a: H| a.map1(f))
    }
    for_half!(ty, apply(d, ty, f))
}
