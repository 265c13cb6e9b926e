//! The other floor on the CPU, of what is made of matrix products: these, by the GEMM crate, and nothing else.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::thread_pool;
use crate::config::Output;
use crate::cpu::gemm::{self, MatrixMut, MatrixRef};
use crate::cpu::scores::{KEYS, ROWS as QUERIES, probed_rows};
use crate::cpu::simd::MOST_LANES;
use crate::error::Result;
use crate::memory::filled;
use crate::problem::Problem;
use crate::queries_keys::{Lse, QueriesKeys};

/// The products of a problem.
pub enum Products {
    /// Of whole matrices.
    Maps(MapProducts),
    /// Of queries and keys.
    Scores(ScoreProducts),
}

impl Products {
    /// The products of `problem`, for `threads` threads, where it is made of them and all are whole: a matrix of maps, or rows
    /// of queries and keys, neither causal nor padded.
    ///
    /// # Errors
    /// [`Error::Threads`](crate::Error::Threads), [`Error::HostMemory`](crate::Error::HostMemory).
    pub fn of(problem: &Problem, threads: NonZeroUsize) -> Result<Option<Self>> {
        let (config, tokens) = (problem.config(), problem.shape().tokens);
        if config.causal || problem.windows().iter().any(|window| window.len != tokens) {
            return Ok(None);
        }
        match (&config.output, problem.queries_keys()) {
            (Output::Matrix, None) => {
                let products = MapProducts::new(problem, threads)?;
                Ok(Some(Products::Maps(products)))
            }
            // Of what discards, every row of the last layer is made.
            (Output::Rows(_), Some(source))
                if source.sliding_windows.is_empty() && config.discard.is_none() =>
            {
                let products = ScoreProducts::new(problem, source, threads)?;
                Ok(Some(Products::Scores(products)))
            }
            _ => Ok(None),
        }
    }

    /// The time of all products.
    pub fn time(&mut self) -> Duration {
        match self {
            Products::Maps(products) => products.time(),
            Products::Scores(products) => products.time(),
        }
    }
}

/// The `layers - 1` products of `[batch, tokens, tokens]`, the operands in f32 and in cache as far as they fit. As in a
/// rollout, every layer is a factor of its own.
pub struct MapProducts {
    pool: rayon::ThreadPool,
    tokens: usize,
    /// The left factors of each item, one after the other.
    left: Vec<Vec<f32>>,
    panels: Vec<PanelProduct>,
}

/// Some columns of an item's state, `[tokens, columns]`, and where its next value goes. Columns never need each other.
struct PanelProduct {
    item: usize,
    columns: usize,
    state: Vec<f32>,
    next: Vec<f32>,
}

impl MapProducts {
    /// The products of `problem`, for `threads` threads: whole items where they share out evenly, else columns of them.
    ///
    /// # Errors
    /// [`Error::Threads`](crate::Error::Threads).
    fn new(problem: &Problem, threads: NonZeroUsize) -> Result<Self> {
        let (batch, tokens) = (problem.shape().batch, problem.shape().tokens);
        let parts = if batch.is_multiple_of(threads.get()) {
            1
        } else {
            threads.get()
        };
        let entry = 1.0 / tokens as f32;
        let panel = |item, part| {
            let columns = tokens * (part + 1) / parts - tokens * part / parts;
            PanelProduct {
                item,
                columns,
                state: vec![entry; tokens * columns],
                next: vec![f32::NAN; tokens * columns],
            }
        };
        let factors = (problem.layers().len() - 1) * tokens * tokens;
        let left = (0..batch).map(|_| filled("factors to multiply", factors, entry));
        let left = left.collect::<Result<_>>()?;
        Ok(MapProducts {
            pool: thread_pool(threads)?,
            tokens,
            left,
            panels: (0..batch)
                .flat_map(|item| (0..parts).map(move |part| panel(item, part)))
                .collect(),
        })
    }

