//! The time that a pipeline is expected to take: latencies that nothing hides, bytes over bandwidth, operations over
//! rate, and launches, all by the [rates](super::rates) of the device.

use super::Workload;
use super::figure::Figure;
use crate::cuda::kernel::{Arithmetic, Form, Kernel, MAX_WARPS, RolloutProduct, Splits};
use crate::cuda::limits::DeviceLimits;
use crate::cuda::pipeline::{Pipeline, cuts_when_read, operands};
use crate::cuda::schedule::{items_in_l2, l2_budget};
use crate::cuda::variant::Entry;
use crate::dtype::DType;

/// Entries that a warp of `head_fusion` fuses.
const FUSION_WARP_ENTRIES: f64 = 128.0;
/// Heads that `fuse.cuh` and `head_fusion` ask for in one turn.
pub(super) const HEADS_IN_FLIGHT: usize = 4;
/// Columns of a step of a `rollout_product` tile.
const PRODUCT_STEP: u32 = 16;

impl Workload<'_> {
    /// The estimated time of a pipeline: of the parts of the batch one after the other, where it reads fused maps of as many
    /// items as stay in L2.
    pub(super) fn microseconds(&self, pipeline: Pipeline) -> Figure {
        let reads_fused = match pipeline {
            Pipeline::Rows { .. } | Pipeline::RingRows(_) => self.fused_first,
            Pipeline::RingMatrix(_) => self.matrix_fused_first,
            Pipeline::ScoreRows(_)
            | Pipeline::ScoreStream(_)
            | Pipeline::ShortRows(_)
            | Pipeline::Product { .. }
            | Pipeline::Tree(_) => false,
        };
        let part = self.items_at_a_time(reads_fused);
        let of_items = |batch| {
            let part = Workload { batch, ..*self };
            part.part_us(pipeline, reads_fused)
        };
        let full = ((self.batch / part.max(1.0)).ceil() - 1.0).max(0.0);
        full * of_items(part) + of_items(self.batch - full * part)
    }

    /// The time of all items together.
    fn part_us(&self, pipeline: Pipeline, reads_fused: bool) -> Figure {
        // Excluded tokens are taken out of fused maps by one launch more.
        let excludes = !self.problem.config().exclude_from_attention.is_empty();
        let fused_launches = if excludes { 2.0 } else { 1.0 };
        let fusing = match pipeline {
            Pipeline::ScoreRows(_) | Pipeline::ScoreStream(_) | Pipeline::ShortRows(_) => {
                Figure::ZERO
            }
            _ if self.problem.queries_keys().is_some() => self.score_fusion_us(),
            _ if reads_fused => self.fusion_us() + fused_launches * self.rates.launch_us,
            _ => Figure::ZERO,
        };
        let cutting = match reads_fused {
            true => self.cuts_us(self.batch, self.problem.layers().len()),
            false => Figure::ZERO,
        };
        fusing
            + cutting
            + match pipeline {
                Pipeline::ScoreRows(splits) => self.score_rows_us(splits),
                Pipeline::ScoreStream(sets) => self.score_stream_us(sets),
                Pipeline::ShortRows(rows) => self.short_rows_us(rows),
                Pipeline::Rows { rows, splits } => self.rows_us(rows, splits),
                Pipeline::RingRows(ring_rows) => self.ring_rows_us(ring_rows),
                Pipeline::RingMatrix(ring_matrix) => self.ring_matrix_us(ring_matrix),
                Pipeline::Tree(kernel) => self.tree_us(kernel),
                Pipeline::Product { arithmetic, form } => self.product_us(arithmetic, form),
            }
    }

    /// Items that go through all layers together: all, or those whose fused maps stay in L2.
    pub(super) fn items_at_a_time(&self, reads_fused: bool) -> f64 {
        if !reads_fused || self.order.is_some() {
            return self.batch;
        }
        let layers = self.problem.layers().len();
        let item_bytes = size_of::<f32>() * layers * self.common.fused_floats();
        items_in_l2(self.limits, item_bytes, self.batch as usize) as f64
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
    pub(super) fn memory_us(&self) -> Figure {
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
        let cuts_us = match self.order.is_some() || self.items_at_a_time(true) == self.batch {
            true => self.cuts_us(self.batch, self.problem.layers().len()),
            false => self.layers() * chunks * self.cuts_us(self.batch / chunks, 1),
        };
        let fusing_us = self.fusion_us() + fusions * self.rates.launch_us + cuts_us;
        fusing_us + self.layers() * chunks * product_us
    }
}

#[cfg(test)]
pub(super) mod tests;
