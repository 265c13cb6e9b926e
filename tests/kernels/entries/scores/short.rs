//! A row of queries and keys of short windows, whose LSE is not given.

use attention_rollout::{DType, HeadFusion, Output, StartRows};

use super::{LSE, check, checked, not_finite, rows, windows};
use crate::cases::Path;
use crate::common::queries_keys::{ScoresCase, tokens_first_with_gaps};
use crate::entries::{Entry, per_layer};

/// One row of so many layers, items, heads and tokens.
fn short(shape: [usize; 4], head_dim: usize) -> ScoresCase {
    rows(shape, head_dim, LSE[0])
}

pub const ENTRIES: &[Entry] = &[
    Entry {
        // A part of a chunk, and several; as many keys as there may be, and few; tiles that are full and that are not.
        name: "score_short",
        kernels: &["scores", "score_short", "score_residual"],
        short: true,
        run: |lab| {
            let mut case = short([2, 2, 2, 208], 64);
            case.case.config.residual = per_layer(2);
            check(lab, case, Path::ScoreShort(1), 0)?;
            let mut case = short([2, 1, 4, 150], 136);
            case.case.dtype = DType::Bf16;
            case.source.key_heads = 2;
            check(lab, case, Path::ScoreShort(2), 0)?;
            let mut case = short([2, 2, 3, 70], 40);
            case.case.config.head_fusion = HeadFusion::Weighted(vec![0.3, 0.5, 0.2]);
            check(lab, case, Path::ScoreShort(3), 0)?;
            check(lab, short([3, 3, 2, 17], 8), Path::ScoreShort(1), 0)?;
            check(lab, short([2, 1, 1, 1], 128), Path::ScoreShort(1), 0)
        },
    },
    Entry {
        name: "score_short_masks",
        kernels: &["scores", "score_short"],
        short: true,
        run: |lab| {
            for (causal, sliding_windows) in [
                (true, vec![]),
                (false, vec![40, 1]),
                (true, vec![7, 0]),
                (false, vec![usize::MAX]),
            ] {
                let mut case = short([2, 3, 2, 140], 16);
                case.case.windows = windows(140);
                case.case.config.output = Output::Rows(StartRows::Last);
                case.case.config.causal = causal;
                case.source.sliding_windows = sliding_windows;
                case.source.sinks = vec![-1.0, 2.0, 0.5, -3.0];
                check(lab, case, Path::ScoreShort(1), 0)?;
            }
            Ok(())
        },
    },
    Entry {
        // Wherever tokens and heads may begin.
        name: "score_short_strides",
        kernels: &["scores", "score_short"],
        short: true,
        run: |lab| {
            for (offset, dtype) in [(0, DType::F16), (2, DType::Bf16)] {
                let mut case = short([2, 3, 2, 39], 72);
                case.case.dtype = dtype;
                case.case.windows = windows(39);
                case.source.key_heads = 1;
                let gaps = tokens_first_with_gaps(&case.case.shape, &case.source);
                case.source.strides = vec![gaps];
                check(lab, case, Path::ScoreShort(1), offset)?;
            }
            Ok(())
        },
    },
    Entry {
        // Scores whose exponentials no f32 holds.
        name: "score_short_large",
        kernels: &["score_short"],
        short: false,
        run: |lab| {
            let mut case = short([2, 3, 2, 70], 64);
            case.source.scale = Some(8.0);
            case.case.windows = windows(70);
            checked(lab, case, Path::ScoreShort(1), 0, 4e-5)?;
            // Of a sink that is far above all scores, nothing is left.
            let mut case = short([1, 1, 2, 70], 64);
            case.source.sinks = vec![500.0, 1.0];
            check(lab, case, Path::ScoreShort(1), 0)
        },
    },
    Entry {
        // What a query says that weighs nothing does not matter, in the tile of one that does, and in others.
        name: "score_short_not_finite",
        kernels: &["score_short"],
        short: false,
        run: |lab| {
            let mut case = short([1, 1, 2, 60], 8);
            case.case.config.output = Output::Rows(StartRows::Rows(vec![17]));
            not_finite(lab, &case, &[17], Path::ScoreShort(1))
        },
    },
];
