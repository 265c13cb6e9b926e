//! `cvt` in all directions.

use crate::oracle::{Direction, Format16, f32_towards, flush};
use crate::table::{Kind, Kind::*, check, refused};

fn f(x: u64) -> f32 {
    f32::from_bits(x as u32)
}

fn d(x: u64) -> f64 {
    f64::from_bits(x)
}

const INTEGERS: [(&str, u32, bool); 8] = [
    ("u8", 8, false),
    ("s8", 8, true),
    ("u16", 16, false),
    ("s16", 16, true),
    ("u32", 32, false),
    ("s32", 32, true),
    ("u64", 64, false),
    ("s64", 64, true),
];

/// The register that holds an integer of so many bits.
fn kind(bits: u32) -> Kind {
    match bits {
        8 | 16 => B16,
        32 => B32,
        _ => B64,
    }
}

fn register_bits(bits: u32) -> u32 {
    bits.max(16)
}

fn value(x: u64, bits: u32, signed: bool) -> i128 {
    let x = i128::from(x) & ((1 << bits) - 1);
    if signed && x >> (bits - 1) & 1 == 1 {
        x - (1 << bits)
    } else {
        x
    }
}

fn range(bits: u32, signed: bool) -> (i128, i128) {
    if signed {
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        (0, (1 << bits) - 1)
    }
}

/// Cuts to the type, then extends to the register by the type's sign.
fn fill(x: i128, bits: u32, signed: bool) -> u64 {
    let cut = value(x as u64, bits, signed);
    (cut as u64) & (u64::MAX >> (64 - register_bits(bits)))
}

#[test]
fn integers_to_integers() {
    for (to, to_bits, to_signed) in INTEGERS {
        for (from, from_bits, from_signed) in INTEGERS {
            let body = format!("cvt.{to}.{from} %d, %a;");
            check(&body, &[kind(from_bits)], kind(to_bits), |[a, ..]| {
                fill(value(a, from_bits, from_signed), to_bits, to_signed)
            });
            let body = format!("cvt.sat.{to}.{from} %d, %a;");
            check(&body, &[kind(from_bits)], kind(to_bits), |[a, ..]| {
                let (low, high) = range(to_bits, to_signed);
                fill(
                    value(a, from_bits, from_signed).clamp(low, high),
                    to_bits,
                    to_signed,
                )
            });
        }
    }
}

#[test]
fn wider_registers_are_cut_and_filled() {
    check("cvt.u32.u8 %d, %a;", &[B32], B32, |[a, ..]| a & 255);
    check("cvt.s32.s8 %d, %a;", &[B32], B32, |[a, ..]| {
        a as i8 as i32 as u32 as u64
    });
    check("cvt.s8.s32 %d, %a;", &[B32], B32, |[a, ..]| {
        a as i8 as i32 as u32 as u64
    });
    check("cvt.u16.u32 %d, %a;", &[B32], B16, |[a, ..]| a & 0xffff);
    check("cvt.s64.s32 %d, %a;", &[B32], B64, |[a, ..]| {
        a as i32 as i64 as u64
    });
}

fn towards(x: f64, mode: &str) -> f64 {
    match mode {
        "rni" => {
            let down = x.floor();
            match x - down {
                rest if rest > 0.5 || rest == 0.5 && down % 2.0 != 0.0 => down + 1.0,
                _ => down,
            }
        }
        "rzi" => x.trunc(),
        "rmi" => x.floor(),
        _ => x.ceil(),
    }
}

