//! Which rows are surely what they must be: at the speed of memory, before a look that names what is wrong.

use super::Rule;
use crate::cpu::simd::{InnerLoop, Lanes, MOST_LANES, Simd, prefetch};
use crate::dtype::Element;

/// Rows of a map, one after the other.
pub(super) struct Rows<'a, T> {
    /// From the first row's first entry on.
    pub entries: &'a [T],
    /// Entries from one row to the next.
    pub stride: usize,
    /// How many rows there are.
    pub count: usize,
    /// Entries of the first that are looked at.
    pub first_len: usize,
    /// How many more each row has than the one before.
    pub growth: usize,
}

/// How many rows, from the first on, surely obey the rule. Those after them may do so too.
pub(super) fn sure_rows<T: Element>(rows: Rows<'_, T>, rule: Rule) -> usize {
    Simd::detect().dispatch(SureRows { rows, rule })
}

struct SureRows<'a, T> {
    rows: Rows<'a, T>,
    rule: Rule,
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// How far ahead lines are asked for, in bytes.
const AHEAD: usize = 2048;

/// Rows whose lanes are summed at a time.
const TOGETHER: usize = 4;

impl<T: Element> InnerLoop for SureRows<'_, T> {
    type Output = usize;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> usize {
        let SureRows { rows, rule } = self;
        let len = |row: usize| rows.first_len + row * rows.growth;
        let mut most_negated = lanes.splat(0.0);
        let mut sure = rows.count;
        for first in (0..rows.count).step_by(TOGETHER) {
            let together = first..rows.count.min(first + TOGETHER);
            let mut sums = [lanes.splat(0.0); TOGETHER];
            for (sum, row) in sums.iter_mut().zip(together.clone()) {
                let entries = &rows.entries[row * rows.stride..][..len(row)];
                (*sum, most_negated) = add(lanes, entries, most_negated);
            }
            let sums = lanes.four_sums(sums);
            // Where an entry is infinite or NaN, so is the sum; what was negative before a NaN is forgotten.
            if sums.iter().any(|sum| !sum.is_finite()) {
                return 0;
            }
            let Rule::Distribution { tolerance } = rule else {
                continue;
            };
            let is_unsure = |&(row, sum): &(usize, f32)| {
                // No entry is in more additions. Each rounds by at most 2^-24 of the sum, for no entry is negative; twice
                // that covers the terms of higher order.
                let additions = len(row) / (2 * L::LANES) + 8;
                let rounding = additions as f64 * f64::from(sum) / f64::from(1 << 23);
                (f64::from(sum) - 1.0).abs() + rounding > tolerance
            };
            if let Some((row, _)) = together.zip(sums).find(is_unsure) {
                sure = row;
                break;
            }
        }
        let mut negated = [0.0; MOST_LANES];
        lanes.store(most_negated, &mut negated);
        match rule {
            Rule::Distribution { .. } if negated.iter().any(|&negated| negated > 0.0) => 0,
            _ => sure,
        }
    }
}

/// The sum of a row's entries, spread over the lanes, and the most of their negatives and `most_negated`; of the latter,
/// anything where an entry is NaN.
#[inline(always)]
fn add<L: Lanes, T: Element>(
    lanes: L,
    row: &[T],
    most_negated: L::Vector,
) -> (L::Vector, L::Vector) {
    let negate = |entries| lanes.mul(entries, lanes.splat(-1.0));
    if row.len() < L::LANES {
        let mut entries = [0.0; MOST_LANES];
        for (wide, entry) in entries.iter_mut().zip(row) {
            *wide = entry.to_f32();
        }
        let entries = lanes.load(&entries);
        return (entries, lanes.at_least(most_negated, negate(entries)));
    }
    // Two of each, since each waits for its last operation.
    let mut sums = [lanes.splat(0.0); 2];
    let mut negated = [most_negated; 2];
    let mut add = |side: usize, entries| {
        sums[side] = lanes.add(sums[side], entries);
        negated[side] = lanes.at_least(negated[side], negate(entries));
    };
    let pairs = row.chunks_exact(2 * L::LANES);
    let rest = pairs.remainder();
    for pair in pairs {
        for line in (0..2 * L::LANES).step_by(LINE / size_of::<T>()) {
            prefetch(pair.as_ptr().wrapping_add(line + AHEAD / size_of::<T>()));
        }
        add(0, lanes.load(pair));
        add(1, lanes.load(&pair[L::LANES..]));
    }
    if rest.len() >= L::LANES {
        add(0, lanes.load(rest));
    }
    // The last vector overlaps the one before.
    let done = L::LANES - row.len() % L::LANES;
    let last = lanes.load(&row[row.len() - L::LANES..]);
    add(1, lanes.join(done, lanes.splat(0.0), last));
    let sum = lanes.add(sums[0], sums[1]);
    (sum, lanes.at_least(negated[0], negated[1]))
}
