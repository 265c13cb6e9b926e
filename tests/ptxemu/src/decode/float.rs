//! f32 and f64 arithmetic; 16-bit floats are in [`super::half`].

use super::alu::Decoder;
use super::{Result, compare, half};
use crate::num::{Format, Rounding, flush, odd_add, round_float, saturate};
use crate::op::Op;
use crate::parse::Type;

const ROUNDINGS: [(&str, Rounding); 4] = [
    ("rn", Rounding::Nearest),
    ("rz", Rounding::Zero),
    ("rm", Rounding::Down),
    ("rp", Rounding::Up),
];

/// What the modifiers of an f32 instruction do to operands and result.
#[derive(Clone, Copy)]
struct Mode {
    rounding: Rounding,
    flushes: bool,
    saturates: bool,
}

impl Mode {
    fn take(d: &mut Decoder<'_, '_>) -> Self {
        Self {
            rounding: d.take_one(&ROUNDINGS).unwrap_or(Rounding::Nearest),
            flushes: d.take("ftz"),
            saturates: d.take("sat"),
        }
    }

    /// No modifier changes the plain IEEE result.
    fn is_plain(self) -> bool {
        self.rounding == Rounding::Nearest && !self.flushes && !self.saturates
    }

    fn operand(self, x: f32) -> f64 {
        f64::from(if self.flushes { flush(x) } else { x })
    }

    /// A sum, rounded to odd. Rounding down, terms that cancel give -0.
    fn sum(self, a: f64, b: f64) -> f64 {
        let sum = odd_add(a, b);
        let negative = a.is_sign_negative() || b.is_sign_negative();
        if sum == 0.0 && negative && self.rounding == Rounding::Down {
            -0.0
        } else {
            sum
        }
    }

    /// Rounds a result that is exact or rounded to odd.
    fn result(self, x: f64) -> f32 {
        let bits = round_float(x, Format::F32, self.rounding) as u32;
        let mut y = f32::from_bits(bits);
        if self.flushes {
            y = flush(y);
        }
        if self.saturates {
            saturate(y.into()) as f32
        } else {
            y
        }
    }
}

/// `add`, `sub`, `mul`, `mad`, `fma`, `div`, `min`, `max`, `neg`, `abs` of floats.
pub(super) fn arithmetic(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let opcode = d.statement.opcode;
    if matches!(opcode, "min" | "max") {
        return extremum(d);
    }
    let approximates = d.take("approx") || d.take("full");
    if approximates && opcode != "div" {
        return Err("this .approx form is not modelled".to_owned());
    }
    // `fma.rn.relu` and other forms of 16-bit floats take their own modifiers.
    if ["f16", "f16x2", "bf16", "bf16x2"]
        .iter()
        .any(|t| d.statement.has(t))
    {
        return half::arithmetic(d);
    }
    let mode = Mode::take(d);
    match d.take_type()? {
        Type::F32 => single(d, opcode, mode),
        Type::F64 => double(d, opcode, mode),
        ty => Err(format!("{ty:?} is not modelled here")),
    }
}

fn single(d: &mut Decoder<'_, '_>, opcode: &str, mode: Mode) -> Result<Op> {
    const TY: Type = Type::F32;
    if mode.is_plain() {
        match opcode {
            "add" => return d.binary(TY, |a: f32, b: f32| a + b),
            "sub" => return d.binary(TY, |a: f32, b: f32| a - b),
            "mul" => return d.binary(TY, |a: f32, b: f32| a * b),
            "div" => return d.binary(TY, |a: f32, b: f32| a / b),
            "fma" | "mad" => {
                return d.ternary(TY, |a: f32, b: f32, c: f32| {
                    odd_add(f64::from(a) * f64::from(b), c.into()) as f32
                });
            }
            _ => {}
        }
    }
    let binary = move |f: fn(Mode, f64, f64) -> f64| {
        move |a: f32, b: f32| mode.result(f(mode, mode.operand(a), mode.operand(b)))
    };
    match opcode {
        "add" => d.binary(TY, binary(|mode, a, b| mode.sum(a, b))),
        "sub" => d.binary(TY, binary(|mode, a, b| mode.sum(a, -b))),
        "mul" => d.binary(TY, binary(|_, a, b| a * b)),
        "div" => d.binary(TY, binary(|_, a, b| odd_quotient(a, b))),
        "fma" | "mad" => d.ternary(TY, move |a: f32, b: f32, c: f32| {
            mode.result(mode.sum(mode.operand(a) * mode.operand(b), mode.operand(c)))
        }),
        "neg" => d.unary(TY, move |a: f32| -if mode.flushes { flush(a) } else { a }),
        "abs" => d.unary(TY, move |a: f32| {
            if mode.flushes { flush(a) } else { a }.abs()
        }),
        _ => Err("this form is not modelled".to_owned()),
    }
}

