//! Queries and keys: what attention follows from them, and whatever then reads the fused maps.

mod evidence;
pub mod rows;
pub mod short;
pub mod stream;

use attention_rollout::cuda::kernel::{Arithmetic, Form, MAX_SCORE_LAYERS};
use attention_rollout::{
    DType, DiscardScope, HeadFusion, HostLayer, LogBase, Lse, Output, QueriesKeys, Residual,
    ResidualWeights, Shape, StartRows, Window, reference,
};
use half::f16;

use super::{Entry, discard, fusions, per_layer, three_windows};
use crate::cases::{Path, StreamWay, Tolerance, bits, compare, ring_matrix};
use crate::common::generate::Case;
use crate::common::queries_keys::{ScoresCase, tokens_first_with_gaps};
use crate::device::Device;
use crate::lab::Lab;

/// One layer without a residual, as a matrix: the fused map itself.
const FUSED: Path = Path::Product(Arithmetic::F32, Form::Matrix);

const LSE: [Lse; 3] = [
    Lse::Recomputed,
    Lse::Given(LogBase::E),
    Lse::Given(LogBase::Two),
];

pub const ENTRIES: &[Entry] = &[
    Entry {
        // Heads of one chunk of bytes, of a part of one, and of several; tiles that are full, and that are not.
        name: "scores_tiles",
        kernels: &["scores", "score_sums", "score_fusion"],
        short: true,
        run: |lab| {
            for (turn, dtype) in DType::ALL.into_iter().enumerate() {
                for (tokens, head_dim) in [(1, 8), (65, 40), (9, 72), (17, 256)] {
                    let lse = LSE[(turn + tokens) % 2];
                    check(
                        lab,
                        fused([1, 1, 2, tokens], head_dim, dtype, lse),
                        FUSED,
                        0,
                    )?;
                }
            }
            check(lab, fused([1, 1, 1, 130], 16, DType::F16, LSE[0]), FUSED, 0)
        },
    },
    Entry {
        name: "scores_masks",
        kernels: &["scores", "score_sums", "score_fusion"],
        short: false,
        run: |lab| {
            for (turn, lse) in LSE.into_iter().enumerate() {
                // A window that reaches across tiles, or leaves some of them empty; of some layers alone.
                for (tokens, windows) in [(70, vec![2]), (21, vec![0, 5]), (140, vec![40])] {
                    for causal in [false, true] {
                        let layers = windows.len();
                        let mut case = fused([layers, 1, 1, tokens], 8, DType::F16, lse);
                        case.source.sliding_windows = windows.clone();
                        case.case.config.causal = causal;
                        check(lab, case, FUSED, 0)?;
                    }
                }
                let mut case = fused([2, 3, 4, 21], 16, DType::ALL[turn], lse);
                case.case.windows = windows(21);
                case.case.config.causal = turn == 1;
                case.source.key_heads = 2;
                case.source.scale = Some(0.4);
                case.source.soft_caps = vec![1.5, 0.0];
                case.source.alibi_slopes = (0..8).map(|head| 0.1 * head as f32).collect();
                if lse == Lse::Recomputed {
                    case.source.sinks = vec![-1.0, 0.0, 0.5, 2.0];
                }
                case.case.config.residual = per_layer(2);
                check(lab, case, FUSED, 0)?;
            }
            Ok(())
        },
    },
    Entry {
        // Wherever tokens and heads may begin: by granules, and element by element.
        name: "scores_strides",
        kernels: &["scores", "score_sums", "score_fusion"],
        short: true,
        run: |lab| {
            for dtype in DType::ALL {
                for (lse, offset) in [(LSE[0], 0), (LSE[1], dtype.size_bytes())] {
                    let mut case = fused([2, 3, 2, 19], 24, dtype, lse);
                    case.case.windows = windows(19);
                    case.source.key_heads = 1;
                    let gaps = tokens_first_with_gaps(&case.case.shape, &case.source);
                    case.source.strides = vec![gaps];
                    check(lab, case, FUSED, offset)?;
                }
            }
            Ok(())
        },
    },
    Entry {
        // Queries of more blocks than one, whose windows end before the last key and begin after the first.
        name: "scores_blocks",
        kernels: &["scores", "score_sums"],
        short: false,
        run: |lab| {
            let mut case = fused([1, 1, 1, 260], 8, DType::F16, LSE[0]);
            case.source.sliding_windows = vec![40];
            check(lab, case, FUSED, 0)
        },
    },
    Entry {
        name: "scores_fusions",
        kernels: &["scores", "score_sums", "score_fusion"],
        short: false,
        run: |lab| {
            for fusion in fusions(3) {
                for dtype in DType::ALL {
                    let mut case = fused([1, 2, 3, 13], 16, dtype, LSE[0]);
                    case.case.config.head_fusion = fusion.clone();
                    check(lab, case, FUSED, 0)?;
                }
                // A warp has nothing but masked entries, and others of its block have more.
                let mut case = fused([1, 1, 3, 70], 8, DType::F16, LSE[1]);
                case.case.config.head_fusion = fusion;
                case.source.sliding_windows = vec![9];
                check(lab, case, FUSED, 0)?;
            }
            Ok(())
        },
    },
    Entry {
        // Large scores, whose sum no f32 holds.
        name: "scores_large",
        kernels: &["scores", "score_sums", "score_fusion"],
        short: false,
        run: |lab| {
            let mut case = fused([1, 1, 1, 70], 64, DType::F16, LSE[0]);
            case.source.scale = Some(8.0);
            // Scores of 300 are rounded to 2e-5.
            checked(lab, case, FUSED, 0, 4e-5)?;
            // Of keys that are not there, the exponential of how far their score of 0 is above the others is infinite.
            let mut case = fused([2, 3, 3, 9], 64, DType::F16, LSE[0]);
            case.source.scale = Some(8.0);
            case.case.windows = windows(9);
            checked(
                lab,
                case,
                Path::Product(Arithmetic::F16x3, Form::Matrix),
                0,
                4e-5,
            )
        },
    },
    Entry {
        name: "scores_masses",
        kernels: &["scores", "score_sums", "score_masses"],
        short: false,
        run: |lab| {
            for (causal, weighted) in [(false, false), (true, true)] {
                let mut case = fused(
                    [3, 3, 2, 70],
                    16,
                    DType::F16,
                    LSE[1 + usize::from(weighted)],
                );
                case.case.windows = windows(70);
                case.case.config.causal = causal;
                case.case.config.layers = Some(1..3);
                if weighted {
                    case.case.config.head_fusion = HeadFusion::Weighted(vec![0.8, -0.3]);
                }
                evidence::of_fused_maps(lab, &case)?;
            }
            Ok(())
        },
    },
    Entry {
        // More layers than one launch takes.
        name: "scores_layers",
        kernels: &["scores", "score_sums", "score_fusion"],
        short: false,
        run: |lab| {
            let layers = MAX_SCORE_LAYERS + 2;
            let mut case = rows([layers, 2, 1, 5], 8, LSE[0]);
            let weight = |l: usize| 1.0 / (l + 2) as f32;
            let residual = |l| Residual::new(weight(l), 1.0 - weight(l));
            case.case.config.residual =
                ResidualWeights::PerLayer((0..layers).map(residual).collect());
            case.source.alibi_slopes = (0..layers).map(|l| 0.02 * l as f32).collect();
            check(lab, case.clone(), Path::Rows(1), 0)?;
            case.case.config.layers = Some(1..layers);
            check(lab, case, Path::Rows(2), 0)
        },
    },
    Entry {
        // Whatever reads fused maps.
        name: "scores_consumers",
        kernels: &["score_fusion"],
        short: false,
        run: |lab| {
            for path in [
                Path::Rows(1),
                Path::RowsCluster(2),
                Path::Stream(StreamWay::ONE),
                Path::Product(Arithmetic::F16x3, Form::Rows),
            ] {
                check(lab, rows([3, 2, 2, 19], 16, LSE[1]), path, 0)?;
            }
            for path in [
                ring_matrix(Arithmetic::F16x3),
                Path::Product(Arithmetic::Tf32x3, Form::Matrix),
            ] {
                for normalize in [false, true] {
                    let mut case = rows([3, 3, 2, 19], 16, LSE[0]);
                    let config = &mut case.case.config;
                    config.output = Output::Matrix;
                    config.normalize_rows = normalize;
                    case.case.windows = windows(19);
                    check(lab, case, path, 0)?;
                }
            }
            let mut case = rows([2, 3, 2, 19], 16, LSE[0]);
            case.case.config.discard = discard(0.6, DiscardScope::Map);
            case.case.windows = windows(19);
            check(lab, case.settled(), Path::Rows(2), 0)?;
            let mut case = rows([2, 1, 2, 19], 16, LSE[0]);
            case.case.config.exclude_from_attention = vec![0, 7];
            checked(lab, case, Path::Rows(1), 0, 5e-6)
        },
    },
];

