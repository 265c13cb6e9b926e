//! Models whose attention is fused: they keep queries and keys, and are explained as if they had kept their maps.

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;

use attention_rollout::model::{
    AttentionModel, AttentionRollout, Capture, CheferRelevance, Feature, Readout,
};
use attention_rollout::{
    Error, HostTensor, Layer, LogBase, Lse, QueriesKeys, RolloutConfig, Shape, StartRows, Window,
};

use super::on_cpu;
use crate::common::compare::assert_close;
use crate::common::generate::Case;
use crate::common::queries_keys::{ScoresCase, ScoresGenerated, tokens_first_with_gaps};

const SHAPE: Shape = Shape {
    layers: 3,
    batch: 2,
    heads: 4,
    tokens: 7,
};

/// A model of one feature, which keeps the maps of its layers, or what they follow from.
struct Fused {
    made: ScoresGenerated,
    maps: Vec<Vec<f32>>,
    keeps_maps: bool,
    /// How it says that its scores follow from queries and keys.
    source: QueriesKeys,
    /// What the model forgets to keep.
    forgets: fn(&mut Vec<Readout<'_>>),
    capture: Rc<Cell<Capture>>,
}

impl Fused {
    fn new(source: QueriesKeys) -> Self {
        let mut case = Case::new(SHAPE, 5);
        case.windows[1] = Window { start: 2, len: 4 };
        let made = ScoresCase {
            case,
            source: source.clone(),
        };
        let made = made.generate();
        let (_, maps) = made.as_maps();
        Fused {
            source,
            made,
            maps,
            keeps_maps: false,
            forgets: |_| (),
            capture: Rc::default(),
        }
    }

    /// The relevance of each token, `[batch, tokens]`.
    fn explained(&mut self, config: &RolloutConfig) -> Vec<f32> {
        let mut explainer = AttentionRollout::new(config.clone(), on_cpu());
        let attributions = explainer.attribute(self, &(), None).unwrap();
        attributions.get("text").unwrap().values.clone()
    }

    /// What is said of a model that cannot be explained, whose readout is off then.
    fn refused(&mut self) -> Error {
        let error = AttentionRollout::default().attribute(self, &(), None);
        assert_eq!(self.capture.get(), Capture::Off);
        error.unwrap_err()
    }
}

impl AttentionModel for Fused {
    type Input = ();
    type Error = Infallible;

    fn capture(&mut self, capture: Capture) {
        self.capture.set(capture);
    }

    fn forward(&mut self, _input: &()) -> Result<(), Infallible> {
        assert_ne!(self.capture.get(), Capture::Off);
        Ok(())
    }

    fn features(&self) -> Vec<Feature<'_>> {
        let mut layers = match self.keeps_maps {
            true => maps_of(&self.maps),
            false => scores_of(&self.made),
        };
        (self.forgets)(&mut layers);
        vec![Feature {
            queries_keys: (!self.keeps_maps).then(|| self.source.clone()),
            windows: Some(self.made.problem.windows().to_vec()),
            start_rows: StartRows::Last,
            ..Feature::new("text", [SHAPE.batch, SHAPE.heads, SHAPE.tokens], layers)
        }]
    }
}

fn maps_of(maps: &[Vec<f32>]) -> Vec<Readout<'_>> {
    maps.iter()
        .map(|maps| Readout {
            maps: Some(HostTensor::from(&maps[..])),
            ..Readout::default()
        })
        .collect()
}

fn scores_of(made: &ScoresGenerated) -> Vec<Readout<'_>> {
    made.layers()
        .into_iter()
        .map(|layer| match layer {
            Layer::QueriesKeys { queries, keys, lse } => Readout {
                queries: Some(queries),
                keys: Some(keys),
                lse,
                ..Readout::default()
            },
            _ => panic!("the layers have queries and keys"),
        })
        .collect()
}

/// Pairs of heads that share keys, tokens first, and an LSE to base 2.
fn source() -> QueriesKeys {
    let mut source = QueriesKeys {
        key_heads: 2,
        scale: Some(0.3),
        lse: Lse::Given(LogBase::Two),
        soft_caps: vec![4.0, 5.0, 6.0],
        ..QueriesKeys::new(&SHAPE, 16)
    };
    source.strides = vec![tokens_first_with_gaps(&SHAPE, &source)];
    source
}

#[test]
fn queries_and_keys_are_explained_as_their_maps_are() {
    let without_the_first_layer = RolloutConfig {
        layers: Some(1..3),
        ..RolloutConfig::default()
    };
    for source in [QueriesKeys::new(&SHAPE, 8), source()] {
        for config in [RolloutConfig::default(), without_the_first_layer.clone()] {
            let mut model = Fused::new(source.clone());
            let got = model.explained(&config);
            assert_eq!(model.capture.get(), Capture::Off);
            model.keeps_maps = true;
            let want = model.explained(&config);
            let want: Vec<f64> = want.into_iter().map(f64::from).collect();
            let shape = [SHAPE.batch, SHAPE.tokens];
            assert_close("queries and keys", &shape, &got, &want, |_| 5e-6);
        }
    }
}

#[test]
fn a_plan_of_one_source_does_not_serve_another() {
    let mut explainer = AttentionRollout::default();
    let mut model = Fused::new(source());
    let mut explained = |keeps_maps| {
        model.keeps_maps = keeps_maps;
        let attributions = explainer.attribute(&mut model, &(), None).unwrap();
        attributions.get("text").unwrap().clone()
    };
    let first = explained(false);
    explained(true);
    assert_eq!(explained(false), first);
}

#[test]
fn what_is_missing_of_queries_and_keys_is_named() {
    let refused = |forgets: fn(&mut Vec<Readout<'_>>)| {
        let mut model = Fused::new(source());
        model.forgets = forgets;
        model.refused().to_string()
    };
    let missing = |layer: usize, what: &str| {
        format!("feature text: layer {layer}: expected the model to keep the {what}, got none")
    };
    assert_eq!(
        refused(|layers| layers[0].queries = None),
        missing(0, "queries")
    );
    assert_eq!(refused(|layers| layers[2].keys = None), missing(2, "keys"));
    assert_eq!(refused(|layers| layers[1].lse = None), missing(1, "LSE"));
    assert_eq!(
        refused(|layers| layers.clear()),
        "feature text: layers must be at least 1, got 0"
    );
    assert_eq!(
        refused(|layers| layers[1].keys = layers[1].lse),
        "feature text: layer 1, keys: its extents and strides reach 448 elements, got 56"
    );
    // A model that keeps maps has to say nothing of queries and keys, and the other way round.
    let mut model = Fused::new(source());
    model.keeps_maps = true;
    model.forgets = |layers| layers[1].maps = None;
    assert_eq!(model.refused().to_string(), missing(1, "attention map"));
}

#[test]
fn an_lse_of_another_scale_is_noticed() {
    let mut model = Fused::new(source());
    model.source.scale = Some(0.6);
    let error = model.refused();
    let Error::Feature { feature, source } = &error else {
        panic!("{error}");
    };
    assert_eq!(feature, "text");
    assert!(matches!(**source, Error::Lse { layer: 0, .. }), "{error}");
}

#[test]
fn maps_that_are_not_there_have_no_gradients() {
    let mut model = Fused::new(source());
    let error = CheferRelevance::default().attribute(&mut model, &(), None);
    assert_eq!(
        error.unwrap_err().to_string(),
        "feature text: layer 0: expected maps and gradients, got queries and keys"
    );
    assert_eq!(model.capture.get(), Capture::Off);
}
