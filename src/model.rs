//! Explaining a model that can tell what it attended to: run it on a batch, and get for every feature of the input how much
//! each of its elements counted.
//!
//! This is the contract of PyHealth's interpreters. A model is an [`AttentionModel`]: it can be told to keep its attention
//! (and the gradients of it), it runs, and it hands out what it has kept, feature by feature. [`AttentionRollout`] and
//! [`CheferRelevance`] do the rest: attention is kept only while the model runs and no longer, also where it fails or
//! panics; every feature is composed from the start row that the model names, and its relevance is given to the elements
//! of its input.
//!
//! | PyHealth | here |
//! |---|---|
//! | `set_attention_hooks(enabled, capture_gradients)` | [`AttentionModel::capture`] |
//! | `model(**data)` | [`AttentionModel::forward`] |
//! | `logits[class].backward()` | [`AttentionModel::backward`] |
//! | `get_attention_layers()` | [`AttentionModel::features`], [`Feature::layers`] |
//! | `get_relevance_tensor(R)` | [`Feature::start_rows`]: which row of `R`, so that `R` need not be made |
//! | `_map_to_input_shapes` | [`Feature::input_shape`] |
//!
//! ```
//! use attention_rollout::HostTensor;
//! use attention_rollout::model::{AttentionModel, AttentionRollout, Capture, Feature, Readout};
//! # use std::convert::Infallible;
//!
//! /// A model with one feature and one layer of attention, which looks at everything evenly.
//! struct Even {
//!     capture: Capture,
//!     maps: Option<Vec<f32>>,
//!     tokens: usize,
//! }
//!
//! impl AttentionModel for Even {
//!     type Input = [f32];
//!     type Error = Infallible;
//!
//!     fn capture(&mut self, capture: Capture) {
//!         self.capture = capture;
//!     }
//!
//!     fn forward(&mut self, input: &[f32]) -> Result<(), Infallible> {
//!         self.tokens = input.len();
//!         let map = || vec![1.0 / self.tokens as f32; self.tokens * self.tokens];
//!         self.maps = (self.capture != Capture::Off).then(map);
//!         Ok(())
//!     }
//!
//!     fn features(&self) -> Vec<Feature<'_>> {
//!         let maps = self.maps.as_deref().map(HostTensor::from);
//!         vec![Feature::new("text", [1, 1, self.tokens], vec![Readout { maps, gradients: None }])]
//!     }
//! }
//!
//! let mut model = Even { capture: Capture::Off, maps: None, tokens: 0 };
//! let attributions = AttentionRollout::default().attribute(&mut model, &[3.0, 4.0], None)?;
//! assert_eq!(attributions.get("text").unwrap().values, [0.75, 0.25]);
//! # Ok::<(), attention_rollout::Error>(())
//! ```

use crate::config::{
    GradientRule, HeadFusion, Output, Residual, ResidualWeights, RolloutConfig, StartRows,
};
use crate::cpu::{self, GroupItem, GroupPlan};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layer::{HostLayer, HostTensor, Layer};
use crate::layout::{Shape, Strides, Window};
use crate::post;
use crate::problem::Problem;

/// What a model keeps of its attention while it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Capture {
    /// Nothing; the fast kernels may run.
    #[default]
    Off,
    /// The attention maps of every layer.
    Maps,
    /// The maps, and the gradients that [`AttentionModel::backward`] gives them.
    Gradients,
}

/// A model that can tell what it attended to.
pub trait AttentionModel {
    /// What it runs on: a batch, with all its features.
    type Input: ?Sized;
    /// What can go wrong while it runs.
    type Error: Into<Box<dyn std::error::Error + Send + Sync>>;

    /// Says what to keep from now on. What was kept in the last forward pass stays readable when this says
    /// [`Capture::Off`].
    fn capture(&mut self, capture: Capture);

    /// Runs the model on `input`.
    ///
    /// # Errors
    /// The model's own.
    fn forward(&mut self, input: &Self::Input) -> Result<(), Self::Error>;

