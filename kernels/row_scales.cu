// row_scales: 1 / (sum of a row of attention * fused + identity * I), and 0 where the sum is 0. One warp per row.
//
// Grid: x item, y rows. Macros: KERNEL, BLOCK_THREADS.

#include "fused_maps.cuh"

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS) KERNEL(const __grid_constant__ RowScalesParams params) {
  const FusedMap map(params.maps, blockIdx.x);
  const u32 row = blockIdx.y * (BLOCK_THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (row >= map.len) return;
  float sum = 0.0f;
  for (u32 column = lane; column < map.row_end(row); column += WARP) sum += map.at(row, column);
  sum = params.maps.attention * warp_sum(sum) + params.maps.identity;
  if (lane == 0) params.scales[u64(blockIdx.x) * params.maps.tokens + row] = sum == 0.0f ? 0.0f : 1.0f / sum;
}
