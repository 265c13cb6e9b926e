// score_short: a row of relevance times the attention of one layer of queries and keys whose LSE is not given and whose windows
// are short: a warp has all scores of 16 queries in its registers, so rows are normalised where they are made.
//
// A block has one head. Its keys stay in shared memory; each warp brings 16 queries after the other for itself, and waits for
// no other. Lane 4 g + q has the scores of keys g, g + 8, ... and of queries 2 q, 2 q + 1, 2 q + 8 and 2 q + 9: sums of rows
// are those of lanes that share q, and a lane keeps the sums of its columns until all queries have passed.
//
// Scores are products times a positive scale, and nothing else. Grid: x item, y head and query split. Macros:
// ELEMENT, FUSION, KEYS, THREADS, BLOCKS, and those of entry.cuh.

#include "entry.cuh"
#include "scores.cuh"

constexpr u32 QUERIES = 16;  // of a warp, at a time
constexpr u32 WARPS = THREADS / WARP;
constexpr u32 KEY_TILES = KEYS / 16, KEY_PANELS = (KEYS + TILE - 1) / TILE;
constexpr u32 QUERY_PANEL_BYTES = QUERIES * PITCH;

// [chunks][KEY_PANELS] panels of keys, and [WARPS][2][chunks] of queries; at the end the sums of columns that lanes have.
extern __shared__ __align__(16) char dynamic[];
constexpr u32 SUMS_PITCH = KEYS + 8;  // no bank conflicts

// A lane's queries and keys.
constexpr u32 LANE_QUERIES = 4, LANE_KEYS = 2 * KEY_TILES;
DEVICE u32 lane_query(u32 query) { return query / 2 * 8 + threadIdx.x % 4 * 2 + query % 2; }
DEVICE u32 lane_key(u32 key) { return key * 8 + threadIdx.x % WARP / 4; }

// A lane's scores.
struct ShortScores {
  float score[KEY_TILES][2][4];

  DEVICE float &at(u32 query, u32 key) { return score[key / 2][query / 2][key % 2 * 2 + query % 2]; }

  // Calls `f(score, query, key)`.
  template <class F>
  DEVICE void each(const F &f) {
#pragma unroll
    for (u32 key = 0; key < LANE_KEYS; ++key) {
#pragma unroll
      for (u32 query = 0; query < LANE_QUERIES; ++query) f(at(query, key), query, key);
    }
  }

  // Adds the products of 32 bytes of the tokens.
  DEVICE void add_step(u32 queries, u32 keys) {
    u32 b[4];
    load_tiles(b, queries);
    add_tiles<0>(b, keys);
  }

  // Those of keys from `len` on are none.
  template <u32 M = KEY_TILES - 1>
  DEVICE void end_at(u32 len) {
    if (M * 16 + 16 <= len) return;
    const float none = __int_as_float(0xff800000);
#pragma unroll
    for (u32 k = 2 * M; k < 2 * M + 2; ++k) {
#pragma unroll
      for (u32 q = 0; q < LANE_QUERIES; ++q) at(q, k) = lane_key(k) < len ? at(q, k) : none;
    }
    if constexpr (M > 0) end_at<M - 1>(len);
  }

 private:
  template <u32 M>
  DEVICE void add_tiles(const u32 (&b)[4], u32 keys) {
    if constexpr (M < KEY_TILES) {
      u32 a[4];
      load_tiles<M * 16 * PITCH>(a, keys);
      multiply_16_bit(score[M][0], a, b[0], b[1], ELEMENT());
      multiply_16_bit(score[M][1], a, b[2], b[3], ELEMENT());
      add_tiles<M + 1>(b, keys);
    }
  }
};

DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// What `op` makes of the values of the lanes that have the same queries.
template <class Op>
DEVICE float over_keys(float value, const Op &op) {
#pragma unroll
  for (u32 d = 4; d < WARP; d *= 2) value = op(value, __shfl_xor_sync(FULL_WARP, value, d));
  return value;
}

// Puts what the head's queries weigh into `weights`, and returns which tiles of them are the warp's, as bits.
DEVICE u32 own_tiles(const ScoreShortParams &params, const Place &place, const float *relevance, u32 len, float of_head,
                     float (&weights)[KEY_PANELS * TILE]) {
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  float weight[KEY_PANELS];
#pragma unroll
  for (u32 i = 0; i < KEY_PANELS; ++i) {
    const u32 row = i * WARP + lane;
    weight[i] = row < len ? relevance[row] * of_head : 0.0f;
  }
  u32 live = 0;
#pragma unroll
  for (u32 i = 0; i < KEY_PANELS; ++i) {
    const u32 weighing = __ballot_sync(FULL_WARP, weight[i] != 0.0f);
    live |= (u32((weighing & 0xffff) != 0) | u32(weighing >> 16 != 0) << 1) << 2 * i;
    if (i % WARPS == warp) weights[i * WARP + lane] = weight[i];
  }
  // Those that weigh something are dealt out. Blocks begin with different warps, for the first ones may have more.
  const u32 splits = params.query_splits, begin = place.x + place.y / splits;
  const u32 turn = (__popc(live & ((1u << lane) - 1)) + begin) % (splits * WARPS);
  return __ballot_sync(FULL_WARP, live >> lane & 1 && turn == place.y % splits * WARPS + warp);
}

