//! What a plan decides and measures out before it runs: the form, the instruction set, and the workspace.

use std::fmt;
use std::ops::Range;

use crate::config::Output;
use crate::cpu::simd::Simd;
use crate::cpu::{discard, panels, product, rows};
use crate::error::Result;
use crate::layout::product as checked;
use crate::problem::Problem;

/// Items are shared by all threads only where each reads at least this much; below, the barriers would cost more than
/// they save.
const SHARED_ITEM_BYTES: usize = 1 << 20;

/// Maps a member takes on at a time: enough that taking them costs nothing, and that it mostly reads on where it was.
const CLAIM_BYTES: usize = 1 << 20;

/// The order of evaluation. Both give the same result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `r <- b r + a (r fused)`, last layer to first, for relevance rows only.
    Rows,
    /// `R <- Ahat R`, first layer to last.
    Product,
}

/// How a problem is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The order of evaluation.
    pub form: Form,
    /// The instruction set of the inner loops.
    pub simd: Simd,
    /// Items that do not divide evenly among the threads are computed by all threads together, a share of the rows
    /// each, instead of by one thread each.
    pub share_rest: bool,
}

impl Choice {
    /// The cheapest form for `problem`, on the widest instruction set of this machine.
    pub fn of(problem: &Problem) -> Self {
        let item_bytes = problem.map_bytes() / problem.shape().batch.max(1);
        Choice {
            form: Form::of(problem),
            simd: Simd::detect(),
            share_rest: item_bytes >= SHARED_ITEM_BYTES,
        }
    }
}

impl Form {
    /// The form that needs fewer multiplications.
    pub fn of(problem: &Problem) -> Self {
        let (rows, tokens) = (problem.start_rows() as f64, problem.shape().tokens as f64);
        let layers = problem.layers().len() as f64;
        let row_form = layers * rows * tokens * tokens;
        let product_form = (layers - 1.0) * tokens * tokens * tokens + rows * tokens * tokens;
        match problem.config().output {
            Output::Rows(_) if row_form <= product_form || rows <= 1.0 => Form::Rows,
            _ => Form::Product,
        }
    }
}

impl Form {
    /// `wanted` where `problem` can be computed so: matrices come from product form alone.
    pub(crate) fn possible(problem: &Problem, wanted: Form) -> Self {
        match problem.config().output {
            Output::Rows(_) => wanted,
            Output::Matrix | Output::Cumulative => Form::Product,
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Form::Rows => "row form",
            Form::Product => "product form",
        })
    }
}

/// Elements of each part of the workspace, for the largest item of one problem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Each member's: relevance, part and next (row form).
    pub relevance: usize,
    /// Each member's: a chunk of fused rows (row form).
    pub fused: usize,
    /// Each member's: weights of a block, and the sums of its rows (row form).
    pub weights: usize,
    /// Each member's, and once more for the team: a fused map to discard from.
    pub map: usize,
    /// Each member's: candidates to select from.
    pub candidates: usize,
    /// Each member's, and once more for the team: `Ahat` of one layer (product form).
    pub ahat: usize,
    /// Each member's, and once more for the team: rollouts that are not outputs (product form).
    pub spare: usize,
    /// The team's: parts of the new relevance (row form).
    pub parts: usize,
}

impl Sizes {
    fn of(problem: &Problem, form: Form) -> Result<Self> {
        let tokens = problem.windows().iter().map(|w| w.len).max().unwrap_or(0);
        let square = checked("workspace", &[tokens, tokens])?;
        let (map, candidates) = match problem.config().discard {
            Some(_) => (square, discard::scratch(tokens)),
            None => (0, 0),
        };
        let start_rows = problem.start_rows();
        Ok(match form {
            Form::Rows => {
                let relevance = checked("workspace", &[start_rows, tokens])?;
                let lens = || {
                    problem
                        .windows()
                        .iter()
                        .map(|w| w.len)
                        .filter(|&len| len > 0)
                };
                let deepest = lens()
                    .map(|len| rows::block_rows(problem, len))
                    .max()
                    .unwrap_or(0);
                Sizes {
                    relevance,
                    fused: lens()
                        .map(|len| rows::chunk_rows(start_rows, len) * len)
                        .max()
                        .unwrap_or(0),
                    weights: checked("workspace", &[start_rows + 1, deepest])?,
                    map,
                    candidates,
                    ahat: 0,
                    spare: 0,
                    parts: lens()
                        .map(|len| {
                            checked(
                                "workspace",
                                &[2, rows::blocks(problem, len).len(), start_rows, len],
                            )
                        })
                        .try_fold(0, |most, parts| parts.map(|parts| most.max(parts)))?,
                }
            }
            Form::Product => Sizes {
                ahat: square,
                map,
                candidates,
                spare: checked(
                    "workspace",
                    &[product::spares(problem), panels::elements(tokens)?],
                )?,
                ..Sizes::default()
            },
        })
    }
}

/// A problem with everything decided.
pub(crate) struct Prepared {
    pub problem: Problem,
    pub choice: Choice,
    pub sizes: Sizes,
    /// Items a member takes on at a time.
    pub items_per_claim: usize,
    /// Bytes of maps read, for all items.
    pub map_bytes: usize,
}

impl Prepared {
    /// Decides how `problem` runs on a team of `members`.
    pub fn new(problem: &Problem, choice: Choice, members: usize) -> Result<Self> {
        let form = Form::possible(problem, choice.form);
        let map_bytes = problem.map_bytes();
        let item_bytes = map_bytes / problem.shape().batch.max(1);
        Ok(Prepared {
            problem: problem.clone(),
            choice: Choice { form, ..choice },
            sizes: Sizes::of(problem, form)?,
            items_per_claim: (CLAIM_BYTES / item_bytes.max(1))
                .clamp(1, problem.shape().batch.div_ceil(4 * members).max(1)),
            map_bytes,
        })
    }

    /// All items.
    pub fn items(&self) -> Range<usize> {
        0..self.problem.shape().batch
    }

    /// Bytes of maps read for one item, on average.
    pub fn item_bytes(&self) -> usize {
        self.map_bytes / self.problem.shape().batch.max(1)
    }

    /// Of `items`, how many of the last ones the team computes together.
    pub fn team_items(&self, items: usize, members: usize) -> usize {
        if self.choice.share_rest {
            items % members
        } else {
            0
        }
    }
}
