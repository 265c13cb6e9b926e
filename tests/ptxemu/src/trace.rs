//! Traces: what a sample of the blocks of a launch executes, warp by warp. The input of a timing model.
//!
//! A trace names the instructions of the kernel once, with the registers they depend on and the class a timing model
//! charges ([`Cost`]), and for each warp the instructions it executed in order, each with what it did to memory and
//! barriers ([`Event`]). [`trace`] takes one from a launch; [`LaunchTrace::to_bytes`] and
//! [`LaunchTrace::from_bytes`] keep it.

mod bytes;
mod tap;

pub use bytes::TraceError;
pub(crate) use tap::Tap;

use crate::exec;
use crate::fault::Fault;
use crate::memory::FIRST_ADDRESS;
use crate::op::Op;
use crate::{Kernel, Launch, Memory, Module, Options};

/// Bytes of a sector, the unit in which global memory is read and written.
pub const SECTOR_BYTES: u64 = 32;

/// The sector of an address, as [`Event`]s count them.
pub fn sector_of(address: u64) -> u32 {
    (address.saturating_sub(FIRST_ADDRESS) / SECTOR_BYTES) as u32
}

macro_rules! costs {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Classes of instructions that cost alike in machine code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Cost {
            $($(#[$doc])* $name,)*
        }

        impl Cost {
            /// All classes, in the order in which bytes count them: new ones go to the end.
            const ALL: &[Cost] = &[$(Cost::$name,)*];
        }
    };
}

costs! {
    /// Nothing: a move between registers, a change of address space.
    Free,
    /// A literal moved to a 32-bit register.
    Constant,
    /// A special register, such as the thread's index.
    Special,
    /// 32-bit addition, logic, comparison, selection.
    Integer,
    /// The same in 64 bits.
    IntegerWide,
    /// 32-bit multiplication.
    Multiply,
    /// 32 x 32 bits to 64.
    MultiplyWide,
    /// The upper half of a product.
    MultiplyHigh,
    /// 64-bit multiplication.
    MultiplyLong,
    /// Counting and extracting bits.
    BitField,
    /// Addition, multiplication and both in f32, f16 and pairs of f16.
    Float,
    /// Conversion from or to a float.
    Convert,
    /// Conversion between integers.
    ConvertInteger,
    /// Reciprocal, root, exponential and the like.
    Function,
    /// Correctly rounded division.
    Divide,
    /// Integer division.
    DivideInteger,
    /// A whole matrix product of a warp: m16n8k16 of 16-bit, m16n8k8 of tf32.
    Mma,
    /// Half of that.
    MmaHalf,
    /// Exchange of values in a warp.
    Shuffle,
    /// Votes and elections.
    Vote,
    /// A barrier of the lanes of a warp.
    WarpBarrier,
    /// A constant or parameter at a computed address.
    LoadConstant,
    /// A load from global or local memory, or from a generic address.
    LoadGlobal,
    /// A store to global or local memory, or to a generic address.
    StoreGlobal,
    /// An atomic operation on global memory.
    AtomicGlobal,
    /// A load from shared memory.
    LoadShared,
    /// A store to shared memory.
    StoreShared,
    /// An atomic operation on shared memory.
    AtomicShared,
    /// `cp.async`.
    CopyAsync,
    /// The end of a group of copies.
    CopyCommit,
    /// A wait for groups of copies.
    CopyWait,
    /// `cp.async.bulk`.
    BulkCopy,
    /// A test of an mbarrier.
    MbarrierTest,
    /// Any other operation on an mbarrier.
    MbarrierArrive,
    /// Arrival at a barrier of the block, and the wait for it.
    Barrier,
    /// Arrival without a wait.
    BarrierArrive,
    /// Arrival at the barrier of the cluster.
    ClusterArrive,
    /// The wait for it.
    ClusterWait,
    /// A memory fence.
    Fence,
    /// A hint, or a fence between proxies.
    Hint,
    /// A branch.
    Branch,
    /// The end of a warp.
    Exit,
    /// `st.async`.
    StoreAsync,
}

/// One instruction of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Its class.
    pub cost: Cost,
    /// Registers it reads, its guard among them. Numbers say nothing but which are the same.
    pub reads: Vec<u32>,
    /// Registers it writes.
    pub writes: Vec<u32>,
    /// Whether a predicate decides about it, lane by lane.
    pub guarded: bool,
    /// Whether something branches to it.
    pub is_target: bool,
}

/// What an executed instruction did besides arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Adjacent sectors of global memory read.
    Read {
        /// The first of them.
        first: u32,
        /// How many.
        sectors: u32,
    },
    /// Adjacent sectors of global memory written.
    Written {
        /// The first of them.
        first: u32,
        /// How many.
        sectors: u32,
    },
    /// Shared memory accessed.
    Shared {
        /// Passes through the banks.
        wavefronts: u32,
        /// Whether it is that of another block of the cluster.
        remote: bool,
    },
    /// A barrier of the block reached.
    Barrier {
        /// Which.
        id: u32,
        /// Threads it waits for; 0: all of the block.
        threads: u32,
    },
    /// Groups of copies that may be pending after a wait.
    CopyWait {
        /// How many.
        pending: u32,
    },
}

