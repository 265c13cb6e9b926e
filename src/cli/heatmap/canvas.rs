//! An RGB picture with rectangles and text.

use std::sync::LazyLock;

use ab_glyph::{Font, FontRef, PxScale, ScaleFont, point};
use image::{Rgb, RgbImage};

/// DejaVu Sans (Bitstream Vera licence), from the `dejavu` crate: Latin, Greek, Cyrillic and the marks of tokenizers.
static FONT: LazyLock<FontRef<'static>> = LazyLock::new(|| {
    FontRef::try_from_slice(dejavu::sans::regular()).expect("the font in the binary is whole")
});

pub const WHITE: Rgb<u8> = Rgb([255; 3]);
pub const BLACK: Rgb<u8> = Rgb([0; 3]);
pub const GREY: Rgb<u8> = Rgb([110; 3]);

/// An RGB picture; what lies outside it is clipped.
pub struct Canvas {
    image: RgbImage,
}

impl Canvas {
    /// A white canvas.
    pub fn blank(width: u32, height: u32) -> Self {
        Canvas {
            image: RgbImage::from_pixel(width, height, WHITE),
        }
    }

    /// The finished picture.
    pub fn into_image(self) -> RgbImage {
        self.image
    }

    /// Copies `picture` to `x, y`.
    pub fn paste(&mut self, picture: &RgbImage, x: u32, y: u32) {
        image::imageops::replace(&mut self.image, picture, x.into(), y.into());
    }

    /// Fills a rectangle.
    pub fn fill(&mut self, x: u32, y: u32, width: u32, height: u32, color: Rgb<u8>) {
        for y in y..y.saturating_add(height).min(self.image.height()) {
            for x in x..x.saturating_add(width).min(self.image.width()) {
                self.image.put_pixel(x, y, color);
            }
        }
    }

    /// Draws the border of a rectangle, one pixel wide.
    pub fn frame(&mut self, x: u32, y: u32, width: u32, height: u32, color: Rgb<u8>) {
        self.fill(x, y, width, 1, color);
        self.fill(x, y + height - 1, width, 1, color);
        self.fill(x, y, 1, height, color);
        self.fill(x + width - 1, y, 1, height, color);
    }

    /// Draws a line of text whose box starts at `x, y`; `size` is its height in pixels.
    pub fn text(&mut self, x: f32, y: f32, size: f32, color: Rgb<u8>, text: &str) {
        glyphs(x, y, size, text, |x, y, coverage| {
            blend(&mut self.image, x, y, color, coverage);
        });
    }

    /// As [`text`](Canvas::text), read from bottom to top: `x` is the left edge, `bottom` where the text starts.
    pub fn text_upwards(&mut self, x: f32, bottom: f32, size: f32, color: Rgb<u8>, text: &str) {
        glyphs(0.0, 0.0, size, text, |along, across, coverage| {
            let (x, y) = (x as i64 + across, bottom as i64 - along);
            blend(&mut self.image, x, y, color, coverage);
        });
    }
}

/// Width of a line of text, in pixels.
pub fn text_width(size: f32, text: &str) -> f32 {
    let font = FONT.as_scaled(PxScale::from(size));
    text.chars().map(|c| font.h_advance(font.glyph_id(c))).sum()
}

/// Calls `pixel` with position and coverage of every pixel that the text touches.
fn glyphs(x: f32, y: f32, size: f32, text: &str, mut pixel: impl FnMut(i64, i64, f32)) {
    let scale = PxScale::from(size);
    let font = FONT.as_scaled(scale);
    let baseline = y + font.ascent();
    let mut x = x;
    for c in text.chars() {
        let id = font.glyph_id(c);
        let glyph = id.with_scale_and_position(scale, point(x, baseline));
        if let Some(outline) = FONT.outline_glyph(glyph) {
            let corner = outline.px_bounds().min;
            outline.draw(|dx, dy, coverage| {
                let (x, y) = (
                    corner.x as i64 + i64::from(dx),
                    corner.y as i64 + i64::from(dy),
                );
                pixel(x, y, coverage);
            });
        }
        x += font.h_advance(id);
    }
}

fn blend(image: &mut RgbImage, x: i64, y: i64, color: Rgb<u8>, coverage: f32) {
    if let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y))
        && let Some(pixel) = image.get_pixel_mut_checked(x, y)
    {
        *pixel = mix(*pixel, color, coverage);
    }
}

/// `from` with `share` of it replaced by `to`.
pub fn mix(from: Rgb<u8>, to: Rgb<u8>, share: f32) -> Rgb<u8> {
    let share = share.clamp(0.0, 1.0);
    let channel = |i: usize| {
        let (from, to) = (f32::from(from.0[i]), f32::from(to.0[i]));
        (from + (to - from) * share).round() as u8
    };
    Rgb([channel(0), channel(1), channel(2)])
}
