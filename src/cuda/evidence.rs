//! What a run leaves on the device of whether queries, keys and a given LSE belong together: sums of rows of fused maps or of
//! relevance, and the LSE of some rows. It is the plan's own, and looked at when somebody asks.

use std::ops::Range;

use super::address::{Address, Base};
use super::kernel::{self, AddResidual, PROBED_ROWS};
use super::pipeline::choice::Pipeline;
use crate::error::Result;
use crate::problem::{Mass, Problem};

/// The evidence of runs of at most so many items of a problem.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evidence {
    /// [`kernel::Mass`]: of each row of fused maps, `[layers, items, window_len]`, or of relevance after each layer,
    /// `[layers, items, start rows, blocks]`.
    pub masses: Option<Part>,
    /// Blocks of a row of relevance; none of fused maps.
    blocks: Option<usize>,
    /// [`kernel::Probe`], `[layers, items, heads, PROBED_ROWS]`.
    pub probes: Option<Part>,
}

/// One kind of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub base: Base,
    /// Of the problem's range.
    layers: usize,
    /// Of one layer.
    items: usize,
    /// Of one item.
    rows: usize,
    /// Of one row.
    row_bytes: usize,
}

impl Evidence {
    /// Of runs of at most `items` items of `problem` by `pipeline`, windows at most `window_len` tokens long.
    pub fn new(problem: &Problem, pipeline: Pipeline, items: usize, window_len: u32) -> Self {
        let layers = problem.layers().len();
        let part = |base, rows, row_bytes| Part {
            base,
            layers,
            items,
            rows,
            row_bytes,
        };
        let probed = problem.shape().heads * PROBED_ROWS;
        let blocks = match pipeline {
            Pipeline::ScoreRows(_) | Pipeline::ShortRows(_) => {
                Some(AddResidual::blocks(problem.shape().tokens))
            }
            Pipeline::ScoreStream(sets) => Some(sets.head_splits as usize),
            _ => None,
        };
        let rows = blocks.map_or(window_len as usize, |blocks| problem.start_rows() * blocks);
        let masses = part(Base::Masses, rows, size_of::<kernel::Mass>());
        let probes = part(Base::Probes, probed, size_of::<kernel::Probe>());
        Evidence {
            blocks,
            masses: problem.mass_tolerance().is_some().then_some(masses),
            probes: problem.probes_lse().then_some(probes),
        }
    }

    /// What there is of it, in the order in which [`check`](Evidence::check) takes it.
    pub fn parts(&self) -> impl Iterator<Item = Part> {
        self.masses.into_iter().chain(self.probes)
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> usize {
        self.parts().map(|part| part.bytes()).sum()
    }

    /// Checks what a run of `items` of `problem` left, the bytes of all parts one after the other.
    ///
    /// # Errors
    /// [`Error::Lse`](crate::Error::Lse), [`Error::Mass`](crate::Error::Mass), of the first layer that is computed.
    pub fn check(&self, problem: &Problem, items: Range<usize>, bytes: &[u8]) -> Result<()> {
        let (masses, probes) = bytes.split_at(self.masses.map_or(0, |part| part.bytes()));
        let range = problem.layers();
        let forward = problem.start_rows() == 0;
        for turn in 0..range.len() {
            let index = if forward {
                turn
            } else {
                range.len() - 1 - turn
            };
            let layer = range.start + index;
            for item in items.clone() {
                let place = (index, item - items.start);
                if let Some(part) = self.probes {
                    let window = problem.windows()[item].len;
                    let first = window.saturating_sub(PROBED_ROWS);
                    for (at, probe) in part.of_item(probes, place).enumerate() {
                        let kernel::Probe { expected, got } = probe;
                        let (head, row) = (at / PROBED_ROWS, first + at % PROBED_ROWS);
                        problem.check_lse(layer, item, head, row, expected, got)?;
                    }
                }
                if let Some(part) = self.masses {
                    let masses: Vec<kernel::Mass> = part.of_item(masses, place).collect();
                    let residual = problem.residual(layer);
                    let (a, b) = match self.blocks {
                        // It is in the relevance.
                        Some(_) => (1.0, 0.0),
                        None => (f64::from(residual.attention), f64::from(residual.identity)),
                    };
                    for (row, blocks) in masses.chunks_exact(self.blocks.unwrap_or(1)).enumerate() {
                        let total = |of: fn(&kernel::Mass) -> f32| {
                            blocks.iter().map(|mass| f64::from(of(mass))).sum::<f64>()
                        };
                        let expected = Mass {
                            sum: a * total(|mass| mass.expected) + b,
                            magnitude: a.abs() * total(|mass| mass.magnitude) + b.abs(),
                        };
                        let sum = a * total(|mass| mass.sum) + b;
                        problem.check_mass(layer, item, row, expected, sum)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Part {
    /// Bytes of it all.
    pub fn bytes(&self) -> usize {
        self.layers * self.layer_rows() * self.row_bytes
    }

    /// Where that of `layers` and `items` begins, and rows from one layer's to the next's.
    pub fn place(
        &self,
        problem: &Problem,
        layers: &Range<usize>,
        items: &Range<usize>,
    ) -> (Address, usize) {
        let layer = layers.start - problem.layers().start;
        let rows = layer * self.layer_rows() + items.start * self.rows;
        (
            Address::of(self.base) + rows * self.row_bytes,
            self.layer_rows(),
        )
    }

    fn layer_rows(&self) -> usize {
        self.items * self.rows
    }

    /// That of the `layer`-th layer and the `item`-th item.
    fn of_item<'b, T: bytemuck::Pod>(
        &self,
        bytes: &'b [u8],
        (layer, item): (usize, usize),
    ) -> impl Iterator<Item = T> + 'b {
        let first = (layer * self.layer_rows() + item * self.rows) * self.row_bytes;
        let of_item = &bytes[first..first + self.rows * self.row_bytes];
        of_item
            .chunks_exact(size_of::<T>())
            .map(bytemuck::pod_read_unaligned)
    }
}
