//! How row form cuts the rows of an item, and the memory that it computes them in.

use std::ops::Range;

use crate::cpu::discard;
use crate::cpu::engine::Scratch;
use crate::cpu::fuse::{ABREAST, CHUNK_ELEMENTS, SMALL_BYTES};
use crate::cpu::memory::{LINE, Parts};
use crate::cpu::scores;
use crate::cpu::team::Shared;
use crate::error::Result;
use crate::layout::product as checked;
use crate::problem::Problem;

/// Elements of a block at least.
const BLOCK_ELEMENTS: usize = 4096;

/// Rows of a block, over all heads: many enough that adding up the parts costs little ...
const BLOCK_HEAD_ROWS: usize = 256;

/// ... and rows, where there are many heads: few enough that a team finds work for all ...
const BLOCK_ROWS: usize = 16;

/// ... or, where there are few, in as many blocks, so long as these have so many rows.
const FEW_HEADS_BLOCKS: usize = 8;
const FEW_HEADS_BLOCK_ROWS: usize = 256;

/// Blocks of an item at most, so that the parts of a large one take little memory.
const MOST_BLOCKS: usize = 64;

/// Blocks of one start row whose rows are read in one go: the more, the longer what is read of each head, and the more
/// sums there are.
const BLOCKS_AT_ONCE: usize = 32;

/// More start rows than this make a matrix product of the vector-matrix step ...
pub(super) const GEMM_START_ROWS: usize = 16;

/// ... which wants deeper blocks, of one chunk each.
const GEMM_BLOCK_ROWS: usize = 128;

/// Whether rows are computed, many at a time.
fn are_computed(problem: &Problem) -> bool {
    problem.queries_keys().is_some()
}

/// Rows of a block.
fn block_rows(problem: &Problem, len: usize) -> usize {
    let rows = match problem.start_rows() {
        0..=GEMM_START_ROWS if are_computed(problem) => {
            len.div_ceil(MOST_BLOCKS).next_multiple_of(scores::ROWS)
        }
        0..=GEMM_START_ROWS => streamed_rows(problem, len)
            .max(BLOCK_ELEMENTS / len)
            .max(len.div_ceil(MOST_BLOCKS)),
        _ => GEMM_BLOCK_ROWS,
    };
    rows.min(len)
}

/// Rows of a block that is read in long streams; for longer windows not fewer.
fn streamed_rows(problem: &Problem, len: usize) -> usize {
    (BLOCK_HEAD_ROWS / problem.shape().heads)
        .min((len / FEW_HEADS_BLOCKS).max(FEW_HEADS_BLOCK_ROWS))
        .max(BLOCK_ROWS)
}

/// Blocks that are taken at once.
pub(super) fn blocks_at_once(start_rows: usize) -> usize {
    match start_rows {
        1 => BLOCKS_AT_ONCE,
        _ => 1,
    }
}

/// Rows of a chunk.
pub(crate) fn chunk_rows(problem: &Problem, start_rows: usize, len: usize) -> usize {
    let rows = match start_rows {
        0..=GEMM_START_ROWS if are_computed(problem) => scores::ROWS,
        0..=GEMM_START_ROWS => CHUNK_ELEMENTS / len,
        _ => GEMM_BLOCK_ROWS,
    };
    rows.clamp(1, len)
}

/// Rows of a block at most, in windows of at most `len` tokens.
fn most_block_rows(problem: &Problem, len: usize) -> usize {
    let rows = match problem.start_rows() {
        0..=GEMM_START_ROWS if are_computed(problem) => block_rows(problem, len),
        // So many elements have as many rows as columns at most.
        0..=GEMM_START_ROWS => streamed_rows(problem, len)
            .max(BLOCK_ELEMENTS.isqrt())
            .max(len.div_ceil(MOST_BLOCKS)),
        _ => GEMM_BLOCK_ROWS,
    };
    rows.min(len)
}

/// Blocks at most, in windows of at most `len` tokens.
fn most_blocks(start_rows: usize, len: usize) -> usize {
    match start_rows {
        0..=GEMM_START_ROWS => len.div_ceil(BLOCK_ROWS).min(MOST_BLOCKS),
        _ => len.div_ceil(GEMM_BLOCK_ROWS),
    }
}

/// Elements of a chunk at most, in windows of at most `len` tokens.
pub(crate) fn most_chunk_elements(
    problem: &Problem,
    start_rows: usize,
    len: usize,
) -> Result<usize> {
    match start_rows {
        0..=GEMM_START_ROWS if are_computed(problem) => {
            checked("workspace", &[scores::ROWS.min(len), len])
        }
        0..=GEMM_START_ROWS => Ok(CHUNK_ELEMENTS.max(len).min(len.saturating_mul(len))),
        _ => checked("workspace", &[GEMM_BLOCK_ROWS.min(len), len]),
    }
}

/// Floats from the sums of an item to those of the next where they are read side by side: all begin with a cache line.
pub(super) fn sums_stride(len: usize) -> usize {
    len.checked_next_multiple_of(LINE).unwrap_or(usize::MAX)
}

/// How the rows of an item are cut: alike for all items of as many valid tokens, of which there are some.
#[derive(Default)]
pub(super) struct Cut {
    pub start_rows: usize,
    pub len: usize,
    pub block_rows: usize,
    pub blocks: usize,
}

