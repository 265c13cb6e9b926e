//! Traces: what a sample of the blocks of a launch executes, warp by warp. The input of a timing model.
//!
//! A trace names the instructions of the kernel once, with the registers they depend on and the class a timing model
//! charges ([`Cost`]), and for each warp the instructions it executed in order, each with what it did to memory and
//! barriers ([`Event`]). [`trace`] takes one from a launch; [`LaunchTrace::to_bytes`] and
//! [`LaunchTrace::from_bytes`] keep it.

mod bytes;
mod code;
mod event;
mod tap;

pub use bytes::TraceError;
pub use event::{Event, Phase, Step, WarpTrace};
pub(crate) use tap::Tap;

use crate::exec;
use crate::fault::Fault;
use crate::memory::FIRST_ADDRESS;
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
    /// A load past L1, of what other blocks may write meanwhile.
    LoadStrong,
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
    /// The sampled blocks, each by its warps: sets of [`together`](LaunchTrace::together) blocks that ran together.
    pub blocks: Vec<Vec<WarpTrace>>,
    /// Traced blocks of a set: those of a cluster that store to each other's shared memory, or a sample of a cooperative
    /// launch. 0 where each is by itself, and where it is the first block of a cluster.
    pub together: u32,
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
/// Blocks of a cooperative launch are executed together. Where all of them wait for what blocks that are not there would
/// have stored, those are taken to be like themselves: what is waited for becomes what they stored last.
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
    let traced = exec::trace(module, kernel, launch, memory, &options, blocks)?;
    Ok(LaunchTrace {
        kernel: kernel.name.clone(),
        stream: 0,
        grid: [launch.grid.x, launch.grid.y, launch.grid.z],
        threads: launch.block.count() as u32,
        cluster: traced.cluster.count() as u32,
        shared_bytes: kernel.static_shared_bytes + launch.dynamic_shared_bytes,
        code: code::of(kernel),
        blocks: traced.blocks,
        together: traced.together,
    })
}
