//! How a kernel is entered: alone, or for many members in one launch. The twin of `kernels/entry.cuh`. Pure functions.

use super::geometry::Geometry;
use super::params::{GroupMember, GroupParams, GroupWord, RolloutRowsParams};
use super::variant::Variant;

/// Blocks that one grouped launch can have.
pub const MAX_BLOCKS: u64 = i32::MAX as u64;

/// Static shared memory that the largest parameters of a grouped kernel take.
pub const SHARED_PARAMS: usize = size_of::<RolloutRowsParams>().next_multiple_of(16);

/// The entry point that a variant is compiled with.
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
            Entry::Alone => variant.symbol(),
            Entry::Grouped => format!("{variant}_group"),
        }
    }

    /// The macros that `variant` is compiled with.
    pub fn defines(self, variant: &Variant) -> Vec<(&'static str, String)> {
        let mut defines = vec![
            ("KERNEL", self.symbol(variant)),
            ("GROUPED", u32::from(self == Entry::Grouped).to_string()),
        ];
        defines.extend(variant.defines());
        defines
    }
}

/// One member of a grouped launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// How it would be launched alone.
    pub geometry: Geometry,
    /// Its parameters, 8 bytes at a time, as far as they are used: a value, and the number of the address in
    /// [`GroupParams::address`] that is added to it, 0 for none.
    pub words: Vec<(u64, u32)>,
}

/// What all launches of `members` share: the table that lies in device memory, and how they are launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The members, and from [`words_at`](Table::words_at) on their words.
    pub bytes: Vec<u8>,
    /// Where the words begin.
    pub words_at: usize,
    /// Number of members.
    pub members: u32,
    /// Grid, block and dynamic shared memory.
    pub geometry: Geometry,
}

impl Table {
    /// Puts `members`, which have at most [`MAX_BLOCKS`] blocks, one after the other.
    pub fn new(members: &[Member]) -> Self {
        let (mut heads, mut words): (Vec<GroupMember>, Vec<GroupWord>) = Default::default();
        let mut geometry = Geometry {
            grid: [0, 1, 1],
            block: 0,
            shared_bytes: 0,
            cluster: 1,
        };
        for member in members {
            let [grid_x, grid_y, grid_z] = member.geometry.grid;
            heads.push(GroupMember {
                first_block: geometry.grid[0],
                grid_x,
                grid_y,
                grid_z,
                threads: member.geometry.block,
                first_word: words.len() as u32,
                words: member.words.len() as u32,
                reserved: 0,
            });
            words.extend(member.words.iter().map(|&(value, address)| GroupWord {
                value,
                address,
                reserved: 0,
            }));
            geometry.grid[0] += member.geometry.blocks() as u32;
            geometry.block = geometry.block.max(member.geometry.block);
            geometry.shared_bytes = geometry.shared_bytes.max(member.geometry.shared_bytes);
        }
        let mut bytes = bytemuck::cast_slice(&heads).to_vec();
        let words_at = bytes.len();
        bytes.extend_from_slice(bytemuck::cast_slice(&words));
        Table {
            bytes,
            words_at,
            members: members.len() as u32,
            geometry,
        }
    }

    /// The parameters of a launch whose table lies at `at`, without addresses.
    pub fn params(&self, at: u64) -> GroupParams {
        GroupParams {
            member: at,
            word: at + self.words_at as u64,
            members: self.members,
            ..bytemuck::Zeroable::zeroed()
        }
    }
}
