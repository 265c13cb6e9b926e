//! The memory of a plan: allocated once, aligned for the widest vectors, cut into parts by whoever computes an item.

use std::ops::{Deref, DerefMut, Range};

use crate::error::{Error, Result};

/// A cache line.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// Floats of a cache line.
pub(crate) const LINE: usize = 16;

/// Floats that begin on a cache line and fill whole ones.
#[derive(Debug, Default)]
pub(crate) struct Floats(Vec<Line>);

impl Floats {
    /// `len` zeros, rounded up to whole cache lines.
    ///
    /// # Errors
    /// [`Error::HostMemory`].
    pub fn zeroed(len: usize) -> Result<Self> {
        let lines = len.div_ceil(LINE);
        let mut memory = Vec::new();
        memory
            .try_reserve_exact(lines)
            .map_err(|_| Error::HostMemory {
                what: "the workspace",
                required: lines.saturating_mul(size_of::<Line>()),
            })?;
        memory.resize(lines, Line::default());
        Ok(Floats(memory))
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(&self[..])
    }
}

impl Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// The lengths of the parts that memory is cut into, in the order in which they lie there, each from a cache line on.
/// What a form needs, and where it finds it, are both read from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parts<const N: usize>(pub [usize; N]);

impl<const N: usize> Parts<N> {
    /// Floats of all parts; more than there can be where they cannot be counted.
    pub fn floats(self) -> usize {
        let part = |len: usize| len.checked_next_multiple_of(LINE).unwrap_or(usize::MAX);
        self.0
            .into_iter()
            .fold(0, |sum: usize, len| sum.saturating_add(part(len)))
    }

    /// Where each part lies, once as many floats have been had.
    pub fn ranges(self) -> [Range<usize>; N] {
        let mut next = 0;
        self.0.map(|len| {
            let first = next;
            next += len.next_multiple_of(LINE);
            first..first + len
        })
    }

    /// The parts of `memory`.
    ///
    /// # Panics
    /// Where it holds fewer [floats](Parts::floats).
    pub fn carve(self, memory: &mut [f32]) -> [&mut [f32]; N] {
        let (mut rest, mut cut) = (memory, 0);
        self.ranges().map(|range| {
            let (_, part) = std::mem::take(&mut rest).split_at_mut(range.start - cut);
            let (part, after) = part.split_at_mut(range.len());
            (rest, cut) = (after, range.end);
            part
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fill_what_was_measured_out_for_them() {
        let parts = Parts([0, 1, LINE, LINE + 1, 3]);
        assert_eq!(parts.floats(), 5 * LINE);
        let mut memory = Floats::zeroed(parts.floats()).unwrap();
        let carved = parts.carve(&mut memory);
        assert_eq!(carved.each_ref().map(|part| part.len()), parts.0);
        for part in carved {
            assert_eq!(part.as_ptr() as usize % size_of::<Line>(), 0);
        }
        assert_eq!(Parts([usize::MAX, 1]).floats(), usize::MAX);
        assert!(matches!(
            Floats::zeroed(usize::MAX),
            Err(Error::HostMemory { .. })
        ));
    }
}
