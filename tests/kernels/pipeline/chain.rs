//! `rollout_chain`.

use attention_rollout::cuda::params::{MAX_LAYERS_PER_LAUNCH, RolloutChainParams};
use attention_rollout::cuda::variant::{Arithmetic, Variant};

use super::Device;

impl Device<'_> {
    /// `rollout_chain` over all layers.
    pub(super) fn chain(&self, arithmetic: Arithmetic) -> u64 {
        let (dtype, fusion, fused, columns) = self.sources();
        let tokens = Variant::CHAIN_TOKENS
            .into_iter()
            .find(|&tokens| self.window_len <= tokens)
            .unwrap();
        let variant = Variant::RolloutChain {
            dtype,
            arithmetic,
            tokens,
            fusion,
            normalize: self.problem.config().normalize_rows,
            discard: fused.is_some(),
        };
        let out = self.floats(self.problem.output_len());
        let range = self.problem.layers();
        let mut end = range.end;
        while end > range.start {
            let first = range.start.max(end.saturating_sub(MAX_LAYERS_PER_LAUNCH));
            let params = RolloutChainParams {
                state: if end == range.end { 0 } else { out },
                out,
                maps: match &fused {
                    Some(buffer) => self.fused_maps(buffer, first..end),
                    None => self.maps(first..end),
                },
            };
            self.launch(variant, &self.extents(end - first, columns), &params);
            end = first;
        }
        out
    }
}
