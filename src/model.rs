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
//! | maps alone | maps, or of fused attention queries and keys: [`Feature::queries_keys`], [`Readout`] |
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
//!         vec![Feature::new("text", [1, 1, self.tokens], vec![Readout { maps, ..Readout::default() }])]
//!     }
//! }
//!
//! let mut model = Even { capture: Capture::Off, maps: None, tokens: 0 };
//! let attributions = AttentionRollout::default().attribute(&mut model, &[3.0, 4.0], None)?;
//! assert_eq!(attributions.get("text").unwrap().values, [0.75, 0.25]);
//! # Ok::<(), attention_rollout::Error>(())
//! ```
//!
//! A model whose attention is fused never has a map. It keeps the queries and keys that went into the attention, heads
//! first or tokens first, and says how scores follow from them:
//!
//! ```
//! use attention_rollout::model::{Feature, Readout};
//! use attention_rollout::{QueriesKeys, Shape};
//!
//! # fn features<'a>(shape: Shape, queries: &'a [f32], keys: &'a [f32]) -> Vec<Feature<'a>> {
//! // `[batch, heads, tokens, 64]` of each layer; no LSE, so it is recomputed.
//! let layer = Readout { queries: Some(queries.into()), keys: Some(keys.into()), ..Readout::default() };
//! let feature = Feature::new("text", [shape.batch, shape.heads, shape.tokens], vec![layer; shape.layers]);
//! vec![Feature { queries_keys: Some(QueriesKeys::new(&shape, 64)), ..feature }]
//! # }
//! ```

mod attribution;
mod driver;
mod feature;

use crate::config::{GradientRule, HeadFusion, Residual, ResidualWeights, RolloutConfig};
#[cfg(feature = "cpu")]
use crate::cpu;
use crate::device::Device;
use crate::error::{Error, Result};

pub use attribution::{Attribution, Attributions};
pub use feature::{Feature, Readout};

use driver::{Driver, run};

/// What a model keeps of its attention while it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Capture {
    /// Nothing; the fast kernels may run.
    #[default]
    Off,
    /// The attention of every layer: its maps, or the queries and keys from which they follow.
    Attention,
    /// The maps of every layer, and the gradients that [`AttentionModel::backward`] gives them.
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

/// Explains models by the rollout of their attention (Abnar & Zuidema 2020), as PyHealth's class of this name does.
///
/// The default is PyHealth's, on the CPU: mean over heads, `0.5 (A + I)`, all layers.
pub struct AttentionRollout {
    driver: Driver,
}

#[cfg(feature = "cpu")]
impl Default for AttentionRollout {
    fn default() -> Self {
        let device = Device::cpu(&cpu::Options::default());
        AttentionRollout::new(RolloutConfig::default(), device)
    }
}

impl AttentionRollout {
    /// Rollout as `config` says, whose `output` does not matter: start rows are the model's; nor do its gradients, which
    /// are [`CheferRelevance`]'s. Computed on `device`.
    pub fn new(config: RolloutConfig, device: Device) -> Self {
        let config = RolloutConfig {
            gradients: None,
            ..config
        };
        AttentionRollout {
            driver: Driver::new(config, device),
        }
    }

    /// Exactly PyHealth's class, which knows the mean over heads alone; computed on `device`.
    ///
    /// # Errors
    /// [`Error::HeadFusion`] where `head_fusion` is another.
    pub fn drop_in(head_fusion: HeadFusion, device: Device) -> Result<Self> {
        match head_fusion {
            HeadFusion::Mean => Ok(AttentionRollout::new(RolloutConfig::default(), device)),
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
    /// [`Error::NotCaptured`] where a layer has no map, or not the queries, keys or LSE that its feature speaks of,
    /// [`Error::Lse`] and [`Error::Mass`] where these do not belong together, and what
    /// [`ProblemBuilder::build`](crate::ProblemBuilder::build), [`Problem::check_layers`](crate::Problem::check_layers) and
    /// [`post::expand`](crate::post::expand) find. Whatever it is, the model keeps no attention any more.
    pub fn attribute<M: AttentionModel>(
        &mut self,
        model: &mut M,
        input: &M::Input,
        class: Option<usize>,
    ) -> Result<Attributions> {
        let _ = class;
        run(model, Capture::Attention, |model| model.forward(input))?;
        self.driver.attribute(model)
    }
}

/// Explains the score of a class by the maps weighed by their gradients (Chefer et al. 2021, arXiv 2103.15679), as PyHealth's
/// class of this name does: `R <- R + mean_h relu(G * A) R`, over all layers. The default is computed on the CPU.
pub struct CheferRelevance {
    driver: Driver,
}

#[cfg(feature = "cpu")]
impl Default for CheferRelevance {
    fn default() -> Self {
        CheferRelevance::drop_in(Device::cpu(&cpu::Options::default()))
    }
}

impl CheferRelevance {
    /// As `config` says, whose `output` does not matter: start rows are the model's. Without a rule of its own, heads are
    /// rectified one by one ([`GradientRule::Heads`]). Computed on `device`.
    pub fn new(config: RolloutConfig, device: Device) -> Self {
        let gradients = config.gradients.or(Some(GradientRule::Heads));
        let config = RolloutConfig {
            gradients,
            ..config
        };
        CheferRelevance {
            driver: Driver::new(config, device),
        }
    }

    /// Exactly PyHealth's class, computed on `device`.
    pub fn drop_in(device: Device) -> Self {
        let config = RolloutConfig {
            residual: ResidualWeights::Uniform(Residual::new(1.0, 1.0)),
            ..RolloutConfig::default()
        };
        CheferRelevance::new(config, device)
    }

    /// Runs `model` on `input`, forward and backward, and attributes the score of `class`, or of each item's best, to the
    /// elements of every feature.
    ///
    /// # Errors
    /// As [`AttentionRollout::attribute`]; [`Error::NotCaptured`] also where a layer has no gradient, and
    /// [`Error::LayerSource`] where a feature has queries and keys: there are no gradients of maps that are not there.
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
