//! The candidates: pipelines that can compute a problem, with their open choices made.

use super::Workload;
use crate::config::Output;
use crate::cuda::kernel::{
    Arithmetic, Columns, Form, Kernel, MAX_LAYERS_PER_LAUNCH, MAX_PRODUCTS, MatrixStream, Reading,
    RingMatrix, RolloutRows, SplitProduct, Splits,
};
use crate::cuda::launch::Geometry;
use crate::cuda::options::{LayerOrder, Precision};
use crate::cuda::pipeline::{Pipeline, cuts_when_read};

/// Blocks of a cluster that may share an item's rows. More than 8 need not be available.
pub(super) const ROWS_CLUSTERS: [u32; 3] = [2, 4, 8];
/// Largest entry that the scaled f16 arithmetics take: `2^11 * 31` is below the largest f16.
const F16_RANGE: f64 = 31.0;

impl Workload<'_> {
    /// Every sensible pipeline with its estimated time in microseconds. The product pipeline is always among them.
    pub(super) fn candidates(&self, precision: Precision) -> Vec<(f64, Pipeline)> {
        let arithmetic = self.arithmetic(precision);
        let mut pipelines = vec![self.product(arithmetic)];
        if let Some(rows) = self.rows_held() {
            let splits = self.rows_splits();
            pipelines.extend(splits.map(|splits| Pipeline::Rows { rows, splits }));
        }
        pipelines.extend(self.ring_rows());
        pipelines.extend(self.score_rows());
        pipelines.extend(self.score_stream());
        pipelines.extend(self.short_rows());
        let limit = self.matrix_tokens().next();
        pipelines.extend(limit.and_then(|tokens| self.ring_matrix(arithmetic, tokens)));
        pipelines.extend(self.tree());
        pipelines.retain(|&pipeline| self.can_launch(pipeline));
        pipelines
            .into_iter()
            .map(|pipeline| (self.microseconds(pipeline).value, pipeline))
            .collect()
    }

    /// The candidates with any compile-time choices that would do.
    pub(super) fn siblings(&self) -> impl Iterator<Item = Pipeline> {
        let in_range = |&arithmetic: &Arithmetic| {
            !arithmetic.needs_bounded_entries() || self.growth_bound <= F16_RANGE
        };
        let arithmetics = move || Arithmetic::ALL.into_iter().filter(in_range);
        let rows = RolloutRows::ROWS.into_iter().flat_map(|rows| {
            let splits = self.rows_splits();
            splits.map(move |splits| Pipeline::Rows { rows, splits })
        });
        let matrices = self.matrix_tokens().flat_map(move |tokens| {
            let ring_matrix = move |arithmetic| self.ring_matrix(arithmetic, tokens);
            arithmetics().filter_map(ring_matrix)
        });
        let products = arithmetics().map(|arithmetic| self.product(arithmetic));
        let all = rows.chain(self.ring_rows()).chain(matrices).chain(products);
        let kernels = SplitProduct::ALL;
        let trees = self.tree().into_iter().flat_map(move |tree| {
            let of_one = kernels.map(|kernel| Pipeline::Tree(Some(kernel)));
            of_one.into_iter().chain([tree])
        });
        let all = all.chain(trees);
        all.filter(|&pipeline| self.can_launch(pipeline))
    }

    pub(super) fn product(&self, arithmetic: Arithmetic) -> Pipeline {
        let form = match self.problem.config().output {
            Output::Rows(_) => Form::Rows,
            Output::Matrix | Output::Cumulative => Form::Matrix,
        };
        Pipeline::Product { arithmetic, form }
    }

    /// How products are computed unless a variant is forced.
    fn arithmetic(&self, precision: Precision) -> Arithmetic {
        let bounded = self.growth_bound <= F16_RANGE;
        match (self.limits.arch >= 80, bounded, precision) {
            (false, ..) => Arithmetic::F32,
            (true, false, _) => Arithmetic::Tf32x3,
            (true, true, Precision::F32) => Arithmetic::F16x3,
            (true, true, Precision::Half) => Arithmetic::F16x2,
        }
    }

    /// The start rows that the smallest fitting `rollout_rows` variant holds.
    fn rows_held(&self) -> Option<u32> {
        let rows = self.problem.start_rows();
        let mut held = RolloutRows::ROWS.into_iter();
        held.find(|&held| rows <= held as usize)
    }

    /// The token limits of the fitting `matrix_stream` variants, the smallest first.
    fn matrix_tokens(&self) -> impl Iterator<Item = u32> + use<> {
        let is_matrix = self.problem.config().output == Output::Matrix;
        let len = self.common.window_len;
        let fits = move |&limit: &u32| is_matrix && len <= limit;
        MatrixStream::TOKENS.into_iter().filter(fits)
    }

    /// The matrix by the variant of so many tokens.
    fn ring_matrix(&self, arithmetic: Arithmetic, tokens: u32) -> Option<Pipeline> {
        let Reading { dtype, fusion, .. } = self.reading(self.matrix_fused_first);
        let kernel = MatrixStream {
            dtype,
            arithmetic,
            tokens,
            fusion,
        };
        let one_launch = self.problem.layers().len() <= MAX_LAYERS_PER_LAUNCH;
        if !MatrixStream::exists(arithmetic, tokens) || !one_launch {
            return None;
        }
        let heads = match self.matrix_fused_first {
            true => 1,
            false => self.problem.shape().heads as u32,
        };
        let extents = [self.common.window_len, heads];
        let ring = kernel.ring(extents, self.limits.shared_bytes_per_block, self.grouped)?;
        let batch = self.batch as u32;
        let sets = match self.grouped {
            true => batch,
            false => batch
                .min(self.limits.multiprocessors * ring.blocks / kernel.cluster())
                .max(1),
        };
        Some(Pipeline::RingMatrix(RingMatrix { kernel, sets, ring }))
    }

    /// The tree of products of split factors, where it can be: its factors are fused maps as they are, and never normalised.
    fn tree(&self) -> Option<Pipeline> {
        let config = self.problem.config();
        let can = self.problem.start_rows() == 0
            && self.problem.layers().len() > 1
            && !self.matrix_fused_first
            && !config.normalize_rows
            && self.order.is_none()
            && self.growth_bound <= F16_RANGE;
        can.then_some(Pipeline::Tree(None))
    }

    /// How a kernel reads the maps, which are fused or not.
    pub(super) fn reading(&self, fused: bool) -> Reading {
        match fused {
            true => Reading::FUSED,
            false => Reading::of_layers(self.problem),
        }
    }

    pub(super) fn rows(&self, rows: u32) -> RolloutRows {
        let Reading {
            dtype,
            fusion,
            gradients,
        } = self.reading(self.fused_first);
        RolloutRows {
            dtype,
            rows,
            fusion,
            gradients,
            normalize: self.problem.config().normalize_rows,
            discard: cuts_when_read(self.problem),
        }
    }

    /// Whether the kernels of `pipeline` can be launched for the problem on the device at all.
    fn can_launch(&self, pipeline: Pipeline) -> bool {
        // Others keep the fused maps of all layers.
        let one_by_one = matches!(
            pipeline,
            Pipeline::Product { .. } | Pipeline::ScoreRows(_) | Pipeline::ShortRows(_)
        );
        if self.order == Some(LayerOrder::TopDown) && !one_by_one {
            return false;
        }
        match pipeline {
            Pipeline::Rows { rows, splits } => {
                let one_tile = self.rows_columns().tiles == 1;
                let start_rows = self.problem.start_rows();
                (1..=rows as usize).contains(&start_rows)
                    && (rows == 1 || !self.rows(rows).gradients)
                    && (one_tile || !self.problem.config().normalize_rows)
                    && (!splits.clustered || one_tile && self.limits.clusters && !self.grouped)
                    && self.rows_shared_bytes(rows, splits) <= self.limits.shared_bytes_per_block
            }
            Pipeline::RingMatrix(RingMatrix { kernel, .. }) => {
                let clustered = kernel.cluster() > 1;
                kernel.variant().runs_on(self.limits) && !(clustered && self.grouped)
            }
            Pipeline::RingRows(ring_rows) => ring_rows.kernel.variant().runs_on(self.limits),
            Pipeline::ScoreRows(_) | Pipeline::ScoreStream(_) | Pipeline::ShortRows(_) => true,
            Pipeline::Tree(kernel) => {
                let can = |kernel: SplitProduct| {
                    // Blocks along y and z, and items of products along x.
                    let tiles = kernel.tiles(self.common.window_len);
                    let items = self.batch * MAX_PRODUCTS as f64;
                    (!kernel.apart || !self.grouped)
                        && kernel.variant().runs_on(self.limits)
                        && tiles.iter().all(|&side| side <= Geometry::MAX_SIDE)
                        && items <= f64::from(i32::MAX)
                };
                let together = SplitProduct::TOGETHER.into_iter();
                kernel.map_or_else(|| together.clone().all(can), can)
            }
            Pipeline::Product { arithmetic, .. } => self.limits.arch >= arithmetic.arch(),
        }
    }

    /// The columns of `rollout_rows`. The caller's addresses are not known yet, so the worst is assumed.
    fn rows_columns(&self) -> Columns {
        self.columns(false)
    }

    pub(super) fn columns(&self, bases_aligned: bool) -> Columns {
        match self.fused_first {
            true => self.common.fused_columns(),
            false => self.common.layer_columns(bases_aligned),
        }
    }

    fn rows_shared_bytes(&self, rows: u32, splits: Splits) -> usize {
        let kernel = self.rows(rows);
        let (start_rows, tokens) = (self.problem.start_rows() as u32, self.common.tokens);
        // Either may be launched, by the addresses of a run.
        let shared_bytes = [false, true].map(|bases_aligned| {
            kernel.shared_bytes(start_rows, tokens, self.columns(bases_aligned), splits)
        });
        shared_bytes.into_iter().max().unwrap_or(0) as usize
    }

    /// Ways to divide an item's rows: not at all; among the fewest blocks that do with 1, 2, 3, 4, 6, 8, 12, ... steps of
    /// their warps each; among clusters.
    fn rows_splits(&self) -> impl Iterator<Item = Splits> + use<> {
        let len = self.common.window_len.max(1);
        // Addresses are multiples of 16 bytes, as those of allocations are.
        let groups = self.columns(true).row_groups();
        let steps = (0..).flat_map(|power: u32| [2 << power, 3 << power]);
        let apart = std::iter::once(1)
            .chain(steps)
            .map(move |steps: u32| len.div_ceil(groups * steps))
            .take_while(|&blocks| blocks > 1);
        let apart = apart.chain([1]).map(|blocks| (blocks, false));
        let together = ROWS_CLUSTERS.into_iter().map(|blocks| (blocks, true));
        apart
            .chain(together)
            .map(|(blocks, clustered)| Splits { blocks, clustered })
    }
}
