//! f16 and bf16 arithmetic, and conversions.

use super::Compare::{Bits, F16x2Bits, F32Bits};
use super::Input::{Bf16x2Unit, F16x2, F32, F32Moderate, Words};
use super::{Form, form};

/// The forms.
pub const FORMS: &[Form] = &[
    form(
        "fma.f16x2",
        &[F16x2, F16x2, F16x2],
        1,
        F16x2Bits,
        "fma.rn.f16x2 d0, a0, a1, a2;",
    ),
    form(
        "add.f16x2",
        &[F16x2, F16x2],
        1,
        F16x2Bits,
        "add.rn.f16x2 d0, a0, a1;",
    ),
    form(
        "max.nan.f16x2",
        &[F16x2, F16x2],
        1,
        F16x2Bits,
        "max.NaN.f16x2 d0, a0, a1;",
    ),
    form(
        "fma.bf16x2",
        &[Bf16x2Unit, Bf16x2Unit, Bf16x2Unit],
        1,
        Bits,
        "fma.rn.bf16x2 d0, a0, a1, a2;",
    ),
    form(
        "cvt.f32.f16",
        &[F16x2],
        2,
        F32Bits,
        ".reg .b16 l, h; mov.b32 {l, h}, a0; cvt.f32.f16 d0, l; cvt.f32.f16 d1, h;",
    ),
    form(
        "cvt.rn.f16.f32",
        &[F32],
        1,
        F16x2Bits,
        ".reg .b16 h, z; cvt.rn.f16.f32 h, a0; mov.b16 z, 0; mov.b32 d0, {h, z};",
    ),
    form(
        "cvt.rz.f16.f32",
        &[F32],
        1,
        F16x2Bits,
        ".reg .b16 h, z; cvt.rz.f16.f32 h, a0; mov.b16 z, 0; mov.b32 d0, {h, z};",
    ),
    form(
        "cvt.rn.f16x2.f32",
        &[F32, F32],
        1,
        F16x2Bits,
        "cvt.rn.f16x2.f32 d0, a0, a1;",
    ),
    form(
        "cvt.rn.bf16x2.f32",
        &[F32, F32],
        1,
        Bits,
        "cvt.rn.bf16x2.f32 d0, a0, a1;",
    ),
    form(
        "cvt.rn.bf16.f32",
        &[F32],
        1,
        Bits,
        ".reg .b16 h, z; cvt.rn.bf16.f32 h, a0; mov.b16 z, 0; mov.b32 d0, {h, z};",
    ),
    form(
        "cvt.rna.tf32.f32",
        &[F32Moderate],
        1,
        Bits,
        "cvt.rna.tf32.f32 d0, a0;",
    ),
    form(
        "cvt.rni.s32.f32",
        &[F32],
        1,
        Bits,
        "cvt.rni.s32.f32 d0, a0;",
    ),
    form(
        "cvt.rzi.u32.f32",
        &[F32],
        1,
        Bits,
        "cvt.rzi.u32.f32 d0, a0;",
    ),
    form(
        "cvt.rn.f32.s32",
        &[Words],
        1,
        Bits,
        "cvt.rn.f32.s32 d0, a0;",
    ),
    form(
        "cvt.rn.f32.u32",
        &[Words],
        1,
        Bits,
        "cvt.rn.f32.u32 d0, a0;",
    ),
];