/// `a / b` rounded to odd, for a second rounding to f32.
fn odd_quotient(a: f64, b: f64) -> f64 {
    let q = a / b;
    let remainder = (-q).mul_add(b, a);
    nudge(q, if b > 0.0 { remainder } else { -remainder })
}

/// Sets the last bit of an inexact result, given the sign of (exact - rounded).
fn nudge(rounded: f64, error: f64) -> f64 {
    let bits = rounded.to_bits();
    if !rounded.is_finite() || error.is_nan() || error == 0.0 || bits & 1 == 1 {
        return rounded;
    }
    f64::from_bits(if (error > 0.0) == (rounded > 0.0) {
        bits + 1
    } else {
        bits - 1
    })
}

fn double(d: &mut Decoder<'_, '_>, opcode: &str, mode: Mode) -> Result<Op> {
    const TY: Type = Type::F64;
    if !mode.is_plain() {
        return Err("f64 arithmetic is modelled with .rn only".to_owned());
    }
    match opcode {
        "add" => d.binary(TY, |a: f64, b: f64| a + b),
        "sub" => d.binary(TY, |a: f64, b: f64| a - b),
        "mul" => d.binary(TY, |a: f64, b: f64| a * b),
        "div" => d.binary(TY, |a: f64, b: f64| a / b),
        "fma" | "mad" => d.ternary(TY, f64::mul_add),
        "neg" => d.unary(TY, |a: f64| -a),
        "abs" => d.unary(TY, f64::abs),
        _ => Err("this form is not modelled".to_owned()),
    }
}

/// How `min` and `max` treat NaN and signs.
#[derive(Clone, Copy)]
pub(super) struct Extremum {
    pub(super) is_max: bool,
    /// `.NaN`: NaN if any operand is; otherwise the other operand is returned.
    pub(super) propagates_nan: bool,
    /// `.xorsign.abs`: magnitudes are compared, the sign is the product of signs.
    pub(super) xor_sign: bool,
}

impl Extremum {
    pub(super) fn take(d: &mut Decoder<'_, '_>) -> Self {
        let is_max = d.statement.opcode == "max";
        let propagates_nan = d.take("NaN");
        let xor_sign = d.take("xorsign");
        if xor_sign {
            d.take("abs");
        }
        Self {
            is_max,
            propagates_nan,
            xor_sign,
        }
    }

    /// Works in f64, which holds every format exactly; -0 is less than +0.
    pub(super) fn of(self, a: f64, b: f64) -> f64 {
        let sign = a.is_sign_negative() != b.is_sign_negative();
        let (a, b) = if self.xor_sign {
            (a.abs(), b.abs())
        } else {
            (a, b)
        };
        let picked = match (a.is_nan(), b.is_nan()) {
            (true, true) => f64::NAN,
            (true, false) => {
                if self.propagates_nan {
                    f64::NAN
                } else {
                    b
                }
            }
            (false, true) => {
                if self.propagates_nan {
                    f64::NAN
                } else {
                    a
                }
            }
            (false, false) => {
                let first_is_less = a.total_cmp(&b).is_le();
                if first_is_less != self.is_max { a } else { b }
            }
        };
        match (self.xor_sign, sign) {
            (true, true) => -picked,
            _ => picked,
        }
    }
}

