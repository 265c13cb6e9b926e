//! The input file: memory-mapped, checked as a whole, its layers grouped by feature.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use attention_rollout::{
    DType, Defect, DefectKind, HostLayer, HostTensor, Layer, OwnedTensor, Shape,
};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::error::{Error, Result, shown_path};
use crate::header;
use crate::scores::{FileScores, ScoreExtents};
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

/// One stack of attention layers: the tensors `<prefix>layer.<l>`, or `<prefix>query.<l>` and those beside them.
pub struct FileFeature<'a> {
    /// What stands before `layer.<l>`: empty, or a path that ends in `/`.
    pub prefix: String,
    /// Extents of the maps; `heads` is 1 where the tensors are `[batch, tokens, tokens]`.
    pub shape: Shape,
    /// Element type of the maps, or of queries and keys.
    pub dtype: DType,
    /// Extents of queries and keys, where there are no maps.
    pub scores: Option<ScoreExtents>,
    layers: Vec<Layer<TensorView<'a>>>,
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

    /// Every feature, by prefix. Tensors with other names are ignored.
    pub fn features(&self) -> Result<Vec<FileFeature<'a>>> {
        type Stacks<'s, 'a> = BTreeMap<&'s str, BTreeMap<usize, &'s TensorView<'a>>>;
        let stacks = |kind: &str| -> Result<Stacks<'_, 'a>> {
            let mut stacks = Stacks::new();
            for (name, view) in &self.views {
                if let Some((prefix, number)) = numbered(name, kind)? {
                    stacks.entry(prefix).or_default().insert(number, view);
                }
            }
            Ok(stacks)
        };
        let (maps, queries) = (stacks("layer.")?, stacks("query.")?);
        if maps.is_empty() && queries.is_empty() {
            return Err(Error::input(
                self.path,
                "expected tensors named layer.<l> or query.<l>, or below <feature>/, got none",
            ));
        }
        if let Some(prefix) = queries.keys().find(|prefix| maps.contains_key(*prefix)) {
            return Err(Error::tensor(
                &format!("{prefix}query.<l>"),
                format!("no {prefix}layer.<l> beside it"),
                "both",
            ));
        }
        let mut features: Vec<FileFeature<'a>> = maps
            .into_iter()
            .map(|(prefix, layers)| FileFeature::of_maps(prefix, layers))
            .chain(
                queries
                    .into_iter()
                    .map(|(prefix, queries)| FileFeature::of_scores(self, prefix, queries)),
            )
            .collect::<Result<_>>()?;
        features.sort_by(|a, b| a.prefix.cmp(&b.prefix));
        Ok(features)
    }
}

