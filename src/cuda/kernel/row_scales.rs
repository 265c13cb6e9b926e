//! `row_scales`: reciprocal row sums of `Ahat` from fused maps.

use super::parts::WARP;
use super::{FusedMaps, Kernel, example_shape};
use crate::config::{Output, RolloutConfig};
use crate::cuda::address::Address;
use crate::cuda::launch::{Geometry, Launch};
use crate::cuda::parameters::params;
use crate::cuda::variant::{Variant, symbol};
use crate::dtype::DType;
use crate::error::Result;
use crate::problem::Problem;

/// A warp takes a row.
const BLOCK: u32 = 256;

params! {
    /// Parameters of `row_scales`.
    RowScalesParams {
        maps: FusedMaps,
        scales: Address,
    }
}

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub struct RowScales;

/// All there are.
pub(super) fn all() -> [RowScales; 1] {
    [RowScales]
}

impl RowScales {
    /// The scales `[items, tokens]` of one layer, windows at most `window_len` tokens long.
    pub fn launch(
        &self,
        items: usize,
        window_len: u32,
        maps: FusedMaps,
        scales: Address,
    ) -> Launch {
        let geometry = Geometry::new([items as u32, window_len.div_ceil(BLOCK / WARP), 1], BLOCK);
        let params = RowScalesParams { maps, scales };
        Launch::new(self.variant(), geometry, &params, 0).passing(items * maps.map_bytes())
    }
}

impl Kernel for RowScales {
    fn variant(&self) -> Variant {
        Variant {
            defines: vec![("BLOCK_THREADS", BLOCK.to_string())],
            // All the threads a multiprocessor can have.
            ..Variant::new("row_scales", symbol("row_scales", &["f32"], &[]), BLOCK, 8)
        }
    }

    fn example(&self, layers: usize, tokens: usize) -> Result<Problem> {
        let config = RolloutConfig {
            normalize_rows: true,
            output: Output::Cumulative,
            ..RolloutConfig::default()
        };
        Problem::new(example_shape(layers, tokens), DType::F32, config)
    }
}
