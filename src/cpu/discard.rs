//! Discard by selection: the k-th smallest entry of a fused map, found without sorting the map.
//!
//! A sample brackets the k-th smallest; one pass counts what lies below the bracket and collects what lies in it
//! (a few per cent); the collected entries are selected from. Where the bracket misses, everything is collected.

use std::ops::Range;

use crate::config::{Discard, DiscardScope};
use crate::cpu::simd::{Kernel, LANES, Lanes, Simd};
use crate::problem::Problem;

/// Entries drawn to bracket the k-th smallest.
const SAMPLE: usize = 4096;

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
    if value.is_nan() { u32::MAX } else { ordered }
}

impl Cutoff {
    /// Selects the cutoff of `item` from its whole fused map `[len, len]`; `None` where nothing is discarded.
    ///
    /// `scratch` holds at least `len * len` keys.
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
        let collect = |(low, high): (u32, u32), scratch: &mut [u32]| {
            let (mut below, mut collected) = (0, 0);
            for row in rows() {
                let part = simd.dispatch(Collect {
                    row,
                    low,
                    high,
                    into: &mut scratch[collected..],
                });
                below += part.0;
                collected += part.1;
            }
            (below, collected)
        };
        let (mut below, mut collected) = (count, 0);
        if side * side > SAMPLE {
            let sample = sample(side, rows, scratch);
            let bracket = bracket(sample, count, side * side);
            (below, collected) = collect(bracket, scratch);
        }
        if below >= count || below + collected < count {
            (below, collected) = collect((0, u32::MAX), scratch);
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

    /// Zeroes what is discarded of rows `rows` of the map, held in `fused`, `[rows, len]`.
    pub fn apply(&self, simd: Simd, rows: Range<usize>, len: usize, fused: &mut [f32]) {
        for (i, row) in rows.zip(fused.chunks_exact_mut(len)) {
            if i < self.first {
                continue;
            }
            let kept = row[0];
            let ties = match i.cmp(&self.last_tie.0) {
                std::cmp::Ordering::Less => len,
                std::cmp::Ordering::Equal => self.last_tie.1 + 1,
                std::cmp::Ordering::Greater => self.first,
            };
            let (with_ties, without) = row[self.first..].split_at_mut(ties - self.first);
            simd.dispatch(Zero {
                row: with_ties,
                up_to: self.key,
            });
            if let Some(up_to) = self.key.checked_sub(1) {
                simd.dispatch(Zero {
                    row: without,
                    up_to,
                });
            }
            if i == 0 && self.keep_first {
                row[0] = kept;
            }
        }
    }
}

/// Draws [`SAMPLE`] keys or up to twice as many, evenly spread, into the front of `scratch`.
fn sample<'a, 's, I: Iterator<Item = &'a [f32]>>(
    side: usize,
    rows: impl Fn() -> I,
    scratch: &'s mut [u32],
) -> &'s mut [u32] {
    // An odd step walks over all columns of maps of any side.
    let step = (side * side / SAMPLE) | 1;
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

/// Keys between which the `count`-th smallest of `total` very likely lies, both included.
fn bracket(sample: &mut [u32], count: usize, total: usize) -> (u32, u32) {
    let drawn = sample.len() as f64;
    let share = count as f64 / total as f64;
    // Three standard deviations of the rank of a random sample.
    let margin = 3.0 * (drawn * share * (1.0 - share)).sqrt() + 2.0;
    let low = share * drawn - margin;
    let high = (share * drawn + margin) as usize;
    let mut nth = |rank: usize| *sample.select_nth_unstable(rank).1;
    let low = if low < 0.0 { 0 } else { nth(low as usize) };
    let high = if high < drawn as usize {
        nth(high)
    } else {
        u32::MAX
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

/// Counts the keys of a row below `low` and appends those from `low` to `high`, both included.
struct Collect<'a> {
    row: &'a [f32],
    low: u32,
    high: u32,
    into: &'a mut [u32],
}

impl Kernel for Collect<'_> {
    type Output = (usize, usize);

    #[inline(always)]
    fn run<L: Lanes>(self, _lanes: L) -> (usize, usize) {
        let Collect {
            row,
            low,
            high,
            into,
        } = self;
        let into = &mut into[..row.len()];
        let inside = |key: u32| key.wrapping_sub(low) <= high - low;
        let mut collected = 0;
        let mut append = |keys: &[u32]| {
            for &key in keys {
                into[collected] = key;
                collected += usize::from(inside(key));
            }
        };
        let (vectors, rest) = row.as_chunks::<LANES>();
        let mut below = [0; LANES];
        for vector in vectors {
            let keys = vector.map(key);
            let mut any = false;
            for (below, &key) in below.iter_mut().zip(&keys) {
                *below += u32::from(key < low);
                any |= inside(key);
            }
            // Most vectors hold nothing of the bracket.
            if any {
                append(&keys);
            }
        }
        let mut below = below.iter().sum::<u32>() as usize;
        for &value in rest {
            below += usize::from(key(value) < low);
            append(&[key(value)]);
        }
        (below, collected)
    }
}

/// Zeroes the entries whose keys are at most `up_to`.
struct Zero<'a> {
    row: &'a mut [f32],
    up_to: u32,
}

impl Kernel for Zero<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _lanes: L) {
        for value in self.row {
            *value = if key(*value) <= self.up_to {
                0.0
            } else {
                *value
            };
        }
    }
}
