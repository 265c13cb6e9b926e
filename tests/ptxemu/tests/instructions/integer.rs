//! Integer arithmetic.

use crate::table::{Kind::*, check, refused};

/// Checks one form for a list of types, with the operands as that type.
macro_rules! forms {
    ($text:literal, $kinds:expr, $out:expr, [$($name:literal: $t:ty),*], |$a:ident, $b:ident, $c:ident| $e:expr) => {
        $({
            let body = $text.replace("TY", $name);
            check(&body, &$kinds, $out, |[a, b, c]| {
                #[allow(unused_variables)]
                let ($a, $b, $c) = (a as $t, b as $t, c as $t);
                let result = $e;
                result as u64 & (u64::MAX >> (64 - <$t>::BITS))
            });
        })*
    };
}

#[test]
fn add_sub_wrap() {
    forms!("add.TY %d, %a, %b;", [B16, B16], B16, ["u16": u16, "s16": i16], |a, b, c| a.wrapping_add(b));
    forms!("add.TY %d, %a, %b;", [B32, B32], B32, ["u32": u32, "s32": i32], |a, b, c| a.wrapping_add(b));
    forms!("add.TY %d, %a, %b;", [B64, B64], B64, ["u64": u64, "s64": i64], |a, b, c| a.wrapping_add(b));
    forms!("sub.TY %d, %a, %b;", [B16, B16], B16, ["u16": u16, "s16": i16], |a, b, c| a.wrapping_sub(b));
    forms!("sub.TY %d, %a, %b;", [B32, B32], B32, ["u32": u32, "s32": i32], |a, b, c| a.wrapping_sub(b));
    forms!("sub.TY %d, %a, %b;", [B64, B64], B64, ["u64": u64, "s64": i64], |a, b, c| a.wrapping_sub(b));
}

#[test]
fn add_sub_saturate() {
    forms!("add.sat.TY %d, %a, %b;", [B32, B32], B32, ["s32": i32], |a, b, c| a.saturating_add(b));
    forms!("sub.sat.TY %d, %a, %b;", [B32, B32], B32, ["s32": i32], |a, b, c| a.saturating_sub(b));
    refused("add.sat.u32 %r1, %r2, %r3;", ".sat");
}

#[test]
fn mul_lo() {
    forms!("mul.lo.TY %d, %a, %b;", [B16, B16], B16, ["u16": u16, "s16": i16], |a, b, c| a.wrapping_mul(b));
    forms!("mul.lo.TY %d, %a, %b;", [B32, B32], B32, ["u32": u32, "s32": i32], |a, b, c| a.wrapping_mul(b));
    forms!("mul.lo.TY %d, %a, %b;", [B64, B64], B64, ["u64": u64, "s64": i64], |a, b, c| a.wrapping_mul(b));
    refused("mul.u32 %r1, %r2, %r3;", ".lo");
}

#[test]
fn mul_hi() {
    forms!("mul.hi.TY %d, %a, %b;", [B16, B16], B16, ["u16": u16, "s16": i16], |a, b, c| {
        (i64::from(a) * i64::from(b)) >> 16
    });
    forms!("mul.hi.TY %d, %a, %b;", [B32, B32], B32, ["u32": u32, "s32": i32], |a, b, c| {
        (i128::from(a) * i128::from(b)) >> 32
    });
    check("mul.hi.u64 %d, %a, %b;", &[B64, B64], B64, |[a, b, _]| {
        ((u128::from(a) * u128::from(b)) >> 64) as u64
    });
    check("mul.hi.s64 %d, %a, %b;", &[B64, B64], B64, |[a, b, _]| {
        ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64
    });
}

#[test]
fn mul_wide() {
    check("mul.wide.u16 %d, %a, %b;", &[B16, B16], B32, |[a, b, _]| {
        a * b
    });
    check("mul.wide.s16 %d, %a, %b;", &[B16, B16], B32, |[a, b, _]| {
        (i32::from(a as i16) * i32::from(b as i16)) as u32 as u64
    });
    check("mul.wide.u32 %d, %a, %b;", &[B32, B32], B64, |[a, b, _]| {
        a * b
    });
    check("mul.wide.s32 %d, %a, %b;", &[B32, B32], B64, |[a, b, _]| {
        (i64::from(a as i32) * i64::from(b as i32)) as u64
    });
}

