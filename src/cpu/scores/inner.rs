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

/// Vectors that take their steps side by side, where there are as many.
const SIDE_BY_SIDE: usize = 4;

/// Something to do to `V` vectors of queries, from lane `lane` on.
trait OverLanes {
    fn step<L: Lanes, const V: usize>(&mut self, lanes: L, lane: usize);
}

/// Takes the steps of all `stride` lanes.
#[inline(always)]
fn over_lanes<L: Lanes>(lanes: L, stride: usize, mut steps: impl OverLanes) {
    let mut lane = 0;
    while lane + SIDE_BY_SIDE * L::LANES <= stride {
        steps.step::<L, SIDE_BY_SIDE>(lanes, lane);
        lane += SIDE_BY_SIDE * L::LANES;
    }
    while lane < stride {
        steps.step::<L, 1>(lanes, lane);
        lane += L::LANES;
    }
}

/// The first `V` vectors.
#[inline(always)]
fn load<L: Lanes, const V: usize>(lanes: L, from: &[f32]) -> [L::Vector; V] {
    let from = &from[..V * L::LANES];
    let mut vectors = [lanes.splat(0.0); V];
    for v in 0..V {
        vectors[v] = lanes.load(&from[v * L::LANES..]);
    }
    vectors
}

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
    /// The entries of the lanes from `lane` on, from `values`, what is in memory for them.
    fn entries<L: Lanes, const V: usize>(
        self,
        lanes: L,
        lane: usize,
        values: [L::Vector; V],
    ) -> [L::Vector; V];
}

/// The ways to follow.
#[derive(Clone, Copy)]
pub(super) enum Entries<'a> {
    Exponentials(Exponential<'a>),
    AsTheyAre,
}

/// `2^(scale * score + shift)`.
#[derive(Clone, Copy)]
pub(super) struct Exponential<'a> {
    pub scale: f32,
    pub shifts: &'a [f32],
}

impl Entry for Exponential<'_> {
    #[inline(always)]
    fn entries<L: Lanes, const V: usize>(
        self,
        lanes: L,
        lane: usize,
        mut values: [L::Vector; V],
    ) -> [L::Vector; V] {
        let shifts = load::<L, V>(lanes, &self.shifts[lane..]);
        for v in 0..V {
            values[v] = lanes.mul_add(values[v], lanes.splat(self.scale), shifts[v]);
        }
        lanes.exp2(values)
    }
}

/// What is in memory are the entries.
#[derive(Clone, Copy)]
pub(super) struct AsTheyAre;

