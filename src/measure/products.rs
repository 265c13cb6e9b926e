//! The other floor of the product form on the CPU: its matrix products, by the GEMM crate, and nothing else.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::thread_pool;
use crate::cpu::gemm::{self, MatrixMut, MatrixRef};
use crate::error::Result;
use crate::problem::Problem;

/// The `layers - 1` products of `[batch, tokens, tokens]`, the operands in f32 and in cache as far as they fit. As in a
/// rollout, every layer is a factor of its own.
pub struct Products {
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

impl Products {
    /// The products of `problem`, for `threads` threads: whole items where they share out evenly, else columns of them.
    ///
    /// # Errors
    /// [`Error::Threads`](crate::Error::Threads).
    pub fn new(problem: &Problem, threads: NonZeroUsize) -> Result<Self> {
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
        Ok(Products {
            pool: thread_pool(threads)?,
            tokens,
            left: vec![vec![entry; (problem.layers().len() - 1) * tokens * tokens]; batch],
            panels: (0..batch)
                .flat_map(|item| (0..parts).map(move |part| panel(item, part)))
                .collect(),
        })
    }

    /// The time of all products.
    pub fn time(&mut self) -> Duration {
        let Products {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, RolloutConfig, Shape};

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
                Products::new(&problem, NonZeroUsize::new(threads).unwrap()).unwrap();
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
}
