//! `head_fusion`, and one product per layer.

use attention_rollout::cuda::geometry::Extents;
use attention_rollout::cuda::params::{
    FusedMaps, Matrices, RolloutFirstParams, RolloutProductParams, RowScalesParams, ZeroFillParams,
};
use attention_rollout::cuda::variant::{Arithmetic, Form, Variant};

use super::Device;
use super::sources::FusedBuffer;

impl Device<'_> {
    /// Head fusion, then one product per layer.
    pub(super) fn product(&self, arithmetic: Arithmetic, form: Form) -> u64 {
        let shape = self.problem.shape();
        let (batch, tokens) = (shape.batch, shape.tokens);
        let buffer = self.fuse();
        let pitch = tokens.next_multiple_of(4);
        let start_rows = self.problem.start_rows();
        let state_rows = if start_rows > 0 { start_rows } else { tokens };
        let local = |base| Matrices {
            base,
            stride_batch: (state_rows * pitch) as i64,
            stride_row: pitch as i64,
        };
        let out = Matrices {
            base: self.floats(self.problem.output_len()),
            stride_batch: (state_rows * tokens) as i64,
            stride_row: tokens as i64,
        };
        let mut extents = self.extents(1, self.columns());
        // What lies outside the windows.
        let len = self.problem.output_len();
        let pieces = Extents {
            batch: len.div_ceil(Variant::FILL_PIECE as usize) as u32,
            ..extents
        };
        let params = ZeroFillParams {
            out: out.base,
            len: len as u64,
        };
        self.launch(Variant::ZeroFill, &pieces, &params);
        let variant = Variant::RolloutProduct {
            arithmetic,
            form,
            discard: buffer.cuts != 0,
        };
        let mut layers: Vec<usize> = self.problem.layers().collect();
        if form == Form::Rows {
            layers.reverse();
        }
        let count = layers.len();
        let states = [
            self.floats(batch * state_rows * pitch),
            self.floats(batch * state_rows * pitch),
        ];
        let mut state = local(states[0]);
        if start_rows > 0 {
            let weights = self.start_weights(tokens, pitch);
            self.memory
                .write(state.base, bytemuck::cast_slice(&weights))
                .unwrap();
        }
        for (step, layer) in layers.into_iter().enumerate() {
            let maps = self.fused_layer(&buffer, layer, &extents);
            let last = step + 1 == count;
            let next = if last {
                out
            } else {
                local(states[(step + 1) % 2])
            };
            if step == 0 && start_rows == 0 {
                let params = RolloutFirstParams {
                    maps,
                    out: next,
                    out_windowed: last.into(),
                    reserved: 0,
                };
                self.launch(Variant::RolloutFirst, &extents, &params);
            } else {
                if start_rows > 0 {
                    extents.rows = start_rows as u32;
                }
                let params = RolloutProductParams {
                    maps,
                    state,
                    out: next,
                    rows: start_rows as u32,
                    out_windowed: last.into(),
                };
                self.launch(variant, &extents, &params);
            }
            state = next;
        }
        out.base
    }

    /// One layer of a fused buffer with its scales.
    fn fused_layer(&self, buffer: &FusedBuffer, layer: usize, extents: &Extents) -> FusedMaps {
        let (batch, tokens) = self.dims();
        let all = self.fused_maps(buffer, layer..layer + 1);
        let mut maps = FusedMaps {
            base: all.layer[0].base,
            stride_batch: buffer.stride_batch,
            stride_row: buffer.stride_row,
            windows: self.windows,
            cuts: if buffer.cuts == 0 { 0 } else { all.cuts },
            scales: 0,
            attention: all.layer[0].attention,
            identity: all.layer[0].identity,
            tokens,
            causal: all.causal,
            discard_first: all.discard_first,
            discard_spares_origin: all.discard_spares_origin,
        };
        if self.problem.config().normalize_rows {
            let scales = self.floats((batch * tokens) as usize);
            self.launch(
                Variant::RowScales,
                extents,
                &RowScalesParams { maps, scales },
            );
            maps.scales = scales;
        }
        maps
    }
}
