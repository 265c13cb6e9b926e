//! After the rollout: relevance given to the elements of an input, laid out as a picture, or scaled to be shown.

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