/// Prefix and number of a tensor called `<prefix><kind><number>`, `None` for any other name.
fn numbered<'n>(name: &'n str, kind: &str) -> Result<Option<(&'n str, usize)>> {
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

impl<'a> FileFeature<'a> {
    /// The extents of random maps, or of random queries and keys.
    pub fn without_tensors(shape: Shape, dtype: DType, scores: Option<ScoreExtents>) -> Self {
        FileFeature {
            prefix: String::new(),
            shape,
            dtype,
            scores,
            layers: Vec::new(),
        }
    }

    /// The feature with the gradients beside its maps: `<prefix>gradient.<l>`, of their shape and type.
    pub fn with_gradients(self, tensors: &Tensors<'a>) -> Result<Self> {
        let weighed = |(layer, operands): (usize, Layer<TensorView<'a>>)| {
            let Layer::Maps(maps) = operands else {
                return Ok(operands);
            };
            let name = format!("{}gradient.{layer}", self.prefix);
            let view = tensors.require(&name, "--gradients")?;
            if (view.dtype(), view.shape()) != (maps.dtype(), maps.shape()) {
                return Err(Error::tensor(
                    &name,
                    format!(
                        "{} {:?} as {}layer.{layer}",
                        maps.dtype(),
                        maps.shape(),
                        self.prefix
                    ),
                    format!("{} {:?}", view.dtype(), view.shape()),
                ));
            }
            let gradients = view.clone();
            Ok(Layer::Gradients { maps, gradients })
        };
        let layers = self.layers.into_iter().enumerate().map(weighed);
        Ok(FileFeature {
            layers: layers.collect::<Result<_>>()?,
            ..self
        })
    }

    fn of_maps(prefix: &str, layers: BTreeMap<usize, &TensorView<'a>>) -> Result<Self> {
        let name = |layer: usize| format!("{prefix}layer.{layer}");
        let layers = consecutive(name, layers)?;
        let mut first = None;
        for (layer, view) in layers.iter().enumerate() {
            let dtype = map_dtype(&name(layer), view)?;
            let [batch, heads, tokens] = map_extents(&name(layer), view)?;
            let &mut (extents, expected) = first.get_or_insert(([batch, heads, tokens], dtype));
            if dtype != expected {
                return Err(Error::tensor(
                    &name(layer),
                    format!("{expected} as in {}", name(0)),
                    dtype.name(),
                ));
            }
            if [batch, heads, tokens] != extents {
                return Err(Error::tensor(
                    &name(layer),
                    format!("shape {:?} as {}", layers[0].shape(), name(0)),
                    format!("{:?}", view.shape()),
                ));
            }
        }
        let ([batch, heads, tokens], dtype) =
            first.expect("a feature is found by one of its layers");
        Ok(FileFeature {
            prefix: prefix.to_owned(),
            shape: Shape {
                layers: layers.len(),
                batch,
                heads,
                tokens,
            },
            dtype,
            scores: None,
            layers: layers.into_iter().map(Layer::Maps).collect(),
        })
    }

    fn of_scores(
        tensors: &Tensors<'a>,
        prefix: &str,
        queries: BTreeMap<usize, &TensorView<'a>>,
    ) -> Result<Self> {
        let FileScores {
            shape,
            dtype,
            extents,
            layers,
        } = FileScores::read(tensors, prefix, queries)?;
        Ok(FileFeature {
            prefix: prefix.to_owned(),
            shape,
            dtype,
            scores: Some(extents),
            layers,
        })
    }

    /// The feature without the LSE in the file.
    pub fn without_lse(self) -> Self {
        let bare = |layer| match layer {
            Layer::QueriesKeys { queries, keys, .. } => Layer::QueriesKeys {
                queries,
                keys,
                lse: None,
            },
            other => other,
        };
        let extents = |scores| ScoreExtents {
            has_lse: false,
            ..scores
        };
        FileFeature {
            scores: self.scores.map(extents),
            layers: self.layers.into_iter().map(bare).collect(),
            ..self
        }
    }

    /// The prefix without its slash; as it is where that would be another feature's (`/`, `a//`). Empty where there
    /// is none.
    pub fn name(&self) -> &str {
        match self.prefix.strip_suffix('/') {
            Some(name) if !name.is_empty() && !name.ends_with('/') => name,
            _ => &self.prefix,
        }
    }

    /// Name for messages.
    pub fn place(&self) -> String {
        match self.name() {
            "" => "input".to_owned(),
            name => format!("feature {name}"),
        }
    }

    /// The error of maps in which `defect` was found.
    pub fn refuse(&self, expected: &str, defect: &Defect) -> Error {
        let stack = match defect.kind {
            DefectKind::Gradient { .. } => "gradient",
            DefectKind::Query { .. } => "query",
            DefectKind::Key { .. } => "key",
            DefectKind::Lse => "lse",
            _ => "layer",
        };
        let name = format!("{}{stack}.{}", self.prefix, defect.layer);
        Error::tensor(&name, expected, defect.to_string())
    }

    /// The layers of `items`, straight from the file; a copy only of what the file does not align.
    pub fn layers(&self, items: Range<usize>) -> attention_rollout::Result<Vec<FeatureLayer<'a>>> {
        let of_items = |view: &TensorView<'a>| {
            // An item's bytes divide the tensor's, because the batch is its first axis.
            let item = view.data().len().checked_div(self.shape.batch).unwrap_or(0);
            let bytes = &view.data()[items.start * item..items.end * item];
            let dtype = match view.dtype() {
                Dtype::F16 => DType::F16,
                Dtype::BF16 => DType::Bf16,
                _ => DType::F32,
            };
            match HostTensor::from_bytes(dtype, bytes) {
                Some(tensor) => Ok(Elements::InFile(tensor)),
                None => OwnedTensor::copied(dtype, bytes).map(Elements::Copied),
            }
        };
        let layers = self.layers.iter();
        layers
            .map(|layer| layer.try_map(of_items).map(FeatureLayer))
            .collect()
    }
}

/// Elements of a tensor.
enum Elements<'a> {
    InFile(HostTensor<'a>),
    Copied(OwnedTensor),
}

impl Elements<'_> {
    fn tensor(&self) -> HostTensor<'_> {
        match self {
            Elements::InFile(tensor) => *tensor,
            Elements::Copied(tensor) => tensor.tensor(),
        }
    }
}

/// One layer of some items.
pub struct FeatureLayer<'a>(Layer<Elements<'a>>);

impl FeatureLayer<'_> {
    /// The layer as the library takes it.
    pub fn host_layer(&self) -> HostLayer<'_> {
        self.0.map(Elements::tensor)
    }
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

fn map_extents(name: &str, view: &TensorView<'_>) -> Result<[usize; 3]> {
    match *view.shape() {
        [batch, heads, rows, tokens] if rows == tokens => Ok([batch, heads, tokens]),
        [batch, rows, tokens] if rows == tokens => Ok([batch, 1, tokens]),
        _ => Err(Error::tensor(
            name,
            "shape [batch, heads, tokens, tokens] or [batch, tokens, tokens]",
            format!("{:?}", view.shape()),
        )),
    }
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
