//! `rollout_chain`.

use attention_rollout::cuda::kernel::Arithmetic;
use attention_rollout::{DType, Residual, ResidualWeights};

use super::{Entry, features, many_layers};
use crate::cases::{Case, Path};

pub const ENTRIES: &[Entry] = &[
    Entry {
        name: "chain_sizes",
        kernels: &["rollout_chain"],
        short: false,
        run: |lab| {
            for tokens in [1, 2, 3, 5, 7, 8, 13, 17, 31, 33, 40, 63, 64] {
                Case::new([3, 2, 3, tokens])
                    .matrix()
                    .check(lab, Path::Chain(Arithmetic::F16x3))?;
            }
            for (tokens, dtype) in [
                (65, DType::F32),
                (97, DType::F16),
                (127, DType::Bf16),
                (128, DType::F16),
            ] {
                Case::new([2, 1, 2, tokens])
                    .dtype(dtype)
                    .matrix()
                    .check(lab, Path::Chain(Arithmetic::F16x3))?;
            }
            Ok(())
        },
    },
    Entry {
        name: "chain_features",
        kernels: &["rollout_chain"],
        short: false,
        run: |lab| {
            features(lab, Path::Chain(Arithmetic::F16x3), 35, Case::matrix)?;
            Case::new([24, 1, 5, 9])
                .matrix()
                .check(lab, Path::Chain(Arithmetic::F16x3))
        },
    },
    Entry {
        name: "chain_many_layers",
        kernels: &["rollout_chain"],
        short: false,
        run: |lab| many_layers(lab, Path::Chain(Arithmetic::F16x3), Case::matrix),
    },
    Entry {
        // Windows of at most 128 tokens leave half of the warps without maps to read.
        name: "chain_cluster_sizes",
        kernels: &["rollout_chain"],
        short: false,
        run: |lab| {
            for (tokens, dtype) in [
                (129, DType::F32),
                (144, DType::Bf16),
                (197, DType::F16),
                (255, DType::F16),
                (256, DType::F32),
            ] {
                Case::new([2, 1, 2, tokens])
                    .dtype(dtype)
                    .matrix()
                    .check(lab, Path::Chain(Arithmetic::F16x3))?;
            }
            Case::new([2, 4, 2, 150])
                .matrix()
                .windows(&[(0, 150), (22, 128), (3, 1), (0, 0)])
                .check(lab, Path::Chain(Arithmetic::F16x3))?;
            Case::new([66, 1, 1, 129])
                .matrix()
                .check(lab, Path::Chain(Arithmetic::F16x3))
        },
    },
    Entry {
        name: "chain_cluster_features",
        kernels: &["rollout_chain"],
        short: false,
        run: |lab| features(lab, Path::Chain(Arithmetic::F16x3), 135, Case::matrix),
    },
    Entry {
        name: "chain_cluster_arithmetics",
        kernels: &["rollout_chain"],
        short: true,
        run: |lab| {
            for (arithmetic, dtype) in [
                (Arithmetic::F16x2, DType::F16),
                (Arithmetic::Tf32x3, DType::F32),
                (Arithmetic::Tf32x3, DType::F16),
            ] {
                Case::new([2, 1, 2, 133])
                    .dtype(dtype)
                    .matrix()
                    .config(|c| c.normalize_rows = arithmetic == Arithmetic::Tf32x3)
                    .check(lab, Path::Chain(arithmetic))?;
            }
            Ok(())
        },
    },
    Entry {
        name: "chain_arithmetics",
        kernels: &["rollout_chain"],
        short: true,
        run: |lab| {
            for arithmetic in [Arithmetic::F16x2, Arithmetic::Tf32x3] {
                for (tokens, dtype) in [(19, DType::F32), (64, DType::F16), (101, DType::F16)] {
                    Case::new([3, 1, 2, tokens])
                        .dtype(dtype)
                        .matrix()
                        .config(|c| c.normalize_rows = tokens == 101)
                        .check(lab, Path::Chain(arithmetic))?;
                }
            }
            Case::new([4, 1, 2, 23])
                .matrix()
                .config(|c| c.residual = ResidualWeights::Uniform(Residual::new(1.0, 1.0)))
                .check(lab, Path::Chain(Arithmetic::Tf32x3))
        },
    },
];
