//! Relevance of text: one coloured box per token, in reading order.

use image::RgbImage;

use super::canvas::{BLACK, Canvas, GREY, WHITE, text_width};
use super::scale::{BAR_HEIGHT, ScaleOptions, short, text_color};

const WIDTH: u32 = 960;
const MARGIN: u32 = 16;
const GAP: u32 = 6;
const PADDING: u32 = 7;
const LABEL: f32 = 20.0;
const NUMBER: f32 = 12.0;
const BOX_HEIGHT: u32 = 44;
const BAR_WIDTH: u32 = 240;

/// Whether a token stands for no text: `[CLS]`, `<s>`, `<|endoftext|>`.
pub fn is_special(label: &str) -> bool {
    let between =
        |open, close| label.len() > 2 && label.starts_with(open) && label.ends_with(close);
    between('<', '>')
        || (between('[', ']') && !label.chars().any(|c| c.is_lowercase() || c.is_whitespace()))
}

/// Draws the labels with their relevance. Special tokens are drawn without colour and do not stretch the scale,
/// because they often hold most of the relevance.
pub fn draw(labels: &[String], relevance: &[f32], options: ScaleOptions) -> RgbImage {
    let text = labels.iter().zip(relevance);
    let words = text.clone().filter(|(label, _)| !is_special(label));
    let scale = options.scale(words.map(|(_, &value)| value));

    let numbers: Vec<String> = relevance.iter().map(|&value| short(value)).collect();
    let boxes = layout(labels, &numbers);
    let bottom = boxes.last().map_or(MARGIN, |last| last.y + BOX_HEIGHT);
    let mut canvas = Canvas::blank(WIDTH, bottom + MARGIN + BAR_HEIGHT + MARGIN);
    for (((label, &value), number), area) in text.zip(&numbers).zip(&boxes) {
        let background = if is_special(label) {
            WHITE
        } else {
            scale.color(value)
        };
        canvas.fill(area.x, area.y, area.width, BOX_HEIGHT, background);
        canvas.frame(area.x, area.y, area.width, BOX_HEIGHT, GREY);
        let ink = if is_special(label) {
            GREY
        } else {
            text_color(background)
        };
        let mut centered = |y: u32, size: f32, text: &str| {
            let x = area.x as f32 + (area.width as f32 - text_width(size, text)) / 2.0;
            canvas.text(x, (area.y + y) as f32, size, ink, text);
        };
        centered(5, LABEL, label);
        centered(28, NUMBER, number);
    }
    let bar = bottom + MARGIN;
    scale.draw_bar(&mut canvas, MARGIN, bar, BAR_WIDTH);
    if labels.iter().any(|label| is_special(label)) {
        let x = (MARGIN + BAR_WIDTH + MARGIN) as f32;
        let note = "special tokens are not coloured and not on the scale";
        canvas.text(x, bar as f32, NUMBER, BLACK, note);
    }
    canvas.into_image()
}

struct Area {
    x: u32,
    y: u32,
    width: u32,
}

/// Places the boxes line by line.
fn layout(labels: &[String], numbers: &[String]) -> Vec<Area> {
    let (mut x, mut y) = (MARGIN, MARGIN);
    labels
        .iter()
        .zip(numbers)
        .map(|(label, number)| {
            let text = text_width(LABEL, label).max(text_width(NUMBER, number));
            let width = (text.ceil() as u32 + 2 * PADDING).min(WIDTH - 2 * MARGIN);
            if x > MARGIN && x + width > WIDTH - MARGIN {
                (x, y) = (MARGIN, y + BOX_HEIGHT + GAP);
            }
            let area = Area { x, y, width };
            x += width + GAP;
            area
        })
        .collect()
}
