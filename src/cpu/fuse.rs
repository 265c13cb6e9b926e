//! Head fusion: `[heads, rows, len]` of one item and layer becomes `[rows, len]` in f32, to the bit as
//! [`HeadFusion`] defines it. This is the only code that reads attention maps.
//!
//! Fused entries go where a [`Sink`] takes them, straight from the registers: into memory, or times their rows'
//! weights into the new relevance.

use std::ops::Range;

use crate::config::HeadFusion;
use crate::cpu::simd::{Kernel, Lanes, One, Simd};
use crate::dtype::Element;
use crate::input::HostLayer;
use crate::problem::Problem;

/// How far ahead of the loads the maps are prefetched, in bytes, all heads together: a few times what is on its way
/// from memory at any moment, and small beside a first-level cache.
const PREFETCH_BYTES: usize = 12 << 10;

/// One item's maps of one layer.
#[derive(Clone, Copy)]
pub(crate) struct ItemMaps<'a> {
    pub problem: &'a Problem,
    pub maps: HostLayer<'a>,
    pub layer: usize,
    pub item: usize,
}

impl<'a> ItemMaps<'a> {
    /// Valid tokens of the item.
    pub fn len(&self) -> usize {
        self.problem.windows()[self.item].len
    }

    /// The rows `rows`, counted from the window's start.
    pub fn rows(&self, rows: Range<usize>) -> MapRows<'a> {
        let strides = self.problem.strides(self.layer);
        let window = self.problem.windows()[self.item];
        let first = self.item * strides.batch + window.start * (strides.row + 1);
        MapRows {
            maps: self.maps,
            first: first + rows.start * strides.row,
            head_stride: strides.head,
            row_stride: strides.row,
            heads: self.problem.shape().heads,
            fusion: &self.problem.config().head_fusion,
            causal_from: self.problem.config().causal.then_some(rows.start),
            rows: rows.len(),
            len: window.len,
        }
    }
}

/// Some rows of one item's maps of one layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapRows<'a> {
    maps: HostLayer<'a>,
    /// The first row's first entry in the first head.
    first: usize,
    head_stride: usize,
    row_stride: usize,
    heads: usize,
    fusion: &'a HeadFusion,
    /// The first row's index where the maps are causal: entries right of the diagonal are 0 and are not read.
    causal_from: Option<usize>,
    rows: usize,
    len: usize,
}

impl<'a> MapRows<'a> {
    /// Rows `[rows, len]` that are fused already.
    pub fn of_fused(fused: &'a [f32], len: usize) -> Self {
        MapRows {
            maps: HostLayer::F32(fused),
            first: 0,
            head_stride: 0,
            row_stride: len,
            heads: 1,
            // Of one head, the largest entry is the entry.
            fusion: &HeadFusion::Max,
            causal_from: None,
            rows: fused.len() / len,
            len,
        }
    }

    /// Writes the fused rows into `fused`, `[rows, len]`.
    pub fn fuse(mut self, simd: Simd, fused: &mut [f32]) {
        let to = Store {
            fused,
            stride: self.len,
        };
        if self.causal_from.is_none() && self.row_stride == self.len {
            // Adjoining rows are one.
            (self.rows, self.len) = (1, self.rows * self.len);
        }
        simd.for_rows(self.len).dispatch(Pass { from: self, to });
    }

    /// `part += weights * fused`, with `weights` `[start rows, rows]` and `part` `[start rows, len]`, row after row.
    pub fn accumulate(self, simd: Simd, weights: &[f32], part: &mut [f32]) {
        let to = Accumulate {
            weights,
            rows: self.rows,
            start_rows: weights.len() / self.rows,
            part,
            stride: self.len,
        };
        simd.for_rows(self.len).dispatch(Pass { from: self, to });
    }
}

/// Takes fused entries.
trait Sink {
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

/// Writes fused rows.
struct Store<'a> {
    fused: &'a mut [f32],
    stride: usize,
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
                lanes.store(fused, &mut to[v * L::LANES..]);
            }
        }
    }

    #[inline(always)]
    fn absent(&mut self, row: usize, column: usize) {
        self.fused[row * self.stride..][column..self.stride].fill(0.0);
    }
}

/// Adds weighted fused rows to sums.
struct Accumulate<'a> {
    /// `[start rows, rows]`.
    weights: &'a [f32],
    rows: usize,
    /// `[start rows, stride]`.
    part: &'a mut [f32],
    start_rows: usize,
    stride: usize,
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
            let weights = &self.weights[m * self.rows + row..][..R];
            let part = &mut self.part[m * self.stride + column..][..V * L::LANES];
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

/// Fuses rows into a sink.
struct Pass<'a, S> {
    from: MapRows<'a>,
    to: S,
}

