//! What can go wrong: parse errors, memory errors and launch faults.

use std::fmt;

/// The PTX text could not be understood.
///
/// Unknown instructions, or known ones in a form that is not modelled, are always errors: nothing
/// is ever skipped in silence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Line of the PTX text, counted from 1.
    pub line: u32,
    /// The statement at that line.
    pub text: String,
    /// What is wrong with it.
    pub message: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PTX line {}: {}: {}", self.line, self.message, self.text)
    }
}

impl std::error::Error for ParseError {}

/// A host access to device memory that no real driver would accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryError {
    /// No live allocation contains the address; if a freed one did, its base is given.
    NotAllocated {
        /// The address asked for.
        addr: u64,
        /// Base of the freed allocation that used to contain it.
        freed: Option<u64>,
    },
    /// The access starts inside an allocation and runs past its end.
    OutOfBounds {
        /// The address asked for.
        addr: u64,
        /// Bytes asked for.
        bytes: usize,
        /// Base of the allocation.
        base: u64,
        /// Length of the allocation.
        len: u64,
    },
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAllocated { addr, freed: None } => write!(f, "{addr:#x} is not allocated"),
            Self::NotAllocated {
                addr,
                freed: Some(base),
            } => {
                write!(
                    f,
                    "{addr:#x} lies in the allocation at {base:#x}, which was freed"
                )
            }
            Self::OutOfBounds {
                addr,
                bytes,
                base,
                len,
            } => write!(
                f,
                "{bytes} bytes at {addr:#x} run past the {len}-byte allocation at {base:#x}"
            ),
        }
    }
}

impl std::error::Error for MemoryError {}

/// The kinds of fault a launch can end with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// An access outside every allocation, or outside the block's shared or local memory.
    OutOfBounds,
    /// An address that is not a multiple of the access size.
    Misaligned,
    /// An access to device memory that was freed.
    UseAfterFree,
    /// A read of shared or global bytes that nothing has written.
    Uninitialised,
    /// Two unordered accesses to shared memory, at least one of them a write.
    SharedRace,
    /// Two unordered accesses to global memory in one launch, at least one of them a write.
    GlobalRace,
    /// Use of the destination of an asynchronous copy before the copy was waited for.
    UnwaitedCopy,
    /// An aligned barrier, or another aligned collective, reached by part of a warp.
    DivergentBarrier,
    /// A member mask that leaves out a lane that executes the instruction.
    Membermask,
    /// Every live warp waits for something that can no longer happen.
    Deadlock,
    /// The launch executed more instructions than [`Options::max_steps`](crate::Options).
    StepLimit,
    /// Launch parameters that a driver would refuse.
    InvalidLaunch,
    /// A write to read-only memory, or an operand value the hardware does not accept.
    IllegalOperand,
    /// The kernel executed `trap`.
    Trap,
    /// Something legal that is not modelled and could only be seen while running.
    Unsupported,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfBounds => "out of bounds",
            Self::Misaligned => "misaligned",
            Self::UseAfterFree => "use after free",
            Self::Uninitialised => "uninitialised read",
            Self::SharedRace => "shared-memory race",
            Self::GlobalRace => "global-memory race",
            Self::UnwaitedCopy => "asynchronous copy not waited for",
            Self::DivergentBarrier => "divergent barrier",
            Self::Membermask => "wrong member mask",
            Self::Deadlock => "deadlock",
            Self::StepLimit => "step limit",
            Self::InvalidLaunch => "invalid launch",
            Self::IllegalOperand => "illegal operand",
            Self::Trap => "trap",
            Self::Unsupported => "not modelled",
        })
    }
}

/// Why a launch stopped, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The kind, for tests to match on.
    pub kind: FaultKind,
    /// Details: what was accessed, and by whom; names kernel, block, warp, lane, PTX line, source
    /// line and instruction where there is one.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)
    }
}

impl std::error::Error for Fault {}
