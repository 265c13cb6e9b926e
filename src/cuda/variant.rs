//! What a kernel is compiled to, as plain data, and how it is entered.

use super::limits::DeviceLimits;

/// 32-bit registers of a multiprocessor, on every architecture.
const REGISTERS: u32 = 65_536;

/// One kernel, as compiled. Its symbol is its name: two variants of one symbol are the same.
#[derive(Clone, Debug)]
pub struct Variant {
    /// The file in `kernels/`, without extension.
    pub stem: &'static str,
    /// `<stem>_<dtype>_<arithmetic>_<tile>_<flags>`, parts that do not apply left out. Entered grouped, the kernel's
    /// symbol ends in `_group`: see [`Entry`].
    pub symbol: String,
    /// The macros it is compiled with, besides those of its [`Entry`].
    pub defines: Vec<(&'static str, String)>,
    /// Where the kernel's arguments begin in its parameters, in words of 8 bytes. Most have one, a struct.
    pub arguments: &'static [usize],
    /// The least architecture, compute capability times ten.
    pub arch: u32,
    /// Threads of a block.
    pub block: u32,
    /// Blocks that share a multiprocessor, which bounds their registers: the second of the kernel's launch bounds, or as
    /// many as fit anyway.
    pub blocks_per_multiprocessor: u32,
    /// As before, entered grouped; 0: it never is.
    pub grouped_blocks_per_multiprocessor: u32,
    /// Static shared memory that a block may use at most.
    pub static_shared_bytes: u32,
    /// Dynamic shared memory that a block takes whatever is launched.
    pub shared_bytes: u32,
    /// Blocks that are compiled to be a cluster; 1: none.
    pub cluster: u32,
    /// Entered grouped, the members' blocks are a queue, from which the blocks of the launch take one after the other:
    /// there need be no more of them than fit the device.
    pub queues: bool,
}

impl Variant {
    /// A variant without macros for every architecture, whose one argument is a struct and which takes no shared memory.
    pub fn new(
        stem: &'static str,
        symbol: String,
        block: u32,
        blocks_per_multiprocessor: u32,
    ) -> Self {
        Variant {
            stem,
            symbol,
            defines: Vec::new(),
            arguments: &[0],
            arch: 75,
            block,
            blocks_per_multiprocessor,
            grouped_blocks_per_multiprocessor: blocks_per_multiprocessor,
            static_shared_bytes: 0,
            shared_bytes: 0,
            cluster: 1,
            queues: false,
        }
    }

    /// How it may be entered: the blocks of a group need not be neighbours, as those of a cluster are.
    pub fn entries(&self) -> &'static [Entry] {
        match (self.cluster, self.grouped_blocks_per_multiprocessor) {
            (1, 1..) => &Entry::ALL,
            _ => &[Entry::Alone],
        }
    }

    /// Whether a device has what the kernel needs.
    pub fn runs_on(&self, limits: &DeviceLimits) -> bool {
        limits.arch >= self.arch
            && (self.cluster == 1 || limits.clusters)
            && self.shared_bytes as usize <= limits.shared_bytes_per_block
    }
}

impl PartialEq for Variant {
    fn eq(&self, other: &Self) -> bool {
        self.symbol == other.symbol
    }
}

impl Eq for Variant {}

/// Symbols of parts that are joined by `_`, those of flags that are off left out.
pub(super) fn symbol(stem: &str, parts: &[&str], flags: &[(bool, &str)]) -> String {
    let flags = flags.iter().filter(|(on, _)| *on).map(|(_, name)| *name);
    let parts = std::iter::once(stem)
        .chain(parts.iter().copied())
        .chain(flags);
    parts.collect::<Vec<_>>().join("_")
}

/// The value of a macro that is a flag.
pub(super) fn flag(on: bool) -> String {
    u32::from(on).to_string()
}

/// The entry point that a variant is compiled with: the twin of `kernels/entry.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// One grid with its parameters.
    Alone,
    /// The grids of many members, one after the other, each with parameters of its own.
    Grouped,
}

impl Entry {
    /// Both entries.
    pub const ALL: [Entry; 2] = [Entry::Alone, Entry::Grouped];

    /// The kernel's symbol: the variant's name, and `_group`.
    pub fn symbol(self, variant: &Variant) -> String {
        match self {
            Entry::Alone => variant.symbol.clone(),
            Entry::Grouped => format!("{}_group", variant.symbol),
        }
    }

    /// The macros that `variant` is compiled with.
    pub fn defines(self, variant: &Variant) -> Vec<(&'static str, String)> {
        let mut defines = vec![
            ("KERNEL", self.symbol(variant)),
            ("GROUPED", flag(self == Entry::Grouped)),
        ];
        defines.extend(variant.defines.iter().cloned());
        defines
    }

    /// Blocks of `variant` that share a multiprocessor.
    pub fn blocks_per_multiprocessor(self, variant: &Variant) -> u32 {
        match self {
            Entry::Alone => variant.blocks_per_multiprocessor,
            Entry::Grouped => variant.grouped_blocks_per_multiprocessor,
        }
    }

    /// Registers that a thread of `variant` may use at most, for its blocks to share a multiprocessor. They are given
    /// out by eights, and no thread has more than 255.
    pub fn registers(self, variant: &Variant) -> u32 {
        let blocks = self.blocks_per_multiprocessor(variant);
        (REGISTERS / (blocks * variant.block) / 8 * 8).min(255)
    }
}
