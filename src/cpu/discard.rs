//! Discard by selection: the k-th smallest entry of a fused map, found without sorting the map.
//!
//! A sample brackets the k-th smallest; one pass counts what lies below the bracket and collects what lies in it
//! (a few per cent); the collected entries are selected from. Where the bracket misses, everything is collected.

use std::ops::Range;

use crate::config::{Discard, DiscardScope};
use crate::cpu::simd::{Kernel, Lanes, MOST_LANES, One, Simd};
use crate::problem::Problem;

/// Maps with fewer entries in scope are selected from whole.
const SAMPLED: usize = 1024;

/// Keys that selecting from a map `[len, len]` needs room for.
pub(crate) fn keys(len: usize) -> usize {
    len * len + MOST_LANES
}

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

/// A key that orders as discard does: `-0` equals `0`, NaN is larger than everything.
#[inline(always)]
fn key(value: f32) -> u32 {
    let bits = (value + 0.0).to_bits();
    let ordered = bits ^ (((bits as i32 >> 31) as u32) | 0x8000_0000);
    if value.is_nan() { NAN_KEY } else { ordered }
}

/// The key of NaN.
const NAN_KEY: u32 = u32::MAX;

/// The value that has this key, NaN where none has.
fn value(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 {
        key ^ 0x8000_0000
    } else {
        !key
    })
}

impl Cutoff {
    /// Selects the cutoff of `item` from its whole fused map `[len, len]`; `None` where nothing is discarded.
    ///
    /// `scratch` holds at least [`keys`]`(len)` keys.
    pub fn select(
        simd: Simd,
        problem: &Problem,
        item: usize,
        fused: &[f32],
        scratch: &mut [u32],
    ) -> Option<Cutoff> {
        let Discard { scope, .. } = problem.config().discard?;
        let len = problem.windows()[item].len;
        let count = problem.discard_count(item);
        if count == 0 {
            return None;
        }
        let first = match scope {
            DiscardScope::Map => 0,
            DiscardScope::Patches { special_tokens } => special_tokens,
        };
        let side = len - first;
        let rows = || (first..len).map(|i| &fused[i * len..][first..len]);
        let (mut below, mut collected) = (0, 0);
        if side * side > SAMPLED {
            let sample = sample(side, rows, scratch);
            let (low, high) = bracket(sample, count, side * side);
            (below, collected) = simd.dispatch(Collect {
                map: fused,
                len,
                first,
                low,
                high,
                into: scratch,
            });
        }
        if below >= count || below + collected < count {
            (below, collected) = (0, side * side);
            for (keys, row) in scratch.chunks_mut(side).zip(rows()) {
                keys.iter_mut().zip(row).for_each(|(k, &v)| *k = key(v));
            }
        }
        let candidates = &mut scratch[..collected];
        let (_, &mut key, _) = candidates.select_nth_unstable(count - below - 1);
        let below = below + candidates.iter().filter(|&&k| k < key).count();
        let equal = candidates.iter().filter(|&&k| k == key).count();
        let ties = count - below;
        let last_tie = if ties == equal {
            (len, 0)
        } else {
            nth_tie(rows(), key, ties)
        };
        Some(Cutoff {
            first,
            keep_first: scope == DiscardScope::Map,
            key,
            last_tie: (last_tie.0.saturating_add(first), last_tie.1 + first),
        })
    }

    /// Copies the rows `rows` of the map `whole`, `[len, len]`, into `fused`, and leaves out what is discarded.
    pub fn keep(&self, simd: Simd, rows: Range<usize>, whole: &[f32], fused: &mut [f32]) {
        simd.dispatch(Keep {
            cutoff: self,
            rows,
            whole,
            fused,
        });
    }
}

