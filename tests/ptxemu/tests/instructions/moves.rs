//! Moves, packing and selection.

use crate::table::{Kind::*, check, refused, run};

#[test]
fn plain_moves() {
    check("mov.b16 %d, %a;", &[B16], B16, |[a, ..]| a);
    check("mov.u32 %d, %a;", &[B32], B32, |[a, ..]| a);
    check("mov.f32 %d, %a;", &[F32], F32, |[a, ..]| a);
    check("mov.b64 %d, %a;", &[B64], B64, |[a, ..]| a);
    check("mov.f64 %d, 0d3FF8000000000000;", &[], F64, |_| {
        1.5f64.to_bits()
    });
    check("mov.f32 %d, 0f40490FDB;", &[], F32, |_| {
        std::f32::consts::PI.to_bits().into()
    });
}

#[test]
fn packing_and_unpacking() {
    check("mov.b32 %d, {%a, %b};", &[B16, B16], B32, |[a, b, _]| {
        a | b << 16
    });
    check("mov.b64 %d, {%a, %b};", &[B32, B32], B64, |[a, b, _]| {
        a | b << 32
    });
    check(
        "mov.b64 %d, {%a, %b, %a, %c};",
        &[B16, B16, B16],
        B64,
        |[a, b, c]| a | b << 16 | a << 32 | c << 48,
    );
    let body = ".reg .b16 %x, %y; mov.b32 {%x, %y}, %a; mov.b32 %d, {%y, %x};";
    check(body, &[B32], B32, |[a, ..]| {
        (a as u32).rotate_left(16).into()
    });
    let body = ".reg .b32 %x; mov.b64 {%x, %d}, %a;";
    check(body, &[B64], B32, |[a, ..]| a >> 32);
    let body = "mov.b64 {%d, _}, %a;";
    check(body, &[B64], B32, |[a, ..]| a & 0xffff_ffff);
    refused("mov.b64 %rd1, {%r1, %r2, %r3};", "width");
}

#[test]
fn selp_and_slct() {
    check(
        "selp.b32 %d, %a, %b, %c;",
        &[B32, B32, Pred],
        B32,
        |[a, b, c]| if c == 1 { a } else { b },
    );
    check(
        "selp.b64 %d, %a, %b, !%c;",
        &[B64, B64, Pred],
        B64,
        |[a, b, c]| if c == 0 { a } else { b },
    );
    check(
        "selp.b16 %d, %a, 5, %c;",
        &[B16, B16, Pred],
        B16,
        |[a, _, c]| if c == 1 { a } else { 5 },
    );
    check(
        "selp.f32 %d, %a, 0f3F800000, %c;",
        &[F32, B32, Pred],
        F32,
        |[a, _, c]| {
            if c == 1 { a } else { 1f32.to_bits().into() }
        },
    );
    check(
        "slct.u32.s32 %d, %a, %b, %c;",
        &[B32, B32, B32],
        B32,
        |[a, b, c]| {
            if c as i32 >= 0 { a } else { b }
        },
    );
    check(
        "slct.u64.f32 %d, %a, %b, %c;",
        &[B64, B64, F32],
        B64,
        |[a, b, c]| {
            if f32::from_bits(c as u32) >= 0.0 {
                a
            } else {
                b
            }
        },
    );
    check(
        "slct.ftz.f32.f32 %d, %a, %b, %c;",
        &[F32, F32, F32],
        F32,
        |[a, b, c]| {
            let c = f32::from_bits(c as u32);
            if c >= 0.0 || c > -f32::MIN_POSITIVE {
                a
            } else {
                b
            }
        },
    );
}

#[test]
fn guards_leave_other_lanes_alone() {
    let body = "mov.u32 %d, 7; @%c mov.u32 %d, %a; @!%c add.u32 %d, %d, %b;";
    check(body, &[B32, B32, Pred], B32, |[a, b, c]| {
        if c == 1 {
            a
        } else {
            (b as u32).wrapping_add(7).into()
        }
    });
}

#[test]
fn lanes_that_branch_apart_meet_again() {
    let body = ".reg .pred %odd; .reg .b32 %bit; mov.u32 %d, 0; and.b32 %bit, %a, 1;\n\
                setp.eq.u32 %odd, %bit, 1; @%odd bra $odd;\n\
                add.u32 %d, %d, 10; bra $join;\n\
                $odd: add.u32 %d, %d, 20;\n\
                $join: add.u32 %d, %d, 1;";
    check(
        body,
        &[B32],
        B32,
        |[a, ..]| if a & 1 == 1 { 21 } else { 11 },
    );
}

#[test]
fn loops_with_different_trip_counts() {
    let body = ".reg .pred %more; .reg .b32 %left; mov.u32 %d, 0; mov.u32 %left, %a;\n\
                { $again: setp.ne.u32 %more, %left, 0; @!%more bra $done;\n\
                add.u32 %d, %d, %left; sub.u32 %left, %left, 1; bra.uni $again; $done: }\n\
                add.u32 %d, %d, 1000;";
    check(body, &[Amount], B32, |[a, ..]| a * (a + 1) / 2 + 1000);
}

#[test]
fn labels_belong_to_their_block() {
    let body = "mov.u32 %d, 0; { bra $l; add.u32 %d, %d, 1; $l: }\n\
                { bra $l; add.u32 %d, %d, 2; $l: }";
    assert_eq!(run(body, &[], B32, &[[0; 3]]), [0]);
}

#[test]
fn branch_tables() {
    let body = "$table: .branchtargets $zero, $one;\nmov.u32 %d, 5; brx.idx %a, $table;\n\
                $zero: add.u32 %d, %d, 10; $one: add.u32 %d, %d, 100;";
    assert_eq!(run(body, &[B32], B32, &[[0; 3]; 4]), [115; 4]);
    assert_eq!(run(body, &[B32], B32, &[[1, 0, 0]; 4]), [105; 4]);
}
