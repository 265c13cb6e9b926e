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

/// A factor of the rollout: `attention * map + identity * I`.
#[derive(Clone, Copy, Debug)]
pub struct Factor {
    /// Its map, split, of the first item.
    pub map: Address,
    attention: f32,
    identity: f32,
}

params! {
    /// `attention (left right + left_weight left + right_weight right) + identity I`, and where the first term, or all of
    /// it, goes.
    FactorProduct {
        left: Address,
        right: Address,
        map: Address,
        result: Address,
        left_weight: f32,
        right_weight: f32,
        attention: f32,
        identity: f32,
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

    /// A layer whose fused maps, split, begin at `map`. Products divide by the attention: where there is less than shows
    /// beside the identity it is a little more, which does not show either. None stays none.
    pub fn layer(map: Address, residual: Residual) -> Self {
        let Residual {
            attention,
            identity,
        } = residual;
        let least = identity.abs() * 2f32.powi(-40);
        let some = attention.abs().max(least).copysign(attention);
        Factor {
            map,
            attention: if attention == 0.0 { 0.0 } else { some },
            identity,
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

    /// Whether it is a multiple of the identity.
    fn is_scalar(&self) -> bool {
        self.attention == 0.0
    }
}

impl FactorProduct {
    /// Of a factor and the one before. A multiple of the identity is the right one: it may stand on either side.
    pub fn new(later: Factor, earlier: Factor, map: Address, result: Address) -> Self {
        let (left, right) = match later.is_scalar() && !earlier.is_scalar() {
            true => (earlier, later),
            false => (later, earlier),
        };
        let one = FactorProduct {
            left: left.map,
            right: Address::NULL,
            map,
            result,
            left_weight: 1.0,
            right_weight: 0.0,
            attention: left.attention * right.identity,
            identity: left.identity * right.identity,
        };
        match right.is_scalar() {
            true => one,
            false => FactorProduct {
                right: right.map,
                left_weight: right.identity / right.attention,
                right_weight: left.identity / left.attention,
                attention: left.attention * right.attention,
                ..one
            },
        }
    }
}

/// The kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitProduct {
    /// Rows of the output tile of a block. It has as many columns, or 64 of 128, 128 of 160, and
    /// 112 of 208.
    pub tile: u32,
    /// Some warps copy and do nothing else, so that those which multiply wait for what they need and not for each other.
    pub apart: bool,
}

/// All there are.
pub(super) fn all() -> impl IntoIterator<Item = SplitProduct> {
    SplitProduct::ALL
}

impl SplitProduct {
    /// All of whose warps copy: the larger the tile, the less is copied and loaded for each product, and the fewer blocks
    /// there are.
    pub const TOGETHER: [SplitProduct; 3] = [
        SplitProduct::together(32),
        SplitProduct::together(64),
        SplitProduct::together(128),
    ];

    /// Some of whose warps do nothing else: for a multiprocessor that has one block or two.
    pub const APART: [SplitProduct; 4] = [
        SplitProduct::apart(64),
        SplitProduct::apart(112),
        SplitProduct::apart(160),
        SplitProduct::apart(208),
    ];

    /// All there are.
    pub const ALL: [SplitProduct; 7] = {
        let [small, middle, large] = Self::TOGETHER;
        let [few, two, one, whole] = Self::APART;
        [small, middle, large, few, two, one, whole]
    };

    /// All of whose warps copy.
    pub const fn together(tile: u32) -> Self {
        let apart = false;
        SplitProduct { tile, apart }
    }

    /// Some of whose warps do nothing else.
    pub const fn apart(tile: u32) -> Self {
        let apart = true;
        SplitProduct { tile, apart }
    }

    /// Of those whose warps all copy, the largest tile that `products` products, in windows of `window_len` tokens, leave
    /// less than half empty, and the next smaller of which would have about four blocks for each multiprocessor: predicted
    /// to be the fastest one, or near it.
    pub fn fitting(products: usize, window_len: u32, multiprocessors: u32) -> Self {
        let [small, middle, large] = SplitProduct::TOGETHER;
        let fits = |[kernel, smaller]: &[SplitProduct; 2]| {
            let blocks = products as u64 * smaller.item_blocks(window_len);
            2 * window_len > kernel.tile && 4 * blocks >= 15 * u64::from(multiprocessors)
        };
        let pairs = [[large, middle], [middle, small]];
        pairs
            .into_iter()
            .find(fits)
            .map_or(small, |[kernel, _]| kernel)
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
            160 => 128,
            208 => 112,
            tile => tile,
        }
    }

    /// Rows and columns of the output tile of a warp.
    const fn warp_tile(&self) -> (u32, u32) {
        match (self.tile, self.apart) {
            (32, _) | (64, true) => (16, 16),
            (64, false) => (32, 16),
            (112 | 208, _) => (16, 56),
            _ => (32, 32),
        }
    }

    /// Stages of k, all but one of them on their way.
    const fn stages(&self) -> u32 {
        match (self.tile, self.apart) {
            (112, _) => 3,
            (208, _) => 5,
            (32, _) | (_, true) => 4,
            _ => 3,
        }
    }

    /// Warps that copy and do nothing else.
    const fn copying_warps(&self) -> u32 {
        match (self.tile, self.apart) {
            (_, false) => 0,
            (112 | 208, true) => 2,
            (_, true) => 4,
        }
    }

    /// Threads of a block.
    const fn block(&self) -> u32 {
        let (rows, columns) = self.warp_tile();
        WARP * (self.tile / rows * (self.columns() / columns) + self.copying_warps())
    }

    /// Static shared memory of a block: whether each stage is full, and whether it is empty.
    const fn barrier_bytes(&self) -> u32 {
        self.stages() * 2 * 8
    }

    /// Dynamic shared memory of a block: both halves of both operands in each stage.
    const fn shared_bytes(&self) -> u32 {
        self.stages() * 2 * 2 * STEP * (self.tile + self.pitch())
    }

    /// Columns from a row of the right operand in shared memory to the next: where its granules do not change places by the
    /// row, an odd number of them.
    const fn pitch(&self) -> u32 {
        match self.columns() {
            112 => 120,
            columns => columns,
        }
    }
}

impl Kernel for SplitProduct {
    fn variant(&self) -> Variant {
        let tile = format!("t{}", self.tile);
        let (rows, columns) = self.warp_tile();
        // As shared memory and, of the large ones, registers have room for: before sm_90, on it, and grouped.
        let (blocks, newer_blocks, grouped_blocks) = match (self.tile, self.apart) {
            (32, _) => (5, 5, 5),
            (64, false) => (3, 3, 2),
            (128, _) => (2, 3, 1),
            (64, true) | (112, _) => (2, 2, 0),
            _ => (1, 1, 0),
        };
        Variant {
            defines: vec![
                ("ROWS", self.tile.to_string()),
                ("COLUMNS", self.columns().to_string()),
                ("WARP_ROWS", rows.to_string()),
                ("WARP_COLUMNS", columns.to_string()),
                ("COPYING_WARPS", self.copying_warps().to_string()),
                ("STAGES", self.stages().to_string()),
                ("BLOCK_THREADS", self.block().to_string()),
                ("BLOCKS", blocks.to_string()),
                ("NEWER_BLOCKS", newer_blocks.to_string()),
                ("GROUPED_BLOCKS", grouped_blocks.to_string()),
                ("SHARED_BYTES", self.shared_bytes().to_string()),
            ],
            // Before, nobody predicted them to be faster.
            arch: if self.apart {
                90
            } else {
                Arithmetic::F16x3.arch()
            },
            static_shared_bytes: if self.apart { self.barrier_bytes() } else { 0 },
            shared_bytes: self.shared_bytes(),
            grouped_blocks_per_multiprocessor: grouped_blocks,
            ..Variant::new(
                "split_product",
                symbol(
                    "split_product",
                    &["f32", Arithmetic::F16x3.name(), &tile],
                    &[(self.apart, "apart")],
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::address::Base;

    #[test]
    fn the_tile_grows_with_the_blocks_of_a_level() {
        for (products, window_len, tile) in [
            (1, 197, 32),
            (8, 197, 32),
            (16, 197, 64),
            (24, 197, 64),
            (48, 197, 128),
            (2, 512, 64),
            (1000, 64, 64),
            (1000, 65, 128),
            (1000, 32, 32),
            (1000, 33, 64),
        ] {
            let fitting = SplitProduct::fitting(products, window_len, 132);
            assert_eq!(fitting.tile, tile, "{products} of {window_len}");
        }
    }

    /// Maps of one token, as f64, at addresses of their own.
    #[test]
    fn the_product_of_factors_is_that_of_their_maps_and_identities() {
        let [later_map, earlier_map] =
            [1, 2].map(|index| (Address::of(Base::Buffer(index)), 0.25 * index as f64));
        let weights = [
            (0.5, 0.5),
            (1.0, 0.0),
            (0.0, 1.0),
            (-0.5, 0.25),
            (1e-37, 1.0),
            (-1e-37, 1.0),
        ];
        for (later, earlier) in weights
            .iter()
            .flat_map(|later| weights.map(|it| (*later, it)))
        {
            let factor =
                |map, (attention, identity)| Factor::layer(map, Residual::new(attention, identity));
            let product = FactorProduct::new(
                factor(later_map.0, later),
                factor(earlier_map.0, earlier),
                Address::NULL,
                Address::NULL,
            );
            let value = |address| {
                let maps = [later_map, earlier_map, (Address::NULL, 0.0)];
                maps.into_iter().find(|map| map.0 == address).unwrap().1
            };
            let (left, right) = (value(product.left), value(product.right));
            let [left_weight, right_weight, attention, identity] = [
                product.left_weight,
                product.right_weight,
                product.attention,
                product.identity,
            ]
            .map(f64::from);
            let got =
                attention * (left * right + left_weight * left + right_weight * right) + identity;
            let of = |(attention, identity): (f32, f32), map: f64| {
                f64::from(attention) * map + f64::from(identity)
            };
            let expected = of(later, later_map.1) * of(earlier, earlier_map.1);
            assert!(
                (got - expected).abs() < 1e-11,
                "{later:?} {earlier:?}: {got}, not {expected}"
            );
            // What is no number shows where attention is not 0.
            let seen = [later, earlier]
                .iter()
                .filter(|weights| weights.0 != 0.0)
                .count();
            let maps = [product.left, product.right];
            let read = maps.iter().filter(|map| **map != Address::NULL).count();
            assert_eq!(read, seen.max(1), "{later:?} {earlier:?}");
        }
    }
}
