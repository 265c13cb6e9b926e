//! Which rows are surely what they must be: at the speed of memory, before a look that names what is wrong.

use super::Rule;
use crate::cpu::simd::{InnerLoop, Lanes, MOST_LANES, Simd};
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

/// How many rows, from the first on, surely obey the rule. The next may do so too.
pub(super) fn sure_rows<T: Element>(rows: Rows<'_, T>, rule: Rule) -> usize {
    Simd::detect().dispatch(SureRows { rows, rule })
}

struct SureRows<'a, T> {
    rows: Rows<'a, T>,
    rule: Rule,
}

impl<T: Element> InnerLoop for SureRows<'_, T> {
    type Output = usize;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> usize {
        let SureRows { rows, rule } = self;
        let unsure = (0..rows.count).find(|row| {
            let len = rows.first_len + row * rows.growth;
            let entries = &rows.entries[row * rows.stride..][..len];
            !is_sure(lanes, entries, rule)
        });
        unsure.unwrap_or(rows.count)
    }
}

#[inline(always)]
fn is_sure<L: Lanes, T: Element>(lanes: L, row: &[T], rule: Rule) -> bool {
    if row.len() < L::LANES {
        return false;
    }
    let (sum, least) = sum_and_least(lanes, row);
    // Where an entry is infinite or NaN, so is the sum.
    if !sum.is_finite() {
        return false;
    }
    match rule {
        Rule::Finite => true,
        Rule::Distribution { tolerance } => {
            // No entry is in more additions. Each rounds by at most 2^-24 of the sum, for none is negative; twice that
            // covers the terms of higher order.
            let additions = row.len() / (2 * L::LANES) + 8;
            let rounding = additions as f64 * f64::from(sum) / f64::from(1 << 23);
            least >= 0.0 && (f64::from(sum) - 1.0).abs() + rounding <= tolerance
        }
    }
}

/// The sum in f32 and the smallest entry, of at least as many entries as a vector has.
#[inline(always)]
fn sum_and_least<L: Lanes, T: Element>(lanes: L, row: &[T]) -> (f32, f32) {
    // Two of each, since each waits for its last operation.
    let mut sums = [lanes.splat(0.0); 2];
    let mut least = [lanes.load(row); 2];
    let mut add = |side: usize, entries| {
        sums[side] = lanes.add(sums[side], entries);
        least[side] = lanes.min(least[side], entries);
    };
    let pairs = row.chunks_exact(2 * L::LANES);
    let rest = pairs.remainder();
    for pair in pairs {
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
    let mut lane_least = [f32::INFINITY; MOST_LANES];
    lanes.store(lanes.min(least[0], least[1]), &mut lane_least);
    let least = lane_least.into_iter().fold(f32::INFINITY, f32::min);
    (lanes.sum(lanes.add(sums[0], sums[1])), least)
}
