//! Queries, keys and LSE of a feature in the input file.

use std::collections::BTreeMap;

use attention_rollout::{DType, Layer, Shape};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::error::{Error, Result};
use crate::tensors::{Tensors, check_shape, consecutive, map_dtype};

/// Extents of queries and keys that those of maps do not tell.
#[derive(Clone, Copy, Debug)]
pub struct ScoreExtents {
    pub head_dim: usize,
    pub key_heads: usize,
    /// Whether layers have an LSE.
    pub has_lse: bool,
}

/// The tensors `<prefix>query.<l>` of a feature, and those beside them.
pub struct FileScores<'a> {
    pub shape: Shape,
    pub dtype: DType,
    pub extents: ScoreExtents,
    pub layers: Vec<Layer<TensorView<'a>>>,
}

impl<'a> FileScores<'a> {
    /// Checks shapes and types: queries `[batch, heads, tokens, head_dim]`, keys of the same but for their heads, LSE
    /// `[batch, heads, tokens]` f32 of all layers or of none.
    pub fn read(
        tensors: &Tensors<'a>,
        prefix: &str,
        queries: BTreeMap<usize, &TensorView<'a>>,
    ) -> Result<Self> {
        let name = |kind: &str, layer: usize| format!("{prefix}{kind}.{layer}");
        let queries = consecutive(|layer| name("query", layer), queries)?;
        let first = &queries[0];
        let dtype = map_dtype(&name("query", 0), first)?;
        let axes = "shape [batch, heads, tokens, head size]";
        let &[batch, heads, tokens, head_dim] = first.shape() else {
            let got = format!("{:?}", first.shape());
            return Err(Error::tensor(&name("query", 0), axes, got));
        };
        let has_lse = (0..queries.len()).any(|layer| tensors.get(&name("lse", layer)).is_some());
        let first_key = tensors.require(&name("key", 0), &name("query", 0))?;
        let key_heads = match *first_key.shape() {
            [_, key_heads, _, _] => key_heads,
            _ => 0,
        };
        let same_type = |name: &str, view: &TensorView<'_>| match map_dtype(name, view)? {
            got if got == dtype => Ok(()),
            got => Err(Error::tensor(
                name,
                format!("{dtype} as in {prefix}query.0"),
                got.name(),
            )),
        };
        let layer = |(layer, queries): (usize, TensorView<'a>)| {
            let query = name("query", layer);
            same_type(&query, &queries)?;
            check_shape(&query, &queries, &[batch, heads, tokens, head_dim])?;
            let key = name("key", layer);
            let keys = tensors.require(&key, &query)?;
            same_type(&key, keys)?;
            check_shape(&key, keys, &[batch, key_heads, tokens, head_dim])?;
            let lse = match has_lse {
                false => None,
                true => {
                    let name = name("lse", layer);
                    let lse = tensors.require(&name, "the LSE of other layers")?;
                    if lse.dtype() != Dtype::F32 {
                        return Err(Error::tensor(&name, "F32", lse.dtype().to_string()));
                    }
                    check_shape(&name, lse, &[batch, heads, tokens])?;
                    Some(lse.clone())
                }
            };
            Ok(Layer::QueriesKeys {
                queries,
                keys: keys.clone(),
                lse,
            })
        };
        Ok(FileScores {
            shape: Shape {
                layers: queries.len(),
                batch,
                heads,
                tokens,
            },
            dtype,
            extents: ScoreExtents {
                head_dim,
                key_heads,
                has_lse,
            },
            layers: queries
                .into_iter()
                .enumerate()
                .map(layer)
                .collect::<Result<_>>()?,
        })
    }
}
