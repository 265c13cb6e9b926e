// rollout_rows: start rows times all layers, r <- identity r + attention r fused, in one pass over the maps.
//
// Block (item, split, tile) adds up the rows split, split + splits, ... of each layer in the columns of its tile; its
// warps are groups of `chunks_per_block`, a group shares a row. The relevance r lies in shared memory, the sums in
// registers, and the groups add theirs in order, so that results repeat to the bit. Rows without weight are not read.
//
// One split and one tile: all layers in one launch. More splits: the blocks of an item are a cluster (sm_90) and read
// each other's sums after each layer; or, and with more tiles, one layer per launch, partial sums through global memory,
// each launch beginning with their reduction; a launch of no layers is the last reduction.
//
// Macros: ELEMENT, FUSION, GRADIENTS, START_ROWS, MAX_WARPS, NORMALIZE, DISCARD, and those of entry.cuh.

// Registers bound what a multiprocessor holds. Parameters in shared memory take some that constants do not, so grouped
// there is one block less; what is on its way then suffices with 4 heads. Gradients take as many registers again as the
// maps, so there are two blocks, with more on its way than three have without them.
#define BLOCKS (GRADIENTS ? 2 : (START_ROWS == 1 ? 3 : 2) - GROUPED)
#define HEADS_IN_FLIGHT (START_ROWS == 1 || GROUPED ? 4 : 2)

// A member of a grouped launch has no clusters: its blocks need not be neighbours.
#if GROUPED
#define CLUSTER 1
#else
#define CLUSTER 0
#endif

#include "cluster.cuh"
#include "discard.cuh"
#include "entry.cuh"
#include "fuse.cuh"

using Rows = FusedRows<ELEMENT, FUSION, GRADIENTS>;

