//! The answer, checked against the f64 reference before anything is timed.

use crate::config::{GradientRule, Output};
use crate::layer::HostLayer;
use crate::layout::Shape;
use crate::problem::Problem;
use crate::reference::{Matrix, layer_matrix};

/// Map elements per check; larger problems have their first and last item checked.
const ALL_ITEMS: usize = 4 << 20;

/// What exponentials of rounded scores may add, as a share of the largest entry.
const OF_SCORES: f64 = 5e-6;

/// Rows of a matrix that are checked: first, last and some between.
const MATRIX_ROWS: usize = 4;

/// Compares `out`, shaped as [`Problem::output_shape`], with the reference's layer matrices chained in f64.
///
/// Every entry of the maps, the state and the result is non-negative, so nothing cancels and each of the
/// `heads + tokens + 3` roundings of a layer costs at most one unit roundoff, relative to the entry; so do the product with
/// a gradient, and the `tokens + 1` of a row that is divided by what excluded tokens leave. `of_largest` is what
/// the device's arithmetic may add to that, as a share of the largest entry of the row. Where heads of either sign are
/// fused before they are rectified, they cancel, and their roundings count relative to the largest entry as well. Entries
/// from queries and keys may be off by 5e-6 of the largest.
///
/// # Errors
/// A sentence that names the first wrong entry.
pub fn check(
    problem: &Problem,
    layers: &[HostLayer<'_>],
    out: &[f32],
    of_largest: f64,
) -> Result<(), String> {
    let Shape {
        batch,
        heads,
        tokens,
        ..
    } = *problem.shape();
    let steps = problem.layers().len();
    let config = problem.config();
    let weighing = usize::from(config.gradients.is_some());
    let excluding = match config.exclude_from_attention.is_empty() {
        true => 0,
        false => tokens + 1,
    };
    let roundings = steps * (heads + weighing + excluding + tokens + 3);
    let relative = roundings as f64 * f64::from(f32::EPSILON) / 2.0;
    let of_largest = match config.gradients {
        Some(GradientRule::Fused) => of_largest + relative,
        _ if problem.queries_keys().is_some() => of_largest + OF_SCORES,
        _ => of_largest,
    };
    let few = steps * batch * heads * tokens * tokens > ALL_ITEMS;
    let items = (0..batch).filter(|&item| !few || item == 0 || item + 1 == batch);
    for item in items {
        let ahat: Vec<Matrix> = problem
            .layers()
            .map(|layer| layer_matrix(problem, layer, &layers[layer], item))
            .collect();
        for (last, row, start) in start_rows(problem, item) {
            let exact = chain(&ahat[..=last], start);
            let first = match problem.config().output {
                Output::Rows(_) => (item * problem.start_rows() + row) * tokens,
                Output::Matrix => (item * tokens + problem.windows()[item].start + row) * tokens,
                Output::Cumulative => {
                    ((last * batch + item) * tokens + problem.windows()[item].start + row) * tokens
                }
            };
            let largest = exact.iter().copied().fold(0.0, f64::max);
            let absolute = of_largest * largest + f64::from(f32::MIN_POSITIVE);
            let got = &out[first + problem.windows()[item].start..][..exact.len()];
            for (column, (&got, &exact)) in got.iter().zip(&exact).enumerate() {
                let error = (f64::from(got) - exact).abs();
                let allowed = relative * exact + absolute;
                let within = error <= allowed;
                if !within {
                    return Err(format!(
                        "wrong answer: item {item}, layer {last}, row {row}, column {column}: got {got:e}, \
                         expected {exact:e} within {allowed:.1e}"
                    ));
                }
            }
        }
    }
    Ok(())
}

/// What to check of `item`: the layer it ends at, its row in the output and the start distribution.
fn start_rows(problem: &Problem, item: usize) -> Vec<(usize, usize, Vec<f64>)> {
    let len = problem.windows()[item].len;
    let top = problem.layers().len() - 1;
    let unit = |row: usize| (0..len).map(|i| f64::from(u8::from(i == row))).collect();
    let some_rows = || {
        let last = len.saturating_sub(1);
        (0..MATRIX_ROWS).map(move |i| last * i / (MATRIX_ROWS - 1))
    };
    match problem.config().output {
        Output::Rows(_) => (0..problem.start_rows())
            .map(|row| {
                let mut weights = vec![0.0; len];
                problem.start_weights(item, row, &mut weights);
                (top, row, weights.into_iter().map(f64::from).collect())
            })
            .collect(),
        _ if len == 0 => Vec::new(),
        Output::Matrix => some_rows().map(|row| (top, row, unit(row))).collect(),
        Output::Cumulative => (0..=top)
            .flat_map(|last| some_rows().map(move |row| (last, row)))
            .map(|(last, row)| (last, row, unit(row)))
            .collect(),
    }
}

/// `start * Ahat_l ... Ahat_1`.
fn chain(ahat: &[Matrix], start: Vec<f64>) -> Vec<f64> {
    ahat.iter().rev().fold(start, |state, ahat| {
        let mut next = vec![0.0; state.len()];
        for (weight, row) in state.iter().zip(ahat).filter(|(weight, _)| **weight != 0.0) {
            for (next, entry) in next.iter_mut().zip(row) {
                *next += weight * entry;
            }
        }
        next
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Inputs;
    use crate::{DType, RolloutConfig};

    #[test]
    fn the_reference_passes_and_a_wrong_entry_is_named() {
        let shape = Shape {
            layers: 3,
            batch: 2,
            heads: 2,
            tokens: 7,
        };
        for output in [Output::default(), Output::Matrix, Output::Cumulative] {
            let config = RolloutConfig {
                output,
                ..Default::default()
            };
            let problem = Problem::new(shape, DType::F32, config).unwrap();
            let inputs = Inputs::random(&problem, 3).unwrap();
            let layers = inputs.layers();
            let exact = crate::reference::rollout(&problem, &layers).unwrap();
            let mut out: Vec<f32> = exact.iter().map(|&v| v as f32).collect();
            assert_eq!(check(&problem, &layers, &out, 0.0), Ok(()));
            out[0] *= 1.01;
            let error = check(&problem, &layers, &out, 1e-6).unwrap_err();
            assert!(error.contains("column 0"), "{error}");
            assert_eq!(check(&problem, &layers, &out, 0.02), Ok(()));
            out[0] = f32::NAN;
            assert!(check(&problem, &layers, &out, 0.02).is_err());
        }
    }
}
