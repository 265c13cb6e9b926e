//! Discard by selection: the k-th smallest entry of a fused map, found without sorting the map.
//!
//! A sample brackets the k-th smallest; one pass counts what lies below the bracket and collects what lies in it
//! (about a tenth); the collected entries are selected from. Where the bracket misses, everything is collected.

use std::ops::Range;

use crate::config::{Discard, DiscardScope};
use crate::cpu::fuse::FusedEntries;
use crate::cpu::simd::{Kernel, Lanes, MOST_LANES, One, Simd};
use crate::problem::Problem;

/// Maps with fewer entries in scope are selected from whole.
const SAMPLED: usize = 1024;

/// The bounds of all values but NaN.
const EVERYTHING: (f32, f32) = (f32::NEG_INFINITY, f32::INFINITY);

/// How far ahead a map is prefetched, in elements: it may lie where it was made, in a cache, or still in memory.
const PREFETCH: usize = 2048;

/// Floats that selecting from a map `[len, len]` needs room for.
pub(crate) fn scratch(len: usize) -> usize {
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

/// The key that -0 would have, were it less than 0; none has it.
const MINUS_ZERO_KEY: u32 = 0x7fff_ffff;

/// The value that has this key, NaN where none has.
fn value(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 {
        key ^ 0x8000_0000
    } else {
        !key
    })
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
        let len = map.len;
        let count = problem.discard_count(item);
        if count == 0 {
            return None;
        }
        let first = match scope {
            DiscardScope::Map => 0,
            DiscardScope::Patches { special_tokens } => special_tokens,
        };
        let side = len - first;
        let rows = || (first..len).map(|i| &map.row(i)[first..]);
        let (mut below, mut collected, mut bounds) = (0, 0, EVERYTHING);
        if side * side > SAMPLED {
            let sample = sample(side, rows, scratch);
            bounds = bracket(simd, sample, count, side * side);
            (below, collected) = simd.dispatch(Collect {
                map,
                first,
                bounds,
                into: scratch,
            });
        }
        if below >= count || below + collected < count {
            (below, collected, bounds) = (0, side * side, EVERYTHING);
            for (values, row) in scratch.chunks_mut(side).zip(rows()) {
                values[..side].copy_from_slice(row);
            }
        }
        let values = &scratch[..collected];
        let select = Select {
            values,
            rank: count - below - 1,
            bounds,
        };
        let Selected { key, less, equal } = simd.dispatch(select);
        let ties = count - below - less;
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

    /// The least key that is kept everywhere in scope is that of a value more than this.
    fn below(&self) -> f32 {
        match self.key {
            NAN_KEY => f32::INFINITY,
            // Nothing is below the least value. Where this is -0, zeroing zeros changes nothing.
            key => value(key - 1),
        }
    }

    /// What is kept of the rows `rows`, for a few ranges of them.
    pub fn kept(&self, rows: Range<usize>) -> impl Iterator<Item = (Range<usize>, Kept)> {
        let up_to = match self.key {
            NAN_KEY => Kept::Some,
            key => Kept::MoreThan(value(key), self.first),
        };
        // Rows with entries of their own are the first, where one is spared, and that of the last tie.
        let first = self.first.max(usize::from(self.keep_first));
        let (tie, after) = match self.last_tie.0 {
            tie if tie < first => (first, first),
            tie => (tie, tie.saturating_add(1)),
        };
        let ranges = [
            (0..self.first, Kept::All),
            (self.first..first, Kept::Some),
            (first..tie, up_to),
            (tie..after, Kept::Some),
            (after..usize::MAX, Kept::MoreThan(self.below(), self.first)),
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

/// What is kept of some rows.
#[derive(Clone, Copy)]
pub(crate) enum Kept {
    /// Everything.
    All,
    /// From a column on what is more than a value, and everything before it.
    MoreThan(f32, usize),
    /// What has to be asked for entry by entry.
    Some,
}

/// Draws about `total^(2/3) / 3` values of the `total` in scope, evenly spread, into the front of `scratch`: the larger
/// the sample, the fewer entries the bracket holds, and so many take the least time together.
fn sample<'a, 's, I: Iterator<Item = &'a [f32]>>(
    side: usize,
    rows: impl Fn() -> I,
    scratch: &'s mut [f32],
) -> &'s [f32] {
    // An odd step walks over all columns of maps of any side.
    let step = (3.0 * ((side * side) as f64).cbrt()) as usize | 1;
    let mut drawn = 0;
    let mut skip = 0;
    for row in rows() {
        let mut at = skip;
        while at < row.len() {
            scratch[drawn] = row[at];
            drawn += 1;
            at += step;
        }
        skip = at - row.len();
    }
    &scratch[..drawn]
}

/// Values between which the `count`-th smallest of `total` very likely lies, both included.
fn bracket(simd: Simd, sample: &[f32], count: usize, total: usize) -> (f32, f32) {
    let drawn = sample.len() as f64;
    let share = count as f64 / total as f64;
    // Three standard deviations of the rank of a random sample.
    let margin = 3.0 * (drawn * share * (1.0 - share)).sqrt() + 2.0;
    let at = |rank: f64, beyond: f32| {
        let rank = rank as usize;
        let select = Select {
            values: sample,
            rank,
            bounds: EVERYTHING,
        };
        match rank < sample.len() {
            true => value(simd.dispatch(select).key),
            false => beyond,
        }
    };
    let low = match share * drawn - margin {
        rank if rank >= 0.0 => at(rank, f32::INFINITY),
        _ => f32::NEG_INFINITY,
    };
    (low, at(share * drawn + margin, f32::INFINITY))
}

/// Finds the key of a rank, 0 for the least, by narrowing the range it lies in until that holds few values: counting
/// takes far less time than moving.
struct Select<'a> {
    values: &'a [f32],
    rank: usize,
    /// The least and the largest that a value may be, but for NaN.
    bounds: (f32, f32),
}

