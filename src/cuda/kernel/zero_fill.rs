//! `zero_fill`: zeros.

use super::{Kernel, example_shape};
use crate::config::{Output, RolloutConfig};
use crate::cuda::address::Address;
use crate::cuda::launch::{Geometry, Launch};
use crate::cuda::parameters::params;
use crate::cuda::variant::{Variant, symbol};
use crate::dtype::DType;
use crate::error::Result;
use crate::layout::Window;
use crate::problem::Problem;

const BLOCK: u32 = 256;
/// Entries that a block writes.
const PIECE: u32 = 16 * BLOCK;

params! {
    /// Parameters of `zero_fill`.
    ZeroFillParams {
        out: Address,
        len: u64,
    }
}

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub struct ZeroFill;

/// All there are.
pub(super) fn all() -> [ZeroFill; 1] {
    [ZeroFill]
}

impl ZeroFill {
    /// Writes `len` zeros.
    pub fn launch(&self, out: Address, len: usize) -> Launch {
        let params = ZeroFillParams {
            out,
            len: len as u64,
        };
        let geometry = Geometry::new([len.div_ceil(PIECE as usize) as u32, 1, 1], BLOCK);
        Launch::new(self.variant(), geometry, &params, 0)
    }
}

impl Kernel for ZeroFill {
    fn variant(&self) -> Variant {
        Variant {
            defines: vec![
                ("BLOCK_THREADS", BLOCK.to_string()),
                ("PIECE", PIECE.to_string()),
            ],
            // All the threads a multiprocessor can have.
            ..Variant::new("zero_fill", symbol("zero_fill", &["f32"], &[]), BLOCK, 8)
        }
    }

    fn example(&self, layers: usize, tokens: usize) -> Result<Problem> {
        let config = RolloutConfig {
            output: Output::Cumulative,
            ..RolloutConfig::default()
        };
        let shape = example_shape(layers, tokens);
        let window = Window {
            start: 1,
            len: tokens * 2 / 3,
        };
        Problem::builder(shape, DType::F32)
            .config(config)
            .windows(vec![window; shape.batch])
            .build()
    }
}
