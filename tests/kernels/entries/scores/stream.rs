//! One row of queries and keys through all layers in one launch.

use attention_rollout::cuda::kernel::MAX_SCORE_LAYERS;
use attention_rollout::{DType, HeadFusion, Output, StartRows, reference};

use super::{LSE, check, masses, not_finite, relative, rows, windows};
use crate::cases::{Path, compare};
use crate::common::queries_keys::tokens_first_with_gaps;
use crate::device::Device;
use crate::entries::{Entry, per_layer, weights};

/// So many sets, whose blocks divide the heads so.
const fn stream(sets: u32, head_splits: u32) -> Path {
    Path::ScoreStream { sets, head_splits }
}

pub const ENTRIES: &[Entry] = &[
    Entry {
        // More items than sets, more keys than a block has, heads that do not divide evenly, and those that share keys.
        name: "score_stream",
        kernels: &["scores", "score_stream"],
        short: true,
        run: |lab| {
            for (turn, dtype) in [DType::F16, DType::Bf16].into_iter().enumerate() {
                for lse in [LSE[0], LSE[1 + turn]] {
                    let mut case = rows([3, 3, 3, [19, 40][turn]], [40, 64][turn], lse);
                    case.case.dtype = dtype;
                    case.case.config.residual = per_layer(3);
                    case.case.windows = windows([19, 40][turn]);
                    check(lab, case, stream(2, 2), 0)?;
                }
            }
            let mut case = rows([2, 1, 4, 300], 16, LSE[1]);
            case.source.key_heads = 2;
            case.case.config.output = Output::Rows(weights(1, 300));
            check(lab, case, stream(1, 2), 0)?;
            check(lab, rows([1, 2, 1, 1], 8, LSE[0]), stream(2, 1), 0)
        },
    },
    Entry {
        // Masks that leave blocks, warps and tiles without anything, and windows without keys for some blocks.
        name: "score_stream_masks",
        kernels: &["scores", "score_stream"],
        short: true,
        run: |lab| {
            let masks = [
                (true, vec![]),
                (false, vec![40, 70, 0]),
                (true, vec![9, 0, 33]),
            ];
            for (turn, (causal, sliding_windows)) in masks.into_iter().enumerate() {
                let mut case = rows([3, 3, 2, 300], 8, LSE[turn]);
                case.case.windows = windows(300);
                case.case.config.output = match turn {
                    0 => Output::Rows(StartRows::Last),
                    _ => Output::Rows(StartRows::Rows(vec![70])),
                };
                if turn > 0 {
                    case.case.windows = windows(300)
                        .into_iter()
                        .map(|mut window| {
                            window.start = window.start.min(10);
                            window.len = window.len.max(80).min(300 - window.start);
                            window
                        })
                        .collect();
                }
                case.case.config.head_fusion = HeadFusion::Weighted(vec![0.3, 0.7]);
                case.case.config.causal = causal;
                match causal {
                    true => case.source.alibi_slopes = vec![0.1, 0.0, 0.2, 0.3, 0.0, 0.0],
                    false => case.source.soft_caps = vec![0.0, 1.5, 0.0],
                }
                case.source.sliding_windows = sliding_windows;
                check(lab, case, stream(2, 1 + turn as u32 % 2), 2)?;
            }
            Ok(())
        },
    },
    Entry {
        // Wherever tokens and heads begin; more layers than one launch takes, and some of them.
        name: "score_stream_layers",
        kernels: &["scores", "score_stream"],
        short: false,
        run: |lab| {
            for offset in [0, 2] {
                let mut case = rows([2, 3, 2, 35], 24, LSE[1]);
                case.case.windows = windows(35);
                case.source.key_heads = 1;
                let gaps = tokens_first_with_gaps(&case.case.shape, &case.source);
                case.source.strides = vec![gaps];
                check(lab, case, stream(3, 2), offset)?;
            }
            for lse in [LSE[0], LSE[2]] {
                let mut case = rows([MAX_SCORE_LAYERS + 3, 2, 2, 5], 8, lse);
                case.case.config.layers = Some(1..MAX_SCORE_LAYERS + 3);
                check(lab, case, stream(1, 2), 0)?;
            }
            Ok(())
        },
    },
    Entry {
        // What a query says that weighs nothing does not matter, beside those that weigh and in a tile by itself.
        name: "score_stream_not_finite",
        kernels: &["scores", "score_stream"],
        short: false,
        run: |lab| {
            // Recomputed, the sums of its row are not numbers either.
            for lse in [LSE[0], LSE[1]] {
                let mut case = rows([1, 1, 2, 100], 8, lse);
                let weighing = [17, 70];
                let weights = (0..100).map(|row| match weighing.contains(&row) {
                    true => 0.5,
                    false => 0.0,
                });
                case.case.config.output = Output::Rows(StartRows::Weights {
                    rows: 1,
                    weights: weights.collect(),
                });
                not_finite(lab, &case, &weighing, stream(1, 2))?;
            }
            Ok(())
        },
    },
    Entry {
        // A schedule that runs again goes on counting its exchanges.
        name: "score_stream_again",
        kernels: &["score_stream"],
        short: false,
        run: |lab| {
            let mut case = rows([3, 3, 2, 35], 16, LSE[1]);
            let first = case.generate();
            let device = Device::new(lab, &first.problem, &first.layers(), 0);
            let path = stream(2, 2);
            let prepared = device.prepare(path);
            for seed in 1..4 {
                case.case.seed = seed;
                let generated = case.generate();
                let (problem, layers) = (&generated.problem, generated.layers());
                let want =
                    reference::rollout(problem, &layers).map_err(|error| error.to_string())?;
                // What was told before is not what is told now.
                device.replace(&layers);
                let got = device.submit(path, &prepared)?;
                compare(&got, &want, relative(5e-6, &want))?;
            }
            Ok(())
        },
    },
    Entry {
        name: "score_stream_masses",
        kernels: &["scores", "score_stream"],
        short: false,
        run: |lab| masses(lab, 1, stream(2, 2)),
    },
];
