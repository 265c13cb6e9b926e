//! The queries and keys of several layers as kernels read them: the twin of `kernels/scores.cuh`.

use std::f64::consts::LOG2_E;
use std::ops::Range;

use bytemuck::Zeroable;

use super::parts::WARP;
use super::{Fusion, Window};
use crate::config::{HeadFusion, Output, Residual, ResidualWeights, RolloutConfig};
use crate::cuda::address::{Address, Base};
use crate::cuda::parameters::params;
use crate::cuda::variant::{Variant, symbol};
use crate::dtype::DType;
use crate::error::Result;
use crate::layout::Shape;
use crate::problem::Problem;
use crate::queries_keys::{Lse, QueriesKeys};

/// Layers of queries and keys one launch can take.
pub const MAX_SCORE_LAYERS: usize = 32;

/// Queries, and keys, of a warp.
pub(super) const TILE: u32 = 32;
/// Chunks of the tokens that pass by a block for which there is room, as `ScoreSteps` has it: where those of one head stay, and
/// where heads follow one another.
pub(super) const ROOM: u32 = 4;
pub(super) const ROOM_OF_HEADS: u32 = 3;
/// Bytes of a query or key that are in shared memory at a time.
const CHUNK_BYTES: usize = 128;
/// Shared memory of such bytes of the tokens of a tile.
pub(super) const PANEL_BYTES: u32 = TILE * (CHUNK_BYTES as u32 + 16);
/// Most warps that take tiles in a block of which the tokens of one head stay.
const STAYING_WARPS: u32 = 7;
/// Threads of such a block at most.
pub(super) const STAYING_THREADS: u32 = block_threads(STAYING_WARPS);

/// Threads of a block of which so many warps take tiles: one more brings them.
pub(super) const fn block_threads(takers: u32) -> u32 {
    (takers + 1) * WARP
}

/// The variant of a kernel that `score_ring.cuh` brings queries and keys of type `dtype` to, which folds heads by `fusion`
/// where it folds them: with blocks of `threads` threads, of which so many share a multiprocessor.
pub(super) fn score_variant(
    stem: &'static str,
    dtype: DType,
    fusion: Option<Fusion>,
    threads: u32,
    blocks: u32,
) -> Variant {
    let mut names = vec![dtype.name()];
    let mut defines = vec![("ELEMENT", dtype.name().to_owned())];
    if let Some(fusion) = fusion {
        names.push(fusion.name());
        defines.push(fusion.define());
    }
    defines.push(("THREADS", threads.to_string()));
    defines.push(("BLOCKS", blocks.to_string()));
    Variant {
        defines,
        arch: SCORES_ARCH,
        // Parameters that are in shared memory take registers.
        grouped_blocks_per_multiprocessor: blocks - 1,
        ..Variant::new(stem, symbol(stem, &names, &[]), threads, blocks)
    }
}

/// Dynamic shared memory of a block through which tokens of `panels` panels pass with every tile.
pub(super) const fn passing_bytes(panels: u32) -> u32 {
    ROOM_OF_HEADS * panels * PANEL_BYTES
}

/// Chunks of a query or key of `source`, of elements of type `dtype`.
pub(super) fn chunks(source: &QueriesKeys, dtype: DType) -> u32 {
    (source.head_dim * dtype.size_bytes()).div_ceil(CHUNK_BYTES) as u32
}

/// Warps that take tiles in a block on windows of `window_len` tokens, and its dynamic shared memory, where of one head of `source`, of
/// elements of type `dtype`, 32 tokens stay with each warp: as many as at most `panels` panels take, and not many more than
/// needed.
pub(super) fn staying_block(
    source: &QueriesKeys,
    dtype: DType,
    window_len: u32,
    panels: u32,
) -> (u32, u32) {
    let chunks = chunks(source, dtype);
    let most = (panels / chunks).clamp(1, STAYING_WARPS);
    let tiles = window_len.div_ceil(TILE).max(1);
    let warps = tiles.div_ceil(tiles.div_ceil(most));
    (warps, (ROOM + warps * chunks) * PANEL_BYTES)
}

