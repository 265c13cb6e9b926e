//! The pipeline that streams the maps through a ring in shared memory and multiplies them on chip: the matrix.

use super::builder::{Builder, chunks, output};
use super::common::matrix_reads_fused;
use crate::cuda::kernel::RingMatrix;

impl Builder<'_> {
    /// The matrix, for the whole batch.
    pub(super) fn ring_matrix_of_batch(&mut self, ring_matrix: RingMatrix) {
        let problem = self.problem;
        let (source, chunk) = self.source(matrix_reads_fused(problem));
        let item_floats = problem.shape().tokens * problem.shape().tokens;
        for items in chunks(self.batch, chunk) {
            self.fill_source(source, &items);
            let out = output(items.start * item_floats);
            self.push(ring_matrix.launch(problem, source, &items, out));
        }
    }
}
