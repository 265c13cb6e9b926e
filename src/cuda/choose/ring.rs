//! Ways to launch `rows_stream`, and the time that each is expected to take.

use super::Workload;
use super::candidates::ROWS_CLUSTERS;
use super::figure::Figure;
use crate::cuda::kernel::{Exchange, Kernel, RingRows, RowsStream, Sets};
use crate::cuda::pipeline::Pipeline;

/// Columns of a lane in a grouped launch: members that take the same kernel are launched together.
const GROUPED_COLUMNS: u32 = 4;

impl Workload<'_> {
    /// Every way of streaming rows.
    pub(super) fn ring_rows(&self) -> Vec<Pipeline> {
        let start_rows = self.problem.start_rows();
        let heads = match self.fused_first {
            true => 1,
            false => self.problem.shape().heads,
        };
        let extents = [self.common.tokens, heads as u32, start_rows as u32];
        let mut all = Vec::new();
        for kernel in RowsStream::all_of(self.reading(self.fused_first)) {
            let held = (1..=kernel.rows as usize).contains(&start_rows);
            let together = !self.grouped || kernel.columns == GROUPED_COLUMNS;
            if !held || !together || !kernel.variant().runs_on(self.limits) {
                continue;
            }
            for sets in self.ring_sets() {
                let shared_bytes = self.limits.shared_bytes_per_block;
                let ring = kernel.ring(extents, sets, shared_bytes, self.sharing);
                all.extend(ring.map(|ring| Pipeline::RingRows(RingRows { kernel, sets, ring })));
            }
        }
        all
    }

    /// Ways to divide items among blocks, of which a multiprocessor has one: one for each item; clusters; as many as
    /// there are. Grouped, every item is a block by itself.
    fn ring_sets(&self) -> Vec<Sets> {
        let multiprocessors = self.limits.multiprocessors;
        let batch = self.items_at_a_time(self.fused_first) as u32;
        let sets = |blocks: u32, exchange| Sets {
            sets: batch.min(multiprocessors / blocks).max(1),
            blocks,
            exchange,
        };
        if self.grouped {
            return vec![Sets {
                sets: self.batch as u32,
                blocks: 1,
                exchange: Exchange::Cluster,
            }];
        }
        let mut all = vec![sets(1, Exchange::Cluster)];
        if self.limits.clusters {
            let clusters = ROWS_CLUSTERS.into_iter();
            let clusters = clusters.filter(|&blocks| blocks <= multiprocessors);
            all.extend(clusters.map(|blocks| sets(blocks, Exchange::Cluster)));
        }
        let blocks = multiprocessors / batch.clamp(1, multiprocessors);
        let blocks = blocks.min(self.common.window_len);
        if blocks > 1 {
            all.push(sets(blocks, Exchange::Words));
        }
        all
    }

    /// The time of a launch of `rows_stream`: layer by layer the longer of streaming and of computing with the layer's
    /// end.
    pub(super) fn ring_rows_us(&self, RingRows { kernel, sets, ring }: RingRows) -> Figure {
        let len = f64::from(self.common.window_len);
        let element_slots = match kernel.reading.dtype.size_bytes() {
            4 => self.rates.ring_entry_slots,
            _ => self.rates.ring_entry_16_bit_slots,
        };
        let start_rows = self.problem.start_rows() as f64;
        let entries = f64::from(kernel.columns);
        let warp_slots = entries * (self.source_heads() as f64 * element_slots + start_rows);
        let warp_slots = warp_slots + self.rates.ring_row_slots;
        let panels = (len / f64::from(ring.panel_columns)).ceil();
        // Row sums of rows that are looked at in panels take a pass of their own.
        let passes = match panels > 1.0 && self.problem.config().normalize_rows {
            true => 2.0,
            false => 1.0,
        };
        let rows = (len / f64::from(sets.blocks)).ceil() * panels * passes;
        let sharing = f64::from(self.sharing.unwrap_or(1));
        let issue_us = sharing * rows * f64::from(ring.column_warps) * warp_slots
            / self.rates.ring_slots_per_us;
        let turns = (rows / f64::from(ring.groups())).ceil();
        let turns_us = turns * warp_slots / self.rates.ring_warp_slots_per_us;
        let end_us = match (sets.exchange, sets.blocks) {
            (Exchange::Cluster, 1) => self.rates.ring_end_us,
            (Exchange::Cluster, _) => self.rates.ring_cluster_end_us,
            (Exchange::Words, _) => self.rates.ring_words_end_us,
        };
        let threads = f64::from(kernel.variant().block);
        let columns_us = ((len / threads).ceil() - 1.0) * self.rates.ring_column_us * start_rows;
        let computing_us = issue_us.max(turns_us)
            + end_us * (self.rates.ring_rows_end * (start_rows - 1.0) + 1.0)
            + columns_us;
        let layer_bytes = match self.fused_first {
            true => 4.0 * len * len,
            false => self.item_bytes / self.layers(),
        };
        let streaming_us =
            sharing * passes * layer_bytes / (self.bytes_per_us() * f64::from(sets.blocks));
        let layer_us = computing_us.max(streaming_us)
            + self.rates.ring_unhidden * computing_us.min(streaming_us);
        let items = match self.grouped {
            // Blocks take what others have not.
            true => self.batch / (sharing * f64::from(self.limits.multiprocessors)),
            false => (self.batch / f64::from(sets.sets)).ceil(),
        };
        self.rates.launch_us + items * self.layers() * layer_us
    }
}
