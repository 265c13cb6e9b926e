//! The inner loops over scores, `[keys, queries]`, a vector of queries at a time.
#![allow(
    clippy::needless_range_loop,
    reason = "what iterators are made of is not always inlined, and outside an inner loop it lacks its instruction set"
)]

use super::block::{HeadScores, QUERIES};
use crate::config::HeadFusion;
use crate::cpu::fuse::fold::{self, Extreme, Mean, Weighted};
use crate::cpu::simd::{InnerLoop, Lanes};

/// How an entry follows from what is in memory, but for its factor.
pub(super) trait Exponentials: Copy {
    /// The entries of the lanes from `lane` on, from `value`, what is in memory for them.
    fn entry<L: Lanes>(self, lanes: L, lane: usize, value: L::Vector) -> L::Vector;
}

/// `exp(scale * score + shift)`.
#[derive(Clone, Copy)]
pub(super) struct Exponential<'a> {
    pub scale: f32,
    pub shifts: &'a [f32],
}

impl Exponentials for Exponential<'_> {
    #[inline(always)]
    fn entry<L: Lanes>(self, lanes: L, lane: usize, value: L::Vector) -> L::Vector {
        let shift = lanes.load(&self.shifts[lane..]);
        lanes.exp(lanes.mul_add(value, lanes.splat(self.scale), shift))
    }
}

/// What is in memory are the entries.
#[derive(Clone, Copy)]
pub(super) struct Folded;

impl Exponentials for Folded {
    #[inline(always)]
    fn entry<L: Lanes>(self, _lanes: L, _lane: usize, value: L::Vector) -> L::Vector {
        value
    }
}

/// Adds, for each key and start row, the sum over queries of weights times entries.
pub(super) struct Weigh<'a, E> {
    pub entries: &'a [f32],
    pub kind: E,
    /// Lanes from key to key.
    pub stride: usize,
    pub keys: usize,
    /// `[start rows, queries]`.
    pub weights: &'a [f32],
    /// The sums of the first key and start row; those of the next start row are `part_stride` further on.
    pub part: &'a mut [f32],
    pub part_stride: usize,
}

impl<E: Exponentials> InnerLoop for Weigh<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Weigh { stride, keys, .. } = self;
        let entries = &self.entries[..keys * stride];
        if self.weights.len() == stride {
            // At once, without a place for the entries between.
            let part = &mut self.part[..keys];
            for key in 0..keys {
                let mut sum = lanes.splat(0.0);
                let mut lane = 0;
                while lane < stride {
                    let value = lanes.load(&entries[key * stride + lane..]);
                    let entry = self.kind.entry(lanes, lane, value);
                    sum = lanes.mul_add(lanes.load(&self.weights[lane..]), entry, sum);
                    lane += L::LANES;
                }
                part[key] += lanes.sum(sum);
            }
            return;
        }
        let mut row = [0.0; QUERIES];
        for key in 0..keys {
            let mut lane = 0;
            while lane < stride {
                let value = lanes.load(&entries[key * stride + lane..]);
                lanes.store(self.kind.entry(lanes, lane, value), &mut row[lane..]);
                lane += L::LANES;
            }
            for m in 0..self.weights.len() / stride {
                let weights = &self.weights[m * stride..][..stride];
                let mut sum = lanes.splat(0.0);
                let mut lane = 0;
                while lane < stride {
                    let entry = lanes.load(&row[lane..]);
                    sum = lanes.mul_add(lanes.load(&weights[lane..]), entry, sum);
                    lane += L::LANES;
                }
                self.part[m * self.part_stride + key] += lanes.sum(sum);
            }
        }
    }
}

/// Folds the entries of one head into those of the heads before, key by key.
pub(super) struct Fold<'a> {
    pub fusion: &'a HeadFusion,
    pub scores: &'a HeadScores<'a>,
    pub heads: usize,
    /// `[keys, queries]`.
    pub folded: &'a mut [f32],
}

impl InnerLoop for Fold<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        match self.fusion {
            HeadFusion::Mean => {
                let scale = 1.0 / self.heads as f32;
                self.fold(lanes, Mean { scale });
            }
            HeadFusion::Max => self.fold(lanes, Extreme::<true>),
            HeadFusion::Min => self.fold(lanes, Extreme::<false>),
            HeadFusion::Weighted(weights) => self.fold(lanes, Weighted { weights }),
        }
    }
}

impl Fold<'_> {
    #[inline(always)]
    fn fold<L: Lanes, F: fold::Fold>(self, lanes: L, fusion: F) {
        let &HeadScores {
            head,
            stride,
            scores,
            factors,
            ..
        } = self.scores;
        let is_last = head + 1 == self.heads;
        let kind = self.scores.exponentials();
        let folded = &mut self.folded[..scores.len()];
        for key in 0..scores.len() / stride {
            let mut lane = 0;
            while lane < stride {
                let at = key * stride + lane;
                let exponential = kind.entry(lanes, lane, lanes.load(&scores[at..]));
                let entry = lanes.mul(exponential, lanes.load(&factors[lane..]));
                let mut kept = match head {
                    0 => fusion.first(lanes, entry),
                    _ => fusion.next(lanes, lanes.load(&folded[at..]), entry, head),
                };
                if is_last {
                    kept = fusion.last(lanes, kept);
                }
                lanes.store(kept, &mut folded[at..]);
                lane += L::LANES;
            }
        }
    }
}

/// The largest scaled scores of each query so far, and the sum of the exponentials of how far the others are below.
pub(super) struct Statistics<'a> {
    /// `[keys, queries]`.
    pub scores: &'a [f32],
    pub stride: usize,
    pub scale: f32,
    /// One of each query.
    pub largest: &'a mut [f32],
    pub sums: &'a mut [f32],
}

/// Exponentials that are summed by themselves, so that sums of many do not lose the last ones.
const SUMMED: usize = 64;

impl InnerLoop for Statistics<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Statistics { stride, scores, .. } = self;
        let (keys, scale) = (scores.len() / stride, lanes.splat(self.scale));
        let mut lane = 0;
        while lane < stride {
            let before = lanes.load(&self.largest[lane..]);
            let mut largest = before;
            for key in 0..keys {
                let score = lanes.load(&scores[key * stride + lane..]);
                largest = lanes.max(largest, lanes.mul(score, scale));
            }
            let shift = lanes.mul(largest, lanes.splat(-1.0));
            let kept = lanes.exp(lanes.add(before, shift));
            let mut sum = lanes.mul(lanes.load(&self.sums[lane..]), kept);
            let mut key = 0;
            while key < keys {
                let mut few = lanes.splat(0.0);
                let end = keys.min(key + SUMMED);
                while key < end {
                    let score = lanes.load(&scores[key * stride + lane..]);
                    few = lanes.add(few, lanes.exp(lanes.mul_add(score, scale, shift)));
                    key += 1;
                }
                sum = lanes.add(sum, few);
            }
            lanes.store(largest, &mut self.largest[lane..]);
            lanes.store(sum, &mut self.sums[lane..]);
            lane += L::LANES;
        }
    }
}
