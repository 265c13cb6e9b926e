//! Layers in host memory as they are staged: contiguous, without what lies outside the windows.

use std::ops::Range;

use crate::error::Result;
use crate::layer::{HostLayer, HostTensor, Layer};
use crate::layout::{Shape, Strides};
use crate::problem::Problem;
use crate::queries_keys::TokenStrides;

/// Tensors of several types lie one after the other: the next layer's begin at multiples of this, as those of queries and
/// keys do anyway.
const ALIGNMENT: usize = 16;

/// How a packed layer lies in memory: its tensors, one after the other.
pub(super) struct Packing {
    /// Bytes of one item of each tensor.
    item_bytes: Vec<usize>,
    alignment: usize,
}

impl Packing {
    /// That of the layers of `packed`, whose tensors are contiguous.
    pub fn new(packed: &Problem) -> Result<Self> {
        let operands = packed.operands(packed.layers().start)?;
        let item_bytes = operands
            .operands()
            .map(|operand| operand.batch_stride * operand.dtype.size_bytes());
        Ok(Packing {
            item_bytes: item_bytes.collect(),
            alignment: match packed.queries_keys() {
                Some(_) => ALIGNMENT,
                None => 1,
            },
        })
    }

    /// Where the tensors of a layer of `items` items lie in it.
    pub fn tensors(&self, items: usize) -> impl Iterator<Item = Range<usize>> {
        self.item_bytes.iter().scan(0, move |end, &bytes| {
            let start = *end;
            *end += items * bytes;
            Some(start..*end)
        })
    }

    /// Bytes of one layer of `items` items.
    pub fn layer_bytes(&self, items: usize) -> usize {
        let bytes = items * self.item_bytes.iter().sum::<usize>();
        bytes.next_multiple_of(self.alignment)
    }

    /// Bytes of the layers in the range of `packed`.
    pub fn bytes(&self, packed: &Problem, items: usize) -> usize {
        packed.layers().len() * self.layer_bytes(items)
    }
}

/// Copies the windows of one layer's tensors to `staged`, each contiguous.
pub(super) fn pack_layer(
    problem: &Problem,
    layer: usize,
    operands: &HostLayer<'_>,
    packing: &Packing,
    staged: &mut [u8],
) {
    let mut places = packing.tensors(problem.shape().batch);
    let mut pack = |tensor: &HostTensor<'_>, pack: &dyn Fn(&HostTensor<'_>, &mut [u8])| {
        if let Some(place) = places.next() {
            pack(tensor, &mut staged[place]);
        }
    };
    match (operands, problem.queries_keys()) {
        (Layer::QueriesKeys { queries, keys, lse }, Some(source)) => {
            let strides = source.strides(problem.shape(), layer);
            let (heads, dim) = (problem.shape().heads, source.head_dim);
            pack(queries, &|tensor, staged| {
                pack_tokens(problem, strides.queries, [heads, dim], tensor, staged);
            });
            pack(keys, &|tensor, staged| {
                pack_tokens(
                    problem,
                    strides.keys,
                    [source.key_heads, dim],
                    tensor,
                    staged,
                );
            });
            if let Some(lse) = lse {
                pack(lse, &|tensor, staged| {
                    pack_tokens(problem, strides.lse, [heads, 1], tensor, staged);
                });
            }
        }
        (maps, _) => {
            for tensor in maps.operands() {
                pack(tensor, &|tensor, staged| {
                    pack_maps(problem, layer, tensor, staged);
                });
            }
        }
    }
}

/// Maps, or their gradients, `[batch, heads, tokens, tokens]`.
fn pack_maps(problem: &Problem, layer: usize, tensor: &HostTensor<'_>, staged: &mut [u8]) {
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

/// What each token of each head has, `[batch, heads, tokens, width]`.
fn pack_tokens(
    problem: &Problem,
    strides: TokenStrides,
    [heads, width]: [usize; 2],
    tensor: &HostTensor<'_>,
    staged: &mut [u8],
) {
    let tokens = problem.shape().tokens;
    let size = tensor.dtype().size_bytes();
    let (bytes, token_bytes) = (tensor.bytes(), width * size);
    let head_bytes = tokens * token_bytes;
    let items = problem.windows().iter().enumerate();
    for ((item, window), staged) in items.zip(staged.chunks_exact_mut(heads * head_bytes)) {
        for (head, staged) in staged.chunks_exact_mut(head_bytes).enumerate() {
            if strides.token == width {
                // The tokens of a head are one run.
                let source = strides.at(item, head, window.start) * size;
                let (target, len) = (window.start * token_bytes, window.len * token_bytes);
                staged[target..target + len].copy_from_slice(&bytes[source..source + len]);
                continue;
            }
            for token in window.start..window.end() {
                let source = strides.at(item, head, token) * size;
                let target = token * token_bytes;
                staged[target..target + token_bytes]
                    .copy_from_slice(&bytes[source..source + token_bytes]);
            }
        }
    }
}
