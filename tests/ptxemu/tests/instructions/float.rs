//! f32 and f64 arithmetic.

use crate::oracle::{Direction, f32_towards, flush};
use crate::table::{Kind::*, check, refused};

fn f(x: u64) -> f32 {
    f32::from_bits(x as u32)
}

fn d(x: u64) -> f64 {
    f64::from_bits(x)
}

fn bits(x: f32) -> u64 {
    x.to_bits().into()
}

fn clamp(x: f32) -> f32 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

#[test]
fn f32_nearest() {
    for suffix in ["", ".rn"] {
        check(
            &format!("add{suffix}.f32 %d, %a, %b;"),
            &[F32, F32],
            F32,
            |[a, b, _]| bits(f(a) + f(b)),
        );
        check(
            &format!("sub{suffix}.f32 %d, %a, %b;"),
            &[F32, F32],
            F32,
            |[a, b, _]| bits(f(a) - f(b)),
        );
        check(
            &format!("mul{suffix}.f32 %d, %a, %b;"),
            &[F32, F32],
            F32,
            |[a, b, _]| bits(f(a) * f(b)),
        );
    }
    check("div.rn.f32 %d, %a, %b;", &[F32, F32], F32, |[a, b, _]| {
        bits(f(a) / f(b))
    });
    check(
        "fma.rn.f32 %d, %a, %b, %c;",
        &[F32, F32, F32],
        F32,
        |[a, b, c]| bits(f(a).mul_add(f(b), f(c))),
    );
    check(
        "mad.rn.f32 %d, %a, %b, %c;",
        &[F32, F32, F32],
        F32,
        |[a, b, c]| bits(f(a).mul_add(f(b), f(c))),
    );
    check("rcp.rn.f32 %d, %a;", &[F32], F32, |[a, ..]| {
        bits(1.0 / f(a))
    });
    check("sqrt.rn.f32 %d, %a;", &[F32], F32, |[a, ..]| {
        bits(f(a).sqrt())
    });
}

#[test]
fn f32_flushes_subnormals() {
    let z = |x: u64| flush(f(x));
    let out = |x: f32| bits(flush(x));
    check("add.ftz.f32 %d, %a, %b;", &[F32, F32], F32, |[a, b, _]| {
        out(z(a) + z(b))
    });
    check("sub.ftz.f32 %d, %a, %b;", &[F32, F32], F32, |[a, b, _]| {
        out(z(a) - z(b))
    });
    check("mul.ftz.f32 %d, %a, %b;", &[F32, F32], F32, |[a, b, _]| {
        out(z(a) * z(b))
    });
    check(
        "div.rn.ftz.f32 %d, %a, %b;",
        &[F32, F32],
        F32,
        |[a, b, _]| out(z(a) / z(b)),
    );
    check(
        "fma.rn.ftz.f32 %d, %a, %b, %c;",
        &[F32, F32, F32],
        F32,
        |[a, b, c]| out(z(a).mul_add(z(b), z(c))),
    );
    check("rcp.approx.ftz.f32 %d, %a;", &[F32], F32, |[a, ..]| {
        out(1.0 / z(a))
    });
    check("neg.ftz.f32 %d, %a;", &[F32], F32, |[a, ..]| bits(-z(a)));
    check("abs.ftz.f32 %d, %a;", &[F32], F32, |[a, ..]| {
        bits(z(a).abs())
    });
}

#[test]
fn f32_saturates() {
    check("add.sat.f32 %d, %a, %b;", &[F32, F32], F32, |[a, b, _]| {
        bits(clamp(f(a) + f(b)))
    });
    check(
        "mul.ftz.sat.f32 %d, %a, %b;",
        &[F32, F32],
        F32,
        |[a, b, _]| bits(clamp(flush(flush(f(a)) * flush(f(b))))),
    );
    check(
        "fma.rn.sat.f32 %d, %a, %b, %c;",
        &[F32, F32, F32],
        F32,
        |[a, b, c]| bits(clamp(f(a).mul_add(f(b), f(c)))),
    );
}