fn windows(tokens: usize) -> Vec<Window> {
    let windows = three_windows(tokens).into_iter();
    windows.map(|(start, len)| Window { start, len }).collect()
}

/// One start distribution over all rows.
fn rows([layers, batch, heads, tokens]: [usize; 4], head_dim: usize, lse: Lse) -> ScoresCase {
    let shape = Shape {
        layers,
        batch,
        heads,
        tokens,
    };
    let mut case = Case::new(shape, 3);
    case.dtype = DType::F16;
    case.config.output = Output::Rows(StartRows::Mean);
    let source = QueriesKeys {
        lse,
        ..QueriesKeys::new(&shape, head_dim)
    };
    ScoresCase { case, source }
}

/// Products of layers without a residual, as matrices.
fn fused(shape: [usize; 4], head_dim: usize, dtype: DType, lse: Lse) -> ScoresCase {
    let mut case = rows(shape, head_dim, lse);
    case.case.dtype = dtype;
    case.case.config.output = Output::Matrix;
    case.case.config.residual = ResidualWeights::Uniform(Residual::new(1.0, 0.0));
    case
}

/// Relative to the largest entry.
fn relative(tolerance: f64, want: &[f64]) -> Tolerance {
    let largest = want.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
    Tolerance {
        absolute: tolerance * largest,
        relative: 0.0,
        most: f64::INFINITY,
    }
}

