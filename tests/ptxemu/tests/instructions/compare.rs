//! `setp` and `set`.

use std::cmp::Ordering::{self, Equal, Greater, Less};

use crate::oracle::{Format16, flush};
use crate::table::{Kind, Kind::*, check, refused};

/// The orderings for which a comparison holds; `None` is unordered.
fn holds(name: &str, ordering: Option<Ordering>) -> bool {
    let (name, unordered) = match name {
        "num" => return ordering.is_some(),
        "nan" => return ordering.is_none(),
        n if n.len() == 3 => (&n[..2], true),
        n => (n, false),
    };
    let Some(ordering) = ordering else {
        return unordered;
    };
    match name {
        "eq" => ordering == Equal,
        "ne" => ordering != Equal,
        "lt" | "lo" => ordering == Less,
        "le" | "ls" => ordering != Greater,
        "gt" | "hi" => ordering == Greater,
        _ => ordering != Less,
    }
}

const SIGNED: [&str; 6] = ["eq", "ne", "lt", "le", "gt", "ge"];
const UNSIGNED: [&str; 4] = ["lo", "ls", "hi", "hs"];
const FLOAT: [&str; 8] = ["equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"];

fn all(names: &[&str], ty: &str, kind: Kind, order: impl Fn(u64, u64) -> Option<Ordering>) {
    for name in names {
        let body = format!("setp.{name}.{ty} %d, %a, %b;");
        check(&body, &[kind, kind], Pred, |[a, b, _]| {
            u64::from(holds(name, order(a, b)))
        });
    }
}

#[test]
fn integers() {
    all(&SIGNED, "s16", B16, |a, b| {
        Some((a as i16).cmp(&(b as i16)))
    });
    all(&SIGNED, "s32", B32, |a, b| {
        Some((a as i32).cmp(&(b as i32)))
    });
    all(&SIGNED, "s64", B64, |a, b| {
        Some((a as i64).cmp(&(b as i64)))
    });
    for (ty, kind) in [("u16", B16), ("u32", B32), ("u64", B64)] {
        all(&SIGNED, ty, kind, |a, b| Some(a.cmp(&b)));
        all(&UNSIGNED, ty, kind, |a, b| Some(a.cmp(&b)));
    }
    all(&SIGNED[..2], "b32", B32, |a, b| Some(a.cmp(&b)));
    refused("setp.ltu.u32 %p1, %r1, %r2;", "float");
}

#[test]
fn floats_with_and_without_nan() {
    let names: Vec<&str> = SIGNED.iter().chain(&FLOAT).copied().collect();
    let single = |x: u64| f32::from_bits(x as u32);
    all(&names, "f32", F32, |a, b| single(a).partial_cmp(&single(b)));
    all(&names, "f64", F64, |a, b| {
        f64::from_bits(a).partial_cmp(&f64::from_bits(b))
    });
    let (f16, bf16) = (Format16::f16(), Format16::bf16());
    all(&names, "f16", F16, |a, b| {
        f16.value(a).partial_cmp(&f16.value(b))
    });
    all(&names, "bf16", Bf16, |a, b| {
        bf16.value(a).partial_cmp(&bf16.value(b))
    });
    for name in names {
        let body = format!("setp.{name}.ftz.f32 %d, %a, %b;");
        check(&body, &[F32, F32], Pred, |[a, b, _]| {
            u64::from(holds(name, flush(single(a)).partial_cmp(&flush(single(b)))))
        });
    }
}

#[test]
fn combined_with_a_predicate() {
    type Combine = fn(bool, bool) -> bool;
    let combines: [(&str, Combine); 3] = [
        ("and", |a, b| a & b),
        ("or", |a, b| a | b),
        ("xor", |a, b| a ^ b),
    ];
    for (name, combine) in combines {
        let body = format!("setp.lt.{name}.s32 %d, %a, %b, %c;");
        check(&body, &[B32, B32, Pred], Pred, |[a, b, c]| {
            u64::from(combine((a as i32) < b as i32, c == 1))
        });
        let body = format!("setp.lt.{name}.s32 _|%d, %a, %b, !%c;");
        check(&body, &[B32, B32, Pred], Pred, |[a, b, c]| {
            u64::from(combine((a as i32) >= b as i32, c == 0))
        });
    }
}

#[test]
fn both_results() {
    let body = ".reg .pred %p; setp.gt.f32 %p|%d, %a, %b;";
    check(body, &[F32, F32], Pred, |[a, b, _]| {
        let greater = f32::from_bits(a as u32) > f32::from_bits(b as u32);
        u64::from(!greater)
    });
}

#[test]
fn set_gives_a_mask_or_one() {
    check(
        "set.lt.u32.s32 %d, %a, %b;",
        &[B32, B32],
        B32,
        |[a, b, _]| {
            if (a as i32) < b as i32 {
                0xffff_ffff
            } else {
                0
            }
        },
    );
    check(
        "set.ge.and.f32.f32 %d, %a, %b, %c;",
        &[F32, F32, Pred],
        F32,
        |[a, b, c]| {
            let yes = f32::from_bits(a as u32) >= f32::from_bits(b as u32) && c == 1;
            if yes { 1f32.to_bits().into() } else { 0 }
        },
    );
    refused("set.lt.f16.f16 %h1, %h2, %h3;", "F16");
}
