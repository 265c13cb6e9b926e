//! `matrix_stream`.

use attention_rollout::cuda::kernel::Arithmetic;
use attention_rollout::{DType, Residual, ResidualWeights};

use super::{Entry, features};
use crate::cases::{Case, MatrixWay, Path, ring_matrix};

pub const ENTRIES: &[Entry] = &[
    Entry {
        name: "matrix_sizes",
        kernels: &["matrix_stream"],
        short: false,
        run: |lab| {
            for tokens in [1, 2, 3, 5, 7, 8, 13, 17, 31, 33, 40, 63, 64] {
                Case::new([3, 2, 3, tokens])
                    .matrix()
                    .check(lab, ring_matrix(Arithmetic::F16x3))?;
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
                    .check(lab, ring_matrix(Arithmetic::F16x3))?;
            }
            Ok(())
        },
    },
    Entry {
        name: "matrix_features",
        kernels: &["matrix_stream"],
        short: false,
        run: |lab| {
            features(lab, ring_matrix(Arithmetic::F16x3), 35, Case::matrix)?;
            Case::new([24, 1, 5, 9])
                .matrix()
                .check(lab, ring_matrix(Arithmetic::F16x3))
        },
    },
    Entry {
        // Windows of at most 128 tokens leave half of the warps without maps to read.
        name: "matrix_cluster_sizes",
        kernels: &["matrix_stream"],
        short: false,
        run: |lab| {
            for (tokens, dtype) in [
                (129, DType::F32),
                (144, DType::Bf16),
                (197, DType::F16),
                (207, DType::F16),
                (208, DType::F32),
            ] {
                Case::new([2, 1, 2, tokens])
                    .dtype(dtype)
                    .matrix()
                    .check(lab, ring_matrix(Arithmetic::F16x3))?;
            }
            Case::new([2, 4, 2, 150])
                .matrix()
                .windows(&[(0, 150), (22, 128), (3, 1), (0, 0)])
                .check(lab, ring_matrix(Arithmetic::F16x3))?;
            // A larger kernel than is needed, with blocks without rows, and as many layers as a launch takes.
            let way = MatrixWay {
                tokens: Some(208),
                ..MatrixWay::of(Arithmetic::F16x3)
            };
            Case::new([64, 2, 1, 19])
                .matrix()
                .windows(&[(0, 19), (3, 5)])
                .check(lab, Path::RingMatrix(way))
        },
    },
    Entry {
        name: "matrix_cluster_features",
        kernels: &["matrix_stream"],
        short: false,
        run: |lab| features(lab, ring_matrix(Arithmetic::F16x3), 135, Case::matrix),
    },
    Entry {
        name: "matrix_cluster_half",
        kernels: &["matrix_stream"],
        short: true,
        run: |lab| {
            for normalize_rows in [false, true] {
                Case::new([2, 1, 2, 133])
                    .matrix()
                    .config(|c| c.normalize_rows = normalize_rows)
                    .check(lab, ring_matrix(Arithmetic::F16x2))?;
            }
            Ok(())
        },
    },
    Entry {
        // Without bulk copies: granule by granule.
        name: "matrix_by_granules",
        kernels: &["matrix_stream"],
        short: false,
        run: |lab| {
            let way = |arithmetic| {
                Path::RingMatrix(MatrixWay {
                    arch: 80,
                    ..MatrixWay::of(arithmetic)
                })
            };
            features(lab, way(Arithmetic::F16x3), 37, Case::matrix)?;
            for (arithmetic, tokens) in [(Arithmetic::F16x3, 97), (Arithmetic::Tf32x3, 66)] {
                Case::new([2, 1, 2, tokens])
                    .dtype(DType::F32)
                    .matrix()
                    .check(lab, way(arithmetic))?;
            }
            Ok(())
        },
    },
    Entry {
        name: "matrix_arithmetics",
        kernels: &["matrix_stream"],
        short: true,
        run: |lab| {
            for arithmetic in [Arithmetic::F16x2, Arithmetic::Tf32x3] {
                for (tokens, dtype) in [(19, DType::F32), (64, DType::F16), (101, DType::F16)] {
                    Case::new([3, 1, 2, tokens])
                        .dtype(dtype)
                        .matrix()
                        .config(|c| c.normalize_rows = tokens == 101)
                        .check(lab, ring_matrix(arithmetic))?;
                }
            }
            Case::new([4, 1, 2, 23])
                .matrix()
                .config(|c| c.residual = ResidualWeights::Uniform(Residual::new(1.0, 1.0)))
                .check(lab, ring_matrix(Arithmetic::Tf32x3))
        },
    },
];
