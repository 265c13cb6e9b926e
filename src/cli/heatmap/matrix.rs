//! The rollout of one item as a picture: queries downwards, keys to the right.

use image::RgbImage;

use super::canvas::{BLACK, Canvas, GREY, text_width};
use super::scale::{BAR_HEIGHT, ScaleOptions};
use super::tokens::is_special;

/// Side of the matrix in pixels, about; more where there are more tokens than that.
const SIDE: u32 = 640;
const CELLS: std::ops::RangeInclusive<u32> = 1..=28;
const MARGIN: u32 = 12;
const LABEL: f32 = 13.0;
const TITLE: f32 = 15.0;
const LINE: u32 = 20;

/// Smallest cell whose row can be labelled.
const LABELLED_CELL: u32 = 13;

/// Draws `matrix` (`[len, len]`, row by row). Row and column `i` are called `labels[i]`, or by number.
///
/// Columns of special tokens do not stretch the colour scale: every token may give them most of its attention.
pub fn draw(
    matrix: &[f32],
    len: usize,
    labels: Option<&[String]>,
    options: ScaleOptions,
) -> RgbImage {
    let counts = |column: usize| labels.is_none_or(|labels| !is_special(&labels[column]));
    let values = matrix.iter().enumerate();
    let mut scale = options.scale(values.filter(|(i, _)| counts(i % len)).map(|(_, &v)| v));
    scale.is_clipped = matrix.iter().any(|&value| value > scale.high);
    let mut cell = (SIDE / len as u32).clamp(*CELLS.start(), *CELLS.end());
    if labels.is_some() {
        cell = cell.max(LABELLED_CELL);
    }
    let ticks = ticks(len, cell, labels);
    let widest = ticks.iter().map(|(_, label)| text_width(LABEL, label));
    let gutter = widest.fold(0.0, f32::max).ceil() as u32 + 6;

    let side = cell * len as u32;
    let (left, top) = (MARGIN + LINE + gutter, MARGIN + LINE + gutter);
    let bottom = top + side;
    let width = left + side.max(160) + MARGIN;
    let mut canvas = Canvas::blank(width, bottom + MARGIN + BAR_HEIGHT + MARGIN);
    for (row, values) in matrix.chunks_exact(len).enumerate() {
        for (column, &value) in values.iter().enumerate() {
            let (x, y) = (left + cell * column as u32, top + cell * row as u32);
            canvas.fill(x, y, cell, cell, scale.color(value));
        }
    }
    canvas.frame(left - 1, top - 1, side + 2, side + 2, GREY);

    let title = "query (output token)";
    let start = (bottom as f32).min(top as f32 + (side as f32 + text_width(TITLE, title)) / 2.0);
    canvas.text_upwards(MARGIN as f32, start, TITLE, BLACK, title);
    let title = "key (input token)";
    let start = left as f32 + ((side as f32 - text_width(TITLE, title)) / 2.0).max(0.0);
    canvas.text(start, MARGIN as f32, TITLE, BLACK, title);
    for (index, label) in &ticks {
        let middle = (cell * *index as u32) as f32 + (cell as f32 - LABEL) / 2.0;
        let end = left as f32 - 4.0 - text_width(LABEL, label);
        canvas.text(end, top as f32 + middle, LABEL, BLACK, label);
        let (x, bottom) = (left as f32 + middle, top as f32 - 4.0);
        canvas.text_upwards(x, bottom, LABEL, BLACK, label);
    }
    scale.draw_bar(&mut canvas, left, bottom + MARGIN, side.clamp(120, 320));
    canvas.into_image()
}

/// Rows that are named: all of them by label, or some of them by number.
fn ticks(len: usize, cell: u32, labels: Option<&[String]>) -> Vec<(usize, String)> {
    match labels {
        Some(labels) => labels.iter().cloned().enumerate().collect(),
        None => {
            let room = |step: &usize| *step as u32 * cell >= 2 * LABELLED_CELL;
            let steps = (0..).flat_map(|power| [1, 2, 5].map(|f| f * 10usize.pow(power)));
            let step = steps.take(18).find(room).unwrap_or(len);
            (0..len).step_by(step).map(|i| (i, i.to_string())).collect()
        }
    }
}
