//! From a feature of the file and the options to a validated problem.

use attention_rollout::{
    GradientRule, HeadFusion, Output, Problem, Residual, ResidualWeights, RolloutConfig, StartRows,
    Window,
};
use safetensors::tensor::TensorView;

use crate::error::{Error, Result};
use crate::input::{FileFeature, features};
use crate::options::{ConfigArgs, FusionArg, OutputKind, RowsArg, SelectArgs, is_below};
use crate::tensors::{Tensors, check_shape, numbers};

/// One feature and the problem over its maps.
pub struct Job<'a> {
    pub feature: FileFeature<'a>,
    pub problem: Problem,
}

/// The jobs of a file. Everything but the maps' values is checked here, before anything is computed.
pub fn jobs<'a>(
    tensors: &Tensors<'a>,
    select: &SelectArgs,
    config: &ConfigArgs,
    kind: OutputKind,
) -> Result<Vec<Job<'a>>> {
    let mut features = features(tensors)?;
    config.check_rows_for(features.iter().map(|feature| feature.prefix.as_str()))?;
    if let Some(path) = &select.feature {
        let names: Vec<String> = features.iter().map(|f| f.prefix.clone()).collect();
        features.retain(|feature| is_below(&feature.prefix, path));
        if features.is_empty() {
            return Err(Error::argument(
                "--feature",
                format!("one of {names:?} or a path above them"),
                path.as_str(),
            ));
        }
    }
    let has_scores = features.iter().any(|feature| feature.scores.is_some());
    if let Some(option) = config.scores.first_given().filter(|_| !has_scores) {
        return Err(Error::argument(option, "tensors query.<l>", "none"));
    }
    features
        .into_iter()
        .map(|feature| {
            let feature = match config.gradients {
                Some(_) => feature.with_gradients(tensors)?,
                None => feature,
            };
            let feature = config.scores.settle(feature)?;
            let problem = problem(tensors, &feature, select, config, kind)?;
            Ok(Job { feature, problem })
        })
        .collect()
}

/// The problem the options state over the maps of `feature`.
pub fn problem(
    tensors: &Tensors<'_>,
    feature: &FileFeature<'_>,
    select: &SelectArgs,
    config: &ConfigArgs,
    kind: OutputKind,
) -> Result<Problem> {
    // First of all: no product of extents below overflows.
    feature
        .shape
        .validate()
        .map_err(Error::rollout(feature.place()))?;
    let beside = Beside { tensors, feature };
    let output = match kind {
        OutputKind::Rows => Output::Rows(beside.start_rows(&config.rows_of(&feature.prefix))?),
        OutputKind::Matrix => Output::Matrix,
        OutputKind::Cumulative => Output::Cumulative,
    };
    let meaning = RolloutConfig {
        head_fusion: beside.head_fusion(&config.head_fusion)?,
        residual: residual(config, feature.shape.layers)?,
        normalize_rows: config.normalize_rows,
        discard: Some(config.discard()?),
        layers: select.layers.of(feature.shape.layers),
        causal: config.causal,
        gradients: config.gradients.map(GradientRule::from),
        exclude_from_attention: config.exclude_attention.clone(),
        output,
    };
    let mut builder = Problem::builder(feature.shape, feature.dtype).config(meaning);
    if !select.no_mask
        && let Some(windows) = beside.windows()?
    {
        builder = builder.windows(windows);
    }
    if let Some(source) = config.scores.source(tensors, feature)? {
        builder = builder.queries_keys(source);
    }
    builder.build().map_err(Error::rollout(feature.place()))
}

fn residual(config: &ConfigArgs, layers: usize) -> Result<ResidualWeights> {
    let weight = |option, weights: &[f32], layer: usize| match weights.len() {
        1 => Ok(weights[0]),
        count if count == layers => Ok(weights[layer]),
        count => Err(Error::argument(
            option,
            format!("one weight, or one for each of {layers} layers"),
            format!("{count} weights"),
        )),
    };
    if let ([attention], [identity]) = (&config.attention_weight[..], &config.identity_weight[..]) {
        return Ok(ResidualWeights::Uniform(Residual::new(
            *attention, *identity,
        )));
    }
    let residuals: Vec<Residual> = (0..layers)
        .map(|layer| {
            Ok(Residual::new(
                weight("--attention-weight", &config.attention_weight, layer)?,
                weight("--identity-weight", &config.identity_weight, layer)?,
            ))
        })
        .collect::<Result<_>>()?;
    Ok(match residuals[..] {
        [first, ref rest @ ..] if rest.iter().all(|r| *r == first) => {
            ResidualWeights::Uniform(first)
        }
        _ => ResidualWeights::PerLayer(residuals),
    })
}

/// The tensors beside a feature's layers.
struct Beside<'t, 'a> {
    tensors: &'t Tensors<'a>,
    feature: &'t FileFeature<'a>,
}

