//! Loads, stores, spaces, addresses, variables and functions.

use crate::bench::{LOAD, STORE, block, warp};

fn input() -> Vec<u32> {
    (0..32).map(|i| i * 3 + 100).collect()
}

#[test]
fn loads_extend_by_their_type() {
    let words = vec![0xfedc_ba98; 32];
    let cases = [
        ("ld.global.u8 %r0", 0x98u32),
        ("ld.global.s8 %r0", 0xffff_ff98),
        ("ld.global.u16 %r0", 0xba98),
        ("ld.global.s16 %r0", 0xffff_ba98),
        ("ld.global.b32 %r0", 0xfedc_ba98),
    ];
    for (load, expected) in cases {
        let out = warp(&format!("{load}, [%in];{STORE}"))
            .input(words.clone())
            .run();
        assert_eq!(out, vec![expected; 32], "{load}");
    }
    let body =
        format!("ld.global.s32 %rd0, [%in]; shr.u64 %rd0, %rd0, 32; cvt.u32.u64 %r0, %rd0;{STORE}");
    assert_eq!(warp(&body).input(words).run(), vec![u32::MAX; 32]);
}

#[test]
fn cache_hints_and_orders_do_not_change_values() {
    for hint in [
        "ld.global.nc.u32",
        "ld.global.ca.u32",
        "ld.global.cg.u32",
        "ld.global.cs.u32",
        "ld.global.lu.u32",
        "ld.global.cv.u32",
        "ld.global.nc.L1::no_allocate.L2::128B.u32",
        "ld.global.L1::evict_last.u32",
        "ld.volatile.global.u32",
        "ld.relaxed.gpu.global.u32",
        "ld.acquire.sys.global.u32",
        "ld.weak.global.u32",
        "ld.mmio.relaxed.sys.global.u32",
        "ldu.global.u32",
        "ld.u32",
    ] {
        let body = format!(
            "mul.wide.u32 %rd0, %tid, 4; add.u64 %rd0, %in, %rd0; {hint} %r0, [%rd0];{STORE}"
        );
        assert_eq!(warp(&body).run(), input(), "{hint}");
    }
    for hint in [
        "st.global.cg.u32",
        "st.global.wb.u32",
        "st.global.wt.u32",
        "st.global.cs.u32",
        "st.volatile.global.u32",
        "st.relaxed.gpu.global.u32",
        "st.release.gpu.global.u32",
        "st.u32",
        "st.global.L1::no_allocate.u32",
    ] {
        let body = format!(
            "{LOAD} mul.wide.u32 %rd1, %tid, 4; add.u64 %rd1, %out, %rd1; {hint} [%rd1], %r0;"
        );
        assert_eq!(warp(&body).run(), input(), "{hint}");
    }
}

#[test]
fn vectors_of_all_widths() {
    // Reverses groups of elements.
    let body = "mul.wide.u32 %rd0, %tid, 16; add.u64 %rd1, %in, %rd0; add.u64 %rd2, %out, %rd0;\n\
                ld.global.v4.u32 {%r0,%r1,%r2,%r3}, [%rd1]; st.global.v4.b32 [%rd2], {%r3,%r2,%r1,%r0};";
    let words: Vec<u32> = (0..128).collect();
    let mut bench = warp(body).input(words.clone());
    bench.output_words = 128;
    let expected: Vec<u32> = words
        .chunks(4)
        .flat_map(|c| c.iter().rev().copied())
        .collect();
    assert_eq!(bench.run(), expected);

    let body = "mul.wide.u32 %rd0, %tid, 16; add.u64 %rd1, %in, %rd0; add.u64 %rd2, %out, %rd0;\n\
                ld.global.v2.u64 {%rd3,%rd4}, [%rd1]; st.global.v2.b64 [%rd2], {%rd4,%rd3};";
    bench.body = body.to_owned();
    let expected: Vec<u32> = words
        .chunks(4)
        .flat_map(|c| [c[2], c[3], c[0], c[1]])
        .collect();
    assert_eq!(bench.run(), expected);

    let body = "mul.wide.u32 %rd0, %tid, 8; add.u64 %rd1, %in, %rd0; add.u64 %rd2, %out, %rd0;\n\
                ld.global.v4.u16 {%h0,%h1,%h2,%h3}, [%rd1]; st.global.v4.b16 [%rd2], {%h1,%h0,%h3,%h2};";
    let mut bench = warp(body).input(words[..64].to_vec());
    bench.output_words = 64;
    assert_eq!(
        bench.run(),
        words[..64]
            .iter()
            .map(|w| w.rotate_left(16))
            .collect::<Vec<_>>()
    );

    let body = "mul.wide.u32 %rd0, %tid, 32; add.u64 %rd1, %in, %rd0; add.u64 %rd2, %out, %rd0;\n\
                ld.global.v8.b32 {%r0,%r1,%r2,%r3,%r4,%r5,%r6,%r7}, [%rd1];\n\
                st.global.v8.b32 [%rd2], {%r7,%r6,%r5,%r4,%r3,%r2,%r1,%r0};";
    let words: Vec<u32> = (0..256).collect();
    let mut bench = warp(body).input(words.clone());
    bench.output_words = 256;
    let expected: Vec<u32> = words
        .chunks(8)
        .flat_map(|c| c.iter().rev().copied())
        .collect();
    assert_eq!(bench.run(), expected);
}

