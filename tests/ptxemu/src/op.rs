//! Decoded instructions: what the engine executes.

use crate::parse::Space;
use crate::registers::{AnySlot, PredSlot, Registers, Slot};
use crate::trace::Cost;

/// Arithmetic on registers only: reads and writes the lanes of the mask.
pub(crate) type Alu = Box<dyn Fn(&mut Registers, u32) + Send + Sync>;

/// One instruction of a program.
pub(crate) struct Instruction {
    pub(crate) op: Op,
    /// The guard predicate, and whether it is negated.
    pub(crate) guard: Option<Guard>,
    pub(crate) class: Class,
    /// What a timing model charges for it, and the registers it depends on.
    pub(crate) cost: Cost,
    pub(crate) operands: Operands,
    pub(crate) line: u32,
    pub(crate) source_line: u32,
    pub(crate) text: String,
}

/// The registers of one instruction, its guard included, each by its first line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Operands {
    pub(crate) reads: Vec<u32>,
    pub(crate) writes: Vec<u32>,
    /// Whether a special register, such as the thread's index, is read.
    pub(crate) special: bool,
}

/// A predicate operand, possibly negated.
#[derive(Clone, Copy)]
pub(crate) struct Guard {
    pub(crate) slot: PredSlot,
    pub(crate) negated: bool,
}

impl Guard {
    /// One bit per lane.
    #[inline(always)]
    pub(crate) fn bits(self, registers: &Registers) -> u32 {
        let bits = registers.pred(self.slot);
        if self.negated { !bits } else { bits }
    }
}

/// Classes of [`ClassCounts`](crate::ClassCounts).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Integer,
    Float,
    Convert,
    Move,
    Global,
    Shared,
    OtherMemory,
    AsyncCopy,
    Mma,
    Warp,
    Barrier,
    Control,
}

impl Class {
    pub(crate) const COUNT: usize = 12;
}

/// A program: the code of one kernel and what its registers start with.
#[derive(Default)]
pub(crate) struct Program {
    pub(crate) code: Vec<Instruction>,
    /// Lines of the register file.
    pub(crate) lines: u32,
    pub(crate) constants: Vec<(AnySlot, Constant)>,
    pub(crate) specials: Vec<(AnySlot, Special)>,
    /// Narrowest access to shared and to global memory, in bytes: what the shadows resolve.
    pub(crate) shared_granule: u32,
    pub(crate) global_granule: u32,
    /// Whether blocks may communicate through global memory, so that their order matters.
    pub(crate) orders_blocks: bool,
}

/// The value of a constant operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Constant {
    Bits(u64),
    /// Address of a module variable, by its index, plus an offset.
    Global(usize, i64),
    /// Address of dynamic shared memory, plus an offset.
    DynamicShared(i64),
}

/// Special registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    Clusterid(u8),
    Nclusterid(u8),
    ClusterCtaid(u8),
    ClusterNctaid(u8),
    ClusterCtarank,
    ClusterNctarank,
    Laneid,
    Warpid,
    Nwarpid,
    LanemaskEq,
    LanemaskLt,
    LanemaskLe,
    LanemaskGt,
    LanemaskGe,
    DynamicSharedBytes,
    TotalSharedBytes,
    Zero,
}

/// An address operand: a register plus an offset.
#[derive(Clone, Copy)]
pub(crate) struct Address {
    pub(crate) base: AnySlot,
    pub(crate) offset: i64,
}

/// How an access takes part in synchronisation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Order {
    /// Relaxed or stronger: does not race with other strong accesses.
    pub(crate) strong: bool,
    pub(crate) acquire: bool,
    pub(crate) release: bool,
}

/// `ld`.
pub(crate) struct Load {
    pub(crate) space: Space,
    /// Bytes of one element.
    pub(crate) bytes: u32,
    pub(crate) signed: bool,
    pub(crate) to: Vec<AnySlot>,
    pub(crate) from: Address,
    pub(crate) order: Order,
}

/// `st`.
pub(crate) struct Store {
    pub(crate) space: Space,
    pub(crate) bytes: u32,
    pub(crate) from: Vec<AnySlot>,
    pub(crate) to: Address,
    pub(crate) order: Order,
}

/// `st.async`: a store to shared memory of a block of the cluster, completing on an mbarrier there.
pub(crate) struct StoreAsync {
    pub(crate) bytes: u32,
    pub(crate) from: Vec<AnySlot>,
    pub(crate) to: Address,
    pub(crate) mbarrier: Address,
}

/// Computes what an atomic operation stores, from the old value and the operands.
pub(crate) type Combine = fn(old: u64, b: u64, c: u64) -> u64;

