// head_fusion: fused maps of a launch's layers, in f32 and in window coordinates, for kernels that read a map more than
// once. Each row is filled with zeros up to a multiple of 4 entries, so that it can be read in 16-byte granules; of
// causal maps, up to the granule of the diagonal.
//
// SPLIT: in f16 `hi + lo`, for split_product, filled up to a multiple of 8 entries.
//
// Grid: x item, y rows, z layer and column tile. Macros: ELEMENT, FUSION, GRADIENTS, SPLIT, BLOCKS, HEADS_IN_FLIGHT, MAX_WARPS, and
// those of entry.cuh.

#include "entry.cuh"
#include "fuse.cuh"
#include "mma.cuh"

using Rows = FusedRows<ELEMENT, FUSION, GRADIENTS>;

constexpr u32 FILLED = SPLIT ? 8 : 4;  // entries of 16 bytes

// Four entries of a row, which takes `stride_row` times 4 bytes.
DEVICE void store(float *row, u32 column, i64 stride_row, const float (&x)[4]) {
  if constexpr (SPLIT) {
    uint2 high, low;
    SplitF16::split(x, high, low);
    u16 *to = reinterpret_cast<u16 *>(row) + column;
    *reinterpret_cast<uint2 *>(to) = high;
    *reinterpret_cast<uint2 *>(to + stride_row) = low;
  } else {
    *reinterpret_cast<float4 *>(row + column) = make_float4(x[0], x[1], x[2], x[3]);
  }
}

DEVICE void fuse_heads(const HeadFusionParams &params, const Place &place) {
  const Maps &maps = params.maps;
  const u32 item = place.x, layer = place.z % maps.layers, tile = place.z / maps.layers;
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const u32 group = warp / params.chunks_per_block, groups = place.threads / WARP / params.chunks_per_block;
  const Window window = maps.windows[item];
  const u32 first = (tile * params.chunks_per_block + warp % params.chunks_per_block) * params.chunk_columns;
  const Rows rows(maps, layer, item, window.start);
  float *fused_map = params.fused + layer * params.stride_layer + item * params.stride_batch;

  for (u32 row = place.y * groups + group; row < window.len; row += place.grid_y * groups) {
    const u32 row_end = maps.causal ? row + 1 : window.len;
    const u32 end = min_u32(first + params.chunk_columns, row_end);
    float fused[Rows::COLUMNS];
    rows.fuse(fused, rows.segment(row, first, end));
    // The warp that has the end of the row fills it.
    const u32 filled = first < row_end && end == row_end ? (end + FILLED - 1) / FILLED * FILLED : end;
    float *out = fused_map + row * params.stride_row;
#pragma unroll
    for (u32 c = 0; c < Rows::COLUMNS; c += 4) {
      const u32 column = first + lane * Rows::COLUMNS + c;
      const float entries[4] = {fused[c], fused[c + 1], fused[c + 2], fused[c + 3]};
      if (column < filled) store(out, column, params.stride_row, entries);
    }
  }
}

ENTRY(HeadFusionParams, fuse_heads, __launch_bounds__(MAX_WARPS *WARP, BLOCKS))
