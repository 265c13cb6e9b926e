//! What an entry of a head is, lane by lane, before the heads become one.

use crate::config::GradientRule;
use crate::cpu::simd::Lanes;
use crate::dtype::Element;

/// Where an entry lies in each array that it is read from: the maps, and the gradients where there are some.
pub(super) type Addresses = [*const u8; 2];

/// Entries of the heads of some rows, by their place among the elements of the maps.
pub(super) trait HeadEntries: Copy {
    /// Bytes of an element.
    const BYTES: usize;
    /// Arrays that an entry is read from.
    const OPERANDS: usize;

    /// How many there are.
    fn len(self) -> usize;

    /// The entries from `at` on.
    ///
    /// # Safety
    /// There are as many as a vector has lanes.
    unsafe fn read<W: Lanes>(self, lanes: W, at: usize) -> W::Vector;

    /// What becomes of the folded entries of all heads.
    fn folded<W: Lanes>(self, lanes: W, folded: W::Vector) -> W::Vector;

    /// Where the entry `at`, which need not be there, is read from.
    fn addresses(self, at: usize) -> Addresses;
}

/// The maps as they are.
#[derive(Clone, Copy)]
pub(super) struct Attention<'a, T>(pub &'a [T]);

impl<T: Element> HeadEntries for Attention<'_, T> {
    const BYTES: usize = size_of::<T>();
    const OPERANDS: usize = 1;

    #[inline(always)]
    fn len(self) -> usize {
        self.0.len()
    }

    #[inline(always)]
    unsafe fn read<W: Lanes>(self, lanes: W, at: usize) -> W::Vector {
        // SAFETY: as the caller vouches.
        unsafe { lanes.read(self.0.as_ptr().add(at)) }
    }

    #[inline(always)]
    fn folded<W: Lanes>(self, _lanes: W, folded: W::Vector) -> W::Vector {
        folded
    }

    #[inline(always)]
    fn addresses(self, at: usize) -> Addresses {
        [address(self.0, at), std::ptr::null()]
    }
}

/// The entries that are more than `least`; 0 for the others.
#[derive(Clone, Copy)]
pub(super) struct Above<E> {
    pub entries: E,
    pub least: f32,
}

impl<E: HeadEntries> HeadEntries for Above<E> {
    const BYTES: usize = E::BYTES;
    const OPERANDS: usize = E::OPERANDS;

    #[inline(always)]
    fn len(self) -> usize {
        self.entries.len()
    }

    #[inline(always)]
    unsafe fn read<W: Lanes>(self, lanes: W, at: usize) -> W::Vector {
        // SAFETY: as the caller vouches.
        let entries = unsafe { self.entries.read(lanes, at) };
        lanes.zero_at_most(entries, lanes.splat(self.least))
    }

    #[inline(always)]
    fn folded<W: Lanes>(self, lanes: W, folded: W::Vector) -> W::Vector {
        self.entries.folded(lanes, folded)
    }

    #[inline(always)]
    fn addresses(self, at: usize) -> Addresses {
        self.entries.addresses(at)
    }
}

/// The maps times their gradients, what is negative taken as 0: head by head, or once they are folded.
#[derive(Clone, Copy)]
pub(super) struct GradientWeighted<'a, T> {
    maps: &'a [T],
    gradients: &'a [T],
    /// Entries are at least this, and so are folded ones: 0 for those the rule rectifies.
    least_entry: f32,
    least_folded: f32,
}

impl<'a, T> GradientWeighted<'a, T> {
    /// Entries of `maps` and of the `gradients` at the same places, as `rule` says.
    pub fn new(maps: &'a [T], gradients: &'a [T], rule: GradientRule) -> Self {
        let (least_entry, least_folded) = match rule {
            GradientRule::Heads => (0.0, f32::NEG_INFINITY),
            GradientRule::Fused => (f32::NEG_INFINITY, 0.0),
        };
        GradientWeighted {
            maps,
            gradients,
            least_entry,
            least_folded,
        }
    }
}

impl<T: Element> HeadEntries for GradientWeighted<'_, T> {
    const BYTES: usize = size_of::<T>();
    const OPERANDS: usize = 2;

    #[inline(always)]
    fn len(self) -> usize {
        self.maps.len().min(self.gradients.len())
    }

    #[inline(always)]
    unsafe fn read<W: Lanes>(self, lanes: W, at: usize) -> W::Vector {
        // SAFETY: as the caller vouches, for both.
        let (map, gradient) = unsafe {
            (
                lanes.read(self.maps.as_ptr().add(at)),
                lanes.read(self.gradients.as_ptr().add(at)),
            )
        };
        lanes.at_least(lanes.splat(self.least_entry), lanes.mul(gradient, map))
    }

    #[inline(always)]
    fn folded<W: Lanes>(self, lanes: W, folded: W::Vector) -> W::Vector {
        lanes.at_least(lanes.splat(self.least_folded), folded)
    }

    #[inline(always)]
    fn addresses(self, at: usize) -> Addresses {
        [address(self.maps, at), address(self.gradients, at)]
    }
}

#[inline(always)]
fn address<T>(elements: &[T], at: usize) -> *const u8 {
    elements.as_ptr().wrapping_add(at).cast()
}
