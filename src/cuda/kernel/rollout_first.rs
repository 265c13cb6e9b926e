//! `rollout_first`: `Ahat` of one layer from fused maps, the first step of a product; also copies a state.

use super::parts::WARP;
use super::{FusedMaps, Kernel, Matrices, example_shape};
use crate::config::{Output, RolloutConfig};
use crate::cuda::launch::{Geometry, Launch};
use crate::cuda::parameters::params;
use crate::cuda::variant::{Variant, symbol};
use crate::dtype::DType;
use crate::error::Result;
use crate::problem::Problem;

/// A warp takes a row.
const BLOCK: u32 = 256;

params! {
    /// Parameters of `rollout_first`.
    RolloutFirstParams {
        maps: FusedMaps,
        out: Matrices,
        out_windowed: u32,
        reserved: u32,
    }
}

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub struct RolloutFirst;

/// All there are.
pub(super) fn all() -> [RolloutFirst; 1] {
    [RolloutFirst]
}

impl RolloutFirst {
    /// `Ahat` of one layer into `out`, which holds all tokens where it is `windowed`; windows at most `window_len`
    /// tokens long.
    pub fn launch(
        &self,
        items: usize,
        window_len: u32,
        maps: FusedMaps,
        out: Matrices,
        windowed: bool,
    ) -> Launch {
        let geometry = Geometry::new([items as u32, window_len.div_ceil(BLOCK / WARP), 1], BLOCK);
        let params = RolloutFirstParams {
            maps,
            out,
            out_windowed: windowed.into(),
            reserved: 0,
        };
        Launch::new(self.variant(), geometry, &params, 0)
            .passing(2 * items * maps.state_bytes(window_len))
    }
}

impl Kernel for RolloutFirst {
    fn variant(&self) -> Variant {
        Variant {
            defines: vec![("BLOCK_THREADS", BLOCK.to_string())],
            ..Variant::new(
                "rollout_first",
                symbol("rollout_first", &["f32"], &[]),
                BLOCK,
                6,
            )
        }
    }

    fn example(&self, layers: usize, tokens: usize) -> Result<Problem> {
        let config = RolloutConfig {
            output: Output::Cumulative,
            ..RolloutConfig::default()
        };
        Problem::new(example_shape(layers, tokens), DType::F32, config)
    }
}