DEVICE void rollout_rows(const RolloutRowsParams &params, const Place &place) {
  const Maps &maps = params.maps;
  const u32 item = place.x, split = place.y, splits = place.grid_y;
  const u32 tokens = maps.tokens, start_rows = params.start_rows, chunks = params.chunks_per_block;
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const u32 group = warp / chunks, groups = place.threads / WARP / chunks;
  const u32 tile_columns = params.chunk_columns * chunks, tile_first = place.z * tile_columns;
  const Window window = maps.windows[item];
  const u32 tile_end = min_u32(tile_first + tile_columns, window.len);
  const u32 warp_first = tile_first + warp % chunks * params.chunk_columns;

  // A cluster reads the sums of one layer while it writes those of the next.
  const u32 cluster = cluster_blocks(), turns = cluster > 1 ? 2 : 1, sums_len = start_rows * tile_columns;
  extern __shared__ float4 shared[];
  float *turns_of_next = reinterpret_cast<float *>(shared);     // [turns][start_rows][tile_columns], in granules
  float *relevance = turns_of_next + turns * sums_len;          // [start_rows][tokens]
  float *scales = relevance + start_rows * tokens;              // [tokens], 1 / row sum
  [[maybe_unused]] float *sums = scales + tokens;               // [warps], of one row each

#pragma unroll 1
  for (u32 m = 0; m < start_rows; ++m) {
#pragma unroll 1
    for (u32 j = threadIdx.x; j < window.len; j += place.threads) {
      float value = 0.0f;
      if (params.splits_in == 0) {
        value = params.start[item * params.start_stride_batch + m * tokens + j];
      }
#pragma unroll 1
      for (u32 s = 0; s < params.splits_in; ++s) {
        value += params.partials_in[((u64(item) * params.splits_in + s) * start_rows + m) * tokens + j];
      }
      relevance[m * tokens + j] = value;
    }
  }

  for (u32 layer = maps.layers; layer-- > 0;) {
    __syncthreads();  // the relevance is complete
    float *next = turns_of_next + layer % turns * sums_len;
    const LayerMaps &map = maps.layer[layer];
    const Rows rows(maps, layer, item, window.start);
    Cut cut = {0, maps.discard_first, maps.discard_spares_origin, window.len};
    if constexpr (DISCARD) cut.last = maps.cuts[layer * maps.batch + item];
    float sum[START_ROWS][Rows::COLUMNS] = {};
    // The same number of steps in all warps: there are barriers inside.
#pragma unroll 1
    for (u32 step = 0; step * groups * splits < window.len; ++step) {
      const u32 row = split + splits * (group + groups * step);
      bool weighs = false;
#pragma unroll 1
      for (u32 m = 0; m < start_rows; ++m) weighs |= row < window.len && relevance[m * tokens + row] != 0.0f;
      const u32 row_end = maps.causal ? row + 1 : window.len;
      float fused[Rows::COLUMNS];
      const u32 end = weighs ? min_u32(warp_first + params.chunk_columns, row_end) : warp_first;
      rows.fuse(fused, rows.segment(row, warp_first, end));
      if constexpr (DISCARD) {
#pragma unroll
        for (u32 c = 0; c < Rows::COLUMNS; ++c) {
          fused[c] = cut.apply(fused[c], row, warp_first + lane * Rows::COLUMNS + c);
        }
      }
      float scale = 1.0f;
      if constexpr (NORMALIZE) {
        float total = 0.0f;
#pragma unroll
        for (u32 c = 0; c < Rows::COLUMNS; ++c) total += fused[c];
        total = warp_sum(total);
        if (chunks > 1) {
          if (lane == 0) sums[warp] = total;
          __syncthreads();  // the sums of all chunks are there
          total = 0.0f;
          for (u32 c = 0; c < chunks; ++c) total += sums[group * chunks + c];
          __syncthreads();  // and have been read
        }
        total = map.attention * total + map.identity;
        scale = total == 0.0f ? 0.0f : 1.0f / total;
        if (lane == 0 && warp % chunks == 0 && row < window.len) scales[row] = scale;
      }
      if (weighs) {
#pragma unroll
        for (u32 m = 0; m < START_ROWS; ++m) {
          if (m < start_rows) {
            const float weight = relevance[m * tokens + row] * scale;
#pragma unroll
            for (u32 c = 0; c < Rows::COLUMNS; ++c) sum[m][c] += weight * fused[c];
          }
        }
      }
    }

    const bool mine = lane * Rows::COLUMNS < params.chunk_columns;
#pragma unroll 1
    for (u32 turn = 0; turn < groups; ++turn) {
      if (group == turn && mine) {
#pragma unroll
        for (u32 m = 0; m < START_ROWS; ++m) {
#pragma unroll
          for (u32 c = 0; c < Rows::COLUMNS; c += 4) {
            if (m < start_rows) {
              const u32 column = m * tile_columns + warp_first - tile_first + lane * Rows::COLUMNS + c;
              float4 &total = *reinterpret_cast<float4 *>(next + column);
              const float4 before = turn == 0 ? make_float4(0.0f, 0.0f, 0.0f, 0.0f) : total;
              total = make_float4(before.x + sum[m][c], before.y + sum[m][c + 1], before.z + sum[m][c + 2],
                                  before.w + sum[m][c + 3]);
            }
          }
        }
      }
      __syncthreads();  // one group after the other
    }
    for (u32 m = 0; m < start_rows; ++m) {
      for (u32 j = tile_first + threadIdx.x; j < tile_end; j += place.threads) {
        float residual = 0.0f;
        if (j % splits == split) residual = map.identity * relevance[m * tokens + j] * (NORMALIZE ? scales[j] : 1.0f);
        float &sum = next[m * tile_columns + j - tile_first];
        const float value = map.attention * sum + residual;
        (cluster > 1 ? sum : relevance[m * tokens + j]) = value;
      }
    }
    if (cluster > 1) {
      cluster_barrier();  // the sums of all blocks are complete
      for (u32 m = 0; m < start_rows; ++m) {
        for (u32 j = threadIdx.x; j < window.len; j += place.threads) {
          float total = 0.0f;
          for (u32 rank = 0; rank < cluster; ++rank) total += load_peer(next + m * tile_columns + j, rank);
          relevance[m * tokens + j] = total;
        }
      }
    }
  }

  __syncthreads();  // the relevance is complete
  const u32 rank = cluster_rank(), first_thread = rank * place.threads + threadIdx.x;
  for (u32 m = 0; m < start_rows; ++m) {
    if (params.partials_out) {
      // A cluster has added its parts up already.
      const u64 part = cluster > 1 ? item : u64(item) * splits + split;
      float *out = params.partials_out + (part * start_rows + m) * tokens;
      for (u32 j = tile_first + first_thread; j < tile_end; j += cluster * place.threads) {
        out[j] = relevance[m * tokens + j];
      }
    } else {
      float *out = params.out + (u64(item) * start_rows + m) * tokens;
      for (u32 j = first_thread; j < tokens; j += cluster * place.threads) {
        const u32 inside = j - window.start;
        out[j] = inside < window.len ? relevance[m * tokens + inside] : 0.0f;
      }
    }
  }
  if (cluster > 1) cluster_barrier();  // no block leaves while others read its sums
}

ENTRY(RolloutRowsParams, rollout_rows, __launch_bounds__(MAX_WARPS *WARP, BLOCKS))
