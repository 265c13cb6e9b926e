// score_rows: rows of relevance times the fused map of one layer of queries and keys, which is nowhere in memory.
//
// Keys stay with the block, 32 for each warp, and tiles of queries that any of the rows weighs, and that are not masked as a
// whole, pass by. Blocks that share a tile of keys take live tiles of queries in turns, or, where heads are summed, some of
// the heads. Each entry is multiplied by what its query weighs, and summed over queries:
//   ONE_ROW:    of one row and heads that are summed, a block has one head: a lane keeps the sums of its columns.
//   HOLDS_KEYS: of these, where a chunk is all there is of 2-byte elements: a warp has its keys in registers, as the rows of
//               products, and takes 8 queries at a time, so exponentials fill the time that the next products take.
//   otherwise:  tile by tile, one head after the other, to fused entries in registers as score_fusion has them. So every
//               head fusion is the same code, and several rows cost no exponential.
//
// Grid: x item, y split, z keys. Macros: ELEMENT, FUSION, ONE_ROW, HOLDS_KEYS, THREADS, BLOCKS, and those of entry.cuh.

#include "entry.cuh"
#include "score_columns.cuh"
#include "score_ring.cuh"

// The products that one row is made of.
#if HOLDS_KEYS
using RowProducts = ProductsOfKeys;
#else
using RowProducts = Products;
#endif

// The tiles of queries that are this block's.
struct QueryTiles {
  u32 count;
  u16 tile[MAX_QUERY_TILES];
};

// Which of 32 tiles from `first` on any of the rows weighs a query of, as bits. One warp; eight tiles are looked at at a time.
DEVICE u32 live_tiles(const ScoreRowsParams &params, const float *relevance, u32 first, u32 len) {
  constexpr u32 TOGETHER = 8;
  const u32 lane = threadIdx.x % WARP;
  u32 live = 0;
  for (u32 m = 0; m < params.rows; ++m) {
    for (u32 t = 0; t < WARP && (first + t) * TILE < len; t += TOGETHER) {
      float weight[TOGETHER];
#pragma unroll
      for (u32 i = 0; i < TOGETHER; ++i) {
        const u32 row = (first + t + i) * TILE + lane;
        weight[i] = row < len ? relevance[m * params.stride_row + row] : 0.0f;
      }
#pragma unroll
      for (u32 i = 0; i < TOGETHER; ++i) live |= u32(__any_sync(FULL_WARP, weight[i] != 0.0f)) << (t + i);
    }
  }
  return live;
}

// Lists the tiles of queries that are the block's, of those that do not mask `keys` keys from `key` on. All threads.
DEVICE void list_tiles(const ScoreRowsParams &params, const Place &place, const ItemScores<ELEMENT> &item,
                       const float *relevance, u32 key, u32 keys, QueryTiles &tiles) {
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const u32 all = (item.len + TILE - 1) / TILE;
  for (u32 first = warp * WARP; first < all; first += place.threads) {
    const u32 live = live_tiles(params, relevance, first, item.len);
    if (first + lane < all) {
      tiles.tile[first + lane] = live >> lane & 1 && !item.masks_all((first + lane) * TILE, TILE, key, keys);
    }
  }
  __syncthreads();  // all tiles have been looked at
  // Those that are this block's close up.
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
}

// The sums of rows that pass by, with what one start row and the head weigh them by in their factors.
using Sums = PassingSums<ScoreSteps<ONE_ROW>::ROOM, TILE, ELEMENT>;
struct WeighedRows {
  float weights[ScoreSteps<ONE_ROW>::ROOM][TILE];
  u32 some_weigh_nothing[ScoreSteps<ONE_ROW>::ROOM];
};
struct PassingRows {
  const Sums &known;
  WeighedRows &rows;
  const float *relevance;
  float of_head;

  DEVICE void copy(u32 slot, u32 head, u32 first) const {
    known.copy(slot, head, first);
    const u32 lane = threadIdx.x % WARP, row = first + lane;
    const bool wanted = row < known.item.len;
    const u64 weight = global_address(relevance + (wanted ? row : 0));
    copy_or_zeros<4>(shared_address(&rows.weights[slot][lane]), weight, wanted);
  }
  // Nothing that a query says which weighs nothing matters, be it NaN.
  DEVICE void settle(u32 slot, u32 first) const {
    known.settle(slot, first);
    const u32 lane = threadIdx.x % WARP;
    RowSum &sum = known.sums[slot][lane];
    const float weight = rows.weights[slot][lane] * of_head;
    sum.factor = weight == 0.0f ? 0.0f : sum.factor * weight;
    const bool nothing = sum.factor == 0.0f && first + lane < known.item.len;
    const bool some = __any_sync(FULL_WARP, nothing);
    if (lane == 0) rows.some_weigh_nothing[slot] = some;
  }
};

