//! What a model hands out of one feature, and the problem that it is.

use crate::config::{Output, RolloutConfig, StartRows};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layer::{HostLayer, HostTensor, Layer};
use crate::layout::{Shape, Strides, Window};
use crate::problem::Problem;

/// What a model has kept of one layer, in host memory.
#[derive(Clone, Copy, Debug)]
pub struct Readout<'a> {
    /// Post-softmax attention.
    pub maps: Option<HostTensor<'a>>,
    /// Gradients of the score with respect to `maps`, with the same extents, strides and element type.
    pub gradients: Option<HostTensor<'a>>,
}

/// One feature of a model's input (the text, a patient's conditions, ...), with attention layers of its own.
#[derive(Clone, Debug)]
pub struct Feature<'a> {
    /// The feature's key. Nested ones are paths: `visit/codes`.
    pub name: String,
    /// Batch, heads and tokens of its maps.
    pub extents: [usize; 3],
    /// Where the elements of a layer lie.
    pub strides: Strides,
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
            layers,
            windows: None,
            start_rows: StartRows::Rows(vec![0]),
            input_shape: Vec::new(),
        }
    }

    /// The problem over this feature's layers, and what to read of each.
    pub(super) fn problem(&self, config: &RolloutConfig) -> Result<(Problem, Vec<HostLayer<'a>>)> {
        let missing = |what, layer| Error::NotCaptured { what, layer };
        let layers = (self.layers.iter().enumerate())
            .map(|(layer, readout)| {
                let maps = readout.maps.ok_or(missing("attention map", layer))?;
                if config.gradients.is_none() {
                    return Ok(Layer::Maps(maps));
                }
                let gradients = readout.gradients.ok_or(missing("gradient", layer))?;
                Ok(Layer::Gradients { maps, gradients })
            })
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
