// Scores of a tile of queries and keys of one head, by tensor cores, and how entries of attention follow from them.
//
// A block takes tiles of 64 queries by 64 keys, one head after the other. Four warps hold 32 x 32 products each. Queries and
// keys come through shared memory, 128 bytes of each at a time, so any head size is the same code; the next 128 bytes, or
// the first of the next tile, are on their way while these are multiplied. Products of f16 and bf16 are exact and take one
// `mma`; f32 is split into tf32 `hi + lo` and takes three.
//
// Where queries and keys do not all begin at multiples of 16 bytes, they are loaded element by element.
#pragma once

#include "folds.cuh"
#include "memory.cuh"
#include "mma.cuh"
#include "params.cuh"

constexpr u32 TILE = 64;  // queries, and keys, of a tile
constexpr u32 SCORE_WARPS = 4, SCORE_THREADS = SCORE_WARPS * WARP;
constexpr u32 WARP_TILE = 32;       // queries, and keys, of a warp
constexpr u32 CHUNK_BYTES = 128;    // of a query or key, at a time
constexpr u32 PITCH = CHUNK_BYTES + 16;  // no bank conflicts, in `ldmatrix` or word by word

// Queries and keys of two turns.
struct __align__(16) ScoreStage {
  char queries[TILE][PITCH], keys[TILE][PITCH];
};

// Sums of products of a lane 4 g + q: queries 16 m + g and 16 m + g + 8, keys 8 n + 2 q and 8 n + 2 q + 1 of its warp.
struct Products {
  static constexpr u32 ROWS = 4, COLUMNS = 8;  // of a lane
  float sum[2][4][4];
  // The sum in a lane's row and column.
  DEVICE float at(u32 row, u32 column) const { return sum[row / 2][column / 2][row % 2 * 2 + column % 2]; }
};

// A lane's rows and columns in the tile.
DEVICE u32 lane_row(u32 row) {
  return threadIdx.x / WARP / 2 * WARP_TILE + row * 8 + threadIdx.x % WARP / 4;
}
DEVICE u32 lane_column(u32 column) {
  return threadIdx.x / WARP % 2 * WARP_TILE + column / 2 * 8 + threadIdx.x % 4 * 2 + column % 2;
}

DEVICE void multiply_16_bit(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1, f16) { mma_f16(sum, a, b0, b1); }
DEVICE void multiply_16_bit(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1, bf16) { mma_bf16(sum, a, b0, b1); }

// Adds the products of `bytes` bytes of the queries and keys of a stage.
template <class Element>
DEVICE void add_products(Products &products, const ScoreStage &stage, u32 bytes) {
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const char *queries = stage.queries[warp / 2 * WARP_TILE], *keys = stage.keys[warp % 2 * WARP_TILE];
  constexpr u32 STEP = 32;  // bytes of a product: 16 elements of 2 bytes, or 8 of 4
#pragma unroll 1
  for (u32 at = 0; at < bytes; at += STEP) {
    if constexpr (Element::BYTES == 2) {
      u32 a[2][4];
#pragma unroll
      for (u32 m = 0; m < 2; ++m) {
        load_tiles(a[m], shared_address(queries + (m * 16 + lane % 16) * PITCH + at + lane / 16 * 16));
      }
#pragma unroll
      for (u32 n = 0; n < 4; n += 2) {
        u32 b[4];
        load_tiles(b, shared_address(keys + (n * 8 + lane / 16 * 8 + lane % 8) * PITCH + at + lane / 8 % 2 * 16));
#pragma unroll
        for (u32 m = 0; m < 2; ++m) {
          multiply_16_bit(products.sum[m][n], a[m], b[0], b[1], Element());
          multiply_16_bit(products.sum[m][n + 1], a[m], b[2], b[3], Element());
        }
      }
    } else {
      const u32 g = lane / 4, q = lane % 4;
      const auto element = [&](const char *tokens, u32 token, u32 index) {
        return *reinterpret_cast<const float *>(tokens + token * PITCH + at + index * 4);
      };
      u32 hi[2][4], lo[2][4];
#pragma unroll
      for (u32 m = 0; m < 2; ++m) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
          SplitTf32::split(element(queries, m * 16 + g + e % 2 * 8, q + e / 2 * 4), hi[m][e], lo[m][e]);
        }
      }
#pragma unroll
      for (u32 n = 0; n < 4; ++n) {
        u32 right_hi[2], right_lo[2];
#pragma unroll
        for (u32 e = 0; e < 2; ++e) SplitTf32::split(element(keys, n * 8 + g, q + e * 4), right_hi[e], right_lo[e]);
#pragma unroll
        for (u32 m = 0; m < 2; ++m) {
          mma_tf32(products.sum[m][n], hi[m], right_lo[0], right_lo[1]);
          mma_tf32(products.sum[m][n], lo[m], right_hi[0], right_hi[1]);
          mma_tf32(products.sum[m][n], hi[m], right_hi[0], right_hi[1]);
        }
      }
    }
  }
}

