// row_scales: 1 / (sum of a row of attention * fused + identity * I), and 0 where the sum is 0. One warp per row.
//
// Grid: x item, y rows. Macros: BLOCK_THREADS, and those of entry.cuh.

#include "entry.cuh"
#include "fused_maps.cuh"

DEVICE void row_scales(const RowScalesParams &params, const Place &place) {
  const FusedMap map(params.maps, place.x);
  const u32 row = place.y * (BLOCK_THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (row >= map.len) return;
  float sum = 0.0f;
  for (u32 column = lane; column < map.row_end(row); column += WARP) sum += map.at(row, column);
  sum = params.maps.attention * warp_sum(sum) + params.maps.identity;
  if (lane == 0) params.scales[u64(place.x) * params.maps.tokens + row] = sum == 0.0f ? 0.0f : 1.0f / sum;
}

ENTRY(RowScalesParams, row_scales, __launch_bounds__(BLOCK_THREADS))
