//! The input file: memory-mapped, checked as a whole, and its tensors.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use attention_rollout::DType;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::error::{Error, Result, shown_path};
use crate::header;
use crate::shown::shown;

/// A memory-mapped safetensors file.
///
/// The file must not be cut short while the command runs: the system would end the process.
pub struct InputFile {
    path: PathBuf,
    map: Mmap,
}

impl InputFile {
    /// Maps the file at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, length) = open_regular(path)?;
        if length < 8 {
            return Err(Error::input(
                path,
                format!("expected a safetensors file of at least 8 bytes, got {length}"),
            ));
        }
        // SAFETY: the map is read-only and private to this process. What another process writes into the file while
        // it is mapped is read as numbers, and all sizes are checked once against the map's fixed length.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| match error.kind() {
            io::ErrorKind::OutOfMemory => {
                Error::rollout(shown_path(path))(attention_rollout::Error::HostMemory {
                    what: "the map of the file",
                    required: usize::try_from(length).unwrap_or(usize::MAX),
                })
            }
            _ => Error::input(path, error),
        })?;
        Ok(InputFile {
            path: path.to_owned(),
            map,
        })
    }

    /// Every tensor of the file, by name.
    pub fn tensors(&self) -> Result<Tensors<'_>> {
        let malformed = |reason: String| {
            Error::input(
                &self.path,
                format!("not a valid safetensors file: {reason}"),
            )
        };
        let (entries, data) = header::read(&self.map).map_err(malformed)?;
        let mut views = BTreeMap::new();
        for (name, entry) in entries {
            let (start, end) = entry.data_offsets;
            let view = TensorView::new(entry.dtype, entry.shape, &data[start..end])
                .map_err(|e| malformed(format!("tensor {}: {e}", shown(&name))))?;
            if let Some(name) = views.insert(name.clone(), view).map(|_| name) {
                return Err(malformed(format!(
                    "tensor {} is listed twice",
                    shown(&name)
                )));
            }
        }
        Ok(Tensors {
            path: &self.path,
            views,
        })
    }
}

/// Opens a regular file to be read, and tells its length. What has no end, or waits for somebody to write (devices,
/// pipes), is refused.
pub fn open_regular(path: &Path) -> Result<(File, u64)> {
    let fail = |e: io::Error| Error::input(path, e);
    let mut options = File::options();
    options.read(true);
    // Opening a pipe does not wait then; regular files do not heed it.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.open(path).map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    if !metadata.is_file() {
        return Err(Error::input(path, "expected a regular file"));
    }
    Ok((file, metadata.len()))
}

/// The tensors of a file.
pub struct Tensors<'a> {
    path: &'a Path,
    views: BTreeMap<String, TensorView<'a>>,
}

impl<'a> Tensors<'a> {
    /// No tensors at all: what stands beside random maps.
    pub fn none() -> Self {
        Tensors {
            path: Path::new(""),
            views: BTreeMap::new(),
        }
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&TensorView<'a>> {
        self.views.get(name)
    }

    /// The tensor called `name`, which `needed_by` cannot do without.
    pub fn require(&self, name: &str, needed_by: &str) -> Result<&TensorView<'a>> {
        self.get(name).ok_or_else(|| Error::MissingTensor {
            name: name.to_owned(),
            needed_by: needed_by.to_owned(),
        })
    }

    /// The file.
    pub fn path(&self) -> &'a Path {
        self.path
    }

    /// Every tensor, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &TensorView<'a>)> {
        self.views.iter().map(|(name, view)| (name.as_str(), view))
    }
}

/// Prefix and number of a tensor called `<prefix><kind><number>`, `None` for any other name.
pub fn numbered<'n>(name: &'n str, kind: &str) -> Result<Option<(&'n str, usize)>> {
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let (prefix, base) = name.split_at(base);
    let Some(digits) = base.strip_prefix(kind) else {
        return Ok(None);
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    match digits.parse() {
        Ok(_) if digits != "0" && digits.starts_with('0') => Err(Error::tensor(
            name,
            "a layer number without leading zeros",
            digits,
        )),
        Ok(number) => Ok(Some((prefix, number))),
        Err(_) => Err(Error::tensor(
            name,
            format!("a layer number of at most {}", usize::MAX),
            digits,
        )),
    }
}

/// The tensors of a stack, from 0 on without a gap; `name` is that of one.
pub fn consecutive<'a>(
    name: impl Fn(usize) -> String,
    numbered: BTreeMap<usize, &TensorView<'a>>,
) -> Result<Vec<TensorView<'a>>> {
    for (expected, &got) in numbered.keys().enumerate() {
        if expected != got {
            return Err(Error::MissingTensor {
                name: name(expected),
                needed_by: name(got),
            });
        }
    }
    Ok(numbered.into_values().cloned().collect())
}

/// The element type of maps, or of queries and keys.
pub fn map_dtype(name: &str, view: &TensorView<'_>) -> Result<DType> {
    match view.dtype() {
        Dtype::F32 => Ok(DType::F32),
        Dtype::F16 => Ok(DType::F16),
        Dtype::BF16 => Ok(DType::Bf16),
        other => Err(Error::tensor(
            name,
            "element type F32, F16 or BF16",
            other.to_string(),
        )),
    }
}

/// Checks that `view` has these extents.
pub fn check_shape(name: &str, view: &TensorView<'_>, expected: &[usize]) -> Result<()> {
    if view.shape() == expected {
        return Ok(());
    }
    let (expected, got) = (format!("shape {expected:?}"), format!("{:?}", view.shape()));
    Err(Error::tensor(name, expected, got))
}

/// The elements of a tensor of any common type as f64 (64-bit integers to the nearest one).
pub fn numbers<'a>(
    name: &str,
    view: &TensorView<'a>,
) -> Result<Box<dyn Iterator<Item = f64> + 'a>> {
    fn read<'a, const N: usize>(
        bytes: &'a [u8],
        number: impl Fn([u8; N]) -> f64 + 'a,
    ) -> Box<dyn Iterator<Item = f64> + 'a> {
        let elements = bytes.as_chunks::<N>().0.iter();
        Box::new(elements.map(move |&element| number(element)))
    }
    let data = view.data();
    Ok(match view.dtype() {
        Dtype::BOOL | Dtype::U8 => read(data, |[b]| b.into()),
        Dtype::I8 => read(data, |b| i8::from_le_bytes(b).into()),
        Dtype::I16 => read(data, |b| i16::from_le_bytes(b).into()),
        Dtype::U16 => read(data, |b| u16::from_le_bytes(b).into()),
        Dtype::I32 => read(data, |b| i32::from_le_bytes(b).into()),
        Dtype::U32 => read(data, |b| u32::from_le_bytes(b).into()),
        Dtype::I64 => read(data, |b| i64::from_le_bytes(b) as f64),
        Dtype::U64 => read(data, |b| u64::from_le_bytes(b) as f64),
        Dtype::F16 => read(data, |b| f16::from_le_bytes(b).into()),
        Dtype::BF16 => read(data, |b| bf16::from_le_bytes(b).into()),
        Dtype::F32 => read(data, |b| f32::from_le_bytes(b).into()),
        Dtype::F64 => read(data, f64::from_le_bytes),
        other => {
            return Err(Error::tensor(
                name,
                "a boolean, integer or 16- to 64-bit float element type",
                other.to_string(),
            ));
        }
    })
}
