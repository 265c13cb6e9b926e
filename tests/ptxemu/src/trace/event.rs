//! What executed instructions did, and how that is kept.

/// A phase of a barrier in shared memory, or of what blocks tell each other through global memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Phase {
    /// The block among those that ran together, and the barrier's place in its shared memory.
    pub at: u32,
    /// How many phases came before it.
    pub number: u32,
}

/// Bits of a place in shared memory.
const OFFSET_BITS: u32 = 18;

impl Phase {
    /// A phase of the barrier at `offset` in the shared memory of a block.
    pub(crate) fn of_barrier((block, offset): (usize, u64), number: u64) -> Self {
        Self {
            at: (block as u32) << OFFSET_BITS | offset as u32,
            number: number as u32,
        }
    }

    /// The number `number` of what blocks tell each other through global memory.
    pub fn of_words(number: u32) -> Self {
        Self {
            at: (1 << LEN_BITS) - 1,
            number,
        }
    }
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
    /// Threads arrived at an mbarrier.
    Arrives(Phase),
    /// They will arrive when their `cp.async` copies are complete.
    ArrivesCopied(Phase),
    /// A bulk copy of what the event before reads completes on an mbarrier.
    Copies(Phase),
    /// Stores to the shared memory of a block of the cluster complete on an mbarrier there.
    Stores(Phase),
    /// The end of a phase of an mbarrier was waited for.
    Waits(Phase),
    /// Words were stored for other blocks to find.
    Tells(Phase),
    /// Words were found that other blocks stored.
    Told(Phase),
}

/// What one warp executed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WarpTrace {
    /// A step is a word, the index of its instruction and the number of its events (from bit [`INDEX_BITS`]); an event is
    /// two, its kind (from bit [`LEN_BITS`]) with a length, and a value.
    pub(super) words: Vec<u32>,
}

pub(super) const INDEX_BITS: u32 = 20;
const LEN_BITS: u32 = 28;

impl Event {
    pub(super) fn to_words(self) -> [u32; 2] {
        let (kind, len, value) = match self {
            Event::Read { first, sectors } => (0, sectors, first),
            Event::Written { first, sectors } => (1, sectors, first),
            Event::Shared { wavefronts, remote } => (2, wavefronts, remote.into()),
            Event::Barrier { id, threads } => (3, id, threads),
            Event::CopyWait { pending } => (4, pending, 0),
            Event::Arrives(phase) => (5, phase.at, phase.number),
            Event::ArrivesCopied(phase) => (6, phase.at, phase.number),
            Event::Copies(phase) => (7, phase.at, phase.number),
            Event::Stores(phase) => (8, phase.at, phase.number),
            Event::Waits(phase) => (9, phase.at, phase.number),
            Event::Tells(phase) => (10, phase.at, phase.number),
            Event::Told(phase) => (11, phase.at, phase.number),
        };
        [kind << LEN_BITS | len, value]
    }

    fn of_words(words: &[u32]) -> Event {
        let (len, value) = (words[0] & ((1 << LEN_BITS) - 1), words[1]);
        let phase = Phase {
            at: len,
            number: value,
        };
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
            4 => Event::CopyWait { pending: len },
            5 => Event::Arrives(phase),
            6 => Event::ArrivesCopied(phase),
            7 => Event::Copies(phase),
            8 => Event::Stores(phase),
            9 => Event::Waits(phase),
            10 => Event::Tells(phase),
            _ => Event::Told(phase),
        }
    }
}

/// One executed instruction.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Index of the instruction in [`LaunchTrace::code`](super::LaunchTrace::code).
    pub index: u32,
    events: &'a [u32],
}

impl Step<'_> {
    /// What it did.
    pub fn events(&self) -> impl Iterator<Item = Event> + '_ {
        self.events.chunks_exact(2).map(Event::of_words)
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
