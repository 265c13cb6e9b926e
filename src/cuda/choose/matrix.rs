//! The time that whole matrices are expected to take by a ring and by a tree.

use super::Workload;
use super::figure::Figure;
use super::rates::Rates;
use crate::config::Output;
use crate::cuda::kernel::{Kernel, MatrixStream, RingMatrix, SplitProduct};
use crate::cuda::limits::DeviceLimits;
use crate::cuda::pipeline::TreeShape;

/// Columns of k that a block of `split_product` copies and multiplies at a time.
const TREE_STEP: u32 = 32;

/// Time of a block of `split_product`.
struct TreeBlock {
    /// A step, of a block alone on its multiprocessor, and of one of many.
    step_alone_us: Figure,
    step_us: Figure,
    /// What one of many takes beside its steps.
    rest_us: Figure,
}

impl TreeBlock {
    fn of(kernel: SplitProduct, rates: &Rates) -> Self {
        let (step_alone_us, step_us, rest_us) = match (kernel.tile, kernel.apart) {
            (32, _) => (
                rates.tree_32_step_alone_us,
                rates.tree_32_step_us,
                rates.tree_32_rest_us,
            ),
            (64, false) => (
                rates.tree_64_step_alone_us,
                rates.tree_64_step_us,
                rates.tree_64_rest_us,
            ),
            (64, true) => (
                rates.tree_64_apart_step_us,
                rates.tree_64_apart_step_us,
                rates.tree_64_apart_rest_us,
            ),
            (112, _) => (
                rates.tree_112_step_alone_us,
                rates.tree_112_step_us,
                rates.tree_112_rest_us,
            ),
            (128, _) => (
                rates.tree_128_step_alone_us,
                rates.tree_128_step_us,
                rates.tree_128_rest_us,
            ),
            (160, _) => (
                rates.tree_160_step_us,
                rates.tree_160_step_us,
                rates.tree_160_rest_us,
            ),
            _ => (
                rates.tree_208_step_us,
                rates.tree_208_step_us,
                rates.tree_208_rest_us,
            ),
        };
        TreeBlock {
            step_alone_us,
            step_us,
            rest_us,
        }
    }
}

/// A level of the tree by `kernel`: `products` products in windows of `window_len` tokens.
fn level_us(
    kernel: SplitProduct,
    products: usize,
    window_len: u32,
    multiprocessors: u32,
    rates: &Rates,
) -> Figure {
    let block = TreeBlock::of(kernel, rates);
    let steps = f64::from(window_len.div_ceil(TREE_STEP));
    let blocks = products as u64 * kernel.item_blocks(window_len);
    // Those of the multiprocessor that has most.
    let most = blocks.div_ceil(multiprocessors.max(1).into()) as f64;
    let all_us = most * (steps * block.step_us + block.rest_us);
    rates.launch_us + rates.tree_level_us + all_us.max(steps * block.step_alone_us)
}

/// The kernel that is expected to take `products` products in windows of `window_len` tokens in the least time.
pub(in crate::cuda) fn fastest_product(
    products: usize,
    window_len: u32,
    limits: &DeviceLimits,
) -> SplitProduct {
    let rates = Rates::of(limits);
    let us = |kernel: &SplitProduct| {
        level_us(*kernel, products, window_len, limits.multiprocessors, rates).value
    };
    let together = SplitProduct::fitting(products, window_len, limits.multiprocessors);
    // What several problems share has no clusters, nor these, which are only entered alone.
    let can = |kernel: &SplitProduct| limits.clusters && kernel.variant().runs_on(limits);
    let apart = SplitProduct::APART.into_iter().filter(can);
    std::iter::once(together)
        .chain(apart)
        .min_by(|a, b| us(a).total_cmp(&us(b)))
        .unwrap_or(together)
}

