//! A parsed PTX module: its kernels and variables.

use crate::config::Dim3;
use crate::fault::ParseError;
use crate::memory::Memory;
use crate::op::Program;
use crate::parse::parse_module;

/// One kernel parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name in the PTX text.
    pub name: String,
    /// Offset in the parameter block.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
    /// Alignment in bytes.
    pub align: usize,
}

/// A module-level `.global` or `.const` variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobalVar {
    /// Its name in the PTX text.
    pub name: String,
    /// Size in bytes.
    pub size: usize,
    /// Alignment in bytes.
    pub align: usize,
    /// Initial contents, `size` bytes; zero where the text says nothing.
    pub initial: Vec<u8>,
    /// Whether it is `.const`, which kernels cannot write.
    pub is_const: bool,
}

/// One kernel of a module.
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Its parameters, in order.
    pub params: Vec<Param>,
    /// Size of the parameter block in bytes.
    pub param_bytes: usize,
    /// Static shared memory per block, in bytes.
    pub static_shared_bytes: u32,
    /// Local memory per thread, in bytes.
    pub local_bytes: u32,
    /// Most threads per block, from `.maxntid` or `.reqntid`.
    pub max_threads: Option<u32>,
    /// Cluster the kernel was compiled for, from `.reqnctapercluster`.
    pub cluster: Option<Dim3>,
    /// Exact block shape, from `.reqntid`.
    pub required_threads: Option<Dim3>,
    /// Whether it must be launched with clusters, from `.explicitcluster`.
    pub needs_cluster: bool,
    pub(crate) program: Program,
}

/// A parsed PTX module.
pub struct Module {
    target: String,
    kernels: Vec<Kernel>,
    globals: Vec<GlobalVar>,
}

impl Module {
    /// Parses PTX text. Anything not modelled is an error, with its line and text.
    pub fn parse(ptx: &str) -> Result<Self, ParseError> {
        let (target, kernels, globals) = parse_module(ptx)?;
        Ok(Self {
            target,
            kernels,
            globals,
        })
    }

    /// The `.target` of the text, such as `sm_90a`.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The number in the target: 90 for `sm_90a`, 0 without a target.
    pub fn sm(&self) -> u32 {
        self.target
            .bytes()
            .filter(u8::is_ascii_digit)
            .fold(0, |n, d| n * 10 + u32::from(d - b'0'))
    }

    /// The kernel of that name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|k| k.name == name)
    }

    /// All kernels.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.kernels.iter()
    }

    /// Module-level `.global` and `.const` variables.
    pub fn globals(&self) -> &[GlobalVar] {
        &self.globals
    }

    /// Allocates and initialises the module's variables, as loading a module does, and returns
    /// their addresses in the order of [`Self::globals`], for [`Launch::globals`](crate::Launch).
    pub fn allocate_globals(&self, memory: &Memory) -> Vec<u64> {
        let allocate = |g: &GlobalVar| {
            let addr = memory.alloc(g.size);
            memory.label(addr, &g.name);
            memory
                .write(addr, &g.initial)
                .expect("the allocation has the variable's size");
            addr
        };
        self.globals.iter().map(allocate).collect()
    }
}
