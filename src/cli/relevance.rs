//! What becomes of relevance once it is computed: tokens taken out, columns chosen, patches enlarged to pictures.
//!
//! Tokens and columns count from an item's first valid token. What can be wrong is found before anything is computed.

use std::borrow::Cow;
use std::ops::Range;
use std::str::FromStr;

use attention_rollout::{Problem, Window, post};
use clap::Args;

use crate::error::{Error, Result};
use crate::extents::Extents;
use crate::heatmap::photo::check_size;
use crate::job::Job;
use crate::options::OutputKind;

/// What to do to relevance.
#[derive(Args, Clone, Debug)]
pub struct RelevanceArgs {
    /// Tokens whose relevance becomes 0, counted from the first valid token; the rest of each row is divided by its sum
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    exclude_relevance: Vec<usize>,

    /// Only these columns of the relevance, as 5..581, counted from the first valid token; 0 where an item has none
    #[arg(long, value_name = "A..B")]
    columns: Option<ColumnsArg>,

    /// Also write upsampled: the relevance of patches, enlarged bilinearly to so many rows and columns of pixels; a heat
    /// map without a photo has that size
    #[arg(long, value_name = "HxW")]
    pub upsample: Option<Extents>,

    /// Rows and columns of patches, for --upsample and --heatmap; a square unless given
    #[arg(long, value_name = "HxW")]
    grid: Option<Extents>,
}

/// `--columns`.
#[derive(Clone, Debug)]
struct ColumnsArg(Range<usize>);

impl FromStr for ColumnsArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bound = |text: &str| text.trim().parse().ok();
        text.split_once("..")
            .and_then(|(start, end)| Some(bound(start)?..bound(end)?))
            .filter(|columns| !columns.is_empty())
            .map(ColumnsArg)
            .ok_or_else(|| "expected a range of at least one column, as 5..581".to_owned())
    }
}

impl RelevanceArgs {
    /// Refuses options that nothing would heed where `kind` comes out, or where no patches are drawn.
    pub fn check_heeded(&self, kind: OutputKind, draws_patches: bool) -> Result<()> {
        let options = [
            ("--exclude-relevance", !self.exclude_relevance.is_empty()),
            ("--columns", self.columns.is_some()),
            ("--upsample", self.upsample.is_some()),
        ];
        let given = options.into_iter().find(|&(_, is_given)| is_given);
        if let Some((option, _)) = given.filter(|_| kind != OutputKind::Rows) {
            let got = format!("{kind:?}").to_lowercase();
            return Err(Error::argument(option, "--output-kind rows", got));
        }
        if self.grid.is_some() && !draws_patches && self.upsample.is_none() {
            let expected = "--upsample, or --heatmap of patches";
            return Err(Error::argument("--grid", expected, "neither"));
        }
        Ok(())
    }

    /// Whether all columns come out.
    pub fn keeps_columns(&self) -> bool {
        self.columns.is_none()
    }

    /// Checks tokens, columns and, for `--upsample`, the patches of every item of `job`.
    pub fn check(&self, job: &Job<'_>, special_tokens: usize) -> Result<()> {
        let tokens = job.problem.shape().tokens;
        if let Some(token) = self
            .exclude_relevance
            .iter()
            .find(|&&token| token >= tokens)
        {
            return Err(Error::argument(
                "--exclude-relevance",
                format!("some of the {tokens} tokens of {}", job.feature.place()),
                token.to_string(),
            ));
        }
        if let Some(ColumnsArg(columns)) = &self.columns
            && columns.end > tokens
        {
            return Err(Error::argument(
                "--columns",
                format!("some of the {tokens} columns of {}", job.feature.place()),
                format!("{}..{}", columns.start, columns.end),
            ));
        }
        if let Some(to) = self.upsample {
            check_size(to)?;
            for &window in job.problem.windows() {
                self.patches("--upsample", window, special_tokens)?;
            }
        }
        Ok(())
    }

    /// The shape of the relevance of `problem`: of its output, with the columns that are left.
    pub fn shape(&self, problem: &Problem) -> Vec<usize> {
        let mut shape = problem.output_shape();
        if let (Some(ColumnsArg(columns)), Some(last)) = (&self.columns, shape.last_mut()) {
            *last = columns.len();
        }
        shape
    }

