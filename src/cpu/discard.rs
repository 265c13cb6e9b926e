//! Discard: which entries of a fused map are zeroed, and the map without them.

mod key;
mod select;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::config::Discard;
use crate::cpu::discard::key::{NAN_KEY, value};
pub(crate) use crate::cpu::discard::select::scratch;
use crate::cpu::fuse::FusedEntries;
use crate::cpu::simd::{InnerLoop, Lanes, Scalar, Simd};
use crate::problem::Problem;

/// Which entries of one fused map are zeroed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cutoff {
    /// First row and column in scope.
    first: usize,
    /// The entry (0, 0) is kept.
    keep_first: bool,
    /// Keys below this one are zeroed ...
    key: u32,
    /// ... and of those equal to it the ones up to this (row, column), this one included.
    last_tie: (usize, usize),
}

impl Cutoff {
    /// Selects the cutoff of `item` from its whole fused map; `None` where nothing is discarded.
    ///
    /// `scratch` holds at least [`scratch`]`(len)` floats.
    pub fn select(
        simd: Simd,
        problem: &Problem,
        item: usize,
        map: FusedEntries<'_>,
        scratch: &mut [f32],
    ) -> Option<Cutoff> {
        let Discard { scope, .. } = problem.config().discard?;
        let count = problem.discard_count(item);
        if count == 0 {
            return None;
        }
        let first = scope.first();
        let (key, last_tie) = select::cutoff(simd, map, first, count, scratch);
        Some(Cutoff {
            first,
            keep_first: scope.spares_origin(),
            key,
            last_tie,
        })
    }

    /// In scope, after the last tie, what is more than this is kept.
    fn below(&self) -> f32 {
        match self.key {
            NAN_KEY => f32::INFINITY,
            // Nothing is below the least value. Where this is -0, zeroing zeros changes nothing.
            key => value(key - 1),
        }
    }

    /// What is kept of the rows `rows`, for a few ranges of them.
    pub fn kept(&self, rows: Range<usize>) -> impl Iterator<Item = (Range<usize>, KeptEntries)> {
        let up_to = match self.key {
            NAN_KEY => KeptEntries::ByEntry,
            key => KeptEntries::Above {
                least: value(key),
                column: self.first,
            },
        };
        // Rows with entries of their own are the first, where one is spared, and that of the last tie.
        let first = self.first.max(usize::from(self.keep_first));
        let (tie, after) = match self.last_tie.0 {
            tie if tie < first => (first, first),
            tie => (tie, tie.saturating_add(1)),
        };
        let ranges = [
            (0..self.first, KeptEntries::All),
            (self.first..first, KeptEntries::ByEntry),
            (first..tie, up_to),
            (tie..after, KeptEntries::ByEntry),
            (
                after..usize::MAX,
                KeptEntries::Above {
                    least: self.below(),
                    column: self.first,
                },
            ),
        ];
        ranges
            .into_iter()
            .map(move |(range, kept)| (range.start.max(rows.start)..range.end.min(rows.end), kept))
            .filter(|(rows, _)| !rows.is_empty())
    }

    /// Copies the rows `rows` of the map `whole` into `fused`, `[rows, len]`, and leaves out what is discarded.
    pub fn keep(&self, simd: Simd, rows: Range<usize>, whole: FusedEntries<'_>, fused: &mut [f32]) {
        simd.dispatch(Keep {
            cutoff: self,
            rows,
            whole,
            fused,
        });
    }
}

/// Which entries of some rows are kept.
#[derive(Clone, Copy)]
pub(crate) enum KeptEntries {
    /// Everything.
    All,
    /// From `column` on what is more than `least`, and everything before it.
    Above { least: f32, column: usize },
    /// What [`Cutoff::keep`] says, entry by entry.
    ByEntry,
}

/// Copies rows without what is discarded.
struct Keep<'a> {
    cutoff: &'a Cutoff,
    rows: Range<usize>,
    whole: FusedEntries<'a>,
    /// `[rows, len]`.
    fused: &'a mut [f32],
}

impl InnerLoop for Keep<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Cutoff {
            first,
            key,
            last_tie,
            ..
        } = *self.cutoff;
        let len = self.whole.len;
        let below = self.cutoff.below();
        for (i, fused) in self.rows.zip(self.fused.chunks_exact_mut(len)) {
            let row = self.whole.row(i);
            let outside = if i < first { len } else { first };
            let ties = match i.cmp(&last_tie.0) {
                std::cmp::Ordering::Less => len,
                std::cmp::Ordering::Equal => last_tie.1 + 1,
                std::cmp::Ordering::Greater => outside,
            };
            let ties = ties.max(outside);
            fused[..outside].copy_from_slice(&row[..outside]);
            if key == NAN_KEY {
                fused[outside..ties].fill(0.0);
            } else {
                keep(
                    lanes,
                    &row[outside..ties],
                    value(key),
                    &mut fused[outside..ties],
                );
            }
            keep(lanes, &row[ties..], below, &mut fused[ties..]);
            if i == 0 && self.cutoff.keep_first {
                fused[0] = row[0];
            }
        }
    }
}

/// Copies the values above `at_most` and zeros for the rest.
#[inline(always)]
fn keep<L: Lanes>(lanes: L, row: &[f32], at_most: f32, fused: &mut [f32]) {
    let vectors = row.chunks_exact(L::LANES);
    let mut into = fused.chunks_exact_mut(L::LANES);
    for (vector, into) in vectors.clone().zip(&mut into) {
        let kept = lanes.zero_at_most(lanes.load(vector), lanes.splat(at_most));
        lanes.store(kept, into);
    }
    for (&value, kept) in vectors.remainder().iter().zip(into.into_remainder()) {
        *kept = Scalar.zero_at_most(value, at_most);
    }
}
