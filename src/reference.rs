//! The rollout as the papers write it: plain loops in f64, to be checked by eye and to check everything else by.
//!
//! Abnar & Zuidema 2020 (arXiv 2005.00928), section 3: `Ahat = a * fused + b * I`, `R = Ahat_L ... Ahat_1`; rows of it
//! are start rows times the matrices, from the last layer down.
//! Nothing here is fast and everything is allocated on the way.

use crate::config::{GradientRule, HeadFusion, Output};
use crate::error::Result;
use crate::layer::{HostLayer, HostTensor, Layer};
use crate::layout::{Shape, Window};
use crate::problem::Problem;
use crate::queries_keys::{Lse, QueriesKeys};

/// Rows over the valid tokens of one item.
pub(crate) type Matrix = Vec<Vec<f64>>;

/// Computes the output of `problem`, shaped as [`Problem::output_shape`], in f64.
///
/// `layers` holds every layer of the problem, also those outside its range.
///
/// # Errors
/// As [`Problem::check_layers`].
pub fn rollout(problem: &Problem, layers: &[HostLayer<'_>]) -> Result<Vec<f64>> {
    problem.check_layers(layers, problem.output_len())?;
    let Shape { batch, tokens, .. } = *problem.shape();
    let mut out = vec![0.0; problem.output_len()];
    for item in 0..batch {
        let window = problem.windows()[item];
        let ahat = |layer: usize| layer_matrix(problem, layer, &layers[layer], item);
        if let Output::Rows(_) = &problem.config().output {
            let mut descending = problem.layers().rev();
            let first = descending.next().map(ahat).unwrap_or_default();
            let rows = start_times(problem, item, &first);
            let relevance = descending.fold(rows, |rows, layer| multiply(&rows, &ahat(layer)));
            for (row, relevance) in relevance.iter().enumerate() {
                let at = (item * problem.start_rows() + row) * tokens + window.start;
                out[at..][..window.len].copy_from_slice(relevance);
            }
            continue;
        }
        let mut rollout = Matrix::new();
        for (step, layer) in problem.layers().enumerate() {
            rollout = match step {
                0 => ahat(layer),
                _ => multiply(&ahat(layer), &rollout),
            };
            let at = match problem.config().output {
                Output::Cumulative => step * batch + item,
                _ => item,
            };
            place(&rollout, window, tokens, &mut out[at * tokens * tokens..]);
        }
    }
    Ok(out)
}

/// The start rows of an item, times the matrix of the last layer: rows of zero weight are not looked at.
fn start_times(problem: &Problem, item: usize, ahat: &Matrix) -> Matrix {
    let mut start = vec![0.0; ahat.len()];
    let times = |row| {
        problem.start_weights(item, row, &mut start);
        let mut sums = vec![0.0; ahat.len()];
        for (&weight, entries) in start.iter().zip(ahat).filter(|(w, _)| **w != 0.0) {
            for (sum, entry) in sums.iter_mut().zip(entries) {
                *sum += f64::from(weight) * entry;
            }
        }
        sums
    };
    (0..problem.start_rows()).map(times).collect()
}

/// `Ahat` of one layer and item: heads fused, smallest entries discarded, tokens excluded, residual added, rows normalised.
pub(crate) fn layer_matrix(
    problem: &Problem,
    layer: usize,
    operands: &HostLayer<'_>,
    item: usize,
) -> Matrix {
    let config = problem.config();
    let len = problem.windows()[item].len;
    let computed = probabilities(problem, layer, operands, item);
    let mut ahat = vec![vec![0.0; len]; len];
    let mut fused_f32 = vec![vec![0.0; len]; len];
    for i in 0..len {
        for j in 0..if config.causal { i + 1 } else { len } {
            let heads = match &computed {
                None => head_entries(problem, layer, operands, item, i, j),
                Some(heads) => heads.iter().map(|p| (p[i][j], p[i][j] as f32)).collect(),
            };
            let (exact, rounded): (Vec<f64>, Vec<f32>) = heads.into_iter().unzip();
            fused_f32[i][j] = fuse_f32(&config.head_fusion, &rounded);
            ahat[i][j] = match &config.head_fusion {
                HeadFusion::Mean => exact.iter().sum::<f64>() / exact.len() as f64,
                HeadFusion::Weighted(weights) => {
                    let weighted = exact.iter().zip(weights);
                    weighted.map(|(v, &w)| v * f64::from(w)).sum()
                }
                HeadFusion::Max | HeadFusion::Min => fused_f32[i][j].into(),
            };
            if config.gradients == Some(GradientRule::Fused) {
                ahat[i][j] = relu(ahat[i][j], 0.0);
                fused_f32[i][j] = relu(fused_f32[i][j], 0.0);
            }
        }
    }
    for (i, j) in discarded(problem, item, &fused_f32) {
        ahat[i][j] = 0.0;
    }
    let excluded = &config.exclude_from_attention;
    let residual = problem.residual(layer);
    for (i, row) in ahat.iter_mut().enumerate() {
        if !excluded.is_empty() {
            for &token in excluded.iter().filter(|&&token| token < len) {
                row[token] = 0.0;
            }
            divide_by_sum(row);
        }
        for entry in row.iter_mut() {
            *entry *= f64::from(residual.attention);
        }
        row[i] += f64::from(residual.identity);
        if config.normalize_rows {
            divide_by_sum(row);
        }
    }
    ahat
}

/// Divides a row by its sum; a row whose sum is 0 becomes 0.
fn divide_by_sum(row: &mut [f64]) {
    let sum: f64 = row.iter().sum();
    for entry in row {
        *entry = if sum == 0.0 { 0.0 } else { *entry / sum };
    }
}

/// The entries of all heads at `i`, `j`, counted from the start of the item's window: `A`, or `G * A`, whose negative ones
/// are 0 where the rule rectifies heads. In f64, and to the bit as every backend has them in f32.
fn head_entries(
    problem: &Problem,
    layer: usize,
    operands: &HostLayer<'_>,
    item: usize,
    i: usize,
    j: usize,
) -> Vec<(f64, f32)> {
    let strides = problem.strides(layer);
    let start = problem.windows()[item].start;
    let first = item * strides.batch + (start + i) * strides.row + start + j;
    (0..problem.shape().heads)
        .map(|head| {
            let at = first + head * strides.head;
            let (map, gradient) = match operands {
                Layer::Maps(maps) => return (maps.get(at).into(), maps.get(at)),
                Layer::Gradients { maps, gradients } => (maps.get(at), gradients.get(at)),
                Layer::QueriesKeys { .. } => unreachable!("they have no entries of their own"),
            };
            let weighted = (f64::from(gradient) * f64::from(map), gradient * map);
            match problem.config().gradients {
                Some(GradientRule::Heads) => (relu(weighted.0, 0.0), relu(weighted.1, 0.0)),
                _ => weighted,
            }
        })
        .collect()
}

/// The attention of each head that queries and keys give, as [`QueriesKeys`] defines it.
fn probabilities(
    problem: &Problem,
    layer: usize,
    operands: &HostLayer<'_>,
    item: usize,
) -> Option<Vec<Matrix>> {
    let Layer::QueriesKeys { queries, keys, lse } = operands else {
        return None;
    };
    let of_head = |head| HeadScores::new(problem, layer, (*queries, *keys), (item, head));
    let heads: Option<Vec<HeadScores<'_>>> = (0..problem.shape().heads).map(of_head).collect();
    let rows = |scores: HeadScores<'_>| {
        let row = |i: usize| {
            let given = lse.as_ref().and_then(|lse| scores.given_lse(lse, i));
            scores.probabilities(i, given)
        };
        (0..scores.len()).map(row).collect()
    };
    Some(heads?.into_iter().map(rows).collect())
}