impl<S: Sink> Kernel for Pass<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        match self.from.maps {
            HostLayer::F32(maps) => self.by_fusion(lanes, maps),
            HostLayer::F16(maps) => self.by_fusion(lanes, maps),
            HostLayer::Bf16(maps) => self.by_fusion(lanes, maps),
        }
    }
}

impl<S: Sink> Pass<'_, S> {
    #[inline(always)]
    fn by_fusion<L: Lanes, T: Element>(self, lanes: L, maps: &[T]) {
        let maps = &maps[self.from.first..];
        // As many vectors as leave registers free: of two rows, or of four where there is but one head. Sums in memory
        // are loaded and stored once for all rows, and one head alone is bound by that.
        match self.from.fusion {
            HeadFusion::Weighted(weights) => {
                self.rows::<L, T, _, 2, 4>(lanes, maps, Weighted { weights });
            }
            // Whatever fuses several heads leaves one as it is.
            _ if self.from.heads == 1 => self.rows::<L, T, _, 4, 2>(lanes, maps, Max),
            HeadFusion::Mean => {
                let scale = 1.0 / self.from.heads as f32;
                self.rows::<L, T, _, 2, 4>(lanes, maps, Mean { scale });
            }
            HeadFusion::Max => self.rows::<L, T, _, 2, 4>(lanes, maps, Max),
            HeadFusion::Min => self.rows::<L, T, _, 2, 4>(lanes, maps, Min),
        }
    }

    /// All rows, `R` at a time in steps of `V` vectors.
    #[inline(always)]
    fn rows<L: Lanes, T: Element, F: Fusion, const R: usize, const V: usize>(
        self,
        lanes: L,
        maps: &[T],
        fusion: F,
    ) {
        let MapRows {
            head_stride,
            row_stride,
            heads,
            causal_from,
            rows,
            len,
            ..
        } = self.from;
        if rows == 0 {
            return;
        }
        // All that follows reads `maps` below this.
        assert!((heads - 1) * head_stride + (rows - 1) * row_stride + len <= maps.len());
        let mut pass = Fuse {
            lanes,
            maps: maps.as_ptr(),
            fusion,
            from: self.from,
            prefetch: PREFETCH_BYTES / heads,
            to: self.to,
        };
        if let Some(from) = causal_from {
            for row in 0..rows {
                let present = (from + row + 1).min(len);
                pass.columns::<1, 4>(row, present);
                pass.to.absent(row, present);
            }
            return;
        }
        let mut row = 0;
        while row + R <= rows {
            pass.columns::<R, V>(row, len);
            row += R;
        }
        for row in row..rows {
            pass.columns::<1, 4>(row, len);
        }
    }
}

/// A pass with everything known at compile time that can be.
struct Fuse<'a, L, T, F, S> {
    lanes: L,
    /// The first entry. All rows of all heads can be read.
    maps: *const T,
    fusion: F,
    from: MapRows<'a>,
    /// How far ahead each head is prefetched, in bytes.
    prefetch: usize,
    to: S,
}

impl<L: Lanes, T: Element, F: Fusion, S: Sink> Fuse<'_, L, T, F, S> {
    /// The first `len` columns of `R` rows, in steps of `V` vectors, 2 or 4.
    #[inline(always)]
    fn columns<const R: usize, const V: usize>(&mut self, row: usize, len: usize) {
        let lanes = self.lanes;
        let mut column = 0;
        while column + V * L::LANES <= len {
            self.step::<L, R, V>(lanes, row, column, 0);
            column += V * L::LANES;
        }
        if V > 2 && column + 2 * L::LANES <= len {
            self.step::<L, R, 2>(lanes, row, column, 0);
            column += 2 * L::LANES;
        }
        if column + L::LANES <= len {
            self.step::<L, R, 1>(lanes, row, column, 0);
            column += L::LANES;
        }
        if column < len && len >= L::LANES {
            // The last vector overlaps the one before.
            let last = len - L::LANES;
            self.step::<L, R, 1>(lanes, row, last, column - last);
            return;
        }
        for column in column..len {
            self.step::<One, R, 1>(One, row, column, 0);
        }
    }

    /// `V` vectors of `R` rows, over all heads.
    #[inline(always)]
    fn step<W: Lanes, const R: usize, const V: usize>(
        &mut self,
        lanes: W,
        row: usize,
        column: usize,
        done: usize,
    ) {
        let fusion = self.fusion;
        let mut kept = [[lanes.splat(0.0); V]; R];
        for r in 0..R {
            let maps = self.head(lanes, 0, row + r, column, V);
            for v in 0..V {
                // SAFETY: as `head` says.
                let value = unsafe { lanes.read(maps.add(v * W::LANES)) };
                kept[r][v] = fusion.first(lanes, value);
            }
        }
        for head in 1..self.from.heads {
            for r in 0..R {
                let maps = self.head(lanes, head, row + r, column, V);
                for v in 0..V {
                    // SAFETY: as `head` says.
                    let value = unsafe { lanes.read(maps.add(v * W::LANES)) };
                    kept[r][v] = fusion.next(lanes, kept[r][v], value, head);
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                kept[r][v] = fusion.last(lanes, kept[r][v]);
            }
        }
        self.to.take(lanes, row, column, done, &kept);
    }

    /// Where an entry of a head lies. It and those after it in its row, up to the length of rows, can be read.
    /// Asks for as many vectors' worth of memory, further on, to be prefetched.
    #[inline(always)]
    fn head<W: Lanes>(
        &self,
        lanes: W,
        head: usize,
        row: usize,
        column: usize,
        vectors: usize,
    ) -> *const T {
        let first = head * self.from.head_stride + row * self.from.row_stride + column;
        let maps = self.maps.wrapping_add(first);
        for line in 0..(vectors * W::LANES * size_of::<T>()).div_ceil(64) {
            lanes.prefetch(maps.cast::<u8>().wrapping_add(self.prefetch + line * 64));
        }
        maps
    }
}

