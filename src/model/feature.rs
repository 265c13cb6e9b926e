//! What a model hands out of one feature, and the problem that it is.

use crate::config::{Output, RolloutConfig, StartRows};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layer::{HostLayer, HostTensor, Layer};
use crate::layout::{Shape, Strides, Window};
use crate::problem::Problem;
use crate::queries_keys::QueriesKeys;

/// What a model has kept of one layer, in host memory. What is not asked for may be there or not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Readout<'a> {
    /// Post-softmax attention, `[batch, heads, tokens, tokens]`.
    pub maps: Option<HostTensor<'a>>,
    /// Gradients of the score with respect to `maps`, with the same extents, strides and element type.
    pub gradients: Option<HostTensor<'a>>,
    /// Queries, `[batch, heads, tokens, head_dim]`, after all that the model does to them, where the feature says
    /// [how attention follows from them](Feature::queries_keys).
    pub queries: Option<HostTensor<'a>>,
    /// Keys, `[batch, key_heads, tokens, head_dim]`, of the same element type.
    pub keys: Option<HostTensor<'a>>,
    /// The logarithm of the sum that each row is divided by, `[batch, heads, tokens]`, f32, where it is
    /// [given](QueriesKeys::lse).
    pub lse: Option<HostTensor<'a>>,
}

/// One feature of a model's input (the text, a patient's conditions, ...), with attention layers of its own.
#[derive(Clone, Debug)]
pub struct Feature<'a> {
    /// The feature's key. Nested ones are paths: `visit/codes`.
    pub name: String,
    /// Batch, heads and tokens of its maps, or of its queries.
    pub extents: [usize; 3],
    /// Where the elements of a layer's maps lie.
    pub strides: Strides,
    /// How attention follows from queries and keys, which the layers have instead of maps; maps where this is `None`.
    pub queries_keys: Option<QueriesKeys>,
    /// What was kept, first layer to last.
    pub layers: Vec<Readout<'a>>,
    /// Valid tokens of each item; all where this is `None`.
    pub windows: Option<Vec<Window>>,
    /// Which token of each item the model's answer is read from: one start row.
    pub start_rows: StartRows,
    /// Shape of the feature's input, `[batch, tokens, ...]`: every element gets the relevance of its token. Left empty,
    /// attributions are one number for each token.
    pub input_shape: Vec<usize>,
}

impl<'a> Feature<'a> {
    /// A feature over contiguous maps `[batch, heads, tokens, tokens]` whose tokens are all valid, whose answer is read
    /// from token 0, and whose attributions are one number for each token.
    pub fn new(name: impl Into<String>, extents: [usize; 3], layers: Vec<Readout<'a>>) -> Self {
        let [batch, heads, tokens] = extents;
        let shape = Shape {
            layers: layers.len(),
            batch,
            heads,
            tokens,
        };
        Feature {
            name: name.into(),
            extents,
            strides: Strides::contiguous(&shape),
            queries_keys: None,
            layers,
            windows: None,
            start_rows: StartRows::Rows(vec![0]),
            input_shape: Vec::new(),
        }
    }

    /// What to read of a layer: the tensors of the feature's source.
    fn layer(
        &self,
        layer: usize,
        readout: &Readout<'a>,
        has_gradients: bool,
    ) -> Result<HostLayer<'a>> {
        let kept =
            |tensor: Option<HostTensor<'a>>, what| tensor.ok_or(Error::NotCaptured { what, layer });
        if let Some(source) = &self.queries_keys {
            if has_gradients {
                return Err(Error::LayerSource {
                    layer,
                    expected: "maps and gradients",
                    got: "queries and keys",
                });
            }
            let lse = || kept(readout.lse, "LSE");
            return Ok(Layer::QueriesKeys {
                queries: kept(readout.queries, "queries")?,
                keys: kept(readout.keys, "keys")?,
                lse: source.has_lse().then(lse).transpose()?,
            });
        }
        let maps = kept(readout.maps, "attention map")?;
        Ok(match has_gradients {
            false => Layer::Maps(maps),
            true => Layer::Gradients {
                maps,
                gradients: kept(readout.gradients, "gradient")?,
            },
        })
    }

    /// The problem over this feature's layers, and what to read of each.
    pub(super) fn problem(&self, config: &RolloutConfig) -> Result<(Problem, Vec<HostLayer<'a>>)> {
        let has_gradients = config.gradients.is_some();
        let layers = (self.layers.iter().enumerate())
            .map(|(layer, readout)| self.layer(layer, readout, has_gradients))
            .collect::<Result<Vec<_>>>()?;
        let first = layers.first().and_then(|layer| layer.operands().next());
        let dtype = first.map_or(DType::F32, HostTensor::dtype);
        let [batch, heads, tokens] = self.extents;
        let shape = Shape {
            layers: layers.len(),
            batch,
            heads,
            tokens,
        };
        let config = RolloutConfig {
            output: Output::Rows(self.start_rows.clone()),
            ..config.clone()
        };
        let mut builder = Problem::builder(shape, dtype)
            .config(config)
            .strides(self.strides);
        if let Some(source) = &self.queries_keys {
            builder = builder.queries_keys(source.clone());
        }
        if let Some(windows) = &self.windows {
            builder = builder.windows(windows.clone());
        }
        let problem = builder.build()?;
        match problem.start_rows() {
            1 => Ok((problem, layers)),
            got => Err(Error::Count {
                what: "start rows of a feature",
                expected: 1,
                got,
            }),
        }
    }
}
