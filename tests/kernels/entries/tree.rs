//! `head_fusion` that splits, and `split_product`.

use attention_rollout::cuda::kernel::{MAX_PRODUCTS, SplitProduct};
use attention_rollout::{DType, Output, Residual, ResidualWeights};

use super::{Entry, fusions, per_layer, three_windows};
use crate::cases::{Case, Lay, Path};
use crate::lab::Lab;

const KERNELS: &[&str] = &["head_fusion", "split_product"];

pub const ENTRIES: &[Entry] = &[
    Entry {
        name: "tree_sizes",
        kernels: KERNELS,
        short: false,
        run: |lab| {
            for kernel in SplitProduct::ALL {
                for tokens in [1, 2, 3, 5, 7, 8, 13, 17, 31, 33, 40] {
                    matrix([3, 2, 2, tokens]).check(lab, whole_by(kernel))?;
                }
            }
            let together = [(64, 64), (64, 65), (32, 70), (64, 130), (128, 130)];
            let together = together.map(|(tile, tokens)| (SplitProduct::together(tile), tokens));
            // More steps than there are stages.
            let apart = [
                (64, 65),
                (64, 135),
                (112, 113),
                (112, 197),
                (160, 135),
                (160, 165),
                (208, 113),
                (208, 209),
            ];
            let apart = apart.map(|(tile, tokens)| (SplitProduct::apart(tile), tokens));
            for (kernel, tokens) in together.into_iter().chain(apart) {
                matrix([2, 1, 2, tokens]).check(lab, whole_by(kernel))?;
            }
            Ok(())
        },
    },
    Entry {
        name: "tree_features",
        kernels: KERNELS,
        short: true,
        run: features,
    },
    Entry {
        // Factors that are left over on any level, parts of the layers with the factor of those before, and parts of the batch.
        name: "tree_layers",
        kernels: KERNELS,
        short: true,
        run: |lab| {
            for layers in 2..10 {
                for output in [Output::Matrix, Output::Cumulative] {
                    let case = Case::new([layers, 2, 1, 9]).config(|c| {
                        c.residual = per_layer(layers);
                        c.output = output;
                    });
                    // Nothing fits, some maps do, and all of both items.
                    for l2_bytes in [0, 5 << 10, 50 << 10] {
                        let kernel = SplitProduct::together(32);
                        case.check(lab, Path::Tree { kernel, l2_bytes })?;
                    }
                }
            }
            // A range of the layers.
            matrix([6, 1, 2, 9])
                .config(|c| c.layers = Some(1..4))
                .check(lab, whole(32))
        },
    },
    Entry {
        // More layers, and more products, than a launch takes, with so little attention that each of them shows.
        name: "tree_many_layers",
        kernels: KERNELS,
        short: false,
        run: |lab| {
            let layers = 2 * MAX_PRODUCTS + 3;
            let weight = |l: usize| (1.0 + 2.0 * l as f32 / layers as f32) / layers as f32;
            let residual = |l| Residual::new(weight(l), 1.0 - weight(l));
            matrix([layers, 1, 1, 7])
                .config(|c| {
                    c.residual = ResidualWeights::PerLayer((0..layers).map(residual).collect());
                })
                .check(lab, whole(32))
        },
    },
];

/// On a device whose L2 holds everything, by the kernel of tiles of so many rows all of whose warps copy.
pub fn whole(tile: u32) -> Path {
    whole_by(SplitProduct::together(tile))
}

/// The same by any kernel.
pub fn whole_by(kernel: SplitProduct) -> Path {
    let l2_bytes = 50 << 20;
    Path::Tree { kernel, l2_bytes }
}

fn matrix(shape: [usize; 4]) -> Case {
    Case::new(shape).matrix()
}

fn features(lab: &Lab) -> Result<(), String> {
    let path = whole(32);
    for dtype in DType::ALL {
        for fusion in fusions(3) {
            matrix([2, 1, 3, 21])
                .dtype(dtype)
                .config(|c| c.head_fusion = fusion)
                .check(lab, path)?;
        }
    }
    for dtype in [DType::F16, DType::F32] {
        let windows = three_windows(37);
        let windowed = matrix([3, 3, 2, 37]).dtype(dtype).windows(&windows);
        windowed.check(lab, path)?;
        let cumulative = windowed.config(|c| c.output = Output::Cumulative);
        cumulative.check(lab, path)?;
        cumulative
            .config(|c| c.causal = true)
            .at(Lay::Interleaved, 4)
            .check(lab, path)?;
    }
    // Tiles above the diagonal.
    let causal = matrix([3, 1, 2, 131]).config(|c| c.causal = true);
    causal.clone().check(lab, whole(64))?;
    causal.clone().check(lab, whole(128))?;
    for kernel in SplitProduct::APART {
        causal.clone().check(lab, whole_by(kernel))?;
    }
    causal.dtype(DType::F32).check(lab, path)?;
    // No identity, nothing else, and next to nothing else.
    for (attention, identity) in [(1.0, 0.0), (0.0, 1.0), (1e-37, 1.0)] {
        let residual = Residual::new(attention, identity);
        for path in [path, whole_by(SplitProduct::apart(64))] {
            matrix([3, 1, 2, 17])
                .config(|c| c.residual = ResidualWeights::Uniform(residual))
                .check(lab, path)?;
        }
    }
    Ok(())
}
