//! f32 arithmetic and comparisons.

use super::Compare::{Bits, F32Bits};
use super::Input::{F32, F32Moderate, F32Unit};
use super::{Form, ULP, form};

/// The forms.
pub const FORMS: &[Form] = &[
    form("add.f32", &[F32, F32], 1, F32Bits, "add.rn.f32 d0, a0, a1;"),
    form(
        "add.ftz.f32",
        &[F32, F32],
        1,
        F32Bits,
        "add.rn.ftz.f32 d0, a0, a1;",
    ),
    form("mul.f32", &[F32, F32], 1, F32Bits, "mul.rn.f32 d0, a0, a1;"),
    form(
        "fma.f32",
        &[F32, F32, F32],
        1,
        F32Bits,
        "fma.rn.f32 d0, a0, a1, a2;",
    ),
    form(
        "fma.ftz.f32",
        &[F32, F32, F32],
        1,
        F32Bits,
        "fma.rn.ftz.f32 d0, a0, a1, a2;",
    ),
    form("div.f32", &[F32, F32], 1, F32Bits, "div.rn.f32 d0, a0, a1;"),
    form("rcp.f32", &[F32], 1, F32Bits, "rcp.rn.f32 d0, a0;"),
    form("sqrt.f32", &[F32], 1, F32Bits, "sqrt.rn.f32 d0, a0;"),
    form("min.f32", &[F32, F32], 1, F32Bits, "min.f32 d0, a0, a1;"),
    form("max.f32", &[F32, F32], 1, F32Bits, "max.f32 d0, a0, a1;"),
    form(
        "min.nan.f32",
        &[F32, F32],
        1,
        F32Bits,
        "min.NaN.f32 d0, a0, a1;",
    ),
    form(
        "max.nan.f32",
        &[F32, F32],
        1,
        F32Bits,
        "max.NaN.f32 d0, a0, a1;",
    ),
    form(
        "rcp.approx.f32",
        &[F32Moderate],
        1,
        ULP,
        "rcp.approx.f32 d0, a0;",
    ),
    form(
        "div.approx.f32",
        &[F32Moderate, F32Moderate],
        1,
        ULP,
        "div.approx.f32 d0, a0, a1;",
    ),
    form(
        "ex2.approx.f32",
        &[F32Unit],
        1,
        ULP,
        "ex2.approx.f32 d0, a0;",
    ),
    form(
        "rsqrt.approx.f32",
        &[F32Moderate],
        1,
        ULP,
        "abs.f32 a0, a0; rsqrt.approx.f32 d0, a0;",
    ),
    form(
        "setp.lt.f32",
        &[F32, F32],
        1,
        Bits,
        ".reg .pred p; setp.lt.f32 p, a0, a1; selp.b32 d0, 1, 0, p;",
    ),
    form(
        "setp.gtu.f32",
        &[F32, F32],
        1,
        Bits,
        ".reg .pred p; setp.gtu.f32 p, a0, a1; selp.b32 d0, 1, 0, p;",
    ),
    form(
        "setp.nan.f32",
        &[F32, F32],
        1,
        Bits,
        ".reg .pred p; setp.nan.f32 p, a0, a1; selp.b32 d0, 1, 0, p;",
    ),
];