/// `atom` and `red`.
pub(crate) struct Atomic {
    pub(crate) space: Space,
    pub(crate) bytes: u32,
    /// One element, or several for the vector forms.
    pub(crate) to: Vec<AnySlot>,
    pub(crate) address: Address,
    pub(crate) b: Vec<AnySlot>,
    pub(crate) c: Option<AnySlot>,
    pub(crate) combine: Combine,
    pub(crate) order: Order,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShuffleMode {
    Up,
    Down,
    Bfly,
    Idx,
}

/// `shfl.sync`.
pub(crate) struct Shuffle {
    pub(crate) mode: ShuffleMode,
    pub(crate) to: Slot<u32>,
    pub(crate) in_range: Option<PredSlot>,
    pub(crate) value: Slot<u32>,
    pub(crate) lane: Slot<u32>,
    pub(crate) clamp: Slot<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

/// `redux.sync`: folds the values of the lanes.
pub(crate) type Fold = fn(u32, u32) -> u32;

/// What the lanes of a member mask do together.
pub(crate) enum Collective {
    Shuffle(Shuffle),
    Vote {
        mode: VoteMode,
        to_pred: Option<PredSlot>,
        to: Option<Slot<u32>>,
        value: Guard,
    },
    Match {
        all: bool,
        to: Slot<u32>,
        found: Option<PredSlot>,
        value: AnySlot,
    },
    Redux {
        to: Slot<u32>,
        value: Slot<u32>,
        fold: Fold,
    },
    Elect {
        to: Option<Slot<u32>>,
        elected: PredSlot,
    },
    WarpBarrier,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BarrierReduction {
    Popc,
    And,
    Or,
}

/// `bar.sync`, `bar.arrive`, `bar.red` and the `barrier` forms.
pub(crate) struct Barrier {
    pub(crate) id: Slot<u32>,
    pub(crate) threads: Option<Slot<u32>>,
    pub(crate) arrive: bool,
    pub(crate) aligned: bool,
    pub(crate) reduction: Option<(BarrierReduction, Guard, AnyTarget)>,
}

/// A register or a predicate that receives a result.
#[derive(Clone, Copy)]
pub(crate) enum AnyTarget {
    Register(Slot<u32>),
    Pred(PredSlot),
}

/// `cp.async`.
pub(crate) struct CopyAsync {
    pub(crate) to: Address,
    pub(crate) from: Address,
    pub(crate) bytes: u32,
    /// Bytes to read, the rest being zero-filled.
    pub(crate) source_bytes: Option<Slot<u32>>,
    /// `ignore-src`: read nothing where the predicate holds.
    pub(crate) ignore: Option<Guard>,
}

/// `ldmatrix` and `stmatrix` of 8x8 matrices of 16-bit elements.
pub(crate) struct Matrices {
    pub(crate) registers: Vec<Slot<u32>>,
    pub(crate) address: Address,
    pub(crate) transposed: bool,
    pub(crate) space: Space,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MmaInput {
    F16,
    Bf16,
    Tf32,
}

/// `mma.sync.m16n8k*`.
pub(crate) struct Mma {
    pub(crate) d: Vec<Slot<u32>>,
    pub(crate) a: Vec<Slot<u32>>,
    pub(crate) b: Vec<Slot<u32>>,
    pub(crate) c: Vec<Slot<u32>>,
    pub(crate) input: MmaInput,
    pub(crate) k: usize,
    pub(crate) d_is_f16: bool,
    pub(crate) c_is_f16: bool,
}

/// `barrier.cluster`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClusterBarrier {
    Arrive { aligned: bool, release: bool },
    Wait { aligned: bool },
}

/// Operations on an mbarrier.
pub(crate) enum MbarrierOp {
    Init {
        count: Slot<u32>,
    },
    Inval,
    /// `arrive`, with the transactions of `.expect_tx` and the drop of `arrive_drop`.
    Arrive {
        state: Option<Slot<u64>>,
        count: Option<Slot<u32>>,
        expect: Option<Slot<u32>>,
        drop: bool,
        no_complete: bool,
    },
    ExpectTx {
        bytes: Slot<u32>,
    },
    CompleteTx {
        bytes: Slot<u32>,
    },
    /// `test_wait` and `try_wait`, by phase parity or by the state an arrive returned.
    Test {
        done: PredSlot,
        phase: Phase,
    },
    /// `cp.async.mbarrier.arrive`: arrives when the lane's copies so far are done.
    ArriveOnCopies {
        no_increment: bool,
    },
}

#[derive(Clone, Copy)]
pub(crate) enum Phase {
    Parity(Slot<u32>),
    State(Slot<u64>),
}

/// An instruction on an mbarrier.
pub(crate) struct Mbarrier {
    pub(crate) space: Space,
    pub(crate) address: Address,
    pub(crate) op: MbarrierOp,
}

/// `cp.async.bulk` of plain bytes.
pub(crate) struct BulkCopy {
    pub(crate) to: Address,
    pub(crate) from: Address,
    pub(crate) bytes: Slot<u32>,
    pub(crate) kind: BulkKind,
}

#[derive(Clone, Copy)]
pub(crate) enum BulkKind {
    /// To shared memory, completing on an mbarrier; `multicast` is the mask of block ranks.
    GlobalToShared {
        mbarrier: Address,
        multicast: Option<Slot<u32>>,
    },
    /// To shared memory of another block, completing on an mbarrier there.
    SharedToCluster { mbarrier: Address },
    /// To global memory, completing with the bulk group.
    SharedToGlobal,
}

/// What an instruction does.
pub(crate) enum Op {
    Alu(Alu),
    Load(Load),
    Store(Store),
    StoreAsync(StoreAsync),
    Atomic(Atomic),
    Branch(u32),
    BranchTable {
        index: Slot<u32>,
        targets: Vec<u32>,
    },
    Exit,
    Trap,
    Nop,
    Collective {
        op: Collective,
        members: Slot<u32>,
    },
    ActiveMask(Slot<u32>),
    Barrier(Barrier),
    /// Fences of all scopes order alike.
    Fence {
        acquire: bool,
        release: bool,
    },
    CopyAsync(CopyAsync),
    CopyCommit,
    /// Waits until at most this many groups of copies are pending.
    CopyWait(Slot<u32>),
    /// Waits for all copies of the lane, committed or not.
    CopyWaitAll,
    LoadMatrix(Matrices),
    StoreMatrix(Matrices),
    Mma(Mma),
    ClusterBarrier(ClusterBarrier),
    Mbarrier(Mbarrier),
    BulkCopy(BulkCopy),
    BulkCommit,
    /// Waits until at most this many bulk groups are pending, or pending their reads.
    BulkWait {
        keep: Slot<u32>,
    },
}

impl Op {
    /// The class the instruction is counted under, for memory accesses by their space.
    pub(crate) fn class(&self, alu: Class) -> Class {
        let memory = |space| match space {
            Space::Global | Space::Generic => Class::Global,
            Space::Shared | Space::SharedCluster => Class::Shared,
            Space::Const | Space::Param | Space::Local => Class::OtherMemory,
        };
        match self {
            Self::Alu(_) => alu,
            Self::Load(x) => memory(x.space),
            Self::Store(x) => memory(x.space),
            Self::Atomic(x) => memory(x.space),
            Self::Branch(_) | Self::BranchTable { .. } => Class::Control,
            Self::Exit | Self::Trap | Self::Nop => Class::Control,
            Self::Collective { .. } | Self::ActiveMask(_) => Class::Warp,
            Self::Barrier(_) | Self::Fence { .. } => Class::Barrier,
            Self::ClusterBarrier(_) | Self::Mbarrier(_) => Class::Barrier,
            Self::CopyAsync(_) | Self::CopyCommit | Self::CopyWait(_) => Class::AsyncCopy,
            Self::CopyWaitAll | Self::BulkCopy(_) | Self::BulkCommit => Class::AsyncCopy,
            Self::BulkWait { .. } | Self::StoreAsync(_) => Class::AsyncCopy,
            Self::LoadMatrix(_) | Self::StoreMatrix(_) => Class::Shared,
            Self::Mma(_) => Class::Mma,
        }
    }

