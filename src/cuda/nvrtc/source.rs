//! Kernel sources: the ones embedded in the crate, and any other.

use std::sync::LazyLock;

use sha2::{Digest, Sha256};

/// The kernel sources of this crate as (file name, text), in order of names.
static EMBEDDED: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The part of [`EMBEDDED`] that others include.
static EMBEDDED_HEADERS: LazyLock<Vec<(&str, &str)>> = LazyLock::new(|| {
    EMBEDDED
        .iter()
        .copied()
        .filter(|(name, _)| name.ends_with(".cuh"))
        .collect()
});

/// A translation unit of CUDA C++, all in memory.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The file name that messages and line information show.
    pub name: &'a str,
    /// The text.
    pub text: &'a str,
    /// What `#include "name"` finds, as (name, text). Nothing is read from disk.
    pub headers: &'a [(&'a str, &'a str)],
}

impl Source<'static> {
    /// A kernel file of this crate, with all its `.cuh` parts as headers; `None` when there is no such file.
    pub fn embedded(name: &str) -> Option<Self> {
        let (name, text) = EMBEDDED.iter().copied().find(|(file, _)| *file == name)?;
        Some(Self {
            name,
            text,
            headers: &EMBEDDED_HEADERS,
        })
    }
}

/// The kernel sources of this crate (`.cu` entry points and `.cuh` parts) as (file name, text), in order of names.
pub fn embedded_sources() -> &'static [(&'static str, &'static str)] {
    EMBEDDED
}

/// A digest of all kernel sources of this crate, in hexadecimal: tells which kernels a measurement was made with.
pub fn embedded_digest() -> String {
    let mut hasher = Sha256::new();
    for part in EMBEDDED.iter().flat_map(|(name, text)| [name, text]) {
        update_with_length(&mut hasher, part.as_bytes());
    }
    hexadecimal(&hasher.finalize())
}

/// Hashes some bytes and their number, so that neighbouring parts cannot be confused.
pub(super) fn update_with_length(hasher: &mut Sha256, bytes: &[u8]) {
    hasher.update((bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

/// Bytes as hexadecimal digits.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_embedded_file_is_found_by_its_name() {
        for (name, text) in embedded_sources() {
            let source = Source::embedded(name).unwrap();
            assert_eq!(source.text, *text);
            assert!(
                source
                    .headers
                    .iter()
                    .all(|(name, _)| name.ends_with(".cuh"))
            );
        }
        assert!(Source::embedded("missing.cu").is_none());
    }

    #[test]
    fn the_digest_is_hexadecimal() {
        assert_eq!(embedded_digest().len(), 64);
        assert_eq!(hexadecimal(&[0, 0x0f, 0xf0]), "000ff0");
    }
}