/// Draws about `total^(2/3)` keys of the `total` in scope, evenly spread, into the front of `scratch`: the larger the
/// sample, the fewer entries the bracket holds, and so many take the least time together.
fn sample<'a, 's, I: Iterator<Item = &'a [f32]>>(
    side: usize,
    rows: impl Fn() -> I,
    scratch: &'s mut [u32],
) -> &'s mut [u32] {
    // An odd step walks over all columns of maps of any side.
    let step = ((side * side) as f64).cbrt() as usize | 1;
    let mut drawn = 0;
    let mut skip = 0;
    for row in rows() {
        let mut at = skip;
        while at < row.len() {
            scratch[drawn] = key(row[at]);
            drawn += 1;
            at += step;
        }
        skip = at - row.len();
    }
    &mut scratch[..drawn]
}

/// Values between which the `count`-th smallest of `total` very likely lies, both included.
fn bracket(sample: &mut [u32], count: usize, total: usize) -> (f32, f32) {
    let drawn = sample.len() as f64;
    let share = count as f64 / total as f64;
    // Three standard deviations of the rank of a random sample.
    let margin = 3.0 * (drawn * share * (1.0 - share)).sqrt() + 2.0;
    let ranks = (share * drawn - margin, (share * drawn + margin) as usize);
    let (mut low, mut rest, mut skipped) = (f32::NEG_INFINITY, sample, 0);
    if ranks.0 >= 0.0 {
        let (_, &mut key, above) = rest.select_nth_unstable(ranks.0 as usize);
        (low, rest, skipped) = (value(key), above, ranks.0 as usize + 1);
    }
    let high = match ranks.1 - skipped {
        rank if rank < rest.len() => value(*rest.select_nth_unstable(rank).1),
        _ => f32::INFINITY,
    };
    (low, high)
}

/// Row and column of the `ties`-th key equal to `wanted`, in row-major order.
fn nth_tie<'a>(rows: impl Iterator<Item = &'a [f32]>, wanted: u32, ties: usize) -> (usize, usize) {
    let mut left = ties;
    for (i, row) in rows.enumerate() {
        let equal = row.iter().filter(|&&v| key(v) == wanted).count();
        if equal < left {
            left -= equal;
            continue;
        }
        for (j, &value) in row.iter().enumerate() {
            left -= usize::from(key(value) == wanted);
            if left == 0 {
                return (i, j);
            }
        }
    }
    unreachable!("fewer ties than were counted")
}

/// Counts the values in scope below `low` and writes the keys of those from `low` to `high`, both included.
struct Collect<'a> {
    /// `[len, len]`, in scope from row and column `first` on.
    map: &'a [f32],
    len: usize,
    first: usize,
    low: f32,
    high: f32,
    into: &'a mut [u32],
}

impl Kernel for Collect<'_> {
    type Output = (usize, usize);

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> (usize, usize) {
        let (mut up_to_high, mut collected) = (0, 0);
        let values: &mut [f32] = bytemuck::cast_slice_mut(self.into);
        let bounds = (self.low, self.high);
        for row in self.map.chunks_exact(self.len).skip(self.first) {
            let vectors = row[self.first..].chunks_exact(L::LANES);
            for value in vectors.remainder().chunks_exact(1) {
                up_to_high += step(One, value, bounds, values, &mut collected);
            }
            for vector in vectors {
                up_to_high += step(lanes, vector, bounds, values, &mut collected);
            }
        }
        for collected in &mut self.into[..collected] {
            *collected = key(f32::from_bits(*collected));
        }
        (up_to_high as usize - collected, collected)
    }
}

/// One vector of [`Collect`]; returns how many values are at most `high`.
#[inline(always)]
fn step<L: Lanes>(
    lanes: L,
    values: &[f32],
    (low, high): (f32, f32),
    into: &mut [f32],
    collected: &mut usize,
) -> u32 {
    let vector = lanes.load(values);
    let up_to_high = lanes.at_most(vector, lanes.splat(high));
    let inside = up_to_high & lanes.at_most(lanes.splat(low), vector);
    // Without a branch: whether a vector holds anything of the bracket cannot be predicted.
    lanes.compress(vector, inside, &mut into[*collected..]);
    *collected += inside.count_ones() as usize;
    up_to_high.count_ones()
}

