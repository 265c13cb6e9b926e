//! What a timing model charges for an instruction: machine code is not known, PTX is.

use super::Statement;
use crate::op::{ClusterBarrier, Collective, MbarrierOp, MmaInput, Op, Operands};
use crate::parse::Space;
use crate::trace::Cost;

/// The class of a decoded instruction.
pub(super) fn of(statement: &Statement<'_>, op: &Op, operands: &Operands) -> Cost {
    let shared = |space| matches!(space, Space::Shared | Space::SharedCluster);
    match op {
        Op::Alu(_) => arithmetic(statement, operands),
        Op::Load(load) if matches!(load.space, Space::Param | Space::Const) => {
            if operands.reads.is_empty() {
                Cost::Free
            } else {
                Cost::LoadConstant
            }
        }
        Op::Load(load) if shared(load.space) => Cost::LoadShared,
        Op::Load(load) if load.order.strong => Cost::LoadStrong,
        Op::Load(_) => Cost::LoadGlobal,
        Op::Store(store) if shared(store.space) => Cost::StoreShared,
        Op::Store(_) => Cost::StoreGlobal,
        Op::Atomic(atomic) if shared(atomic.space) => Cost::AtomicShared,
        Op::Atomic(_) => Cost::AtomicGlobal,
        Op::Branch(_) | Op::BranchTable { .. } => Cost::Branch,
        Op::Exit | Op::Trap => Cost::Exit,
        // Proxy fences, hints.
        Op::Nop => Cost::Hint,
        Op::Collective { op, .. } => match op {
            Collective::Shuffle(_) | Collective::Match { .. } | Collective::Redux { .. } => {
                Cost::Shuffle
            }
            Collective::Vote { .. } | Collective::Elect { .. } => Cost::Vote,
            Collective::WarpBarrier => Cost::WarpBarrier,
        },
        Op::ActiveMask(_) => Cost::Vote,
        Op::Barrier(barrier) if barrier.arrive => Cost::BarrierArrive,
        Op::Barrier(_) => Cost::Barrier,
        Op::Fence { .. } => Cost::Fence,
        Op::CopyAsync(_) => Cost::CopyAsync,
        Op::CopyCommit | Op::BulkCommit => Cost::CopyCommit,
        Op::CopyWait(_) | Op::CopyWaitAll | Op::BulkWait { .. } => Cost::CopyWait,
        Op::LoadMatrix(_) => Cost::LoadShared,
        Op::StoreMatrix(_) => Cost::StoreShared,
        Op::Mma(mma) => match (mma.input, mma.k) {
            (MmaInput::Tf32, 4) | (MmaInput::F16 | MmaInput::Bf16, 8) => Cost::MmaHalf,
            _ => Cost::Mma,
        },
        Op::ClusterBarrier(ClusterBarrier::Arrive { .. }) => Cost::ClusterArrive,
        Op::ClusterBarrier(ClusterBarrier::Wait { .. }) => Cost::ClusterWait,
        Op::Mbarrier(mbarrier) => match mbarrier.op {
            MbarrierOp::Test { .. } => Cost::MbarrierTest,
            _ => Cost::MbarrierArrive,
        },
        Op::BulkCopy(_) => Cost::BulkCopy,
        Op::StoreAsync(_) => Cost::StoreAsync,
    }
}

/// Arithmetic on registers, and moves among them.
fn arithmetic(statement: &Statement<'_>, operands: &Operands) -> Cost {
    let has = |modifier| statement.has(modifier);
    let wide = has("s64") || has("u64") || has("b64");
    match statement.opcode {
        "mov" if operands.special => Cost::Special,
        "mov" if operands.reads.is_empty() && !wide => Cost::Constant,
        // Machine code renames registers, and folds signs into operands.
        "mov" | "cvta" | "mapa" | "neg" | "abs" => Cost::Free,
        "cvt" if statement.has_float_type() => Cost::Convert,
        // The upper half of a widened register is a register of its own.
        "cvt" if has("u64") || has("s64") => Cost::Free,
        "cvt" => Cost::ConvertInteger,
        "div" | "rem" if !has("f32") => Cost::DivideInteger,
        "div" if has("rn") => Cost::Divide,
        "div" | "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => Cost::Function,
        "popc" | "bfind" | "brev" | "clz" | "bfe" | "bfi" => Cost::BitField,
        "mul" | "mad" if wide && has("lo") => Cost::MultiplyLong,
        "mul" | "mad" if has("wide") => Cost::MultiplyWide,
        "mul" | "mad" if has("hi") => Cost::MultiplyHigh,
        "mul" | "mad" if !has("f32") => Cost::Multiply,
        "add" | "sub" | "fma" | "mul" | "mad" if has("f32") || has("f16") || has("f16x2") => {
            Cost::Float
        }
        _ if wide => Cost::IntegerWide,
        _ => Cost::Integer,
    }
}