fn check(lab: &Lab, case: ScoresCase, path: Path, offset: usize) -> Result<(), String> {
    let tolerance = tolerance(&case);
    checked(lab, case, path, offset, tolerance)
}

/// How far entries may be off, relative to the largest.
fn tolerance(case: &ScoresCase) -> f64 {
    match (case.source.has_lse(), &case.case.config.head_fusion) {
        (true, _) | (_, HeadFusion::Min) => 5e-6,
        (false, _) => 1e-6,
    }
}

/// A case of one layer whose queries say NaN but for those that weigh something: as if all said what they do.
fn not_finite(lab: &Lab, case: &ScoresCase, weighing: &[usize], path: Path) -> Result<(), String> {
    let generated = case.generate();
    let (problem, mut layers) = (&generated.problem, generated.layers());
    let want = reference::rollout(problem, &layers).map_err(|error| error.to_string())?;
    let HostLayer::QueriesKeys { queries, .. } = &mut layers[0] else {
        return Err("without queries".to_owned());
    };
    let (head_dim, tokens) = (case.source.head_dim, case.case.shape.tokens);
    let value = |at| match weighing.contains(&(at / head_dim % tokens)) {
        true => queries.get(at),
        false => f32::NAN,
    };
    let values: Vec<f32> = (0..queries.len()).map(value).collect();
    let halves: Vec<f16> = values.iter().copied().map(f16::from_f32).collect();
    *queries = match case.case.dtype {
        DType::F16 => halves[..].into(),
        _ => values[..].into(),
    };
    let got = Device::new(lab, problem, &layers, 0).run(path)?;
    compare(&got, &want, relative(tolerance(case), &want))
}

/// The sums of so many rows whose weights have either sign, by `path`, which leaves those of two blocks.
fn masses(lab: &Lab, start_rows: usize, path: Path) -> Result<(), String> {
    for weighted in [false, true] {
        let mut case = rows([3, 3, 2, 300], 8, LSE[1 + usize::from(weighted)]);
        case.case.windows = windows(300);
        let weights = (0..start_rows * 300).map(|i| ((i % 7) as f32 - 2.0) / 300.0);
        case.case.config.output = Output::Rows(StartRows::Weights {
            rows: start_rows,
            weights: weights.collect(),
        });
        case.case.config.layers = Some(1..3);
        case.case.config.residual = per_layer(3);
        if weighted {
            case.case.config.head_fusion = HeadFusion::Weighted(vec![0.8, -0.3]);
        }
        evidence::of_relevance(lab, &case, path, 2)?;
    }
    Ok(())
}

/// Computes a case, compares it with the reference, `tolerance` relative to its largest entry, and does it again to see the
/// same bits.
fn checked(
    lab: &Lab,
    case: ScoresCase,
    path: Path,
    offset: usize,
    tolerance: f64,
) -> Result<(), String> {
    let generated = case.generate();
    let (problem, layers) = (&generated.problem, generated.layers());
    let want = reference::rollout(problem, &layers).map_err(|error| error.to_string())?;
    let tolerance = relative(tolerance, &want);
    let fail = |what: String| {
        let case: String = format!("{case:?}").chars().take(900).collect();
        format!("{path:?} of {case}: {what}")
    };
    let device = Device::new(lab, problem, &layers, offset);
    let got = device.run(path).map_err(fail)?;
    compare(&got, &want, tolerance).map_err(fail)?;
    if problem.shape().tokens > 40 {
        return Ok(());
    }
    let mut again = Device::new(lab, problem, &layers, offset);
    again.machine.seed = 11;
    match bits(&again.run(path).map_err(fail)?) == bits(&got) {
        true => Ok(()),
        false => Err(fail("a second run gave other bits".to_owned())),
    }
}
