//! After the rollout: relevance of some tokens, given to the elements of an input, laid out as a picture, or scaled to be
//! shown.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::layout::product;

/// Gives every element of an input the relevance of its token, as PyHealth's `_map_to_input_shapes` does.
///
/// Where the input has more axes than the relevance (`[batch, tokens]` against `[batch, tokens, codes]`), the last ones
/// are filled by repetition, and axes of extent 1 are stretched. Otherwise the relevance is returned as it is. The
/// result has the shape [`expanded_shape`].
///
/// # Errors
/// As [`expanded_shape`]; [`Error::Len`] where `relevance` does not have the length of `shape`.
pub fn expand(relevance: &[f32], shape: &[usize], value_shape: &[usize]) -> Result<Vec<f32>> {
    let expanded = expanded_shape(shape, value_shape)?;
    let expected = product("relevance", shape)?;
    if relevance.len() != expected {
        return Err(Error::Len {
            what: "relevance",
            expected,
            got: relevance.len(),
        });
    }
    if expanded == shape {
        return Ok(relevance.to_vec());
    }
    let mut values = relevance.to_vec();
    // Axis by axis from the last: whatever lies right of an axis is already as long as it will be.
    let mut inner = product("the expanded relevance", &expanded[shape.len()..])?;
    values = values
        .iter()
        .flat_map(|&v| std::iter::repeat_n(v, inner))
        .collect();
    for (&extent, &stretched) in shape.iter().zip(&expanded).rev() {
        if extent != stretched {
            values = values
                .chunks(inner.max(1))
                .flat_map(|c| c.repeat(stretched))
                .collect();
        }
        inner *= stretched;
    }
    Ok(values)
}

/// The shape of relevance of shape `shape` once it is expanded to an input of shape `value_shape`.
///
/// # Errors
/// [`Error::Shape`] where the input has more axes and its first ones do not fit the relevance;
/// [`Error::SizeOverflow`].
pub fn expanded_shape(shape: &[usize], value_shape: &[usize]) -> Result<Vec<usize>> {
    if value_shape.len() <= shape.len() {
        return Ok(shape.to_vec());
    }
    product("the expanded relevance", value_shape)?;
    if shape
        .iter()
        .zip(value_shape)
        .any(|(&own, &value)| own != value && own != 1)
    {
        return Err(Error::Shape {
            what: "value",
            expected: format!("first extents {shape:?}"),
            got: value_shape.to_vec(),
        });
    }
    Ok(value_shape.to_vec())
}

/// Drops the first `special_tokens` (CLS, distillation, registers) of each row and returns the patches, `[rows, height,
/// width]` where `relevance` is `[rows, tokens]`.
///
/// # Errors
/// [`Error::Len`] where `tokens` are not `special_tokens + height * width`, or `relevance` is not whole rows.
pub fn grid(
    relevance: &[f32],
    tokens: usize,
    special_tokens: usize,
    (height, width): (usize, usize),
) -> Result<Vec<f32>> {
    let patches = product("grid", &[height, width])?;
    let expected = patches
        .checked_add(special_tokens)
        .ok_or(Error::SizeOverflow { what: "grid" })?;
    if tokens != expected {
        return Err(Error::Len {
            what: "tokens of a grid, special ones included",
            expected,
            got: tokens,
        });
    }
    check_rows(relevance, tokens)?;
    Ok(relevance
        .chunks_exact(tokens)
        .flat_map(|row| &row[special_tokens..])
        .copied()
        .collect())
}

/// The columns `columns` of each row of `relevance`, `[rows, tokens]`: `[rows, columns]`. What the image tokens of a
/// vision-language model count for, say.
///
/// They sum to what those tokens have of the whole; [`normalize`] them with [`Normalization::Sum`] where they shall be
/// compared with each other alone.
///
/// # Errors
/// [`Error::Columns`] where `columns` is empty or leaves the `tokens`; [`Error::ZeroExtent`]; [`Error::Len`] where
/// `relevance` is not whole rows.
pub fn columns(relevance: &[f32], tokens: usize, columns: Range<usize>) -> Result<Vec<f32>> {
    check_rows(relevance, tokens)?;
    if columns.is_empty() || columns.end > tokens {
        return Err(Error::Columns {
            start: columns.start,
            end: columns.end,
            tokens,
        });
    }
    Ok(relevance
        .chunks_exact(tokens)
        .flat_map(|row| &row[columns.clone()])
        .copied()
        .collect())
}

