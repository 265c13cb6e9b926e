//! One tiny PTX kernel per instruction form. A kernel runs as one warp: lane `t` loads `a0, a1, ...` (32-bit
//! words `input[i][t]`), executes the body and stores `d0, d1, ...` to `output[j][t]`.

/// How the recorded outputs of a form are compared with the interpreter's.
#[derive(Clone, Copy, Debug)]
pub enum Compare {
    /// Bit for bit.
    Bits,
    /// Bit for bit as f32; the payload of a NaN is left open.
    F32Bits,
    /// Bit for bit as pairs of f16; the payload of a NaN is left open.
    F16x2Bits,
    /// As f32, relative to the larger of the value and `floor`: for `.approx` instructions, whose last bits the PTX
    /// ISA leaves open, and for tensor-core accumulation, whose order it leaves open.
    F32 { relative: f32, floor: f32 },
    /// As pairs of f16, absolute.
    F16x2 { absolute: f32 },
}

/// What the input words are.
#[derive(Clone, Copy, Debug)]
pub enum Input {
    /// Edge cases of 32-bit integers, then random words.
    Words,
    /// Edge cases of f32 (signed zeros, subnormals, infinities, NaN, halfway cases), then random bit patterns.
    F32,
    /// Random f32 of magnitude 2^-8 to 2^8.
    F32Moderate,
    /// Pairs of f16: edge cases, then random bit patterns.
    F16x2,
    /// Pairs of f16 in [-1, 1].
    F16x2Unit,
    /// Pairs of bf16 in [-1, 1].
    Bf16x2Unit,
    /// f32 in [-1, 1], not rounded to tf32.
    F32Unit,
    /// 0 to 31.
    Lane,
    /// 0 to 40: shift counts, also beyond the word.
    Shift,
}

/// One instruction form.
pub struct Form {
    /// Its name, also in the recording.
    pub name: &'static str,
    /// Lowest architecture that has it.
    pub sm: u32,
    /// Inputs of the body.
    pub inputs: &'static [Input],
    /// Number of outputs.
    pub outputs: usize,
    /// PTX between the loads and the stores.
    pub body: &'static str,
    /// How to compare.
    pub compare: Compare,
}

impl Form {
    /// The whole PTX module; its kernel is called `form` and takes the input and the output pointer.
    pub fn ptx(&self) -> String {
        let target = self.sm.max(80);
        let mut text = format!(
            ".version 8.0\n.target sm_{target}\n.address_size 64\n\
             .visible .entry form(.param .u64 input, .param .u64 output)\n.reqntid 32, 1, 1\n{{\n\
             .reg .b64 %in, %out, %off;\n.reg .b32 %lane, a<8>, d<8>;\n\
             .shared .align 16 .b8 tile[512];\n\
             ld.param.u64 %in, [input];\nld.param.u64 %out, [output];\n\
             cvta.to.global.u64 %in, %in;\ncvta.to.global.u64 %out, %out;\n\
             mov.u32 %lane, %tid.x;\nmul.wide.u32 %off, %lane, 4;\n\
             add.s64 %in, %in, %off;\nadd.s64 %out, %out, %off;\n"
        );
        for i in 0..self.inputs.len() {
            text += &format!("ld.global.u32 a{i}, [%in+{}];\n", 128 * i);
        }
        text += &format!("{{\n{}\n}}\n", self.body);
        for j in 0..self.outputs {
            text += &format!("st.global.u32 [%out+{}], d{j};\n", 128 * j);
        }
        text + "ret;\n}\n"
    }

    /// The input words, `[inputs][32]`, the same on every machine.
    pub fn input(&self) -> Vec<u32> {
        let mut random = SplitMix(
            self.name
                .bytes()
                .fold(7, |h: u64, b| h.wrapping_mul(131) ^ u64::from(b)),
        );
        self.inputs
            .iter()
            .enumerate()
            .flat_map(|(i, kind)| (0..32).map(move |lane| (i, kind, lane)))
            .map(|(i, kind, lane)| kind.word(&mut random, i, lane))
            .collect()
    }
}

const WORD_EDGES: [u32; 8] = [
    0,
    1,
    2,
    31,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fffe,
    0xffff_ffff,
];
const F32_EDGES: [u32; 14] = [
    0x0000_0000, // 0
    0x8000_0000, // -0
    0x0000_0001, // smallest subnormal
    0x807f_ffff, // largest subnormal, negative
    0x3f80_0000, // 1
    0xbf00_0000, // -0.5
    0x7f80_0000, // infinity
    0xff80_0000, // -infinity
    0x7fc0_0000, // NaN
    0x477f_f000, // 65520: halfway to the f16 overflow
    0x3f80_1000, // halfway between two f16
    0x3f80_8000, // halfway between two bf16
    0x3380_0000, // 2^-24: smallest f16 subnormal
    0x4f00_0000, // 2^31
];
const F16_EDGES: [u16; 10] = [
    0x0000, 0x8000, 0x0001, 0x83ff, 0x3c00, 0xbc00, 0x7bff, 0x7c00, 0xfc00, 0x7e00,
];

impl Input {
    fn word(self, random: &mut SplitMix, which: usize, lane: usize) -> u32 {
        // Operands take the edge cases in different orders, so that different pairs meet.
        let edge = (lane + 3 * which) % 16;
        match self {
            Input::Words => WORD_EDGES
                .get(edge)
                .copied()
                .unwrap_or_else(|| random.word()),
            Input::F32 => F32_EDGES
                .get(edge)
                .copied()
                .unwrap_or_else(|| random.word()),
            Input::F16x2 => {
                let low = F16_EDGES
                    .get(edge)
                    .copied()
                    .unwrap_or_else(|| random.word() as u16);
                let high = F16_EDGES
                    .get(15 - edge)
                    .copied()
                    .unwrap_or_else(|| random.word() as u16);
                u32::from(low) | u32::from(high) << 16
            }
            Input::F32Moderate => {
                let exponent = 127 - 8 + random.word() % 17;
                (random.word() & 0x807f_ffff) | exponent << 23
            }
            Input::F32Unit => random.unit().to_bits(),
            Input::F16x2Unit => {
                let pair = [random.unit(), random.unit()].map(|v| half::f16::from_f32(v).to_bits());
                u32::from(pair[0]) | u32::from(pair[1]) << 16
            }
            Input::Bf16x2Unit => {
                let pair =
                    [random.unit(), random.unit()].map(|v| half::bf16::from_f32(v).to_bits());
                u32::from(pair[0]) | u32::from(pair[1]) << 16
            }
            Input::Lane => random.word() % 32,
            Input::Shift => random.word() % 41,
        }
    }
}

/// Sebastiano Vigna's splitmix64: seeded, and the same everywhere.
struct SplitMix(u64);

impl SplitMix {
    fn word(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 32) as u32
    }

    fn unit(&mut self) -> f32 {
        self.word() as f32 / u32::MAX as f32 * 2.0 - 1.0
    }
}

const fn form(
    name: &'static str,
    inputs: &'static [Input],
    outputs: usize,
    compare: Compare,
    body: &'static str,
) -> Form {
    Form {
        name,
        sm: 80,
        inputs,
        outputs,
        body,
        compare,
    }
}

use Compare::{Bits, F16x2Bits, F32Bits};
use Input::{Bf16x2Unit, F16x2, F16x2Unit, F32, F32Moderate, F32Unit, Lane, Shift, Words};

/// Two units in the last place.
const ULP: Compare = Compare::F32 {
    relative: 1.0 / (1 << 21) as f32,
    floor: 1.0 / (1 << 20) as f32,
};
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

/// Every instruction form with golden vectors.
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