/// The key of a rank.
struct Selected {
    key: u32,
    /// Values that are less.
    less: usize,
    /// Values that are the same.
    equal: usize,
}

/// So many values are sorted.
const FEW: usize = 32;

impl Kernel for Select<'_> {
    type Output = Selected;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> Selected {
        let Select {
            values,
            rank,
            bounds,
        } = self;
        let numbers = up_to(lanes, values, bounds.1);
        if numbers <= rank {
            return Selected {
                key: NAN_KEY,
                less: numbers,
                equal: values.len() - numbers,
            };
        }
        // The key is one of the `inside` from `low` to `high`; `less` are less.
        let (mut low, mut high) = (key(bounds.0), key(bounds.1));
        let (mut less, mut inside) = (0, numbers);
        let mut guess = false;
        while low < high && inside > FEW {
            // In the middle, or, every other time, where the key would lie were they evenly spread.
            let share = match guess {
                true => ((rank - less) as f64 + 0.5) / inside as f64,
                false => 0.5,
            };
            guess = !guess;
            let at = match low + (f64::from(high - 1 - low) * share) as u32 {
                MINUS_ZERO_KEY => MINUS_ZERO_KEY - 1,
                at => at,
            };
            let up_to = up_to(lanes, values, value(at));
            if up_to > rank {
                (high, inside) = (at, up_to - less);
            } else {
                (less, inside) = (up_to, inside + less - up_to);
                low = key(value(at + 1));
            }
        }
        if low == high {
            return Selected {
                key: low,
                less,
                equal: inside,
            };
        }
        let (mut few, mut found) = ([0.0; FEW + MOST_LANES], 0);
        let bounds = (value(low), value(high));
        let vectors = values.chunks_exact(L::LANES);
        for value in vectors.remainder().chunks_exact(1) {
            step(One, value, bounds, &mut few, &mut found);
        }
        for vector in vectors {
            step(lanes, vector, bounds, &mut few, &mut found);
        }
        let mut few = few.map(key);
        let few = &mut few[..found];
        few.sort_unstable();
        let key = few[rank - less];
        let first = few.partition_point(|&other| other < key);
        let end = few.partition_point(|&other| other <= key);
        Selected {
            key,
            less: less + first,
            equal: end - first,
        }
    }
}

