//! What one file of the disk cache holds.
//!
//! | bytes | content |
//! |---|---|
//! | 16 | magic, with the format's version |
//! | 32 | key |
//! | 8 | length of the body, little-endian |
//! | 32 | SHA-256 of the body |
//! | rest | body |
//!
//! The body is the image's kind (1 byte), image, log, and the number of kernels (8 bytes) with, for each, whether it is
//! an entry (1 byte), its name and seven 4-byte numbers. Image, log and names are preceded by their length (8 bytes).
//! Every byte is covered: a change anywhere makes the file unreadable as an entry.

use sha2::{Digest, Sha256};

use crate::cuda::nvrtc::{Compiled, Image, KernelResources};

const MAGIC: &[u8; 16] = b"rollout-nvrtc\0\0\x01";

/// Identifies what an entry was compiled from.
pub(super) type Key = [u8; 32];

/// An entry's bytes.
pub(super) fn encode(key: &Key, compiled: &Compiled) -> Vec<u8> {
    let mut body = Vec::new();
    let (kind, image) = match &compiled.image {
        Image::Cubin(bytes) => (0, bytes.as_slice()),
        Image::Ptx(text) => (1, text.as_bytes()),
    };
    body.push(kind);
    put_bytes(&mut body, image);
    put_bytes(&mut body, compiled.log.as_bytes());
    put_length(&mut body, compiled.resources.len());
    for kernel in &compiled.resources {
        body.push(u8::from(kernel.is_entry));
        put_bytes(&mut body, kernel.name.as_bytes());
        for number in [
            kernel.registers,
            kernel.spill_store_bytes,
            kernel.spill_load_bytes,
            kernel.stack_bytes,
            kernel.shared_bytes,
            kernel.constant_bytes,
            kernel.barriers,
        ] {
            body.extend_from_slice(&number.to_le_bytes());
        }
    }
    let mut bytes = Vec::new();
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(key);
    put_length(&mut bytes, body.len());
    bytes.extend_from_slice(&Sha256::digest(&body));
    bytes.append(&mut body);
    bytes
}

/// Reads an entry back; `None` unless it is whole and has the key.
pub(super) fn decode(bytes: &[u8], key: &Key) -> Option<Compiled> {
    let mut file = Reader(bytes);
    if file.take(MAGIC.len())? != MAGIC || file.take(key.len())? != key {
        return None;
    }
    let length = file.length()?;
    let checksum: [u8; 32] = file.array()?;
    let body = file.0;
    if body.len() != length || Sha256::digest(body)[..] != checksum {
        return None;
    }
    let mut body = Reader(body);
    let kind = body.byte()?;
    let image = body.bytes()?;
    let image = match kind {
        0 => Image::Cubin(image.to_owned()),
        1 => Image::Ptx(String::from_utf8(image.to_owned()).ok()?),
        _ => return None,
    };
    let log = body.text()?;
    let kernels = body.length()?;
    let mut resources = Vec::new();
    for _ in 0..kernels {
        resources.push(KernelResources {
            is_entry: body.byte()? != 0,
            name: body.text()?,
            registers: body.number()?,
            spill_store_bytes: body.number()?,
            spill_load_bytes: body.number()?,
            stack_bytes: body.number()?,
            shared_bytes: body.number()?,
            constant_bytes: body.number()?,
            barriers: body.number()?,
        });
    }
    body.0.is_empty().then_some(Compiled {
        image,
        log,
        resources,
        from_cache: true,
    })
}

fn put_length(to: &mut Vec<u8>, length: usize) {
    to.extend_from_slice(&(length as u64).to_le_bytes());
}

fn put_bytes(to: &mut Vec<u8>, bytes: &[u8]) {
    put_length(to, bytes.len());
    to.extend_from_slice(bytes);
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const LENGTH: usize>(&mut self) -> Option<[u8; LENGTH]> {
        self.take(LENGTH)?.try_into().ok()
    }

    fn byte(&mut self) -> Option<u8> {
        Some(u8::from_le_bytes(self.array()?))
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.array()?))
    }

    fn length(&mut self) -> Option<usize> {
        usize::try_from(u64::from_le_bytes(self.array()?)).ok()
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.length()?;
        self.take(length)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_owned()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = [7; 32];

    fn samples() -> [Compiled; 2] {
        let kernel = |name: &str, is_entry| KernelResources {
            name: name.to_owned(),
            is_entry,
            registers: 1,
            spill_store_bytes: 2,
            spill_load_bytes: 3,
            stack_bytes: 4,
            shared_bytes: 5,
            constant_bytes: 6,
            barriers: u32::MAX,
        };
        let cubin = Compiled {
            image: Image::Cubin(vec![0x7f, b'E', b'L', b'F', 0, 0xff]),
            log: "ptxas info".to_owned(),
            resources: vec![kernel("first", true), kernel("", false)],
            from_cache: true,
        };
        let ptx = Compiled {
            image: Image::Ptx(".version 8.8".to_owned()),
            log: String::new(),
            resources: Vec::new(),
            from_cache: true,
        };
        [cubin, ptx]
    }

    #[test]
    fn entries_read_back_as_written() {
        for compiled in samples() {
            assert_eq!(decode(&encode(&KEY, &compiled), &KEY), Some(compiled));
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        for compiled in samples() {
            let mut bytes = encode(&KEY, &compiled);
            for at in 0..bytes.len() {
                for bit in 0..8 {
                    bytes[at] ^= 1 << bit;
                    assert_eq!(decode(&bytes, &KEY), None, "byte {at}, bit {bit}");
                    bytes[at] ^= 1 << bit;
                }
            }
        }
    }

    #[test]
    fn a_missing_or_added_end_is_noticed() {
        for compiled in samples() {
            let mut bytes = encode(&KEY, &compiled);
            for length in 0..bytes.len() {
                assert_eq!(decode(&bytes[..length], &KEY), None, "{length} bytes");
            }
            bytes.push(0);
            assert_eq!(decode(&bytes, &KEY), None);
        }
    }

    #[test]
    fn an_entry_of_another_key_is_foreign() {
        for compiled in samples() {
            assert_eq!(decode(&encode(&[8; 32], &compiled), &KEY), None);
        }
    }

    /// A body that lies about its lengths but has the right checksum neither panics nor allocates what it claims.
    #[test]
    fn lengths_are_not_believed() {
        let [compiled, _] = samples();
        let header = MAGIC.len() + KEY.len();
        let good = encode(&KEY, &compiled);
        let body = &good[header + 8 + 32..];
        for at in 0..body.len() {
            let mut body = body.to_vec();
            body[at] = 0xff;
            let mut bytes = good[..header].to_vec();
            put_length(&mut bytes, body.len());
            bytes.extend_from_slice(&Sha256::digest(&body));
            bytes.extend_from_slice(&body);
            let _ = decode(&bytes, &KEY);
        }
    }
}
