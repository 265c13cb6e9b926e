//! Running a model while it keeps its attention, and computing what it has kept.

use super::{AttentionModel, Attribution, Attributions, Capture, Feature};
use crate::config::RolloutConfig;
use crate::device::{AnyPlan, Device};
use crate::error::{Error, Result};
use crate::layer::HostLayer;
use crate::post;

/// Switches a model's readout off when it goes out of scope.
struct Captured<'m, M: AttentionModel>(&'m mut M);

impl<M: AttentionModel> Drop for Captured<'_, M> {
    fn drop(&mut self) {
        self.0.capture(Capture::Off);
    }
}

/// Does `passes` while the model keeps what `capture` says.
pub(super) fn run<M: AttentionModel>(
    model: &mut M,
    capture: Capture,
    passes: impl FnOnce(&mut M) -> Result<(), M::Error>,
) -> Result<()> {
    let captured = Captured(model);
    captured.0.capture(capture);
    passes(captured.0).map_err(|error| Error::Model(error.into()))
}

/// Computes what a model has kept.
pub(super) struct Driver {
    config: RolloutConfig,
    device: Device,
    /// Ready for the features of the last batch.
    plans: Vec<AnyPlan>,
}

impl Driver {
    pub fn new(config: RolloutConfig, device: Device) -> Self {
        Driver {
            config,
            device,
            plans: Vec::new(),
        }
    }

    pub fn attribute<M: AttentionModel>(&mut self, model: &M) -> Result<Attributions> {
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
            let (problem, readout) = feature
                .problem(&self.config)
                .map_err(|error| of(feature, error))?;
            problem
                .check_layers(&readout, problem.output_len())
                .map_err(|error| of(feature, error))?;
            problems.push(problem);
            layers.push(readout);
        }
        if !self.plans.iter().map(AnyPlan::problem).eq(&problems) {
            self.plans.clear();
            for (feature, problem) in features.iter().zip(&problems) {
                let plan = self.device.plan(problem);
                self.plans.push(plan.map_err(|error| of(feature, error))?);
            }
        }
        let planned = self.plans.iter_mut().zip(&layers);
        let attributions = features
            .iter()
            .zip(planned)
            .map(|(feature, (plan, layers))| {
                attribute(feature, plan, layers).map_err(|error| of(feature, error))
            });
        attributions.collect::<Result<_>>().map(Attributions)
    }
}

/// The attribution of one feature, whose layers have been checked.
fn attribute(
    feature: &Feature<'_>,
    plan: &mut AnyPlan,
    layers: &[HostLayer<'_>],
) -> Result<Attribution> {
    let tokens = plan.problem().output_shape();
    let mut relevance = vec![0.0; plan.problem().output_len()];
    plan.run(layers, &mut relevance, &mut |_| ())?;
    Ok(Attribution {
        feature: feature.name.clone(),
        shape: post::expanded_shape(&tokens, &feature.input_shape)?,
        values: post::expand(&relevance, &tokens, &feature.input_shape)?,
    })
}
