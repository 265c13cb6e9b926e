//! `split_product`: products of split factors, any number of them in one launch.

use std::ops::Range;

use bytemuck::Zeroable;

use super::parts::WARP;
use super::window::Window;
use super::{Arithmetic, Kernel, Matrices, example_shape};
use crate::config::{Output, Residual, RolloutConfig};
use crate::cuda::address::Address;
use crate::cuda::launch::{Geometry, Launch};
use crate::cuda::parameters::params;
use crate::cuda::variant::{Variant, symbol};
use crate::dtype::DType;
use crate::error::Result;
use crate::problem::Problem;

/// Products one launch can take.
pub const MAX_PRODUCTS: usize = 64;

/// Columns of k in a stage.
const STEP: u32 = 32;

params! {
    /// A factor of the rollout: `attention * map + identity * I`.
    Factor {
        map: Address,
        attention: f32,
        identity: f32,
    }
}

params! {
    /// Two factors, and where the map of their product, or all of it, goes.
    FactorProduct {
        left: Factor,
        right: Factor,
        map: Address,
        result: Address,
    }
}

params! {
    /// Parameters of `split_product`.
    SplitProductParams {
        windows: Address,
        result_stride_batch: i64,
        result_stride_row: i64,
        stride_batch: i64,
        stride_row: i64,
        items: u32,
        causal: u32,
        product: [FactorProduct; MAX_PRODUCTS],
    }
}

impl Factor {
    /// The identity.
    pub const IDENTITY: Factor = Factor {
        map: Address::NULL,
        attention: 0.0,
        identity: 1.0,
    };

    /// A layer whose fused maps, split, begin at `map`.
    pub fn layer(map: Address, residual: Residual) -> Self {
        Factor {
            map,
            attention: residual.attention,
            identity: residual.identity,
        }
    }

    /// `self`, which comes later, times `earlier`, with its map at `map`.
    pub fn times(&self, earlier: &Factor, map: Address) -> Self {
        Factor {
            map,
            attention: 1.0,
            identity: self.identity * earlier.identity,
        }
    }
}

/// The kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitProduct {
    /// Rows of the output tile of a block: one of [`TILES`](SplitProduct::TILES). It has as many columns, or 64 of 128.
    pub tile: u32,
}

/// All there are.
pub(super) fn all() -> impl IntoIterator<Item = SplitProduct> {
    SplitProduct::TILES.map(|tile| SplitProduct { tile })
}

impl SplitProduct {
    /// Rows of tiles: the larger, the less is copied and loaded for each product, and the fewer blocks there are.
    pub const TILES: [u32; 3] = [32, 64, 128];

    /// The largest tile of which `products` products, in windows of `window_len` tokens, have as many blocks as hide each other's
    /// ends, one for each multiprocessor or, of the largest, four, and leave less than half of it empty: predicted to be
    /// the fastest one, or near it.
    pub fn fitting(products: usize, window_len: u32, multiprocessors: u32) -> Self {
        let fits = |kernel: &SplitProduct| {
            let least = if kernel.tile == 128 { 4 } else { 1 };
            let blocks = products as u64 * kernel.item_blocks(window_len);
            2 * window_len > kernel.tile && blocks >= least * u64::from(multiprocessors)
        };
        let large = [128, 64].map(|tile| SplitProduct { tile });
        let fitting = large.into_iter().find(fits);
        fitting.unwrap_or(SplitProduct { tile: 32 })
    }

    /// Elements of f32 that a row of a split map takes: whole sectors of 32 bytes for either half.
    pub fn padded(len: usize) -> usize {
        len.next_multiple_of(16)
    }

