//! `discard`: the cut between discarded and kept entries of each fused map.

use std::ops::Range;

use super::window::Scope;
use super::{Fused, Kernel, Window, example_discard, example_shape};
use crate::config::RolloutConfig;
use crate::cuda::address::{Address, Base};
use crate::cuda::launch::{Geometry, Launch};
use crate::cuda::parameters::params;
use crate::cuda::variant::{Variant, symbol};
use crate::dtype::DType;
use crate::error::Result;
use crate::problem::Problem;

const BLOCK: u32 = 512;

params! {
    /// Parameters of `discard`.
    DiscardParams {
        fused: Address,
        stride_layer: i64,
        stride_batch: i64,
        stride_row: i64,
        windows: Address,
        counts: Address,
        cuts: Address,
        batch: u32,
        layers: u32,
        causal: u32,
        discard_first: u32,
    }
}

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub struct FindCuts;

/// All there are.
pub(super) fn all() -> [FindCuts; 1] {
    [FindCuts]
}

impl FindCuts {
    /// The `cuts` of `layers` layers of `fused`, whose items are `items` of a run.
    pub fn launch(
        &self,
        problem: &Problem,
        items: &Range<usize>,
        layers: usize,
        fused: Fused,
        cuts: Address,
    ) -> Launch {
        let params = DiscardParams {
            fused: fused.maps.base,
            stride_layer: fused.stride_layer as i64,
            stride_batch: fused.maps.stride_batch,
            stride_row: fused.maps.stride_row,
            windows: Window::from_item(items.start),
            counts: Address::of(Base::Counts) + size_of::<u64>() * items.start,
            cuts,
            batch: items.len() as u32,
            layers: layers as u32,
            causal: problem.config().causal.into(),
            discard_first: Scope::of(problem).first,
        };
        let geometry = Geometry::new([items.len() as u32, layers as u32, 1], BLOCK);
        Launch::new(self.variant(), geometry, &params, 0)
            .passing(items.len() * layers * fused.maps.bytes())
    }
}

impl Kernel for FindCuts {
    fn variant(&self) -> Variant {
        Variant {
            defines: vec![("BLOCK_THREADS", BLOCK.to_string())],
            // A histogram.
            static_shared_bytes: 16 << 10,
            ..Variant::new("discard", symbol("discard", &["f32"], &[]), BLOCK, 2)
        }
    }

    fn example(&self, layers: usize, tokens: usize) -> Result<Problem> {
        let config = RolloutConfig {
            discard: example_discard(true),
            ..RolloutConfig::default()
        };
        Problem::new(example_shape(layers, tokens), DType::F32, config)
    }
}
