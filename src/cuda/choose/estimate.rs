//! The time that a pipeline is expected to take: latencies that nothing hides, bytes over bandwidth, operations over
//! rate, and launches, all by the [rates](super::rates) of the device.

use super::Workload;
use super::figure::Figure;
use crate::cuda::kernel::{Arithmetic, Form, Kernel, MAX_WARPS, RolloutProduct, Splits};
use crate::cuda::limits::DeviceLimits;
use crate::cuda::pipeline::{Pipeline, cuts_when_read, operands};
use crate::cuda::schedule::l2_budget;
use crate::cuda::variant::Entry;
use crate::dtype::DType;

/// Entries that a warp of `head_fusion` fuses.
const FUSION_WARP_ENTRIES: f64 = 128.0;
/// Heads that `fuse.cuh` and `head_fusion` ask for in one turn.
pub(super) const HEADS_IN_FLIGHT: usize = 4;
/// Columns of a step of a `rollout_product` tile.
const PRODUCT_STEP: u32 = 16;

impl Workload<'_> {
    /// The estimated time of a pipeline.
    pub(super) fn microseconds(&self, pipeline: Pipeline) -> Figure {
        let fusing = match pipeline {
            Pipeline::ScoreRows(_) => Figure::ZERO,
            _ if self.problem.queries_keys().is_some() => self.score_fusion_us(),
            Pipeline::Rows { .. } | Pipeline::RingRows(_) if self.fused_first => {
                self.fusion_us() + 2.0 * self.rates.launch_us
            }
            Pipeline::RingMatrix(_) if self.matrix_fused_first => {
                self.memory_us() + 2.0 * self.rates.launch_us
            }
            _ => Figure::ZERO,
        };
        fusing
            + match pipeline {
                Pipeline::ScoreRows(splits) => self.score_rows_us(splits),
                Pipeline::Rows { rows, splits } => self.rows_us(rows, splits),
                Pipeline::RingRows(ring_rows) => self.ring_rows_us(ring_rows),
                Pipeline::RingMatrix(ring_matrix) => self.ring_matrix_us(ring_matrix),
                Pipeline::Tree(kernel) => self.tree_us(kernel),
                Pipeline::Product { arithmetic, form } => self.product_us(arithmetic, form),
            }
    }

    pub(super) fn layers(&self) -> f64 {
        self.problem.layers().len() as f64
    }

    /// Granules that `rollout_rows` asks for at each place: one for each head, and as many for gradients.
    pub(super) fn source_heads(&self) -> usize {
        match self.fused_first {
            true => 1,
            false => self.problem.shape().heads * operands(self.problem),
        }
    }

    /// Bytes that each multiprocessor gets from memory in a microsecond while all read.
    pub(super) fn bytes_per_us(&self) -> Figure {
        // Where a driver tells no peak, the one of an H200.
        let limits = match self.limits.memory_bytes_per_us {
            0 => &DeviceLimits::H200,
            _ => self.limits,
        };
        let multiprocessors = f64::from(limits.multiprocessors.max(1));
        self.rates.read_share * f64::from(limits.memory_bytes_per_us) / multiprocessors
    }

    /// Time to move `bytes` between memory and all multiprocessors.
    pub(super) fn moving_us(&self, bytes: f64) -> Figure {
        bytes / (self.bytes_per_us() * f64::from(self.limits.multiprocessors))
    }

    /// Time to read the maps.
    fn memory_us(&self) -> Figure {
        self.moving_us(self.batch * self.item_bytes)
    }

    /// How often the device is filled with blocks of which `resident` fit on one multiprocessor.
    pub(super) fn waves(&self, blocks: f64, resident: u32) -> f64 {
        (blocks / f64::from(self.limits.multiprocessors * resident)).ceil()
    }

    /// Time of `head_fusion` over all layers.
    pub(super) fn fusion_us(&self) -> Figure {
        let len = f64::from(self.common.window_len);
        let warps = len.powi(2) * self.layers() * self.batch / FUSION_WARP_ENTRIES;
        let heads = (self.problem.shape().heads * operands(self.problem)) as f64;
        let warp_us = self.rates.fusion_warp_us + heads * self.rates.fusion_head_us;
        let issue_us = warps / f64::from(self.limits.multiprocessors) * warp_us;
        let first_us = (heads / HEADS_IN_FLIGHT as f64).ceil() * self.rates.fusion_turn_us;
        first_us + self.memory_us().max(issue_us)
    }

    /// Time of one turn of the warps of all `blocks`, of which `resident`, each of `warps`, fit on a multiprocessor.
    fn turn_us(&self, dtype: DType, blocks: f64, resident: u32, warps: u32) -> Figure {
        let issue_us = match dtype {
            DType::F32 => self.rates.issue_us,
            DType::F16 | DType::Bf16 => self.rates.issue_16_bit_us,
        };
        let multiprocessors = f64::from(self.limits.multiprocessors);
        let one_us = |blocks: f64| self.rates.turn_us.max(blocks * f64::from(warps) * issue_us);
        let wave = multiprocessors * f64::from(resident);
        let (full, rest) = ((blocks / wave).floor(), blocks % wave);
        let last_us = if rest > 0.0 {
            one_us((rest / multiprocessors).ceil())
        } else {
            Figure::ZERO
        };
        full * one_us(f64::from(resident)) + last_us
    }

    fn rows_us(&self, rows: u32, splits: Splits) -> Figure {
        let columns = self.columns(true);
        let len = self.common.window_len;
        let groups = columns.row_groups();
        let warps = groups * columns.chunks_per_block;
        let entry = match self.grouped {
            true => Entry::Grouped,
            false => Entry::Alone,
        };
        let resident = entry.blocks_per_multiprocessor(&self.rows(rows).variant());
        let resident = resident * MAX_WARPS / warps;
        let blocks = self.batch * f64::from(splits.blocks * columns.tiles);
        let waves = self.waves(blocks, resident);
        let columns_per_thread = f64::from(len.div_ceil(32 * warps));
        let in_flight = HEADS_IN_FLIGHT / if rows == 1 || self.grouped { 1 } else { 2 };
        let turns =
            len.div_ceil(splits.blocks * groups) as usize * self.source_heads().div_ceil(in_flight);
        let layer_bytes = self.batch
            * match self.fused_first {
                true => 4.0 * f64::from(len).powi(2),
                false => self.item_bytes / self.layers(),
            };
        let active = blocks.min(f64::from(self.limits.multiprocessors));
        let turns_us = match self.grouped {
            // While a block waits, those of other members work.
            true => layer_bytes / blocks / self.rates.grouped_bytes_per_us.min(self.bytes_per_us()),
            false => {
                turns as f64
                    * self.turn_us(
                        self.reading(self.fused_first).dtype,
                        blocks,
                        resident,
                        warps,
                    )
            }
        };
        let memory_us = layer_bytes / (active * self.bytes_per_us());
        let reading_us = memory_us.max(turns_us + self.rates.unhidden_by_turns * memory_us);
        let adding_us = waves * f64::from(groups) * self.rates.group_us;
        let layer_us = reading_us + adding_us;
        if splits.clustered {
            let peers_us = f64::from(splits.blocks) * columns_per_thread * self.rates.peer_us;
            return self.rates.launch_us
                + self.layers() * (layer_us + waves * (self.rates.cluster_us + peers_us));
        }
        if splits.blocks * columns.tiles == 1 {
            return self.rates.launch_us + self.layers() * layer_us;
        }
        // Every block of every launch but the first, and the last launch, adds up all partial sums of the launch before.
        let start_rows = self.problem.start_rows() as f64;
        let partials = start_rows * f64::from(splits.blocks);
        let alone_us = partials * columns_per_thread * self.rates.partial_us;
        let traffic = 4.0 * blocks * partials * f64::from(len);
        let partials_us = (waves * alone_us).max(traffic / (active * self.rates.l2_bytes_per_us));
        self.layers() * (self.rates.launch_us + layer_us + partials_us)
            + self.rates.launch_us
            + alone_us
    }

    /// Parts of the batch that go through the product pipeline one after the other. Two fused maps and two states of each share L2.
    fn product_chunks(&self) -> f64 {
        let item = 16.0 * f64::from(self.common.window_len).powi(2);
        (self.batch * item / l2_budget(self.limits) as f64)
            .ceil()
            .max(1.0)
    }

    /// The product pipeline: each step of a tile waits for L2, whatever the arithmetic.
    fn product_us(&self, arithmetic: Arithmetic, form: Form) -> Figure {
        let kernel = RolloutProduct {
            arithmetic,
            form,
            discard: cuts_when_read(self.problem),
        };
        let resident = kernel.variant().blocks_per_multiprocessor;
        let chunks = self.product_chunks();
        let len = self.common.window_len;
        let rows = match self.problem.start_rows() {
            0 => len,
            rows => rows as u32,
        };
        let tiles = rows.div_ceil(RolloutProduct::TILE) * len.div_ceil(RolloutProduct::TILE);
        let waves = self.waves(self.batch / chunks * f64::from(tiles), resident);
        let steps_us = f64::from(len.div_ceil(PRODUCT_STEP)) * self.rates.product_step_us;
        let product_us = self.rates.launch_us + waves * (steps_us + self.rates.product_rest_us);
        let fusions = if chunks > 1.0 {
            self.layers() * chunks
        } else {
            1.0
        };
        self.fusion_us() + fusions * self.rates.launch_us + self.layers() * chunks * product_us
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::{Output, RolloutConfig};
    use crate::cuda::kernel::{Exchange, RingRows};
    use crate::cuda::options::Precision;
    use crate::dtype::DType::{F16, F32};
    use crate::layout::Shape;
    use crate::problem::Problem;

    const fn apart(blocks: u32) -> Pipeline {
        let splits = Splits {
            blocks,
            clustered: false,
        };
        Pipeline::Rows { rows: 1, splits }
    }

    const fn cluster(blocks: u32) -> Pipeline {
        let splits = Splits {
            blocks,
            clustered: true,
        };
        Pipeline::Rows { rows: 1, splits }
    }

    const PRODUCT: Pipeline = Pipeline::Product {
        arithmetic: Arithmetic::F16x3,
        form: Form::Rows,
    };

    /// `rows_stream`: columns of a lane, blocks of an item, how these tell each other their sums, and the time.
    type RingTimes = &'static [(u32, u32, Exchange, f64)];
    /// Pipelines with their times.
    type Times = &'static [(Pipeline, f64)];
    type Predicted = ([usize; 4], DType, Times);

    /// What the model of a multiprocessor predicts for one row on an H200, in microseconds in a CUDA graph: `[layers,
    /// batch, heads, tokens]`, type, and pipelines with their times. Predictions, not measurements.
    #[rustfmt::skip]
    const PREDICTED: &[Predicted] = &[
        ([6, 4, 12, 28], F32, &[(apart(1), 68.0), (cluster(2), 42.0), (cluster(4), 26.0), (cluster(8), 26.0), (apart(4), 37.0), (PRODUCT, 24.1)]),
        ([12, 8, 12, 197], F32, &[(apart(17), 199.0), (apart(25), 174.0), (apart(33), 183.0), (apart(50), 277.0), (apart(13), 204.0), (apart(9), 259.0), (cluster(4), 467.0), (cluster(8), 260.0), (cluster(2), 889.0), (PRODUCT, 159.8)]),
        ([24, 1, 16, 577], F32, &[(apart(145), 3121.0), (apart(97), 2397.0), (apart(73), 2148.0), (apart(49), 2093.0), (apart(37), 2254.0), (apart(25), 2796.0), (cluster(8), 6979.0), (PRODUCT, 683.3)]),
        ([12, 2, 12, 512], F32, &[(apart(16), 626.0), (apart(22), 524.0), (apart(32), 440.0), (apart(43), 427.0), (apart(64), 460.0), (apart(86), 547.0), (cluster(8), 1064.0), (PRODUCT, 318.3), (apart(128), 700.0)]),
        ([12, 1, 12, 197], F32, &[(apart(17), 176.0), (apart(25), 158.0), (apart(33), 173.0), (apart(50), 179.0), (apart(9), 258.0), (cluster(8), 260.0), (PRODUCT, 124.5)]),
        ([12, 16, 12, 128], F32, &[(apart(4), 175.0), (apart(6), 147.0), (apart(8), 121.0), (apart(11), 131.0), (apart(16), 111.0), (cluster(2), 282.0), (cluster(4), 153.0), (cluster(8), 91.0), (PRODUCT, 117.9)]),
        ([12, 16, 3, 197], F32, &[(apart(9), 140.0), (apart(13), 124.0), (apart(17), 136.0), (apart(25), 182.0), (cluster(4), 185.0), (cluster(8), 108.0), (PRODUCT, 142.1), (apart(12), 127.0), (apart(7), 149.0)]),
        ([12, 64, 12, 197], F32, &[(apart(4), 553.0), (apart(6), 479.0), (cluster(2), 898.0), (cluster(4), 538.0), (cluster(8), 553.0), (PRODUCT, 473.6), (apart(5), 570.0), (apart(9), 580.0)]),
        ([12, 8, 12, 197], F16, &[(apart(9), 175.0), (apart(13), 146.0), (apart(17), 161.0), (apart(25), 148.0), (cluster(4), 287.0), (cluster(8), 174.0), (PRODUCT, 139.4)]),
        ([12, 1, 12, 197], F16, &[(apart(9), 174.0), (apart(13), 144.0), (apart(17), 149.0), (apart(25), 132.0), (cluster(8), 173.0), (PRODUCT, 121.8)]),
        ([12, 2, 12, 512], F16, &[(apart(16), 391.0), (apart(22), 348.0), (apart(32), 324.0), (apart(43), 340.0), (apart(64), 402.0), (cluster(8), 591.0), (PRODUCT, 285.1)]),
        ([24, 1, 16, 577], F16, &[(apart(97), 1919.0), (apart(73), 1592.0), (apart(49), 1436.0), (apart(37), 1457.0), (apart(25), 1693.0), (cluster(8), 3876.0), (PRODUCT, 627.3)]),
        ([12, 64, 12, 197], F16, &[(apart(4), 381.0), (cluster(2), 520.0), (cluster(4), 364.0), (cluster(8), 386.0), (PRODUCT, 315.1), (apart(5), 433.0), (apart(7), 438.0)]),
    ];

    /// The same for `rows_stream`; no measurement has ever confirmed the mechanisms it uses.
    #[rustfmt::skip]
    const RING_PREDICTED: &[([usize; 4], DType, RingTimes)] = &[
        ([6, 4, 12, 28], F32, &[(1, 8, Exchange::Cluster, 10.2)]),
        ([12, 8, 12, 197], F32, &[(7, 16, Exchange::Words, 45.1)]),
        ([24, 1, 16, 577], F32, &[(7, 132, Exchange::Words, 127.6)]),
        ([12, 2, 12, 512], F32, &[(4, 66, Exchange::Words, 68.8)]),
        ([12, 1, 12, 197], F32, &[(4, 132, Exchange::Words, 22.8), (1, 132, Exchange::Words, 22.6)]),
        ([12, 16, 12, 128], F32, &[(4, 8, Exchange::Cluster, 35.4)]),
        ([12, 16, 3, 197], F32, &[(7, 8, Exchange::Cluster, 27.5)]),
        ([12, 64, 12, 197], F32, &[(7, 2, Exchange::Cluster, 291.0)]),
        ([12, 8, 12, 197], F16, &[(7, 16, Exchange::Words, 30.9)]),
        ([12, 4, 12, 197], F16, &[(7, 33, Exchange::Words, 27.6)]),
        ([12, 1, 12, 197], F16, &[(4, 132, Exchange::Words, 23.2)]),
        ([12, 2, 12, 512], F16, &[(4, 66, Exchange::Words, 45.4)]),
        ([24, 1, 16, 577], F16, &[(7, 132, Exchange::Words, 96.0)]),
        ([12, 64, 12, 197], F16, &[(7, 2, Exchange::Cluster, 148.8)]),
        ([12, 32, 12, 197], F16, &[(7, 4, Exchange::Cluster, 77.4)]),
        ([12, 33, 12, 128], F16, &[(4, 4, Exchange::Cluster, 40.7)]),
    ];

    /// What was predicted for a pipeline.
    fn predicted_us(shape: [usize; 4], dtype: DType, pipeline: Pipeline) -> Option<f64> {
        if let Pipeline::RingRows(RingRows { kernel, sets, .. }) = pipeline {
            let of_shape = |row: &&([usize; 4], DType, RingTimes)| (row.0, row.1) == (shape, dtype);
            let (_, _, times) = RING_PREDICTED.iter().find(of_shape)?;
            let way = (kernel.columns, sets.blocks, sets.exchange);
            let time = times.iter().find(|time| (time.0, time.1, time.2) == way);
            return time.map(|time| time.3);
        }
        let of_shape = |row: &&Predicted| (row.0, row.1) == (shape, dtype);
        let (_, _, times) = PREDICTED.iter().find(of_shape)?;
        let time = times.iter().find(|(known, _)| *known == pipeline);
        time.map(|&(_, us)| us)
    }

    /// What an H200 has to choose from.
    pub fn candidates(
        [layers, batch, heads, tokens]: [usize; 4],
        dtype: DType,
        output: Output,
    ) -> Vec<(f64, Pipeline)> {
        let shape = Shape {
            layers,
            batch,
            heads,
            tokens,
        };
        let config = RolloutConfig {
            output,
            ..RolloutConfig::default()
        };
        let problem = Problem::new(shape, dtype, config).unwrap();
        Workload::new(&problem, batch, &DeviceLimits::H200, false).candidates(Precision::F32)
    }

    #[test]
    fn the_cheapest_way_to_a_row_is_within_1_3_of_the_best_predicted() {
        let rings = RING_PREDICTED
            .iter()
            .map(|&(shape, dtype, _)| (shape, dtype));
        for (shape, dtype) in rings {
            let mut all = candidates(shape, dtype, Output::default());
            // Where there is no ring, too.
            for has_ring in [true, false] {
                let is_ring = |pipeline| matches!(pipeline, Pipeline::RingRows(_));
                all.retain(|&(_, pipeline)| has_ring || !is_ring(pipeline));
                all.sort_by(|a, b| a.0.total_cmp(&b.0));
                let predicted = |pipeline| predicted_us(shape, dtype, pipeline);
                let times = all.iter().filter_map(|&(_, pipeline)| predicted(pipeline));
                let best = times.fold(f64::INFINITY, f64::min);
                if best.is_infinite() {
                    continue;
                }
                let chosen = super::super::preferred(&all).unwrap();
                let us = predicted(chosen)
                    .unwrap_or_else(|| panic!("{shape:?} {dtype}: nobody predicted {chosen:?}"));
                assert!(
                    us <= 1.3 * best,
                    "{shape:?} {dtype}: {chosen:?} {us} us, the best {best}"
                );
            }
        }
    }

    #[test]
    fn estimates_are_near_what_is_predicted() {
        let mut compared = [0, 0];
        let rings = RING_PREDICTED
            .iter()
            .map(|&(shape, dtype, _)| (shape, dtype));
        for (shape, dtype) in rings {
            for (estimate, pipeline) in candidates(shape, dtype, Output::default()) {
                let Some(us) = predicted_us(shape, dtype, pipeline) else {
                    continue;
                };
                let factor = (estimate / us).max(us / estimate);
                assert!(
                    factor < 1.5,
                    "{shape:?} {dtype} {pipeline:?}: {estimate} us, predicted {us}"
                );
                compared[usize::from(matches!(pipeline, Pipeline::RingRows(_)))] += 1;
            }
        }
        assert!(
            compared[0] >= 60 && compared[1] >= 16,
            "{compared:?} estimates compared"
        );
    }
}
