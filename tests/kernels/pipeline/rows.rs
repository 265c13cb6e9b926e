//! `rollout_rows`.

use std::ops::Range;

use attention_rollout::cuda::geometry::{Columns, Extents, Splits};
use attention_rollout::cuda::params::{MAX_LAYERS_PER_LAUNCH, RolloutRowsParams};
use attention_rollout::cuda::variant::Variant;

use super::Device;

impl Device<'_> {
    /// `rollout_rows` over all layers, the rows of each item divided as `splits` says.
    pub(super) fn rows(&self, splits: Splits) -> u64 {
        let shape = self.problem.shape();
        let (batch, tokens, rows) = (shape.batch, shape.tokens, self.problem.start_rows());
        let (dtype, fusion, fused, columns) = self.sources();
        let variant = Variant::RolloutRows {
            dtype,
            rows: if rows == 1 { 1 } else { 8 },
            fusion,
            normalize: self.problem.config().normalize_rows,
            discard: fused.is_some(),
        };
        let start = self.upload(&self.start_weights(tokens, tokens));
        let partial = batch * splits.parts() as usize * rows * tokens;
        let (mut partials_in, mut partials_out) = (self.floats(partial), self.floats(partial));
        let out = self.floats(batch * rows * tokens);
        let extents = Extents {
            rows: rows as u32,
            splits,
            ..self.extents(1, columns)
        };
        let params = |maps| RolloutRowsParams {
            start,
            start_stride_batch: (rows * tokens) as i64,
            partials_in: 0,
            partials_out: 0,
            out,
            start_rows: rows as u32,
            splits_in: 0,
            chunk_columns: columns.chunk,
            chunks_per_block: columns.chunks_per_block,
            maps,
        };
        let maps = |layers: Range<usize>| match &fused {
            Some(buffer) => self.fused_maps(buffer, layers),
            None => self.maps(layers),
        };
        let one_part = splits.parts() == 1 && columns.tiles == 1;
        let per_launch = if one_part { MAX_LAYERS_PER_LAUNCH } else { 1 };
        let range = self.problem.layers();
        let mut end = range.end;
        let mut splits_in = 0;
        while end > range.start {
            let first = range.start.max(end.saturating_sub(per_launch));
            let last_launch = first == range.start && one_part;
            let params = RolloutRowsParams {
                partials_in,
                splits_in,
                partials_out: if last_launch { 0 } else { partials_out },
                ..params(maps(first..end))
            };
            self.launch(variant, &extents, &params);
            std::mem::swap(&mut partials_in, &mut partials_out);
            splits_in = splits.parts();
            end = first;
        }
        if !one_part {
            let params = RolloutRowsParams {
                partials_in,
                splits_in,
                ..params(maps(range.start..range.start))
            };
            let one = Columns {
                tiles: 1,
                ..columns
            };
            let extents = Extents {
                splits: Splits::ONE,
                columns: one,
                ..extents
            };
            self.launch(variant, &extents, &params);
        }
        out
    }
}
