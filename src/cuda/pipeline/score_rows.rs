//! The pipelines that read queries and keys and write no map: rows, from the last layer to the first.

use std::ops::Range;

use super::builder::{Builder, output, split};
use crate::cuda::address::{Address, Base};
use crate::cuda::evidence::Evidence;
use crate::cuda::kernel::{
    AddResidual, MAX_SCORE_LAYERS, Matrices, ResidualOperands, RowSum, ScoreOperands, ScoreRows,
    ScoreSets, ScoreSplits, ShortRows, StreamedRow, SumScores, sum_floats,
};
use crate::cuda::launch::Launch;
use crate::cuda::options::LayerOrder;
use crate::cuda::schedule::l2_budget;
use crate::problem::Problem;

/// What multiplies rows by a layer, and leaves parts of the product.
#[derive(Clone, Copy)]
pub(super) enum LayerProduct {
    /// `score_rows`.
    Tiles(ScoreSplits),
    /// `score_short`.
    Short(ShortRows),
}

impl LayerProduct {
    fn parts(self, problem: &Problem) -> u32 {
        match self {
            LayerProduct::Tiles(splits) => splits.parts(),
            LayerProduct::Short(rows) => rows.parts(problem),
        }
    }

    /// Whether the sums of rows are there before, unless the LSE is given.
    fn takes_sums(self) -> bool {
        matches!(self, LayerProduct::Tiles(_))
    }

    fn launch(
        self,
        operands: &ScoreOperands<'_>,
        relevance: Matrices,
        partials: Address,
    ) -> Launch {
        match self {
            LayerProduct::Tiles(splits) => {
                let kernel = ScoreRows::of(operands.problem, splits);
                kernel.launch(operands, splits, relevance, partials)
            }
            LayerProduct::Short(rows) => rows.launch(operands, relevance, partials),
        }
    }
}

impl Builder<'_> {
    /// Start rows times all layers of queries and keys, for the whole batch.
    pub(super) fn score_rows_of_batch(&mut self, product: LayerProduct) {
        let Some(source) = self.problem.queries_keys() else {
            return;
        };
        let (problem, window_len) = (self.problem, self.common.window_len);
        let (range, items) = (problem.layers(), 0..self.batch);
        let (rows, len, heads) = (
            problem.start_rows(),
            window_len as usize,
            problem.shape().heads,
        );
        let floats = self.room * rows * len;
        let parts = product.parts(problem);
        let partials = self.buffer(parts as usize * floats);
        let between: Vec<_> = (1..range.len().min(3))
            .map(|_| self.buffer(floats))
            .collect();
        let top_down = self.order == Some(LayerOrder::TopDown);
        let (groups, sums) = self.score_groups(product.takes_sums());
        let masses = Evidence::new(problem, self.pipeline, self.room, window_len).masses;
        let mut relevance = self.start(0);
        for group in groups.iter().rev() {
            let operands = ScoreOperands {
                problem,
                source,
                layers: group,
                items: &items,
                window_len,
                sums,
            };
            self.begin_score_group(&operands);
            for layer in group.clone().rev() {
                let skipped = (layer - group.start) * items.len() * heads * len;
                let operands = ScoreOperands {
                    layers: &(layer..layer + 1),
                    sums: sums.map(|sums| sums + size_of::<RowSum>() * skipped),
                    ..operands
                };
                self.push(product.launch(&operands, relevance, partials));
                let last = layer == range.start;
                let out = match last {
                    true => output(0),
                    false => between[(range.end - layer) % between.len()],
                };
                let residual = ResidualOperands {
                    relevance,
                    partials: (partials, parts),
                    out,
                    last,
                    masses: masses.map(|masses| masses.place(problem, operands.layers, &items).0),
                };
                self.push(AddResidual.launch(&operands, &residual));
                relevance = Matrices::new(out, rows * len, len);
                if top_down {
                    self.pushes.push(self.steps.len());
                }
            }
        }
    }

    /// One start row times all layers, for the whole batch: a launch for as many as it takes.
    pub(super) fn score_stream_of_batch(&mut self, sets: ScoreSets) {
        let Some(source) = self.problem.queries_keys() else {
            return;
        };
        let (problem, window_len, items) = (self.problem, self.common.window_len, 0..self.batch);
        self.zeroed(Base::Exchange, sets.exchange_bytes(window_len));
        let (groups, sums) = self.score_groups(true);
        let len = window_len as usize;
        let between: Vec<_> = (1..groups.len().min(3))
            .map(|_| self.buffer(self.room * len))
            .collect();
        let masses = Evidence::new(problem, self.pipeline, self.room, window_len).masses;
        let mut start = self.start(0);
        for (index, layers) in groups.iter().rev().enumerate() {
            let operands = ScoreOperands {
                problem,
                source,
                layers,
                items: &items,
                window_len,
                sums,
            };
            self.begin_score_group(&operands);
            let last = index + 1 == groups.len();
            let out = match last {
                true => output(0),
                false => between[index % 2],
            };
            let streamed = StreamedRow {
                start,
                out,
                last,
                masses: masses.map(|masses| masses.place(problem, layers, &items)),
            };
            self.push(sets.launch(&operands, &streamed));
            start = Matrices::new(out, len, len);
        }
    }

    /// The layers in groups, each with one launch for the sums of its rows where the LSE is not given and `takes_sums`: as
    /// many as stay in L2. And where these sums are.
    fn score_groups(&mut self, takes_sums: bool) -> (Vec<Range<usize>>, Option<Address>) {
        let range = self.problem.layers();
        let layer_floats = sum_floats(self.problem, 1, self.room, self.common.window_len);
        let layer_floats = layer_floats.filter(|_| takes_sums);
        let layer_bytes = layer_floats.map_or(1, |floats| (size_of::<f32>() * floats).max(1));
        let layers = (l2_budget(self.limits) / layer_bytes).clamp(1, MAX_SCORE_LAYERS);
        let top_down = self.order == Some(LayerOrder::TopDown);
        let layers = if top_down { 1 } else { layers.min(range.len()) };
        let sums = layer_floats.map(|floats| self.buffer(layers * floats));
        (split(range, layers.max(1)), sums)
    }

    /// What comes before the products with a group of layers: the sums of rows, and their probes.
    fn begin_score_group(&mut self, operands: &ScoreOperands<'_>) {
        let problem = self.problem;
        let kernel = SumScores {
            dtype: problem.dtype(),
        };
        if operands.sums.is_some() {
            self.push(kernel.launch(operands));
        }
        let evidence = Evidence::new(problem, self.pipeline, self.room, self.common.window_len);
        if let Some(probes) = evidence.probes {
            let to = probes.place(problem, operands.layers, operands.items);
            self.push(kernel.probe(operands, to));
        }
    }
}
