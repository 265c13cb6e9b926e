//! The scores of some queries and keys of one head, and what they are shifted and multiplied by to be attention.

use std::f32::consts::LOG2_E;
use std::ops::Range;

use super::inner::{Entries, Exponential, HeadScores, QUERIES, Statistics};
use super::{ItemScores, chunks};
use crate::cpu::gemm::{self, MatrixMut, MatrixRef};
use crate::cpu::simd::{MOST_LANES, Simd};
use crate::dtype::{Element, with_element};
use crate::layer::HostTensor;
use crate::queries_keys::{Lse, TokenStrides};

/// Keys of a block: with as many queries, scores that stay in a second-level cache.
pub(crate) const KEYS: usize = 1024;

/// Queries of one block: `first`, `first + step`, ..., counted from the window's start.
#[derive(Clone, Copy)]
pub(super) struct Queries {
    pub first: usize,
    pub step: usize,
    pub count: usize,
}

impl Queries {
    /// The queries `rows`, one after the other.
    pub fn adjoining(rows: Range<usize>) -> Self {
        Queries {
            first: rows.start,
            step: 1,
            count: rows.len(),
        }
    }

    /// The row of a lane, also where that is none of the block's.
    pub fn row(&self, lane: usize) -> usize {
        self.first + lane * self.step
    }

    /// The last row.
    fn last(&self) -> usize {
        self.row(self.count - 1)
    }

    /// Lanes of the block: whole vectors.
    pub fn stride(&self) -> usize {
        self.count.next_multiple_of(MOST_LANES)
    }
}

/// What scores are computed in.
pub(super) struct Scoring<'a> {
    /// `[head_dim, queries]`.
    pub queries: &'a mut [f32],
    /// `[PACKED, head_dim]`.
    pub wide: &'a mut [f32],
    /// `[keys, head_dim]`, where they are not read in place.
    pub keys: &'a mut [f32],
    /// `[keys, queries]`.
    pub scores: &'a mut [f32],
    /// What is added to scaled scores, which are logarithms of base two, before, and what their powers are multiplied by
    /// after: `[heads, queries]`.
    pub shifts: &'a mut [f32],
    pub factors: &'a mut [f32],
}

/// The shift of a lane whose entries are all 0.
const NONE: f32 = f32::MIN;

