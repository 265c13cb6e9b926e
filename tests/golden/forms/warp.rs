//! What the lanes of a warp tell each other.

use super::Compare::Bits;
use super::Input::{Lane, Words};
use super::{Form, form};

/// The forms.
pub const FORMS: &[Form] = &[
    form(
        "shfl.up",
        &[Words, Lane],
        2,
        Bits,
        ".reg .pred p; shfl.sync.up.b32 d0|p, a0, 3, 0, 0xffffffff; selp.b32 d1, 1, 0, p;",
    ),
    form(
        "shfl.down",
        &[Words, Lane],
        2,
        Bits,
        ".reg .pred p; shfl.sync.down.b32 d0|p, a0, 5, 0x1f, 0xffffffff; selp.b32 d1, 1, 0, p;",
    ),
    form(
        "shfl.down.width8",
        &[Words, Lane],
        2,
        Bits,
        ".reg .pred p; shfl.sync.down.b32 d0|p, a0, 3, 0x181f, 0xffffffff; selp.b32 d1, 1, 0, p;",
    ),
    form(
        "shfl.bfly",
        &[Words, Lane],
        2,
        Bits,
        ".reg .pred p; shfl.sync.bfly.b32 d0|p, a0, 21, 0x1f, 0xffffffff; selp.b32 d1, 1, 0, p;",
    ),
    form(
        "shfl.idx",
        &[Words, Lane],
        2,
        Bits,
        ".reg .pred p; shfl.sync.idx.b32 d0|p, a0, a1, 0x1f, 0xffffffff; selp.b32 d1, 1, 0, p;",
    ),
    form(
        "vote.ballot",
        &[Words],
        1,
        Bits,
        ".reg .pred p; setp.gt.u32 p, a0, 0x40000000; vote.sync.ballot.b32 d0, p, 0xffffffff;",
    ),
    form(
        "redux.add",
        &[Words],
        1,
        Bits,
        "redux.sync.add.s32 d0, a0, 0xffffffff;",
    ),
    form(
        "redux.min.u32",
        &[Words],
        1,
        Bits,
        "redux.sync.min.u32 d0, a0, 0xffffffff;",
    ),
    form(
        "redux.max.s32",
        &[Words],
        1,
        Bits,
        "redux.sync.max.s32 d0, a0, 0xffffffff;",
    ),
    form(
        "match.any",
        &[Lane],
        1,
        Bits,
        "shr.u32 a0, a0, 3; match.any.sync.b32 d0, a0, 0xffffffff;",
    ),
];
