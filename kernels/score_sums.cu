// score_sums: the largest score of each row, and the reciprocal of the sum of the exponentials of how far the others are
// below: what turns scores into attention where the LSE is not given. Or, to see whether one that is given is right, the LSE
// of the last 64 rows of each window, which see most keys.
//
// Queries stay with the block, 32 for each warp, and keys pass by. A lane keeps the largest and the sum of its own columns of
// each of its rows; lanes are merged once, at the end.
//
// Grid: x item, y queries, z head and layer. Macros: ELEMENT, THREADS, BLOCKS, and those of entry.cuh.

#include "entry.cuh"
#include "score_ring.cuh"

// The largest of some scores, and the sum of the exponentials of how far they are below it.
struct Largest {
  float largest, sum;

  DEVICE void merge(const Largest &other) {
    const float both = fmaxf(largest, other.largest);
    sum = sum * power_of_2(largest - both) + other.sum * power_of_2(other.largest - both);
    largest = both;
  }
  DEVICE static float power_of_2(float x) { return ItemScores<ELEMENT>::power_of_2(x); }
};

// The scores of a row in a lane's columns, of which those that `hidden` says are not there, go into what is known of them.
template <class Score, class Hidden>
DEVICE void add_scores(Largest &known, const Score &score, const Hidden &hidden) {
  float largest = known.largest;
#pragma unroll
  for (u32 c = 0; c < Products::COLUMNS; ++c) {
    // What is left when the largest is taken off is rounded as entries are.
    if (!hidden(c)) largest = fmaxf(largest, score(c, 0.0f));
  }
  float sum = 0.0f;
#pragma unroll
  for (u32 c = 0; c < Products::COLUMNS; ++c) {
    if (!hidden(c)) sum += Largest::power_of_2(score(c, largest));
  }
  known.sum = known.sum * Largest::power_of_2(known.largest - largest) + sum;
  known.largest = largest;
}

// Of keys that pass by there is nothing else to know.
struct NothingMore {
  DEVICE void copy(u32, u32, u32) const {}
  DEVICE void settle(u32, u32) const {}
};

// Where the LSE of a row of a head goes.
DEVICE Probe &probe(const ScoreSumsParams &params, const Place &place, u32 head, u32 row) {
  const u32 heads = params.scores.heads;
  return params.probes[place.z / heads * params.probes_layer + (u64(place.x) * heads + head) * PROBED_ROWS + row];
}

DEVICE void sum_scores(const ScoreSumsParams &params, const Place &place) {
  const Scores &scores = params.scores;
  const u32 head = place.z % scores.heads, queries = takers(place.threads) * WARP;  // one for each lane of a warp
  const ItemScores<ELEMENT> item(scores, place.z / scores.heads, place.x);
  const bool probes = params.probes;
  const u32 query = probes ? item.len - min_u32(item.len, PROBED_ROWS) : place.y * queries;
  // The keys that any of the queries attends to.
  u32 first = 0, end = item.len;
  if (scores.causal) end = min_u32(end, query + queries);
  if (item.layer.sliding_window) {
    const u32 reach = item.layer.sliding_window - 1;
    first = query - min_u32(query, reach);
    end = query + queries + reach < reach ? end : min_u32(end, query + queries + reach);
  }
  const u32 first_tile = first / TILE;
  const u32 tiles = query < item.len ? (end + TILE - 1) / TILE - first_tile : 0;
  const float slope = item.heads[head].slope;
  const bool plain = item.is_plain(slope);
  Largest lane[Products::ROWS];
#pragma unroll
  for (u32 r = 0; r < Products::ROWS; ++r) lane[r] = {-3.402823466e38f, 0.0f};
  const ScoreSteps<true> steps(scores, head, 1, tiles, scores.head_dim * ELEMENT::BYTES);
  const auto token = [&](u32 place) { return (first_tile + place) * TILE; };
  const auto add = [&](const ScoreTile &tile, u32, const Products &products) {
    const bool all = plain && tile.key + TILE <= item.len && item.masks_none(tile.query, tile.key);
#pragma unroll
    for (u32 r = 0; r < Products::ROWS; ++r) {
      // Not once for all tiles: it would take registers.
      const u32 row = unknown(tile.query + Products::row(r));
      if (all) {
        add_scores(lane[r], [&](u32 c, float shift) { return item.plain_score(products.at(r, c), shift); },
                   [](u32) { return false; });
      } else {
        const auto column = [&](u32 c) { return tile.key + Products::column(c); };
        add_scores(lane[r],
                   [&](u32 c, float shift) { return item.score(products.at(r, c), slope, row, column(c), shift); },
                   [&](u32 c) { return column(c) >= item.len || item.masks(row, column(c)); });
      }
    }
  };
  if (!visit<false, 1>(item, place.threads, steps, query, token, NothingMore(), [](const ScoreTile &) {}, add)) return;
#pragma unroll
  for (u32 r = 0; r < Products::ROWS; ++r) {
    Largest whole = lane[r];
#pragma unroll
    for (u32 d = 1; d < 4; d *= 2) {
      whole.merge({__shfl_xor_sync(FULL_WARP, whole.largest, d), __shfl_xor_sync(FULL_WARP, whole.sum, d)});
    }
    if (threadIdx.x % 4) continue;
    const u32 within = threadIdx.x / WARP * TILE + Products::row(r), row = query + within;
    const float sink = item.heads[head].sink;
    if (sink > __int_as_float(0xff800000)) whole.merge({sink * LOG2_E, 1.0f});
    if (probes) {
      Probe lse = {0.0f, 0.0f};  // to base 2
      if (row < item.len) lse = {whole.largest + log2f(whole.sum), item.given_lse(head, row) * scores.log2_unit};
      probe(params, place, head, within) = {lse.expected / LOG2_E, lse.got / LOG2_E};
    } else if (row < item.len) {
      scores.sums[item.sum_index(head, row)] = {whole.largest, whole.sum == 0.0f ? 0.0f : 1.0f / whole.sum};
    }
  }
}

ENTRY(ScoreSumsParams, sum_scores, __launch_bounds__(THREADS, BLOCKS - GROUPED))