#[test]
fn shared_memory_static_and_dynamic() {
    let body = format!(
        ".shared .align 16 .b8 fixed[128];{LOAD}\n\
         mov.u32 %r1, fixed; shl.b32 %r2, %tid, 2; add.u32 %r1, %r1, %r2; st.shared.u32 [%r1], %r0;\n\
         mov.u32 %r3, dynamic; sub.u32 %r4, 124, %r2; add.u32 %r3, %r3, %r4; st.shared.u32 [%r3], %r0;\n\
         bar.sync 0; mov.u32 %r3, dynamic; add.u32 %r3, %r3, %r2;\n\
         ld.shared.u32 %r5, [%r3]; ld.shared.u32 %r6, [%r1]; mad.lo.u32 %r0, %r5, 1000, %r6;{STORE}"
    );
    let mut bench = warp(&body).module(".extern .shared .align 16 .b8 dynamic[];");
    bench.dynamic_shared = 128;
    let v = input();
    let expected: Vec<u32> = (0..32).map(|i| v[31 - i] * 1000 + v[i]).collect();
    assert_eq!(bench.run(), expected);
    assert_eq!(bench.parse().kernel("k").unwrap().static_shared_bytes, 128);
}

#[test]
fn generic_addresses_reach_every_space() {
    let body = format!(
        ".shared .b32 s[32]; .local .b32 l[4];{LOAD}\n\
         mov.u64 %rd1, s; cvta.shared.u64 %rd1, %rd1; mul.wide.u32 %rd2, %tid, 4;\n\
         add.u64 %rd1, %rd1, %rd2; st.u32 [%rd1], %r0; ld.u32 %r1, [%rd1];\n\
         cvta.to.shared.u64 %rd3, %rd1; cvt.u32.u64 %r2, %rd3; ld.shared.u32 %r3, [%r2];\n\
         mov.u64 %rd4, l; cvta.local.u64 %rd4, %rd4; st.u32 [%rd4+8], %tid; ld.local.u32 %r4, [l+8];\n\
         isspacep.shared %p0, %rd1; isspacep.local %p1, %rd4; isspacep.global %p2, %rd0;\n\
         isspacep.global %p3, %rd1; cvta.to.global.u64 %rd5, %rd0; ld.global.u32 %r5, [%rd5];\n\
         selp.u32 %r6, 1, 0, %p0; @%p1 add.u32 %r6, %r6, 2; @%p2 add.u32 %r6, %r6, 4;\n\
         @%p3 add.u32 %r6, %r6, 8; sub.u32 %r1, %r1, %r3; add.u32 %r1, %r1, %r4;\n\
         sub.u32 %r5, %r5, %r0; add.u32 %r1, %r1, %r5; mad.lo.u32 %r0, %r6, 100, %r1;{STORE}"
    );
    assert_eq!(
        warp(&body).run(),
        (0..32).map(|i| 700 + i).collect::<Vec<_>>()
    );
}

#[test]
fn parameters_can_be_addressed() {
    let body = format!(
        "mov.u64 %rd1, p_in; ld.param.u64 %rd2, [%rd1]; cvta.param.u64 %rd3, %rd1; ld.u64 %rd4, [%rd3];\n\
         sub.u64 %rd5, %rd4, %rd2; cvt.u32.u64 %r1, %rd5; ld.global.u32 %r0, [%rd2];\n\
         add.u32 %r0, %r0, %r1;{STORE}"
    );
    assert_eq!(warp(&body).run(), vec![100; 32]);
}

