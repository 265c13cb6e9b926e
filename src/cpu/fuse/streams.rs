//! How rows of maps are read: as a few sequential streams side by side, each prefetched ahead of its loads, and past its end
//! on into what is read next.
#![allow(
    clippy::needless_range_loop,
    reason = "what iterators are made of is not always inlined, and outside an inner loop it lacks its instruction set"
)]

use std::ops::Range;

use crate::cpu::fuse::entries::{Addresses, HeadEntries};
use crate::cpu::fuse::{LINE, MapRows};
use crate::cpu::simd::{Lanes, Scalar, prefetch};

/// What becomes of the entries that are read: those of the first row of `H` heads and of `R` rows far apart of each.
pub(super) trait Sink<const H: usize, const R: usize> {
    /// Vectors of each stream that are taken at a time where they are no more than a cache line ...
    const VECTORS: usize = 4;
    /// ... and where they are more.
    const WIDE_VECTORS: usize = 1;

    /// Rows begin, the first of them row `row`.
    fn begin(&mut self, row: usize);

    /// Takes `V` vectors of each row, from `column` on, the first `done` columns of which were taken before.
    fn take<W: Lanes, E: HeadEntries, const V: usize>(
        &mut self,
        lanes: W,
        entries: &SideBySide<E, H, R>,
        column: usize,
        done: usize,
    );
}

/// Rows that are read side by side.
pub(super) struct SideBySide<E, const H: usize, const R: usize> {
    entries: E,
    /// Where the rows of each head begin.
    firsts: [[usize; R]; H],
}

impl<E: HeadEntries, const H: usize, const R: usize> SideBySide<E, H, R> {
    /// A vector of row `r` of head `h`.
    ///
    /// # Safety
    /// There are as many columns from `column` on.
    #[inline(always)]
    pub unsafe fn read<W: Lanes>(&self, lanes: W, h: usize, r: usize, column: usize) -> W::Vector {
        // SAFETY: all rows can be read, and the caller vouches for the columns.
        unsafe { self.entries.read(lanes, self.firsts[h][r] + column) }
    }

    /// What becomes of the folded entries of all heads.
    #[inline(always)]
    pub fn folded<W: Lanes>(&self, lanes: W, folded: W::Vector) -> W::Vector {
        self.entries.folded(lanes, folded)
    }
}

/// Rows that are read as streams, or a part of them.
pub(super) struct Part {
    pub heads: Heads,
    /// Rows of the first stream of each head.
    pub rows: Range<usize>,
    /// Rows from each stream of a head to the next.
    pub apart: usize,
    /// All rows of the first stream of each head, in one part or several.
    pub stream: Range<usize>,
    /// The row of the same heads that is read after it ends; none where that is the first one of the next heads.
    pub then: Option<usize>,
}

/// Rows of some heads, all of which can be read.
pub(super) struct Streams<'a, L, E> {
    pub lanes: L,
    pub entries: E,
    pub from: MapRows<'a>,
}

impl<'a, L: Lanes, E: HeadEntries> Streams<'a, L, E> {
    /// All rows of all heads of `from`, of which there are some.
    ///
    /// # Panics
    /// Where they are not among `entries`.
    #[inline(always)]
    pub fn new(lanes: L, entries: E, from: MapRows<'a>) -> Self {
        let last = from.entry(from.heads - 1, from.rows - 1);
        assert!(last + from.len <= entries.len());
        Streams {
            lanes,
            entries,
            from,
        }
    }

    /// Hands the rows of `part` to `sink`.
    ///
    /// # Panics
    /// Where there are not so many heads and rows.
    #[inline(always)]
    pub fn read<S: Sink<H, R>, const H: usize, const R: usize>(&self, part: &Part, sink: &mut S) {
        let from = self.from;
        assert!(
            part.heads.at(H - 1) < from.heads && part.rows.end + (R - 1) * part.apart <= from.rows
        );
        let end = from.entry(part.heads.first, part.stream.end);
        let then = match part.then {
            Some(row) => Some(from.entry(part.heads.first, row)),
            None => part.heads.then.map(|head| from.entry(head, 0)),
        };
        let ahead = self.ahead(H * R * E::OPERANDS, part.stream.len(), end, then);
        for row in part.rows.clone() {
            let mut firsts = [[0; R]; H];
            for h in 0..H {
                for r in 0..R {
                    firsts[h][r] = from.entry(part.heads.at(h), row + r * part.apart);
                }
            }
            let rows = SideBySide {
                entries: self.entries,
                firsts,
            };
            sink.begin(row);
            self.columns(&rows, from.present(row), &ahead, sink);
        }
    }

    /// What is prefetched while so many streams of `rows` rows are read, the first of which ends at the entry `end`, and after
    /// them what begins at the entry `then`, or what is read after all rows.
    #[inline(always)]
    pub fn ahead(&self, streams: usize, rows: usize, end: usize, then: Option<usize>) -> Ahead {
        let from = self.from;
        let bytes = from.ahead_bytes::<E>(streams, rows);
        let (ends, before) = (self.entries.addresses(end), self.entries.addresses(0));
        let then = match then {
            Some(entry) => Some(self.entries.addresses(entry)),
            None => from.next,
        };
        // What is read next lies so much further on than what follows these streams in memory.
        let mut after = before;
        for (after, (then, end)) in after.iter_mut().zip(then.unwrap_or(ends).iter().zip(ends)) {
            *after = after.wrapping_add(then.addr().wrapping_sub(end.addr()));
        }
        Ahead {
            until: end.saturating_sub(bytes / E::BYTES),
            before: before.map(|address| address.wrapping_add(bytes)),
            after: after.map(|address| address.wrapping_add(bytes)),
        }
    }