    /// Narrowest width at which the instruction touches memory of the given kind.
    pub(crate) fn granules(&self) -> (Option<u32>, Option<u32>) {
        let by_space = |space, bytes| match space {
            Space::Generic => (Some(bytes), Some(bytes)),
            Space::Global | Space::Const => (None, Some(bytes)),
            Space::Shared | Space::SharedCluster => (Some(bytes), None),
            Space::Param | Space::Local => (None, None),
        };
        match self {
            Self::Load(x) => by_space(x.space, x.bytes * x.to.len() as u32),
            Self::Store(x) => by_space(x.space, x.bytes * x.from.len() as u32),
            Self::StoreAsync(x) => (Some(x.bytes * x.from.len() as u32), None),
            Self::Atomic(x) => by_space(x.space, x.bytes),
            // A partial source is read byte by byte.
            Self::CopyAsync(x) if x.source_bytes.is_some() => (Some(x.bytes), Some(1)),
            Self::CopyAsync(x) => (Some(x.bytes), Some(x.bytes)),
            Self::Mbarrier(_) => (Some(8), None),
            _ => (None, None),
        }
    }

    /// Whether blocks may communicate through it, so that the order of blocks matters.
    pub(crate) fn orders_blocks(&self) -> bool {
        let global = |space| matches!(space, Space::Global | Space::Generic);
        match self {
            Self::Atomic(x) => global(x.space),
            Self::Load(x) => x.order.strong && global(x.space),
            Self::Store(x) => x.order.strong && global(x.space),
            _ => false,
        }
    }
}