// The queries or the keys of one item of a layer.
struct Tokens {
  u64 origin;  // head 0, first token of the window
  u64 stride_head, stride_token;  // in bytes
  bool aligned;  // all begin at multiples of 16 bytes

  DEVICE Tokens(const void *base, u64 stride_batch, u64 stride_head, u64 stride_token, u32 element_bytes, u32 item,
                u32 window_start)
      : origin(global_address(base) + (item * stride_batch + window_start * stride_token) * element_bytes),
        stride_head(stride_head * element_bytes),
        stride_token(stride_token * element_bytes),
        aligned((origin | this->stride_head | this->stride_token) % GRANULE_BYTES == 0) {}

  // Starts copying a chunk, from byte `begin` to byte `end` at most, of the tokens of a head from `first` on. Zeros where
  // there is no token, or nothing more of it.
  template <class Element>
  DEVICE void fetch(char (&to)[TILE][PITCH], u32 head, u32 first, u32 len, u32 begin, u32 end) const {
    // A thread has the same granule of every so many tokens.
    constexpr u32 GRANULES = CHUNK_BYTES / GRANULE_BYTES, STEP = SCORE_THREADS / GRANULES;
    const u32 token = threadIdx.x / GRANULES, within = threadIdx.x % GRANULES * GRANULE_BYTES, at = begin + within;
    const u32 left = at < end && first < len ? len - first : 0;
    u64 from = origin + head * stride_head + (first + token) * stride_token + at;
    u32 place = shared_address(&to[token][within]);
    if (aligned) {
#pragma unroll
      for (u32 row = 0; row < TILE; row += STEP, from += STEP * stride_token, place += STEP * PITCH) {
        const bool wanted = token + row < left;
        copy_granule_or_zeros(place, wanted ? from : origin, wanted);
      }
    } else {
#pragma unroll 1
      for (u32 row = 0; row < TILE; row += STEP, from += STEP * stride_token, place += STEP * PITCH) {
        store_shared_granule(place, token + row < left ? load_elements<Element>(from) : Granule{});
      }
    }
  }

 private:
  // 16 bytes from wherever their elements may begin.
  template <class Element>
  DEVICE static Granule load_elements(u64 from) {
    Granule granule = {};
#pragma unroll
    for (u32 e = 0; e < Element::PER_GRANULE; ++e) {
      const u32 byte = e * Element::BYTES;
      granule.word[byte / 4] |= load_element<Element::BYTES>(from + byte) << byte % 4 * 8;
    }
    return granule;
  }
};

// Which scores a tile has.
struct ScoreTile {
  u32 head, query, key;  // the first of each
};

// The scores of one item of a layer.
template <class Element>
struct ItemScores {
  const Scores &scores;
  const LayerScores &layer;
  const HeadScores *heads;
  u32 layer_number, item, window_start, len;
  Tokens queries, keys;

  DEVICE ItemScores(const Scores &scores, u32 layer, u32 item)
      : scores(scores),
        layer(scores.layer[layer]),
        heads(scores.head + layer * scores.heads),
        layer_number(layer),
        item(item),
        window_start(scores.windows[item].start),
        len(scores.windows[item].len),
        queries(this->layer.queries, this->layer.queries_batch, this->layer.queries_head, this->layer.queries_token,
                Element::BYTES, item, window_start),
        keys(this->layer.keys, this->layer.keys_batch, this->layer.keys_head, this->layer.keys_token, Element::BYTES, item,
             window_start) {}