impl Workload<'_> {
    /// All layers in one launch, a block or a cluster to an item: the longer of streaming and of multiplying.
    pub(super) fn ring_matrix_us(&self, ring_matrix: RingMatrix) -> Figure {
        let RingMatrix { kernel, sets, .. } = ring_matrix;
        let slabs = f64::from(self.common.window_len.div_ceil(16));
        let cluster = f64::from(kernel.cluster());
        let (bytes, heads) = match self.matrix_fused_first {
            true => (self.fused_bytes(), 1),
            false => (self.item_bytes, self.problem.shape().heads),
        };
        let slab_us = self.rates.slab_us + heads as f64 * self.slab_head_us(kernel);
        // What the others leave: a few blocks get more, up to what a ring can have on its way.
        let multiprocessors = f64::from(self.limits.multiprocessors);
        let share = match multiprocessors / (f64::from(sets) * cluster) {
            more if more > 1.0 => self.rates.matrix_ring_shares.min(more),
            _ => Figure::from(1.0),
        };
        let streaming_us = bytes / (self.bytes_per_us() * share * cluster);
        let multiplying_us = self.layers() * (slabs * slab_us + self.rates.matrix_layer_us);
        let items = match self.grouped {
            // Blocks take what others have not.
            true => self.batch / f64::from(self.limits.multiprocessors),
            false => (self.batch / f64::from(sets)).ceil(),
        };
        self.rates.launch_us + items * streaming_us.max(multiplying_us)
    }

    /// The tree of products: of each part of the batch and of the layers, fusing, and a launch for each level.
    pub(super) fn tree_us(&self, kernel: Option<SplitProduct>) -> Figure {
        let all = self.problem.layers().len();
        let len = self.common.window_len;
        let shape = TreeShape::new(all, self.batch as usize, len, self.limits);
        let parts = (self.batch / shape.items as f64).ceil();
        let cumulative = self.problem.config().output == Output::Cumulative;
        let limits = DeviceLimits {
            clusters: self.limits.clusters && !self.grouped,
            ..self.limits.clone()
        };
        let level_us = |level: &Vec<[usize; 2]>| {
            let products = level.len() * shape.items;
            let fastest = || fastest_product(products, len, &limits);
            let kernel = kernel.unwrap_or_else(fastest);
            level_us(kernel, products, len, limits.multiprocessors, self.rates)
        };
        let first = (0..all).step_by(shape.layers);
        let part_us = first.map(|first| {
            let layers = shape.layers.min(all - first);
            let levels = TreeShape::levels(layers + usize::from(first > 0), cumulative);
            self.rates.launch_us + levels.iter().map(level_us).sum::<Figure>()
        });
        self.fusion_us() + parts * part_us.sum::<Figure>()
    }

    /// Fusing a head of a slab.
    fn slab_head_us(&self, kernel: MatrixStream) -> Figure {
        match (kernel.tokens, kernel.dtype.size_bytes()) {
            (64, _) => self.rates.slab_64_head_us,
            (128, 4) => self.rates.slab_128_head_us,
            (128, _) => self.rates.slab_128_16_bit_head_us,
            (_, 4) => self.rates.slab_208_head_us,
            (_, _) => self.rates.slab_208_16_bit_head_us,
        }
    }

    /// Bytes of the fused maps of one item.
    fn fused_bytes(&self) -> f64 {
        let len = f64::from(self.common.window_len);
        4.0 * self.layers() * len * len
    }
}

#[cfg(test)]
mod tests {
    use super::super::estimate::tests::candidates;
    use super::super::preferred;
    use super::*;
    use crate::cuda::pipeline::Pipeline;
    use crate::dtype::DType::{self, F16, F32};

