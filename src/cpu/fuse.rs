//! Head fusion: `[heads, rows, len]` of one item and layer becomes `[rows, len]` in f32, to the bit as
//! [`HeadFusion`] defines it. This is the only code that reads attention maps.

use std::ops::Range;

use crate::config::HeadFusion;
use crate::cpu::simd::{Kernel, LANES, Lanes, Simd};
use crate::dtype::Element;
use crate::input::HostLayer;
use crate::problem::Problem;

/// How far ahead of the loads, in bytes, each head's stream is prefetched.
const PREFETCH_BYTES: usize = 256;

/// Vectors per step of the main loop: enough loads in flight per head, few enough accumulators.
const UNROLL: usize = 4;

/// One item's maps of one layer.
#[derive(Clone, Copy)]
pub(crate) struct ItemMaps<'a> {
    pub problem: &'a Problem,
    pub maps: HostLayer<'a>,
    pub layer: usize,
    pub item: usize,
}

impl ItemMaps<'_> {
    /// Valid tokens of the item.
    pub fn len(&self) -> usize {
        self.problem.windows()[self.item].len
    }

    /// Writes the fused rows `rows` (counted from the window's start) into `fused`, `[rows, len]`. Entries right of
    /// the diagonal are 0 where the problem is causal, and their maps are not read.
    pub fn fuse(&self, simd: Simd, rows: Range<usize>, fused: &mut [f32]) {
        let strides = self.problem.strides(self.layer);
        let window = self.problem.windows()[self.item];
        let first = self.item * strides.batch + window.start * (strides.row + 1);
        simd.dispatch(FuseRows {
            maps: self.maps,
            first: first + rows.start * strides.row,
            head_stride: strides.head,
            row_stride: strides.row,
            heads: self.problem.shape().heads,
            fusion: &self.problem.config().head_fusion,
            len: window.len,
            causal_from: self.problem.config().causal.then_some(rows.start),
            fused,
        });
    }
}

struct FuseRows<'a> {
    maps: HostLayer<'a>,
    first: usize,
    head_stride: usize,
    row_stride: usize,
    heads: usize,
    fusion: &'a HeadFusion,
    len: usize,
    /// The first row's index where the maps are causal.
    causal_from: Option<usize>,
    fused: &'a mut [f32],
}

impl Kernel for FuseRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        match self.maps {
            HostLayer::F32(maps) => self.by_fusion(lanes, maps),
            HostLayer::F16(maps) => self.by_fusion(lanes, maps),
            HostLayer::Bf16(maps) => self.by_fusion(lanes, maps),
        }
    }
}

impl FuseRows<'_> {
    #[inline(always)]
    fn by_fusion<L: Lanes, T: Element>(self, lanes: L, maps: &[T]) {
        match self.fusion {
            HeadFusion::Mean => {
                let scale = 1.0 / self.heads as f32;
                self.rows(lanes, maps, Mean { scale });
            }
            HeadFusion::Max => self.rows(lanes, maps, Max),
            HeadFusion::Min => self.rows(lanes, maps, Min),
            HeadFusion::Weighted(weights) => self.rows(lanes, maps, Weighted { weights }),
        }
    }

    #[inline(always)]
    fn rows<L: Lanes, T: Element, F: Fusion>(self, lanes: L, maps: &[T], fusion: F) {
        let Self {
            first,
            head_stride,
            row_stride,
            heads,
            len,
            fused,
            ..
        } = self;
        let run = Run {
            lanes,
            fusion,
            head_stride,
            heads,
        };
        match self.causal_from {
            // Adjoining rows are one run.
            None if row_stride == len => run.fuse(&maps[first..], fused),
            None => {
                for (i, row) in fused.chunks_exact_mut(len).enumerate() {
                    run.fuse(&maps[first + i * row_stride..], row);
                }
            }
            Some(from) => {
                for (i, row) in fused.chunks_exact_mut(len).enumerate() {
                    let (present, absent) = row.split_at_mut(from + i + 1);
                    run.fuse(&maps[first + i * row_stride..], present);
                    absent.fill(0.0);
                }
            }
        }
    }
}

/// Fuses runs of elements that adjoin in every head.
struct Run<L, F> {
    lanes: L,
    fusion: F,
    head_stride: usize,
    heads: usize,
}

