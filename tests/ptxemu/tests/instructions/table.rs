//! Runs one instruction over all combinations of edge values.

use ptxemu::{Dim3, Launch, Memory, Module, Options};

/// The type of an operand: its register width, and which values are worth trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 16-, 32- and 64-bit integers.
    B16,
    B32,
    B64,
    /// Shift amounts and field positions, in 32 bits.
    Amount,
    F16,
    Bf16,
    F16x2,
    Bf16x2,
    F32,
    F64,
    /// A predicate.
    Pred,
}

use Kind::*;

impl Kind {
    fn register(self) -> &'static str {
        match self {
            B16 | F16 | Bf16 => ".b16",
            B32 | Amount | F16x2 | Bf16x2 | F32 => ".b32",
            B64 | F64 => ".b64",
            Pred => ".pred",
        }
    }

    fn edges(self) -> Vec<u64> {
        let float = |x: f64| (x as f32).to_bits().into();
        let floats = [
            0.0,
            -0.0,
            1.0,
            -1.0,
            1.5,
            -2.5,
            0.1,
            3.0e-39,
            -1.0e-45,
            1.1754944e-38,
            65504.0,
            65520.0,
            -7.0e4,
            6.1e-5,
            3.0e38,
            -16777217.0,
            2147483648.0,
            0.5,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
        ];
        match self {
            B16 => vec![0, 1, 2, 7, 0x7fff, 0x8000, 0x8001, 0xfffe, 0xffff, 0x1234],
            B32 => [
                0,
                1,
                2,
                3,
                31,
                255,
                0x7fff_ffff,
                0x8000_0000,
                0x8000_0001,
                0xffff_ffff,
            ]
            .into_iter()
            .chain([0xdead_beef, 0x0102_0384])
            .collect(),
            B64 => vec![
                0,
                1,
                5,
                0x7fff_ffff,
                0x8000_0000,
                0xffff_ffff,
                0x1_0000_0000,
                i64::MAX as u64,
                1 << 63,
                u64::MAX,
                0xfedc_ba98_7654_3210,
            ],
            Amount => vec![0, 1, 4, 15, 16, 31, 32, 33, 63, 64, 200, 255],
            F16 => vec![
                0, 0x8000, 1, 0x8001, 0x3ff, 0x400, 0x3c00, 0xbc00, 0x3e01, 0x7bff, 0xfbff, 0x7c00,
                0xfc00, 0x7e00, 0x2e66,
            ],
            Bf16 => vec![
                0, 0x8000, 1, 0x3f80, 0xbf80, 0x3f81, 0x4049, 0x7f7f, 0xff7f, 0x7f80, 0xff80,
                0x7fc0, 0x0080, 0x3dcd,
            ],
            F16x2 => pairs(&F16.edges()),
            Bf16x2 => pairs(&Bf16.edges()),
            F32 => floats.into_iter().map(float).collect(),
            F64 => floats
                .into_iter()
                .chain([1e-310, 1e300, 0.1 + 0.2, 9007199254740993.0, -1.5e19])
                .map(f64::to_bits)
                .collect(),
            Pred => vec![0, 1],
        }
    }

    /// NaN of any payload is NaN.
    fn same(self, a: u64, b: u64) -> bool {
        let nan16 = |x: u64| x & 0x7fff > 0x7c00;
        let nan_bf16 = |x: u64| x & 0x7fff > 0x7f80;
        let halves = |nan: &dyn Fn(u64) -> bool| {
            [(a & 0xffff, b & 0xffff), (a >> 16, b >> 16)]
                .into_iter()
                .all(|(a, b)| a == b || nan(a) && nan(b))
        };
        match self {
            F16x2 => halves(&nan16),
            Bf16x2 => halves(&nan_bf16),
            _ if a == b => true,
            F16 => nan16(a) && nan16(b),
            Bf16 => nan_bf16(a) && nan_bf16(b),
            F32 => f32::from_bits(a as u32).is_nan() && f32::from_bits(b as u32).is_nan(),
            F64 => f64::from_bits(a).is_nan() && f64::from_bits(b).is_nan(),
            _ => false,
        }
    }
}

fn pairs(values: &[u64]) -> Vec<u64> {
    (0..values.len())
        .map(|i| values[i] | values[(i * 5 + 3) % values.len()] << 16)
        .collect()
}

/// Combinations beyond this many are thinned out.
const MOST_CASES: usize = 4096;

