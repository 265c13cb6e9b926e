// zero_fill: zeros, where an output has no other: outside the windows of a product, or without any token.
//
// Grid: x piece. Macros: BLOCK_THREADS, PIECE (entries of a block), and those of entry.cuh.

#include "entry.cuh"

DEVICE void zero_fill(const ZeroFillParams &params, const Place &place) {
  const u64 first = u64(place.x) * PIECE;
  for (u64 i = first + threadIdx.x; i < first + PIECE && i < params.len; i += BLOCK_THREADS) params.out[i] = 0.0f;
}

ENTRY(ZeroFillParams, zero_fill, __launch_bounds__(BLOCK_THREADS))
