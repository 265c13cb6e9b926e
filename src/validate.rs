//! Are these attention maps? Looks for the first entry that no softmax gives.

use std::fmt;

use crate::dtype::{Element, with_element};
use crate::error::{Error, Result};
use crate::layer::HostLayer;
use crate::problem::Problem;

/// Values summed side by side, so that the sum does not wait for itself.
const LANES: usize = 8;

/// The first thing found that no softmax gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defect {
    /// The layer, counted from the problem's first.
    pub layer: usize,
    /// The item of the batch.
    pub item: usize,
    /// The head.
    pub head: usize,
    /// The query token, counted from the map's first row, whatever the window.
    pub row: usize,
    /// What is wrong there.
    pub kind: DefectKind,
}

/// What is wrong with a row of an attention map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DefectKind {
    /// An entry is infinite or NaN.
    NotFinite {
        /// The key token, counted from the map's first column.
        column: usize,
        /// The entry.
        value: f32,
    },
    /// An entry is less than 0.
    Negative {
        /// The key token, counted from the map's first column.
        column: usize,
        /// The entry.
        value: f32,
    },
    /// The row does not sum to 1.
    RowSum {
        /// Sum of the row's valid entries.
        sum: f64,
        /// How far from 1 it may be.
        tolerance: f64,
    },
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Defect {
            layer,
            item,
            head,
            row,
            kind,
        } = self;
        write!(f, "layer {layer}, item {item}, head {head}, row {row}: ")?;
        match kind {
            DefectKind::NotFinite { column, value } => write!(f, "column {column} is {value}"),
            DefectKind::Negative { column, value } => {
                write!(f, "column {column} is negative: {value}")
            }
            DefectKind::RowSum { sum, tolerance } => {
                write!(f, "the row sums to {sum}, more than {tolerance} from 1")
            }
        }
    }
}

/// Finds the first row, in the order layer, item, head, row, with an entry that is not finite or is negative, or whose
/// sum is off 1 by more than `tolerance`. Looks at what a rollout reads: the layers of the range, inside the windows,
/// up to the diagonal where the maps are causal.
///
/// `None` where all is well.
///
/// # Errors
/// As [`Problem::check_layers`] for the layers; [`Error::Parameter`] where `tolerance` is negative or NaN.
pub fn validate(
    problem: &Problem,
    layers: &[HostLayer<'_>],
    tolerance: f64,
) -> Result<Option<Defect>> {
    if tolerance.is_nan() || tolerance < 0.0 {
        return Err(Error::Parameter {
            what: "tolerance of row sums",
            expected: "at least 0",
            got: tolerance,
        });
    }
    problem.check_layers(layers, problem.output_len())?;
    Ok(problem.layers().find_map(|layer| {
        let HostLayer::Maps(maps) = layers[layer];
        with_element!(maps.dtype(), T => {
            check_layer::<T>(problem, layer, maps.as_slice()?, tolerance)
        })
    }))
}

fn check_layer<T: Element>(
    problem: &Problem,
    layer: usize,
    maps: &[T],
    tolerance: f64,
) -> Option<Defect> {
    let strides = problem.strides(layer);
    for (item, window) in problem.windows().iter().enumerate() {
        for head in 0..problem.shape().heads {
            for i in 0..window.len {
                let row = window.start + i;
                let present = if problem.config().causal {
                    i + 1
                } else {
                    window.len
                };
                let first = item * strides.batch + head * strides.head + row * strides.row;
                let entries = &maps[first + window.start..][..present];
                if let Some(kind) = check_row(entries, window.start, tolerance) {
                    return Some(Defect {
                        layer,
                        item,
                        head,
                        row,
                        kind,
                    });
                }
            }
        }
    }
    None
}

fn check_row<T: Element>(row: &[T], first_column: usize, tolerance: f64) -> Option<DefectKind> {
    let mut sums = [0.0; LANES];
    for chunk in row.chunks(LANES) {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(value.to_f32());
        }
    }
    let sum: f64 = sums.iter().sum();
    let wrong = |value: f32| !value.is_finite() || value < 0.0;
    if row.iter().fold(false, |any, v| any | wrong(v.to_f32())) {
        let (column, value) = row
            .iter()
            .map(|v| v.to_f32())
            .enumerate()
            .find(|&(_, value)| wrong(value))?;
        let column = first_column + column;
        return Some(if value.is_finite() {
            DefectKind::Negative { column, value }
        } else {
            DefectKind::NotFinite { column, value }
        });
    }
    ((sum - 1.0).abs() > tolerance).then_some(DefectKind::RowSum { sum, tolerance })
}
