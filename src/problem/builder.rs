//! What a problem is made of, collected and checked.

use super::{Problem, check};
use crate::config::{Output, RolloutConfig};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::{Shape, Strides, Window};
use crate::memory::filled;
use crate::queries_keys::QueriesKeys;

/// Collects what a [`Problem`] is made of; [`build`](ProblemBuilder::build) checks it.
#[derive(Clone, Debug)]
pub struct ProblemBuilder {
    shape: Shape,
    dtype: DType,
    config: RolloutConfig,
    strides: StridesOf,
    queries_keys: Option<QueriesKeys>,
    windows: Option<Vec<Window>>,
    max_window: Option<usize>,
}

/// Strides, before there is room for one per layer.
#[derive(Clone, Debug)]
enum StridesOf {
    /// Contiguous in every layer.
    Contiguous,
    /// The same in every layer.
    Every(Strides),
    /// Layer by layer.
    Each(Vec<Strides>),
}

impl ProblemBuilder {
    pub(super) fn new(shape: Shape, dtype: DType) -> Self {
        ProblemBuilder {
            shape,
            dtype,
            config: RolloutConfig::default(),
            strides: StridesOf::Contiguous,
            queries_keys: None,
            windows: None,
            max_window: None,
        }
    }

    /// What to compute; [`RolloutConfig::default`] unless called.
    pub fn config(mut self, config: RolloutConfig) -> Self {
        self.config = config;
        self
    }

    /// The strides of every layer; contiguous unless called.
    pub fn strides(mut self, strides: Strides) -> Self {
        self.strides = StridesOf::Every(strides);
        self
    }

    /// Strides layer by layer.
    pub fn layer_strides(mut self, strides: Vec<Strides>) -> Self {
        self.strides = StridesOf::Each(strides);
        self
    }

    /// Attention is computed from queries and keys, whose element type is that of the problem; maps unless called.
    pub fn queries_keys(mut self, queries_keys: QueriesKeys) -> Self {
        self.queries_keys = Some(queries_keys);
        self
    }

    /// One window of valid tokens per item; all tokens unless called. See [`Window::from_mask`].
    ///
    /// A plan of a problem with windows takes others for every run (`set_windows`), none longer than
    /// [`max_window`](ProblemBuilder::max_window).
    pub fn windows(mut self, windows: Vec<Window>) -> Self {
        self.windows = Some(windows);
        self
    }

    /// The longest window that a run may be given, for which plans choose and allocate; unless called, the longest of the
    /// [`windows`](ProblemBuilder::windows). Without windows, those of the first run are as long as this, from the first
    /// token on.
    pub fn max_window(mut self, tokens: usize) -> Self {
        self.max_window = Some(tokens);
        self
    }

    /// Checks everything.
    ///
    /// # Errors
    /// The variant of [`Error`] that tells what does not fit, with the number expected and the number got;
    /// [`Error::HostMemory`] for more layers or items than the machine can list.
    pub fn build(self) -> Result<Problem> {
        let ProblemBuilder {
            shape,
            dtype,
            mut config,
            strides,
            queries_keys,
            windows,
            max_window,
        } = self;
        shape.validate()?;
        let every = |strides| filled("strides", shape.layers, strides);
        let strides = match strides {
            StridesOf::Contiguous => every(Strides::contiguous(&shape))?,
            StridesOf::Every(strides) => every(strides)?,
            StridesOf::Each(strides) => strides,
        };
        check::count("strides, one per layer", shape.layers, strides.len())?;
        for layer in &strides {
            layer.span(&shape)?;
        }
        if let Some(source) = &queries_keys {
            source.check(&shape)?;
            if config.gradients.is_some() {
                return Err(Error::Conflict {
                    what: "gradients",
                    with: "queries and keys",
                });
            }
        }
        if let Some(got) = max_window.filter(|&max| max > shape.tokens) {
            return Err(Error::Parameter {
                what: "the longest window",
                expected: "at most the tokens of the problem",
                got: got as f64,
            });
        }
        let longest = |windows: &Vec<Window>| windows.iter().map(|window| window.len).max();
        let max_window = max_window.or(windows.as_ref().map(|w| longest(w).unwrap_or(0)));
        let windows = match windows {
            Some(windows) => windows,
            None => {
                let all = Window::full(max_window.unwrap_or(shape.tokens));
                filled("windows", shape.batch, all)?
            }
        };
        check::windows(&windows, &shape, max_window)?;
        let layers = config.layers.clone().unwrap_or(0..shape.layers);
        if layers.is_empty() || layers.end > shape.layers {
            return Err(Error::LayerRange {
                start: layers.start,
                end: layers.end,
                layers: shape.layers,
            });
        }
        check::weights(&config, &shape)?;
        check::excluded(&mut config.exclude_from_attention, shape.tokens)?;
        check::discard(&config, shape.tokens)?;
        // What zeroes nothing shall not make a backend look for the smallest entries.
        config.discard = config.discard.filter(|discard| discard.ratio != 0.0);
        if let Output::Rows(rows) = &config.output {
            check::start_rows(rows, &shape, &windows)?;
        }
        Ok(Problem {
            shape,
            dtype,
            config,
            strides,
            queries_keys,
            windows,
            max_window,
            layers,
        })
    }
}