/// How many values are at most `most`.
#[inline(always)]
fn up_to<L: Lanes>(lanes: L, values: &[f32], most: f32) -> usize {
    let vectors = values.chunks_exact(L::LANES);
    let mut count = 0;
    for &value in vectors.remainder() {
        count += u32::from(value <= most);
    }
    for vector in vectors {
        count += lanes
            .at_most(lanes.load(vector), lanes.splat(most))
            .count_ones();
    }
    count as usize
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

/// Counts the values in scope below the bounds and writes those within them, both included.
struct Collect<'a> {
    map: FusedEntries<'a>,
    /// The first row and column in scope.
    first: usize,
    /// What is collected.
    bounds: (f32, f32),
    into: &'a mut [f32],
}

impl Kernel for Collect<'_> {
    type Output = (usize, usize);

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> (usize, usize) {
        let (mut up_to_high, mut collected) = (0, 0);
        let bounds = self.bounds;
        let FusedEntries {
            entries,
            stride,
            len,
        } = self.map;
        // Where everything is in scope, and there are no gaps, all rows are one.
        let (rows, columns) = match self.first {
            0 if stride == len => (0..1, 0..len * len),
            first => (first..len, first..len),
        };
        for row in rows {
            let vectors = entries[row * stride..][columns.clone()].chunks_exact(L::LANES);
            for value in vectors.remainder().chunks_exact(1) {
                up_to_high += step(One, value, bounds, self.into, &mut collected);
            }
            for vector in vectors {
                lanes.prefetch(vector.as_ptr().wrapping_add(PREFETCH));
                up_to_high += step(lanes, vector, bounds, self.into, &mut collected);
            }
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
    whole: FusedEntries<'a>,
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

    /// The same as [`Cutoff::kept`] describes it, from two halves of the rows.
    fn by_kept(simd: Simd, problem: &Problem, map: FusedEntries<'_>) -> Vec<f32> {
        let len = map.len;
        let mut scratch = vec![0.0; scratch(len)];
        let Some(cutoff) = Cutoff::select(simd, problem, 0, map, &mut scratch) else {
            return map.entries.to_vec();
        };
        let mut got = Vec::new();
        let halves = [0..len / 2, len / 2..len];
        for (rows, kept) in halves.into_iter().flat_map(|half| cutoff.kept(half)) {
            assert_eq!(rows.start * len, got.len(), "rows in order, none left out");
            for i in rows {
                let row = map.row(i).iter().enumerate();
                match kept {
                    Kept::All => got.extend(map.row(i)),
                    Kept::MoreThan(least, column) => got.extend(row.map(|(j, &entry)| {
                        if j < column {
                            entry
                        } else {
                            One.zero_at_most(entry, least)
                        }
                    })),
                    Kept::Some => {
                        got.resize(got.len() + len, f32::NAN);
                        let at = got.len() - len;
                        cutoff.keep(simd, i..i + 1, map, &mut got[at..]);
                    }
                }
            }
        }
        got
    }

    fn check(got: &[f32], want: &[f32], what: &str) {
        assert_eq!(got.len(), want.len(), "{what}");
        for (at, (got, want)) in got.iter().zip(want).enumerate() {
            let same = got == want || got.is_nan() && want.is_nan();
            assert!(same, "{what}: {got} for {want} at {at}");
        }
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
                    let mut scratch = vec![0.0; scratch(len)];
                    let mut got = fused.clone();
                    let map = FusedEntries::new(&fused, len);
                    if let Some(cutoff) = Cutoff::select(simd, &problem, 0, map, &mut scratch) {
                        let (top, bottom) = got.split_at_mut(len / 2 * len);
                        cutoff.keep(simd, 0..len / 2, map, top);
                        cutoff.keep(simd, len / 2..len, map, bottom);
                    }
                    check(&got, &want, &format!("{simd}, {scope:?}, {ratio}, keep"));
                    check(
                        &by_kept(simd, &problem, map),
                        &want,
                        &format!("{simd}, {scope:?}, {ratio}, kept"),
                    );
                }
            }
        }
    }
}
