//! What a grouped launch takes: the members with their parameters and grids, whose blocks follow one another. The twin of
//! `kernels/entry.cuh`.

use bytemuck::Zeroable;

use crate::cuda::launch::Geometry;
use crate::cuda::parameters::params;

/// Addresses one grouped launch can take, the first of which is 0.
pub const MAX_GROUP_ADDRESSES: usize = 509;

/// Blocks that one grouped launch can have.
pub const MAX_BLOCKS: u64 = i32::MAX as u64;

params! {
    /// One of the members of a grouped launch.
    GroupMember {
        first_block: u32,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        threads: u32,
        first_word: u32,
        words: u32,
        reserved: u32,
    }
}

params! {
    /// 8 bytes of a member's parameters.
    GroupWord {
        value: u64,
        address: u32,
        reserved: u32,
    }
}

params! {
    /// Parameters of every grouped kernel. Its addresses are linked already: what is added to a word is one of `address`.
    GroupParams {
        member: u64,
        word: u64,
        members: u32,
        reserved: u32,
        address: [u64; MAX_GROUP_ADDRESSES],
    }
}

/// One member of a grouped launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberLaunch {
    /// How it would be launched alone.
    pub geometry: Geometry,
    /// Its parameters, 8 bytes at a time, as far as they are used: a value, and the number of the address in
    /// [`GroupParams::address`] that is added to it, 0 for none.
    pub words: Vec<(u64, u32)>,
}

/// What all launches of the same members share: the table that lies in device memory, and how they are launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberTable {
    /// The members, and from [`words_at`](MemberTable::words_at) on their words.
    pub bytes: Vec<u8>,
    /// Where the words begin.
    pub words_at: usize,
    /// Number of members.
    pub members: u32,
    /// Grid, block and dynamic shared memory.
    pub geometry: Geometry,
}

impl MemberTable {
    /// Puts `members`, which have at most [`MAX_BLOCKS`] blocks, one after the other.
    pub fn new(members: &[MemberLaunch]) -> Self {
        let (mut heads, mut words): (Vec<GroupMember>, Vec<GroupWord>) = Default::default();
        let mut geometry = Geometry::new([0, 1, 1], 0);
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
        MemberTable {
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
            ..GroupParams::zeroed()
        }
    }
}
