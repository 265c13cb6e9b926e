// score_sums: the largest score of each row, and the reciprocal of the sum of the exponentials of how far the others are
// below: what turns scores into attention where the LSE is not given. Or, to see whether one that is given is right, the LSE
// of the last 64 rows of each window, which see most keys.
//
// A lane keeps the largest and the sum of its own columns of each of its rows; lanes and warps are merged once, at the end.
//
// Grid: x item, y queries, z head and layer. Macros: ELEMENT, BLOCKS, and those of entry.cuh.

#include "entry.cuh"
#include "scores.cuh"

// The largest of some scores, and the sum of the exponentials of how far they are below it.
struct Largest {
  float largest, sum;

  DEVICE void merge(const Largest &other) {
    const float both = fmaxf(largest, other.largest);
    sum = sum * exponential(largest - both) + other.sum * exponential(other.largest - both);
    largest = both;
  }
  DEVICE static float exponential(float x) { return ItemScores<ELEMENT>::exponential(x); }
};

// Where the LSE of a row of a head goes.
DEVICE Probe &probe(const ScoreSumsParams &params, const Place &place, u32 head, u32 row) {
  const u32 heads = params.scores.heads;
  return params.probes[place.z / heads * params.probes_layer + (u64(place.x) * heads + head) * TILE + row];
}

DEVICE void sum_scores(const ScoreSumsParams &params, const Place &place) {
  __shared__ ScoreStage stages[2];
  __shared__ Largest of_warps[2][TILE];
  const Scores &scores = params.scores;
  const u32 head = place.z % scores.heads;
  const ItemScores<ELEMENT> item(scores, place.z / scores.heads, place.x);
  const bool probes = params.probes;
  const u32 query = probes ? item.len - min_u32(item.len, TILE) : place.y * TILE;
  // The keys that any of the queries attends to.
  u32 first = 0, end = item.len;
  if (scores.causal) end = min_u32(end, query + TILE);
  if (item.layer.sliding_window) {
    const u32 reach = item.layer.sliding_window - 1;
    first = query - min_u32(query, reach);
    end = query + TILE + reach < reach ? end : min_u32(end, query + TILE + reach);
  }
  const u32 first_tile = first / TILE;
  const u32 tiles = query < item.len ? (end + TILE - 1) / TILE - first_tile : 0;
  Largest lane[Products::ROWS];
#pragma unroll
  for (u32 r = 0; r < Products::ROWS; ++r) lane[r] = {-3.402823466e38f, 0.0f};
  const auto tile = [&](u32 i) { return ScoreTile{head, query, (first_tile + i) * TILE}; };
  const auto begin = [](const ScoreTile &) {};
  item.visit(stages, tiles, tile, begin, [&](const ScoreTile &tile, const Products &products) {
    const bool masks_none = item.masks_none(query, tile.key);
#pragma unroll
    for (u32 r = 0; r < Products::ROWS; ++r) {
      const u32 row = query + lane_row(r);
      float largest = lane[r].largest;
#pragma unroll
      for (u32 c = 0; c < Products::COLUMNS; ++c) {
        const u32 column = tile.key + lane_column(c);
        const bool hidden = !masks_none && (column >= item.len || item.masks(row, column));
        // What is left when the largest is taken off is rounded as entries are.
        if (!hidden) largest = fmaxf(largest, item.score(products.at(r, c), head, row, column, 0.0f));
      }
      float sum = 0.0f;
#pragma unroll
      for (u32 c = 0; c < Products::COLUMNS; ++c) {
        const u32 column = tile.key + lane_column(c);
        const bool hidden = !masks_none && (column >= item.len || item.masks(row, column));
        if (!hidden) sum += Largest::exponential(item.score(products.at(r, c), head, row, column, largest));
      }
      lane[r].sum = lane[r].sum * Largest::exponential(lane[r].largest - largest) + sum;
      lane[r].largest = largest;
    }
  });
#pragma unroll
  for (u32 r = 0; r < Products::ROWS; ++r) {
#pragma unroll
    for (u32 d = 1; d < 4; d *= 2) {
      lane[r].merge({__shfl_xor_sync(FULL_WARP, lane[r].largest, d), __shfl_xor_sync(FULL_WARP, lane[r].sum, d)});
    }
    if (threadIdx.x % 4 == 0) of_warps[threadIdx.x / WARP % 2][lane_row(r)] = lane[r];
  }
  __syncthreads();  // the rows of both warps are there
  for (u32 row = threadIdx.x; row < TILE; row += SCORE_THREADS) {
    const bool inside = query + row < item.len;
    Largest whole = of_warps[0][row];
    whole.merge(of_warps[1][row]);
    const float sink = item.heads[head].sink;
    if (sink > __int_as_float(0xff800000)) whole.merge({sink, 1.0f});
    if (probes) {
      Probe found = {0.0f, 0.0f};
      if (inside) found = {whole.largest + logf(whole.sum), item.given_lse(head, query + row) * scores.lse_unit};
      probe(params, place, head, row) = found;
    } else if (inside) {
      scores.sums[item.sum_index(head, query + row)] = {whole.largest, whole.sum == 0.0f ? 0.0f : 1.0f / whole.sum};
    }
  }
}

ENTRY(ScoreSumsParams, sum_scores, __launch_bounds__(SCORE_THREADS, BLOCKS))