    /// Differentiates the score of `class` in the last forward pass, of every item, with respect to the maps that were
    /// kept. `None` is each item's highest score. A model without gradients leaves this as it is: then those of its
    /// layers are missing.
    ///
    /// # Errors
    /// The model's own; a class that it does not have, for one.
    fn backward(&mut self, class: Option<usize>) -> Result<(), Self::Error> {
        let _ = class;
        Ok(())
    }

    /// What was kept of the last forward pass, feature by feature in the model's own order.
    fn features(&self) -> Vec<Feature<'_>>;
}

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
    fn problem(&self, config: &RolloutConfig) -> Result<(Problem, Vec<HostLayer<'a>>)> {
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

/// How much each element of a feature counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Attribution {
    /// The feature's key.
    pub feature: String,
    /// Shape of `values`: the feature's [`input_shape`](Feature::input_shape), or `[batch, tokens]`.
    pub shape: Vec<usize>,
    /// The relevance of each element, row-major.
    pub values: Vec<f32>,
}

/// The attributions of a batch, in the order of the model's features.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attributions(Vec<Attribution>);

impl Attributions {
    /// That of `feature`.
    pub fn get(&self, feature: &str) -> Option<&Attribution> {
        self.0.iter().find(|a| a.feature == feature)
    }

    /// All of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Attribution> {
        self.0.iter()
    }
}

impl IntoIterator for Attributions {
    type Item = Attribution;
    type IntoIter = std::vec::IntoIter<Attribution>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// Explains models by the rollout of their attention (Abnar & Zuidema 2020), as PyHealth's class of this name does.
///
/// The default is PyHealth's: mean over heads, `0.5 (A + I)`, all layers.
#[derive(Default)]
pub struct AttentionRollout {
    driver: Driver,
}

impl AttentionRollout {
    /// Rollout as `config` says, whose `output` does not matter: start rows are the model's; nor do its gradients, which
    /// are [`CheferRelevance`]'s. Runs as `options` say.
    pub fn new(config: RolloutConfig, options: cpu::Options) -> Self {
        AttentionRollout {
            driver: Driver {
                config: RolloutConfig {
                    gradients: None,
                    ..config
                },
                options,
                group: None,
            },
        }
    }

    /// Exactly PyHealth's class, which knows the mean over heads alone.
    ///
    /// # Errors
    /// [`Error::HeadFusion`] where `head_fusion` is another.
    pub fn drop_in(head_fusion: HeadFusion) -> Result<Self> {
        match head_fusion {
            HeadFusion::Mean => Ok(AttentionRollout::default()),
            got => Err(Error::HeadFusion {
                expected: "the mean",
                got,
            }),
        }
    }

    /// Runs `model` on `input` and attributes its answer to the elements of every feature. Rollout does not ask what the
    /// answer is: `class` is accepted, as by every interpreter, and changes nothing.
    ///
    /// # Errors
    /// [`Error::Model`] around what the model reports. [`Error::NoFeatures`] where it has none, and
    /// [`Error::Feature`], naming the feature, around: [`Error::ZeroExtent`] where it has no layers,
    /// [`Error::NotCaptured`] where a layer has no map, and what [`ProblemBuilder::build`](crate::ProblemBuilder::build),
    /// [`Problem::check_layers`] and [`post::expand`] find. Whatever it is, the model keeps no attention any more.
    pub fn attribute<M: AttentionModel>(
        &mut self,
        model: &mut M,
        input: &M::Input,
        class: Option<usize>,
    ) -> Result<Attributions> {
        let _ = class;
        run(model, Capture::Maps, |model| model.forward(input))?;
        self.driver.attribute(model)
    }
}

/// Explains the score of a class by the maps weighed by their gradients (Chefer et al. 2021, arXiv 2103.15679), as PyHealth's
/// class of this name does: `R <- R + mean_h relu(G * A) R`, over all layers.
pub struct CheferRelevance {
    driver: Driver,
}

impl Default for CheferRelevance {
    fn default() -> Self {
        CheferRelevance::new(
            RolloutConfig {
                residual: ResidualWeights::Uniform(Residual::new(1.0, 1.0)),
                ..RolloutConfig::default()
            },
            cpu::Options::default(),
        )
    }
}

impl CheferRelevance {
    /// As `config` says, whose `output` does not matter: start rows are the model's. Without a rule of its own, heads are
    /// rectified one by one ([`GradientRule::Heads`]). Runs as `options` say.
    pub fn new(config: RolloutConfig, options: cpu::Options) -> Self {
        let gradients = config.gradients.or(Some(GradientRule::Heads));
        CheferRelevance {
            driver: Driver {
                config: RolloutConfig {
                    gradients,
                    ..config
                },
                options,
                group: None,
            },
        }
    }

