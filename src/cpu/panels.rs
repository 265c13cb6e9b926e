//! An item's rollout as product form keeps it: cut into panels of columns, which never need each other.
//!
//! A panel is row-major by itself, `[tokens, columns]`, so that the GEMM crate can read it where it lies, or packs it with
//! few pages in use.

use std::ops::Range;

use crate::cpu::gemm::{self, MatrixMut, MatrixRef};
use crate::cpu::simd::MOST_LANES;
use crate::cpu::team::{Member, Shared};
use crate::error::Result;
use crate::layout::{Window, product as checked};

/// Columns of a panel at most: twice what the GEMM crate's widest kernel takes at a time, and of hundreds of tokens few
/// enough to stay in a second-level cache.
const MOST_COLUMNS: usize = 128;

/// Columns of a panel are a multiple of this; zeros fill up the last one.
const STEP: usize = MOST_LANES;

/// Elements of a rollout of `len` tokens, or [`Error::SizeOverflow`](crate::Error::SizeOverflow).
pub(crate) fn elements(len: usize) -> Result<usize> {
    checked("workspace", &[len, len.div_ceil(STEP), STEP])
}

/// Tiles that a member gets to share the work evenly, where there are as many; of many members each tile is lower.
const TILES_PER_MEMBER: usize = 4;

/// Rows of a tile at least: two of those that the GEMM crate's kernels take at a time.
const LEAST_ROWS: usize = 12;

/// How one item's rollout is cut: into panels of columns, and these into tiles, of some rows each, which are made one by
/// one.
#[derive(Clone, Copy)]
pub(crate) struct Panels {
    len: usize,
    /// Entries right of the diagonal are 0.
    causal: bool,
    count: usize,
    /// Rows of a tile.
    rows: usize,
}

impl Panels {
    /// The panels of `len` tokens, which may be none, in tiles that `members` can share.
    pub fn new(len: usize, causal: bool, members: usize) -> Self {
        let count = len.div_ceil(MOST_COLUMNS);
        let mut rows = gemm::rows_at_once().min(len.max(1));
        while count * len.div_ceil(rows) < TILES_PER_MEMBER * members && rows > LEAST_ROWS {
            rows = rows.div_ceil(2);
        }
        Panels {
            len,
            causal,
            count,
            rows,
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// One of them.
    pub fn panel(&self, index: usize) -> Panel {
        let first = |index: usize| index * self.len.div_ceil(STEP) / self.count * STEP;
        let (start, end) = (first(index), first(index + 1));
        Panel {
            len: self.len,
            columns: start..end.min(self.len),
            stride: end - start,
            first: start * self.len,
        }
    }

    /// Writes the rows `rows`, `[rows, len]` from row `first` on, to their places in `to`.
    ///
    /// # Safety
    /// No other member reads or writes these rows of `to` before the next barrier.
    pub unsafe fn copy_rows(&self, first: usize, rows: &[f32], to: Rollout<'_>) {
        for panel in (0..self.count).map(|index| self.panel(index)) {
            let range = panel.range(&(first..first + rows.len() / self.len));
            // SAFETY: as the caller vouches.
            let to = unsafe { to.0.get_mut(range) };
            for (row, to) in rows
                .chunks_exact(self.len)
                .zip(to.chunks_exact_mut(panel.stride))
            {
                let (to, padding) = to.split_at_mut(panel.columns.len());
                to.copy_from_slice(&row[panel.columns.clone()]);
                padding.fill(0.0);
            }
        }
    }

    /// The tiles that fall to a member: as much work as to every other.
    pub fn tiles<'a>(&self, member: Member<'a>) -> impl Iterator<Item = Tile> + use<'a> {
        let panels = *self;
        let tiles = move || {
            (0..panels.count).flat_map(move |index| {
                (0..panels.len).step_by(panels.rows).map(move |first| Tile {
                    panel: panels.panel(index),
                    rows: first..panels.len.min(first + panels.rows),
                    causal: panels.causal,
                })
            })
        };
        let total: usize = tiles().map(|tile| tile.work()).sum();
        let mut before = 0;
        tiles().filter(move |tile| {
            let middle = 2 * before + tile.work();
            before += tile.work();
            middle * member.members() / (2 * total) == member.index
        })
    }
}

