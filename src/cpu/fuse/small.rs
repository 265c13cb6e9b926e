//! Small maps, times their weights, added to sums for one start row: each item is one stream, head after head and row after
//! row, and several items are read side by side. What is added to a sum, and in which order, does not depend on how many.

use crate::cpu::fuse::entries::{Attention, HeadEntries};
use crate::cpu::fuse::streams::{Heads, Part, SideBySide, Sink, Streams};
use crate::cpu::fuse::sums::{Accumulate, blocks};
use crate::cpu::fuse::{EntriesLoop, MapRows, Over};
use crate::cpu::simd::{Lanes, Simd};
use crate::dtype::{DType, with_element};

/// Items that are read side by side.
pub(crate) const ABREAST: usize = 4;

/// Bytes of an item's maps at most: those of larger ones are long streams by themselves.
pub(crate) const MOST_BYTES: usize = 256 << 10;

/// Bytes of a row at least: shorter ones take more instructions than memory takes time.
const LEAST_ROW_BYTES: usize = 128;

/// Sums of items to add weighted rows to.
pub(crate) struct AccumulateAbreast<'a> {
    /// Elements of the maps from each item to the next.
    pub apart: usize,
    /// What each row is multiplied by, for one item after the other.
    pub weights: &'a [f32],
    /// Rows that share sums: these, those after them, and so on.
    pub block_rows: usize,
    /// The sums, for one block of rows after the other, and for one item after the other.
    pub sums: &'a mut [f32],
    /// Elements from the sums of an item to those of the next.
    pub sums_stride: usize,
}

impl MapRows<'_> {
    /// Whether these are rows of a small item that can be read beside others: as they are, of heads that adjoin and are
    /// summed.
    pub fn are_small(&self) -> bool {
        let element_bytes = self.maps.dtype().size_bytes();
        self.are_sums()
            && self.gradients.is_none()
            && self.causal_from.is_none()
            && self.more_than.is_nan()
            && self.head_stride == self.len * self.row_stride
            && LEAST_ROW_BYTES <= self.len * element_bytes
            && self.heads * self.head_stride * element_bytes <= MOST_BYTES
    }

    /// Adds these rows, all of an [item that is small](MapRows::are_small), and those of [as many](ABREAST) others, times
    /// their weights, to the sums of each item.
    ///
    /// # Panics
    /// Where there are not so many items, weights or sums.
    pub fn accumulate_abreast(&self, simd: Simd, to: AccumulateAbreast<'_>) {
        debug_assert!(self.are_small());
        let inner_loop = AddSmall::<ABREAST> { from: self, to };
        let simd = match self.maps.dtype() {
            DType::F32 => simd.narrow(),
            DType::F16 | DType::Bf16 => simd,
        };
        with_element!(self.maps.dtype(), T => {
            let entries = Attention::<T>(self.elements(self.maps));
            simd.dispatch(Over { entries, inner_loop });
        });
    }
}

/// Adds the rows of `K` items.
pub(super) struct AddSmall<'a, 'b, const K: usize> {
    from: &'b MapRows<'a>,
    to: AccumulateAbreast<'b>,
}

impl<'a, 'b> AddSmall<'a, 'b, 1> {
    /// Those of one item alone.
    #[inline(always)]
    pub fn new(from: &'b MapRows<'a>, to: &'b mut Accumulate<'_>) -> Self {
        let to = AccumulateAbreast {
            apart: 0,
            weights: to.weights,
            block_rows: to.block_rows,
            sums: &mut *to.part,
            sums_stride: to.part_stride,
        };
        AddSmall { from, to }
    }
}

impl<const K: usize> EntriesLoop for AddSmall<'_, '_, K> {
    #[inline(always)]
    fn run<L: Lanes, E: HeadEntries>(self, lanes: L, entries: E) {
        let AddSmall { from, to } = self;
        let (heads, rows, len) = (from.heads, from.rows, from.len);
        if rows == 0 {
            return;
        }
        // Each item is what a head is elsewhere, and a head's rows are those that follow the ones of the head before.
        let items = MapRows {
            heads: K,
            head_stride: to.apart,
            rows: (heads - 1) * len + rows,
            ..*from
        };
        let streams = Streams::new(lanes, entries, items);
        for head in 0..heads {
            let first = head * len;
            let (stream, then) = match rows == len {
                true => (0..heads * len, None),
                false => (
                    first..first + rows,
                    (head + 1 < heads).then_some(first + len),
                ),
            };
            for (block, rows) in blocks(rows, to.block_rows) {
                let part = Part {
                    heads: Heads {
                        first: 0,
                        count: K,
                        apart: 1,
                        then: None,
                    },
                    rows: first + rows.start..first + rows.end,
                    apart: 0,
                    stream: stream.clone(),
                    then,
                };
                let mut sums = SumsOfItems {
                    scale: from.scale(head),
                    weights: to.weights,
                    rows: from.rows,
                    first,
                    of_row: [0.0; K],
                    sums: &mut to.sums[block * K * to.sums_stride..],
                    stride: to.sums_stride,
                };
                streams.read::<_, K, 1>(&part, &mut sums);
            }
        }
    }
}

/// Sums of the rows of a head, of each item by itself.
struct SumsOfItems<'a, const K: usize> {
    /// What entries are multiplied by ...
    scale: f32,
    /// ... and those of each row, of so many of each item.
    weights: &'a [f32],
    rows: usize,
    /// The head's first row.
    first: usize,
    /// What the entries of the row that is read are multiplied by, of each item.
    of_row: [f32; K],
    sums: &'a mut [f32],
    stride: usize,
}

impl<const K: usize> Sink<K, 1> for SumsOfItems<'_, K> {
    const WIDE_VECTORS: usize = 4;

    #[inline(always)]
    fn begin(&mut self, row: usize) {
        for item in 0..K {
            let weight = self.weights[item * self.rows + row - self.first];
            self.of_row[item] = self.scale * weight;
        }
    }

    #[inline(always)]
    fn take<W: Lanes, E: HeadEntries, const V: usize>(
        &mut self,
        lanes: W,
        entries: &SideBySide<E, K, 1>,
        column: usize,
        done: usize,
    ) {
        for item in 0..K {
            let weight = lanes.splat(self.of_row[item]);
            let sums = &mut self.sums[item * self.stride + column..][..V * W::LANES];
            for v in 0..V {
                // SAFETY: a vector of the columns of a row.
                let entry = unsafe { entries.read(lanes, item, 0, column + v * W::LANES) };
                let sums = &mut sums[v * W::LANES..];
                let before = lanes.load(sums);
                let mut sum = lanes.mul_add(weight, entry, before);
                if done > 0 {
                    sum = lanes.join(done, before, sum);
                }
                lanes.store(sum, sums);
            }
        }
    }
}
