//! How entries of the heads become one, lane by lane.

use crate::cpu::simd::Lanes;

/// How entries of the heads, in order, become one.
pub(crate) trait Fold: Copy {
    #[inline(always)]
    fn first<L: Lanes>(self, _lanes: L, value: L::Vector) -> L::Vector {
        value
    }

    fn next<L: Lanes>(self, lanes: L, kept: L::Vector, value: L::Vector, head: usize) -> L::Vector;

    #[inline(always)]
    fn last<L: Lanes>(self, _lanes: L, kept: L::Vector) -> L::Vector {
        kept
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Mean {
    pub scale: f32,
}

impl Fold for Mean {
    #[inline(always)]
    fn next<L: Lanes>(
        self,
        lanes: L,
        kept: L::Vector,
        value: L::Vector,
        _head: usize,
    ) -> L::Vector {
        lanes.add(kept, value)
    }

    #[inline(always)]
    fn last<L: Lanes>(self, lanes: L, kept: L::Vector) -> L::Vector {
        lanes.mul(kept, lanes.splat(self.scale))
    }
}

/// The largest entry, or the smallest.
#[derive(Clone, Copy)]
pub(crate) struct Extreme<const LARGEST: bool>;

impl<const LARGEST: bool> Fold for Extreme<LARGEST> {
    #[inline(always)]
    fn next<L: Lanes>(
        self,
        lanes: L,
        kept: L::Vector,
        value: L::Vector,
        _head: usize,
    ) -> L::Vector {
        if LARGEST {
            lanes.max(kept, value)
        } else {
            lanes.min(kept, value)
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Weighted<'a> {
    pub weights: &'a [f32],
}

impl Fold for Weighted<'_> {
    #[inline(always)]
    fn first<L: Lanes>(self, lanes: L, value: L::Vector) -> L::Vector {
        lanes.mul(value, lanes.splat(self.weights[0]))
    }

    #[inline(always)]
    fn next<L: Lanes>(self, lanes: L, kept: L::Vector, value: L::Vector, head: usize) -> L::Vector {
        lanes.add(kept, lanes.mul(value, lanes.splat(self.weights[head])))
    }
}
