//! One tiny PTX kernel per instruction form. A kernel runs as one warp: lane `t` loads `a0, a1, ...` (32-bit
//! words `input[i][t]`), executes the body and stores `d0, d1, ...` to `output[j][t]`.

mod convert;
mod float;
mod inputs;
mod integer;
mod matrix;
mod warp;

pub use inputs::Input;

use inputs::SplitMix;

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

/// Two units in the last place.
const ULP: Compare = Compare::F32 {
    relative: 1.0 / (1 << 21) as f32,
    floor: 1.0 / (1 << 20) as f32,
};
/// Every instruction form with golden vectors.
pub fn forms() -> impl Iterator<Item = &'static Form> {
    [
        float::FORMS,
        convert::FORMS,
        integer::FORMS,
        warp::FORMS,
        matrix::FORMS,
    ]
    .into_iter()
    .flatten()
}
