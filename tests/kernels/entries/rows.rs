//! `rollout_rows`, from the problem's maps and from fused ones.

use attention_rollout::{DType, StartRows};

use super::{Entry, features, many_layers, weights};
use crate::cases::{Case, Path};

pub const ENTRIES: &[Entry] = &[
    Entry {
        name: "rows_sizes",
        kernels: &["rollout_rows"],
        short: false,
        run: |lab| {
            for tokens in [1, 2, 3, 5, 7, 8, 13, 17, 31, 33, 40, 64, 65] {
                Case::new([3, 2, 3, tokens]).check(lab, Path::Rows(1))?;
            }
            for (tokens, dtype) in [
                (127, DType::F32),
                (128, DType::Bf16),
                (129, DType::F32),
                (197, DType::F16),
            ] {
                Case::new([2, 1, 2, tokens])
                    .dtype(dtype)
                    .check(lab, Path::Rows(1))?;
            }
            Case::new([2, 1, 1, 331]).check(lab, Path::Rows(1))?;
            Case::new([24, 1, 5, 9]).check(lab, Path::Rows(1))
        },
    },
    Entry {
        name: "rows_features",
        kernels: &["rollout_rows", "head_fusion", "discard"],
        short: false,
        run: |lab| {
            features(lab, Path::Rows(1), 33, |case| case.start(StartRows::Mean))?;
            features(lab, Path::Rows(3), 19, |case| case.start(StartRows::Last))
        },
    },
    Entry {
        name: "rows_cluster_features",
        kernels: &["rollout_rows"],
        short: false,
        run: |lab| {
            let start = |case: Case| case.start(StartRows::Mean);
            features(lab, Path::RowsCluster(4), 33, start)?;
            many_layers(lab, Path::RowsCluster(2), start)
        },
    },
    Entry {
        // Also more blocks than an item has rows, and items without any.
        name: "rows_cluster_sizes",
        kernels: &["rollout_rows"],
        short: true,
        run: |lab| {
            for tokens in [1, 3, 8, 17, 64] {
                Case::new([3, 2, 2, tokens]).check(lab, Path::RowsCluster(8))?;
            }
            Case::new([3, 4, 2, 150])
                .dtype(DType::F32)
                .start(weights(5, 150))
                .windows(&[(0, 150), (22, 128), (3, 1), (0, 0)])
                .config(|c| c.normalize_rows = true)
                .check(lab, Path::RowsCluster(2))
        },
    },
    Entry {
        name: "rows_start_rows",
        kernels: &["rollout_rows"],
        short: true,
        run: |lab| {
            for rows in 1..=8 {
                Case::new([2, 2, 3, 21])
                    .start(weights(rows, 21))
                    .check(lab, Path::Rows(if rows % 2 == 0 { 1 } else { 2 }))?;
            }
            Case::new([3, 2, 2, 150])
                .dtype(DType::F32)
                .start(weights(5, 150))
                .config(|c| c.normalize_rows = true)
                .check(lab, Path::Rows(2))?;
            Case::new([3, 3, 2, 20])
                .start(StartRows::PerItem(vec![0, 7, 19]))
                .check(lab, Path::Rows(1))
        },
    },
    Entry {
        name: "rows_many_layers",
        kernels: &["rollout_rows", "head_fusion", "discard"],
        short: false,
        run: |lab| {
            many_layers(lab, Path::Rows(1), |case| case)?;
            many_layers(lab, Path::Rows(1), |case| {
                case.start(StartRows::Rows(vec![4, 0]))
            })?;
            // More columns than the warps of a block: two tiles, so one layer per launch.
            Case::new([2, 1, 1, 1000])
                .dtype(DType::F32)
                .check(lab, Path::Rows(2))
        },
    },
];