#[test]
fn mad_lo_and_hi() {
    forms!("mad.lo.TY %d, %a, %b, %c;", [B16, B16, B16], B16, ["u16": u16, "s16": i16], |a, b, c| {
        a.wrapping_mul(b).wrapping_add(c)
    });
    forms!("mad.lo.TY %d, %a, %b, %c;", [B32, B32, B32], B32, ["u32": u32, "s32": i32], |a, b, c| {
        a.wrapping_mul(b).wrapping_add(c)
    });
    forms!("mad.lo.TY %d, %a, %b, %c;", [B64, B64, B64], B64, ["u64": u64, "s64": i64], |a, b, c| {
        a.wrapping_mul(b).wrapping_add(c)
    });
    forms!("mad.hi.TY %d, %a, %b, %c;", [B32, B32, B32], B32, ["u32": u32, "s32": i32], |a, b, c| {
        ((i128::from(a) * i128::from(b)) >> 32) + i128::from(c)
    });
    check(
        "mad.hi.u64 %d, %a, %b, %c;",
        &[B64, B64, B64],
        B64,
        |[a, b, c]| (((u128::from(a) * u128::from(b)) >> 64) as u64).wrapping_add(c),
    );
    check(
        "mad.hi.s64 %d, %a, %b, %c;",
        &[B64, B64, B64],
        B64,
        |[a, b, c]| (((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64).wrapping_add(c),
    );
}

#[test]
fn mad_wide() {
    check(
        "mad.wide.u16 %d, %a, %b, %c;",
        &[B16, B16, B32],
        B32,
        |[a, b, c]| (a * b + c) as u32 as u64,
    );
    check(
        "mad.wide.s16 %d, %a, %b, %c;",
        &[B16, B16, B32],
        B32,
        |[a, b, c]| {
            (i32::from(a as i16) * i32::from(b as i16)).wrapping_add(c as i32) as u32 as u64
        },
    );
    check(
        "mad.wide.u32 %d, %a, %b, %c;",
        &[B32, B32, B64],
        B64,
        |[a, b, c]| (a * b).wrapping_add(c),
    );
    check(
        "mad.wide.s32 %d, %a, %b, %c;",
        &[B32, B32, B64],
        B64,
        |[a, b, c]| (i64::from(a as i32) * i64::from(b as i32)).wrapping_add(c as i64) as u64,
    );
}

#[test]
fn mul24_and_mad24() {
    let signed = |x: u64| ((x as u32) << 8) as i32 >> 8;
    check("mul24.lo.u32 %d, %a, %b;", &[B32, B32], B32, |[a, b, _]| {
        ((a & 0xff_ffff) * (b & 0xff_ffff)) as u32 as u64
    });
    check("mul24.lo.s32 %d, %a, %b;", &[B32, B32], B32, |[a, b, _]| {
        signed(a).wrapping_mul(signed(b)) as u32 as u64
    });
    check(
        "mad24.lo.s32 %d, %a, %b, %c;",
        &[B32, B32, B32],
        B32,
        |[a, b, c]| signed(a).wrapping_mul(signed(b)).wrapping_add(c as i32) as u32 as u64,
    );
}

#[test]
fn div_and_rem() {
    forms!("div.TY %d, %a, %b;", [B16, B16], B16, ["u16": u16, "s16": i16], |a, b, c| a.checked_div(b).unwrap_or(if b == 0 { !0 } else { a }));
    forms!("div.TY %d, %a, %b;", [B32, B32], B32, ["u32": u32, "s32": i32], |a, b, c| a.checked_div(b).unwrap_or(if b == 0 { !0 } else { a }));
    forms!("div.TY %d, %a, %b;", [B64, B64], B64, ["u64": u64, "s64": i64], |a, b, c| a.checked_div(b).unwrap_or(if b == 0 { !0 } else { a }));
    forms!("rem.TY %d, %a, %b;", [B16, B16], B16, ["u16": u16, "s16": i16], |a, b, c| if b == 0 { a } else { a.checked_rem(b).unwrap_or(0) });
    forms!("rem.TY %d, %a, %b;", [B32, B32], B32, ["u32": u32, "s32": i32], |a, b, c| if b == 0 { a } else { a.checked_rem(b).unwrap_or(0) });
    forms!("rem.TY %d, %a, %b;", [B64, B64], B64, ["u64": u64, "s64": i64], |a, b, c| if b == 0 { a } else { a.checked_rem(b).unwrap_or(0) });
}

#[test]
fn min_and_max() {
    forms!("min.TY %d, %a, %b;", [B16, B16], B16, ["u16": u16, "s16": i16], |a, b, c| if a < b { a } else { b });
    forms!("min.TY %d, %a, %b;", [B32, B32], B32, ["u32": u32, "s32": i32], |a, b, c| if a < b { a } else { b });
    forms!("min.TY %d, %a, %b;", [B64, B64], B64, ["u64": u64, "s64": i64], |a, b, c| if a < b { a } else { b });
    forms!("max.TY %d, %a, %b;", [B16, B16], B16, ["u16": u16, "s16": i16], |a, b, c| if a > b { a } else { b });
    forms!("max.TY %d, %a, %b;", [B32, B32], B32, ["u32": u32, "s32": i32], |a, b, c| if a > b { a } else { b });
    forms!("max.TY %d, %a, %b;", [B64, B64], B64, ["u64": u64, "s64": i64], |a, b, c| if a > b { a } else { b });
    forms!("max.relu.TY %d, %a, %b;", [B32, B32], B32, ["s32": i32], |a, b, c| if a > b { a } else { b }.max(0));
    forms!("min.relu.TY %d, %a, %b;", [B32, B32], B32, ["s32": i32], |a, b, c| if a < b { a } else { b }.max(0));
}

#[test]
fn neg_and_abs() {
    forms!("neg.TY %d, %a;", [B16], B16, ["s16": i16], |a, b, c| 0i16.wrapping_sub(a));
    forms!("neg.TY %d, %a;", [B32], B32, ["s32": i32], |a, b, c| 0i32.wrapping_sub(a));
    forms!("neg.TY %d, %a;", [B64], B64, ["s64": i64], |a, b, c| 0i64.wrapping_sub(a));
    forms!("abs.TY %d, %a;", [B16], B16, ["s16": i16], |a, b, c| a.unsigned_abs());
    forms!("abs.TY %d, %a;", [B32], B32, ["s32": i32], |a, b, c| a.unsigned_abs());
    forms!("abs.TY %d, %a;", [B64], B64, ["s64": i64], |a, b, c| a.unsigned_abs());
    refused("neg.u32 %r1, %r2;", "U32");
}

#[test]
fn sad() {
    forms!("sad.TY %d, %a, %b, %c;", [B32, B32, B32], B32, ["u32": u32, "s32": i32], |a, b, c| {
        let distance = (i128::from(a) - i128::from(b)).unsigned_abs() as u32;
        (c as u32).wrapping_add(distance)
    });
    forms!("sad.TY %d, %a, %b, %c;", [B64, B64, B64], B64, ["u64": u64, "s64": i64], |a, b, c| {
        let distance = (i128::from(a) - i128::from(b)).unsigned_abs() as u64;
        (c as u64).wrapping_add(distance)
    });
    forms!("sad.TY %d, %a, %b, %c;", [B16, B16, B16], B16, ["u16": u16, "s16": i16], |a, b, c| {
        (i64::from(a) - i64::from(b)).abs() + i64::from(c)
    });
}

#[test]
fn carry_chains_add_128_bits() {
    // (a:b) + (c:a), low halves first; the result is the high half.
    let body = ".reg .b64 %low; add.cc.u64 %low, %b, %a; addc.u64 %d, %a, %c;";
    check(body, &[B64, B64, B64], B64, |[a, b, c]| {
        let sum =
            (u128::from(a) << 64 | u128::from(b)).wrapping_add(u128::from(c) << 64 | u128::from(a));
        (sum >> 64) as u64
    });
    let body = ".reg .b32 %low, %mid; add.cc.u32 %low, %b, %a; addc.cc.u32 %mid, %a, %c; addc.u32 %d, 0, 0;";
    check(body, &[B32, B32, B32], B32, |[a, b, c]| {
        (((a << 32 | b) as u128 + (c << 32 | a) as u128) >> 64) as u64
    });
}

#[test]
fn borrow_chains_subtract_128_bits() {
    let body = ".reg .b64 %low; sub.cc.u64 %low, %b, %a; subc.u64 %d, %a, %c;";
    check(body, &[B64, B64, B64], B64, |[a, b, c]| {
        let sum =
            (u128::from(a) << 64 | u128::from(b)).wrapping_sub(u128::from(c) << 64 | u128::from(a));
        (sum >> 64) as u64
    });
}

#[test]
fn mad_cc_carries() {
    let body = ".reg .b32 %low; mad.lo.cc.u32 %low, %a, %b, %c; madc.hi.u32 %d, %a, %b, 0;";
    check(body, &[B32, B32, B32], B32, |[a, b, c]| (a * b + c) >> 32);
    let wide = |a, b| u128::from(a) * u128::from(b);
    let body = ".reg .b64 %low; mad.lo.cc.u64 %low, %a, %b, %c; madc.hi.u64 %d, %a, %b, 0;";
    check(body, &[B64, B64, B64], B64, |[a, b, c]| {
        ((wide(a, b) + u128::from(c)) >> 64) as u64
    });
    let body = ".reg .b64 %high; mad.hi.cc.u64 %high, %a, %b, %c; addc.u64 %d, 0, 0;";
    check(body, &[B64, B64, B64], B64, |[a, b, c]| {
        (((wide(a, b) >> 64) + u128::from(c)) >> 64) as u64
    });
    refused("mad.hi.cc.s32 %r1, %r2, %r3, %r4;", "carry");
}

#[test]
fn dp4a_all_signs() {
    let byte = |x: u64, i: u32, signed: bool| {
        let byte = (x >> (8 * i)) as u8;
        if signed {
            i64::from(byte as i8)
        } else {
            i64::from(byte)
        }
    };
    for (a_type, a_signed) in [("u32", false), ("s32", true)] {
        for (b_type, b_signed) in [("u32", false), ("s32", true)] {
            let body = format!("dp4a.{a_type}.{b_type} %d, %a, %b, %c;");
            check(&body, &[B32, B32, B32], B32, |[a, b, c]| {
                let dot: i64 = (0..4)
                    .map(|i| byte(a, i, a_signed) * byte(b, i, b_signed))
                    .sum();
                (c as u32).wrapping_add(dot as u32) as u64
            });
        }
    }
}

#[test]
fn dp2a_low_and_high() {
    let body = "dp2a.lo.s32.u32 %d, %a, %b, %c;";
    check(body, &[B32, B32, B32], B32, |[a, b, c]| {
        let dot = i64::from(a as i16) * (b as u8 as i64)
            + i64::from((a >> 16) as i16) * ((b >> 8) as u8 as i64);
        (c as u32).wrapping_add(dot as u32) as u64
    });
    let body = "dp2a.hi.u32.s32 %d, %a, %b, %c;";
    check(body, &[B32, B32, B32], B32, |[a, b, c]| {
        let dot = (a & 0xffff) as i64 * i64::from((b >> 16) as i8)
            + (a >> 16) as i64 * i64::from((b >> 24) as i8);
        (c as u32).wrapping_add(dot as u32) as u64
    });
}

#[test]
fn immediates_and_negative_immediates() {
    check("add.s32 %d, %a, -3;", &[B32], B32, |[a, ..]| {
        (a as i32).wrapping_sub(3) as u32 as u64
    });
    check("add.s64 %d, %a, -3;", &[B64], B64, |[a, ..]| {
        a.wrapping_sub(3)
    });
    check("add.u32 %d, %a, 0xFFFFFFFF;", &[B32], B32, |[a, ..]| {
        (a as u32).wrapping_sub(1) as u64
    });
    check("add.u32 %d, %a, WARP_SZ;", &[B32], B32, |[a, ..]| {
        (a as u32).wrapping_add(32) as u64
    });
}

#[test]
fn what_is_not_known_is_refused() {
    refused("frobnicate.b32 %r1, %r2;", "unknown instruction");
    refused("add.s32.wild %r1, %r2, %r3;", "wild");
    refused("add.s32 %r1, %r2;", "operands");
    refused("add.s32 %r1, %rd2, %r3;", "width");
    refused("add.s32 %r1, %missing, %r3;", "missing");
    refused("wgmma.fence.sync.aligned;", "unknown instruction");
    refused(
        "cp.async.bulk.tensor.1d.global.shared::cta.bulk_group [%rd1, {%r1}], [%r2];",
        "form",
    );
}