    fn time(&mut self) -> Duration {
        let MapProducts {
            pool,
            tokens,
            left,
            panels,
        } = self;
        let compute = |panel: &mut PanelProduct| {
            for left in left[panel.item].chunks_exact(*tokens * *tokens) {
                panel.multiply(left, *tokens);
            }
        };
        let start = Instant::now();
        if pool.current_num_threads() == 1 {
            panels.iter_mut().for_each(compute);
        } else {
            pool.install(|| panels.par_iter_mut().for_each(compute));
        }
        start.elapsed()
    }
}

impl PanelProduct {
    /// `state = left * state`.
    fn multiply(&mut self, left: &[f32], tokens: usize) {
        let (columns, next) = (self.columns, &mut self.next);
        gemm::multiply(
            MatrixMut::new(next, columns, tokens, columns),
            false,
            MatrixRef::new(left, tokens, tokens, tokens),
            MatrixRef::new(&self.state, columns, tokens, columns),
        );
        std::mem::swap(&mut self.state, &mut self.next);
    }
}

/// The products `[keys, head_dim]` by `[head_dim, queries]` of a row form of queries and keys, in the blocks that it takes: of the
/// last layer those of the start rows, of the others all, of a recomputed LSE once more where not all keys are one block, and
/// of a given one those of the rows that are looked at.
/// Keys in f32; as in a rollout, blocks of queries pass over those of one head after the other.
pub struct ScoreProducts {
    pool: rayon::ThreadPool,
    head_dim: usize,
    tokens: usize,
    /// `[batch * heads, tokens, head_dim]`.
    keys: Vec<f32>,
    /// Queries of each block, of all layers.
    blocks: Vec<usize>,
    /// How often each product is computed.
    times: usize,
}

/// Rows of the last layer that carry weight: the start rows, and all that one is the mean of.
fn rows_of_last_layer(problem: &Problem) -> usize {
    let mut carries = vec![false; problem.shape().tokens];
    let mut weights = vec![0.0; problem.shape().tokens];
    for row in 0..problem.start_rows() {
        problem.start_weights(0, row, &mut weights);
        for (carries, weight) in carries.iter_mut().zip(&weights) {
            *carries |= *weight != 0.0;
        }
    }
    carries.into_iter().filter(|&carries| carries).count()
}

impl ScoreProducts {
    fn new(problem: &Problem, source: &QueriesKeys, threads: NonZeroUsize) -> Result<Self> {
        let (shape, layers) = (problem.shape(), problem.layers().len());
        let blocks = |queries: usize| {
            (0..queries)
                .step_by(QUERIES)
                .map(move |first| QUERIES.min(queries - first))
        };
        let all = (1..layers).flat_map(|_| blocks(shape.tokens));
        let last = rows_of_last_layer(problem);
        let probed = probed_rows(problem).min(shape.tokens);
        let probes = (0..layers).flat_map(|_| blocks(probed));
        let elements = shape.batch * shape.heads * shape.tokens * source.head_dim;
        Ok(ScoreProducts {
            pool: thread_pool(threads)?,
            head_dim: source.head_dim,
            tokens: shape.tokens,
            keys: filled("keys to multiply", elements, 0.5)?,
            blocks: probes.chain(all).chain(blocks(last)).collect(),
            times: match source.lse {
                Lse::Recomputed if shape.tokens > KEYS => 2,
                _ => 1,
            },
        })
    }

    /// Floating-point operations of the products, two for a multiplication and an addition.
    #[cfg(test)]
    fn operations(&self) -> usize {
        2 * self.times * self.blocks.iter().sum::<usize>() * self.keys.len()
    }

