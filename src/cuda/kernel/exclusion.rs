//! `exclusion`: fused maps without the tokens that nothing attends to.

use std::ops::Range;

use super::parts::WARP;
use super::window::Scope;
use super::{Fused, Kernel, Window, example_shape};
use crate::config::{Output, RolloutConfig};
use crate::cuda::address::{Address, Base};
use crate::cuda::launch::{Geometry, Launch};
use crate::cuda::parameters::params;
use crate::cuda::variant::{Variant, symbol};
use crate::dtype::DType;
use crate::error::Result;
use crate::problem::Problem;

/// A warp takes a row.
const BLOCK: u32 = 256;

params! {
    /// Parameters of `exclusion`.
    ExclusionParams {
        fused: Address,
        stride_layer: i64,
        stride_batch: i64,
        stride_row: i64,
        windows: Address,
        cuts: Address,
        excluded: Address,
        batch: u32,
        causal: u32,
        discard_first: u32,
        discard_spares_origin: u32,
    }
}

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub struct Exclude;

/// All there are.
pub(super) fn all() -> [Exclude; 1] {
    [Exclude]
}

impl Exclude {
    /// Takes the excluded tokens, and what the cuts discard, out of `layers` layers of `fused`, whose items are `items` of a
    /// run; windows at most `window_len` tokens long.
    pub fn launch(
        &self,
        problem: &Problem,
        items: &Range<usize>,
        layers: usize,
        window_len: u32,
        fused: Fused,
    ) -> Launch {
        let scope = Scope::of(problem);
        let params = ExclusionParams {
            fused: fused.maps.base,
            stride_layer: fused.stride_layer as i64,
            stride_batch: fused.maps.stride_batch,
            stride_row: fused.maps.stride_row,
            windows: Window::from_item(items.start),
            cuts: fused.cuts.unwrap_or(Address::NULL),
            excluded: Address::of(Base::Excluded),
            batch: items.len() as u32,
            causal: problem.config().causal.into(),
            discard_first: scope.first,
            discard_spares_origin: scope.spares_origin,
        };
        let rows = window_len.div_ceil(BLOCK / WARP);
        let geometry = Geometry::new([items.len() as u32, rows, layers as u32], BLOCK);
        Launch::new(self.variant(), geometry, &params, 0)
            .passing(2 * items.len() * layers * fused.maps.bytes())
    }
}

impl Kernel for Exclude {
    fn variant(&self) -> Variant {
        Variant {
            defines: vec![("BLOCK_THREADS", BLOCK.to_string())],
            // Parameters in shared memory take some registers.
            grouped_blocks_per_multiprocessor: 6,
            // All the threads a multiprocessor can have.
            ..Variant::new("exclusion", symbol("exclusion", &["f32"], &[]), BLOCK, 8)
        }
    }

    fn example(&self, layers: usize, tokens: usize) -> Result<Problem> {
        let config = RolloutConfig {
            exclude_from_attention: vec![1, tokens - 1],
            output: Output::Cumulative,
            ..RolloutConfig::default()
        };
        Problem::new(example_shape(layers, tokens), DType::F32, config)
    }
}
