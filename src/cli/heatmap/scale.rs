//! From values to colours, and the bar that explains them.

use clap::ValueEnum;
use image::Rgb;

use super::canvas::{BLACK, Canvas, GREY, WHITE, text_width};

/// `--colormap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorMap {
    Viridis,
    Inferno,
    Magma,
    Turbo,
    /// From white over yellow to red, for dark text on it
    Heat,
}

impl ColorMap {
    /// The colour at `share` of the scale.
    pub fn color(self, share: f32) -> Rgb<u8> {
        let gradient = match self {
            ColorMap::Viridis => colorous::VIRIDIS,
            ColorMap::Inferno => colorous::INFERNO,
            ColorMap::Magma => colorous::MAGMA,
            ColorMap::Turbo => colorous::TURBO,
            ColorMap::Heat => colorous::YELLOW_ORANGE_RED,
        };
        let color = gradient.eval_continuous(share.clamp(0.0, 1.0).into());
        Rgb([color.r, color.g, color.b])
    }
}

/// A linear scale over the values drawn. Values beyond an end get that end's colour.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    low: f32,
    pub high: f32,
    /// Whether values above `high` are drawn.
    pub is_clipped: bool,
    colors: ColorMap,
}

/// How to make a [`Scale`].
#[derive(Clone, Copy, Debug)]
pub struct ScaleOptions {
    pub colors: ColorMap,
    /// The scale ends at this percentile of the values, so that a few outliers do not take all colours.
    pub clip_percentile: f64,
}

impl ScaleOptions {
    /// The scale for `values`, of which those that are not finite do not count.
    pub fn scale(&self, values: impl IntoIterator<Item = f32>) -> Scale {
        let mut values: Vec<f32> = values.into_iter().filter(|v| v.is_finite()).collect();
        values.sort_by(f32::total_cmp);
        let low = values.first().copied().unwrap_or(0.0);
        let max = values.last().copied().unwrap_or(0.0);
        // Nearest rank. Where all but the outliers are the same value, the outliers are what there is to see.
        let rank = (self.clip_percentile / 100.0 * values.len() as f64).ceil() as usize;
        let clipped = values.get(rank.saturating_sub(1)).copied().unwrap_or(max);
        let high = if clipped > low { clipped } else { max };
        Scale {
            low,
            high,
            is_clipped: high < max,
            colors: self.colors,
        }
    }
}

impl Scale {
    /// Where `value` lies on the scale, 0 to 1; 0 where the scale is one point, NaN for NaN.
    pub fn share(&self, value: f32) -> f32 {
        if self.high > self.low {
            ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
        } else {
            value * 0.0
        }
    }

    /// The colour at `share` of the scale.
    pub fn color_at(&self, share: f32) -> Rgb<u8> {
        self.colors.color(share)
    }

    /// The colour of `value`; grey for NaN.
    pub fn color(&self, value: f32) -> Rgb<u8> {
        match self.share(value) {
            share if share.is_nan() => GREY,
            share => self.colors.color(share),
        }
    }

    /// Draws a horizontal colour bar with its two ends, [`BAR_HEIGHT`] high.
    pub fn draw_bar(&self, canvas: &mut Canvas, x: u32, y: u32, width: u32) {
        for dx in 0..width {
            let color = self.colors.color(dx as f32 / (width - 1).max(1) as f32);
            canvas.fill(x + dx, y, 1, BAR_THICKNESS, color);
        }
        canvas.frame(x, y, width, BAR_THICKNESS, GREY);
        let below = (y + BAR_THICKNESS + 2) as f32;
        let above = if self.is_clipped { "≥ " } else { "" };
        let (low, high) = (short(self.low), format!("{above}{}", short(self.high)));
        canvas.text(x as f32, below, BAR_TEXT, BLACK, &low);
        let end = (x + width) as f32 - text_width(BAR_TEXT, &high);
        canvas.text(end, below, BAR_TEXT, BLACK, &high);
    }
}

const BAR_THICKNESS: u32 = 14;
const BAR_TEXT: f32 = 14.0;

/// Height of a colour bar with its labels.
pub const BAR_HEIGHT: u32 = 32;

/// Black or white, whichever can be read on `background`.
pub fn text_color(background: Rgb<u8>) -> Rgb<u8> {
    // Relative luminance, ITU-R BT.709.
    let [r, g, b] = background.0.map(f32::from);
    if 0.2126 * r + 0.7152 * g + 0.0722 * b > 120.0 {
        BLACK
    } else {
        WHITE
    }
}

/// A number with three significant digits.
pub fn short(value: f32) -> String {
    let magnitude = value.abs();
    if value == 0.0 {
        "0".to_owned()
    } else if !(1e-3..1e4).contains(&magnitude) {
        format!("{value:.1e}")
    } else {
        let decimals = (2 - magnitude.log10().floor() as i32).clamp(0, 5) as usize;
        format!("{value:.decimals$}")
    }
}