    /// Runs `model` on `input`, forward and backward, and attributes the score of `class`, or of each item's best, to the
    /// elements of every feature.
    ///
    /// # Errors
    /// As [`AttentionRollout::attribute`]; [`Error::NotCaptured`] also where a layer has no gradient.
    pub fn attribute<M: AttentionModel>(
        &mut self,
        model: &mut M,
        input: &M::Input,
        class: Option<usize>,
    ) -> Result<Attributions> {
        run(model, Capture::Gradients, |model| {
            model.forward(input)?;
            model.backward(class)
        })?;
        self.driver.attribute(model)
    }
}

/// Switches a model's readout off when it goes out of scope.
struct Captured<'m, M: AttentionModel>(&'m mut M);

impl<M: AttentionModel> Drop for Captured<'_, M> {
    fn drop(&mut self) {
        self.0.capture(Capture::Off);
    }
}

/// Does `passes` while the model keeps what `capture` says.
fn run<M: AttentionModel>(
    model: &mut M,
    capture: Capture,
    passes: impl FnOnce(&mut M) -> Result<(), M::Error>,
) -> Result<()> {
    let captured = Captured(model);
    captured.0.capture(capture);
    passes(captured.0).map_err(|error| Error::Model(error.into()))
}

/// Computes what a model has kept.
#[derive(Default)]
struct Driver {
    config: RolloutConfig,
    options: cpu::Options,
    /// Ready for the problems of the last batch.
    group: Option<GroupPlan>,
}

impl Driver {
    fn attribute<M: AttentionModel>(&mut self, model: &M) -> Result<Attributions> {
        let features = model.features();
        if features.is_empty() {
            return Err(Error::NoFeatures);
        }
        let of = |feature: &Feature<'_>, source| Error::Feature {
            feature: feature.name.clone(),
            source: Box::new(source),
        };
        let mut problems = Vec::with_capacity(features.len());
        let mut layers = Vec::with_capacity(features.len());
        for feature in &features {
            let (problem, maps) = feature
                .problem(&self.config)
                .map_err(|error| of(feature, error))?;
            problem
                .check_layers(&maps, problem.output_len())
                .map_err(|error| of(feature, error))?;
            problems.push(problem);
            layers.push(maps);
        }
        let group = match self.group.take() {
            Some(group) if group.problems().eq(&problems) => self.group.insert(group),
            _ => self.group.insert(GroupPlan::new(&problems, &self.options)?),
        };
        let mut relevance: Vec<Vec<f32>> = (problems.iter())
            .map(|problem| vec![0.0; problem.output_len()])
            .collect();
        let mut members: Vec<_> = (layers.iter().zip(&mut relevance))
            .map(|(layers, out)| GroupItem::new(layers, out))
            .collect();
        group.run(&mut members)?;
        drop(members);
        let attributions = (features.iter().zip(&problems).zip(&relevance))
            .map(|((feature, problem), relevance)| {
                let tokens = problem.output_shape();
                let values = post::expand(relevance, &tokens, &feature.input_shape)
                    .map_err(|error| of(feature, error))?;
                let shape = post::expanded_shape(&tokens, &feature.input_shape)
                    .map_err(|error| of(feature, error))?;
                Ok(Attribution {
                    feature: feature.name.clone(),
                    shape,
                    values,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Attributions(attributions))
    }
}
