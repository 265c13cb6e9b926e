//! How addresses are laid out.
//!
//! Global memory has the addresses of [`Memory`](crate::Memory). Shared, local and parameter
//! memory appear in the generic address space as windows marked by one high bit. Inside the shared
//! window an address is 32 bits: an offset below 2^24 in the block's own memory, and above that
//! the rank of a block of the cluster plus one, shifted by 24, plus an offset.

/// A part of the generic address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    Shared,
    Local,
    Param,
    Global,
}

const SHARED_BIT: u64 = 1 << 56;
const LOCAL_BIT: u64 = 1 << 57;
const PARAM_BIT: u64 = 1 << 58;
const WINDOW_BITS: u64 = SHARED_BIT | LOCAL_BIT | PARAM_BIT;
const RANK_SHIFT: u32 = 24;
const MAX_RANK: u64 = (1 << (32 - RANK_SHIFT)) - 2;
const OFFSET_MASK: u64 = (1 << RANK_SHIFT) - 1;

impl Window {
    /// The window a generic address lies in.
    #[inline(always)]
    pub(crate) fn of(address: u64) -> Self {
        match address & WINDOW_BITS {
            0 => Self::Global,
            SHARED_BIT => Self::Shared,
            LOCAL_BIT => Self::Local,
            _ => Self::Param,
        }
    }

    /// The generic address of an address in this window.
    pub(crate) fn to_generic(self, address: u64) -> u64 {
        match self {
            Self::Shared => address & 0xffff_ffff | SHARED_BIT,
            Self::Local => address & 0xffff_ffff | LOCAL_BIT,
            Self::Param => address & 0xffff_ffff | PARAM_BIT,
            Self::Global => address,
        }
    }

    /// The address in this window of a generic address.
    pub(crate) fn strip(self, address: u64) -> u64 {
        if self == Self::Global {
            address
        } else {
            address & !WINDOW_BITS
        }
    }
}

/// The rank that a shared address, generic or not, names explicitly.
#[inline(always)]
pub(crate) fn rank(address: u64) -> Option<u32> {
    ((address & 0xffff_ffff) >> RANK_SHIFT)
        .checked_sub(1)
        .map(|r| r as u32)
}

/// The offset in the memory of its block.
#[inline(always)]
pub(crate) fn offset(address: u64) -> u64 {
    address & OFFSET_MASK
}

/// The same shared address in the block of a given rank. Ranks that no cluster has stay apart from those that exist.
pub(crate) fn of_rank(address: u64, rank: u32) -> u64 {
    let rank = u64::from(rank).min(MAX_RANK);
    address & WINDOW_BITS | (rank + 1) << RANK_SHIFT | offset(address)
}

/// Whether a generic address lies in the shared memory of the executing block.
pub(crate) fn is_own_shared(address: u64) -> bool {
    Window::of(address) == Window::Shared && rank(address).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_and_ranks_survive_the_round_trip() {
        let generic = Window::Shared.to_generic(0x1230);
        assert_eq!(Window::of(generic), Window::Shared);
        assert!(is_own_shared(generic));
        let mapped = of_rank(generic, 3);
        assert_eq!(
            (Window::of(mapped), rank(mapped), offset(mapped)),
            (Window::Shared, Some(3), 0x1230)
        );
        assert_eq!(rank(of_rank(0x1230, 0)), Some(0));
        assert_eq!(rank(of_rank(0x1230, u32::MAX)), Some(MAX_RANK as u32));
        assert_eq!(Window::Shared.strip(generic), 0x1230);
        assert_eq!(Window::of(0x7f00_0000_1234), Window::Global);
    }
}