#[test]
fn f32_directed_rounding() {
    let modes = [
        ("rz", Direction::Zero),
        ("rm", Direction::Down),
        ("rp", Direction::Up),
    ];
    for (name, direction) in modes {
        let body = format!("mul.{name}.f32 %d, %a, %b;");
        check(&body, &[F32, F32], F32, |[a, b, _]| {
            bits(f32_towards(f64::from(f(a)) * f64::from(f(b)), direction))
        });
        // The sum of two floats whose exponents differ by less than 29 is exact in f64; for others
        // the small one only decides which neighbour of the large one is meant.
        let body = format!("add.{name}.f32 %d, %a, %b;");
        check(&body, &[F32, F32], F32, |[a, b, _]| {
            let (x, y) = (f64::from(f(a)), f64::from(f(b)));
            let sum = x + y;
            let exact = if sum - x == y && sum - y == x || !sum.is_finite() {
                sum
            } else {
                let (large, small) = if x.abs() > y.abs() { (x, y) } else { (y, x) };
                if small > 0.0 {
                    large.next_up()
                } else {
                    large.next_down()
                }
            };
            if exact == 0.0
                && direction == Direction::Down
                && (x.is_sign_negative() || y.is_sign_negative())
            {
                // Cancellation gives -0 when rounding down.
                return bits(-0.0);
            }
            bits(f32_towards(exact, direction))
        });
        let body = format!("div.{name}.f32 %d, %a, %b;");
        check(&body, &[F32, F32], F32, |[a, b, _]| {
            let (x, y) = (f64::from(f(a)), f64::from(f(b)));
            let q = x / y;
            let error = (-q).mul_add(y, x) / y;
            let q = if error > 0.0 {
                q.next_up()
            } else if error < 0.0 {
                q.next_down()
            } else {
                q
            };
            bits(f32_towards(q, direction))
        });
    }
    refused("add.rz.f64 %rd1, %rd2, %rd3;", ".rn only");
}

#[test]
fn f64_arithmetic() {
    check("add.f64 %d, %a, %b;", &[F64, F64], F64, |[a, b, _]| {
        (d(a) + d(b)).to_bits()
    });
    check("sub.rn.f64 %d, %a, %b;", &[F64, F64], F64, |[a, b, _]| {
        (d(a) - d(b)).to_bits()
    });
    check("mul.f64 %d, %a, %b;", &[F64, F64], F64, |[a, b, _]| {
        (d(a) * d(b)).to_bits()
    });
    check("div.rn.f64 %d, %a, %b;", &[F64, F64], F64, |[a, b, _]| {
        (d(a) / d(b)).to_bits()
    });
    check(
        "fma.rn.f64 %d, %a, %b, %c;",
        &[F64, F64, F64],
        F64,
        |[a, b, c]| d(a).mul_add(d(b), d(c)).to_bits(),
    );
    check("rcp.rn.f64 %d, %a;", &[F64], F64, |[a, ..]| {
        (1.0 / d(a)).to_bits()
    });
    check("sqrt.rn.f64 %d, %a;", &[F64], F64, |[a, ..]| {
        d(a).sqrt().to_bits()
    });
    check("neg.f64 %d, %a;", &[F64], F64, |[a, ..]| (-d(a)).to_bits());
    check("abs.f64 %d, %a;", &[F64], F64, |[a, ..]| {
        d(a).abs().to_bits()
    });
}

