//! `atom` and `red`.

use crate::bench::{STORE, warp};

/// The value at the first output word after 32 lanes have applied an operation with their lane
/// number (or `operand`), and what each lane got back.
fn apply(op: &str, space: &str, before: u32, operand: &str) -> (u32, Vec<u32>) {
    let shared = space == "shared";
    let place = if shared { "[s]" } else { "[%out]" };
    let prepare = if shared {
        format!(
            ".shared .b32 s; setp.eq.u32 %p0, %tid, 0; @%p0 st.shared.u32 [s], {before}; bar.sync 0;"
        )
    } else {
        String::new()
    };
    let finish = if shared {
        "ld.shared.u32 %r9, [s]; @%p0 st.global.u32 [%out], %r9;"
    } else {
        ""
    };
    let body = format!(
        "{prepare} atom.{space}.{op} %r1, {place}, {operand}; bar.sync 0; {finish}\n\
         mul.wide.u32 %rd1, %tid, 4; add.u64 %rd1, %out, %rd1; st.global.u32 [%rd1+4], %r1;"
    );
    let mut out = warp(&body).output(33, before).run();
    let last = out.remove(0);
    (last, out)
}

#[test]
fn integer_operations_in_both_spaces() {
    for space in ["global", "shared"] {
        let (last, old) = apply("add.u32", space, 5, "%tid");
        assert_eq!(last, 5 + 496);
        assert_eq!(
            old,
            (0..32)
                .map(|i| 5 + i * (i.max(1) - 1) / 2)
                .collect::<Vec<u32>>()
        );
        assert_eq!(apply("min.s32", space, 3, "%tid").0, 0);
        assert_eq!(apply("max.u32", space, 3, "%tid").0, 31);
        assert_eq!(apply("max.s32", space, u32::MAX, "%tid").0, 31);
        assert_eq!(apply("min.u32", space, u32::MAX, "%tid").0, 0);
        assert_eq!(apply("and.b32", space, 0xff, "0x0f").0, 0x0f);
        assert_eq!(apply("or.b32", space, 0x100, "%tid").0, 0x11f);
        assert_eq!(apply("xor.b32", space, 1, "%tid").0, 1);
        assert_eq!(apply("exch.b32", space, 77, "%tid").0, 31);
        assert_eq!(apply("inc.u32", space, 0, "9").0, 2);
        assert_eq!(apply("dec.u32", space, 3, "9").0, 1);
        assert_eq!(apply("cas.b32", space, 4, "%tid, 1000").0, 1000);
    }
}

#[test]
fn float_operations() {
    let one = 1f32.to_bits();
    assert_eq!(
        apply("add.f32", "global", one, "0f3F000000").0,
        17f32.to_bits()
    );
    // 1 + 32 * 0.5 in both halves of f16 and bf16.
    assert_eq!(
        apply("add.noftz.f16x2", "global", 0x3c00_3c00, "0x38003800").0,
        0x4c40_4c40
    );
    assert_eq!(
        apply("add.noftz.bf16x2", "shared", 0x3f80_3f80, "0x3f003f00").0,
        0x4188_4188
    );
}

#[test]
fn wide_operations() {
    let body = "cvt.u64.u32 %rd1, %tid; red.global.add.u64 [%out], %rd1;\n\
                atom.global.max.s64 %rd2, [%out+8], -5; atom.global.cas.b64 %rd3, [%out+16], 0, %rd1;\n\
                mov.b64 %rd4, 0d3FE0000000000000; red.global.add.f64 [%out+24], %rd4;";
    let out = warp(body).output(8, 0).run();
    assert_eq!(&out[..6], [496, 0, 0, 0, 1, 0]);
    let sum = f64::from_bits(u64::from(out[7]) << 32 | u64::from(out[6]));
    assert_eq!(sum, 16.0);
}

#[test]
fn operations_of_less_common_types() {
    let body = "mov.b16 %h0, 0x3800; red.global.add.noftz.f16 [%out], %h0; mov.b16 %h1, 0x3f00;\n\
                red.global.add.noftz.bf16 [%out+4], %h1; red.global.min.s64 [%out+8], -5; cvt.u64.u32 %rd1, %tid;\n\
                red.global.max.u64 [%out+16], %rd1; mov.b16 %h2, 0; mov.b16 %h3, 7;\n\
                atom.global.cas.b16 %h4, [%out+24], %h2, %h3;";
    let out = warp(body).output(7, 0).run();
    // 32 halves, in f16 and in bf16.
    assert_eq!(out, [0x4c00, 0x4180, -5i32 as u32, u32::MAX, 31, 0, 7]);

    // f16: 1 against 2 below and -2 above; the same bits are positive and negative in bf16 too.
    let body = "cvt.u64.u32 %rd1, %tid; red.global.min.u64 [%out], %rd1; mov.b32 %r1, 0xc0004000;\n\
                red.global.max.noftz.f16x2 [%out+8], %r1; red.global.min.noftz.f16x2 [%out+12], %r1;\n\
                mov.b16 %h0, 0x4000; mov.b16 %h1, 0xc000; red.global.max.noftz.f16 [%out+16], %h0;\n\
                red.global.min.noftz.f16 [%out+20], %h1; red.global.max.noftz.bf16x2 [%out+24], %r1;\n\
                red.global.min.noftz.bf16x2 [%out+28], %r1;";
    let out = warp(body).output(8, 0x3c00_3c00).run();
    assert_eq!(out[..2], [0, 0]);
    assert_eq!(
        out[2..],
        [
            0x3c00_4000,
            0xc000_3c00,
            0x3c00_4000,
            0x3c00_c000,
            0x3c00_4000,
            0xc000_3c00
        ]
    );
}

#[test]
fn reductions_and_vectors() {
    let body = "red.relaxed.gpu.global.add.u32 [%out], 2; red.global.and.b32 [%out+4], 6;\n\
                mov.b32 %f0, 0f3F800000; red.global.v2.f32.add [%out+8], {%f0, %f0};";
    let body = body.replace("red.global.v2.f32.add", "red.global.add.v2.f32");
    let out = warp(&body).output(4, 0).run();
    assert_eq!(out, [64, 0, 32f32.to_bits(), 32f32.to_bits()]);
}

#[test]
fn generic_atomics_find_shared_memory() {
    let body = format!(
        ".shared .b32 s; setp.eq.u32 %p0, %tid, 0; @%p0 st.shared.u32 [s], 0; bar.sync 0;\n\
         mov.u64 %rd1, s; cvta.shared.u64 %rd1, %rd1; atom.add.u32 %r1, [%rd1], 1; bar.sync 0;\n\
         ld.shared.u32 %r0, [s];{STORE}"
    );
    assert_eq!(warp(&body).run(), vec![32; 32]);
}
