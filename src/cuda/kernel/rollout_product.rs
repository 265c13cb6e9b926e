//! `rollout_product`: one step of the product, from fused maps.

use super::parts::WARP;
use super::{Arithmetic, Form, FusedMaps, Kernel, Matrices, example_discard, example_shape};
use crate::config::{Output, RolloutConfig, StartRows};
use crate::cuda::launch::{Geometry, Launch};
use crate::cuda::parameters::params;
use crate::cuda::variant::{Variant, flag, symbol};
use crate::dtype::DType;
use crate::error::Result;
use crate::problem::Problem;

params! {
    /// Parameters of `rollout_product`.
    RolloutProductParams {
        maps: FusedMaps,
        state: Matrices,
        out: Matrices,
        rows: u32,
        out_windowed: u32,
    }
}

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub struct RolloutProduct {
    /// How products are computed.
    pub arithmetic: Arithmetic,
    /// Which factor the layer is.
    pub form: Form,
    /// Fused maps have cuts.
    pub discard: bool,
}

/// All there are.
pub(super) fn all() -> impl IntoIterator<Item = RolloutProduct> {
    let discards = |arithmetic, form| {
        [false, true].map(|discard| RolloutProduct {
            arithmetic,
            form,
            discard,
        })
    };
    let forms = move |arithmetic| {
        let forms = Form::ALL.into_iter();
        forms.flat_map(move |form| discards(arithmetic, form))
    };
    Arithmetic::ALL.into_iter().flat_map(forms)
}

impl RolloutProduct {
    /// Rows and columns of the output tile of a block.
    pub const TILE: u32 = 64;

    /// One step, of windows at most `window_len` tokens long.
    pub fn launch(&self, items: usize, window_len: u32, params: RolloutProductParams) -> Launch {
        let rows = match params.rows {
            0 => window_len,
            rows => rows,
        };
        let geometry = Geometry {
            grid: [
                items as u32,
                rows.div_ceil(RolloutProduct::TILE),
                window_len.div_ceil(RolloutProduct::TILE),
            ],
            block: self.block(),
            shared_bytes: 0,
            cluster: 1,
            cooperative: false,
        };
        Launch::new(self.variant(), geometry, &params, 0)
            .passing(2 * items * params.maps.state_bytes(rows))
    }

    /// Threads of a block: 16 entries of the tile each, or a quarter of it per warp.
    const fn block(&self) -> u32 {
        match self.arithmetic {
            Arithmetic::F32 => RolloutProduct::TILE * RolloutProduct::TILE / 16,
            _ => 4 * WARP,
        }
    }
}

impl Kernel for RolloutProduct {
    fn variant(&self) -> Variant {
        let RolloutProduct {
            arithmetic,
            form,
            discard,
        } = *self;
        let parts = ["f32", arithmetic.name(), form.name()];
        // `BLOCKS` of the arithmetic's tile.
        let blocks = match arithmetic {
            Arithmetic::F32 => 3,
            _ => 4,
        };
        Variant {
            stem: "rollout_product",
            symbol: symbol("rollout_product", &parts, &[(discard, "discard")]),
            defines: vec![
                arithmetic.define(),
                ("BLOCK_THREADS", self.block().to_string()),
                ("TILE", RolloutProduct::TILE.to_string()),
                ("MAP_IS_LEFT", flag(form == Form::Matrix)),
                ("DISCARD", flag(discard)),
            ],
            arguments: &[0],
            arch: arithmetic.arch(),
            block: self.block(),
            blocks_per_multiprocessor: blocks,
            grouped_blocks_per_multiprocessor: blocks,
            // Tiles for 2 blocks in the 100 KB of sm_86, sm_89 and sm_120.
            static_shared_bytes: 48 << 10,
            shared_bytes: 0,
            cluster: 1,
            queues: false,
        }
    }

    fn example(&self, layers: usize, tokens: usize) -> Result<Problem> {
        let config = RolloutConfig {
            discard: example_discard(self.discard),
            output: match self.form {
                // More than `rollout_rows` takes.
                Form::Rows => Output::Rows(StartRows::Rows((0..9).collect())),
                Form::Matrix => Output::Cumulative,
            },
            ..RolloutConfig::default()
        };
        Problem::new(example_shape(layers, tokens), DType::F32, config)
    }
}