/// Copies rows without what is discarded.
struct Keep<'a> {
    cutoff: &'a Cutoff,
    rows: Range<usize>,
    /// `[len, len]`.
    whole: &'a [f32],
    /// `[rows, len]`.
    fused: &'a mut [f32],
}

impl Kernel for Keep<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Cutoff {
            first,
            key,
            last_tie,
            ..
        } = *self.cutoff;
        let len = self.fused.len() / self.rows.len();
        let below = match key {
            NAN_KEY => f32::INFINITY,
            // Nothing is below the least value. Where this is -0, zeroing zeros changes nothing.
            _ => value(key - 1),
        };
        let rows = self.whole.chunks_exact(len).enumerate();
        let rows = rows.skip(self.rows.start).take(self.rows.len());
        for ((i, row), fused) in rows.zip(self.fused.chunks_exact_mut(len)) {
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
        *kept = One.zero_at_most(value, at_most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, RolloutConfig, Shape};

    /// A map of few different values, so that many are equal, some of them special.
    fn map(len: usize, special: bool) -> Vec<f32> {
        let mut state = len as u32;
        let mut value = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            match state >> 24 {
                0 if special => f32::NAN,
                1 if special => f32::INFINITY,
                2 if special => f32::NEG_INFINITY,
                3..=40 if special => -0.0,
                41..=60 => 0.0,
                bits => (bits / 4) as f32 / 64.0 - 0.25,
            }
        };
        (0..len * len).map(|_| value()).collect()
    }

    /// The map without what is discarded, by sorting.
    fn sorted(problem: &Problem, first: usize, fused: &[f32]) -> Vec<f32> {
        let len = problem.windows()[0].len;
        let inside = |at: &usize| at / len >= first && at % len >= first;
        let mut entries: Vec<usize> = (0..fused.len()).filter(inside).collect();
        entries.sort_by_key(|&at| key(fused[at]));
        entries.truncate(problem.discard_count(0));
        let mut kept = fused.to_vec();
        for at in entries.into_iter().filter(|&at| first > 0 || at > 0) {
            kept[at] = 0.0;
        }
        kept
    }

    #[test]
    fn discards_what_sorting_discards_on_every_instruction_set() {
        let scopes = [
            DiscardScope::Map,
            DiscardScope::Patches { special_tokens: 1 },
            DiscardScope::Patches { special_tokens: 3 },
        ];
        let ratios = [0.001, 0.02, 0.3, 0.5, 0.9, 0.995, 0.9999];
        for (len, special) in [
            (4, true),
            (17, false),
            (31, true),
            (40, true),
            (97, false),
            (150, true),
        ] {
            let fused = map(len, special);
            for (scope, ratio) in scopes.into_iter().flat_map(|s| ratios.map(|r| (s, r))) {
                let (layers, batch, heads, tokens) = (1, 1, 1, len);
                let shape = Shape {
                    layers,
                    batch,
                    heads,
                    tokens,
                };
                let discard = Some(Discard { ratio, scope });
                let config = RolloutConfig {
                    discard,
                    ..Default::default()
                };
                let problem = Problem::new(shape, DType::F32, config).unwrap();
                let first = match scope {
                    DiscardScope::Map => 0,
                    DiscardScope::Patches { special_tokens } => special_tokens,
                };
                let want = sorted(&problem, first, &fused);
                for simd in Simd::available() {
                    let mut scratch = vec![0; keys(len)];
                    let mut got = fused.clone();
                    if let Some(cutoff) = Cutoff::select(simd, &problem, 0, &fused, &mut scratch) {
                        let (top, bottom) = got.split_at_mut(len / 2 * len);
                        cutoff.keep(simd, 0..len / 2, &fused, top);
                        cutoff.keep(simd, len / 2..len, &fused, bottom);
                    }
                    for (at, (got, want)) in got.iter().zip(&want).enumerate() {
                        let same = got == want || got.is_nan() && want.is_nan();
                        assert!(
                            same,
                            "{simd}, {scope:?}, {ratio}: {got} for {want} at {at} of {len}^2"
                        );
                    }
                }
            }
        }
    }
}