fn extremum(d: &mut Decoder<'_, '_>) -> Result<Op> {
    if ["f16", "f16x2", "bf16", "bf16x2"]
        .iter()
        .any(|t| d.statement.has(t))
    {
        return half::extremum(d);
    }
    let flushes = d.take("ftz");
    let rule = Extremum::take(d);
    let flushed = move |x: f32| f64::from(if flushes { flush(x) } else { x });
    let single = move |x: f64| {
        if x.is_nan() {
            f32::from_bits(0x7fff_ffff)
        } else {
            x as f32
        }
    };
    match d.take_type()? {
        Type::F32 if d.count() == 4 => d.ternary(Type::F32, move |a: f32, b: f32, c: f32| {
            single(rule.of(rule.of(flushed(a), flushed(b)), flushed(c)))
        }),
        Type::F32 => d.binary(Type::F32, move |a: f32, b: f32| {
            single(rule.of(flushed(a), flushed(b)))
        }),
        Type::F64 if !flushes => d.binary(Type::F64, move |a: f64, b: f64| rule.of(a, b)),
        ty => Err(format!("{ty:?} is not modelled here")),
    }
}

/// `rcp`, `sqrt`, `rsqrt`, `ex2`, `lg2`, `sin`, `cos`, `tanh`. The `.approx` forms are computed
/// in f64 and rounded once, which is closer than any GPU.
pub(super) fn function(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let opcode = d.statement.opcode;
    if opcode == "copysign" {
        return compare::copysign(d);
    }
    if opcode == "testp" {
        return test_property(d);
    }
    let approximates = d.take("approx");
    let f: fn(f64) -> f64 = match opcode {
        "rcp" => |x| 1.0 / x,
        "sqrt" => f64::sqrt,
        "rsqrt" => |x| 1.0 / x.sqrt(),
        "ex2" => f64::exp2,
        "lg2" => f64::log2,
        "sin" => f64::sin,
        "cos" => f64::cos,
        _ => f64::tanh,
    };
    if ["f16", "f16x2", "bf16", "bf16x2"]
        .iter()
        .any(|t| d.statement.has(t))
    {
        return half::function(d, f);
    }
    let mode = Mode::take(d);
    let exact: fn(f64) -> f64 = match opcode {
        "rcp" => |x| odd_quotient(1.0, x),
        "sqrt" => |x| {
            let root = x.sqrt();
            nudge(root, (-root).mul_add(root, x))
        },
        _ if approximates => f,
        _ => return Err("only the .approx form is modelled".to_owned()),
    };
    match d.take_type()? {
        Type::F32 => d.unary(Type::F32, move |a: f32| mode.result(exact(mode.operand(a)))),
        // f64 approximations flush by definition; their value is near enough for any use.
        Type::F64 if mode.rounding == Rounding::Nearest && !mode.saturates => d.unary(Type::F64, f),
        ty => Err(format!("{ty:?} is not modelled here")),
    }
}

/// `testp.finite.f32 p, a` and its like.
fn test_property(d: &mut Decoder<'_, '_>) -> Result<Op> {
    type Property = fn(f64) -> bool;
    let tests: [(&str, Property); 4] = [
        ("finite", f64::is_finite),
        ("infinite", f64::is_infinite),
        ("number", |x| !x.is_nan()),
        ("notanumber", f64::is_nan),
    ];
    let test = d.take_one(&tests).ok_or("this property is not modelled")?;
    let ty = d.take_type()?;
    d.expect_operands(2)?;
    let target = d.pred_target(0)?;
    match ty {
        Type::F32 => {
            let a = d.source::<u32>(1, ty)?;
            Ok(Op::Alu(Box::new(move |r, mask| {
                let a = r.get(a);
                let bits = super::alu::compare_lanes(a, a, |a: f32, _| test(a.into()));
                r.set_pred(target, bits, mask);
            })))
        }
        Type::F64 => {
            let a = d.source::<u64>(1, ty)?;
            Ok(compare::test_value(target, a, move |a| {
                test(f64::from_bits(a))
            }))
        }
        _ => Err(format!("{ty:?} is not modelled here")),
    }
}