  // Shows `take` the products of `count` tiles, of which `tile` names each, and `begin_tile` these before they are computed. All
  // threads of the block take part.
  template <class Tile, class Begin, class Take>
  DEVICE void visit(ScoreStage (&stages)[2], u32 count, const Tile &tile, const Begin &begin_tile, const Take &take) const {
    const u32 bytes = scores.head_dim * Element::BYTES;
    u32 turn = 0;
    if (count) fetch(stages[0], tile(0), 0, bytes);
    commit_copies();
    for (u32 i = 0; i < count; ++i) {
      const ScoreTile current = tile(i);
      begin_tile(current);
      Products products = {};
      for (u32 begin = 0; begin < bytes; begin += CHUNK_BYTES) {
        ScoreStage &next = stages[(turn + 1) % 2];
        if (begin + CHUNK_BYTES < bytes) {
          fetch(next, current, begin + CHUNK_BYTES, bytes);
        } else if (i + 1 < count) {
          fetch(next, tile(i + 1), 0, bytes);
        }
        commit_copies();
        wait_copies<1>();
        __syncthreads();  // the chunk is there
        add_products<Element>(products, stages[turn % 2], min_u32(CHUNK_BYTES, bytes - begin));
        __syncthreads();  // and has been read
        ++turn;
      }
      take(current, products);
    }
    wait_copies<0>();
  }

  // Whether a query and a key that the window has are apart by a mask.
  DEVICE bool masks(u32 row, u32 column) const {
    return scores.causal && column > row || layer.sliding_window && distance(row, column) >= layer.sliding_window;
  }

  // Whether no entry of a tile is masked, or outside the window.
  DEVICE bool masks_none(u32 query, u32 key) const {
    const u32 last_query = query + TILE - 1, last_key = key + TILE - 1;
    if (last_query >= len || last_key >= len || scores.causal && last_key > query) return false;
    const u32 apart = max_u32(distance(query, last_key), distance(last_query, key));
    return !layer.sliding_window || apart < layer.sliding_window;
  }

  // Whether the scores of a head are products times the scale, and nothing else.
  DEVICE bool is_plain(u32 head) const { return layer.soft_cap == 0.0f && heads[head].slope == 0.0f; }

  // Whether all entries of a tile are masked.
  DEVICE bool masks_all(u32 query, u32 key) const {
    const u32 last_query = query + TILE - 1, last_key = key + TILE - 1;
    if (scores.causal && key > last_query) return true;
    const u32 between = key > last_query ? key - last_query : query > last_key ? query - last_key : 0;
    return layer.sliding_window && between >= layer.sliding_window;
  }

  // The score that follows from a product, less `shift`.
  DEVICE float score(float product, u32 head, u32 row, u32 column, float shift) const {
    if (is_plain(head)) return fmaf(product, scores.scale, -shift);
    float score = product * scores.scale;
    if (layer.soft_cap != 0.0f) score = layer.soft_cap * tanhf(score / layer.soft_cap);
    return fmaf(-heads[head].slope, float(distance(row, column)), score) - shift;
  }

  // What makes entries of the scores of a row: those of a row that is not there, or that is empty, are 0.
  DEVICE RowSum row_sum(u32 head, u32 row) const { return known(stored(head, row), row); }
  // The same in two steps. Nothing waits for the first, which is what lies in memory: the sums, or the LSE.
  DEVICE RowSum stored(u32 head, u32 row) const {
    if (row >= len) return {0.0f, 0.0f};
    if (scores.sums) return scores.sums[sum_index(head, row)];
    return {given_lse(head, row), 0.0f};
  }
  DEVICE RowSum known(const RowSum &stored, u32 row) const {
    constexpr float LARGEST = 3.402823466e38f;
    if (row >= len) return {LARGEST, 0.0f};
    if (scores.sums) return stored;
    const float lse = stored.shift;
    if (lse - lse != 0.0f && lse == lse) return {LARGEST, 0.0f};
    return {lse * scores.lse_unit, 1.0f};
  }
  // The LSE given for a row, to its base.
  DEVICE float given_lse(u32 head, u32 row) const {
    const u64 token = window_start + row;
    return layer.lse[item * layer.lse_batch + head * layer.lse_head + token * layer.lse_token];
  }
  DEVICE u64 sum_index(u32 head, u32 row) const {
    return (u64(layer_number * scores.batch + item) * scores.heads + head) * scores.sums_len + row;
  }

