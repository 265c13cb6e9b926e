//! `score_stream`: one row of relevance times all layers of queries and keys, in one launch.

use super::scores::{
    MAX_SCORE_LAYERS, ROOM, STAYING_THREADS, ScoreOperands, Scores, TILE, block_threads, chunks,
    example, score_variant, staying_block, staying_blocks,
};
use super::{Fusion, Kernel, Matrices};
use crate::config::{Output, StartRows};
use crate::cuda::address::{Address, Base};
use crate::cuda::launch::{Geometry, Launch};
use crate::cuda::parameters::params;
use crate::cuda::variant::Variant;
use crate::dtype::DType;
use crate::error::Result;
use crate::problem::Problem;
use crate::queries_keys::{Lse, QueriesKeys};

/// Most panels of keys that stay with a block.
const PANELS: u32 = 7;
/// Longest windows: two rows of relevance are in shared memory.
const MAX_TOKENS: u32 = 4096;

params! {
    /// Parameters of `score_stream`.
    ScoreStreamParams {
        start: Address,
        start_stride_batch: i64,
        out: Address,
        words: Address,
        exchanges: Address,
        masses: Address,
        masses_layer: i64,
        sets: u32,
        head_splits: u32,
        key_blocks: u32,
        out_stride: u32,
        out_windowed: u32,
        reserved: u32,
        scores: Scores,
    }
}

/// The kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoreStream {
    /// Element type of queries and keys, of two bytes.
    pub dtype: DType,
    /// How heads are summed.
    pub fusion: Fusion,
}

/// How `score_stream` is launched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoreSets {
    /// The kernel.
    pub kernel: ScoreStream,
    /// Sets of blocks, each of which takes an item at a time.
    pub sets: u32,
    /// Blocks of a set that share keys, and divide the heads.
    pub head_splits: u32,
    /// Blocks of a set that divide the keys.
    pub key_blocks: u32,
}

/// What a launch works on, beside queries and keys.
#[derive(Clone, Copy, Debug)]
pub struct StreamedRow {
    /// Before the layers.
    pub start: Matrices,
    /// Where the row goes.
    pub out: Address,
    /// The output of all layers: of all tokens.
    pub last: bool,
    /// Where sums go, if anything is known of them, and how many lie from one layer's to the next's.
    pub masses: Option<(Address, usize)>,
}

/// All there are.
pub(super) fn all() -> impl IntoIterator<Item = ScoreStream> {
    let dtypes = DType::ALL.into_iter().filter(|&dtype| dtype != DType::F32);
    dtypes.flat_map(|dtype| {
        let kernel = move |fusion| ScoreStream { dtype, fusion };
        let fusions = Fusion::ALL.into_iter().filter(|fusion| fusion.sums());
        fusions.map(kernel)
    })
}

impl ScoreStream {
    /// The kernel for `problem` with windows of at most `window_len` tokens, if there is one: of one row, of heads that are
    /// summed, and of queries and keys of which a warp holds 32.
    pub fn of(problem: &Problem, window_len: u32) -> Option<Self> {
        let (dtype, fusion) = (problem.dtype(), Fusion::from(&problem.config().head_fusion));
        let takes = problem.start_rows() == 1
            && fusion.sums()
            && dtype != DType::F32
            && chunks(problem.queries_keys()?, dtype) == 1
            && window_len <= MAX_TOKENS;
        takes.then_some(ScoreStream { dtype, fusion })
    }

    /// Blocks that divide the keys of a window.
    pub fn key_blocks(&self, source: &QueriesKeys, window_len: u32) -> u32 {
        let (warps, _) = self.block(source, window_len);
        window_len.div_ceil(TILE * warps).max(1)
    }

    /// Blocks that share a multiprocessor with so much shared memory.
    pub fn resident(&self, source: &QueriesKeys, window_len: u32, shared_bytes: usize) -> u32 {
        let (_, dynamic) = self.block(source, window_len);
        let bytes = dynamic + self.variant().static_shared_bytes + BLOCK_SHARED_BYTES;
        (shared_bytes as u32 / bytes).min(staying_blocks(self.dtype))
    }

    /// Warps of a block that take tiles, and its dynamic shared memory.
    fn block(&self, source: &QueriesKeys, window_len: u32) -> (u32, u32) {
        let (warps, panels) = staying_block(source, self.dtype, window_len, PANELS);
        (warps, panels + 2 * size_of::<f32>() as u32 * window_len)
    }
}

/// Shared memory that the device takes for each block.
const BLOCK_SHARED_BYTES: u32 = 1 << 10;

impl ScoreSets {
    /// Blocks of a set.
    pub fn blocks(&self) -> u32 {
        self.head_splits * self.key_blocks
    }

    /// The row of `streamed` after the layers of `operands`.
    pub fn launch(&self, operands: &ScoreOperands<'_>, streamed: &StreamedRow) -> Launch {
        let (problem, window_len) = (operands.problem, operands.window_len);
        let (warps, shared_bytes) = self.kernel.block(operands.source, window_len);
        let sets = self.sets.min(operands.items.len() as u32);
        let (masses, masses_layer) = streamed.masses.unwrap_or((Address::NULL, 0));
        let words = Address::of(Base::Exchange);
        let params = ScoreStreamParams {
            start: streamed.start.base,
            start_stride_batch: streamed.start.stride_batch,
            out: streamed.out,
            words,
            exchanges: words + size_of::<u64>() * self.words(window_len),
            masses,
            masses_layer: masses_layer as i64,
            sets,
            head_splits: self.head_splits,
            key_blocks: self.key_blocks,
            out_stride: match streamed.last {
                true => problem.shape().tokens as u32,
                false => window_len,
            },
            out_windowed: streamed.last.into(),
            reserved: 0,
            scores: Scores::new(operands).of_masses(problem),
        };
        let unused = params.scores.unused_bytes();
        let geometry = Geometry {
            shared_bytes,
            cooperative: true,
            ..Geometry::new([sets, self.blocks(), 1], block_threads(warps))
        };
        Launch::new(self.kernel.variant(), geometry, &params, unused)
    }

    /// Words of all sets.
    fn words(&self, window_len: u32) -> usize {
        2 * self.sets as usize * window_len as usize * self.head_splits as usize
    }

    /// Bytes of the words, and of the numbers of exchanges behind them, all 0 at first.
    pub fn exchange_bytes(&self, window_len: u32) -> usize {
        let blocks = self.sets as usize * self.blocks() as usize;
        size_of::<u64>() * self.words(window_len) + size_of::<u32>() * blocks
    }
}

impl Kernel for ScoreStream {
    fn variant(&self) -> Variant {
        let (threads, blocks) = (STAYING_THREADS, staying_blocks(self.dtype));
        let fusion = Some(self.fusion);
        Variant {
            // Its blocks wait for each other: there is no group of it, whose blocks need not run together.
            grouped_blocks_per_multiprocessor: 0,
            // What is known of queries and of steps, and what a block has of an item.
            static_shared_bytes: ROOM * (8 * TILE + 16) + 40 + 8 * (MAX_SCORE_LAYERS as u32 + 1),
            ..score_variant("score_stream", self.dtype, fusion, threads, blocks)
        }
    }

    fn example(&self, layers: usize, tokens: usize) -> Result<Problem> {
        let (lse, rows) = (Lse::Recomputed, Output::Rows(StartRows::Last));
        example(layers, tokens, 32, self.dtype, self.fusion, lse, rows)
    }
}
