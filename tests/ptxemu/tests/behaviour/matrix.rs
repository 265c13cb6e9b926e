//! `ldmatrix`, `stmatrix` and `mma.sync`, against fragment layouts written down from the manual.

use crate::bench::{Bench, STORE, warp};

/// Small integers are exact in every format.
fn value(i: usize, j: usize, salt: usize) -> f64 {
    ((i * 7 + j * 5 + salt * 3) % 11) as f64 - 4.0
}

fn f16(x: f64) -> u32 {
    // Integers below 2048 in magnitude.
    let sign = if x < 0.0 { 0x8000 } else { 0 };
    let m = x.abs();
    if m == 0.0 {
        return sign;
    }
    let e = m.log2().floor() as i32;
    sign | ((e + 15) as u32) << 10 | ((m / 2f64.powi(e) - 1.0) * 1024.0) as u32
}

fn bf16(x: f64) -> u32 {
    (x as f32).to_bits() >> 16
}

fn f32_bits(x: f64) -> u32 {
    (x as f32).to_bits()
}

/// Where the elements of a fragment live: `(row, column)` of each element of a lane, in order.
/// `group = lane / 4`, `member = lane % 4` as in the manual.
fn a_layout(k: usize, packed: bool, lane: usize) -> Vec<(usize, usize)> {
    let (group, member) = (lane / 4, lane % 4);
    match (k, packed) {
        (16, true) => (0..8)
            .map(|i| {
                let row = if matches!(i, 0 | 1 | 4 | 5) {
                    group
                } else {
                    group + 8
                };
                let column = member * 2 + (i & 1) + if i < 4 { 0 } else { 8 };
                (row, column)
            })
            .collect(),
        (8, true) => (0..4)
            .map(|i| (if i < 2 { group } else { group + 8 }, member * 2 + (i & 1)))
            .collect(),
        (8, false) => vec![
            (group, member),
            (group + 8, member),
            (group, member + 4),
            (group + 8, member + 4),
        ],
        _ => vec![(group, member), (group + 8, member)],
    }
}

fn b_layout(k: usize, packed: bool, lane: usize) -> Vec<(usize, usize)> {
    let (group, member) = (lane / 4, lane % 4);
    match (k, packed) {
        (16, true) => (0..4)
            .map(|i| (member * 2 + (i & 1) + if i < 2 { 0 } else { 8 }, group))
            .collect(),
        (8, true) => (0..2).map(|i| (member * 2 + i, group)).collect(),
        (8, false) => vec![(member, group), (member + 4, group)],
        _ => vec![(member, group)],
    }
}

fn c_layout(lane: usize) -> [(usize, usize); 4] {
    let (group, member) = (lane / 4, lane % 4);
    std::array::from_fn(|i| (if i < 2 { group } else { group + 8 }, member * 2 + (i & 1)))
}

/// Registers of a lane, from the values at its places.
fn pack(values: &[f64], packed: bool, bits: fn(f64) -> u32) -> Vec<u32> {
    if packed {
        values
            .chunks(2)
            .map(|p| bits(p[0]) | bits(p[1]) << 16)
            .collect()
    } else {
        values.iter().map(|&v| bits(v)).collect()
    }
}

fn check_mma(shape: &str, input: &str, accumulate_f16: bool) {
    let k: usize = shape["m16n8k".len()..].parse().unwrap();
    let packed = input != "tf32";
    let bits: fn(f64) -> u32 = match input {
        "f16" => f16,
        "bf16" => bf16,
        _ => f32_bits,
    };
    let a = |(i, j): (usize, usize)| value(i, j, 1);
    let b = |(i, j): (usize, usize)| value(i, j, 2);
    let c = |(i, j): (usize, usize)| value(i, j, 3);
    let mut words = Vec::new();
    let (mut a_registers, mut b_registers, mut c_registers) = (0, 0, 0);
    for lane in 0..32 {
        let a: Vec<f64> = a_layout(k, packed, lane).into_iter().map(a).collect();
        let b: Vec<f64> = b_layout(k, packed, lane).into_iter().map(b).collect();
        let c: Vec<f64> = c_layout(lane).into_iter().map(c).collect();
        let (a, b) = (pack(&a, packed, bits), pack(&b, packed, bits));
        let c = if accumulate_f16 {
            pack(&c, true, f16)
        } else {
            pack(&c, false, f32_bits)
        };
        (a_registers, b_registers, c_registers) = (a.len(), b.len(), c.len());
        let mut lane_words = [a, b, c].concat();
        lane_words.resize(16, 0);
        words.extend(lane_words);
    }
    let list = |first: usize, count: usize| {
        let names: Vec<String> = (first..first + count).map(|i| format!("%r{i}")).collect();
        format!("{{{}}}", names.join(","))
    };
    let mut body = "mul.wide.u32 %rd0, %tid, 64; add.u64 %rd1, %in, %rd0; mul.wide.u32 %rd2, %tid, 16; add.u64 %rd3, %out, %rd2;\n".to_owned();
    for i in 0..a_registers + b_registers + c_registers {
        body += &format!("ld.global.u32 %r{i}, [%rd1+{}];\n", i * 4);
    }
    let acc = if accumulate_f16 { "f16" } else { "f32" };
    body += &format!(
        "mma.sync.aligned.{shape}.row.col.{acc}.{input}.{input}.{acc} {}, {}, {}, {};\n",
        list(20, c_registers),
        list(0, a_registers),
        list(a_registers, b_registers),
        list(a_registers + b_registers, c_registers)
    );
    for i in 0..c_registers {
        body += &format!("st.global.u32 [%rd3+{}], %r{};\n", i * 4, 20 + i);
    }
    let out = Bench {
        output_words: 128,
        ..warp(&body).input(words).output(128, 0)
    }
    .run();
    for lane in 0..32 {
        let expected: Vec<f64> = c_layout(lane)
            .into_iter()
            .map(|(i, j)| c((i, j)) + (0..k).map(|x| a((i, x)) * b((x, j))).sum::<f64>())
            .collect();
        let expected = if accumulate_f16 {
            pack(&expected, true, f16)
        } else {
            pack(&expected, false, f32_bits)
        };
        assert_eq!(
            out[lane * 4..lane * 4 + c_registers],
            expected,
            "{shape} {input} lane {lane}"
        );
    }
}