/// Where a panel lies.
pub(crate) struct Panel {
    len: usize,
    /// The columns of the rollout that it holds.
    columns: Range<usize>,
    /// Elements from row to row.
    stride: usize,
    /// Index in the rollout of its first element.
    first: usize,
}

/// Some rows of a panel.
pub(crate) struct Tile {
    panel: Panel,
    rows: Range<usize>,
    causal: bool,
}

/// Rollouts of as many elements each.
#[derive(Clone, Copy)]
pub(crate) struct Rollouts<'a> {
    buffer: Shared<'a>,
    elements: usize,
}

impl<'a> Rollouts<'a> {
    /// `buffer` as `count` rollouts.
    pub fn new(buffer: Shared<'a>, count: usize) -> Self {
        Rollouts {
            buffer,
            elements: buffer.len() / count.max(1),
        }
    }

    /// One of them.
    pub fn rollout(&self, index: usize) -> Rollout<'a> {
        let first = index * self.elements;
        Rollout(self.buffer.slice(first..first + self.elements))
    }
}

/// One item's rollout, in panels.
#[derive(Clone, Copy)]
pub(crate) struct Rollout<'a>(Shared<'a>);

/// An item's window in a matrix `[tokens, tokens]` of an output.
#[derive(Clone, Copy)]
pub(crate) struct Slab<'a> {
    pub buffer: Shared<'a>,
    /// Index of the window's first element.
    pub first: usize,
    /// Elements from row to row.
    pub stride: usize,
}

impl Panel {
    /// Where some rows of it lie in a rollout.
    fn range(&self, rows: &Range<usize>) -> Range<usize> {
        self.first + rows.start * self.stride..self.first + rows.end * self.stride
    }

    /// Writes the row `weights rollout` into its columns of row `row` of `slab`.
    ///
    /// # Safety
    /// No member writes `rollout`, and no other reads or writes these columns of `slab`, before the next barrier.
    pub unsafe fn weigh(&self, weights: &[f32], rollout: Rollout<'_>, slab: Slab<'_>, row: usize) {
        let columns = self.columns.len();
        // SAFETY: as the caller vouches.
        let (rollout, to) = unsafe {
            (
                rollout.0.get(self.range(&(0..self.len))),
                slab.row(row, &self.columns),
            )
        };
        gemm::multiply(
            MatrixMut::new(to, columns, 1, columns),
            false,
            MatrixRef::new(weights, self.len, 1, self.len),
            MatrixRef::new(rollout, self.stride, self.len, columns),
        );
    }
}

/// A tile is made by one member alone.
impl Tile {
    /// The terms of the sums that are not 0: of causal maps, both factors are 0 right of the diagonal.
    fn terms(&self) -> Range<usize> {
        match self.causal {
            true => self.panel.columns.start..self.rows.end,
            false => 0..self.panel.len,
        }
    }

    /// What making it takes, in products; never 0.
    fn work(&self) -> usize {
        self.rows.len() * self.panel.stride * (1 + self.terms().len())
    }

    /// `to = ahat before`, where `ahat` is `[len, len]`.
    ///
    /// # Safety
    /// No member writes `before`, and no other reads or writes this tile of `to`, before the next barrier.
    pub unsafe fn multiply(&self, ahat: &[f32], before: Rollout<'_>, to: Rollout<'_>) {
        let Panel { len, stride, .. } = self.panel;
        let (rows, terms) = (&self.rows, self.terms());
        // SAFETY: as the caller vouches.
        let to = unsafe { to.0.get_mut(self.panel.range(rows)) };
        if terms.is_empty() {
            to.fill(0.0);
            return;
        }
        // SAFETY: as the caller vouches.
        let right = unsafe { before.0.get(self.panel.range(&terms)) };
        let left = &ahat[rows.start * len + terms.start..];
        gemm::multiply(
            MatrixMut::new(to, stride, rows.len(), stride),
            false,
            MatrixRef::new(left, len, rows.len(), terms.len()),
            MatrixRef::new(right, stride, terms.len(), stride),
        );
    }