/// Takes the tokens `excluded` out of each row of `relevance`, `[rows, tokens]`: their entries become 0, and the row is
/// divided by the sum of the others, as [`normalize`] does it. Sinks and separators, say, that would outshine the rest.
///
/// # Errors
/// [`Error::Token`] where one of `excluded` is not among the `tokens`; [`Error::ZeroExtent`]; [`Error::Len`] where
/// `relevance` is not whole rows.
pub fn exclude_from_relevance(
    relevance: &mut [f32],
    tokens: usize,
    excluded: &[usize],
) -> Result<()> {
    check_rows(relevance, tokens)?;
    if let Some(&token) = excluded.iter().find(|&&token| token >= tokens) {
        return Err(Error::Token {
            what: "excluded from relevance",
            token,
            tokens,
        });
    }
    for row in relevance.chunks_exact_mut(tokens) {
        for &token in excluded {
            row[token] = 0.0;
        }
    }
    normalize(relevance, tokens, Normalization::Sum)
}

/// Enlarges pictures to another size, bilinearly: `[pictures, height, width]` of `size` becomes `[pictures, height, width]`
/// of `to`.
///
/// Pixels are areas: the centre of the first lies half a pixel inside the edge, and beyond the centres at the edges
/// their values go on (PyTorch's `interpolate(mode="bilinear", align_corners=False)`). Made smaller, a picture is
/// sampled at the new centres, not averaged. The sums are in f64, rounded once.
///
/// # Errors
/// [`Error::ZeroExtent`] where an extent of either size is 0; [`Error::Len`] where `grids` is not whole pictures;
/// [`Error::SizeOverflow`].
pub fn upsample(grids: &[f32], size: (usize, usize), to: (usize, usize)) -> Result<Vec<f32>> {
    let (height, width) = size;
    for extent in [height, width, to.0, to.1] {
        if extent == 0 {
            return Err(Error::ZeroExtent {
                what: "height and width",
            });
        }
    }
    let picture = product("picture", &[height, width])?;
    check_rows(grids, picture)?;
    let pictures = grids.len() / picture;
    let len = product("enlarged pictures", &[pictures, to.0, to.1, 4])? / 4;
    let (rows, columns) = (samples(height, to.0), samples(width, to.1));
    let mut enlarged = Vec::with_capacity(len);
    for picture in grids.chunks_exact(picture) {
        let pixel = |row: usize, column: usize| f64::from(picture[row * width + column]);
        for &(row, next_row, down) in &rows {
            for &(column, next_column, right) in &columns {
                let between = |row| mix(pixel(row, column), pixel(row, next_column), right);
                enlarged.push(mix(between(row), between(next_row), down) as f32);
            }
        }
    }
    Ok(enlarged)
}

/// For each of `to` pixels, the two of `from` pixels that it lies between, and how far it is on its way to the second.
fn samples(from: usize, to: usize) -> Vec<(usize, usize, f64)> {
    let scale = from as f64 / to as f64;
    (0..to)
        .map(|pixel| {
            let at = ((pixel as f64 + 0.5) * scale - 0.5).clamp(0.0, (from - 1) as f64);
            let first = at as usize;
            (first, (first + 1).min(from - 1), at - first as f64)
        })
        .collect()
}

/// `first` where `share` is 0, and nothing of `second` then, be it NaN.
fn mix(first: f64, second: f64, share: f64) -> f64 {
    if share == 0.0 {
        first
    } else {
        first + (second - first) * share
    }
}

/// How [`normalize`] scales a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalization {
    /// Divide by the largest entry.
    Max,
    /// Subtract the smallest entry, then divide by the largest: 0 to 1.
    MinMax,
    /// Divide by the sum.
    Sum,
}

/// Scales each row of `values`, `[rows, row_len]`, by itself. A row whose divisor is 0 becomes 0. NaN entries stay
/// NaN; they make the whole row NaN where it is divided by its sum, and are left out of largest and smallest.
///
/// # Errors
/// [`Error::Len`] where `values` is not whole rows; [`Error::ZeroExtent`] where `row_len` is 0.
pub fn normalize(values: &mut [f32], row_len: usize, how: Normalization) -> Result<()> {
    check_rows(values, row_len)?;
    for row in values.chunks_exact_mut(row_len) {
        let smallest = match how {
            Normalization::MinMax => row.iter().copied().fold(f32::INFINITY, f32::min),
            Normalization::Max | Normalization::Sum => 0.0,
        };
        let divisor = match how {
            Normalization::Max | Normalization::MinMax => {
                row.iter().copied().fold(f32::NEG_INFINITY, f32::max) - smallest
            }
            Normalization::Sum => row.iter().map(|&v| f64::from(v)).sum::<f64>() as f32,
        };
        for value in row {
            *value = match (*value - smallest) / divisor {
                _ if divisor == 0.0 && !value.is_nan() => 0.0,
                scaled => scaled,
            };
        }
    }
    Ok(())
}

fn check_rows(values: &[f32], row_len: usize) -> Result<()> {
    if row_len == 0 {
        return Err(Error::ZeroExtent { what: "row length" });
    }
    if !values.len().is_multiple_of(row_len) {
        return Err(Error::Len {
            what: "whole rows",
            expected: values.len().next_multiple_of(row_len),
            got: values.len(),
        });
    }
    Ok(())
}
