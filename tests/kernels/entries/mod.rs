//! The kernel suite: every entry computes whole rollouts with one family of kernels and compares them with the f64
//! reference. An entry takes any [`Lab`], so that kernels with seeded faults can be put through it too.

mod gradients;
mod group;
mod inputs;
mod matrix_stream;
mod product;
mod range;
mod rows;
mod scores;
mod stream;
pub mod tree;
mod values;

use attention_rollout::cuda::kernel::MAX_LAYERS_PER_LAUNCH;
use attention_rollout::{
    DType, Discard, DiscardScope, HeadFusion, Residual, ResidualWeights, StartRows,
};

use crate::cases::{Case, Lay, Path};
use crate::lab::Lab;
use crate::traffic;

/// Named entries of the suite, each with the kernels (by stem) it exercises.
pub struct Entry {
    pub name: &'static str,
    pub kernels: &'static [&'static str],
    /// Short ones are run with every NVRTC there is, the others with the first.
    pub short: bool,
    pub run: fn(&Lab) -> Result<(), String>,
}

/// Every entry.
pub fn entries() -> impl Iterator<Item = &'static Entry> {
    [
        rows::ENTRIES,
        stream::ENTRIES,
        product::ENTRIES,
        tree::ENTRIES,
        matrix_stream::ENTRIES,
        gradients::ENTRIES,
        group::ENTRIES,
        scores::ENTRIES,
        scores::rows::ENTRIES,
        scores::short::ENTRIES,
        scores::stream::ENTRIES,
        range::ENTRIES,
        inputs::ENTRIES,
        values::ENTRIES,
        traffic::ENTRIES,
    ]
    .into_iter()
    .flatten()
}

/// Head weights that are neither equal nor a probability.
fn head_weights(heads: usize) -> HeadFusion {
    HeadFusion::Weighted((0..heads).map(|h| 0.7 / (h + 1) as f32).collect())
}

fn fusions(heads: usize) -> [HeadFusion; 4] {
    [
        HeadFusion::Mean,
        HeadFusion::Max,
        HeadFusion::Min,
        head_weights(heads),
    ]
}

/// Windows for a batch of three items of `tokens` (at least 5): right padding, left padding, one token.
fn three_windows(tokens: usize) -> [(usize, usize); 3] {
    [(0, tokens - 2), (3, tokens - 3), (2, 1)]
}

fn discard(ratio: f64, scope: DiscardScope) -> Option<Discard> {
    Some(Discard { ratio, scope })
}

/// Residual weights that differ from layer to layer and leave each row of `Ahat` with a sum of 1.
fn per_layer(layers: usize) -> ResidualWeights {
    let weight = |l: usize| 0.3 + 0.4 * l as f32 / layers as f32;
    ResidualWeights::PerLayer(
        (0..layers)
            .map(|l| Residual::new(weight(l), 1.0 - weight(l)))
            .collect(),
    )
}

/// More layers than two launches take, with so little attention that each of them shows in the result.
fn many_layers(lab: &Lab, path: Path, base: impl Fn(Case) -> Case) -> Result<(), String> {
    let layers = 2 * MAX_LAYERS_PER_LAUNCH + 2;
    let weight = |l: usize| (1.0 + 2.0 * l as f32 / layers as f32) / layers as f32;
    let residual = |l| Residual::new(weight(l), 1.0 - weight(l));
    let case = |normalize| {
        base(Case::new([layers, 2, 1, 7])).config(|c| {
            c.residual = ResidualWeights::PerLayer((0..layers).map(residual).collect());
            c.normalize_rows = normalize;
        })
    };
    case(false).check(lab, path)?;
    case(true).windows(&[(1, 6), (0, 5)]).check(lab, path)?;
    case(false)
        .config(|c| c.discard = discard(0.5, DiscardScope::Map))
        .check(lab, path)?;
    // A range that begins and ends inside a launch's worth of layers.
    case(false)
        .config(|c| c.layers = Some(3..MAX_LAYERS_PER_LAUNCH + 5))
        .check(lab, path)
}

fn weights(rows: usize, tokens: usize) -> StartRows {
    let weight = |i: usize| {
        if i % 3 == 1 {
            0.0
        } else {
            (i % 7) as f32 / (4 * tokens) as f32
        }
    };
    StartRows::Weights {
        rows,
        weights: (0..rows * tokens).map(weight).collect(),
    }
}

/// The features every path has, for `path`, at `tokens` (at least 8) with M start rows where the path takes them.
fn features(
    lab: &Lab,
    path: Path,
    tokens: usize,
    base: impl Fn(Case) -> Case,
) -> Result<(), String> {
    let shape = [2, 3, 3, tokens];
    for dtype in DType::ALL {
        for fusion in fusions(3) {
            base(Case::new([2, 1, 3, tokens]).dtype(dtype))
                .config(|c| c.head_fusion = fusion)
                .check(lab, path)?;
        }
    }
    let windows = three_windows(tokens);
    for normalize in [false, true] {
        let case = |shape| base(Case::new(shape)).config(|c| c.normalize_rows = normalize);
        case(shape).windows(&windows).check(lab, path)?;
        case(shape)
            .config(|c| c.causal = true)
            .windows(&windows)
            .at(Lay::Interleaved, 6)
            .check(lab, path)?;
        for scope in [
            DiscardScope::Map,
            DiscardScope::Patches { special_tokens: 2 },
        ] {
            case(shape)
                .config(|c| c.discard = discard(0.8, scope))
                .levels(64)
                .windows(&windows)
                .check(lab, path)?;
        }
        case([2, 1, 2, tokens])
            .config(|c| {
                c.causal = true;
                c.discard = discard(0.6, DiscardScope::Map);
            })
            .check(lab, path)?;
    }
    // Most rows are 0, and so are their sums.
    base(Case::new([2, 1, 2, tokens]))
        .config(|c| {
            c.normalize_rows = true;
            c.residual = ResidualWeights::Uniform(Residual::new(1.0, 0.0));
        })
        .levels(2)
        .check(lab, path)?;
    base(Case::new([3, 2, 2, tokens]))
        .config(|c| c.residual = per_layer(3))
        .at(Lay::Contiguous, 2)
        .check(lab, path)
}