/// Such blocks that share a multiprocessor: what f32 is split into takes registers.
pub(super) fn staying_blocks(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 2,
        DType::F16 | DType::Bf16 => 3,
    }
}

/// Rows of each head whose LSE is probed.
pub(in crate::cuda) const PROBED_ROWS: usize = 64;
/// The oldest architecture with the products.
pub(in crate::cuda) const SCORES_ARCH: u32 = 80;

params! {
    /// The queries and keys of one layer.
    LayerScores {
        queries: Address,
        keys: Address,
        lse: Address,
        queries_batch: i64,
        queries_head: i64,
        queries_token: i64,
        keys_batch: i64,
        keys_head: i64,
        keys_token: i64,
        lse_batch: i64,
        lse_head: i64,
        lse_token: i64,
        soft_cap: f32,
        sliding_window: u32,
        attention: f32,
        identity: f32,
    }
}

params! {
    /// What a head of a layer has of its own.
    HeadScores {
        slope: f32,
        sink: f32,
    }
}

params! {
    /// What turns the scores of a row into attention.
    RowSum {
        shift: f32,
        factor: f32,
    }
}

params! {
    /// The LSE of a row, from its scores and as it is given.
    Probe {
        expected: f32,
        got: f32,
    }
}

params! {
    /// What a row must sum to, and what it sums to.
    Mass {
        expected: f32,
        magnitude: f32,
        sum: f32,
    }
}

params! {
    /// The queries and keys of a launch's layers and how they become fused entries.
    Scores {
        windows: Address,
        head_weights: Address,
        head: Address,
        sums: Address,
        batch: u32,
        heads: u32,
        layers: u32,
        sharing: u32,
        head_dim: u32,
        sums_len: u32,
        causal: u32,
        scale: f32,
        log2_scale: f32,
        log2_unit: f32,
        head_scale: f32,
        reserved: u32,
        layer: [LayerScores; MAX_SCORE_LAYERS],
    }
}

impl HeadScores {
    /// Those of every head of every layer, `[layers, heads]`.
    pub(in crate::cuda) fn of_problem(problem: &Problem) -> Vec<HeadScores> {
        let Some(source) = problem.queries_keys() else {
            return Vec::new();
        };
        let Shape { layers, heads, .. } = *problem.shape();
        let all = (0..layers).flat_map(|layer| (0..heads).map(move |head| (layer, head)));
        all.map(|(layer, head)| HeadScores {
            slope: source.slope(heads, layer, head),
            sink: source.sink(heads, layer, head).unwrap_or(f32::NEG_INFINITY),
        })
        .collect()
    }
}

/// Floats of the sums of `layers` layers of `items` items of `problem`, whose windows are at most `window_len` tokens long;
/// none where the LSE is given, or there are no scores.
pub(in crate::cuda) fn sum_floats(
    problem: &Problem,
    layers: usize,
    items: usize,
    window_len: u32,
) -> Option<usize> {
    let source = problem.queries_keys()?;
    let rows = layers.min(MAX_SCORE_LAYERS) * items * problem.shape().heads * window_len as usize;
    (!source.has_lse()).then_some(rows * size_of::<RowSum>() / size_of::<f32>())
}

/// What a launch over queries and keys takes.
#[derive(Clone, Copy, Debug)]
pub struct ScoreOperands<'a> {
    /// The problem, which is one of queries and keys ...
    pub problem: &'a Problem,
    /// ... as it says.
    pub source: &'a QueriesKeys,
    /// The layers, as many as one launch takes.
    pub layers: &'a Range<usize>,
    /// The items of a run.
    pub items: &'a Range<usize>,
    /// Tokens of the longest window.
    pub window_len: u32,
    /// Sums by which rows are normalised, unless the LSE is given.
    pub sums: Option<Address>,
}

