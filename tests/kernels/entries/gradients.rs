//! Maps weighed by their gradients, and tokens excluded from attention.

use attention_rollout::cuda::kernel::{Arithmetic, Form};
use attention_rollout::{
    DType, DiscardScope, GradientRule, HeadFusion, Residual, ResidualWeights, StartRows,
};

use super::{Entry, discard, fusions, three_windows};
use crate::cases::{Case, Lay, MatrixWay, Path, ring_matrix};
use crate::lab::Lab;

const RULES: [GradientRule; 2] = [GradientRule::Heads, GradientRule::Fused];

pub const ENTRIES: &[Entry] = &[
    Entry {
        name: "gradients_rows",
        kernels: &["gradients", "rollout_rows"],
        short: false,
        run: |lab| {
            for tokens in [1, 3, 8, 17, 33, 64] {
                weighed([3, 2, 3, tokens], GradientRule::Heads).check(lab, Path::Rows(1))?;
            }
            weighed([2, 1, 5, 131], GradientRule::Fused)
                .dtype(DType::F32)
                .check(lab, Path::Rows(2))?;
            let mean = [HeadFusion::Mean];
            features(lab, Path::Rows(1), 33, &mean, |case| {
                case.start(StartRows::Mean)
            })?;
            features(lab, Path::RowsCluster(4), 21, &mean, |case| {
                case.start(StartRows::Last)
            })
        },
    },
    Entry {
        // By the heads of a turn and beyond, in the first and last rows of a layer too.
        name: "gradients_heads",
        kernels: &["gradients", "rollout_rows", "head_fusion"],
        short: true,
        run: |lab| {
            // The maps fill whole granules, which their gradients do not.
            weighed([2, 1, 2, 8], GradientRule::Heads)
                .start(StartRows::Mean)
                .at(Lay::Contiguous, 16)
                .check(lab, Path::Rows(1))?;
            for heads in [1, 2, 5] {
                weighed([2, 1, heads, 21], GradientRule::Heads)
                    .start(StartRows::Mean)
                    .at(Lay::Contiguous, 2)
                    .check(lab, Path::Rows(1))?;
                weighed([2, 1, heads, 21], GradientRule::Fused)
                    .matrix()
                    .at(Lay::Contiguous, 2)
                    .check(lab, Path::Product(Arithmetic::F32, Form::Matrix))?;
            }
            Ok(())
        },
    },
    Entry {
        name: "gradients_fused_first",
        kernels: &["gradients", "head_fusion", "rollout_first", "row_scales"],
        short: false,
        run: |lab| {
            let path = Path::Product(Arithmetic::Tf32x3, Form::Matrix);
            features(lab, path, 21, &fusions(3), Case::matrix)?;
            features(
                lab,
                ring_matrix(Arithmetic::Tf32x3),
                19,
                &fusions(3)[..1],
                Case::matrix,
            )?;
            // No variant weighs maps that are fused so.
            features(lab, Path::Rows(2), 11, &fusions(3)[1..2], |case| {
                case.start(StartRows::Mean)
            })
        },
    },
    Entry {
        // A gradient reaches what depends on it, and nothing else: an infinity that is weighed by 0 is NaN.
        name: "gradients_not_finite",
        kernels: &["gradients", "rollout_rows", "head_fusion"],
        short: true,
        run: |lab| {
            not_finite(lab, Path::Rows(1))?;
            not_finite(lab, Path::Product(Arithmetic::F32, Form::Matrix))
        },
    },
    Entry {
        name: "exclusion",
        kernels: &["exclusion"],
        short: true,
        run: |lab| {
            let rows = |case: Case| case.start(StartRows::Mean);
            excluded(lab, Path::Rows(1), rows)?;
            excluded(lab, ring_matrix(Arithmetic::F16x3), Case::matrix)?;
            excluded(lab, Path::Product(Arithmetic::F32, Form::Rows), rows)
        },
    },
];

pub fn not_finite(lab: &Lab, path: Path) -> Result<(), String> {
    for rule in RULES {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let case = weighed([1, 2, 2, 13], rule)
                .dtype(DType::F32)
                .entry([0, 1, 1, 4, 7], value);
            let case = match path {
                Path::Product(..) => case.matrix(),
                _ => case.start(StartRows::Mean),
            };
            case.check(lab, path)?;
        }
    }
    Ok(())
}

/// PyHealth's `CheferRelevance`, or its sibling.
pub fn weighed(shape: [usize; 4], rule: GradientRule) -> Case {
    Case::new(shape).config(|c| {
        c.gradients = Some(rule);
        c.residual = ResidualWeights::Uniform(Residual::new(1.0, 1.0));
    })
}

/// What weighed maps have beside other maps: both rules with every element type and each of `fusions`, windows, rows of
/// causal maps, rows that are divided by their sums, and discard.
pub fn features(
    lab: &Lab,
    path: Path,
    tokens: usize,
    fusions: &[HeadFusion],
    base: impl Fn(Case) -> Case,
) -> Result<(), String> {
    for rule in RULES {
        let case = |heads| base(weighed([2, 3, heads, tokens], rule));
        for (turn, dtype) in DType::ALL.into_iter().enumerate() {
            let fusion = fusions[turn % fusions.len()].clone();
            case(3)
                .dtype(dtype)
                .config(|c| c.head_fusion = fusion)
                .check(lab, path)?;
        }
        if let Some(fusion) = fusions.last() {
            case(3)
                .config(|c| c.head_fusion = fusion.clone())
                .check(lab, path)?;
        }
        let windows = three_windows(tokens);
        for normalize in [false, true] {
            case(3)
                .config(|c| {
                    c.normalize_rows = normalize;
                    c.causal = true;
                    c.head_fusion = fusions[0].clone();
                })
                .windows(&windows)
                .at(Lay::Interleaved, 6)
                .check(lab, path)?;
        }
        case(2)
            .config(|c| {
                c.normalize_rows = true;
                c.discard = discard(0.8, DiscardScope::Map);
                c.head_fusion = fusions[0].clone();
            })
            .levels(64)
            .windows(&windows)
            .check(lab, path)?;
    }
    Ok(())
}

/// Tokens in the first and the second word of bits, in and out of windows; rows of which nothing is left; discard, causal
/// maps and gradients.
fn excluded(lab: &Lab, path: Path, base: impl Fn(Case) -> Case) -> Result<(), String> {
    let case = |shape, tokens: &[usize]| {
        base(Case::new(shape)).config(|c| c.exclude_from_attention = tokens.to_vec())
    };
    case([2, 1, 2, 37], &[0, 5, 31, 32, 36]).check(lab, path)?;
    let windows = three_windows(21);
    for normalize in [false, true] {
        case([2, 3, 2, 21], &[0, 1, 18])
            .config(|c| {
                c.causal = true;
                c.normalize_rows = normalize;
            })
            .windows(&windows)
            .check(lab, path)?;
        case([2, 3, 2, 21], &[2, 7])
            .config(|c| {
                c.normalize_rows = normalize;
                c.discard = discard(0.5, DiscardScope::Patches { special_tokens: 1 });
            })
            .levels(64)
            .windows(&windows)
            .check(lab, path)?;
    }
    case([3, 2, 1, 5], &[0, 1, 2, 3, 4]).check(lab, path)?;
    if matches!(
        path,
        Path::RingMatrix(MatrixWay {
            arithmetic: Arithmetic::F16x3,
            ..
        })
    ) {
        return Ok(());
    }
    case([2, 3, 2, 21], &[3])
        .config(|c| c.gradients = Some(GradientRule::Heads))
        .windows(&windows)
        .check(lab, path)
}