/// How entries of the heads, in order, become one.
trait Fusion: Copy {
    fn first<L: Lanes>(self, lanes: L, value: L::Vector) -> L::Vector;

    fn next<L: Lanes>(self, lanes: L, kept: L::Vector, value: L::Vector, head: usize) -> L::Vector;

    fn last<L: Lanes>(self, lanes: L, kept: L::Vector) -> L::Vector;
}

#[derive(Clone, Copy)]
struct Mean {
    scale: f32,
}

impl Fusion for Mean {
    #[inline(always)]
    fn first<L: Lanes>(self, _lanes: L, value: L::Vector) -> L::Vector {
        value
    }

    #[inline(always)]
    fn next<L: Lanes>(
        self,
        lanes: L,
        kept: L::Vector,
        value: L::Vector,
        _head: usize,
    ) -> L::Vector {
        lanes.add(kept, value)
    }

    #[inline(always)]
    fn last<L: Lanes>(self, lanes: L, kept: L::Vector) -> L::Vector {
        lanes.mul(kept, lanes.splat(self.scale))
    }
}

#[derive(Clone, Copy)]
struct Max;

impl Fusion for Max {
    #[inline(always)]
    fn first<L: Lanes>(self, _lanes: L, value: L::Vector) -> L::Vector {
        value
    }

    #[inline(always)]
    fn next<L: Lanes>(
        self,
        lanes: L,
        kept: L::Vector,
        value: L::Vector,
        _head: usize,
    ) -> L::Vector {
        lanes.max(kept, value)
    }

    #[inline(always)]
    fn last<L: Lanes>(self, _lanes: L, kept: L::Vector) -> L::Vector {
        kept
    }
}

#[derive(Clone, Copy)]
struct Min;

impl Fusion for Min {
    #[inline(always)]
    fn first<L: Lanes>(self, _lanes: L, value: L::Vector) -> L::Vector {
        value
    }

    #[inline(always)]
    fn next<L: Lanes>(
        self,
        lanes: L,
        kept: L::Vector,
        value: L::Vector,
        _head: usize,
    ) -> L::Vector {
        lanes.min(kept, value)
    }

    #[inline(always)]
    fn last<L: Lanes>(self, _lanes: L, kept: L::Vector) -> L::Vector {
        kept
    }
}

#[derive(Clone, Copy)]
struct Weighted<'a> {
    weights: &'a [f32],
}

