//! Bytes as a photo: never a panic, never more pixels than allowed, and what is taken, the image crate takes too.

use std::io::Cursor;

use super::change;
use crate::common::generate::Random;
use crate::heatmap::photo::decode;

/// Pixels that are allowed here: few, to try many photos.
const MOST_PIXELS: u64 = 1 << 14;

/// Decodes `file`.
pub fn check(file: &[u8]) {
    let Ok(photo) = decode(Cursor::new(file), MOST_PIXELS) else {
        return;
    };
    let (width, height) = photo.dimensions();
    assert!(u64::from(width) * u64::from(height) <= MOST_PIXELS);
    let theirs = image::load_from_memory(file).expect("only the image crate refuses it");
    let (theirs_width, theirs_height) = (theirs.width(), theirs.height());
    let turned = (theirs_height, theirs_width);
    assert!((width, height) == (theirs_width, theirs_height) || (width, height) == turned);
    // Turned or not, the pixels are the same ones.
    let sum = |pixels: &[u8]| pixels.iter().map(|&byte| u64::from(byte)).sum::<u64>();
    assert_eq!(sum(&photo), sum(&theirs.into_rgb8()));
}

/// What the chunks of PNG and the segments of JPEG are called, and sizes at which arithmetic goes wrong.
const PIECES: [&str; 14] = [
    "IHDR",
    "PLTE",
    "tRNS",
    "IDAT",
    "iCCP",
    "eXIf",
    "acTL",
    "fdAT",
    "zTXt",
    "IEND",
    "Exif\0\0",
    "\x7f\x7f\x7f\x7f",
    "\0\0\0\0",
    "\0\0\x01\0",
];

/// A file of the corpus with some places changed, most often with the sums of PNG's chunks set right again.
pub fn mutate(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut file = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(3) {
        change(random, &mut file, 0, &PIECES);
    }
    if random.below(8) > 0 {
        mend_sums(&mut file);
    }
    file
}

/// Sets the check sum of every chunk.
fn mend_sums(file: &mut [u8]) {
    const SIGNATURE: usize = 8;
    let mut rest = file.get_mut(SIGNATURE..).unwrap_or_default();
    while let Some((length, after)) = rest.split_first_chunk_mut::<4>() {
        let covered = 4 + u32::from_be_bytes(*length) as usize;
        let Some((chunk, after)) = after.split_at_mut_checked(covered) else {
            return;
        };
        let Some((sum, after)) = after.split_first_chunk_mut::<4>() else {
            return;
        };
        *sum = crc32(chunk).to_be_bytes();
        rest = after;
    }
}

/// The check sum of PNG (ISO 3309).
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc))
    })
}