DEVICE void multiply_short(const ScoreShortParams &params, const Place &place) {
  __shared__ float weights[KEY_PANELS * TILE];
  const Scores &scores = params.scores;
  const ItemScores<ELEMENT> item(scores, 0, place.x);
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const u32 head = place.y / params.query_splits;
  const u32 bytes = scores.head_dim * ELEMENT::BYTES, chunks = (bytes + CHUNK_BYTES - 1) / CHUNK_BYTES;
  const u32 keys = unknown(shared_address(dynamic));
  const u32 queries = keys + chunks * KEY_PANELS * PANEL_BYTES + warp * 2 * chunks * QUERY_PANEL_BYTES;
  const float *relevance = params.relevance + place.x * params.stride_batch;
  u32 own = own_tiles(params, place, relevance, item.len, HeadTerms::of<FUSION>(item, head).weight, weights);
  const Tokens of_queries = item.queries();
  // Starts copying the queries of the next tile.
  const auto fetch = [&](u32 slot) {
    const u32 first = (__ffs(own) - 1) * QUERIES;
#pragma unroll 1
    for (u32 chunk = 0; chunk < chunks; ++chunk) {
      of_queries.template fetch<ELEMENT, QUERIES>(queries + (slot * chunks + chunk) * QUERY_PANEL_BYTES, head, first, item.len,
                                                  chunk * CHUNK_BYTES, bytes);
    }
    commit_copies();
  };
  if (own) fetch(0);
  const Tokens of_keys = item.keys();
  for (u32 panel = warp; panel < chunks * KEY_PANELS; panel += WARPS) {
    of_keys.template fetch<ELEMENT>(keys + panel * PANEL_BYTES, head / scores.sharing, panel % KEY_PANELS * TILE, item.len,
                                    panel / KEY_PANELS * CHUNK_BYTES, bytes);
  }
  commit_copies();
  wait_copies<0>();
  __syncthreads();  // keys and weights are there

  const LanePlaces<ELEMENT> places;
  const float unit = scores.log2_scale, none = __int_as_float(0xff800000);
  const float sink = item.heads[head].sink * LOG2_E;
  float of_key[LANE_KEYS] = {};
#pragma unroll 1
  for (u32 slot = 0; own; slot ^= 1) {
    const u32 first = (__ffs(own) - 1) * QUERIES;
    own &= own - 1;
    wait_copies<0>();
    __syncwarp();  // the queries are there, and what the next ones replace has been read
    if (own) fetch(slot ^ 1);
    ShortScores tile = {};
    u32 of_query = queries + slot * chunks * QUERY_PANEL_BYTES + places.keys, of_token = keys + places.queries;
#pragma unroll 1
    for (u32 left = bytes;; left -= CHUNK_BYTES, of_query += QUERY_PANEL_BYTES, of_token += KEY_PANELS * PANEL_BYTES) {
#pragma unroll 1
      for (u32 at = 0; at < min_u32(left, CHUNK_BYTES); at += STEP_BYTES) tile.add_step(of_query + at, of_token + at);
      if (left <= CHUNK_BYTES) break;
    }
    tile.end_at(item.len);
    if (!item.maskless) {
      u32 begin[LANE_QUERIES], end[LANE_QUERIES];
#pragma unroll
      for (u32 q = 0; q < LANE_QUERIES; ++q) item.attended(first + lane_query(q), begin[q], end[q]);
      tile.each([&](float &score, u32 q, u32 k) {
        score = lane_key(k) - begin[q] < end[q] - begin[q] ? score : none;
      });
    }
    float largest[LANE_QUERIES] = {none, none, none, none}, sum[LANE_QUERIES] = {}, factor[LANE_QUERIES];
    tile.each([&](float &score, u32 q, u32) { largest[q] = fmaxf(largest[q], score); });
#pragma unroll
    for (u32 q = 0; q < LANE_QUERIES; ++q) {
      largest[q] = unit * over_keys(largest[q], [](float a, float b) { return fmaxf(a, b); });
    }
    tile.each([&](float &score, u32 q, u32) {
      score = item.power_of_2(fmaf(score, unit, -largest[q]));
      sum[q] += score;
    });
    float weight[LANE_QUERIES];
    bool some_are_nothing = false;
#pragma unroll
    for (u32 q = 0; q < LANE_QUERIES; ++q) {
      sum[q] = over_keys(sum[q], [](float a, float b) { return a + b; }) + item.power_of_2(sink - largest[q]);
      weight[q] = weights[first + lane_query(q)];
      factor[q] = weight[q] * reciprocal(sum[q]);
      some_are_nothing |= weight[q] == 0.0f;
    }
    // Nothing that a query says which weighs nothing matters, be it NaN, as where none of its keys are there.
    if (__any_sync(FULL_WARP, some_are_nothing)) {
#pragma unroll
      for (u32 q = 0; q < LANE_QUERIES; ++q) factor[q] = weight[q] == 0.0f ? 0.0f : factor[q];
      tile.each([&](float &score, u32 q, u32) { score = weight[q] == 0.0f ? 0.0f : score; });
    }
    tile.each([&](float &score, u32 q, u32 k) { of_key[k] = fmaf(score, factor[q], of_key[k]); });
  }
  __syncthreads();  // the keys have been read
  float *sums = reinterpret_cast<float *>(dynamic);
#pragma unroll
  for (u32 k = 0; k < LANE_KEYS; ++k) sums[(warp * 4 + lane % 4) * SUMS_PITCH + lane_key(k)] = of_key[k];
  __syncthreads();  // the sums are there
  float *out = params.partials + (u64(place.y) * scores.batch + place.x) * scores.sums_len;
  for (u32 column = threadIdx.x; column < item.len; column += THREADS) {
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < 4 * WARPS; ++i) sum += sums[i * SUMS_PITCH + column];
    out[column] = FUSION::finish(sum, scores.head_scale);
  }
}

ENTRY(ScoreShortParams, multiply_short, __launch_bounds__(THREADS, BLOCKS - GROUPED))