impl Entry for AsTheyAre {
    #[inline(always)]
    fn entries<L: Lanes, const V: usize>(
        self,
        _lanes: L,
        _lane: usize,
        values: [L::Vector; V],
    ) -> [L::Vector; V] {
        values
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
    fn weigh<L: Lanes>(mut self, lanes: L, kind: impl Entry) {
        let (keys, stride, start_rows) = (self.keys, self.stride, self.weights.len() / self.stride);
        let mut key = 0;
        while key + 4 <= keys {
            let of = &mut self;
            over_lanes(
                lanes,
                stride,
                WeighKeys::<_, 4> {
                    of,
                    kind,
                    key,
                    start_rows,
                },
            );
            key += 4;
        }
        while key < keys {
            let of = &mut self;
            over_lanes(
                lanes,
                stride,
                WeighKeys::<_, 1> {
                    of,
                    kind,
                    key,
                    start_rows,
                },
            );
            key += 1;
        }
    }
}

/// The entries of `K` keys from `key` on: their sums, across lanes, are made together.
struct WeighKeys<'a, 'b, E, const K: usize> {
    of: &'a mut Weigh<'b>,
    kind: E,
    key: usize,
    start_rows: usize,
}

impl<E: Entry, const K: usize> OverLanes for WeighKeys<'_, '_, E, K> {
    #[inline(always)]
    fn step<L: Lanes, const V: usize>(&mut self, lanes: L, lane: usize) {
        let WeighKeys { of, key, .. } = self;
        let mut entries = [[lanes.splat(0.0); V]; K];
        for k in 0..K {
            let values = load::<L, V>(lanes, &of.values[(*key + k) * of.stride + lane..]);
            entries[k] = self.kind.entries(lanes, lane, values);
        }
        for m in 0..self.start_rows {
            let weights = load::<L, V>(lanes, &of.weights[m * of.stride + lane..]);
            let mut sums = [lanes.splat(0.0); K];
            for k in 0..K {
                for v in 0..V {
                    sums[k] = lanes.mul_add(weights[v], entries[k][v], sums[k]);
                }
            }
            let sums = lanes.sums(sums);
            let part = &mut of.part[m * of.part_stride + *key..][..K];
            for k in 0..K {
                part[k] += sums[k];
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
        let folded = &mut self.folded[..scores.len()];
        for (scores, folded) in scores
            .chunks_exact(stride)
            .zip(folded.chunks_exact_mut(stride))
        {
            let fold = FoldKey {
                kind,
                fusion,
                head,
                is_last: head + 1 == self.heads,
                scores,
                factors,
                folded,
            };
            over_lanes(lanes, stride, fold);
        }
    }
}

/// The entries of one key.
struct FoldKey<'a, E, F> {
    kind: E,
    fusion: F,
    head: usize,
    is_last: bool,
    scores: &'a [f32],
    factors: &'a [f32],
    folded: &'a mut [f32],
}

impl<E: Entry, F: fold::Fold> OverLanes for FoldKey<'_, E, F> {
    #[inline(always)]
    fn step<L: Lanes, const V: usize>(&mut self, lanes: L, lane: usize) {
        let values = load::<L, V>(lanes, &self.scores[lane..]);
        let values = self.kind.entries(lanes, lane, values);
        let factors = load::<L, V>(lanes, &self.factors[lane..]);
        for v in 0..V {
            let entry = lanes.mul(values[v], factors[v]);
            let folded = &mut self.folded[lane + v * L::LANES..];
            let mut kept = match self.head {
                0 => self.fusion.first(lanes, entry),
                _ => self
                    .fusion
                    .next(lanes, lanes.load(folded), entry, self.head),
            };
            if self.is_last {
                kept = self.fusion.last(lanes, kept);
            }
            lanes.store(kept, folded);
        }
    }
}

/// The largest scaled scores of each query so far, and the sum of the powers of two of how far the others are below. To
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
        over_lanes(lanes, self.stride, self);
    }
}

impl<const KEEP: bool> OverLanes for Statistics<'_, KEEP> {
    #[inline(always)]
    fn step<L: Lanes, const V: usize>(&mut self, lanes: L, lane: usize) {
        let (stride, scale) = (self.stride, lanes.splat(self.scale));
        let keys = self.scores.len() / stride;
        let before = load::<L, V>(lanes, &self.largest[lane..]);
        // A score that is NaN makes the sum NaN; here it need not be seen.
        let mut largest = [lanes.splat(f32::NEG_INFINITY); V];
        for key in 0..keys {
            let scores = load::<L, V>(lanes, &self.scores[key * stride + lane..]);
            for v in 0..V {
                largest[v] = lanes.at_least(largest[v], scores[v]);
            }
        }
        for v in 0..V {
            largest[v] = lanes.at_least(before[v], lanes.mul(largest[v], scale));
        }
        let (mut shift, mut above) = (largest, largest);
        for v in 0..V {
            shift[v] = lanes.mul(largest[v], lanes.splat(-1.0));
            above[v] = lanes.add(before[v], shift[v]);
        }
        let kept = lanes.exp2(above);
        let mut sums = load::<L, V>(lanes, &self.sums[lane..]);
        for v in 0..V {
            sums[v] = lanes.mul(sums[v], kept[v]);
        }
        let mut key = 0;
        while key < keys {
            let mut few = [lanes.splat(0.0); V];
            let end = keys.min(key + SUMMED);
            while key < end {
                let scores = &mut self.scores[key * stride + lane..][..V * L::LANES];
                let mut scaled = load::<L, V>(lanes, scores);
                for v in 0..V {
                    scaled[v] = lanes.mul_add(scaled[v], scale, shift[v]);
                }
                let exponentials = lanes.exp2(scaled);
                for v in 0..V {
                    few[v] = lanes.add(few[v], exponentials[v]);
                    if KEEP {
                        lanes.store(exponentials[v], &mut scores[v * L::LANES..]);
                    }
                }
                key += 1;
            }
            for v in 0..V {
                sums[v] = lanes.add(sums[v], few[v]);
            }
        }
        for v in 0..V {
            lanes.store(largest[v], &mut self.largest[lane + v * L::LANES..]);
            lanes.store(sums[v], &mut self.sums[lane + v * L::LANES..]);
        }
    }
}