impl Scores {
    /// The queries and keys of `operands`.
    pub(super) fn new(operands: &ScoreOperands<'_>) -> Self {
        let ScoreOperands {
            problem,
            source,
            layers,
            items,
            window_len,
            sums,
        } = *operands;
        let Shape { heads, .. } = *problem.shape();
        let head = size_of::<HeadScores>() * heads * layers.start;
        let mut scores = Scores {
            windows: Window::from_item(items.start),
            head_weights: Address::of(Base::HeadWeights),
            head: Address::of(Base::HeadScores) + head,
            sums: sums.unwrap_or(Address::NULL),
            batch: items.len() as u32,
            heads: heads as u32,
            layers: layers.len() as u32,
            sharing: (heads / source.key_heads) as u32,
            head_dim: source.head_dim as u32,
            sums_len: window_len,
            causal: problem.config().causal.into(),
            scale: source.scale(),
            log2_scale: (f64::from(source.scale()) * LOG2_E) as f32,
            log2_unit: match source.lse {
                Lse::Given(base) => (base.ln() * LOG2_E) as f32,
                Lse::Recomputed => LOG2_E as f32,
            },
            head_scale: 1.0 / heads as f32,
            reserved: 0,
            layer: [LayerScores::zeroed(); MAX_SCORE_LAYERS],
        };
        for (layer, slot) in layers.clone().zip(&mut scores.layer) {
            *slot = LayerScores::new(problem, source, layer, items.start);
        }
        scores
    }

    /// As it takes part in [masses](Mass): without weights of heads unless they are weighted.
    pub(super) fn of_masses(mut self, problem: &Problem) -> Self {
        if !matches!(problem.config().head_fusion, HeadFusion::Weighted(_)) {
            self.head_weights = Address::NULL;
        }
        self
    }

    /// Bytes at the end that a kernel does not look at.
    pub(super) fn unused_bytes(&self) -> usize {
        (MAX_SCORE_LAYERS - self.layers as usize) * size_of::<LayerScores>()
    }
}

impl LayerScores {
    fn new(problem: &Problem, source: &QueriesKeys, layer: usize, first_item: usize) -> Self {
        let strides = source.strides(problem.shape(), layer);
        let tensor = |operand, batch_stride: usize, dtype: DType| {
            let first_byte = first_item * batch_stride * dtype.size_bytes();
            Address::of(Base::Layer { layer, operand }) + first_byte
        };
        let residual = problem.residual(layer);
        let (queries, keys, lse) = (strides.queries, strides.keys, strides.lse);
        LayerScores {
            queries: tensor(0, queries.batch, problem.dtype()),
            keys: tensor(1, keys.batch, problem.dtype()),
            lse: match source.has_lse() {
                true => tensor(2, lse.batch, DType::F32),
                false => Address::NULL,
            },
            queries_batch: queries.batch as i64,
            queries_head: queries.head as i64,
            queries_token: queries.token as i64,
            keys_batch: keys.batch as i64,
            keys_head: keys.head as i64,
            keys_token: keys.token as i64,
            lse_batch: lse.batch as i64,
            lse_head: lse.head as i64,
            lse_token: lse.token as i64,
            soft_cap: source.soft_cap(layer).unwrap_or(0.0),
            sliding_window: source.sliding_window(layer).map_or(0, saturated),
            attention: residual.attention,
            identity: residual.identity,
        }
    }
}

/// The nearest that a word holds: no window has so many tokens.
fn saturated(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

/// A problem, of `head_dim` elements of a query or key, that a kernel of scores takes part in. Whatever its LSE is, entries do
/// not grow from layer to layer.
pub(super) fn example(
    layers: usize,
    tokens: usize,
    head_dim: usize,
    dtype: DType,
    fusion: Fusion,
    lse: Lse,
    output: Output,
) -> Result<Problem> {
    let shape = super::example_shape(layers, tokens);
    let attention = 0.1 / tokens as f32;
    let config = RolloutConfig {
        head_fusion: fusion.of_three_heads(),
        residual: ResidualWeights::Uniform(Residual::new(attention, 0.5)),
        output,
        ..RolloutConfig::default()
    };
    Problem::builder(shape, dtype)
        .config(config)
        .queries_keys(QueriesKeys {
            lse,
            ..QueriesKeys::new(&shape, head_dim)
        })
        .build()
}