    fn time(&mut self) -> Duration {
        let ScoreProducts {
            head_dim,
            tokens,
            times,
            ..
        } = *self;
        let buffers = || {
            (
                vec![0.5; head_dim * QUERIES],
                vec![f32::NAN; KEYS.min(tokens) * QUERIES],
            )
        };
        let heads = self.keys.par_chunks_exact(tokens * head_dim);
        let all =
            heads.flat_map(|keys| self.blocks.par_iter().map(move |&queries| (keys, queries)));
        let multiply = |(packed, scores): &mut (Vec<f32>, Vec<f32>),
                        (keys, queries): (&[f32], usize)| {
            let stride = queries.next_multiple_of(MOST_LANES);
            for keys in keys.chunks(KEYS * head_dim) {
                let count = keys.len() / head_dim;
                for _ in 0..times {
                    gemm::multiply(
                        MatrixMut::new(scores, stride, count, stride),
                        false,
                        MatrixRef::new(keys, head_dim, count, head_dim),
                        MatrixRef::new(packed, stride, head_dim, stride),
                    );
                }
            }
        };
        let start = Instant::now();
        self.pool.install(|| all.for_each_init(buffers, multiply));
        start.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, LogBase, RolloutConfig, Shape, StartRows};

    #[test]
    fn every_item_is_multiplied_whole_however_it_is_shared_out() {
        let shape = Shape {
            layers: 3,
            batch: 3,
            heads: 1,
            tokens: 7,
        };
        let problem = Problem::new(shape, DType::F32, RolloutConfig::default()).unwrap();
        for threads in [1, 2, 3] {
            let mut products =
                MapProducts::new(&problem, NonZeroUsize::new(threads).unwrap()).unwrap();
            // Entries of 2 / 7 double with each of the two products.
            products
                .left
                .iter_mut()
                .for_each(|left| left.fill(2.0 / 7.0));
            products.time();
            let entries: Vec<f32> = products
                .panels
                .iter()
                .flat_map(|panel| panel.state.iter().copied())
                .collect();
            assert_eq!(entries.len(), 3 * 49, "{threads} threads");
            for entry in entries {
                assert!(
                    (entry - 4.0 / 7.0).abs() < 1e-6,
                    "{threads} threads: {entry}"
                );
            }
        }
    }

    #[test]
    fn products_of_scores_are_those_of_the_rows_that_are_computed() {
        let shape = Shape {
            layers: 3,
            batch: 2,
            heads: 4,
            tokens: 70,
        };
        let source = QueriesKeys::new(&shape, 16);
        let problem = Problem::builder(shape, DType::F32).queries_keys(source.clone());
        let problem = problem.build().unwrap();
        let of = Products::of(&problem, NonZeroUsize::MIN).unwrap();
        let Some(Products::Scores(mut products)) = of else {
            panic!("rows of queries and keys");
        };
        // Two layers whole, and one row of the last, for each of 8 heads.
        assert_eq!(products.operations(), 2 * 8 * 16 * 70 * (2 * 70 + 1));
        assert!(products.time() > Duration::ZERO);
        let given = QueriesKeys {
            lse: Lse::Given(LogBase::E),
            ..source.clone()
        };
        let problem = Problem::builder(shape, DType::F32).queries_keys(given);
        let problem = problem.build().unwrap();
        let of = Products::of(&problem, NonZeroUsize::MIN).unwrap();
        let Some(Products::Scores(products)) = of else {
            panic!("rows of queries and keys, LSE given");
        };
        // And half of 64 rows of each item and layer.
        assert_eq!(
            products.operations(),
            2 * 8 * 16 * 70 * (2 * 70 + 1 + 3 * 32)
        );
        let mean = RolloutConfig {
            output: Output::Rows(StartRows::Mean),
            ..RolloutConfig::default()
        };
        let problem = Problem::builder(shape, DType::F32)
            .config(mean)
            .queries_keys(source);
        let problem = problem.build().unwrap();
        let of = Products::of(&problem, NonZeroUsize::MIN).unwrap();
        let Some(Products::Scores(products)) = of else {
            panic!("the mean of rows of queries and keys");
        };
        assert_eq!(products.operations(), 2 * 8 * 16 * 70 * (3 * 70));
    }
}