#[test]
fn module_variables() {
    let module = ".const .align 4 .f32 scale[3] = {0f3F800000, 2.0, 0f40400000};\n\
                  .global .align 4 .u32 counter = 41;\n.global .b8 zeros[64];";
    let body = format!(
        "ld.const.f32 %f0, [scale+8]; cvt.rzi.u32.f32 %r0, %f0; setp.ne.u32 %p0, %tid, 0;\n\
         mov.u64 %rd0, counter; ld.global.u32 %r1, [%rd0]; add.u32 %r0, %r0, %r1;\n\
         ld.global.u8 %r2, [zeros+63]; add.u32 %r0, %r0, %r2;{STORE}"
    );
    let bench = warp(&body).module(module);
    assert_eq!(bench.run(), vec![44; 32]);
    let module = bench.parse();
    let names: Vec<_> = module
        .globals()
        .iter()
        .map(|g| (g.name.as_str(), g.size, g.is_const))
        .collect();
    assert_eq!(
        names,
        [
            ("scale", 12, true),
            ("counter", 4, false),
            ("zeros", 64, false)
        ]
    );
}

#[test]
fn functions_are_inlined() {
    let module = ".func (.param .b32 result) square(.param .b32 x) {\n\
                  .reg .b32 %r<3>; .reg .pred %p<2>; ld.param.u32 %r0, [x]; setp.lt.u32 %p1, %r0, 5;\n\
                  @%p1 bra $small; mul.lo.u32 %r1, %r0, %r0; st.param.b32 [result], %r1; ret;\n\
                  $small: st.param.b32 [result], 7; ret; }";
    let call = "{ .param .b32 a; st.param.b32 [a], %r1; .param .b32 b;\n\
                call.uni (b), square, (a); ld.param.b32 %r1, [b]; }";
    let body = format!("mov.u32 %r1, %tid; {call} {call} mov.u32 %r0, %r1;{STORE}");
    let square = |x: u32| if x < 5 { 7 } else { x * x };
    let expected: Vec<u32> = (0..32).map(|i| square(square(i))).collect();
    assert_eq!(warp(&body).module(module).run(), expected);
    // The same, with the names of PTX 8.3 on.
    let named = module.replace("ld.param.u32", "ld.param::func.u32");
    assert_eq!(warp(&body).module(&named).run(), expected);
    let body = format!("ld.param::entry.u64 %rd0, [p_in]; ld.global.u32 %r0, [%rd0];{STORE}");
    assert_eq!(warp(&body).run(), [input()[0]; 32]);
}

#[test]
fn functions_do_not_see_their_callers_names() {
    let text = ".func f() { add.u32 %mine, %mine, 1; ret; }\n\
                .entry k() { .reg .b32 %mine; call.uni f; ret; }";
    let error = ptxemu::Module::parse(text).err().unwrap();
    assert_eq!(error.line, 1, "{error}");
    assert!(error.message.contains("%mine"), "{error}");
}

#[test]
fn recursion_and_missing_functions_are_refused() {
    let text = ".func f() { call.uni f; ret; }\n.entry k() { call.uni f; ret; }";
    assert!(
        ptxemu::Module::parse(text)
            .err()
            .unwrap()
            .message
            .contains("recursion")
    );
    let text = ".extern .func (.param .b32 r) vprintf(.param .b64 f, .param .b64 a);\n\
                .entry k() { call.uni vprintf; ret; }";
    assert!(
        ptxemu::Module::parse(text)
            .err()
            .unwrap()
            .message
            .contains("vprintf")
    );
}

#[test]
fn special_registers() {
    let specials = [
        ("%tid.x", (0..64).map(|i| i % 64).collect::<Vec<u32>>()),
        ("%ntid.x", vec![64; 64]),
        ("%laneid", (0..64).map(|i| i % 32).collect()),
        ("%warpid", (0..64).map(|i| i / 32).collect()),
        ("%nwarpid", vec![2; 64]),
        ("%lanemask_eq", (0..64).map(|i| 1 << (i % 32)).collect()),
        (
            "%lanemask_lt",
            (0..64).map(|i| (1 << (i % 32)) - 1).collect(),
        ),
        (
            "%lanemask_le",
            (0..64).map(|i| ((2u64 << (i % 32)) - 1) as u32).collect(),
        ),
        (
            "%lanemask_gt",
            (0..64).map(|i| !((2u64 << (i % 32)) - 1) as u32).collect(),
        ),
        (
            "%lanemask_ge",
            (0..64).map(|i| !((1u32 << (i % 32)) - 1)).collect(),
        ),
        ("%nctaid.x", vec![1; 64]),
        ("%ctaid.y", vec![0; 64]),
        ("%dynamic_smem_size", vec![48; 64]),
    ];
    for (name, expected) in specials {
        let mut bench = block(64, &format!("mov.u32 %r0, {name};{STORE}"));
        bench.dynamic_shared = 48;
        assert_eq!(bench.run(), expected, "{name}");
    }
}