  // What a row of the fused map must sum to where the LSE is given, the shares of the heads in which it is not empty, and
  // the sum of their magnitudes: those of heads `first`, `first + step`, ...
  DEVICE Mass shares(u32 row, u32 first, u32 step) const {
    Mass mass = {0.0f, 0.0f, 0.0f};
    for (u32 head = first; head < scores.heads; head += step) {
      const float share = scores.head_weights ? scores.head_weights[head] : scores.head_scale;
      if (row_sum(head, row).factor == 0.0f) continue;
      mass.expected += share;
      mass.magnitude += fabsf(share);
    }
    return mass;
  }

  // The entry of a head that follows from a product.
  DEVICE float entry(float product, u32 head, u32 row, u32 column, const RowSum &sum) const {
    if (column >= len || masks(row, column)) return 0.0f;
    return exponential(score(product, head, row, column, sum.shift)) * sum.factor;
  }

  // e to the power of `x`.
  DEVICE static float exponential(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
    return y;
  }

 private:
  DEVICE static u32 distance(u32 row, u32 column) { return row > column ? row - column : column - row; }

  DEVICE void fetch(ScoreStage &stage, const ScoreTile &tile, u32 begin, u32 end) const {
    queries.template fetch<Element>(stage.queries, tile.head, tile.query, len, begin, end);
    keys.template fetch<Element>(stage.keys, tile.head / scores.sharing, tile.key, len, begin, end);
  }
};

// The fused entries of a lane in a tile: the entries of one head after the other.
template <class Fusion>
struct FusedTile {
  float entry[Products::ROWS][Products::COLUMNS];
  RowSum stored[Products::ROWS];  // of the head that comes next

  DEVICE FusedTile() { start(); }

  // Before the first head.
  DEVICE void start() {
#pragma unroll
    for (u32 r = 0; r < Products::ROWS; ++r) {
#pragma unroll
      for (u32 c = 0; c < Products::COLUMNS; ++c) entry[r][c] = Fusion::start();
    }
  }

  // Asks for what turns the scores of a tile into entries: it is on its way while they are computed.
  template <class Element>
  DEVICE void begin(const ItemScores<Element> &scores, const ScoreTile &tile) {
#pragma unroll
    for (u32 r = 0; r < Products::ROWS; ++r) stored[r] = scores.stored(tile.head, tile.query + lane_row(r));
  }

  // Adds the head of a tile.
  template <class Element>
  DEVICE void add(const ItemScores<Element> &scores, const ScoreTile &tile, const Products &products) {
    float weight = 0.0f;
    if constexpr (Fusion::WEIGHTED) weight = scores.scores.head_weights[tile.head];
    const bool plain = scores.masks_none(tile.query, tile.key) && scores.is_plain(tile.head);
    if (plain) {
      const float scale = scores.scores.scale;
#pragma unroll
      for (u32 r = 0; r < Products::ROWS; ++r) {
        const RowSum sum = scores.known(stored[r], tile.query + lane_row(r));
#pragma unroll
        for (u32 c = 0; c < Products::COLUMNS; ++c) {
          const float score = fmaf(products.at(r, c), scale, -sum.shift);
          entry[r][c] = Fusion::add(entry[r][c], ItemScores<Element>::exponential(score) * sum.factor, weight);
        }
      }
      return;
    }
#pragma unroll
    for (u32 r = 0; r < Products::ROWS; ++r) {
      const u32 row = tile.query + lane_row(r);
      const RowSum sum = scores.known(stored[r], row);
#pragma unroll
      for (u32 c = 0; c < Products::COLUMNS; ++c) {
        const float value = scores.entry(products.at(r, c), tile.head, row, tile.key + lane_column(c), sum);
        entry[r][c] = Fusion::add(entry[r][c], value, weight);
      }
    }
  }

  // The fused entry after the last head.
  DEVICE float finished(u32 row, u32 column, float head_scale) const {
    return Fusion::finish(entry[row][column], head_scale);
  }
};
