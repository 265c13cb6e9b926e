//! Options shared by the subcommands: what to compute.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::str::FromStr;

use attention_rollout::{Discard, DiscardScope, GradientRule};
use clap::{Args, ValueEnum};

use crate::error::{Error, Result};
use crate::scores::ScoresArgs;

/// What to compute.
#[derive(Args, Clone, Debug)]
pub struct ConfigArgs {
    /// Start rows, counted from the first valid token: 0 | 3,7 | last | mean | mean:S (of the first S rows) |
    /// tensor:NAME[,tensor:NAME...] (one row per item, or several) | count:NAME (row max(k - 1, 0) of an item with k non-zero tokens in NAME); row 0 unless given
    #[arg(long, value_name = "ROWS")]
    pub rows: Option<RowsArg>,

    /// Start rows of one feature (or of all features below a path), instead of --rows
    #[arg(long, value_name = "FEATURE=ROWS")]
    pub rows_for: Vec<RowsFor>,

    /// How heads become one map: mean | max | min | weights:NAME (one weight per head)
    #[arg(long, default_value = "mean", value_name = "FUSION")]
    pub head_fusion: FusionArg,

    /// Weigh the maps by the gradients beside them (gradient.<l>), rectified head by head or once the heads are one map
    #[arg(long, value_enum, value_name = "RULE")]
    pub gradients: Option<GradientsArg>,

    /// Tokens that nothing shall attend to, counted from the first valid token: their columns of each fused map are
    /// zeroed and each row is divided by what is left
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub exclude_attention: Vec<usize>,

    /// Weight of the attention map beside the residual; one number, or one per layer
    #[arg(
        long,
        default_value = "0.5",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    pub attention_weight: Vec<f32>,

    /// Weight of the identity (the residual connection); one number, or one per layer
    #[arg(
        long,
        default_value = "0.5",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    pub identity_weight: Vec<f32>,

    /// Divide each row by its sum after adding the residual
    #[arg(long)]
    pub normalize_rows: bool,

    /// Zero this share of the smallest entries of each fused map (0 <= RATIO < 1)
    #[arg(
        long,
        value_name = "RATIO",
        default_value_t = 0.0,
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    pub discard_ratio: f64,

    /// Which entries --discard-ratio looks at: the whole map, or the map without the special tokens
    #[arg(long, value_enum, default_value_t = ScopeArg::Map, requires = "discard_ratio")]
    pub discard_scope: ScopeArg,

    /// Leading tokens that are not patches (CLS, registers), for --discard-scope patches, --heatmap and --upsample; 1
    /// unless given
    #[arg(long, value_name = "COUNT")]
    pub special_tokens: Option<usize>,

    /// Promise that no token attends to a later one; the upper triangle is then never read
    #[arg(long)]
    pub causal: bool,

    #[command(flatten)]
    pub scores: ScoresArgs,
}

impl ConfigArgs {
    /// The discard the options ask for; one of ratio 0 is none.
    pub fn discard(&self) -> Result<Discard> {
        let scope = match self.discard_scope {
            ScopeArg::Map => DiscardScope::Map,
            ScopeArg::Patches => DiscardScope::Patches {
                special_tokens: self.special_tokens(),
            },
        };
        Discard::new(self.discard_ratio, scope).map_err(Error::rollout("--discard-ratio"))
    }

    /// Leading tokens that are not patches.
    pub fn special_tokens(&self) -> usize {
        self.special_tokens.unwrap_or(1)
    }

    /// The start rows of the feature with this prefix: the most specific `--rows-for`, else `--rows`, else row 0.
    pub fn rows_of(&self, prefix: &str) -> RowsArg {
        let specific = self
            .rows_for
            .iter()
            .filter(|rows| rows.covers(prefix))
            .max_by_key(|rows| rows.feature.len())
            .map(|rows| &rows.rows);
        let rows = specific.or(self.rows.as_ref());
        rows.cloned().unwrap_or(RowsArg::Rows(vec![0]))
    }

    /// Refuses options that nothing would heed where `kind` comes out (every kind where it is `None`), and where
    /// patches come after special tokens or not.
    pub fn check_heeded(&self, kind: Option<OutputKind>, after_special: bool) -> Result<()> {
        let rows = [
            ("--rows", self.rows.is_some()),
            ("--rows-for", !self.rows_for.is_empty()),
        ];
        for (option, is_given) in rows {
            if let Some(kind @ (OutputKind::Matrix | OutputKind::Cumulative)) = kind
                && is_given
            {
                let got = format!("{kind:?}").to_lowercase();
                return Err(Error::argument(option, "--output-kind rows", got));
            }
        }
        let has_patches = after_special || self.discard_scope == ScopeArg::Patches;
        if self.special_tokens.is_some() && !has_patches {
            return Err(Error::argument(
                "--special-tokens",
                "--discard-scope patches, or patches of --heatmap or --upsample without --columns",
                "neither",
            ));
        }
        Ok(())
    }

    /// Refuses a `--rows-for` that covers none of the features with these prefixes.
    pub fn check_rows_for<'a>(
        &self,
        prefixes: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<()> {
        let is_idle = |rows: &&RowsFor| !prefixes.clone().any(|prefix| rows.covers(prefix));
        match self.rows_for.iter().find(is_idle) {
            Some(rows) => Err(Error::argument(
                "--rows-for",
                format!(
                    "one of {:?} or a path above them",
                    prefixes.collect::<Vec<_>>()
                ),
                rows.feature.as_str(),
            )),
            None => Ok(()),
        }
    }
}

