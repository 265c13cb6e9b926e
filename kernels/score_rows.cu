// score_rows: rows of relevance times the fused map of one layer of queries and keys, which is nowhere in memory.
//
// A block has a tile of keys. It goes through the tiles of queries that any of the rows weighs and that are not masked as a
// whole: adds one head after the other to a tile of entries in registers, as score_fusion does, multiplies them by what
// their queries weigh, and sums over queries. So every head fusion is the same code, and several rows cost no exponential.
// Blocks that share a tile of keys take live tiles of queries in turns, or, where heads are summed, some of the heads.
//
// Grid: x item, y split, z keys. Macros: ELEMENT, FUSION, BLOCKS, and those of entry.cuh.

#include "entry.cuh"
#include "scores.cuh"

// The tiles of queries that are this block's.
struct QueryTiles {
  u32 count;
  u16 tile[MAX_QUERY_TILES];
};

// Whether a row weighs any query of a tile. One warp.
DEVICE bool is_live(const ScoreRowsParams &params, const float *relevance, u32 query, u32 len) {
  bool live = false;
  for (u32 m = 0; m < params.rows; ++m) {
    for (u32 row = query + threadIdx.x % WARP; row < min_u32(query + TILE, len); row += WARP) {
      live |= relevance[m * params.stride_row + row] != 0.0f;
    }
  }
  return __any_sync(FULL_WARP, live);
}

DEVICE void multiply_rows(const ScoreRowsParams &params, const Place &place) {
  __shared__ ScoreStage stages[2];
  __shared__ QueryTiles tiles;
  __shared__ float sums[2][MAX_SCORE_ROWS][TILE];
  const Scores &scores = params.scores;
  const u32 key = place.z * TILE;
  const ItemScores<ELEMENT> item(scores, 0, place.x);
  if (key >= item.len) return;
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const float *relevance = params.relevance + place.x * params.stride_batch;
  for (u32 i = threadIdx.x; i < params.rows * TILE; i += SCORE_THREADS) {
    sums[0][i / TILE][i % TILE] = 0.0f;
    sums[1][i / TILE][i % TILE] = 0.0f;
  }
  // Whether each tile is wanted; then those that are this block's close up.
  const u32 all = (item.len + TILE - 1) / TILE;
  for (u32 t = warp; t < all; t += SCORE_WARPS) {
    const bool wanted = !item.masks_all(t * TILE, key) && is_live(params, relevance, t * TILE, item.len);
    if (lane == 0) tiles.tile[t] = wanted;
  }
  __syncthreads();  // all tiles have been looked at
  if (warp == 0) {
    u32 live = 0, count = 0;
    for (u32 first = 0; first < all; first += WARP) {
      const bool wanted = first + lane < all && tiles.tile[first + lane];
      const u32 wanted_lanes = __ballot_sync(FULL_WARP, wanted), before = wanted_lanes & ((1u << lane) - 1);
      const bool mine = wanted && (live + __popc(before)) % params.query_splits == place.y % params.query_splits;
      const u32 mine_lanes = __ballot_sync(FULL_WARP, mine);
      __syncwarp();
      if (mine) tiles.tile[count + __popc(mine_lanes & ((1u << lane) - 1))] = u16(first + lane);
      __syncwarp();
      live += __popc(wanted_lanes);
      count += __popc(mine_lanes);
    }
    if (lane == 0) tiles.count = count;
  }
  __syncthreads();  // the tiles are known
  const u32 head_split = place.y / params.query_splits, head_splits = place.grid_y / params.query_splits;
  const u32 first_head = head_split * scores.heads / head_splits;
  const u32 heads = (head_split + 1) * scores.heads / head_splits - first_head;
  FusedTile<FUSION> fused;
  const auto tile = [&](u32 i) { return ScoreTile{first_head + i % heads, tiles.tile[i / heads] * TILE, key}; };
  const auto begin = [&](const ScoreTile &tile) { fused.begin(item, tile); };
  item.visit(stages, tiles.count * heads, tile, begin, [&](const ScoreTile &tile, const Products &products) {
    fused.add(item, tile, products);
    if (tile.head + 1 < first_head + heads) return;
#pragma unroll 1
    for (u32 m = 0; m < params.rows; ++m) {
      float sum[Products::COLUMNS] = {};
#pragma unroll
      for (u32 r = 0; r < Products::ROWS; ++r) {
        const u32 row = tile.query + lane_row(r);
        const float weight = row < item.len ? relevance[m * params.stride_row + row] : 0.0f;
        // Nothing that a query says which weighs nothing matters, be it NaN.
        if (weight == 0.0f) continue;
#pragma unroll
        for (u32 c = 0; c < Products::COLUMNS; ++c) sum[c] += weight * fused.finished(r, c, scores.head_scale);
      }
#pragma unroll
      for (u32 c = 0; c < Products::COLUMNS; ++c) {
#pragma unroll
        for (u32 d = 4; d < WARP; d *= 2) sum[c] += __shfl_xor_sync(FULL_WARP, sum[c], d);
        if (lane < 4) sums[warp / 2][m][lane_column(c)] += sum[c];
      }
    }
    fused.start();
  });
  __syncthreads();  // the sums of all warps are there
  float *out = params.partials + (u64(place.y) * scores.batch + place.x) * params.rows * scores.sums_len;
  for (u32 i = threadIdx.x; i < params.rows * TILE; i += SCORE_THREADS) {
    const u32 m = i / TILE, column = key + i % TILE;
    if (column < item.len) out[m * scores.sums_len + column] = sums[0][m][i % TILE] + sums[1][m][i % TILE];
  }
}

ENTRY(ScoreRowsParams, multiply_rows, __launch_bounds__(SCORE_THREADS, BLOCKS))
