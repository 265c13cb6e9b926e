// exclusion: fused maps without the tokens that nothing attends to, in place. Discarded entries and the columns of excluded
// tokens become 0, and each row is divided by the sum of what is left; a row of which nothing is left becomes 0. Whoever
// reads the maps then has no cuts to apply. One warp per row.
//
// Grid: x item, y rows, z layer. Macros: BLOCK_THREADS, and those of entry.cuh.

#include "discard.cuh"
#include "entry.cuh"

DEVICE void exclusion(const ExclusionParams &params, const Place &place) {
  const u32 item = place.x, layer = place.z;
  const u32 row = place.y * (BLOCK_THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const u32 len = params.windows[item].len;
  if (row >= len) return;
  const u64 last = params.cuts ? params.cuts[layer * params.batch + item] : 0;
  const Cut cut = {last, params.discard_first, params.discard_spares_origin, len};
  float *entries = params.fused + layer * params.stride_layer + item * params.stride_batch + row * params.stride_row;
  const u32 end = params.causal ? row + 1 : len;
  const auto kept = [&](u32 column) {
    const bool excluded = params.excluded[column / 32] >> (column % 32) & 1;
    return excluded ? 0.0f : cut.apply(entries[column], row, column);
  };
  float sum = 0.0f;
#pragma unroll 2
  for (u32 column = lane; column < end; column += WARP) sum += kept(column);
  sum = warp_sum(sum);
  // A lane writes what it alone reads.
#pragma unroll 2
  for (u32 column = lane; column < end; column += WARP) entries[column] = sum == 0.0f ? 0.0f : kept(column) / sum;
}

ENTRY(ExclusionParams, exclusion, __launch_bounds__(BLOCK_THREADS))
