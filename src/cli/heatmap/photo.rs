//! Relevance of patches, over the photo or as a map of its own.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use image::imageops::{FilterType, resize};
use image::{DynamicImage, ImageBuffer, ImageDecoder, ImageReader, Limits, Luma, RgbImage};

use super::canvas::{Canvas, mix};
use super::scale::{BAR_HEIGHT, Scale};
use crate::error::{Error, Result};
use crate::extents::Extents;
use crate::tensors::open_regular;

/// How strongly the colours cover the photo.
const OPACITY: f32 = 0.55;

/// Side that a map without a photo is enlarged to, about.
const MAP_SIDE: u32 = 448;

/// What patches are drawn on.
pub enum Ground {
    /// A photo, which has the size of the picture.
    Photo(RgbImage),
    /// Nothing, of this size.
    Blank { width: u32, height: u32 },
    /// Nothing; each patch is a square.
    Squares,
}

/// Longest side of a photo, in pixels.
const MAX_SIDE: u32 = 32_768;
/// Most pixels of a photo: some ten bytes are needed for each.
const MAX_PIXELS: u64 = 1 << 26;
/// Bytes that decoding may take, besides the picture.
const MAX_DECODER_BYTES: u64 = 512 << 20;

/// Opens the photo, turned as its EXIF orientation says.
pub fn open(path: &Path) -> Result<RgbImage> {
    let (file, _) = open_regular(path)?;
    decode(BufReader::new(file), MAX_PIXELS).map_err(|reason| Error::input(path, reason))
}

/// Decodes a photo of at most so many pixels. How many it has, is known before any is decoded.
pub fn decode(mut file: impl BufRead + Seek, most_pixels: u64) -> Result<RgbImage, String> {
    let fail = |e: &dyn std::fmt::Display| e.to_string();
    if let Some(bytes) = palette_bytes(&mut file).filter(|bytes| !bytes.is_multiple_of(3)) {
        // The png crate (0.18.1) panics there.
        return Err(format!(
            "expected a palette of three bytes for each colour, got {bytes} bytes"
        ));
    }
    file.rewind().map_err(|e| fail(&e))?;
    let mut reader = ImageReader::new(file)
        .with_guessed_format()
        .map_err(|e| fail(&e))?;
    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|e| fail(&e))?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > most_pixels {
        return Err(format!(
            "expected a photo of at most {most_pixels} pixels, got {width}x{height}"
        ));
    }
    let orientation = decoder.orientation().map_err(|e| fail(&e))?;
    let mut photo = DynamicImage::from_decoder(decoder).map_err(|e| fail(&e))?;
    photo.apply_orientation(orientation);
    Ok(photo.into_rgb8())
}

/// Bytes of the palette of a PNG that has one.
fn palette_bytes(file: &mut (impl Read + Seek)) -> Option<u32> {
    const SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";
    let mut signature = [0; 8];
    file.read_exact(&mut signature).ok()?;
    if signature != SIGNATURE {
        return None;
    }
    loop {
        let [mut length, mut kind] = [[0; 4]; 2];
        file.read_exact(&mut length).ok()?;
        file.read_exact(&mut kind).ok()?;
        let length = u32::from_be_bytes(length);
        match &kind {
            b"PLTE" => return Some(length),
            b"IDAT" => return None,
            // Its bytes and its check sum.
            _ => file.seek(SeekFrom::Current(i64::from(length) + 4)).ok()?,
        };
    }
}

/// Checks the size that `--upsample` asks for: that of the largest photo is enough. Its width and height.
pub fn check_size(to: Extents) -> Result<(u32, u32)> {
    let side = |extent: usize| u32::try_from(extent).ok().filter(|&side| side <= MAX_SIDE);
    match (side(to.width), side(to.height)) {
        (Some(width), Some(height)) if u64::from(width) * u64::from(height) <= MAX_PIXELS => {
            Ok((width, height))
        }
        _ => Err(Error::argument(
            "--upsample",
            format!("at most {MAX_PIXELS} pixels, and {MAX_SIDE} on a side"),
            format!("{}x{}", to.height, to.width),
        )),
    }
}

/// Draws `patches` (row by row).
pub fn draw(
    patches: &[f32],
    grid: Extents,
    scale: &Scale,
    ground: &Ground,
    filter: FilterType,
    with_bar: bool,
) -> RgbImage {
    let (columns, rows) = (grid.width as u32, grid.height as u32);
    let shares = patches.iter().map(|&value| scale.share(value)).collect();
    let map: ImageBuffer<Luma<f32>, Vec<f32>> =
        ImageBuffer::from_vec(columns, rows, shares).expect("one value per patch");
    let picture = match ground {
        Ground::Photo(photo) => {
            let map = resize(&map, photo.width(), photo.height(), filter);
            let mut picture = photo.clone();
            for (pixel, Luma([share])) in picture.pixels_mut().zip(map.pixels()) {
                *pixel = mix(*pixel, scale.color_at(*share), OPACITY);
            }
            picture
        }
        Ground::Blank { width, height } => {
            let map = resize(&map, *width, *height, filter);
            RgbImage::from_fn(*width, *height, |x, y| {
                scale.color_at(map.get_pixel(x, y).0[0])
            })
        }
        Ground::Squares => {
            let cell = (MAP_SIDE / columns.max(rows)).max(1);
            RgbImage::from_fn(columns * cell, rows * cell, |x, y| {
                scale.color(patches[(y / cell * columns + x / cell) as usize])
            })
        }
    };
    if with_bar {
        below(&picture, scale)
    } else {
        picture
    }
}

/// The picture with a colour bar below it.
fn below(picture: &RgbImage, scale: &Scale) -> RgbImage {
    let (width, height) = picture.dimensions();
    let mut canvas = Canvas::blank(width, height + BAR_HEIGHT + 8);
    canvas.paste(picture, 0, 0);
    let margin = 4.min(width / 4);
    scale.draw_bar(&mut canvas, margin, height + 6, width - 2 * margin);
    canvas.into_image()
}