DEVICE void multiply_rows(const ScoreRowsParams &params, const Place &place) {
  __shared__ QueryTiles tiles;
  __shared__ alignas(GRANULE_BYTES) RowSum sums[ScoreSteps<ONE_ROW>::ROOM][TILE];
  const Scores &scores = params.scores;
  const u32 keys = takers(place.threads) * WARP, key = place.z * keys;  // one for each lane of a warp
  const ItemScores<ELEMENT> item(scores, 0, place.x);
  if (key >= item.len) return;
  const float *relevance = params.relevance + place.x * params.stride_batch;
  list_tiles(params, place, item, relevance, key, keys, tiles);
  // For one row, blocks take a head each.
  const u32 head_split = place.y / params.query_splits;
  const u32 head_splits = ONE_ROW ? scores.heads : place.grid_y / params.query_splits;
  const u32 first_head = ONE_ROW ? head_split : head_split * scores.heads / head_splits;
  const u32 heads = ONE_ROW ? 1 : (head_split + 1) * scores.heads / head_splits - first_head;
  const ScoreSteps<ONE_ROW> steps(scores, first_head, heads, tiles.count, scores.head_dim * ELEMENT::BYTES);
  const auto token = [&](u32 place) { return tiles.tile[place] * TILE; };
  const Sums known = {item, sums};
  float *out = params.partials + (u64(place.y) * scores.batch + place.x) * params.rows * scores.sums_len;
  if constexpr (ONE_ROW) {
    __shared__ WeighedRows rows;
    const HeadTerms terms = HeadTerms::of<FUSION>(item, first_head);
    const bool plain = item.is_plain(terms.slope), all_plain = plain && item.maskless;
    const auto begin = [](const ScoreTile &) {};
    const PassingRows weighed = {known, rows, relevance, terms.weight};
    float of_column[RowProducts::COLUMNS] = {};
    const auto take = [&](u32, u32 c, float value, float factor) { of_column[c] = fmaf(value, factor, of_column[c]); };
    const auto is_plain = [&](const ScoreTile &tile, u32 slot) {
      return !rows.some_weigh_nothing[slot] && (all_plain || plain && item.masks_none(tile.query, tile.key));
    };
#if HOLDS_KEYS
    const auto add = [&](const ScoreTile &tile, u32 slot, const HeldKeys<ELEMENT> &keys, u32 queries) {
      exponentials_of_held(item, tile, terms.slope, is_plain(tile, slot), sums[slot], keys, queries, take);
    };
    if (!visit<true, 1, true>(item, place.threads, steps, key, token, weighed, begin, add)) return;
#else
    const auto add = [&](const ScoreTile &tile, u32 slot, const Products &products) {
      exponentials<true>(item, tile, terms.slope, is_plain(tile, slot), sums[slot], products, take);
    };
    if (!visit<true, 1>(item, place.threads, steps, key, token, weighed, begin, add)) return;
#endif
    const float sum = FUSION::finish(sum_of_rows<RowProducts>(of_column), scores.head_scale);
    const u32 column = key + threadIdx.x / WARP * TILE + RowProducts::own_column();
    if (column < item.len) out[column] = sum;
  } else {
    HeadTerms terms;
    const auto begin = [&](const ScoreTile &tile) { terms = HeadTerms::of<FUSION>(item, tile.head); };
    __shared__ float of_columns[MAX_SCORE_ROWS][THREADS];
    for (u32 m = 0; m < params.rows; ++m) of_columns[m][threadIdx.x] = 0.0f;
    __syncwarp();  // a warp adds to its own
    FusedTile<FUSION> fused;
    const auto add = [&](const ScoreTile &tile, u32 slot, const Products &products) {
      fused.add(item, tile, terms, sums[slot], products);
      if (tile.head + 1 < first_head + heads) return;
#pragma unroll 1
      for (u32 m = 0; m < params.rows; ++m) {
        float sum[Products::COLUMNS] = {};
#pragma unroll
        for (u32 r = 0; r < Products::ROWS; ++r) {
          const u32 row = tile.query + Products::row(r);
          const float weight = row < item.len ? relevance[m * params.stride_row + row] : 0.0f;
          if (weight == 0.0f) continue;
#pragma unroll
          for (u32 c = 0; c < Products::COLUMNS; ++c) sum[c] += weight * fused.finished(r, c, scores.head_scale);
        }
        of_columns[m][threadIdx.x / WARP * TILE + Products::own_column()] += sum_of_rows<Products>(sum);
      }
      fused.start();
    };
    if (!visit<true, 1>(item, place.threads, steps, key, token, known, begin, add)) return;
    __syncwarp();  // the sums of all lanes are there
    const u32 column = key + threadIdx.x;
    for (u32 m = 0; m < params.rows; ++m) {
      if (column < item.len) out[m * scores.sums_len + column] = of_columns[m][threadIdx.x];
    }
  }
}

ENTRY(ScoreRowsParams, multiply_rows, __launch_bounds__(THREADS, BLOCKS - GROUPED))