impl Cut {
    pub fn new(problem: &Problem, len: usize) -> Self {
        let block_rows = block_rows(problem, len);
        Cut {
            start_rows: problem.start_rows(),
            len,
            block_rows,
            blocks: len.div_ceil(block_rows),
        }
    }

    /// The rows of the blocks `blocks`.
    pub fn rows(&self, blocks: Range<usize>) -> Range<usize> {
        blocks.start * self.block_rows..self.len.min(blocks.end * self.block_rows)
    }
}

/// What row form computes in: lengths, for the largest item.
pub(crate) struct RowsScratch {
    /// Each member's own: relevance, the new relevance, `[start rows, tokens]` each, and parts of it of the blocks that are
    /// taken at once, `[blocks, start rows, tokens]`, or sums of the items that are read side by side; one chunk of fused rows `[chunk rows, tokens]`; the weights of these
    /// blocks' rows, or of these items', `[start rows, rows]`, and a sum for each row of one; the whole fused map `[tokens, tokens]` where something is discarded; candidates to select from.
    own: Parts<7>,
    /// The team's: parts of the new relevance of two layers, `[2, blocks, start rows, tokens]`, and the whole fused map.
    shared: Parts<2>,
}

/// A member's own memory, cut up.
pub(super) struct RowsBuffers<'a> {
    pub(super) relevance: &'a mut [f32],
    pub(super) parts: &'a mut [f32],
    pub(super) next: &'a mut [f32],
    pub(super) fused: &'a mut [f32],
    pub(super) weights: &'a mut [f32],
    pub(super) map: &'a mut [f32],
    pub(super) candidates: &'a mut [f32],
}

/// What the members that compute one item write together.
#[derive(Clone, Copy)]
pub(super) struct RowsShared<'a> {
    pub(super) parts: Shared<'a>,
    pub(super) map: Shared<'a>,
}

impl RowsScratch {
    /// What the largest item of `problem` takes.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`](crate::Error::SizeOverflow).
    pub fn size(problem: &Problem) -> Result<Self> {
        let (start_rows, len) = (problem.start_rows(), problem.longest_window());
        let sized = |extents: &[usize]| checked("workspace", extents);
        let relevance = sized(&[start_rows, len])?;
        let fused = most_chunk_elements(problem, start_rows, len)?;
        let at_once = blocks_at_once(start_rows).min(most_blocks(start_rows, len));
        let at_once_rows = (at_once * most_block_rows(problem, len)).min(len);
        let item = [
            problem.shape().heads,
            len,
            len,
            problem.dtype().size_bytes(),
        ];
        let abreast = match checked("maps", &item).is_ok_and(|bytes| bytes <= SMALL_BYTES) {
            true => most_blocks(1, len) * ABREAST * sums_stride(len),
            false => 0,
        };
        let own_parts = sized(&[at_once, start_rows, len])?.max(abreast);
        let weights = sized(&[start_rows + 1, at_once_rows])?.max(abreast);
        let parts = sized(&[2, most_blocks(start_rows, len), start_rows, len])?;
        let (map, candidates) = match problem.config().discard {
            Some(_) => (sized(&[len, len])?, discard::scratch(len)),
            None => (0, 0),
        };
        Ok(RowsScratch {
            own: Parts([
                relevance, relevance, own_parts, fused, weights, map, candidates,
            ]),
            shared: Parts([parts, map]),
        })
    }

    pub(super) fn carve<'a>(&self, own: &'a mut [f32]) -> RowsBuffers<'a> {
        let [relevance, next, parts, fused, weights, map, candidates] = self.own.carve(own);
        RowsBuffers {
            relevance,
            parts,
            next,
            fused,
            weights,
            map,
            candidates,
        }
    }

    pub(super) fn carve_shared<'a>(&self, team: Shared<'a>) -> RowsShared<'a> {
        let [parts, map] = team.carve(self.shared);
        RowsShared { parts, map }
    }
}

impl Scratch for RowsScratch {
    fn member_floats(&self) -> usize {
        self.own.floats()
    }

    fn alone_floats(&self) -> usize {
        0
    }

    fn team_floats(&self) -> usize {
        self.shared.floats()
    }

    fn multiplies(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Output, RolloutConfig, StartRows};
    use crate::dtype::DType;
    use crate::layout::Shape;

    #[test]
    fn scratch_of_the_longest_window_is_enough_for_all() {
        for (heads, start_rows) in [(1, 1), (12, 16), (80, 3), (4, 17), (1, 40)] {
            let shape = Shape {
                layers: 1,
                batch: 1,
                heads,
                tokens: 9000,
            };
            let rows = StartRows::Rows((0..start_rows).collect());
            let config = RolloutConfig {
                output: Output::Rows(rows),
                ..RolloutConfig::default()
            };
            let problem = Problem::new(shape, DType::F32, config).unwrap();
            let mut most = [0; 3];
            for len in 1..=shape.tokens {
                most[0] = most[0].max(block_rows(&problem, len));
                most[1] = most[1].max(Cut::new(&problem, len).blocks);
                most[2] = most[2].max(chunk_rows(&problem, start_rows, len) * len);
                assert!(most[0] <= most_block_rows(&problem, len));
                assert!(most[1] <= most_blocks(start_rows, len));
                assert!(most[2] <= most_chunk_elements(&problem, start_rows, len).unwrap());
            }
        }
    }
}
