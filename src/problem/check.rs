//! What a problem has to keep to: each rule, with the error of what does not.

use crate::config::{Discard, HeadFusion, ResidualWeights, RolloutConfig, StartRows};
use crate::error::{Error, Result};
use crate::layout::{Shape, Window, product};

pub(super) fn count(what: &'static str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        Ok(())
    } else {
        Err(Error::Count {
            what,
            expected,
            got,
        })
    }
}

/// A window for each item, within the tokens and no longer than `max_window`.
pub(super) fn windows(windows: &[Window], shape: &Shape, max_window: Option<usize>) -> Result<()> {
    count("windows, one per item", shape.batch, windows.len())?;
    let (tokens, max) = (shape.tokens, max_window.unwrap_or(shape.tokens));
    for (item, &Window { start, len }) in windows.iter().enumerate() {
        if start.checked_add(len).is_none_or(|end| end > tokens) {
            return Err(Error::Window {
                item,
                start,
                len,
                tokens,
            });
        }
        if len > max {
            return Err(Error::WindowLen { item, len, max });
        }
    }
    Ok(())
}

fn finite(what: &'static str, values: impl IntoIterator<Item = f32>) -> Result<()> {
    match values.into_iter().find(|v| !v.is_finite()) {
        Some(got) => Err(Error::Parameter {
            what,
            expected: "finite",
            got: got.into(),
        }),
        None => Ok(()),
    }
}

pub(super) fn weights(config: &RolloutConfig, shape: &Shape) -> Result<()> {
    if let HeadFusion::Weighted(weights) = &config.head_fusion {
        count("head weights, one per head", shape.heads, weights.len())?;
        finite("head weight", weights.iter().copied())?;
    }
    let residuals = match &config.residual {
        ResidualWeights::Uniform(residual) => std::slice::from_ref(residual),
        ResidualWeights::PerLayer(residuals) => {
            count(
                "residual weights, one pair per layer",
                shape.layers,
                residuals.len(),
            )?;
            residuals
        }
    };
    finite("attention weight", residuals.iter().map(|r| r.attention))?;
    finite("identity weight", residuals.iter().map(|r| r.identity))
}

pub(super) fn discard(config: &RolloutConfig, tokens: usize) -> Result<()> {
    let Some(Discard { ratio, scope }) = config.discard else {
        return Ok(());
    };
    match Discard::new(ratio, scope)?.scope.first() {
        got if got > tokens => Err(Error::SpecialTokens { tokens, got }),
        _ => Ok(()),
    }
}

/// Puts the excluded tokens in order.
pub(super) fn excluded(excluded: &mut Vec<usize>, tokens: usize) -> Result<()> {
    excluded.sort_unstable();
    excluded.dedup();
    match excluded.last() {
        Some(&token) if token >= tokens => Err(Error::Token {
            what: "excluded from attention",
            token,
            tokens,
        }),
        _ => Ok(()),
    }
}

/// What start rows that differ by item are counted as.
pub(super) const ROWS_PER_ITEM: &str = "start rows, as many for each item";

/// Start rows of an item, each among the tokens of its window; where that is empty, the item has none to look for.
pub(super) fn rows_inside(
    item: usize,
    rows: &[usize],
    window: &Window,
    shape: &Shape,
) -> Result<()> {
    let len = window.len;
    let end = if len == 0 { shape.tokens } else { len };
    match rows.iter().find(|&&row| row >= end) {
        Some(&row) => Err(Error::StartRow { item, row, len }),
        None => Ok(()),
    }
}

pub(super) fn start_rows(rows: &StartRows, shape: &Shape, windows: &[Window]) -> Result<()> {
    let mut windows = windows.iter().enumerate();
    match rows {
        StartRows::Rows(rows) => {
            if rows.is_empty() {
                return Err(Error::ZeroExtent { what: "start rows" });
            }
            windows.try_for_each(|(item, window)| rows_inside(item, rows, window, shape))
        }
        StartRows::PerItem(rows) => {
            let per_item = StartRows::per_item(rows, shape.batch);
            count(ROWS_PER_ITEM, per_item * shape.batch, rows.len())?;
            let mut items = windows.zip(rows.chunks_exact(per_item));
            items.try_for_each(|((item, window), rows)| rows_inside(item, rows, window, shape))
        }
        StartRows::Last | StartRows::Mean => Ok(()),
        StartRows::Weights { rows, weights } => {
            if *rows == 0 {
                return Err(Error::ZeroExtent { what: "start rows" });
            }
            let shared = product("start weights", &[*rows, shape.tokens])?;
            let each = product("start weights", &[shape.batch, shared])?;
            if weights.len() != shared && weights.len() != each {
                return Err(Error::Len {
                    what: "start weights",
                    expected: shared,
                    got: weights.len(),
                });
            }
            finite("start weight", weights.iter().copied())
        }
    }?;
    let start_rows = match rows {
        StartRows::Rows(rows) => rows.len(),
        StartRows::PerItem(rows) => StartRows::per_item(rows, shape.batch),
        StartRows::Weights { rows, .. } => *rows,
        StartRows::Last | StartRows::Mean => 1,
    };
    product("relevance", &[shape.batch, start_rows, shape.tokens, 4]).map(|_| ())
}