/// Which features, tokens and layers of the file take part.
#[derive(Args, Clone, Debug, Default)]
pub struct SelectArgs {
    /// Only this feature, or all features below this path
    #[arg(long, value_name = "FEATURE")]
    pub feature: Option<String>,

    /// Ignore attention_mask tensors: every token is valid
    #[arg(long)]
    pub no_mask: bool,

    /// Layers to multiply, as 2.. or ..4 or 2..4
    #[arg(long, value_name = "RANGE", default_value = "..")]
    pub layers: LayersArg,
}

/// Whether the feature with this prefix is `path` or lies below it.
pub fn is_below(prefix: &str, path: &str) -> bool {
    prefix
        .strip_prefix(path.trim_end_matches('/'))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// `--output-kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputKind {
    Rows,
    Matrix,
    Cumulative,
}

/// `--gradients`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GradientsArg {
    /// Each head by itself, as Chefer et al. 2021
    Heads,
    /// The fused map, as vit-explain
    Fused,
}

impl From<GradientsArg> for GradientRule {
    fn from(rule: GradientsArg) -> Self {
        match rule {
            GradientsArg::Heads => GradientRule::Heads,
            GradientsArg::Fused => GradientRule::Fused,
        }
    }
}

/// `--discard-scope`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScopeArg {
    Map,
    Patches,
}

/// `--rows`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowsArg {
    Rows(Vec<usize>),
    Last,
    Mean,
    /// The mean of so many first rows.
    MeanOf(NonZeroUsize),
    /// Those of one tensor after the other.
    Tensors(Vec<String>),
    Count(String),
}

impl FromStr for RowsArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(rows) = named(text, "count:", RowsArg::Count) {
            return rows;
        }
        if text.starts_with("tensor:") {
            let name = |part: &str| {
                let expected = || "expected tensor:NAME after the comma".to_owned();
                named(part, "tensor:", |name| name).unwrap_or_else(|| Err(expected()))
            };
            let names: Result<_, _> = text.split(',').map(name).collect();
            return names.map(RowsArg::Tensors);
        }
        if let Some(count) = text.strip_prefix("mean:") {
            let expected = |_| "expected how many rows after mean:, at least 1".to_owned();
            return count.parse().map(RowsArg::MeanOf).map_err(expected);
        }
        match text {
            "last" => Ok(RowsArg::Last),
            "mean" => Ok(RowsArg::Mean),
            rows => rows
                .split(',')
                .map(|row| row.trim().parse())
                .collect::<Result<_, _>>()
                .map(RowsArg::Rows)
                .map_err(|_| {
                    "expected row numbers as 0 or 3,7, or last, mean, mean:S, tensor:NAME, count:NAME"
                        .to_owned()
                }),
        }
    }
}

fn named<T>(text: &str, keyword: &str, make: fn(String) -> T) -> Option<Result<T, String>> {
    text.strip_prefix(keyword).map(|name| match name {
        "" => Err(format!("expected the name of a tensor after {keyword}")),
        name => Ok(make(name.to_owned())),
    })
}

/// `--rows-for FEATURE=ROWS`.
#[derive(Clone, Debug)]
pub struct RowsFor {
    feature: String,
    rows: RowsArg,
}

impl RowsFor {
    fn covers(&self, prefix: &str) -> bool {
        is_below(prefix, &self.feature)
    }
}

impl FromStr for RowsFor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.rsplit_once('=') {
            Some((feature, rows)) if !feature.is_empty() => Ok(RowsFor {
                feature: feature.to_owned(),
                rows: rows.parse()?,
            }),
            _ => Err("expected FEATURE=ROWS".to_owned()),
        }
    }
}

/// `--head-fusion`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FusionArg {
    Mean,
    Max,
    Min,
    Weights(String),
}

impl FromStr for FusionArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(weights) = named(text, "weights:", FusionArg::Weights) {
            return weights;
        }
        match text {
            "mean" => Ok(FusionArg::Mean),
            "max" => Ok(FusionArg::Max),
            "min" => Ok(FusionArg::Min),
            _ => Err("expected mean, max, min or weights:NAME".to_owned()),
        }
    }
}

/// `--layers`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayersArg {
    start: Option<usize>,
    end: Option<usize>,
}

impl LayersArg {
    /// The range in a stack of `layers`; `None` for all of them.
    pub fn of(&self, layers: usize) -> Option<Range<usize>> {
        match (self.start, self.end) {
            (None, None) => None,
            (start, end) => Some(start.unwrap_or(0)..end.unwrap_or(layers)),
        }
    }
}

impl FromStr for LayersArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bound = |text: &str| match text.trim() {
            "" => Ok(None),
            number => number.parse().map(Some).map_err(|_| ()),
        };
        text.split_once("..")
            .and_then(|(start, end)| {
                Some(LayersArg {
                    start: bound(start).ok()?,
                    end: bound(end).ok()?,
                })
            })
            .ok_or_else(|| "expected a range as 2.. or ..4 or 2..4".to_owned())
    }
}