    /// `products` of layers of `problem` for `items` of a run, in windows at most `window_len` tokens long. All maps have
    /// the strides of `maps`, all results those of `results`.
    pub fn launch(
        &self,
        problem: &Problem,
        items: &Range<usize>,
        window_len: u32,
        products: &[FactorProduct],
        maps: Matrices,
        results: Matrices,
    ) -> Launch {
        let mut params = SplitProductParams {
            windows: Window::from_item(items.start),
            result_stride_batch: results.stride_batch,
            result_stride_row: results.stride_row,
            stride_batch: maps.stride_batch,
            stride_row: maps.stride_row,
            items: items.len() as u32,
            causal: problem.config().causal.into(),
            product: [FactorProduct::zeroed(); MAX_PRODUCTS],
        };
        params.product[..products.len()].copy_from_slice(products);
        let [down, across] = self.tiles(window_len);
        let grid = [(items.len() * products.len()) as u32, down, across];
        let geometry = Geometry {
            shared_bytes: self.shared_bytes(),
            ..Geometry::new(grid, self.block())
        };
        let unused = (MAX_PRODUCTS - products.len()) * size_of::<FactorProduct>();
        let written = products.iter().filter(|it| it.map != Address::NULL);
        Launch::new(self.variant(), geometry, &params, unused)
            .passing(2 * items.len() * written.count() * maps.bytes())
    }

    /// Tiles of windows of `window_len` tokens, one below the other and side by side.
    pub fn tiles(&self, window_len: u32) -> [u32; 2] {
        [self.tile, self.columns()].map(|side| window_len.div_ceil(side))
    }

    /// Blocks of a product.
    pub fn item_blocks(&self, window_len: u32) -> u64 {
        self.tiles(window_len).map(u64::from).iter().product()
    }

    /// Columns of the output tile of a block.
    const fn columns(&self) -> u32 {
        match self.tile {
            128 => 64,
            tile => tile,
        }
    }

    /// Rows and columns of the output tile of a warp.
    const fn warp_tile(&self) -> (u32, u32) {
        match self.tile {
            32 => (16, 16),
            64 => (32, 16),
            _ => (32, 32),
        }
    }

    /// Stages of k, all but one of them on their way.
    const fn stages(&self) -> u32 {
        match self.tile {
            32 => 4,
            _ => 3,
        }
    }

    /// Threads of a block.
    const fn block(&self) -> u32 {
        let (rows, columns) = self.warp_tile();
        WARP * (self.tile / rows) * (self.columns() / columns)
    }

    /// Dynamic shared memory of a block: both halves of both operands in each stage.
    const fn shared_bytes(&self) -> u32 {
        self.stages() * 2 * 2 * STEP * (self.tile + self.columns())
    }
}

impl Kernel for SplitProduct {
    fn variant(&self) -> Variant {
        let tile = format!("t{}", self.tile);
        let (rows, columns) = self.warp_tile();
        // As shared memory and, of the large ones, registers have room for on sm_90.
        let (blocks, grouped_blocks) = match self.tile {
            32 => (5, 5),
            64 => (3, 2),
            _ => (2, 1),
        };
        Variant {
            defines: vec![
                ("ROWS", self.tile.to_string()),
                ("COLUMNS", self.columns().to_string()),
                ("WARP_ROWS", rows.to_string()),
                ("WARP_COLUMNS", columns.to_string()),
                ("STAGES", self.stages().to_string()),
                ("BLOCK_THREADS", self.block().to_string()),
                ("BLOCKS", blocks.to_string()),
                ("GROUPED_BLOCKS", grouped_blocks.to_string()),
                ("SHARED_BYTES", self.shared_bytes().to_string()),
            ],
            arch: Arithmetic::F16x3.arch(),
            shared_bytes: self.shared_bytes(),
            grouped_blocks_per_multiprocessor: grouped_blocks,
            ..Variant::new(
                "split_product",
                symbol(
                    "split_product",
                    &["f32", Arithmetic::F16x3.name(), &tile],
                    &[],
                ),
                self.block(),
                blocks,
            )
        }
    }

    fn example(&self, layers: usize, tokens: usize) -> Result<Problem> {
        let config = RolloutConfig {
            output: Output::Matrix,
            ..RolloutConfig::default()
        };
        Problem::new(example_shape(layers, tokens), DType::F32, config)
    }
}
