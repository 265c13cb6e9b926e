// The heads of a row become one, from a tile of the ring: a lane holds every 32nd column of its warp's part of the row.
//
// Macros: ELEMENT, FUSION, GRADIENTS, COLUMNS (of a lane).
#pragma once

#include "folds.cuh"
#include "ring.cuh"

// The fused entries of a row in this lane's columns of a tile, the first `within` of which exist; 0 in the others.
DEVICE void fuse(float (&fused)[COLUMNS], const Maps &maps, const char *at, const Tile &tile, u32 first_column, u32 within) {
  const Weighing weighing(maps.rectify_fused);
#pragma unroll
  for (u32 k = 0; k < COLUMNS; ++k) fused[k] = FUSION::start();
#pragma unroll 4
  for (u32 head = 0; head < maps.heads; ++head) {
    float weight = 0.0f;
    if constexpr (FUSION::WEIGHTED) weight = __uint_as_float(load_element<4>(global_address(maps.head_weights + head)));
    if constexpr (GRADIENTS) {
      // All loads first, without branches; what has no column is thrown away in the end.
      float entry[COLUMNS], gradient[COLUMNS];
#pragma unroll
      for (u32 k = 0; k < COLUMNS; ++k) {
        const char *const entry_at = at + k * WARP * ELEMENT::BYTES;
        const bool exists = first_column + k * WARP < within;
        entry[k] = exists ? ELEMENT::load(entry_at) : 0.0f;
        gradient[k] = exists ? ELEMENT::load(entry_at + tile.operand_bytes) : 0.0f;
      }
#pragma unroll
      for (u32 k = 0; k < COLUMNS; ++k) {
        fused[k] = FUSION::add(fused[k], weighing.weigh(entry[k], gradient[k]), weight);
      }
    } else {
#pragma unroll
      for (u32 k = 0; k < COLUMNS; ++k) {
        if (first_column + k * WARP < within) {
          fused[k] = FUSION::add(fused[k], ELEMENT::load(at + k * WARP * ELEMENT::BYTES), weight);
        }
      }
    }
    at += tile.plane_bytes;
  }
#pragma unroll
  for (u32 k = 0; k < COLUMNS; ++k) {
    fused[k] = first_column + k * WARP < within ? FUSION::finish(fused[k], maps.head_scale) : 0.0f;
    if constexpr (GRADIENTS) fused[k] = weighing.finish(fused[k]);
  }
}

// What a row of `Ahat` is multiplied with, from the sum of its fused entries.
DEVICE float scale_of(const LayerMaps &map, float row_sum) {
  const float total = map.attention * row_sum + map.identity;
  return total == 0.0f ? 0.0f : 1.0f / total;
}
