//! Tensor cores and their loads.

use super::Compare::Bits;
use super::Input::{Bf16x2Unit, F16x2Unit, F32Unit, Words};
use super::{Compare, Form, form};

/// Sums of up to 17 terms in [-1, 1], in an order and with a truncation of the hardware's own choice.
const MMA: Compare = Compare::F32 {
    relative: 1.0 / (1 << 20) as f32,
    floor: 16.0,
};

/// Writes 16 bytes per lane to shared memory: the rows that `ldmatrix` reads, and their address in `row`.
macro_rules! tile {
    ($load:literal) => {
        concat!(
            ".reg .b32 row;\nmov.u32 row, tile;\nmad.lo.u32 row, %lane, 16, row;\n",
            "st.shared.v4.b32 [row], {a0, a1, a2, a3};\nbar.sync 0;\n",
            $load
        )
    };
}

/// The forms.
pub const FORMS: &[Form] = &[
    form(
        "ldmatrix.x1",
        &[Words, Words, Words, Words],
        1,
        Bits,
        tile!("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {d0}, [row];"),
    ),
    form(
        "ldmatrix.x2.trans",
        &[Words, Words, Words, Words],
        2,
        Bits,
        tile!("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {d0, d1}, [row];"),
    ),
    form(
        "ldmatrix.x4",
        &[Words, Words, Words, Words],
        4,
        Bits,
        tile!("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {d0, d1, d2, d3}, [row];"),
    ),
    form(
        "ldmatrix.x4.trans",
        &[Words, Words, Words, Words],
        4,
        Bits,
        tile!("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {d0, d1, d2, d3}, [row];"),
    ),
    form(
        "mma.m16n8k8.f16",
        &[
            F16x2Unit, F16x2Unit, F16x2Unit, F32Unit, F32Unit, F32Unit, F32Unit,
        ],
        4,
        MMA,
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {d0, d1, d2, d3}, {a0, a1}, {a2}, {a3, a4, a5, a6};",
    ),
    form(
        "mma.m16n8k16.f16",
        &[
            F16x2Unit, F16x2Unit, F16x2Unit, F16x2Unit, F16x2Unit, F16x2Unit, F32Unit, F32Unit,
        ],
        4,
        MMA,
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {d0, d1, d2, d3}, {a0, a1, a2, a3}, {a4, a5}, \
         {a6, a7, a6, a7};",
    ),
    form(
        "mma.m16n8k16.f16.f16",
        &[
            F16x2Unit, F16x2Unit, F16x2Unit, F16x2Unit, F16x2Unit, F16x2Unit, F16x2Unit, F16x2Unit,
        ],
        2,
        Compare::F16x2 { absolute: 0.016 },
        "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {d0, d1}, {a0, a1, a2, a3}, {a4, a5}, {a6, a7};",
    ),
    form(
        "mma.m16n8k16.bf16",
        &[
            Bf16x2Unit, Bf16x2Unit, Bf16x2Unit, Bf16x2Unit, Bf16x2Unit, Bf16x2Unit, F32Unit,
            F32Unit,
        ],
        4,
        MMA,
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {d0, d1, d2, d3}, {a0, a1, a2, a3}, {a4, a5}, \
         {a6, a7, a6, a7};",
    ),
    form(
        "mma.m16n8k4.tf32",
        &[
            F32Unit, F32Unit, F32Unit, F32Unit, F32Unit, F32Unit, F32Unit,
        ],
        4,
        MMA,
        "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {d0, d1, d2, d3}, {a0, a1}, {a2}, {a3, a4, a5, a6};",
    ),
    form(
        "mma.m16n8k8.tf32",
        &[
            F32Unit, F32Unit, F32Unit, F32Unit, F32Unit, F32Unit, F32Unit, F32Unit,
        ],
        4,
        MMA,
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {d0, d1, d2, d3}, {a0, a1, a2, a3}, {a4, a5}, \
         {a6, a7, a6, a7};",
    ),
];
