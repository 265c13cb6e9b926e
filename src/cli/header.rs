//! The header of a safetensors file: read in one pass, so that it never takes much more memory than it has bytes.
//!
//! The safetensors crate writes such headers, and knows their types; its reader keeps several copies of a header, and
//! adds up offsets that may overflow.

use std::fmt;

use safetensors::Dtype;
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::shown::shown;

/// The largest header the format allows.
const MAX_BYTES: u64 = 100_000_000;

/// More axes than any framework's tensors have.
const MAX_AXES: usize = 64;

/// What the header says of one tensor.
#[derive(Deserialize)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: Dtype,
    /// Extents.
    #[serde(deserialize_with = "axes")]
    pub shape: Vec<usize>,
    /// First byte, and one past the last, counted from the end of the header.
    pub data_offsets: (usize, usize),
}

/// Tensors by name.
pub type TensorInfos = Vec<(String, TensorInfo)>;

/// The tensors of `file` in order of their data, and the data. Every tensor lies inside it and has as many bytes as its
/// shape and type need; together they cover it.
pub fn read(file: &[u8]) -> Result<(TensorInfos, &[u8]), String> {
    let (length, rest) = file
        .split_first_chunk::<8>()
        .ok_or("the header length is cut off")?;
    let length = u64::from_le_bytes(*length);
    if length > rest.len().min(MAX_BYTES as usize) as u64 {
        let available = rest.len();
        return Err(format!(
            "expected a header of at most {MAX_BYTES} bytes inside the {available} bytes after its length, got \
             {length} bytes"
        ));
    }
    let (header, data) = rest.split_at(length as usize);
    let invalid = |reason: &dyn fmt::Display| format!("invalid header: {reason}");
    let header = std::str::from_utf8(header).map_err(|e| invalid(&e))?;
    let Header(mut entries) = serde_json::from_str(header).map_err(|e| invalid(&e))?;
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut covered = 0;
    for (name, entry) in &entries {
        check(entry, covered, data.len()).map_err(|e| format!("tensor {}: {e}", shown(name)))?;
        covered = entry.data_offsets.1;
    }
    if covered != data.len() {
        let got = data.len();
        return Err(format!(
            "expected {covered} bytes of data, as many as the tensors have, got {got}"
        ));
    }
    Ok((entries, data))
}

/// Checks a tensor that follows `covered` bytes of others.
fn check(entry: &TensorInfo, covered: usize, available: usize) -> Result<(), String> {
    let TensorInfo {
        dtype,
        ref shape,
        data_offsets: (start, end),
    } = *entry;
    if start > end || end > available {
        return Err(format!(
            "expected offsets inside the {available} bytes of data, got {start}..{end}"
        ));
    }
    let bits = shape
        .iter()
        .try_fold(dtype.bitsize(), |bits, &extent| bits.checked_mul(extent))
        .ok_or_else(|| format!("shape {shape:?} overflows the address space"))?;
    if bits % 8 != 0 || bits / 8 != end - start {
        let (expected, got) = (bits.div_ceil(8), end - start);
        return Err(format!(
            "expected {expected} bytes for {dtype} {shape:?}, got {got}"
        ));
    }
    if start != covered {
        return Err(format!(
            "expected data that follows the tensor before it, at {covered}, got {start}"
        ));
    }
    Ok(())
}

/// The entries as they are listed.
struct Header(TensorInfos);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with an entry per tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let entry = map.next_value().map_err(|error| {
                A::Error::custom(format_args!("tensor {}: {error}", shown(&name)))
            })?;
            entries.push((name, entry));
        }
        Ok(Header(entries))
    }
}

/// Reads the extents of a tensor.
fn axes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    deserializer.deserialize_seq(AxesVisitor)
}

struct AxesVisitor;

impl<'de> Visitor<'de> for AxesVisitor {
    type Value = Vec<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MAX_AXES} extents")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<usize>, A::Error> {
        let mut shape = Vec::new();
        while let Some(extent) = sequence.next_element()? {
            if shape.len() == MAX_AXES {
                return Err(A::Error::invalid_length(MAX_AXES + 1, &self));
            }
            shape.push(extent);
        }
        Ok(shape)
    }
}
