// head_fusion: fused maps of a launch's layers, in f32 and in window coordinates, for kernels that read a map more than
// once. Each row is filled with zeros up to a multiple of 4 entries, so that it can be read in 16-byte granules; of
// causal maps, up to the granule of the diagonal.
//
// Grid: x item, y rows, z layer and column tile. Macros: ELEMENT, FUSION, GRADIENTS, BLOCKS, HEADS_IN_FLIGHT, MAX_WARPS, and those of
// entry.cuh.

#include "entry.cuh"
#include "fuse.cuh"

using Rows = FusedRows<ELEMENT, FUSION, GRADIENTS>;

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
    const u32 end = min_u32(first + params.chunk_columns, maps.causal ? row + 1 : window.len);
    float fused[Rows::COLUMNS];
    rows.fuse(fused, rows.segment(row, first, end));
    float *out = fused_map + row * params.stride_row;
#pragma unroll
    for (u32 c = 0; c < Rows::COLUMNS; c += 4) {
      const u32 column = first + lane * Rows::COLUMNS + c;
      if (column < end) {
        *reinterpret_cast<float4 *>(out + column) = make_float4(fused[c], fused[c + 1], fused[c + 2], fused[c + 3]);
      }
    }
  }
}

ENTRY(HeadFusionParams, fuse_heads, __launch_bounds__(MAX_WARPS *WARP, BLOCKS))
