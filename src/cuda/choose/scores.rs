//! The time that rollout from queries and keys is expected to take, and how its rows are divided.

use super::Workload;
use super::estimate::LAUNCH_US;
use crate::config::HeadFusion;
use crate::cuda::kernel::{MAX_SCORE_ROWS, ScoreRows, ScoreSplits};
use crate::cuda::pipeline::Pipeline;
use crate::cuda::schedule::l2_budget;
use crate::queries_keys::QueriesKeys;

// Predicted by the model of a multiprocessor for the shapes in the tests below, f16 and 64 elements of a query; for other
// sizes assumed to grow with the bytes.

/// A tile of 64 queries and 64 keys of one head, beside others on its multiprocessor.
const TILE_US: f64 = 0.45;
/// For each byte of a query or key.
const TILE_BYTE_US: f64 = 0.002;
/// How much longer it takes by itself.
const ALONE: f64 = 2.7;
/// What a layer of rows takes beside its tiles and launches.
const LAYER_US: f64 = 3.0;
/// The side of a tile.
const TILE: u32 = 64;
/// Blocks of a multiprocessor.
const RESIDENT: u32 = 3;

impl Workload<'_> {
    /// Rows of relevance without a map, where that can be.
    pub(super) fn score_rows(&self) -> Option<Pipeline> {
        let config = self.problem.config();
        self.problem.queries_keys()?;
        let rows = 1..=MAX_SCORE_ROWS;
        let can = rows.contains(&self.problem.start_rows())
            && !self.forward
            && !config.normalize_rows
            && config.discard.is_none()
            && config.exclude_from_attention.is_empty()
            && ScoreRows::takes(self.common.window_len);
        // What becomes of heads that are not summed is known when all of them are there.
        let heads = match config.head_fusion {
            HeadFusion::Mean | HeadFusion::Weighted(_) => self.problem.shape().heads as u32,
            HeadFusion::Max | HeadFusion::Min => 1,
        };
        let window_len = self.common.window_len;
        let tiles = window_len.div_ceil(TILE).saturating_mul(self.batch as u32);
        let blocks = RESIDENT * self.limits.multiprocessors;
        let splits = ScoreSplits::filling(blocks, tiles, window_len, heads);
        can.then_some(Pipeline::ScoreRows(splits))
    }

    /// The time of it.
    pub(super) fn score_rows_us(&self, splits: ScoreSplits) -> f64 {
        let Some(source) = self.problem.queries_keys() else {
            return 0.0;
        };
        let side = f64::from(self.common.window_len.div_ceil(TILE));
        let heads = self.problem.shape().heads as f64;
        let serial = (side / f64::from(splits.queries)).ceil() * heads / f64::from(splits.heads);
        let layer_us = self.tiles_us(source, self.batch * side * side * heads, serial);
        let sums_us = self.sums_us(source);
        self.layers() * (layer_us + LAYER_US + 2.0 * LAUNCH_US) + sums_us
    }

    /// The time until fused maps of queries and keys are there; 0 of other sources.
    pub(super) fn score_fusion_us(&self) -> f64 {
        let Some(source) = self.problem.queries_keys() else {
            return 0.0;
        };
        let len = f64::from(self.common.window_len);
        let side = f64::from(self.common.window_len.div_ceil(TILE));
        let heads = self.problem.shape().heads as f64;
        let count = self.layers() * self.batch * side * side * heads;
        // Written and read again, unless they stay in L2.
        let item_bytes = self.layers() * 4.0 * len * len;
        let spilled = match item_bytes <= l2_budget(self.limits) as f64 {
            true => 0.0,
            false => 2.0 * self.batch * item_bytes,
        };
        let memory_us = self.moving_us(spilled);
        self.tiles_us(source, count, heads) + self.sums_us(source) + memory_us + LAUNCH_US
    }

    /// The time of a pass over all scores, where the LSE is not given.
    fn sums_us(&self, source: &QueriesKeys) -> f64 {
        if source.has_lse() {
            return 0.0;
        }
        let side = f64::from(self.common.window_len.div_ceil(TILE));
        let heads = self.problem.shape().heads as f64;
        let count = self.layers() * self.batch * side * side * heads;
        self.tiles_us(source, count, side) + LAUNCH_US
    }

    /// The time of `count` tiles of one head, of which each block takes `serial` one after the other.
    fn tiles_us(&self, source: &QueriesKeys, count: f64, serial: f64) -> f64 {
        let bytes = source.head_dim * self.problem.dtype().size_bytes();
        let tile_us = TILE_US + TILE_BYTE_US * bytes as f64;
        let half = if self.problem.config().causal {
            0.5
        } else {
            1.0
        };
        let all_us = half * count * tile_us / f64::from(self.limits.multiprocessors);
        all_us.max(serial * tile_us * ALONE)
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

    /// What the model of a multiprocessor predicts for one row of f16 queries and keys of 64 elements with their LSE on an
    /// H200, in microseconds in a CUDA graph: `[layers, batch, heads, tokens]`, without maps, and by fused maps where that
    /// was predicted. Predictions, not measurements.
    const PREDICTED: [([usize; 4], f64, Option<f64>); 4] = [
        ([12, 1, 12, 197], 116.8, Some(45.7)),
        ([12, 8, 12, 197], 174.4, Some(126.9)),
        ([12, 64, 12, 197], 785.8, None),
        ([4, 1, 32, 2048], 827.7, None),
    ];

    #[test]
    fn estimates_are_near_what_is_predicted() {
        for ([layers, batch, heads, tokens], rows, fused) in PREDICTED {
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
            let is_alone = |pipeline: &Pipeline| matches!(pipeline, Pipeline::ScoreRows(_));
            let least = |alone: bool| {
                let mut of_kind = all.iter().filter(|(_, p)| is_alone(p) == alone);
                of_kind.next().unwrap().0
            };
            for (estimate, predicted) in [(least(true), Some(rows)), (least(false), fused)] {
                let Some(us) = predicted else { continue };
                let factor = (estimate / us).max(us / estimate);
                assert!(factor < 1.5, "{shape}: {estimate} us, predicted {us}");
            }
            if let Some(fused) = fused {
                let chosen = super::super::preferred(&all).unwrap();
                assert_eq!(is_alone(&chosen), rows < fused, "{shape}: {chosen:?}");
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