/// The scores of one head of one item in one layer.
pub(crate) struct HeadScores<'a> {
    problem: &'a Problem,
    source: &'a QueriesKeys,
    layer: usize,
    item: usize,
    head: usize,
    queries: HostTensor<'a>,
    keys: HostTensor<'a>,
}

impl<'a> HeadScores<'a> {
    /// Those of `head` of `item`; `None` where the problem is not of queries and keys.
    pub fn new(
        problem: &'a Problem,
        layer: usize,
        (queries, keys): (HostTensor<'a>, HostTensor<'a>),
        (item, head): (usize, usize),
    ) -> Option<Self> {
        Some(HeadScores {
            problem,
            source: problem.queries_keys()?,
            layer,
            item,
            head,
            queries,
            keys,
        })
    }

    /// Valid tokens.
    pub fn len(&self) -> usize {
        self.problem.windows()[self.item].len
    }

    /// What query `i` and key `j` give, both counted from the window's start; `None` where it is masked.
    fn score(&self, i: usize, j: usize) -> Option<f64> {
        let (source, layer) = (self.source, self.layer);
        let far = |window| i.abs_diff(j) >= window;
        if self.problem.config().causal && j > i || source.sliding_window(layer).is_some_and(far) {
            return None;
        }
        let shape = self.problem.shape();
        let (strides, start) = (
            source.strides(shape, layer),
            self.problem.windows()[self.item].start,
        );
        let key_head = source.key_head(shape.heads, self.head);
        let q = strides.queries.at(self.item, self.head, start + i);
        let k = strides.keys.at(self.item, key_head, start + j);
        let product: f64 = (0..source.head_dim)
            .map(|c| f64::from(self.queries.get(q + c)) * f64::from(self.keys.get(k + c)))
            .sum();
        let scaled = f64::from(source.scale()) * product;
        let capped = source.soft_cap(layer).map_or(scaled, |cap| {
            let cap = f64::from(cap);
            cap * (scaled / cap).tanh()
        });
        let slope = f64::from(source.slope(shape.heads, layer, self.head));
        Some(capped - slope * i.abs_diff(j) as f64)
    }

