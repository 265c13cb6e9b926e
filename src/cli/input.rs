//! The layers of the input file, grouped by feature.

use std::collections::BTreeMap;
use std::ops::Range;

use attention_rollout::{
    DType, Defect, DefectKind, HostLayer, HostTensor, Layer, OwnedTensor, Shape,
};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::error::{Error, Result};
use crate::file_scores::{FileScores, ScoreExtents};
use crate::tensors::{Tensors, consecutive, map_dtype, numbered};

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

/// Every feature of a file, by prefix. Tensors with other names are ignored.
pub fn features<'a>(tensors: &Tensors<'a>) -> Result<Vec<FileFeature<'a>>> {
    type Stacks<'s, 'a> = BTreeMap<&'s str, BTreeMap<usize, &'s TensorView<'a>>>;
    let stacks = |kind: &str| -> Result<Stacks<'_, 'a>> {
        let mut stacks = Stacks::new();
        for (name, view) in tensors.iter() {
            if let Some((prefix, number)) = numbered(name, kind)? {
                stacks.entry(prefix).or_default().insert(number, view);
            }
        }
        Ok(stacks)
    };
    let (maps, queries) = (stacks("layer.")?, stacks("query.")?);
    if maps.is_empty() && queries.is_empty() {
        return Err(Error::input(
            tensors.path(),
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
                .map(|(prefix, queries)| FileFeature::of_scores(tensors, prefix, queries)),
        )
        .collect::<Result<_>>()?;
    features.sort_by(|a, b| a.prefix.cmp(&b.prefix));
    Ok(features)
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
