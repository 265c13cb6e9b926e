//! Integers and bits.

use super::Compare::Bits;
use super::Input::{Shift, Words};
use super::{Form, form};

/// The forms.
pub const FORMS: &[Form] = &[
    form(
        "mul.hi.u32",
        &[Words, Words],
        1,
        Bits,
        "mul.hi.u32 d0, a0, a1;",
    ),
    form(
        "mul.hi.s32",
        &[Words, Words],
        1,
        Bits,
        "mul.hi.s32 d0, a0, a1;",
    ),
    form(
        "mad.lo.s32",
        &[Words, Words, Words],
        1,
        Bits,
        "mad.lo.s32 d0, a0, a1, a2;",
    ),
    form(
        "div.u32",
        &[Words, Words],
        1,
        Bits,
        "or.b32 a1, a1, 1; div.u32 d0, a0, a1;",
    ),
    form(
        "rem.u32",
        &[Words, Words],
        1,
        Bits,
        "or.b32 a1, a1, 1; rem.u32 d0, a0, a1;",
    ),
    form(
        "prmt.b32",
        &[Words, Words, Words],
        1,
        Bits,
        "prmt.b32 d0, a0, a1, a2;",
    ),
    form(
        "bfe.u32",
        &[Words, Shift, Shift],
        1,
        Bits,
        "bfe.u32 d0, a0, a1, a2;",
    ),
    form(
        "bfe.s32",
        &[Words, Shift, Shift],
        1,
        Bits,
        "bfe.s32 d0, a0, a1, a2;",
    ),
    form(
        "bfi.b32",
        &[Words, Words, Shift, Shift],
        1,
        Bits,
        "bfi.b32 d0, a0, a1, a2, a3;",
    ),
    form(
        "lop3.b32",
        &[Words, Words, Words],
        1,
        Bits,
        "lop3.b32 d0, a0, a1, a2, 0x96;",
    ),
    form("shl.b32", &[Words, Shift], 1, Bits, "shl.b32 d0, a0, a1;"),
    form("shr.s32", &[Words, Shift], 1, Bits, "shr.s32 d0, a0, a1;"),
    form("shr.u32", &[Words, Shift], 1, Bits, "shr.u32 d0, a0, a1;"),
    form(
        "shf.l.wrap",
        &[Words, Words, Shift],
        1,
        Bits,
        "shf.l.wrap.b32 d0, a0, a1, a2;",
    ),
    form(
        "shf.r.wrap",
        &[Words, Words, Shift],
        1,
        Bits,
        "shf.r.wrap.b32 d0, a0, a1, a2;",
    ),
    form(
        "shf.r.clamp",
        &[Words, Words, Shift],
        1,
        Bits,
        "shf.r.clamp.b32 d0, a0, a1, a2;",
    ),
    form("clz.b32", &[Words], 1, Bits, "clz.b32 d0, a0;"),
    form("popc.b32", &[Words], 1, Bits, "popc.b32 d0, a0;"),
    form("brev.b32", &[Words], 1, Bits, "brev.b32 d0, a0;"),
    form("bfind.u32", &[Words], 1, Bits, "bfind.u32 d0, a0;"),
    form("bfind.s32", &[Words], 1, Bits, "bfind.s32 d0, a0;"),
];
