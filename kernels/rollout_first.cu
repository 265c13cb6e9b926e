// rollout_first: Ahat of one layer from fused maps, the first step of a product. One warp per row.
//
// Grid: x item, y rows. Macros: BLOCK_THREADS, and those of entry.cuh.

#include "entry.cuh"
#include "fused_maps.cuh"

DEVICE void rollout_first(const RolloutFirstParams &params, const Place &place) {
  const u32 item = place.x;
  const FusedMap map(params.maps, item);
  const u32 row = place.y * (BLOCK_THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (row >= map.len) return;
  const u32 origin = params.out_windowed ? params.maps.windows[item].start : 0;
  float *out = params.out.base + item * params.out.stride_batch + (origin + row) * params.out.stride_row + origin;
  const float scale = map.scale(row);
  // Window coordinates: zeros up to the end of the granule.
  const u32 end = params.out_windowed ? map.len : (map.len + 3) / 4 * 4;
  for (u32 column = lane; column < end; column += WARP) {
    const float fused = column < min_u32(map.len, map.row_end(row)) ? map.at(row, column) : 0.0f;
    const float identity = row == column ? params.maps.identity : 0.0f;
    out[column] = scale * (params.maps.attention * fused + identity);
  }
}

ENTRY(RolloutFirstParams, rollout_first, __launch_bounds__(BLOCK_THREADS))
