//! A problem that is told by its extents, without any maps.

use attention_rollout::{DType, Problem, Shape};
use clap::Args;

use crate::error::Result;
use crate::job::problem;
use crate::options::{ConfigArgs, OutputKind, SelectArgs};
use crate::scores::ScoreExtentsArgs;
use crate::tensors::Tensors;

#[derive(Args, Debug)]
pub struct ProblemArgs {
    /// Layers of the model
    #[arg(long)]
    layers: usize,

    /// Items of a batch
    #[arg(long, default_value_t = 1)]
    batch: usize,

    /// Heads of a layer; 1 where the maps are fused already
    #[arg(long)]
    heads: usize,

    /// Tokens of an item
    #[arg(long)]
    tokens: usize,

    /// Element type of the maps: f32 | f16 | bf16
    #[arg(long, default_value = "f32")]
    dtype: DType,

    #[command(flatten)]
    scores: ScoreExtentsArgs,

    /// What comes out: relevance of start rows, the whole rollout, or the rollout after each layer
    #[arg(long, value_enum, default_value_t = OutputKind::Rows)]
    output_kind: OutputKind,

    #[command(flatten)]
    config: ConfigArgs,
}

impl ProblemArgs {
    /// The problem.
    pub fn problem(&self) -> Result<Problem> {
        let shape = Shape {
            layers: self.layers,
            batch: self.batch,
            heads: self.heads,
            tokens: self.tokens,
        };
        self.config.check_heeded(Some(self.output_kind), false)?;
        self.config.check_rows_for([""].into_iter())?;
        let feature = self.scores.feature(shape, self.dtype, &self.config.scores);
        problem(
            &Tensors::none(),
            &feature,
            &SelectArgs::default(),
            &self.config,
            self.output_kind,
        )
    }
}