    /// What is left of `relevance`, the rows of `items` of `problem`.
    pub fn apply<'a>(
        &self,
        problem: &Problem,
        items: &Range<usize>,
        relevance: &'a [f32],
    ) -> attention_rollout::Result<Cow<'a, [f32]>> {
        if self.exclude_relevance.is_empty() && self.columns.is_none() {
            return Ok(Cow::Borrowed(relevance));
        }
        let tokens = problem.shape().tokens;
        let mut left = Vec::new();
        for (window, row) in windowed_rows(problem, items, relevance, tokens) {
            let mut row = row.to_vec();
            let excluded = self.exclude_relevance.iter().copied();
            let excluded: Vec<usize> = excluded.filter(|&token| token < window.len).collect();
            if window.len > 0 && !self.exclude_relevance.is_empty() {
                let valid = &mut row[window.start..window.end()];
                post::exclude_from_relevance(valid, window.len, &excluded)?;
            }
            match &self.columns {
                None => left.extend(row),
                Some(ColumnsArg(columns)) => {
                    row.rotate_left(window.start);
                    left.extend(post::columns(&row, tokens, columns.clone())?);
                }
            }
        }
        Ok(Cow::Owned(left))
    }

    /// The pictures that `--upsample` makes of `relevance`, which [`apply`](RelevanceArgs::apply) left of `item`; none
    /// without the option.
    pub fn pictures(
        &self,
        problem: &Problem,
        item: usize,
        relevance: &[f32],
        special_tokens: usize,
    ) -> Result<Vec<f32>> {
        let place = || Error::rollout("--upsample");
        let width = self.shape(problem).last().copied().unwrap_or(0);
        let mut pictures = Vec::new();
        let Some(to) = self.upsample else {
            return Ok(pictures);
        };
        for (window, row) in windowed_rows(problem, &(item..item + 1), relevance, width) {
            let (patches, grid) = self.patches("--upsample", window, special_tokens)?;
            let size = (grid.height, grid.width);
            let valid = &row[self.first(window)..][..patches.end];
            let patches = post::grid(valid, valid.len(), patches.start, size).map_err(place())?;
            let to = (to.height, to.width);
            pictures.extend(post::upsample(&patches, size, to).map_err(place())?);
        }
        Ok(pictures)
    }

    /// Where the tokens that are left of an item begin in a row: columns are its first already.
    fn first(&self, window: Window) -> usize {
        match self.columns {
            Some(_) => 0,
            None => window.start,
        }
    }

    /// What is left of an item in its row: which tokens, and which of its valid tokens these are.
    pub fn valid(&self, window: Window) -> (Window, Range<usize>) {
        let left = match &self.columns {
            None => 0..window.len,
            Some(ColumnsArg(columns)) => columns.start.min(window.len)..columns.end.min(window.len),
        };
        let start = self.first(window);
        (
            Window {
                start,
                len: left.len(),
            },
            left,
        )
    }

    /// The patches of an item, counted in what is left of its row, and their grid: its columns, or else its tokens after the
    /// special ones. `option` asks for them.
    pub fn patches(
        &self,
        option: &'static str,
        window: Window,
        special_tokens: usize,
    ) -> Result<(Range<usize>, Extents)> {
        let patches = match &self.columns {
            Some(ColumnsArg(columns)) => 0..columns.len(),
            None => special_tokens.min(window.len)..window.len,
        };
        let counted = match &self.columns {
            Some(_) => format!("{} columns", patches.len()),
            None => format!("{} of {} tokens", patches.len(), window.len),
        };
        let side = patches.len().isqrt();
        match self.grid {
            Some(grid) if grid.height.checked_mul(grid.width) == Some(patches.len()) => {
                Ok((patches, grid))
            }
            Some(Extents { height, width }) => {
                let expected = match &self.columns {
                    Some(_) => "as many patches as --columns".to_owned(),
                    None => format!(
                        "as many patches as there are tokens after --special-tokens {special_tokens}"
                    ),
                };
                let got = format!("{height}x{width} for {counted}");
                Err(Error::argument("--grid", expected, got))
            }
            None if side > 0 && side * side == patches.len() => Ok((
                patches,
                Extents {
                    height: side,
                    width: side,
                },
            )),
            None => Err(Error::argument(
                option,
                "--tokens for text, --grid for patches, or a square number of patches",
                counted,
            )),
        }
    }
}

/// The rows of `items` of `problem`, each `width` long, with the window of its item.
fn windowed_rows<'a>(
    problem: &'a Problem,
    items: &Range<usize>,
    rows: &'a [f32],
    width: usize,
) -> impl Iterator<Item = (Window, &'a [f32])> {
    let windows = problem.windows()[items.clone()].iter();
    let windows = windows.flat_map(|&window| std::iter::repeat_n(window, problem.start_rows()));
    windows.zip(rows.chunks_exact(width.max(1)))
}
