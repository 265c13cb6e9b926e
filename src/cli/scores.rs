//! Queries, keys and LSE of a file, and the options that say what becomes of them.

use std::str::FromStr;

use attention_rollout::{DType, LogBase, Lse, QueriesKeys, Shape};
use clap::{Args, ValueEnum};

use crate::error::{Error, Result};
use crate::file_scores::ScoreExtents;
use crate::input::FileFeature;
use crate::tensors::{Tensors, check_shape, numbers};

/// How entries follow from queries and keys.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Queries and keys")]
pub struct ScoresArgs {
    /// What products of queries and keys are multiplied by; one over the square root of the head size unless given
    #[arg(long, value_name = "S", allow_hyphen_values = true)]
    pub scale: Option<f32>,

    /// Take the LSE (the logarithms of the sums that rows are divided by) from the file, or recompute it; given where the
    /// file has lse.<l>
    #[arg(long, value_enum)]
    pub lse: Option<LseArg>,

    /// Base of the LSE in the file: e (PyTorch, flash-attn; unless given) or 2 (FlashInfer)
    #[arg(long, value_enum)]
    pub lse_base: Option<LseBaseArg>,

    /// Tokens attend to those less than W tokens away: W | tensor:NAME (one per layer; 0 = all tokens)
    #[arg(long, value_name = "W")]
    pub sliding_window: Option<SlidingArg>,

    /// Scores are at most X, softly: X tanh(score / X)
    #[arg(long, value_name = "X")]
    pub soft_cap: Option<f32>,

    /// How far the sum of relevance may be from what is known of it, relative to it, after every layer (0.001 unless
    /// given); off looks at nothing, nor at the LSE in the file
    #[arg(long, value_name = "TOLERANCE")]
    pub mass_tolerance: Option<ToleranceArg>,
}

/// `--lse`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LseArg {
    Given,
    Recompute,
}

/// `--lse-base`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LseBaseArg {
    E,
    #[value(name = "2")]
    Two,
}

/// `--sliding-window`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlidingArg {
    Tokens(usize),
    Tensor(String),
}

impl FromStr for SlidingArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("tensor:") {
            Some("") => Err("expected the name of a tensor after tensor:".to_owned()),
            Some(name) => Ok(SlidingArg::Tensor(name.to_owned())),
            None => text
                .parse()
                .map(SlidingArg::Tokens)
                .map_err(|_| "expected a number of tokens or tensor:NAME".to_owned()),
        }
    }
}

/// `--mass-tolerance`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ToleranceArg {
    Off,
    Within(f32),
}

impl FromStr for ToleranceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(ToleranceArg::Off),
            number => number
                .parse()
                .map(ToleranceArg::Within)
                .map_err(|_| "expected a number or off".to_owned()),
        }
    }
}

