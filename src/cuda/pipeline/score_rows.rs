//! The pipeline that reads queries and keys and writes no map: rows, from the last layer to the first.

use super::builder::{Builder, output, split};
use crate::cuda::address::Address;
use crate::cuda::evidence::Evidence;
use crate::cuda::kernel::{
    AddResidual, MAX_SCORE_LAYERS, Matrices, ResidualOperands, RowSum, ScoreOperands, ScoreRows,
    ScoreSplits, ShortRows, SumScores, sum_floats,
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
        // Sums of as many layers as stay in L2, one launch for all of them.
        let layer_floats = sum_floats(problem, 1, self.room, window_len);
        let layer_floats = layer_floats.filter(|_| product.takes_sums());
        let layer_bytes = layer_floats.map_or(1, |floats| (size_of::<f32>() * floats).max(1));
        let layers = (l2_budget(self.limits) / layer_bytes).clamp(1, MAX_SCORE_LAYERS);
        let top_down = self.order == Some(LayerOrder::TopDown);
        let layers = if top_down { 1 } else { layers.min(range.len()) };
        let sums = layer_floats.map(|floats| self.buffer(layers * floats));
        let dtype = problem.dtype();
        let Evidence { masses, probes, .. } =
            Evidence::new(problem, self.pipeline, self.room, window_len);
        let mut relevance = self.start(0);
        for group in split(range.clone(), layers).iter().rev() {
            let operands = ScoreOperands {
                problem,
                source,
                layers: group,
                items: &items,
                window_len,
                sums,
            };
            if sums.is_some() {
                self.push(SumScores { dtype }.launch(&operands));
            }
            if let Some(probes) = probes {
                let to = probes.place(problem, group, &items);
                self.push(SumScores { dtype }.probe(&operands, to));
            }
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
}
