//! The time that rollout from queries and keys is expected to take, and how its rows are divided.

use super::Workload;
use super::figure::Figure;
use crate::cuda::kernel::{
    MAX_SCORE_ROWS, ScoreRows, ScoreSets, ScoreSplits, ScoreStream, ShortRows, ShortScores,
};
use crate::cuda::options::LayerOrder;
use crate::cuda::pipeline::Pipeline;
use crate::cuda::schedule::l2_budget;
use crate::queries_keys::QueriesKeys;

/// Queries, and keys, of a tile.
const TILE: u32 = 32;
/// Blocks of a multiprocessor.
const RESIDENT: u32 = 3;

impl Workload<'_> {
    /// Rows of relevance without a map, where that can be.
    pub(super) fn score_rows(&self) -> Option<Pipeline> {
        let config = self.problem.config();
        let source = self.problem.queries_keys()?;
        let rows = 1..=MAX_SCORE_ROWS;
        let can = rows.contains(&self.problem.start_rows())
            && self.order != Some(LayerOrder::Forward)
            && !config.normalize_rows
            && config.discard.is_none()
            && config.exclude_from_attention.is_empty()
            && ScoreRows::takes(self.common.window_len);
        let window_len = self.common.window_len;
        let heads = self.problem.shape().heads as u32;
        let blocks = RESIDENT * self.limits.multiprocessors;
        let filling = |splits: ScoreSplits, sharing: u32| {
            let kernel = ScoreRows::of(self.problem, splits);
            let tiles = kernel.key_blocks(source, window_len);
            let tiles = tiles.saturating_mul(splits.heads);
            let tiles = tiles.saturating_mul(self.batch as u32);
            (
                kernel,
                ScoreSplits::filling(blocks, tiles, window_len, sharing),
            )
        };
        // A block for each head, or blocks that take one after the other. What becomes of heads that are not summed is known
        // when all of them are there.
        let (kernel, of_heads) = filling(ScoreSplits { queries: 1, heads }, 1);
        let sharing = if kernel.fusion.sums() { heads } else { 1 };
        let splits = match kernel.one_row {
            true => ScoreSplits { heads, ..of_heads },
            false => filling(ScoreSplits::WHOLE, sharing).1,
        };
        can.then_some(Pipeline::ScoreRows(splits))
    }

    /// One row of all layers without a map, where that can be: blocks that run together.
    pub(super) fn score_stream(&self) -> Option<Pipeline> {
        self.score_rows()?;
        if self.grouped || self.order.is_some() {
            return None;
        }
        let (source, window_len) = (self.problem.queries_keys()?, self.common.window_len);
        let kernel = ScoreStream::of(self.problem, window_len)?;
        let shared_bytes = self.limits.shared_bytes_per_multiprocessor;
        let resident = kernel.resident(source, window_len, shared_bytes);
        let places = resident * self.limits.multiprocessors;
        let key_blocks = kernel.key_blocks(source, window_len);
        let sets = (1..=self.problem.shape().heads as u32).filter_map(|head_splits| {
            let sets = (places / (key_blocks * head_splits)).min(self.batch as u32);
            (sets > 0).then_some(ScoreSets {
                kernel,
                sets,
                head_splits,
                key_blocks,
            })
        });
        let us = |sets: &ScoreSets| self.score_stream_us(*sets).value;
        let sets = sets.min_by(|a, b| us(a).total_cmp(&us(b)))?;
        Some(Pipeline::ScoreStream(sets))
    }

    /// The time of it: of each layer as the warps of a block take tiles in turn, the longer the more share a multiprocessor.
    pub(super) fn score_stream_us(&self, sets: ScoreSets) -> Figure {
        let Some(source) = self.problem.queries_keys() else {
            return Figure::ZERO;
        };
        let multiprocessors = f64::from(self.limits.multiprocessors);
        let heads = (self.problem.shape().heads as u32).div_ceil(sets.head_splits);
        let half = if self.problem.config().causal {
            0.5
        } else {
            1.0
        };
        // Eight queries are a quarter of a tile.
        let turns = half * f64::from(heads) * self.tiles(TILE / 4) / 4.0;
        let resident = f64::from(sets.sets * sets.blocks()) / multiprocessors;
        let resident = resident.max(1.0);
        let warps = self.tiles(TILE) / f64::from(sets.key_blocks);
        let turn_us =
            self.rates.score_stream_turn_us + warps * resident * self.rates.score_stream_tile_us;
        let tiles_us = turns * turn_us;
        // All blocks read what all tell.
        let words = f64::from(self.common.window_len * sets.head_splits);
        let words_us = resident * 8.0 * words / self.rates.l2_bytes_per_us;
        let rounds = (self.batch / f64::from(sets.sets)).ceil();
        let layer_us = tiles_us + words_us + self.rates.score_stream_end_us;
        self.rates.launch_us + rounds * self.layers() * layer_us + self.sums_us(source)
    }

    /// One row of short windows without a map, where that can be.
    pub(super) fn short_rows(&self) -> Option<Pipeline> {
        self.score_rows()?;
        let kernel = ShortScores::of(self.problem, self.common.window_len)?;
        let splits = 1..=ShortScores::turns(self.common.window_len, 1);
        let rows = splits.map(|query_splits| ShortRows {
            kernel,
            query_splits,
        });
        let us = |rows: &ShortRows| self.short_layer_us(*rows).value;
        let rows = rows.min_by(|a, b| us(a).total_cmp(&us(b)))?;
        let fits = rows.kernel.shared_bytes(self.problem.queries_keys()?) as usize
            <= self.limits.shared_bytes_per_block;
        fits.then_some(Pipeline::ShortRows(rows))
    }

    /// The time of it.
    pub(super) fn short_rows_us(&self, rows: ShortRows) -> Figure {
        self.layers() * (self.short_layer_us(rows) + 2.0 * self.rates.launch_us)
    }

    /// The time of the blocks of a layer: as one takes that has a multiprocessor for itself, or as all do that share it.
    fn short_layer_us(&self, rows: ShortRows) -> Figure {
        let Some(source) = self.problem.queries_keys() else {
            return Figure::ZERO;
        };
        let bytes = source.head_dim * self.problem.dtype().size_bytes();
        let turns = ShortScores::turns(self.common.window_len, rows.query_splits);
        let turns = f64::from(turns);
        let turn_us =
            self.rates.score_short_turn_us + self.rates.score_short_byte_us * bytes as f64;
        let alone_us = self.rates.score_short_us + turns * turn_us;
        let shared_bytes = rows.kernel.shared_bytes(source) as usize;
        let fitting = self.limits.shared_bytes_per_multiprocessor / shared_bytes.max(1);
        let resident = f64::from(RESIDENT).min(fitting as f64).max(1.0);
        let blocks =
            self.batch * (self.problem.shape().heads as f64) * f64::from(rows.query_splits);
        let waves = blocks / (resident * f64::from(self.limits.multiprocessors));
        alone_us.max(waves * (alone_us + turns * self.rates.score_short_shared_us))
    }

    /// The time of rows by `score_rows`.
    pub(super) fn score_rows_us(&self, splits: ScoreSplits) -> Figure {
        let Some(source) = self.problem.queries_keys() else {
            return Figure::ZERO;
        };
        let heads = self.problem.shape().heads as f64;
        let side = self.tiles(TILE);
        let count = self.batch * side * side * heads;
        let turns = (side / f64::from(splits.queries)).ceil();
        let tiles_us = match ScoreRows::of(self.problem, splits).one_row {
            true => self.tiles_us(source, count, turns * self.rates.score_turn_us),
            false => {
                let turns = turns * heads / f64::from(splits.heads);
                self.tiles_us(
                    source,
                    self.rates.score_fused * count,
                    turns * self.rates.score_fused_turn_us,
                )
            }
        };
        self.layers() * (tiles_us + self.rates.score_layer_us + 2.0 * self.rates.launch_us)
            + self.sums_us(source)
    }

    /// The time until fused maps of queries and keys are there; 0 of other sources.
    pub(super) fn score_fusion_us(&self) -> Figure {
        let Some(source) = self.problem.queries_keys() else {
            return Figure::ZERO;
        };
        let len = f64::from(self.common.window_len);
        let heads = self.problem.shape().heads as f64;
        // Blocks take two tiles by two.
        let side = 2.0 * self.tiles(2 * TILE);
        let count = self.layers() * self.batch * side * side * heads;
        // Written and read again, unless they stay in L2.
        let item_bytes = self.layers() * 4.0 * len * len;
        let spilled = match item_bytes <= l2_budget(self.limits) as f64 {
            true => 0.0,
            false => 2.0 * self.batch * item_bytes,
        };
        let memory_us = self.moving_us(spilled);
        let tiles_us = self.tiles_us(
            source,
            self.rates.score_fused * count,
            heads * self.rates.score_fused_turn_us,
        );
        tiles_us + self.sums_us(source) + memory_us + self.rates.launch_us
    }

    /// The time of a pass over all scores, where the LSE is not given.
    fn sums_us(&self, source: &QueriesKeys) -> Figure {
        if source.has_lse() {
            return Figure::ZERO;
        }
        let side = self.tiles(TILE);
        let heads = self.problem.shape().heads as f64;
        let count = self.layers() * self.batch * side * side * heads;
        self.tiles_us(
            source,
            self.rates.score_summed * count,
            side * self.rates.score_turn_us,
        ) + self.rates.launch_us
    }

    /// Tiles of so many tokens of the longest window.
    fn tiles(&self, tokens: u32) -> f64 {
        f64::from(self.common.window_len.div_ceil(tokens))
    }

    /// The time of `count` tiles of one head, where each block takes `alone_us` at least.
    fn tiles_us(&self, source: &QueriesKeys, count: impl Into<Figure>, alone_us: Figure) -> Figure {
        let bytes = source.head_dim * self.problem.dtype().size_bytes();
        let tile_us = self.rates.score_tile_us + self.rates.score_byte_us * bytes as f64;
        let half = if self.problem.config().causal {
            0.5
        } else {
            1.0
        };
        let all_us = half * count.into() * tile_us / f64::from(self.limits.multiprocessors);
        all_us.max(alone_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RolloutConfig;
    use crate::cuda::limits::DeviceLimits;
    use crate::cuda::options::Precision;
    use crate::dtype::DType;
    use crate::layout::Shape;
    use crate::problem::Problem;
    use crate::queries_keys::{LogBase, Lse};

    /// `[layers, batch, heads, tokens]`, and microseconds by `score_rows`, by `score_stream` and by fused maps where these were
    /// predicted.
    type Predicted = ([usize; 4], f64, Option<f64>, Option<f64>);

    /// What the model of a multiprocessor predicts for one row of f16 queries and keys of 64 elements with their LSE on an
    /// H200, in a CUDA graph. Predictions, not measurements.
    const PREDICTED: [Predicted; 7] = [
        ([12, 1, 12, 197], 92.7, Some(87.8), Some(33.4)),
        ([12, 8, 12, 197], 125.5, Some(89.3), Some(102.4)),
        ([12, 64, 12, 197], 297.6, Some(228.4), Some(778.7)),
        ([12, 2, 12, 512], 142.9, None, Some(108.3)),
        ([12, 32, 12, 512], 750.9, Some(682.5), None),
        ([6, 4, 12, 64], 35.9, None, Some(22.2)),
        ([4, 1, 32, 2048], 244.1, None, None),
    ];

    /// The same where the LSE is recomputed, of short windows: by `score_short`, and by `score_sums` and what follows it.
    const PREDICTED_SHORT: [([usize; 4], usize, f64, f64); 8] = [
        ([12, 1, 12, 197], 64, 100.1, 109.0),
        ([12, 8, 12, 197], 64, 130.3, 174.7),
        ([12, 16, 12, 197], 64, 160.8, 248.3),
        ([12, 64, 12, 197], 64, 394.8, 673.0),
        ([12, 64, 12, 128], 64, 248.7, 340.6),
        ([12, 64, 12, 64], 64, 174.0, 158.5),
        ([6, 4, 12, 64], 64, 44.8, 42.0),
        ([12, 64, 12, 197], 128, 782.1, 1245.5),
    ];

    #[test]
    fn estimates_of_short_windows_are_near_what_is_predicted() {
        for ([layers, batch, heads, tokens], head_dim, short, tiles) in PREDICTED_SHORT {
            let shape = Shape {
                layers,
                batch,
                heads,
                tokens,
            };
            let problem = Problem::builder(shape, DType::F16);
            let problem = problem.queries_keys(QueriesKeys::new(&shape, head_dim));
            let problem = problem.build().unwrap();
            let work = Workload::new(&problem, batch, &DeviceLimits::H200, true);
            let all = work.candidates(Precision::F32);
            let of_kind = |is_kind: fn(&Pipeline) -> bool| {
                let mut of_kind = all.iter().filter(|(_, pipeline)| is_kind(pipeline));
                of_kind.next().unwrap().0
            };
            let estimates = [
                of_kind(|pipeline| matches!(pipeline, Pipeline::ShortRows(_))),
                of_kind(|pipeline| matches!(pipeline, Pipeline::ScoreRows(_))),
            ];
            for (estimate, us) in estimates.into_iter().zip([short, tiles]) {
                let factor = (estimate / us).max(us / estimate);
                assert!(factor < 1.5, "{shape}: {estimate} us, predicted {us}");
            }
            if short.max(tiles) / short.min(tiles) > 1.3 {
                assert_eq!(estimates[0] < estimates[1], short < tiles, "{shape}");
            }
        }
    }

    #[test]
    fn estimates_are_near_what_is_predicted() {
        for ([layers, batch, heads, tokens], rows, stream, fused) in PREDICTED {
            let shape = Shape {
                layers,
                batch,
                heads,
                tokens,
            };
            let source = QueriesKeys {
                lse: Lse::Given(LogBase::E),
                mass_tolerance: None,
                ..QueriesKeys::new(&shape, 64)
            };
            let problem = Problem::builder(shape, DType::F16).config(RolloutConfig::default());
            let problem = problem.queries_keys(source).build().unwrap();
            let work = Workload::new(&problem, batch, &DeviceLimits::H200, true);
            let mut all = work.candidates(Precision::F32);
            all.sort_by(|a, b| a.0.total_cmp(&b.0));
            let kind = |pipeline: &Pipeline| match pipeline {
                Pipeline::ScoreRows(_) => 0,
                Pipeline::ScoreStream(_) => 1,
                _ => 2,
            };
            let predicted = [Some(rows), stream, fused];
            for (number, us) in predicted.iter().enumerate() {
                let &Some(us) = us else { continue };
                let mut of_kind = all.iter().filter(|(_, p)| kind(p) == number);
                let estimate = of_kind.next().unwrap().0;
                let factor = (estimate / us).max(us / estimate);
                assert!(factor < 1.5, "{shape}: {estimate} us, predicted {us}");
            }
            let least = predicted
                .into_iter()
                .flatten()
                .fold(f64::INFINITY, f64::min);
            let chosen = super::super::preferred(&all).unwrap();
            if let Some(us) = predicted[kind(&chosen)] {
                assert!(us <= 1.2 * least, "{shape}: {chosen:?}, predicted {us}");
            }
        }
        // Maps of long sequences would not stay anywhere.
        let shape = Shape {
            layers: 8,
            batch: 1,
            heads: 32,
            tokens: 16_384,
        };
        let problem =
            Problem::builder(shape, DType::F16).queries_keys(QueriesKeys::new(&shape, 128));
        let problem = problem.build().unwrap();
        let work = Workload::new(&problem, 1, &DeviceLimits::H200, true);
        let mut all = work.candidates(Precision::F32);
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        let chosen = super::super::preferred(&all).unwrap();
        assert!(matches!(chosen, Pipeline::ScoreRows(_)), "{chosen:?}");
    }
}