    /// The scores of query `i`.
    fn scores(&self, i: usize) -> Vec<Option<f64>> {
        (0..self.len()).map(|j| self.score(i, j)).collect()
    }

    /// The natural LSE of `scores`, with the head's sink.
    fn lse_of(&self, scores: &[Option<f64>]) -> f64 {
        let heads = self.problem.shape().heads;
        let sink = self
            .source
            .sink(heads, self.layer, self.head)
            .map(f64::from);
        let summed: Vec<f64> = scores.iter().copied().flatten().chain(sink).collect();
        let largest = summed.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = summed.iter().map(|s| (s - largest).exp()).sum();
        largest + sum.ln()
    }

    /// The natural LSE of query `i`.
    #[cfg(feature = "measure")]
    pub fn lse(&self, i: usize) -> f64 {
        self.lse_of(&self.scores(i))
    }

    /// Where the LSE of query `i` lies.
    pub fn lse_at(&self, i: usize) -> usize {
        let strides = self.source.strides(self.problem.shape(), self.layer).lse;
        strides.at(
            self.item,
            self.head,
            self.problem.windows()[self.item].start + i,
        )
    }

    /// The natural LSE that is given for query `i`, where it is to be taken.
    fn given_lse(&self, lse: &HostTensor<'_>, i: usize) -> Option<f64> {
        match self.source.lse {
            Lse::Given(base) => Some(f64::from(lse.get(self.lse_at(i))) * base.ln()),
            Lse::Recomputed => None,
        }
    }

    /// The attention that query `i` pays.
    fn probabilities(&self, i: usize, given_lse: Option<f64>) -> Vec<f64> {
        let scores = self.scores(i);
        let lse = given_lse.unwrap_or_else(|| self.lse_of(&scores));
        let entry = |score: Option<f64>| match score {
            Some(score) if !lse.is_infinite() => (score - lse).exp(),
            _ => 0.0,
        };
        scores.into_iter().map(entry).collect()
    }
}

/// `value`, or `zero` where it is less; NaN stays NaN.
fn relu<T: PartialOrd>(value: T, zero: T) -> T {
    if value < zero { zero } else { value }
}

/// The fused entry to the bit, as [`HeadFusion`] defines it: what discard compares.
pub(crate) fn fuse_f32(fusion: &HeadFusion, heads: &[f32]) -> f32 {
    let extreme = |better: fn(f32, f32) -> bool| {
        let keep = |kept: f32, v: f32| {
            if v.is_nan() || better(v, kept) {
                v
            } else {
                kept
            }
        };
        heads[1..].iter().fold(
            heads[0],
            |kept, &v| if kept.is_nan() { kept } else { keep(kept, v) },
        )
    };
    match fusion {
        HeadFusion::Mean => {
            heads[1..].iter().fold(heads[0], |sum, &v| sum + v) * (1.0 / heads.len() as f32)
        }
        HeadFusion::Weighted(weights) => heads[1..]
            .iter()
            .zip(&weights[1..])
            .fold(heads[0] * weights[0], |sum, (&v, &w)| sum + v * w),
        HeadFusion::Max => extreme(|v, kept| v > kept),
        HeadFusion::Min => extreme(|v, kept| v < kept),
    }
}

/// The entries that discard zeroes: the `k` smallest in scope, ties by the lower row-major index.
fn discarded(problem: &Problem, item: usize, fused: &[Vec<f32>]) -> Vec<(usize, usize)> {
    let Some(discard) = problem.config().discard else {
        return Vec::new();
    };
    let (first, len) = (discard.scope.first(), fused.len());
    let mut entries: Vec<(usize, usize)> = (first..len)
        .flat_map(|i| (first..len).map(move |j| (i, j)))
        .collect();
    // A stable sort keeps ties in row-major order; adding 0 makes -0 equal to 0, and NaN sorts last.
    let key = |&(i, j): &(usize, usize)| match fused[i][j] + 0.0 {
        v if v.is_nan() => f32::NAN,
        v => v,
    };
    entries.sort_by(|a, b| key(a).total_cmp(&key(b)));
    entries.truncate(problem.discard_count(item));
    if discard.scope.spares_origin() {
        entries.retain(|&entry| entry != (0, 0));
    }
    entries
}

/// Rows times a square matrix.
fn multiply(left: &Matrix, right: &Matrix) -> Matrix {
    let mut product = vec![vec![0.0; right.len()]; left.len()];
    for (sums, weights) in product.iter_mut().zip(left) {
        for (weight, entries) in weights.iter().zip(right) {
            for (sum, entry) in sums.iter_mut().zip(entries) {
                *sum += weight * entry;
            }
        }
    }
    product
}

/// Writes `matrix` into the item's window of a `[tokens, tokens]` output.
fn place(matrix: &Matrix, window: Window, tokens: usize, out: &mut [f64]) {
    for (i, row) in matrix.iter().enumerate() {
        out[(window.start + i) * tokens + window.start..][..window.len].copy_from_slice(row);
    }
}