    /// Writes this tile of `rollout` to its place in `slab`.
    ///
    /// # Safety
    /// No other member writes this tile of `rollout`, nor reads or writes that of `slab`, before the next barrier.
    pub unsafe fn write(&self, rollout: Rollout<'_>, slab: Slab<'_>) {
        let Panel {
            stride, columns, ..
        } = &self.panel;
        // SAFETY: as the caller vouches.
        let rollout = unsafe { rollout.0.get(self.panel.range(&self.rows)) };
        for (i, row) in self.rows.clone().zip(rollout.chunks_exact(*stride)) {
            // SAFETY: as the caller vouches.
            unsafe { slab.row(i, columns) }.copy_from_slice(&row[..columns.len()]);
        }
    }
}

impl<'a> Slab<'a> {
    /// The window of the matrix `index` of `buffer`, `[matrices, tokens, tokens]`.
    pub fn of_matrix(buffer: Shared<'a>, index: usize, tokens: usize, window: Window) -> Self {
        Slab {
            buffer,
            first: index * tokens * tokens + window.start * (tokens + 1),
            stride: tokens,
        }
    }

    /// Writes the rows `rows`, `[rows, len]` from row `first` on, to their places.
    ///
    /// # Safety
    /// No other member reads or writes them before the next barrier.
    pub unsafe fn copy_rows(&self, first: usize, rows: &[f32], len: usize) {
        for (i, row) in rows.chunks_exact(len).enumerate() {
            // SAFETY: as the caller vouches.
            unsafe { self.row(first + i, &(0..len)) }.copy_from_slice(row);
        }
    }

    /// The columns `columns` of a row.
    ///
    /// # Safety
    /// No other member reads or writes them until they are gone and a barrier has been passed.
    unsafe fn row(&self, row: usize, columns: &Range<usize>) -> &'a mut [f32] {
        let first = self.first + row * self.stride;
        // SAFETY: as the caller vouches.
        unsafe {
            self.buffer
                .get_mut(first + columns.start..first + columns.end)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::team::Team;
    use std::num::NonZeroUsize;
    use std::sync::Mutex;

    #[test]
    fn tiles_cover_the_matrix_once_and_share_the_work() {
        for (len, causal) in [0, 1, 16, 17, 128, 197, 577]
            .into_iter()
            .flat_map(|len| [(len, false), (len, true)])
        {
            for members in [1, 2, 3, 8] {
                let made = Mutex::new((vec![0; len * len], Vec::new(), 0));
                Team::new(NonZeroUsize::new(members))
                    .unwrap()
                    .run(|member| {
                        let tiles: Vec<_> =
                            Panels::new(len, causal, members).tiles(member).collect();
                        let mut made = made.lock().unwrap();
                        made.1.push(tiles.iter().map(Tile::work).sum::<usize>());
                        for tile in &tiles {
                            made.2 = made.2.max(tile.work());
                            for i in tile.rows.clone() {
                                for j in tile.panel.columns.clone() {
                                    made.0[i * len + j] += 1;
                                }
                            }
                        }
                    });
                let (times, work, largest) = made.into_inner().unwrap();
                assert!(times.iter().all(|&times| times == 1), "{len}, {members}");
                let most = work.iter().sum::<usize>() / members + largest;
                assert!(
                    work.iter().all(|&work| work <= most),
                    "{len}, {members} members: {work:?}"
                );
            }
        }
    }
}