impl<L: Lanes, F: Fusion> Run<L, F> {
    #[inline(always)]
    fn fuse<T: Element>(&self, maps: &[T], fused: &mut [f32]) {
        let len = fused.len();
        let mut at = 0;
        while at + UNROLL * LANES <= len {
            self.step::<T, UNROLL>(maps, at, fused);
            at += UNROLL * LANES;
        }
        while at + LANES <= len {
            self.step::<T, 1>(maps, at, fused);
            at += LANES;
        }
        if at < len && len >= LANES {
            // The last vector overlaps the one before and computes the same values again.
            self.step::<T, 1>(maps, len - LANES, fused);
        } else {
            for (at, fused) in fused.iter_mut().enumerate().skip(at) {
                let mut kept = self.fusion.first(maps[at].to_f32());
                for head in 1..self.heads {
                    let value = maps[head * self.head_stride + at].to_f32();
                    kept = self.fusion.next(kept, value, head);
                }
                *fused = self.fusion.last(kept);
            }
        }
    }

    /// `VECTORS * LANES` entries, over all heads.
    #[inline(always)]
    fn step<T: Element, const VECTORS: usize>(&self, maps: &[T], at: usize, fused: &mut [f32]) {
        let mut kept = [[0.0; LANES]; VECTORS];
        for head in 0..self.heads {
            let maps = &maps[head * self.head_stride + at..][..VECTORS * LANES];
            if VECTORS == UNROLL {
                for line in 0..(VECTORS * LANES * size_of::<T>()).div_ceil(64) {
                    let ahead = PREFETCH_BYTES + line * 64;
                    self.lanes
                        .prefetch(maps.as_ptr().cast::<u8>().wrapping_add(ahead));
                }
            }
            for (kept, maps) in kept.iter_mut().zip(maps.as_chunks::<LANES>().0) {
                let values = self.lanes.widen(maps);
                for (kept, value) in kept.iter_mut().zip(values) {
                    *kept = if head == 0 {
                        self.fusion.first(value)
                    } else {
                        self.fusion.next(*kept, value, head)
                    };
                }
            }
        }
        for (fused, kept) in fused[at..][..VECTORS * LANES]
            .as_chunks_mut::<LANES>()
            .0
            .iter_mut()
            .zip(kept)
        {
            *fused = kept.map(|kept| self.fusion.last(kept));
        }
    }
}

/// How entries of the heads, in order, become one.
trait Fusion: Copy {
    fn first(self, value: f32) -> f32;
    fn next(self, kept: f32, value: f32, head: usize) -> f32;
    fn last(self, kept: f32) -> f32;
}

#[derive(Clone, Copy)]
struct Mean {
    scale: f32,
}

impl Fusion for Mean {
    #[inline(always)]
    fn first(self, value: f32) -> f32 {
        value
    }

    #[inline(always)]
    fn next(self, kept: f32, value: f32, _head: usize) -> f32 {
        kept + value
    }

    #[inline(always)]
    fn last(self, kept: f32) -> f32 {
        kept * self.scale
    }
}

#[derive(Clone, Copy)]
struct Max;

impl Fusion for Max {
    #[inline(always)]
    fn first(self, value: f32) -> f32 {
        value
    }

    #[inline(always)]
    fn next(self, kept: f32, value: f32, _head: usize) -> f32 {
        // A NaN value replaces what is kept; a kept NaN stays.
        if kept.is_nan() || value <= kept {
            kept
        } else {
            value
        }
    }

    #[inline(always)]
    fn last(self, kept: f32) -> f32 {
        kept
    }
}

#[derive(Clone, Copy)]
struct Min;

impl Fusion for Min {
    #[inline(always)]
    fn first(self, value: f32) -> f32 {
        value
    }

    #[inline(always)]
    fn next(self, kept: f32, value: f32, _head: usize) -> f32 {
        if kept.is_nan() || value >= kept {
            kept
        } else {
            value
        }
    }

    #[inline(always)]
    fn last(self, kept: f32) -> f32 {
        kept
    }
}

#[derive(Clone, Copy)]
struct Weighted<'a> {
    weights: &'a [f32],
}

impl Fusion for Weighted<'_> {
    #[inline(always)]
    fn first(self, value: f32) -> f32 {
        value * self.weights[0]
    }

    #[inline(always)]
    fn next(self, kept: f32, value: f32, head: usize) -> f32 {
        kept + value * self.weights[head]
    }

    #[inline(always)]
    fn last(self, kept: f32) -> f32 {
        kept
    }
}