#[test]
fn floats_to_integers_clamp() {
    let f16 = Format16::f16();
    let bf16 = Format16::bf16();
    type Read<'a> = Box<dyn Fn(u64) -> f64 + 'a>;
    let sources: [(&str, Kind, Read<'_>); 4] = [
        ("f32", F32, Box::new(|x| f(x).into())),
        ("f64", F64, Box::new(d)),
        ("f16", F16, Box::new(|x| f16.value(x))),
        ("bf16", Bf16, Box::new(|x| bf16.value(x))),
    ];
    for (from, from_kind, read) in &sources {
        for mode in ["rni", "rzi", "rmi", "rpi"] {
            for (to, bits, signed) in INTEGERS {
                let body = format!("cvt.{mode}.{to}.{from} %d, %a;");
                check(&body, &[*from_kind], kind(bits), |[a, ..]| {
                    let x = read(a);
                    let (low, high) = range(bits, signed);
                    let x = if x.is_nan() {
                        0
                    } else {
                        towards(x, mode) as i128
                    };
                    fill(x.clamp(low, high), bits, signed)
                });
            }
        }
    }
    check("cvt.rpi.ftz.s32.f32 %d, %a;", &[F32], B32, |[a, ..]| {
        flush(f(a)).ceil() as i32 as u32 as u64
    });
}

#[test]
fn integers_to_floats_round_once() {
    for (from, bits, signed) in INTEGERS {
        let input = kind(bits);
        check(
            &format!("cvt.rn.f32.{from} %d, %a;"),
            &[input],
            F32,
            |[a, ..]| (value(a, bits, signed) as f32).to_bits().into(),
        );
        check(
            &format!("cvt.rn.f64.{from} %d, %a;"),
            &[input],
            F64,
            |[a, ..]| (value(a, bits, signed) as f64).to_bits(),
        );
        if bits < 64 {
            let exact = |a| value(a, bits, signed) as f64;
            let modes = [
                ("rz", Direction::Zero),
                ("rm", Direction::Down),
                ("rp", Direction::Up),
            ];
            for (name, direction) in modes {
                check(
                    &format!("cvt.{name}.f32.{from} %d, %a;"),
                    &[input],
                    F32,
                    |[a, ..]| f32_towards(exact(a), direction).to_bits().into(),
                );
            }
            check(
                &format!("cvt.rn.f16.{from} %d, %a;"),
                &[input],
                F16,
                |[a, ..]| Format16::f16().nearest(exact(a)),
            );
            check(
                &format!("cvt.rn.bf16.{from} %d, %a;"),
                &[input],
                Bf16,
                |[a, ..]| Format16::bf16().nearest(exact(a)),
            );
        }
    }
    refused("cvt.f32.s32 %r1, %r2;", "rounding");
}

#[test]
fn widening_floats() {
    let (f16, bf16) = (Format16::f16(), Format16::bf16());
    check("cvt.f32.f16 %d, %a;", &[F16], F32, |[a, ..]| {
        (f16.value(a) as f32).to_bits().into()
    });
    check("cvt.f32.bf16 %d, %a;", &[Bf16], F32, |[a, ..]| {
        (bf16.value(a) as f32).to_bits().into()
    });
    check("cvt.f64.f16 %d, %a;", &[F16], F64, |[a, ..]| {
        f16.value(a).to_bits()
    });
    check("cvt.f64.f32 %d, %a;", &[F32], F64, |[a, ..]| {
        f64::from(f(a)).to_bits()
    });
    check("cvt.ftz.f64.f32 %d, %a;", &[F32], F64, |[a, ..]| {
        f64::from(flush(f(a))).to_bits()
    });
    check("cvt.rn.sat.f32.s32 %d, %a;", &[B32], F32, |[a, ..]| {
        let one_or_more = a as u32 as i32 > 0;
        u64::from(if one_or_more { 1f32 } else { 0f32 }.to_bits())
    });
    check("cvt.sat.f32.f16 %d, %a;", &[F16], F32, |[a, ..]| {
        let x = f16.value(a);
        (if x > 0.0 { x.min(1.0) } else { 0.0 } as f32)
            .to_bits()
            .into()
    });
}

#[test]
fn narrowing_floats_in_every_direction() {
    let modes = [
        ("rn", Direction::Nearest),
        ("rz", Direction::Zero),
        ("rm", Direction::Down),
        ("rp", Direction::Up),
    ];
    for (mode, direction) in modes {
        for (name, kind, format) in [
            ("f16", F16, Format16::f16()),
            ("bf16", Bf16, Format16::bf16()),
        ] {
            check(
                &format!("cvt.{mode}.{name}.f32 %d, %a;"),
                &[F32],
                kind,
                |[a, ..]| format.round(f(a).into(), direction),
            );
            check(
                &format!("cvt.{mode}.{name}.f64 %d, %a;"),
                &[F64],
                kind,
                |[a, ..]| format.round(d(a), direction),
            );
        }
        check(
            &format!("cvt.{mode}.f32.f64 %d, %a;"),
            &[F64],
            F32,
            |[a, ..]| f32_towards(d(a), direction).to_bits().into(),
        );
    }
    check("cvt.rn.ftz.f32.f64 %d, %a;", &[F64], F32, |[a, ..]| {
        flush(d(a) as f32).to_bits().into()
    });
    check("cvt.rn.relu.f16.f32 %d, %a;", &[F32], F16, |[a, ..]| {
        let x = f64::from(f(a));
        Format16::f16().nearest(if x <= 0.0 { 0.0 } else { x })
    });
    check(
        "cvt.rn.satfinite.f16.f32 %d, %a;",
        &[F32],
        F16,
        |[a, ..]| {
            let x = f64::from(f(a));
            Format16::f16().nearest(if x.is_nan() {
                x
            } else {
                x.clamp(-65504.0, 65504.0)
            })
        },
    );
    refused("cvt.f16.f32 %h1, %r1;", "rounding");
}

#[test]
fn floats_to_integral_floats() {
    for mode in ["rni", "rzi", "rmi", "rpi"] {
        check(
            &format!("cvt.{mode}.f32.f32 %d, %a;"),
            &[F32],
            F32,
            |[a, ..]| {
                let x = f(a);
                (towards(x.into(), mode) as f32)
                    .copysign(x)
                    .to_bits()
                    .into()
            },
        );
    }
}

#[test]
fn packed_pairs() {
    for (name, kind, format) in [
        ("f16", F16x2, Format16::f16()),
        ("bf16", Bf16x2, Format16::bf16()),
    ] {
        check(
            &format!("cvt.rn.{name}x2.f32 %d, %a, %b;"),
            &[F32, F32],
            kind,
            |[a, b, _]| format.nearest(f(a).into()) << 16 | format.nearest(f(b).into()),
        );
        check(
            &format!("cvt.rz.{name}x2.f32 %d, %a, %b;"),
            &[F32, F32],
            kind,
            |[a, b, _]| {
                let cut = |x: u64| format.round(f(x).into(), Direction::Zero);
                cut(a) << 16 | cut(b)
            },
        );
        check(
            &format!("cvt.rn.relu.{name}x2.f32 %d, %a, %b;"),
            &[F32, F32],
            kind,
            |[a, b, _]| {
                let relu = |x: u64| format.nearest(if f(x) <= 0.0 { 0.0 } else { f(x).into() });
                relu(a) << 16 | relu(b)
            },
        );
    }
}

#[test]
fn tf32_rounds_ties_away() {
    check("cvt.rna.tf32.f32 %d, %a;", &[F32], F32, |[a, ..]| {
        let x = f(a);
        if !x.is_finite() {
            return a;
        }
        // Half a unit of the eleventh bit, then cut.
        (a + 0x1000) & 0xffff_e000
    });
}