#[test]
fn mma_f16() {
    check_mma("m16n8k16", "f16", false);
    check_mma("m16n8k8", "f16", false);
}

#[test]
fn mma_f16_accumulating_in_f16() {
    check_mma("m16n8k16", "f16", true);
    check_mma("m16n8k8", "f16", true);
}

#[test]
fn mma_bf16() {
    check_mma("m16n8k16", "bf16", false);
    check_mma("m16n8k8", "bf16", false);
}

#[test]
fn mma_tf32() {
    check_mma("m16n8k8", "tf32", false);
    check_mma("m16n8k4", "tf32", false);
}

/// Four 8x8 matrices in shared memory, element (m, i, j) being `m * 64 + i * 8 + j`.
const FILL: &str = ".shared .align 16 .b16 s[256];\n\
    shl.b32 %r1, %tid, 3; shl.b32 %r2, %tid, 4; mov.u32 %r3, s; add.u32 %r3, %r3, %r2;\n\
    add.u32 %r4, %r1, 1; shl.b32 %r4, %r4, 16; or.b32 %r4, %r4, %r1; add.u32 %r5, %r4, 0x20002;\n\
    add.u32 %r6, %r5, 0x20002; add.u32 %r7, %r6, 0x20002; st.shared.v4.u32 [%r3], {%r4,%r5,%r6,%r7};\n\
    bar.warp.sync 0xffffffff;\n";

#[test]
fn ldmatrix_plain_and_transposed() {
    for (count, registers) in [
        (1, "{%r10}"),
        (2, "{%r10,%r11}"),
        (4, "{%r10,%r11,%r12,%r13}"),
    ] {
        for transposed in [false, true] {
            let trans = if transposed { ".trans" } else { "" };
            for matrix in 0..count {
                let body = format!(
                    "{FILL} ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {registers}, [%r3];\n\
                     mov.u32 %r0, %r{};{STORE}",
                    10 + matrix
                );
                let expected: Vec<u32> = (0..32)
                    .map(|lane| {
                        let (g, q) = (lane / 4, lane % 4 * 2);
                        let element = |i: u32, j: u32| matrix * 64 + i * 8 + j;
                        if transposed {
                            element(q, g) | element(q + 1, g) << 16
                        } else {
                            element(g, q) | element(g, q + 1) << 16
                        }
                    })
                    .collect();
                assert_eq!(
                    warp(&body).run(),
                    expected,
                    "x{count}{trans} matrix {matrix}"
                );
            }
        }
    }
}

#[test]
fn stmatrix_is_the_inverse_of_ldmatrix() {
    for trans in ["", ".trans"] {
        let body = format!(
            ".shared .align 16 .b16 t[256]; {FILL}\n\
             ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r10,%r11,%r12,%r13}}, [%r3];\n\
             mov.u32 %r8, t; add.u32 %r8, %r8, %r2;\n\
             stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [%r8], {{%r10,%r11,%r12,%r13}};\n\
             bar.warp.sync 0xffffffff; ld.shared.u32 %r0, [%r8+4];{STORE}"
        );
        let expected: Vec<u32> = (0..32).map(|i| (i * 8 + 2) | ((i * 8 + 3) << 16)).collect();
        assert_eq!(warp(&body).run(), expected);
    }
}
