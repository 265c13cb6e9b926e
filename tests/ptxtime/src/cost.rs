//! What an instruction costs: PTX classes as machine code of sm_90 issues them.

use crate::machine::Machine;
use ptxemu::trace::Cost;

/// A unit that each of the four schedulers of a multiprocessor has for itself, or (`Memory`) a place in its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pipe {
    None,
    Integer,
    Float,
    Function,
    Tensor,
    Memory,
}

impl Pipe {
    pub(crate) const COUNT: usize = 6;
}

/// The cost of one instruction, in clocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Charge {
    pub(crate) pipe: Pipe,
    /// Issue slots: machine instructions.
    pub(crate) slots: f64,
    /// For how long it occupies its pipe.
    pub(crate) busy: f64,
    /// From issue to the use of the result, without what memory adds.
    pub(crate) latency: f64,
}

/// The charge of a class. Rates are those of the CUDA programming guide's table for compute capability 9.0: 16 lanes per
/// scheduler and clock of integers and conversions (2 clocks per warp), 32 of floats, 4 of functions.
pub(crate) fn charge(cost: Cost, machine: &Machine) -> Charge {
    let add = machine.arithmetic_latency;
    let of = |pipe, slots, busy, latency| Charge {
        pipe,
        slots,
        busy,
        latency,
    };
    let memory = |busy, latency| of(Pipe::Memory, 1.0, busy, latency);
    match cost {
        Cost::Free => of(Pipe::None, 0.0, 0.0, 0.0),
        // Half of the literals are folded into the instruction that uses them.
        Cost::Constant => of(Pipe::Integer, 0.5, 0.5, add),
        Cost::Special => of(Pipe::Integer, 1.0, 2.0, 20.0),
        Cost::Integer => of(Pipe::Integer, 1.0, 2.0, add),
        Cost::IntegerWide => of(Pipe::Integer, 2.0, 4.0, 2.0 * add),
        Cost::Multiply => of(Pipe::Float, 1.0, 2.0, add),
        Cost::MultiplyWide => of(Pipe::Float, 1.0, 2.0, add + 1.0),
        Cost::MultiplyHigh => of(Pipe::Float, 2.0, 4.0, 2.0 * add),
        Cost::MultiplyLong => of(Pipe::Float, 4.0, 8.0, 3.0 * add),
        Cost::BitField => of(Pipe::Integer, 1.5, 3.0, 1.5 * add),
        Cost::Float => of(Pipe::Float, 1.0, 1.0, add - 0.5),
        Cost::Convert => of(Pipe::Integer, 1.0, 2.0, add + 1.0),
        Cost::ConvertInteger => of(Pipe::Integer, 0.5, 1.0, add),
        Cost::Function => of(Pipe::Function, 1.0, 8.0, 24.0),
        Cost::Divide => of(Pipe::Function, 9.0, 16.0, 60.0),
        Cost::DivideInteger => of(Pipe::Function, 18.0, 24.0, 100.0),
        Cost::Mma => of(Pipe::Tensor, 1.0, machine.mma_busy, machine.mma_latency),
        Cost::MmaHalf => of(
            Pipe::Tensor,
            1.0,
            machine.mma_busy / 2.0,
            machine.mma_latency,
        ),
        Cost::Shuffle => memory(2.0, 24.0),
        Cost::Vote => of(Pipe::Integer, 1.0, 2.0, 12.0),
        Cost::WarpBarrier => of(Pipe::Integer, 1.0, 2.0, 8.0),
        Cost::LoadConstant => memory(2.0, 30.0),
        Cost::LoadShared => memory(2.0, machine.shared_latency),
        Cost::AtomicShared => memory(4.0, machine.atomic_latency),
        Cost::AtomicGlobal => memory(4.0, 0.0),
        Cost::LoadGlobal
        | Cost::LoadStrong
        | Cost::StoreGlobal
        | Cost::StoreShared
        | Cost::CopyAsync
        | Cost::CopyCommit
        | Cost::BulkCopy
        | Cost::StoreAsync
        | Cost::MbarrierTest
        | Cost::MbarrierArrive => memory(2.0, 0.0),
        Cost::Fence => memory(2.0, machine.fence_latency),
        Cost::CopyWait
        | Cost::Barrier
        | Cost::BarrierArrive
        | Cost::ClusterArrive
        | Cost::ClusterWait
        | Cost::Hint => of(Pipe::Integer, 1.0, 2.0, 0.0),
        Cost::Branch | Cost::Exit => of(Pipe::None, 1.0, 0.0, 0.0),
    }
}

/// Whether a basic block ends with it: nothing is moved across.
pub(crate) fn ends_block(cost: Cost) -> bool {
    matches!(
        cost,
        Cost::Barrier
            | Cost::BarrierArrive
            | Cost::ClusterArrive
            | Cost::ClusterWait
            | Cost::Branch
            | Cost::Exit
            | Cost::CopyWait
            | Cost::CopyCommit
            | Cost::MbarrierTest
            | Cost::MbarrierArrive
    )
}
