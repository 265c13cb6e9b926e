//! `--heatmap`: a picture of one item's relevance or rollout.
//!
//! Everything that can be wrong with the options, the photo and the tokens is found before anything is computed.

mod canvas;
pub(crate) mod labels;
mod matrix;
pub(crate) mod photo;
mod scale;
mod tokens;

use std::io::Cursor;
use std::ops::Range;
use std::path::{Path, PathBuf};

use attention_rollout::{Output, Window};
use clap::{Args, ValueEnum};
use image::ImageFormat;
use image::imageops::FilterType;

use crate::error::{Error, Result};
use crate::extents::Extents;
use crate::job::Job;
use crate::pending::PendingFile;
use crate::relevance::RelevanceArgs;
use photo::Ground;

use scale::{ColorMap, ScaleOptions};

/// Most tokens a matrix or a text is drawn for.
const MAX_TOKENS: usize = 4096;

/// What to draw.
#[derive(Args, Clone, Debug)]
pub struct HeatmapArgs {
    /// Draw the result of one item as PNG: relevance over a photo or text, or the matrix
    #[arg(long, value_name = "FILE")]
    pub heatmap: Option<PathBuf>,

    /// Item of the batch to draw
    #[arg(long, default_value_t = 0, requires = "heatmap")]
    item: usize,

    /// Photo to draw over (PNG or JPEG), cropped as the model saw it
    #[arg(long, value_name = "FILE", requires = "heatmap")]
    pub image: Option<PathBuf>,

    /// Token labels as JSON: lists of strings, one list per item, alone or under "tokens"; one list alone is that of
    /// item 0
    #[arg(long, value_name = "FILE", requires = "heatmap")]
    pub tokens: Option<PathBuf>,

    /// Colours; inferno over a photo, heat for text and viridis for a matrix unless given
    #[arg(long, value_enum, requires = "heatmap")]
    colormap: Option<ColorMap>,

    /// End the colour scale at this percentile of the values drawn, so that outliers do not take all colours
    #[arg(
        long,
        value_name = "PERCENT",
        default_value = "98",
        value_parser = percentile,
        requires = "heatmap"
    )]
    clip_percentile: f64,

    /// How patches are enlarged to the photo, or to the size of --upsample
    #[arg(long, value_enum, default_value_t = Filter::Bilinear, requires = "heatmap")]
    filter: Filter,

    /// Add a colour bar below the photo (text and matrix always have one)
    #[arg(long, requires = "heatmap")]
    colorbar: bool,
}

impl HeatmapArgs {
    /// Whether relevance of patches is drawn, if rows come out.
    pub fn draws_patches(&self) -> bool {
        self.heatmap.is_some() && self.tokens.is_none()
    }
}

fn percentile(text: &str) -> Result<f64, String> {
    let percent = text.parse().ok();
    percent
        .filter(|percent| (1.0..=100.0).contains(percent))
        .ok_or_else(|| "expected a percentile from 1 to 100".to_owned())
}

/// `--filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Filter {
    Bilinear,
    Nearest,
}

/// A picture that waits for its values.
pub struct Drawing {
    file: PendingFile,
    /// Which item of its batch.
    pub item: usize,
    window: Window,
    tokens: usize,
    scale: ScaleOptions,
    kind: Kind,
}

enum Kind {
    Patches {
        /// Which of the values are patches.
        patches: Range<usize>,
        grid: Extents,
        ground: Ground,
        filter: FilterType,
        with_bar: bool,
    },
    Text {
        labels: Vec<String>,
    },
    Matrix {
        labels: Option<Vec<String>>,
    },
}

impl Kind {
    fn default_colors(&self) -> ColorMap {
        match self {
            Kind::Patches { .. } => ColorMap::Inferno,
            Kind::Text { .. } => ColorMap::Heat,
            Kind::Matrix { .. } => ColorMap::Viridis,
        }
    }
}

