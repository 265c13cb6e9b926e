//! Where fused entries go.
#![allow(
    clippy::needless_range_loop,
    reason = "what iterators are made of is not always inlined, and outside an inner loop it lacks its instruction set"
)]

use crate::cpu::simd::Lanes;

/// Takes fused entries.
pub(super) trait Sink {
    /// Takes `V` vectors of each of `R` rows from `row` on, in the columns from `column` on. The first `done` columns
    /// were taken before.
    fn take<L: Lanes, const R: usize, const V: usize>(
        &mut self,
        lanes: L,
        row: usize,
        column: usize,
        done: usize,
        fused: &[[L::Vector; V]; R],
    );

    /// The columns of `row` from `column` on are 0.
    fn absent(&mut self, row: usize, column: usize);
}

/// Writes fused rows, times a weight.
pub(super) struct Store<'a> {
    pub fused: &'a mut [f32],
    pub stride: usize,
    pub weight: f32,
}

impl Sink for Store<'_> {
    #[inline(always)]
    fn take<L: Lanes, const R: usize, const V: usize>(
        &mut self,
        lanes: L,
        row: usize,
        column: usize,
        _done: usize,
        fused: &[[L::Vector; V]; R],
    ) {
        for (r, fused) in fused.iter().enumerate() {
            let to = &mut self.fused[(row + r) * self.stride + column..][..V * L::LANES];
            for (v, &fused) in fused.iter().enumerate() {
                let weighted = lanes.mul(fused, lanes.splat(self.weight));
                lanes.store(weighted, &mut to[v * L::LANES..]);
            }
        }
    }

    #[inline(always)]
    fn absent(&mut self, row: usize, column: usize) {
        self.fused[row * self.stride..][column..self.stride].fill(0.0);
    }
}

/// Adds weighted fused rows to sums.
pub(crate) struct Accumulate<'a> {
    pub start_rows: usize,
    /// What each row is multiplied by, for one start row after the other.
    pub weights: &'a [f32],
    /// Elements from the weights for one start row to those for the next.
    pub weights_stride: usize,
    /// The sums, for one start row after the other.
    pub part: &'a mut [f32],
    /// Elements from the sums for one start row to those for the next.
    pub part_stride: usize,
}

impl Sink for Accumulate<'_> {
    #[inline(always)]
    fn take<L: Lanes, const R: usize, const V: usize>(
        &mut self,
        lanes: L,
        row: usize,
        column: usize,
        done: usize,
        fused: &[[L::Vector; V]; R],
    ) {
        for m in 0..self.start_rows {
            let weights = &self.weights[m * self.weights_stride + row..][..R];
            let part = &mut self.part[m * self.part_stride + column..][..V * L::LANES];
            for v in 0..V {
                let part = &mut part[v * L::LANES..];
                let before = lanes.load(part);
                let mut sum = before;
                for r in 0..R {
                    sum = lanes.mul_add(lanes.splat(weights[r]), fused[r][v], sum);
                }
                if done > 0 {
                    sum = lanes.join(done, before, sum);
                }
                lanes.store(sum, part);
            }
        }
    }

    #[inline(always)]
    fn absent(&mut self, _row: usize, _column: usize) {}
}