impl Fusion for Weighted<'_> {
    #[inline(always)]
    fn first<L: Lanes>(self, lanes: L, value: L::Vector) -> L::Vector {
        lanes.mul(value, lanes.splat(self.weights[0]))
    }

    #[inline(always)]
    fn next<L: Lanes>(self, lanes: L, kept: L::Vector, value: L::Vector, head: usize) -> L::Vector {
        lanes.add(kept, lanes.mul(value, lanes.splat(self.weights[head])))
    }

    #[inline(always)]
    fn last<L: Lanes>(self, _lanes: L, kept: L::Vector) -> L::Vector {
        kept
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::reference::fuse_f32;

    const ROWS: usize = 9;
    const HEADS: usize = 3;
    /// Below, at and above every vector and step length.
    const LENS: [usize; 20] = [
        1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 47, 63, 65, 100, 131,
    ];

    /// Maps `[HEADS, ROWS, len]` with a gap after each row; NaN in what must not be read.
    struct Maps {
        values: Vec<f32>,
        len: usize,
        /// Whether entries right of the diagonal are absent, and the first row's index.
        causal_from: Option<usize>,
    }

    impl Maps {
        fn new(len: usize, gap: usize, causal_from: Option<usize>) -> Self {
            let stride = len + gap;
            let mut values = vec![f32::NAN; HEADS * ROWS * stride - gap];
            for (at, value) in values.iter_mut().enumerate() {
                let (row, column) = (at / stride % ROWS, at % stride);
                let present = causal_from.map_or(len, |from| (from + row + 1).min(len));
                if column < present {
                    // Exact in every element type, of both signs, and different in adjoining entries.
                    *value = ((at * 37 + at / 7) % 255) as f32 / 128.0 - 0.5;
                }
            }
            Maps {
                values,
                len,
                causal_from,
            }
        }

        fn stride(&self) -> usize {
            (self.values.len() + HEADS * ROWS - 1) / (HEADS * ROWS)
        }

        fn rows<'a>(
            &self,
            maps: HostLayer<'a>,
            heads: usize,
            fusion: &'a HeadFusion,
        ) -> MapRows<'a> {
            MapRows {
                maps,
                first: 0,
                head_stride: ROWS * self.stride(),
                row_stride: self.stride(),
                heads,
                fusion,
                causal_from: self.causal_from,
                rows: ROWS,
                len: self.len,
            }
        }

        /// The fused rows `[ROWS, len]` as the reference has them.
        fn fused(&self, heads: usize, fusion: &HeadFusion) -> Vec<f32> {
            let entry = |row: usize, column: usize| {
                if self.causal_from.is_some_and(|from| column > from + row) {
                    return 0.0;
                }
                let entries: Vec<f32> = (0..heads)
                    .map(|head| self.values[(head * ROWS + row) * self.stride() + column])
                    .collect();
                fuse_f32(fusion, &entries)
            };
            (0..ROWS * self.len)
                .map(|at| entry(at / self.len, at % self.len))
                .collect()
        }
    }

    /// Every instruction set, length, layout, element type, number of heads and fusion.
    fn for_each(check: impl Fn(Simd, &Maps, MapRows<'_>, &[f32])) {
        for (len, gap, causal_from) in LENS.into_iter().flat_map(|len| {
            [
                (len, 0, None),
                (len, 3, None),
                (len, 0, Some(0)),
                (len, 3, Some(20)),
            ]
        }) {
            let maps = Maps::new(len, gap, causal_from);
            let f16s: Vec<f16> = maps.values.iter().map(|&v| f16::from_f32(v)).collect();
            let bf16s: Vec<bf16> = maps.values.iter().map(|&v| bf16::from_f32(v)).collect();
            let weights = vec![0.3, 0.6, 0.1];
            for heads in 1..=HEADS {
                for fusion in [
                    HeadFusion::Mean,
                    HeadFusion::Max,
                    HeadFusion::Min,
                    HeadFusion::Weighted(weights.clone()),
                ] {
                    let fused = maps.fused(heads, &fusion);
                    for layer in [
                        HostLayer::F32(&maps.values),
                        HostLayer::F16(&f16s),
                        HostLayer::Bf16(&bf16s),
                    ] {
                        for simd in Simd::available() {
                            check(simd, &maps, maps.rows(layer, heads, &fusion), &fused);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn fused_to_the_bit_on_every_instruction_set() {
        for_each(|simd, maps, rows, want| {
            let mut got = vec![f32::NAN; want.len()];
            rows.fuse(simd, &mut got);
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(
                bits(&got),
                bits(want),
                "{simd}, {} columns, {rows:?}",
                maps.len
            );
        });
    }

    #[test]
    fn accumulated_as_fused_on_every_instruction_set() {
        for_each(|simd, maps, rows, fused| {
            let len = maps.len;
            for start_rows in [1, 2, 5] {
                let weights: Vec<f32> = (0..start_rows * ROWS).map(|at| 0.1 + at as f32).collect();
                let before: Vec<f32> = (0..start_rows * len).map(|at| at as f32 / 8.0).collect();
                let mut part = before.clone();
                rows.accumulate(simd, &weights, &mut part);
                for (at, (&got, &before)) in part.iter().zip(&before).enumerate() {
                    let (m, column) = (at / len, at % len);
                    let terms = (0..ROWS).map(|row| {
                        f64::from(weights[m * ROWS + row]) * f64::from(fused[row * len + column])
                    });
                    let want = f64::from(before) + terms.clone().sum::<f64>();
                    let magnitude = f64::from(before) + terms.map(f64::abs).sum::<f64>();
                    // A product and a sum per row, each rounded once.
                    let budget = (2 * ROWS) as f64 * f64::from(f32::EPSILON) / 2.0 * magnitude;
                    let within = (f64::from(got) - want).abs() <= budget;
                    assert!(
                        within,
                        "{simd}, start row {m}, column {column} of {len}: {got} for {want}, {rows:?}"
                    );
                }
            }
        });
    }
}