    /// The first `len` columns of rows.
    #[inline(always)]
    fn columns<S: Sink<H, R>, const H: usize, const R: usize>(
        &self,
        rows: &SideBySide<E, H, R>,
        len: usize,
        ahead: &Ahead,
        sink: &mut S,
    ) {
        let lanes = self.lanes;
        let is_at_once = |vectors: usize| match vectors * L::LANES * E::BYTES <= LINE {
            true => vectors <= S::VECTORS,
            false => vectors <= S::WIDE_VECTORS,
        };
        let mut column = 0;
        while is_at_once(4) && column + 4 * L::LANES <= len {
            step::<L, E, S, H, R, 4>(lanes, rows, column, 0, ahead, sink);
            column += 4 * L::LANES;
        }
        while is_at_once(2) && column + 2 * L::LANES <= len {
            step::<L, E, S, H, R, 2>(lanes, rows, column, 0, ahead, sink);
            column += 2 * L::LANES;
        }
        while column + L::LANES <= len {
            step::<L, E, S, H, R, 1>(lanes, rows, column, 0, ahead, sink);
            column += L::LANES;
        }
        if column < len && len >= L::LANES {
            // The last vector overlaps the one before.
            let last = len - L::LANES;
            step::<L, E, S, H, R, 1>(lanes, rows, last, column - last, ahead, sink);
            return;
        }
        for column in column..len {
            step::<Scalar, E, S, H, R, 1>(Scalar, rows, column, 0, ahead, sink);
        }
    }
}

/// `V` vectors of rows, from `column` on, ahead of which as much is prefetched.
#[inline(always)]
fn step<W: Lanes, E: HeadEntries, S: Sink<H, R>, const H: usize, const R: usize, const V: usize>(
    lanes: W,
    rows: &SideBySide<E, H, R>,
    column: usize,
    done: usize,
    ahead: &Ahead,
    sink: &mut S,
) {
    let (first, lines) = (
        rows.firsts[0][0] + column,
        (V * W::LANES * E::BYTES).div_ceil(LINE),
    );
    for h in 0..H {
        for r in 0..R {
            ahead.prefetch::<E>(first, rows.firsts[h][r] + column, lines);
        }
    }
    sink.take::<W, E, V>(lanes, rows, column, done);
}

/// Where, from the address of the first entry of all on, what is prefetched lies beside what is read.
pub(super) struct Ahead {
    /// Up to this entry of the first stream ...
    until: usize,
    /// ... a few entries on, ...
    before: Addresses,
    /// ... and from there on as many entries on in what is read next.
    after: Addresses,
}

impl Ahead {
    /// Prefetches so many lines ahead of the entry `at`, while the first stream is read at `first`.
    #[inline(always)]
    pub fn prefetch<E: HeadEntries>(&self, first: usize, at: usize, lines: usize) {
        let ahead = match first < self.until {
            true => self.before,
            false => self.after,
        };
        for address in ahead.into_iter().take(E::OPERANDS) {
            for line in 0..lines {
                prefetch(address.wrapping_add(at * E::BYTES + line * LINE));
            }
        }
    }
}

impl MapRows<'_> {
    /// How far ahead of its loads each of so many streams of `rows` rows is prefetched, in bytes.
    #[inline(always)]
    fn ahead_bytes<E: HeadEntries>(&self, streams: usize, rows: usize) -> usize {
        let stream_bytes = rows * self.row_stride * E::BYTES;
        self.prefetch.bytes(streams, E::BYTES).min(stream_bytes)
    }

    /// Where the first entry of a row of a head lies.
    #[inline(always)]
    pub(super) fn entry(&self, head: usize, row: usize) -> usize {
        head * self.head_stride + row * self.row_stride
    }
}

/// Heads that are read side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heads {
    pub first: usize,
    pub count: usize,
    /// Heads from each to the next.
    pub apart: usize,
    /// The first one of those that are read after these.
    pub then: Option<usize>,
}

impl Heads {
    /// All of `heads` heads, of so many arrays each: few side by side at a time. Where nothing asks for their order, each
    /// stream goes on in the head after: heads adjoin in memory, and so it is longer.
    #[inline(always)]
    pub fn groups(operands: usize, heads: usize, in_order: bool) -> impl Iterator<Item = Heads> {
        let most = match (operands, heads) {
            (1, 5) => 5,
            (1, _) => 4,
            (_, 3) => 3,
            _ => 2,
        };
        let groups = heads.div_ceil(most);
        let (count, larger) = (heads / groups, heads % groups);
        let first = move |group: usize| match in_order {
            true => group * count + group.min(larger),
            false => group,
        };
        (0..groups).map(move |group| Heads {
            first: first(group),
            count: count + usize::from(group < larger),
            apart: if in_order { 1 } else { groups },
            then: (group + 1 < groups).then(|| first(group + 1)),
        })
    }

    /// Head `h` of these.
    #[inline(always)]
    pub fn at(&self, h: usize) -> usize {
        self.first + h * self.apart
    }
}
