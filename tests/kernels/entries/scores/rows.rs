//! Rows of queries and keys, whose maps are nowhere.

use attention_rollout::cuda::kernel::{MAX_SCORE_LAYERS, ScoreSplits};
use attention_rollout::{DType, HeadFusion, Output, StartRows};

use super::{LSE, check, masses, not_finite, rows, windows};
use crate::cases::Path;
use crate::entries::{Entry, fusions, per_layer, weights};

pub const ENTRIES: &[Entry] = &[
    Entry {
        // Relevance without a map, by one block or several to a tile of keys.
        name: "score_rows",
        kernels: &["scores", "score_rows", "score_residual"],
        short: true,
        run: |lab| {
            let split = |queries, heads| Path::ScoreRows(ScoreSplits { queries, heads });
            for (turn, dtype) in DType::ALL.into_iter().enumerate() {
                let mut case = rows([3, 2, 3, 150], 16, LSE[turn]);
                case.case.dtype = dtype;
                case.case.config.residual = per_layer(3);
                let path = [split(1, 1), split(2, 3), split(3, 2)][turn];
                check(lab, case, path, 0)?;
            }
            // Rows that weigh a few queries alone, several of them, and every mask.
            let mut case = rows([2, 3, 2, 140], 8, LSE[1]);
            case.case.windows = windows(140);
            case.case.config.output = Output::Rows(weights(8, 140));
            case.case.config.causal = true;
            check(lab, case.clone(), split(2, 1), 0)?;
            case.case.config.causal = false;
            case.case.config.layers = Some(1..2);
            case.source.sliding_windows = vec![0, 20];
            check(lab, case, split(1, 2), 2)?;
            let mut case = rows([1, 1, 2, 140], 8, LSE[0]);
            case.case.config.output = Output::Rows(StartRows::Rows(vec![3, 130]));
            check(lab, case, split(1, 1), 0)?;
            // Heads of which the fourth is the second that shares its keys.
            let mut case = rows([1, 1, 6, 40], 8, LSE[1]);
            case.source.key_heads = 3;
            check(lab, case, split(1, 2), 0)?;
            let mut case = rows([3, 3, 2, 70], 8, LSE[0]);
            case.case.windows = windows(70);
            case.case.config.output = Output::Rows(StartRows::Last);
            case.source.alibi_slopes = vec![0.1, 0.0, 0.2, 0.3, 0.0, 0.1];
            check(lab, case, split(2, 1), 0)
        },
    },
    Entry {
        // One row, of which each block takes a head: several chunks of it, or keys that are held, more keys than a block has,
        // more parts than are added up at a time.
        name: "score_rows_one",
        kernels: &["scores", "score_rows", "score_residual", "score_sums"],
        short: true,
        run: |lab| {
            let dims = [40, 136, 64];
            for (turn, dtype) in DType::ALL.into_iter().enumerate() {
                let mut case = rows([2, 2, 2, [300, 180, 70][turn]], dims[turn], LSE[turn]);
                case.case.dtype = dtype;
                case.source.key_heads = [1, 2, 1][turn];
                let splits = ScoreSplits {
                    queries: [9, 1, 2][turn],
                    heads: 2,
                };
                check(lab, case, Path::ScoreRows(splits), 0)?;
            }
            let masks = [(true, vec![]), (false, vec![40, 70])];
            let masks = masks
                .into_iter()
                .flat_map(|masks| [8, 72].map(|head_dim| (head_dim, masks.clone())));
            for (head_dim, (causal, sliding_windows)) in masks {
                let mut case = rows([2, 3, 2, 140], head_dim, LSE[1]);
                case.case.windows = windows(140);
                case.case.config.output = Output::Rows(StartRows::Last);
                case.case.config.head_fusion = HeadFusion::Weighted(vec![0.3, 0.7]);
                case.case.config.causal = causal;
                match causal {
                    true => case.source.alibi_slopes = vec![0.1, 0.0, 0.2, 0.3],
                    false => case.source.soft_caps = vec![0.0, 1.5],
                }
                case.source.sliding_windows = sliding_windows;
                let splits = ScoreSplits {
                    queries: 1,
                    heads: 2,
                };
                check(lab, case, Path::ScoreRows(splits), 2)?;
            }
            Ok(())
        },
    },
    Entry {
        // More tiles of queries than one warp looks at.
        name: "score_rows_long",
        kernels: &["score_rows"],
        short: false,
        run: |lab| {
            let mut case = rows([2, 1, 1, 1060], 8, LSE[1]);
            case.case.config.output = Output::Rows(StartRows::Last);
            let splits = ScoreSplits {
                queries: 3,
                heads: 1,
            };
            check(lab, case, Path::ScoreRows(splits), 0)
        },
    },
    Entry {
        // Several rows: heads of several chunks, one after the other.
        name: "score_rows_chunks",
        kernels: &["scores", "score_rows"],
        short: false,
        run: |lab| {
            let mut case = rows([2, 1, 3, 140], 72, LSE[0]);
            case.case.dtype = DType::F32;
            case.case.config.output = Output::Rows(StartRows::Rows(vec![3, 130]));
            check(lab, case, Path::ScoreRows(ScoreSplits::WHOLE), 0)
        },
    },
    Entry {
        name: "score_rows_fusions",
        kernels: &["score_rows"],
        short: false,
        run: |lab| {
            for fusion in fusions(3) {
                let is_summed = matches!(fusion, HeadFusion::Mean | HeadFusion::Weighted(_));
                let mut case = rows([3, 2, 3, 70], 16, LSE[0]);
                case.case.config.head_fusion = fusion;
                let heads = if is_summed { 3 } else { 1 };
                let splits = ScoreSplits { queries: 2, heads };
                check(lab, case, Path::ScoreRows(splits), 0)?;
            }
            let layers = MAX_SCORE_LAYERS + 2;
            let splits = ScoreSplits {
                queries: 1,
                heads: 1,
            };
            let case = rows([layers, 2, 1, 5], 8, LSE[0]);
            check(lab, case, Path::ScoreRows(splits), 0)
        },
    },
    Entry {
        // What a query says that weighs nothing does not matter.
        name: "score_rows_not_finite",
        kernels: &["score_rows"],
        short: false,
        run: |lab| {
            for (dtype, weighing, lse) in [
                (DType::F32, vec![3, 17], LSE[1]),
                (DType::F32, vec![17], LSE[1]),
                (DType::F32, vec![17], LSE[0]),
                (DType::F16, vec![17], LSE[1]),
            ] {
                let mut case = rows([1, 1, 2, 20], 8, lse);
                case.case.dtype = dtype;
                case.case.config.output = Output::Rows(StartRows::Rows(weighing.clone()));
                let splits = ScoreSplits {
                    queries: 1,
                    heads: 2,
                };
                not_finite(lab, &case, &weighing, Path::ScoreRows(splits))?;
            }
            Ok(())
        },
    },
    Entry {
        name: "score_rows_masses",
        kernels: &["scores", "score_residual"],
        short: false,
        run: |lab| {
            let splits = ScoreSplits {
                queries: 2,
                heads: 1,
            };
            // Blocks of 256 tokens.
            masses(lab, 2, Path::ScoreRows(splits))
        },
    },
];
