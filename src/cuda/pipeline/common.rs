//! What the launches of a problem have in common, whatever pipeline they make up.

use crate::cuda::kernel::{Columns, Fusion, MapSource, RowsStream, padded};
use crate::dtype::DType;
use crate::problem::Problem;

/// Extents and alignment that all launches of a problem share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cuda) struct Common {
    pub dtype: DType,
    pub tokens: u32,
    /// Tokens of the longest window.
    pub window_len: u32,
    /// Every row of every window starts at a multiple of 16 bytes if the maps' first elements do.
    pub aligned: bool,
}

impl Common {
    pub fn new(problem: &Problem) -> Self {
        let dtype = problem.dtype();
        let granule = 16 / dtype.size_bytes();
        let strides_aligned = problem.layers().all(|layer| {
            let strides = problem.strides(layer);
            [strides.batch, strides.head, strides.row]
                .iter()
                .all(|stride| stride.is_multiple_of(granule))
        });
        let windows = problem.windows();
        let starts_aligned = windows
            .iter()
            .all(|window| window.start.is_multiple_of(granule));
        Common {
            dtype,
            tokens: problem.shape().tokens as u32,
            window_len: problem.longest_window() as u32,
            aligned: strides_aligned && starts_aligned,
        }
    }

    /// Elements of one item's fused map.
    pub fn fused_floats(&self) -> usize {
        let len = self.window_len as usize;
        len * padded(len)
    }

    /// How the columns of the longest row of `source` are divided.
    pub fn columns(&self, source: MapSource, bases_aligned: bool) -> Columns {
        match source {
            MapSource::Layers => self.layer_columns(bases_aligned),
            MapSource::Fused(_) => self.fused_columns(),
        }
    }

    /// The same of the caller's layers.
    pub fn layer_columns(&self, bases_aligned: bool) -> Columns {
        Columns::new(self.dtype, self.window_len, self.aligned && bases_aligned)
    }

    /// The same of fused maps.
    pub fn fused_columns(&self) -> Columns {
        Columns::new(DType::F32, self.window_len, true)
    }
}

/// Elements of the output of `batch` items of `problem`.
pub(in crate::cuda) fn output_len(problem: &Problem, batch: usize) -> usize {
    problem.output_len() / problem.shape().batch.max(1) * batch
}

/// Tensors of a layer of `problem`.
pub(in crate::cuda) fn operands(problem: &Problem) -> usize {
    match (problem.queries_keys(), problem.config().gradients) {
        (Some(source), _) if source.has_lse() => 3,
        (Some(_), _) | (None, Some(_)) => 2,
        (None, None) => 1,
    }
}

/// Whether kernels apply cuts to the fused maps of `problem` when they read them: excluded tokens are taken out of maps from
/// which discarded entries are gone.
pub(in crate::cuda) fn cuts_when_read(problem: &Problem) -> bool {
    let config = problem.config();
    config.discard.is_some() && config.exclude_from_attention.is_empty()
}

/// Whether `rollout_rows` and `rows_stream` read fused maps of `problem` instead of the caller's layers: where these are no
/// maps, where something is
/// to be done to a fused map before the residual, and where no variant weighs maps that are fused so.
pub(in crate::cuda) fn rows_read_fused(problem: &Problem) -> bool {
    let config = problem.config();
    let fusion = Fusion::from(&config.head_fusion);
    problem.queries_keys().is_some()
        || config.discard.is_some()
        || !config.exclude_from_attention.is_empty()
        || config.gradients.is_some() && !RowsStream::weighs(fusion)
}

/// The same of `matrix_stream`, of which no variant weighs maps.
pub(in crate::cuda) fn matrix_reads_fused(problem: &Problem) -> bool {
    rows_read_fused(problem) || problem.config().gradients.is_some()
}