#[test]
fn min_and_max_skip_nan() {
    let pick = |a: f64, b: f64, max: bool| {
        if a.is_nan() || b.is_nan() {
            return if a.is_nan() { b } else { a };
        }
        if a == 0.0 && b == 0.0 {
            // -0 is less than +0.
            return if max == a.is_sign_positive() { a } else { b };
        }
        if (a > b) == max { a } else { b }
    };
    for (name, max) in [("min", false), ("max", true)] {
        check(
            &format!("{name}.f32 %d, %a, %b;"),
            &[F32, F32],
            F32,
            |[a, b, _]| bits(pick(f(a).into(), f(b).into(), max) as f32),
        );
        check(
            &format!("{name}.ftz.f32 %d, %a, %b;"),
            &[F32, F32],
            F32,
            |[a, b, _]| bits(pick(flush(f(a)).into(), flush(f(b)).into(), max) as f32),
        );
        check(
            &format!("{name}.f64 %d, %a, %b;"),
            &[F64, F64],
            F64,
            |[a, b, _]| pick(d(a), d(b), max).to_bits(),
        );
        check(
            &format!("{name}.NaN.f32 %d, %a, %b;"),
            &[F32, F32],
            F32,
            |[a, b, _]| {
                if f(a).is_nan() || f(b).is_nan() {
                    return 0x7fff_ffff;
                }
                bits(pick(f(a).into(), f(b).into(), max) as f32)
            },
        );
        check(
            &format!("{name}.f32 %d, %a, %b, %c;"),
            &[F32, F32, F32],
            F32,
            |[a, b, c]| bits(pick(pick(f(a).into(), f(b).into(), max), f(c).into(), max) as f32),
        );
        check(
            &format!("{name}.xorsign.abs.f32 %d, %a, %b;"),
            &[F32, F32],
            F32,
            |[a, b, _]| {
                let magnitude = pick(f(a).abs().into(), f(b).abs().into(), max) as f32;
                let negative = (a ^ b) >> 31 & 1 == 1;
                bits(if negative { -magnitude } else { magnitude })
            },
        );
    }
}

#[test]
fn approximations_are_close() {
    type Function = fn(f64) -> f64;
    let functions: [(&str, Function); 8] = [
        ("ex2", f64::exp2),
        ("lg2", f64::log2),
        ("sin", f64::sin),
        ("cos", f64::cos),
        ("tanh", f64::tanh),
        ("rsqrt", |x| x.sqrt().recip()),
        ("sqrt", f64::sqrt),
        ("rcp", f64::recip),
    ];
    for (name, function) in functions {
        check(
            &format!("{name}.approx.f32 %d, %a;"),
            &[F32],
            F32,
            |[a, ..]| bits(function(f(a).into()) as f32),
        );
        if name != "tanh" {
            check(
                &format!("{name}.approx.ftz.f32 %d, %a;"),
                &[F32],
                F32,
                |[a, ..]| bits(flush(function(flush(f(a)).into()) as f32)),
            );
        }
    }
    check(
        "div.approx.f32 %d, %a, %b;",
        &[F32, F32],
        F32,
        |[a, b, _]| bits(f(a) / f(b)),
    );
    check("div.full.f32 %d, %a, %b;", &[F32, F32], F32, |[a, b, _]| {
        bits(f(a) / f(b))
    });
    check("rcp.approx.ftz.f64 %d, %a;", &[F64], F64, |[a, ..]| {
        (1.0 / d(a)).to_bits()
    });
    refused("sin.f32 %r1, %r2;", ".approx");
}

#[test]
fn signs_and_properties() {
    check("neg.f32 %d, %a;", &[F32], F32, |[a, ..]| bits(-f(a)));
    check("abs.f32 %d, %a;", &[F32], F32, |[a, ..]| bits(f(a).abs()));
    check("copysign.f32 %d, %a, %b;", &[F32, F32], F32, |[a, b, _]| {
        a & 1 << 31 | b & 0x7fff_ffff
    });
    check("copysign.f64 %d, %a, %b;", &[F64, F64], F64, |[a, b, _]| {
        a & 1 << 63 | b & (u64::MAX >> 1)
    });
    check("testp.finite.f32 %d, %a;", &[F32], Pred, |[a, ..]| {
        f(a).is_finite().into()
    });
    check("testp.infinite.f32 %d, %a;", &[F32], Pred, |[a, ..]| {
        f(a).is_infinite().into()
    });
    check("testp.number.f64 %d, %a;", &[F64], Pred, |[a, ..]| {
        (!d(a).is_nan()).into()
    });
    check("testp.notanumber.f64 %d, %a;", &[F64], Pred, |[a, ..]| {
        d(a).is_nan().into()
    });
}
