//! f16, bf16 and packed arithmetic, against exact sums rounded by search.

use crate::oracle::Format16;
use crate::table::{Kind, Kind::*, check, refused};

/// `a * b + c` to within f64, with ties that f64 cannot see broken by the lost part.
fn fma(a: f64, b: f64, c: f64) -> f64 {
    let product = a * b;
    let sum = product + c;
    let lost = if product.abs() > c.abs() {
        c - (sum - product)
    } else {
        product - (sum - c)
    };
    if lost > 0.0 {
        sum.next_up()
    } else if lost < 0.0 {
        sum.next_down()
    } else {
        sum
    }
}

fn forms(name: &str, one: Kind, two: Kind, format: &'static Format16) {
    for (ty, kind) in [(name.to_owned(), one), (format!("{name}x2"), two)] {
        let high = if kind == one { 0xffff } else { u64::MAX };
        let apply = move |[a, b, c]: [u64; 3], f: &dyn Fn(f64, f64, f64) -> f64| {
            format.pairwise(a, b, c, f) & high
        };
        check(
            &format!("add.rn.{ty} %d, %a, %b;"),
            &[kind, kind],
            kind,
            |x| apply(x, &|a, b, _| fma(a, 1.0, b)),
        );
        check(&format!("sub.{ty} %d, %a, %b;"), &[kind, kind], kind, |x| {
            apply(x, &|a, b, _| fma(a, 1.0, -b))
        });
        check(&format!("mul.{ty} %d, %a, %b;"), &[kind, kind], kind, |x| {
            apply(x, &|a, b, _| a * b)
        });
        check(
            &format!("fma.rn.{ty} %d, %a, %b, %c;"),
            &[kind; 3],
            kind,
            |x| apply(x, &fma),
        );
        check(
            &format!("fma.rn.relu.{ty} %d, %a, %b, %c;"),
            &[kind; 3],
            kind,
            |x| {
                apply(x, &|a, b, c| {
                    let y = fma(a, b, c);
                    if y <= 0.0 { 0.0 } else { y }
                })
            },
        );
        check(&format!("neg.{ty} %d, %a;"), &[kind], kind, |x| {
            apply(x, &|a, _, _| -a)
        });
        check(&format!("abs.{ty} %d, %a;"), &[kind], kind, |x| {
            apply(x, &|a, _, _| a.abs())
        });
        check(&format!("max.{ty} %d, %a, %b;"), &[kind, kind], kind, |x| {
            apply(x, &|a, b, _| larger(a, b))
        });
        check(&format!("min.{ty} %d, %a, %b;"), &[kind, kind], kind, |x| {
            apply(x, &|a, b, _| -larger(-a, -b))
        });
        check(
            &format!("max.NaN.{ty} %d, %a, %b;"),
            &[kind, kind],
            kind,
            |x| {
                apply(x, &|a, b, _| {
                    if a.is_nan() || b.is_nan() {
                        f64::NAN
                    } else {
                        larger(a, b)
                    }
                })
            },
        );
        check(&format!("ex2.approx.{ty} %d, %a;"), &[kind], kind, |x| {
            apply(x, &|a, _, _| a.exp2())
        });
        check(&format!("tanh.approx.{ty} %d, %a;"), &[kind], kind, |x| {
            apply(x, &|a, _, _| a.tanh())
        });
    }
}

/// Skips NaN; +0 is larger than -0.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b > a || (a == b && a.is_sign_negative()) {
        if b.is_nan() { a } else { b }
    } else {
        a
    }
}

#[test]
fn f16_forms() {
    forms("f16", F16, F16x2, Format16::f16());
}

#[test]
fn bf16_forms() {
    forms("bf16", Bf16, Bf16x2, Format16::bf16());
}

#[test]
fn f16_flushes_and_saturates() {
    let format = Format16::f16();
    let flush = |x: f64| {
        if x.abs() < format.min_normal() {
            0f64.copysign(x)
        } else {
            x
        }
    };
    check("add.ftz.f16 %d, %a, %b;", &[F16, F16], F16, |[a, b, _]| {
        format.nearest(flush(flush(format.value(a)) + flush(format.value(b))))
    });
    check("mul.sat.f16 %d, %a, %b;", &[F16, F16], F16, |[a, b, _]| {
        let product = format.value(a) * format.value(b);
        format.nearest(if product > 0.0 { product.min(1.0) } else { 0.0 })
    });
    refused("add.ftz.bf16 %h1, %h2, %h3;", "bf16");
    refused("div.f16 %h1, %h2, %h3;", "not modelled");
}
