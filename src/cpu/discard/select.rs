//! The k-th smallest entry of a fused map, found without sorting or moving the map.
//!
//! A sample brackets it; one pass counts what lies below the bracket and collects what lies in it (about a tenth); the
//! collected entries are selected from. Where the bracket misses, everything is collected.

use crate::cpu::discard::key::{MINUS_ZERO_KEY, NAN_KEY, key, value};
use crate::cpu::fuse::FusedEntries;
use crate::cpu::simd::{InnerLoop, Lanes, MOST_LANES, Scalar, Simd, prefetch};

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

/// The key of the `count`-th smallest entry in scope, which is what lies from row and column `first` on, and row and column
/// of the last entry of that key that is among those; `(len, 0)` where all are. `scratch` holds at least [`scratch`]`(len)`
/// floats.
pub(super) fn cutoff(
    simd: Simd,
    map: FusedEntries<'_>,
    first: usize,
    count: usize,
    scratch: &mut [f32],
) -> (u32, (usize, usize)) {
    let len = map.len;
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
        simd.dispatch(NthTie {
            map,
            first,
            key,
            ties,
        })
    };
    (key, last_tie)
}

/// Draws about `total^(2/3) / 3` values of the `total` in scope, evenly spread, into the front of `scratch`: the larger
/// the sample, the fewer entries the bracket holds, and so many take the least time together.
pub(super) fn sample<'a, 's, I: Iterator<Item = &'a [f32]>>(
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

impl InnerLoop for Select<'_> {
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
            step(Scalar, value, bounds, &mut few, &mut found);
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

/// Finds row and column of the `ties`-th entry in scope that has this key, in row-major order.
struct NthTie<'a> {
    map: FusedEntries<'a>,
    /// The first row and column in scope.
    first: usize,
    key: u32,
    ties: usize,
}

impl InnerLoop for NthTie<'_> {
    type Output = (usize, usize);

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> (usize, usize) {
        let mut left = self.ties as u32;
        for i in self.first..self.map.len {
            let row = &self.map.row(i)[self.first..];
            let vectors = row.chunks_exact(L::LANES);
            let mut equal = 0;
            for &value in vectors.remainder() {
                equal += u32::from(key(value) == self.key);
            }
            for vector in vectors {
                equal += equal_to(lanes, lanes.load(vector), self.key).count_ones();
            }
            if equal < left {
                left -= equal;
                continue;
            }
            for (j, &value) in row.iter().enumerate() {
                left -= u32::from(key(value) == self.key);
                if left == 0 {
                    return (i, self.first + j);
                }
            }
        }
        unreachable!("fewer ties than were counted")
    }
}

/// Bit by bit, which lanes have this key.
#[inline(always)]
fn equal_to<L: Lanes>(lanes: L, vector: L::Vector, key: u32) -> u32 {
    let value = lanes.splat(value(key));
    if key == NAN_KEY {
        let zero = lanes.splat(0.0);
        return lanes.at_most(zero, zero) & !lanes.at_most(vector, lanes.splat(f32::INFINITY));
    }
    lanes.at_most(vector, value) & lanes.at_most(value, vector)
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

impl InnerLoop for Collect<'_> {
    type Output = (usize, usize);

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> (usize, usize) {
        let (mut up_to_high, mut collected) = (0, 0);
        let bounds = self.bounds;
        let FusedEntries {
            entries,
            stride,
            len,
            ..
        } = self.map;
        // Where everything is in scope, and there are no gaps, all rows are one.
        let (rows, columns) = match self.first {
            0 if stride == len => (0..1, 0..len * len),
            first => (first..len, first..len),
        };
        for row in rows {
            let vectors = entries[row * stride..][columns.clone()].chunks_exact(L::LANES);
            for value in vectors.remainder().chunks_exact(1) {
                up_to_high += step(Scalar, value, bounds, self.into, &mut collected);
            }
            for vector in vectors {
                prefetch(vector.as_ptr().wrapping_add(PREFETCH));
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