impl<'a> Beside<'_, 'a> {
    fn name(&self, tensor: &str) -> String {
        format!("{}{tensor}", self.feature.prefix)
    }

    fn require(&self, tensor: &str, option: &str) -> Result<(String, &TensorView<'a>)> {
        let name = self.name(tensor);
        let view = self.tensors.require(&name, option)?;
        Ok((name, view))
    }

    fn start_rows(&self, rows: &RowsArg) -> Result<StartRows> {
        Ok(match rows {
            RowsArg::Rows(rows) => StartRows::Rows(rows.clone()),
            RowsArg::Last => StartRows::Last,
            RowsArg::Mean => StartRows::Mean,
            RowsArg::MeanOf(count) => self.mean_of(count.get())?,
            RowsArg::Tensors(tensors) => StartRows::PerItem(self.rows_of_tensors(tensors)?),
            RowsArg::Count(tensor) => StartRows::PerItem(self.counted_rows(tensor)?),
        })
    }

    /// The mean of the first `count` rows, which every item must have.
    fn mean_of(&self, count: usize) -> Result<StartRows> {
        let tokens = self.feature.shape.tokens;
        let windows = self.windows()?.unwrap_or_default();
        let fewest = windows.iter().map(|window| window.len).min();
        let fewest = fewest.unwrap_or(tokens);
        if count > fewest {
            return Err(Error::argument(
                "--rows",
                format!("the mean of at most the {fewest} valid tokens that every item has"),
                format!("mean:{count}"),
            ));
        }
        let mut weights = vec![0.0; tokens];
        weights[..count].fill(1.0 / count as f32);
        Ok(StartRows::Weights { rows: 1, weights })
    }

    /// The rows of one tensor after the other, item by item.
    fn rows_of_tensors(&self, tensors: &[String]) -> Result<Vec<usize>> {
        let rows = tensors.iter().map(|tensor| self.row_indices(tensor));
        let rows: Vec<Vec<usize>> = rows.collect::<Result<_>>()?;
        let batch = self.feature.shape.batch;
        let of_item = |item: usize| {
            rows.iter().flat_map(move |rows| {
                let count = rows.len() / batch;
                rows[item * count..(item + 1) * count].to_vec()
            })
        };
        Ok((0..batch).flat_map(of_item).collect())
    }

    /// As many rows for each item.
    fn row_indices(&self, tensor: &str) -> Result<Vec<usize>> {
        let (name, view) = self.require(tensor, &format!("--rows tensor:{tensor}"))?;
        let batch = self.feature.shape.batch;
        let fits = match *view.shape() {
            [items] => items == batch,
            [items, rows] => items == batch && rows > 0,
            _ => false,
        };
        if !fits {
            let expected = format!("shape [{batch}] or [{batch}, rows]");
            return Err(Error::tensor(
                &name,
                expected,
                format!("{:?}", view.shape()),
            ));
        }
        numbers(&name, view)?
            .map(|index| {
                // Exact for every index that can lie inside a window.
                if index >= 0.0 && index.fract() == 0.0 && index < (1u64 << 53) as f64 {
                    Ok(index as usize)
                } else {
                    let expected = "row numbers, whole and not negative";
                    Err(Error::tensor(&name, expected, index.to_string()))
                }
            })
            .collect()
    }

    fn counted_rows(&self, tensor: &str) -> Result<Vec<usize>> {
        let (name, view) = self.require(tensor, &format!("--rows count:{tensor}"))?;
        let (batch, tokens) = (self.feature.shape.batch, self.feature.shape.tokens);
        check_leading_shape(&name, view, batch, tokens)?;
        let elements: usize = view.shape().iter().product();
        let per_token = elements.checked_div(batch * tokens).unwrap_or(0);
        let mut values = numbers(&name, view)?;
        let mut is_valid = || {
            let token = values.by_ref().take(per_token);
            token.fold(false, |any, value| any | (value != 0.0))
        };
        let row = |_item| (0..tokens).filter(|_| is_valid()).count().saturating_sub(1);
        Ok((0..batch).map(row).collect())
    }

    fn head_fusion(&self, fusion: &FusionArg) -> Result<HeadFusion> {
        Ok(match fusion {
            FusionArg::Mean => HeadFusion::Mean,
            FusionArg::Max => HeadFusion::Max,
            FusionArg::Min => HeadFusion::Min,
            FusionArg::Weights(tensor) => {
                let (name, view) =
                    self.require(tensor, &format!("--head-fusion weights:{tensor}"))?;
                check_shape(&name, view, &[self.feature.shape.heads])?;
                let weights = numbers(&name, view)?;
                HeadFusion::Weighted(weights.map(|w| w as f32).collect())
            }
        })
    }

    fn windows(&self) -> Result<Option<Vec<Window>>> {
        let name = self.name("attention_mask");
        let Some(view) = self.tensors.get(&name) else {
            return Ok(None);
        };
        let (batch, tokens) = (self.feature.shape.batch, self.feature.shape.tokens);
        check_shape(&name, view, &[batch, tokens])?;
        let mask: Vec<bool> = numbers(&name, view)?
            .map(|value| {
                // An additive mask (0 for valid, large negative for masked) means the opposite.
                if value >= 0.0 {
                    Ok(value != 0.0)
                } else {
                    let expected = "0 where masked and positive where valid";
                    Err(Error::tensor(&name, expected, value.to_string()))
                }
            })
            .collect::<Result<_>>()?;
        Window::from_mask(&mask, batch, tokens)
            .map(Some)
            .map_err(Error::rollout(format!("tensor {name}")))
    }
}

/// Checks that `view` is `[batch, tokens, ...]`.
pub fn check_leading_shape(
    name: &str,
    view: &TensorView<'_>,
    batch: usize,
    tokens: usize,
) -> Result<()> {
    if view.shape().starts_with(&[batch, tokens]) {
        return Ok(());
    }
    let expected = format!("shape [{batch}, {tokens}, ...]");
    Err(Error::tensor(name, expected, format!("{:?}", view.shape())))
}
