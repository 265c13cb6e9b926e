//! Tensors of the files in `tests/data`.

use std::path::Path;

use half::f16;
use safetensors::{Dtype, SafeTensors};

/// One tensor in the type it was stored as.
pub enum Values {
    F32(Vec<f32>),
    F64(Vec<f64>),
    F16(Vec<f16>),
    I64(Vec<i64>),
    Other,
}

/// A file's bytes.
pub fn read(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The tensor's shape and elements.
pub fn tensor(file: &SafeTensors<'_>, name: &str) -> (Vec<usize>, Values) {
    let view = file
        .tensor(name)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let bytes = view.data();
    let values = match view.dtype() {
        Dtype::F32 => Values::F32(cast(bytes, f32::from_le_bytes)),
        Dtype::F64 => Values::F64(cast(bytes, f64::from_le_bytes)),
        Dtype::F16 => Values::F16(cast(bytes, f16::from_le_bytes)),
        Dtype::I64 => Values::I64(cast(bytes, i64::from_le_bytes)),
        _ => Values::Other,
    };
    (view.shape().to_vec(), values)
}

fn cast<T, const BYTES: usize>(bytes: &[u8], from: fn([u8; BYTES]) -> T) -> Vec<T> {
    bytes
        .as_chunks::<BYTES>()
        .0
        .iter()
        .map(|&b| from(b))
        .collect()
}

impl Values {
    /// As f64; integers included.
    pub fn to_f64(&self) -> Vec<f64> {
        match self {
            Values::F32(values) => values.iter().map(|&v| v.into()).collect(),
            Values::F64(values) => values.clone(),
            Values::F16(values) => values.iter().map(|v| v.to_f64()).collect(),
            Values::I64(values) => values.iter().map(|&v| v as f64).collect(),
            Values::Other => panic!("not a number"),
        }
    }
}