impl ScoresArgs {
    /// The first option given.
    pub fn first_given(&self) -> Option<&'static str> {
        [
            ("--scale", self.scale.is_some()),
            ("--lse", self.lse.is_some()),
            ("--lse-base", self.lse_base.is_some()),
            ("--sliding-window", self.sliding_window.is_some()),
            ("--soft-cap", self.soft_cap.is_some()),
            ("--mass-tolerance", self.mass_tolerance.is_some()),
        ]
        .into_iter()
        .find_map(|(option, is_given)| is_given.then_some(option))
    }

    /// The feature with or without its LSE, as the options say.
    pub fn settle<'a>(&self, feature: FileFeature<'a>) -> Result<FileFeature<'a>> {
        let Some(extents) = feature.scores else {
            return Ok(feature);
        };
        match self.lse {
            Some(LseArg::Recompute) => Ok(feature.without_lse()),
            Some(LseArg::Given) if !extents.has_lse => Err(Error::MissingTensor {
                name: format!("{}lse.0", feature.prefix),
                needed_by: "--lse given".to_owned(),
            }),
            _ => Ok(feature),
        }
    }

    /// How the entries of `feature` follow from its queries and keys, where it has some.
    pub fn source(
        &self,
        tensors: &Tensors<'_>,
        feature: &FileFeature<'_>,
    ) -> Result<Option<QueriesKeys>> {
        let Some(extents) = feature.scores else {
            return Ok(None);
        };
        let Shape { layers, heads, .. } = feature.shape;
        let base = match self.lse_base {
            Some(LseBaseArg::Two) => LogBase::Two,
            _ => LogBase::E,
        };
        let beside = |tensor: &str, len: usize| -> Result<Option<Vec<f64>>> {
            let name = format!("{}{tensor}", feature.prefix);
            let Some(view) = tensors.get(&name) else {
                return Ok(None);
            };
            check_shape(&name, view, &[len])?;
            Ok(Some(numbers(&name, view)?.collect()))
        };
        let floats = |values: Vec<f64>| -> Vec<f32> { values.iter().map(|&v| v as f32).collect() };
        let sliding_windows = match &self.sliding_window {
            None => Vec::new(),
            Some(SlidingArg::Tokens(tokens)) => vec![*tokens],
            Some(SlidingArg::Tensor(tensor)) => {
                let needed_by = || format!("--sliding-window tensor:{tensor}");
                let windows = beside(tensor, layers)?.ok_or_else(|| Error::MissingTensor {
                    name: format!("{}{tensor}", feature.prefix),
                    needed_by: needed_by(),
                })?;
                let window = |&tokens: &f64| match tokens >= 0.0 && tokens.fract() == 0.0 {
                    true => Ok(tokens as usize),
                    false => Err(Error::tensor(
                        &format!("{}{tensor}", feature.prefix),
                        "numbers of tokens, whole and not negative",
                        tokens.to_string(),
                    )),
                };
                windows.iter().map(window).collect::<Result<_>>()?
            }
        };
        let sinks: Vec<Option<Vec<f64>>> = (0..layers)
            .map(|layer| beside(&format!("sinks.{layer}"), heads))
            .collect::<Result<_>>()?;
        let has_sinks = sinks.iter().any(Option::is_some);
        let sinks = sinks.into_iter().enumerate().filter(|_| has_sinks);
        let sinks: Vec<Vec<f64>> = sinks
            .map(|(layer, sinks)| {
                sinks.ok_or_else(|| Error::MissingTensor {
                    name: format!("{}sinks.{layer}", feature.prefix),
                    needed_by: "the sinks of other layers".to_owned(),
                })
            })
            .collect::<Result<_>>()?;
        let contiguous = QueriesKeys::new(&feature.shape, extents.head_dim);
        Ok(Some(QueriesKeys {
            key_heads: extents.key_heads,
            scale: self.scale,
            lse: match extents.has_lse {
                true => Lse::Given(base),
                false => Lse::Recomputed,
            },
            sliding_windows,
            soft_caps: self.soft_cap.into_iter().collect(),
            alibi_slopes: beside("alibi_slopes", heads)?.map_or(Vec::new(), floats),
            sinks: floats(sinks.concat()),
            mass_tolerance: match self.mass_tolerance {
                Some(ToleranceArg::Off) => None,
                Some(ToleranceArg::Within(tolerance)) => Some(tolerance),
                None => contiguous.mass_tolerance,
            },
            ..contiguous
        }))
    }
}

/// Random queries and keys instead of maps.
#[derive(Args, Clone, Debug, Default)]
pub struct ScoreExtentsArgs {
    /// From queries and keys with heads of this size, instead of maps; the LSE is recomputed unless `--lse given`
    #[arg(long, value_name = "HEAD_SIZE")]
    pub queries_keys: Option<usize>,

    /// Heads of the keys; as many as of the queries unless given
    #[arg(long, value_name = "HEADS", requires = "queries_keys")]
    pub key_heads: Option<usize>,
}

impl ScoreExtentsArgs {
    /// A feature without tensors, of these extents.
    pub fn feature<'a>(&self, shape: Shape, dtype: DType, scores: &ScoresArgs) -> FileFeature<'a> {
        let extents = |head_dim| ScoreExtents {
            head_dim,
            key_heads: self.key_heads.unwrap_or(shape.heads),
            has_lse: scores.lse == Some(LseArg::Given),
        };
        FileFeature::without_tensors(shape, dtype, self.queries_keys.map(extents))
    }
}
