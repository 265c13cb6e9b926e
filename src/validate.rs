//! Are these attention maps? Looks for the first entry that no softmax gives.

#[cfg(feature = "cpu")]
mod glance;

use std::fmt;
use std::ops::Range;

#[cfg(feature = "cpu")]
use rayon::prelude::*;

use crate::dtype::{Element, with_element};
use crate::error::{Error, Result};
use crate::layer::{HostLayer, HostTensor};
use crate::layout::Shape;
use crate::problem::Problem;

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

/// What is wrong with a row of an attention map, or of its gradients.
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
    /// A gradient is infinite or NaN.
    Gradient {
        /// The key token, counted from the map's first column.
        column: usize,
        /// The gradient.
        value: f32,
    },
    /// An element of a query is infinite or NaN.
    Query {
        /// The element.
        column: usize,
        /// Its value.
        value: f32,
    },
    /// An element of a key is infinite or NaN; the head is one of keys.
    Key {
        /// The element.
        column: usize,
        /// Its value.
        value: f32,
    },
    /// A logarithm of a sum is NaN.
    Lse,
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
            DefectKind::Gradient { column, value } => {
                write!(f, "the gradient in column {column} is {value}")
            }
            DefectKind::Query { column, value } => {
                write!(f, "element {column} of the query is {value}")
            }
            DefectKind::Key { column, value } => {
                write!(f, "element {column} of the key is {value}")
            }
            DefectKind::Lse => f.write_str("the LSE is NaN"),
            DefectKind::RowSum { sum, tolerance } => {
                write!(f, "the row sums to {sum}, more than {tolerance} from 1")
            }
        }
    }
}

/// Finds the first row, in the order layer, item, head, row, with an entry that is not finite or is negative, or whose
/// sum is off 1 by more than `tolerance`. Looks at what a rollout reads: the layers of the range, inside the windows,
/// up to the diagonal where the maps are causal; and at the gradients beside them, which must be finite. Of queries, keys
/// and LSE looks whether they are numbers; rows whose sums are off 1 show in a run.
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
    first_defect(problem, layers, Rule::Distribution { tolerance })
}

