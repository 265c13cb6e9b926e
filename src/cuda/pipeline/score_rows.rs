//! The pipeline that reads queries and keys and writes no map: rows, from the last layer to the first.

use super::builder::{Builder, output, split};
use crate::cuda::evidence::Evidence;
use crate::cuda::kernel::{
    AddResidual, MAX_SCORE_LAYERS, Matrices, ResidualOperands, RowSum, ScoreOperands, ScoreRows,
    ScoreSplits, SumScores, sum_floats,
};
use crate::cuda::options::LayerOrder;
use crate::cuda::schedule::l2_budget;
use crate::queries_keys::QueriesKeys;

impl Builder<'_> {
    /// Start rows times all layers of `source`, for the whole batch.
    pub(super) fn score_rows_of_batch(&mut self, source: &QueriesKeys, splits: ScoreSplits) {
        let (problem, window_len) = (self.problem, self.common.window_len);
        let (range, items) = (problem.layers(), 0..self.batch);
        let (rows, len, heads) = (
            problem.start_rows(),
            window_len as usize,
            problem.shape().heads,
        );
        let floats = self.room * rows * len;
        let partials = self.buffer(splits.parts() as usize * floats);
        let between: Vec<_> = (1..range.len().min(3))
            .map(|_| self.buffer(floats))
            .collect();
        // Sums of as many layers as stay in L2, one launch for all of them.
        let layer_floats = sum_floats(problem, 1, self.room, window_len);
        let layer_bytes = layer_floats.map_or(1, |floats| (size_of::<f32>() * floats).max(1));
        let layers = (l2_budget(self.limits) / layer_bytes).clamp(1, MAX_SCORE_LAYERS);
        let top_down = self.order == Some(LayerOrder::TopDown);
        let layers = if top_down { 1 } else { layers.min(range.len()) };
        let sums = layer_floats.map(|floats| self.buffer(layers * floats));
        let (dtype, kernel) = (problem.dtype(), ScoreRows::of(problem, splits));
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
                self.push(kernel.launch(&operands, splits, relevance, partials));
                let last = layer == range.start;
                let out = match last {
                    true => output(0),
                    false => between[(range.end - layer) % between.len()],
                };
                let residual = ResidualOperands {
                    relevance,
                    partials: (partials, splits.parts()),
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