/// Runs the instructions in `body`, which read `%a`, `%b` and `%c` of the given kinds and write
/// `%d`, and compares with `expected`.
pub fn check(body: &str, inputs: &[Kind], output: Kind, expected: impl Fn([u64; 3]) -> u64) {
    let mut cases: Vec<[u64; 3]> = vec![[0; 3]];
    for (index, kind) in inputs.iter().enumerate() {
        let edges = kind.edges();
        let with = |case: &[u64; 3]| {
            let case = *case;
            edges.clone().into_iter().map(move |e| {
                let mut case = case;
                case[index] = e;
                case
            })
        };
        cases = cases.iter().flat_map(with).collect();
    }
    let step = cases.len().div_ceil(MOST_CASES);
    let cases: Vec<_> = cases.into_iter().step_by(step).collect();
    let results = run(body, inputs, output, &cases);
    for (case, &result) in cases.iter().zip(&results) {
        let expected = expected(*case);
        assert!(
            output.same(result, expected),
            "{body}\n  inputs {:x?}\n  gives {result:#x}, not {expected:#x}",
            &case[..inputs.len()]
        );
    }
}

/// Runs the instructions once per case, one case per thread.
pub fn run(body: &str, inputs: &[Kind], output: Kind, cases: &[[u64; 3]]) -> Vec<u64> {
    let mut ptx = String::from(
        ".version 8.6\n.target sm_90\n.address_size 64\n\
         .visible .entry k(.param .u64 p_in, .param .u64 p_out, .param .u32 p_n) {\n\
         .reg .b64 %in, %out, %at, %wide; .reg .b32 %i, %n, %t, %word; .reg .pred %skip;\n",
    );
    for (name, kind) in ["%a", "%b", "%c"].iter().zip(inputs) {
        ptx += &format!(".reg {} {name};\n", kind.register());
    }
    ptx += &format!(".reg {} %d;\n", output.register());
    ptx += "ld.param.u64 %in, [p_in]; ld.param.u64 %out, [p_out]; ld.param.u32 %n, [p_n];\n\
            mov.u32 %i, %tid.x; mov.u32 %t, %ctaid.x; mad.lo.u32 %i, %t, 32, %i;\n\
            setp.ge.u32 %skip, %i, %n; @%skip bra $end;\n\
            mul.wide.u32 %at, %i, 24; add.u64 %at, %at, %in;\n";
    for (index, (name, kind)) in ["%a", "%b", "%c"].iter().zip(inputs).enumerate() {
        ptx += &match kind {
            Pred => format!(
                "ld.global.u32 %word, [%at+{}]; setp.ne.u32 {name}, %word, 0;\n",
                index * 8
            ),
            _ => format!(
                "ld.global{} {name}, [%at+{}];\n",
                kind.register(),
                index * 8
            ),
        };
    }
    ptx += body;
    ptx += "\nmul.wide.u32 %at, %i, 8; add.u64 %at, %at, %out;\n\
            mov.u64 %wide, 0; st.global.u64 [%at], %wide;\n";
    ptx += &match output {
        Pred => "selp.u32 %word, 1, 0, %d; st.global.u32 [%at], %word;\n".to_owned(),
        _ => format!("st.global{} [%at], %d;\n", output.register()),
    };
    ptx += "$end: ret; }\n";
    let module = Module::parse(&ptx).unwrap_or_else(|e| panic!("{body}: {e}"));
    let memory = Memory::new();
    let (input, out) = (
        memory.alloc(cases.len() * 24),
        memory.alloc(cases.len() * 8),
    );
    let bytes: Vec<u8> = cases
        .iter()
        .flatten()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    memory.write(input, &bytes).unwrap();
    let mut params = Vec::new();
    params.extend(input.to_le_bytes());
    params.extend(out.to_le_bytes());
    params.extend((cases.len() as u32).to_le_bytes());
    let launch = Launch::new(
        cases.len().div_ceil(32) as u32,
        Dim3::new(32, 1, 1),
        &params,
    );
    let options = Options {
        threads: 1,
        ..Options::default()
    };
    let kernel = module.kernel("k").unwrap();
    ptxemu::launch(&module, kernel, &launch, &memory, &options)
        .unwrap_or_else(|f| panic!("{body}: {f}"));
    let mut bytes = vec![0; cases.len() * 8];
    memory.read(out, &mut bytes).unwrap();
    bytes
        .chunks_exact(8)
        .map(|c| u64::from_le_bytes(c.try_into().unwrap()))
        .collect()
}

/// Asserts that a statement is refused, with a message that contains `why`.
pub fn refused(body: &str, why: &str) {
    let ptx = format!(
        ".version 8.6\n.target sm_90\n.address_size 64\n.visible .entry k() {{\n\
         .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .b16 %h<9>; .reg .pred %p<9>;\n{body}\nret; }}\n"
    );
    let error = Module::parse(&ptx)
        .err()
        .unwrap_or_else(|| panic!("{body} was accepted"));
    assert_eq!(error.line, 6, "{error}");
    assert!(error.text.contains(body.trim_end_matches(';')), "{error}");
    assert!(error.message.contains(why), "{error}");
}