/// Finds the first entry, in the order layer, item, head, row, that is infinite or NaN, among those a rollout reads (as
/// [`validate`]).
///
/// # Errors
/// As [`Problem::check_layers`] for the layers.
pub fn first_not_finite(problem: &Problem, layers: &[HostLayer<'_>]) -> Result<Option<Defect>> {
    first_defect(problem, layers, Rule::Finite)
}

/// What rows must be.
#[derive(Clone, Copy)]
enum Rule {
    Finite,
    Distribution { tolerance: f64 },
}

/// Rows of a head that are looked at as one piece of work.
const ROWS: usize = 64;

/// Finds the first row that breaks the rule, on all threads of rayon's pool where there is one.
fn first_defect(problem: &Problem, layers: &[HostLayer<'_>], rule: Rule) -> Result<Option<Defect>> {
    problem.check_layers(layers, problem.output_len())?;
    let Shape {
        batch,
        heads,
        tokens,
        ..
    } = *problem.shape();
    let blocks = tokens.div_ceil(ROWS);
    // In the order in which defects are looked for.
    let pieces = 0..problem.layers().len() * batch * heads * blocks;
    let check = |piece: usize| {
        let (head, block) = (piece / blocks, piece % blocks);
        let (item, head) = (head / heads, head % heads);
        let (layer, item) = (problem.layers().start + item / batch, item % batch);
        let place = Place { layer, item, head };
        let rows = block * ROWS..tokens.min((block + 1) * ROWS);
        let (maps, gradients) = match layers[layer] {
            HostLayer::Maps(maps) => (maps, None),
            HostLayer::Gradients { maps, gradients } => (maps, Some(gradients)),
            HostLayer::QueriesKeys { queries, keys, lse } => {
                return check_tokens(problem, [queries, keys], lse, place, rows);
            }
        };
        with_element!(maps.dtype(), T => {
            check_rows::<T>(problem, maps.as_slice()?, place, rows.clone(), rule)
                .or_else(|| check_gradients::<T>(problem, gradients?.as_slice()?, place, rows))
        })
    };
    #[cfg(feature = "cpu")]
    let found = pieces.into_par_iter().find_map_first(check);
    #[cfg(not(feature = "cpu"))]
    let found = pieces.into_iter().find_map(check);
    Ok(found)
}

/// One head of one item.
#[derive(Clone, Copy)]
struct Place {
    layer: usize,
    item: usize,
    head: usize,
}

impl Place {
    /// A defect in row `row` of it.
    fn defect(self, row: usize, kind: DefectKind) -> Defect {
        let Place { layer, item, head } = self;
        Defect {
            layer,
            item,
            head,
            row,
            kind,
        }
    }
}

/// As [`check_rows`], for gradients, which need but be finite.
fn check_gradients<T: Element>(
    problem: &Problem,
    gradients: &[T],
    place: Place,
    rows: Range<usize>,
) -> Option<Defect> {
    let defect = check_rows(problem, gradients, place, rows, Rule::Finite)?;
    let kind = match defect.kind {
        DefectKind::NotFinite { column, value } => DefectKind::Gradient { column, value },
        kind => kind,
    };
    Some(Defect { kind, ..defect })
}

/// The first token of those in `rows`, counted from the window's start, whose query, key or LSE is not a number.
fn check_tokens(
    problem: &Problem,
    [queries, keys]: [HostTensor<'_>; 2],
    lse: Option<HostTensor<'_>>,
    place: Place,
    rows: Range<usize>,
) -> Option<Defect> {
    let Place { layer, item, head } = place;
    let source = problem.queries_keys()?;
    let strides = source.strides(problem.shape(), layer);
    let window = problem.windows()[item];
    let not_finite = |tensor: HostTensor<'_>, first: usize| {
        let mut elements = (0..source.head_dim).map(|column| (column, tensor.get(first + column)));
        elements.find(|(_, value)| !value.is_finite())
    };
    (rows.start..rows.end.min(window.len)).find_map(|i| {
        let row = window.start + i;
        let query = not_finite(queries, strides.queries.at(item, head, row));
        let key = (head < source.key_heads)
            .then(|| not_finite(keys, strides.keys.at(item, head, row)))
            .flatten();
        let is_nan = lse.is_some_and(|lse| lse.get(strides.lse.at(item, head, row)).is_nan());
        let kind = match (query, key, is_nan) {
            (Some((column, value)), _, _) => DefectKind::Query { column, value },
            (None, Some((column, value)), _) => DefectKind::Key { column, value },
            (None, None, true) => DefectKind::Lse,
            (None, None, false) => return None,
        };
        Some(place.defect(row, kind))
    })
}

/// Checks the rows that are in `rows`, counted from the window's start, and in the window.
fn check_rows<T: Element>(
    problem: &Problem,
    maps: &[T],
    place: Place,
    rows: Range<usize>,
    rule: Rule,
) -> Option<Defect> {
    let Place { layer, item, head } = place;
    let strides = problem.strides(layer);
    let window = problem.windows()[item];
    let causal = problem.config().causal;
    let len = |row: usize| if causal { row + 1 } else { window.len };
    let first_entry = |row: usize| {
        let row = window.start + row;
        item * strides.batch + head * strides.head + row * strides.row + window.start
    };
    let rows = rows.start..rows.end.min(window.len);
    #[cfg(feature = "cpu")]
    let rows = if rows.is_empty() {
        rows
    } else {
        let all = glance::Rows {
            entries: &maps[first_entry(rows.start)..],
            stride: strides.row,
            count: rows.len(),
            first_len: len(rows.start),
            growth: causal.into(),
        };
        rows.start + glance::sure_rows(all, rule)..rows.end
    };
    rows.into_iter().find_map(|row| {
        let entries = &maps[first_entry(row)..][..len(row)];
        let kind = check_row(entries, window.start, rule)?;
        Some(place.defect(window.start + row, kind))
    })
}

fn check_row<T: Element>(row: &[T], first_column: usize, rule: Rule) -> Option<DefectKind> {
    let lowest = match rule {
        Rule::Finite => f32::MIN,
        Rule::Distribution { .. } => 0.0,
    };
    let right = lowest..=f32::MAX;
    let mut sum = 0.0;
    for (column, entry) in (first_column..).zip(row) {
        let value = entry.to_f32();
        if !right.contains(&value) {
            return Some(if value.is_finite() {
                DefectKind::Negative { column, value }
            } else {
                DefectKind::NotFinite { column, value }
            });
        }
        sum += f64::from(value);
    }
    let Rule::Distribution { tolerance } = rule else {
        return None;
    };
    ((sum - 1.0).abs() > tolerance).then_some(DefectKind::RowSum { sum, tolerance })
}