impl ItemScores<'_> {
    /// The keys that any of `queries` attends to; those between are masked one by one.
    fn present(&self, queries: Queries) -> Range<usize> {
        let (first, last) = (queries.first, queries.last());
        let window = self.source.sliding_window(self.layer);
        let start = window.map_or(0, |window| first.saturating_sub(window - 1));
        let end = match (self.problem.config().causal, window) {
            (true, _) => last + 1,
            (false, Some(window)) => self.len().min(last.saturating_add(window)),
            (false, None) => self.len(),
        };
        start..end
    }

    /// Shows `take` the scores of the heads `heads` and every chunk of keys, all heads of one chunk before the next.
    pub(super) fn visit(
        &self,
        simd: Simd,
        heads: Range<usize>,
        queries: Queries,
        scoring: &mut Scoring<'_>,
        mut take: impl FnMut(&HeadScores<'_>),
    ) {
        let present = self.present(queries);
        let in_one = chunks(present.clone()).count() == 1;
        match self.source.lse {
            Lse::Given(base) => {
                let log2 = base.ln() * std::f64::consts::LOG2_E;
                heads
                    .clone()
                    .for_each(|head| self.given(head, log2, queries, scoring));
            }
            Lse::Recomputed if in_one => {}
            Lse::Recomputed => {
                heads
                    .clone()
                    .for_each(|head| self.recompute(simd, head, queries, scoring));
            }
        }
        for keys in chunks(present) {
            for head in heads.clone() {
                let scale = self.score(head, keys.clone(), queries, scoring);
                // Where all scores of a row are here at once, their exponentials are computed but once.
                let are_exponentials = in_one && self.source.lse == Lse::Recomputed;
                if are_exponentials {
                    self.begin(head, queries, scoring);
                    self.gather::<true>(simd, head, keys.clone(), scale, queries, scoring);
                    self.end(head, queries, scoring);
                }
                let lanes = lanes(head, queries);
                let shifts = &scoring.shifts[lanes.clone()];
                take(&HeadScores {
                    head,
                    keys: keys.clone(),
                    stride: queries.stride(),
                    scores: &scoring.scores[..keys.len() * queries.stride()],
                    entries: match are_exponentials {
                        true => Entries::AsTheyAre,
                        false => Entries::Exponentials(Exponential { scale, shifts }),
                    },
                    factors: &scoring.factors[lanes],
                });
            }
        }
    }

    /// Shifts and factors of one head from the LSE given.
    fn given(&self, head: usize, log2_base: f64, queries: Queries, scoring: &mut Scoring<'_>) {
        let at = lanes(head, queries);
        scoring.shifts[at.clone()].fill(NONE);
        scoring.factors[at.clone()].fill(0.0);
        for lane in 0..queries.count {
            let lse = self.given_lse(head, queries.row(lane), log2_base);
            if !lse.is_infinite() {
                scoring.shifts[at.start + lane] = -lse;
                scoring.factors[at.start + lane] = 1.0;
            }
        }
    }

    /// The LSE given for a row, times `unit`: the logarithm of its base, of the base wanted. NaN where none is given.
    pub(super) fn given_lse(&self, head: usize, row: usize, unit: f64) -> f32 {
        let strides = self.source.strides(self.problem.shape(), self.layer).lse;
        let token = self.problem.windows()[self.item].start + row;
        let at = strides.at(self.item, head, token);
        let given = self.lse.map_or(f32::NAN, |lse| lse.get(at));
        (f64::from(given) * unit) as f32
    }

    /// Shifts and factors of one head from all its scores: less the largest, and divided by the sum.
    pub(super) fn recompute(
        &self,
        simd: Simd,
        head: usize,
        queries: Queries,
        scoring: &mut Scoring<'_>,
    ) {
        self.begin(head, queries, scoring);
        for keys in chunks(self.present(queries)) {
            let scale = self.score(head, keys.clone(), queries, scoring);
            self.gather::<false>(simd, head, keys, scale, queries, scoring);
        }
        self.end(head, queries, scoring);
    }

    /// Before the first scores: the largest of none is the least number, and their sum is 0; with a sink, its own.
    fn begin(&self, head: usize, queries: Queries, scoring: &mut Scoring<'_>) {
        let sink = self
            .source
            .sink(self.problem.shape().heads, self.layer, head);
        let (largest, sum) = sink.map_or((f32::MIN, 0.0), |sink| (LOG2_E * sink, 1.0));
        scoring.shifts[lanes(head, queries)].fill(largest);
        scoring.factors[lanes(head, queries)].fill(sum);
    }

    /// Takes the largest scores into the shifts, and the sums of their exponentials into the factors. To `KEEP` these, they
    /// are written in place of the scores.
    fn gather<const KEEP: bool>(
        &self,
        simd: Simd,
        head: usize,
        keys: Range<usize>,
        scale: f32,
        queries: Queries,
        scoring: &mut Scoring<'_>,
    ) {
        let at = lanes(head, queries);
        simd.dispatch(Statistics::<KEEP> {
            scores: &mut scoring.scores[..keys.len() * queries.stride()],
            stride: queries.stride(),
            scale,
            largest: &mut scoring.shifts[at.clone()],
            sums: &mut scoring.factors[at],
        });
    }

    /// After the last scores.
    fn end(&self, head: usize, queries: Queries, scoring: &mut Scoring<'_>) {
        let at = lanes(head, queries);
        let lanes = scoring.shifts[at.clone()]
            .iter_mut()
            .zip(&mut scoring.factors[at])
            .enumerate();
        for (lane, (shift, factor)) in lanes {
            (*shift, *factor) = match *factor {
                _ if lane >= queries.count => (NONE, 0.0),
                0.0 => (NONE, 0.0),
                sum => (-*shift, 1.0 / sum),
            };
        }
    }

    /// Writes the scores of `queries` and `keys` of one head, what is masked infinitely low. What they still are to be
    /// multiplied by, to be logarithms of base two.
    fn score(
        &self,
        head: usize,
        keys: Range<usize>,
        queries: Queries,
        scoring: &mut Scoring<'_>,
    ) -> f32 {
        let (shape, dim) = (self.problem.shape(), self.source.head_dim);
        let start = self.problem.windows()[self.item].start;
        let strides = self.source.strides(shape, self.layer);
        let stride = queries.stride();
        let packed = &mut scoring.queries[..dim * stride];
        with_element!(self.queries.dtype(), T => {
            let all = self.queries.as_slice::<T>().unwrap_or_default();
            let query = |lane: usize| {
                let at = strides.queries.at(self.item, head, start + queries.row(lane));
                &all[at..at + dim]
            };
            for first in (0..stride).step_by(PACKED) {
                let lanes = first..queries.count.min(first + PACKED);
                pack(lanes.map(query), scoring.wide, &mut packed[first..], stride);
            }
        });
        let key_head = self.source.key_head(shape.heads, head);
        let first = strides.keys.at(self.item, key_head, start + keys.start);
        let keys_in_place = in_place(&self.keys, strides.keys, dim);
        let left = match keys_in_place {
            Some(all) => MatrixRef::new(&all[first..], strides.keys.token, keys.len(), dim),
            None => {
                let widened = &mut scoring.keys[..keys.len() * dim];
                with_element!(self.keys.dtype(), T => {
                    let all = self.keys.as_slice::<T>().unwrap_or_default();
                    for (key, to) in widened.chunks_exact_mut(dim).enumerate() {
                        T::widen(&all[first + key * strides.keys.token..][..dim], to);
                    }
                });
                MatrixRef::new(widened, dim, keys.len(), dim)
            }
        };
        let scores = &mut scoring.scores[..keys.len() * stride];
        let right = MatrixRef::new(packed, stride, dim, stride);
        let to = MatrixMut::new(scores, stride, keys.len(), stride);
        gemm::multiply(to, false, left, right);
        let scale = self.adjust(head, keys.clone(), queries, scores);
        self.mask(keys, queries, scores);
        LOG2_E * scale
    }

    /// Caps scores and lowers them by distance, where that is asked for. What they still are to be multiplied by.
    fn adjust(&self, head: usize, keys: Range<usize>, queries: Queries, scores: &mut [f32]) -> f32 {
        let slope = self
            .source
            .slope(self.problem.shape().heads, self.layer, head);
        let cap = self.source.soft_cap(self.layer);
        let scale = self.source.scale();
        // What is masked is infinitely low before it is multiplied by what is left.
        if slope == 0.0 && cap.is_none() && scale > 0.0 {
            return scale;
        }
        for (key, scores) in keys.zip(scores.chunks_exact_mut(queries.stride())) {
            for (lane, score) in scores.iter_mut().enumerate() {
                let scaled = *score * scale;
                let capped = cap.map_or(scaled, |cap| cap * (scaled / cap).tanh());
                *score = capped - slope * queries.row(lane).abs_diff(key) as f32;
            }
        }
        1.0
    }

    /// Makes the scores of masked keys infinitely low.
    fn mask(&self, keys: Range<usize>, queries: Queries, scores: &mut [f32]) {
        let causal = self.problem.config().causal;
        let window = self.source.sliding_window(self.layer);
        if !causal && window.is_none() {
            return;
        }
        let is_masked = |row: usize, key: usize| {
            causal && key > row || window.is_some_and(|window| row.abs_diff(key) >= window)
        };
        for (key, scores) in keys.zip(scores.chunks_exact_mut(queries.stride())) {
            // Where the first and the last row see a key, so do those between.
            if !is_masked(queries.first, key) && !is_masked(queries.last(), key) {
                continue;
            }
            for (lane, score) in scores[..queries.count].iter_mut().enumerate() {
                if is_masked(queries.row(lane), key) {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// Where the lanes of a head lie among those of all heads.
pub(super) fn lanes(head: usize, queries: Queries) -> Range<usize> {
    head * QUERIES..head * QUERIES + queries.stride()
}

/// Keys that the GEMM crate can read where they lie.
fn in_place<'a>(keys: &HostTensor<'a>, strides: TokenStrides, dim: usize) -> Option<&'a [f32]> {
    keys.as_slice().filter(|_| strides.token >= dim)
}

/// Queries that are packed at a time.
pub(super) const PACKED: usize = 4;

/// Writes queries, one a lane, as f32 into [`PACKED`] lanes of each of the rows of `to`, `stride` elements apart; 0 where
/// there are fewer. They are widened to `wide`, `[PACKED, head_dim]`.
fn pack<'a, T: Element>(
    queries: impl Iterator<Item = &'a [T]>,
    wide: &mut [f32],
    to: &mut [f32],
    stride: usize,
) {
    let dim = wide.len() / PACKED;
    let mut queries = queries.fuse();
    for wide in wide.chunks_exact_mut(dim) {
        match queries.next() {
            Some(query) => T::widen(query, wide),
            None => wide.fill(0.0),
        }
    }
    // Four elements of each at a time, so that a compiler transposes them in registers.
    for first in (0..dim).step_by(4) {
        let few: [[f32; 4]; PACKED] = std::array::from_fn(|lane| {
            let at = lane * dim + first;
            [wide[at], wide[at + 1], wide[at + 2], wide[at + 3]]
        });
        for element in 0..4 {
            let lanes: [f32; PACKED] = std::array::from_fn(|lane| few[lane][element]);
            to[(first + element) * stride..][..PACKED].copy_from_slice(&lanes);
        }
    }
}
