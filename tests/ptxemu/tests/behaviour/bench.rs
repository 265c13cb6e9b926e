//! A kernel with one input and one output buffer.

use ptxemu::{Dim3, Fault, FaultKind, Launch, Memory, Module, Options, Report};

/// What to launch. The body may use `%in`, `%out` (addresses), `%tid`, `%warp`, `%lane`, `%cta`,
/// and scratch registers `%r0..31`, `%rd0..31`, `%h0..15`, `%f0..15`, `%p0..7`.
#[derive(Clone)]
pub struct Bench {
    pub body: String,
    /// Text before the kernel: variables and functions.
    pub module: String,
    /// Directives of the kernel.
    pub directives: &'static str,
    pub grid: Dim3,
    pub block: u32,
    pub cluster: Dim3,
    pub cooperative: bool,
    pub dynamic_shared: u32,
    pub input: Vec<u32>,
    pub output_words: usize,
    /// What the output buffer holds before the launch; uninitialised without.
    pub output_before: Option<u32>,
    pub options: Options,
}

/// One warp, 32 words in and out.
pub fn warp(body: &str) -> Bench {
    Bench {
        body: body.to_owned(),
        module: String::new(),
        directives: "",
        grid: Dim3::ONE,
        block: 32,
        cluster: Dim3::ONE,
        cooperative: false,
        dynamic_shared: 0,
        input: (0..32).map(|i| i * 3 + 100).collect(),
        output_words: 32,
        output_before: None,
        options: Options {
            threads: 1,
            max_steps: 1_000_000,
            ..Options::default()
        },
    }
}

/// Like [`warp`], with more threads in the block.
pub fn block(threads: u32, body: &str) -> Bench {
    Bench {
        block: threads,
        output_words: threads as usize,
        ..warp(body)
    }
}

impl Bench {
    pub fn module(self, module: &str) -> Self {
        Self {
            module: module.to_owned(),
            ..self
        }
    }

    pub fn grid(self, blocks: u32) -> Self {
        let output_words = (blocks * self.block) as usize;
        Self {
            grid: blocks.into(),
            output_words,
            ..self
        }
    }

    pub fn cluster(self, blocks: u32) -> Self {
        Self {
            cluster: blocks.into(),
            ..self
        }
    }

    pub fn input(self, input: Vec<u32>) -> Self {
        Self { input, ..self }
    }

    pub fn output(self, words: usize, before: u32) -> Self {
        Self {
            output_words: words,
            output_before: Some(before),
            ..self
        }
    }

    pub fn parse(&self) -> Module {
        let ptx = format!(
            ".version 8.6\n.target sm_90\n.address_size 64\n{}\n\
             .visible .entry k(.param .u64 p_in, .param .u64 p_out) {} {{\n\
             .reg .b64 %in, %out, %rd<32>; .reg .b32 %tid, %warp, %lane, %cta, %r<32>, %f<16>;\n\
             .reg .b16 %h<16>; .reg .pred %p<8>;\n\
             ld.param.u64 %in, [p_in]; ld.param.u64 %out, [p_out];\n\
             mov.u32 %tid, %tid.x; mov.u32 %warp, %warpid; mov.u32 %lane, %laneid;\n\
             mov.u32 %cta, %ctaid.x;\n{}\nret; }}\n",
            self.module, self.directives, self.body
        );
        Module::parse(&ptx).unwrap_or_else(|e| panic!("{e}"))
    }

    pub fn launch(&self) -> (Vec<u32>, Result<Report, Fault>) {
        let module = self.parse();
        let memory = Memory::new();
        let input = memory.alloc(self.input.len() * 4);
        memory.label(input, "input");
        let bytes: Vec<u8> = self.input.iter().flat_map(|w| w.to_le_bytes()).collect();
        memory.write(input, &bytes).unwrap();
        let output = memory.alloc(self.output_words * 4);
        memory.label(output, "output");
        if let Some(word) = self.output_before {
            let bytes: Vec<u8> = (0..self.output_words)
                .flat_map(|_| word.to_le_bytes())
                .collect();
            memory.write(output, &bytes).unwrap();
        }
        let globals = module.allocate_globals(&memory);
        let mut params = Vec::new();
        params.extend(input.to_le_bytes());
        params.extend(output.to_le_bytes());
        let launch = Launch {
            cluster: self.cluster,
            cooperative: self.cooperative,
            dynamic_shared_bytes: self.dynamic_shared,
            globals: &globals,
            ..Launch::new(self.grid, self.block, &params)
        };
        let kernel = module.kernel("k").unwrap();
        let report = ptxemu::launch(&module, kernel, &launch, &memory, &self.options);
        let mut bytes = vec![0; self.output_words * 4];
        memory.read(output, &mut bytes).unwrap();
        let words = bytes
            .chunks_exact(4)
            .map(|c| u32::from_le_bytes(c.try_into().unwrap()))
            .collect();
        (words, report)
    }

    /// The output of a launch that must succeed.
    pub fn run(&self) -> Vec<u32> {
        let (out, report) = self.launch();
        report.unwrap_or_else(|f| panic!("{f}"));
        out
    }

    pub fn report(&self) -> Report {
        self.launch().1.unwrap_or_else(|f| panic!("{f}"))
    }

    /// The launch must end with a fault of this kind, whose text contains `part`.
    pub fn faults(&self, kind: FaultKind, part: &str) {
        match self.launch().1 {
            Ok(_) => panic!("no fault, where {kind:?} was expected, in:\n{}", self.body),
            Err(fault) => {
                assert_eq!(fault.kind, kind, "{fault}");
                assert!(
                    fault.to_string().contains(part),
                    "{part:?} is not in: {fault}"
                );
            }
        }
    }
}

/// Stores `%r0` at the thread's place in the output.
pub const STORE: &str = "\nmov.u32 %r30, %ntid.x; mad.lo.u32 %r31, %cta, %r30, %tid;\n\
     mul.wide.u32 %rd30, %r31, 4; add.u64 %rd31, %out, %rd30; st.global.u32 [%rd31], %r0;\n";

/// Loads the thread's word of the input into `%r0`, and its address into `%rd0`.
pub const LOAD: &str =
    "\nmul.wide.u32 %rd30, %tid, 4; add.u64 %rd0, %in, %rd30; ld.global.u32 %r0, [%rd0];\n";
