//! The inner loops over scores, `[keys, queries]`, a vector of queries at a time.
#![allow(
    clippy::needless_range_loop,
    reason = "what iterators are made of is not always inlined, and outside an inner loop it lacks its instruction set"
)]

use std::ops::Range;

use crate::config::HeadFusion;
use crate::cpu::fuse::fold::{self, Extreme, Mean, Weighted};
use crate::cpu::simd::{InnerLoop, Lanes};

/// Queries of a block: what the GEMM crate's widest kernel takes at a time.
pub(crate) const QUERIES: usize = 64;

/// Scores of one head, or what they have become: entries but for their factors.
pub(super) struct HeadScores<'a> {
    pub head: usize,
    pub keys: Range<usize>,
    /// Lanes from key to key.
    pub stride: usize,
    /// `[keys, queries]`.
    pub scores: &'a [f32],
    /// How entries follow from them.
    pub entries: Entries<'a>,
    /// What entries are multiplied by at last, one per lane.
    pub factors: &'a [f32],
}

/// How an entry follows from what is in memory, but for its factor.
pub(super) trait Entry: Copy {
    /// The entries of the lanes from `lane` on, from `value`, what is in memory for them.
    fn entry<L: Lanes>(self, lanes: L, lane: usize, value: L::Vector) -> L::Vector;
}

/// The ways to follow.
#[derive(Clone, Copy)]
pub(super) enum Entries<'a> {
    Exponentials(Exponential<'a>),
    AsTheyAre,
}

/// `exp(scale * score + shift)`.
#[derive(Clone, Copy)]
pub(super) struct Exponential<'a> {
    pub scale: f32,
    pub shifts: &'a [f32],
}

impl Entry for Exponential<'_> {
    #[inline(always)]
    fn entry<L: Lanes>(self, lanes: L, lane: usize, value: L::Vector) -> L::Vector {
        let shift = lanes.load(&self.shifts[lane..]);
        lanes.exp(lanes.mul_add(value, lanes.splat(self.scale), shift))
    }
}

/// What is in memory are the entries.
#[derive(Clone, Copy)]
pub(super) struct AsTheyAre;

impl Entry for AsTheyAre {
    #[inline(always)]
    fn entry<L: Lanes>(self, _lanes: L, _lane: usize, value: L::Vector) -> L::Vector {
        value
    }
}

/// Adds, for each key and start row, the sum over queries of weights times entries.
pub(super) struct Weigh<'a> {
    /// What entries follow from, `[keys, queries]` ...
    pub values: &'a [f32],
    /// ... and how.
    pub entries: Entries<'a>,
    /// Lanes from key to key.
    pub stride: usize,
    pub keys: usize,
    /// `[start rows, queries]`.
    pub weights: &'a [f32],
    /// The sums of the first key and start row; those of the next start row are `part_stride` further on.
    pub part: &'a mut [f32],
    pub part_stride: usize,
}

impl InnerLoop for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        match self.entries {
            Entries::Exponentials(exponential) => self.weigh(lanes, exponential),
            Entries::AsTheyAre => self.weigh(lanes, AsTheyAre),
        }
    }
}

impl Weigh<'_> {
    #[inline(always)]
    fn weigh<L: Lanes>(self, lanes: L, kind: impl Entry) {
        let Weigh { stride, keys, .. } = self;
        let values = &self.values[..keys * stride];
        if self.weights.len() == stride {
            // At once, without a place for the entries between.
            let part = &mut self.part[..keys];
            for key in 0..keys {
                let mut sum = lanes.splat(0.0);
                let mut lane = 0;
                while lane < stride {
                    let value = lanes.load(&values[key * stride + lane..]);
                    let entry = kind.entry(lanes, lane, value);
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
                let value = lanes.load(&values[key * stride + lane..]);
                lanes.store(kind.entry(lanes, lane, value), &mut row[lane..]);
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
        match self.scores.entries {
            Entries::Exponentials(exponential) => self.by_fusion(lanes, exponential),
            Entries::AsTheyAre => self.by_fusion(lanes, AsTheyAre),
        }
    }
}

impl Fold<'_> {
    #[inline(always)]
    fn by_fusion<L: Lanes>(self, lanes: L, kind: impl Entry) {
        match self.fusion {
            HeadFusion::Mean => {
                let scale = 1.0 / self.heads as f32;
                self.fold(lanes, kind, Mean { scale });
            }
            HeadFusion::Max => self.fold(lanes, kind, Extreme::<true>),
            HeadFusion::Min => self.fold(lanes, kind, Extreme::<false>),
            HeadFusion::Weighted(weights) => self.fold(lanes, kind, Weighted { weights }),
        }
    }

    #[inline(always)]
    fn fold<L: Lanes>(self, lanes: L, kind: impl Entry, fusion: impl fold::Fold) {
        let &HeadScores {
            head,
            stride,
            scores,
            factors,
            ..
        } = self.scores;
        let is_last = head + 1 == self.heads;
        let folded = &mut self.folded[..scores.len()];
        for key in 0..scores.len() / stride {
            let mut lane = 0;
            while lane < stride {
                let at = key * stride + lane;
                let value = kind.entry(lanes, lane, lanes.load(&scores[at..]));
                let entry = lanes.mul(value, lanes.load(&factors[lane..]));
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

/// The largest scaled scores of each query so far, and the sum of the exponentials of how far the others are below. To
/// `KEEP` these, they are written in place of the scores, which are all there are.
pub(super) struct Statistics<'a, const KEEP: bool> {
    /// `[keys, queries]`.
    pub scores: &'a mut [f32],
    pub stride: usize,
    pub scale: f32,
    /// One of each query.
    pub largest: &'a mut [f32],
    pub sums: &'a mut [f32],
}

/// Exponentials that are summed by themselves, so that sums of many do not lose the last ones.
const SUMMED: usize = 64;

impl<const KEEP: bool> InnerLoop for Statistics<'_, KEEP> {
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
                    let score = &mut scores[key * stride + lane..];
                    let scaled = lanes.mul_add(lanes.load(score), scale, shift);
                    let exponential = lanes.exp(scaled);
                    few = lanes.add(few, exponential);
                    if KEEP {
                        lanes.store(exponential, score);
                    }
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