/// What one warp executed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WarpTrace {
    /// A step is a word, the index of its instruction and the number of its events (from bit [`INDEX_BITS`]); an event is
    /// two, its kind (from bit [`LEN_BITS`]) with a length, and a value.
    words: Vec<u32>,
}

const INDEX_BITS: u32 = 20;
const LEN_BITS: u32 = 28;

/// One executed instruction.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Index of the instruction in [`LaunchTrace::code`].
    pub index: u32,
    events: &'a [u32],
}

impl Step<'_> {
    /// What it did.
    pub fn events(&self) -> impl Iterator<Item = Event> + '_ {
        self.events.chunks_exact(2).map(|words| {
            let (len, value) = (words[0] & ((1 << LEN_BITS) - 1), words[1]);
            match words[0] >> LEN_BITS {
                0 => Event::Read {
                    first: value,
                    sectors: len,
                },
                1 => Event::Written {
                    first: value,
                    sectors: len,
                },
                2 => Event::Shared {
                    wavefronts: len,
                    remote: value != 0,
                },
                3 => Event::Barrier {
                    id: len,
                    threads: value,
                },
                _ => Event::CopyWait { pending: len },
            }
        })
    }
}

impl WarpTrace {
    /// The steps in order.
    pub fn steps(&self) -> impl Iterator<Item = Step<'_>> {
        let mut rest = self.words.as_slice();
        std::iter::from_fn(move || {
            let (&word, behind) = rest.split_first()?;
            let (events, behind) = behind.split_at_checked(2 * (word >> INDEX_BITS) as usize)?;
            rest = behind;
            let index = word & ((1 << INDEX_BITS) - 1);
            Some(Step { index, events })
        })
    }
}

/// A launch, and what a sample of its blocks executed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaunchTrace {
    /// The kernel's symbol.
    pub kernel: String,
    /// The stream it ran on; the number says nothing but which are the same.
    pub stream: u64,
    /// Blocks of the grid.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Blocks of a cluster; 1 where there is none.
    pub cluster: u32,
    /// Static and dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// The instructions of the kernel.
    pub code: Vec<Instruction>,
    /// The sampled blocks, each by its warps. Of a cluster that is its first block.
    pub blocks: Vec<Vec<WarpTrace>>,
}

impl LaunchTrace {
    /// Blocks of the grid.
    pub fn grid_blocks(&self) -> u64 {
        self.grid.iter().map(|&extent| u64::from(extent)).product()
    }
}

/// Executes some blocks of a launch, or of a launch in clusters the clusters they belong to, and nothing else, and traces
/// them. `blocks` are their linear indices.
///
/// Races and reads of uninitialised memory are not looked for: what the other blocks would have written is missing (see
/// [`Memory::set_plausible`]).
///
/// # Errors
/// As [`launch`](crate::launch).
pub fn trace(
    module: &Module,
    kernel: &Kernel,
    launch: &Launch<'_>,
    memory: &Memory,
    options: &Options,
    blocks: &[u64],
) -> Result<LaunchTrace, Fault> {
    let options = Options {
        check_races: false,
        check_uninitialised: false,
        threads: 1,
        ..options.clone()
    };
    let (cluster, warps) = exec::trace(module, kernel, launch, memory, &options, blocks)?;
    Ok(LaunchTrace {
        kernel: kernel.name.clone(),
        stream: 0,
        grid: [launch.grid.x, launch.grid.y, launch.grid.z],
        threads: launch.block.count() as u32,
        cluster: cluster.count() as u32,
        shared_bytes: kernel.static_shared_bytes + launch.dynamic_shared_bytes,
        code: code(kernel),
        blocks: warps,
    })
}

/// The instructions of a kernel.
fn code(kernel: &Kernel) -> Vec<Instruction> {
    let program = &kernel.program;
    let mut is_target = vec![false; program.code.len() + 1];
    for instruction in &program.code {
        match &instruction.op {
            Op::Branch(to) => is_target[*to as usize] = true,
            Op::BranchTable { targets, .. } => {
                targets.iter().for_each(|&to| is_target[to as usize] = true);
            }
            _ => {}
        }
    }
    let code = program.code.iter().zip(is_target);
    code.map(|(instruction, is_target)| Instruction {
        cost: instruction.cost,
        reads: instruction.operands.reads.clone(),
        writes: instruction.operands.writes.clone(),
        guarded: instruction.guard.is_some(),
        is_target,
    })
    .collect()
}