/// Makes ready what `--heatmap` asks for.
pub fn prepare(
    args: &HeatmapArgs,
    relevance: &RelevanceArgs,
    special_tokens: usize,
    jobs: &[Job<'_>],
) -> Result<Option<Drawing>> {
    let Some(path) = &args.heatmap else {
        return Ok(None);
    };
    let [job] = jobs else {
        let names: Vec<&str> = jobs.iter().map(|job| job.feature.prefix.as_str()).collect();
        let expected = format!("--feature to choose one of {names:?}");
        return Err(Error::argument("--heatmap", expected, "several features"));
    };
    let (batch, tokens) = (job.feature.shape.batch, job.feature.shape.tokens);
    if args.item >= batch {
        return Err(Error::argument(
            "--item",
            format!("less than the batch of {batch}"),
            args.item.to_string(),
        ));
    }
    let window = job.problem.windows()[args.item];
    if window.len == 0 {
        return Err(Error::argument(
            "--item",
            "an item with valid tokens",
            format!("item {}, whose attention_mask is 0", args.item),
        ));
    }
    let kind = kind(args, relevance, special_tokens, job, window)?;
    let (shown, _) = match job.problem.config().output {
        Output::Rows(_) => relevance.valid(window),
        Output::Matrix | Output::Cumulative => (window, 0..tokens),
    };
    Ok(Some(Drawing {
        file: PendingFile::create(path)?,
        item: args.item,
        window: shown,
        tokens,
        scale: ScaleOptions {
            colors: args.colormap.unwrap_or(kind.default_colors()),
            clip_percentile: args.clip_percentile,
        },
        kind,
    }))
}

fn kind(
    args: &HeatmapArgs,
    relevance: &RelevanceArgs,
    special_tokens: usize,
    job: &Job<'_>,
    window: Window,
) -> Result<Kind> {
    let refuse = |option, expected: &str, got: String| Err(Error::argument(option, expected, got));
    let is_matrix = match &job.problem.config().output {
        Output::Rows(_) if job.problem.start_rows() != 1 => {
            let got = format!("{} rows", job.problem.start_rows());
            return refuse("--heatmap", "one start row, or --output-kind matrix", got);
        }
        Output::Rows(_) => false,
        Output::Matrix => true,
        Output::Cumulative => {
            let expected = "--output-kind rows or matrix";
            return refuse("--heatmap", expected, "cumulative".to_owned());
        }
    };
    let is_text = args.tokens.is_some();
    if args.image.is_some() && (is_text || is_matrix) {
        let got = if is_text {
            "--tokens"
        } else {
            "--output-kind matrix"
        };
        return refuse("--image", "relevance rows of an image", got.to_owned());
    }
    if (is_text || is_matrix) && window.len > MAX_TOKENS {
        let expected = format!("at most {MAX_TOKENS} tokens to draw");
        return refuse("--heatmap", &expected, window.len.to_string());
    }
    let labels = match &args.tokens {
        Some(path) => Some(labels(path, args.item, window, job.feature.shape.tokens)?),
        None => None,
    };
    Ok(match labels {
        labels if is_matrix => Kind::Matrix { labels },
        Some(labels) => {
            let (_, left) = relevance.valid(window);
            if left.is_empty() {
                let expected = "columns that the item to draw has";
                return refuse("--columns", expected, format!("none of {}", window.len));
            }
            Kind::Text {
                labels: labels[left].to_vec(),
            }
        }
        None => {
            let (patches, grid) = relevance.patches("--heatmap", window, special_tokens)?;
            Kind::Patches {
                patches,
                grid,
                ground: ground(args, relevance)?,
                filter: match args.filter {
                    Filter::Bilinear => FilterType::Triangle,
                    Filter::Nearest => FilterType::Nearest,
                },
                with_bar: args.colorbar,
            }
        }
    })
}

/// The labels of the item's valid tokens.
fn labels(path: &Path, item: usize, window: Window, tokens: usize) -> Result<Vec<String>> {
    let (labels, count) = labels::read(path, item, tokens)?;
    match count {
        count if count == tokens => Ok(labels[window.start..window.end()].to_vec()),
        count if count == window.len => Ok(labels),
        got => Err(Error::input(
            path,
            format!(
                "item {item}: expected {tokens} tokens, or the {} valid ones, got {got}",
                window.len
            ),
        )),
    }
}

/// What patches are drawn on.
fn ground(args: &HeatmapArgs, relevance: &RelevanceArgs) -> Result<Ground> {
    if let Some(path) = &args.image {
        return photo::open(path).map(Ground::Photo);
    }
    match relevance.upsample {
        None => Ok(Ground::Squares),
        Some(to) => photo::check_size(to).map(|(width, height)| Ground::Blank { width, height }),
    }
}

impl Drawing {
    /// Draws the item's values: `[tokens]`, or `[tokens, tokens]` for a matrix. The file stays under its temporary
    /// name.
    pub fn draw(self, values: &[f32]) -> Result<PendingFile> {
        let Window { start, len } = self.window;
        let valid = |row: &[f32]| row[start..start + len].to_vec();
        let picture = match self.kind {
            Kind::Patches {
                patches,
                grid,
                ground,
                filter,
                with_bar,
            } => {
                let patches = &values[start..][patches];
                let scale = self.scale.scale(patches.iter().copied());
                photo::draw(patches, grid, &scale, &ground, filter, with_bar)
            }
            Kind::Text { labels } => tokens::draw(&labels, &valid(values), self.scale),
            Kind::Matrix { labels } => {
                let rows = values.chunks_exact(self.tokens).skip(start).take(len);
                let matrix: Vec<f32> = rows.flat_map(valid).collect();
                matrix::draw(&matrix, len, labels.as_deref(), self.scale)
            }
        };
        let mut png = Cursor::new(Vec::new());
        picture
            .write_to(&mut png, ImageFormat::Png)
            .expect("an RGB picture in memory can be encoded");
        let mut file = self.file;
        file.write_at(0, png.get_ref())?;
        Ok(file)
    }
}
