//! Layers in host memory as they are staged: contiguous, without what lies outside the windows.

use crate::cuda::pipeline::operands;
use crate::layer::{HostLayer, HostTensor};
use crate::layout::{Shape, Strides};
use crate::problem::Problem;

/// Bytes of one tensor of a packed layer of `items` items.
pub(super) fn tensor_bytes(problem: &Problem, items: usize) -> usize {
    let Shape { heads, tokens, .. } = *problem.shape();
    items * heads * tokens * tokens * problem.dtype().size_bytes()
}

/// Bytes of one packed layer of `items` items: its tensors, one after the other.
pub(super) fn layer_bytes(problem: &Problem, items: usize) -> usize {
    operands(problem) * tensor_bytes(problem, items)
}

/// Bytes of the packed layers in the problem's range.
pub(super) fn map_bytes(packed: &Problem, items: usize) -> usize {
    packed.layers().len() * layer_bytes(packed, items)
}

/// Copies the windows of one layer's tensors to `staged`, each contiguous `[batch, heads, tokens, tokens]`.
pub(super) fn pack_layer(
    problem: &Problem,
    layer: usize,
    operands: &HostLayer<'_>,
    staged: &mut [u8],
) {
    let bytes = tensor_bytes(problem, problem.shape().batch);
    for (tensor, staged) in operands.operands().zip(staged.chunks_exact_mut(bytes)) {
        pack_tensor(problem, layer, tensor, staged);
    }
}

fn pack_tensor(problem: &Problem, layer: usize, tensor: &HostTensor<'_>, staged: &mut [u8]) {
    let Shape { heads, tokens, .. } = *problem.shape();
    let Strides { batch, head, row } = *problem.strides(layer);
    let size = problem.dtype().size_bytes();
    let bytes = tensor.bytes();
    let map_bytes = tokens * tokens * size;
    let items = problem.windows().iter().enumerate();
    for ((item, window), staged) in items.zip(staged.chunks_exact_mut(heads * map_bytes)) {
        for (index, staged) in staged.chunks_exact_mut(map_bytes).enumerate() {
            let map = item * batch + index * head;
            if row == tokens && window.len == tokens {
                staged.copy_from_slice(&bytes[map * size..][..map_bytes]);
                continue;
            }
            for i in window.start..window.end() {
                let source = (map + i * row + window.start) * size;
                let target = (i * tokens + window.start) * size;
                let len = window.len * size;
                staged[target..target + len].copy_from_slice(&bytes[source..source + len]);
            }
        }
    }
}