    /// Pipelines with their times.
    type Times = &'static [(&'static str, f64)];

    const TREE: &str = "tree";
    const PRODUCT: &str = "product, f16x3, matrix";
    const BLOCK: &str = "ring matrix, f16x3, a block to an item";
    const CLUSTER: &str = "ring matrix, f16x3, a cluster of 2 to an item";

    /// What the model of a multiprocessor predicts for the matrix on an H200, in microseconds in a CUDA graph: `[layers,
    /// batch, heads, tokens]`, type, and pipelines with their times. Predictions, not measurements.
    #[rustfmt::skip]
    const PREDICTED: &[([usize; 4], DType, Times)] = &[
        ([12, 1, 12, 197], F16, &[(TREE, 23.2), (PRODUCT, 122.1), (CLUSTER, 245.8)]),
        ([12, 8, 12, 197], F16, &[(TREE, 58.7), (PRODUCT, 141.3), (CLUSTER, 242.6)]),
        ([12, 33, 12, 197], F16, &[(TREE, 232.1), (PRODUCT, 308.0), (CLUSTER, 241.9)]),
        ([12, 64, 12, 197], F16, &[(TREE, 438.1), (PRODUCT, 531.5), (CLUSTER, 245.2)]),
        ([12, 64, 12, 197], F32, &[(TREE, 598.5), (PRODUCT, 688.9), (CLUSTER, 358.7)]),
        ([24, 64, 16, 197], F16, &[(TREE, 1034.2), (PRODUCT, 1189.1), (CLUSTER, 612.4)]),
        ([12, 2, 12, 512], F16, &[(TREE, 108.3), (PRODUCT, 295.0)]),
        ([24, 1, 16, 577], F16, &[(TREE, 165.0), (PRODUCT, 663.5)]),
        ([12, 16, 3, 197], F32, &[(TREE, 79.5), (PRODUCT, 149.5), (CLUSTER, 189.8)]),
        ([12, 16, 12, 128], F32, &[(TREE, 60.1), (PRODUCT, 122.7), (BLOCK, 193.4)]),
        ([6, 4, 12, 28], F32, &[(TREE, 10.9), (PRODUCT, 26.9), (BLOCK, 21.1)]),
        ([12, 1024, 12, 97], F16, &[(TREE, 1462.1), (PRODUCT, 1670.1), (BLOCK, 979.4)]),
        ([12, 264, 4, 60], F32, &[(TREE, 95.6), (PRODUCT, 143.1), (BLOCK, 66.5)]),
        ([12, 256, 12, 64], F16, &[(TREE, 124.4), (PRODUCT, 164.4), (BLOCK, 98.6)]),
        ([3, 256, 4, 100], F32, &[(TREE, 71.3), (PRODUCT, 83.5), (BLOCK, 55.4)]),
        ([3, 256, 4, 60], F32, &[(TREE, 23.0), (PRODUCT, 30.0), (BLOCK, 20.7)]),
    ];

    #[test]
    fn a_level_takes_the_kernel_that_is_expected_to_be_the_fastest() {
        let (together, apart) = (SplitProduct::together, SplitProduct::apart);
        for (products, window_len, on_h200, on_a100) in [
            (1, 577, apart(64), together(32)),
            (3, 577, apart(112), together(64)),
            (12, 577, apart(160), together(128)),
            (2, 512, apart(64), together(64)),
            (12, 512, together(128), together(128)),
            (8, 197, apart(64), together(32)),
            (24, 197, apart(112), together(64)),
            (48, 197, apart(208), together(128)),
            (96, 197, apart(112), together(128)),
            (4, 28, together(32), together(32)),
        ] {
            let fastest = |limits| fastest_product(products, window_len, limits);
            let what = format!("{products} of {window_len}");
            assert_eq!(fastest(&DeviceLimits::H200), on_h200, "{what}");
            assert_eq!(fastest(&DeviceLimits::A100), on_a100, "{what}");
            // What several problems share.
            let grouped = DeviceLimits {
                clusters: false,
                ..DeviceLimits::H200
            };
            assert!(!fastest(&grouped).apart, "{what}");
        }
    }

    #[test]
    fn estimates_are_near_what_is_predicted_and_the_cheapest_is_near_the_best() {
        let mut compared = 0;
        for &(shape, dtype, times) in PREDICTED {
            let mut all = candidates(shape, dtype, Output::Matrix);
            all.sort_by(|a, b| a.0.total_cmp(&b.0));
            let predicted =
                |pipeline: Pipeline| times.iter().find(|time| time.0 == pipeline.to_string());
            for &(estimate, pipeline) in &all {
                let Some(&(_, us)) = predicted(pipeline) else {
                    continue;
                };
                let factor = (estimate / us).max(us / estimate);
                assert!(
                    factor < 1.5,
                    "{shape:?} {dtype} {pipeline:?}: {estimate} us, predicted {us}"
                );
                compared += 1;
            }
            let best = times
                .iter()
                .map(|time| time.1)
                .fold(f64::INFINITY, f64::min);
            let chosen = preferred(&all).unwrap();
            let (_, us) = predicted(chosen)
                .unwrap_or_else(|| panic!("{shape:?} {dtype}: nobody predicted {chosen:?}"));
            assert!(
                *us <= 1.3 * best,
                "{shape:?} {dtype}: {chosen:?} {us} us, the best {best}"
            );
        }
        let times = PREDICTED.iter().map(|(.., times)| times.len());
        assert_eq!(compared, times.sum::<usize>(), "estimates compared");
    }
}
