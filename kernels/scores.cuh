// The scores of queries and keys, and how entries of attention follow from them.
//
// A warp has those of 32 queries and 32 keys of one head, or fewer, from score_products.cuh. Queries and keys come through
// shared memory. score_ring.cuh brings them.
//
// Where queries and keys do not all begin at multiples of 16 bytes, they are loaded element by element.
#pragma once

#include "folds.cuh"
#include "memory.cuh"
#include "params.cuh"
#include "score_products.cuh"

constexpr float LOG2_E = 1.44269504f;

// The queries or the keys of one item of a layer, as a lane copies them: the same granule of every fourth token.
struct Tokens {
  u64 origin;  // head 0, first token of the window, and of these what the lane begins with
  u64 stride_head, stride_token;  // in bytes
  u32 token, within;  // the lane's first token of a panel, and its bytes of a chunk
  bool aligned;  // all begin at multiples of 16 bytes

  DEVICE Tokens(const void *base, u64 stride_batch, u64 stride_head, u64 stride_token, u32 element_bytes, u32 item,
                u32 window_start)
      : stride_head(stride_head * element_bytes),
        stride_token(stride_token * element_bytes),
        token(threadIdx.x % WARP / GRANULES),
        within(threadIdx.x % GRANULES * GRANULE_BYTES) {
    const u64 first = global_address(base) + (item * stride_batch + (window_start + token) * stride_token) * element_bytes;
    aligned = (first | this->stride_head | this->stride_token) % GRANULE_BYTES == 0;
    origin = first + within;
  }

  // Starts copying a chunk, from byte `begin` to byte `end` at most, of the tokens of a head from `first` on into a panel of
  // shared memory. Zeros where there is no token, or nothing more of it. One warp.
  template <class Element, u32 TOKENS = TILE>
  DEVICE void fetch(u32 to, u32 head, u32 first, u32 len, u32 begin, u32 end) const {
    const u32 left = begin + within < end && first < len ? len - first : 0;
    u64 from = origin + head * stride_head + first * stride_token + begin;
    u32 place = to + token * PITCH + within;
    if (aligned) {
#pragma unroll
      for (u32 t = 0; t < TOKENS; t += STEP, from += STEP * stride_token) {
        copy_granule_or_zeros(place + t * PITCH, from, token + t < left);
      }
    } else {
#pragma unroll 1
      for (u32 t = token; t < TOKENS; t += STEP, from += STEP * stride_token, place += STEP * PITCH) {
        store_shared_granule(place, t < left ? load_elements<Element>(from) : Granule{});
      }
    }
  }

 private:
  static constexpr u32 GRANULES = CHUNK_BYTES / GRANULE_BYTES;
  static constexpr u32 STEP = WARP / GRANULES;  // tokens of a warp at a time

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

// The scores of a warp: those of one head, of 32 queries and 32 keys from these on.
struct ScoreTile {
  u32 head, query, key;
};

// The scores of one item of a layer.
template <class Element>
struct ItemScores {
  const Scores &scores;
  const LayerScores &layer;
  const HeadScores *heads;
  u32 layer_number, item, window_start, len;
  bool maskless;

  DEVICE ItemScores(const Scores &scores, u32 layer, u32 item) : ItemScores(scores, layer, item, scores.windows[item]) {}
  DEVICE ItemScores(const Scores &scores, u32 layer, u32 item, const Window &window)
      : scores(scores),
        layer(scores.layer[layer]),
        heads(scores.head + layer * scores.heads),
        layer_number(layer),
        item(item),
        window_start(window.start),
        len(window.len),
        maskless(!scores.causal && !this->layer.sliding_window) {}

  DEVICE Tokens queries() const {
    return Tokens(layer.queries, layer.queries_batch, layer.queries_head, layer.queries_token, Element::BYTES, item,
                  window_start);
  }
  DEVICE Tokens keys() const {
    return Tokens(layer.keys, layer.keys_batch, layer.keys_head, layer.keys_token, Element::BYTES, item, window_start);
  }

  // Whether a query and a key are apart by a mask.
  DEVICE bool masks(u32 row, u32 column) const {
    if (maskless) return false;
    return scores.causal && column > row || layer.sliding_window && distance(row, column) >= layer.sliding_window;
  }

  // The keys that masks leave to a query, or some beyond the window's end.
  DEVICE void attended(u32 row, u32 &begin, u32 &end) const {
    begin = 0;
    end = scores.causal ? row + 1 : ~0u;
    if (!layer.sliding_window) return;
    const u32 reach = layer.sliding_window - 1;
    begin = row - min_u32(row, reach);
    end = min_u32(end, row + min_u32(reach, ~0u - 1 - row) + 1);
  }

  // Whether none of a tile are.
  DEVICE bool masks_none(u32 query, u32 key) const {
    if (maskless) return true;
    // Not computed where nobody asks.
    const u32 last_query = unknown(query) + TILE - 1, last_key = unknown(key) + TILE - 1;
    if (scores.causal && last_key > query) return false;
    const u32 apart = max_u32(distance(query, last_key), distance(last_query, key));
    return !layer.sliding_window || apart < layer.sliding_window;
  }

  // Whether all of `queries` queries and `keys` keys are.
  DEVICE bool masks_all(u32 query, u32 queries, u32 key, u32 keys) const {
    if (maskless) return false;
    const u32 last_query = unknown(query) + queries - 1, last_key = unknown(key) + keys - 1;
    if (scores.causal && key > last_query) return true;
    const u32 between = key > last_query ? key - last_query : query > last_key ? query - last_key : 0;
    return layer.sliding_window && between >= layer.sliding_window;
  }

  // Whether the scores of a head of that slope are products times the scale, and nothing else.
  DEVICE bool is_plain(float slope) const { return layer.soft_cap == 0.0f && slope == 0.0f; }

  // The score that follows from a product, in units of which 2 to the power of is taken, less `shift`.
  DEVICE float score(float product, float slope, u32 row, u32 column, float shift) const {
    if (is_plain(slope)) return plain_score(product, shift);
    float score = product * scores.scale;
    if (layer.soft_cap != 0.0f) score = layer.soft_cap * tanhf(score / layer.soft_cap);
    return fmaf(fmaf(-slope, float(distance(row, column)), score), LOG2_E, -shift);
  }
  DEVICE float plain_score(float product, float shift) const { return fmaf(product, scores.log2_scale, -shift); }

  // Starts copying what makes entries of the scores of a row: the sums, or the LSE. Zeros where there is no row.
  DEVICE void copy_row_sum(RowSum &to, u32 head, u32 row) const {
    const bool wanted = row < len;
    if (scores.sums) {
      copy_or_zeros<8>(shared_address(&to), global_address(scores.sums + (wanted ? sum_index(head, row) : 0)), wanted);
    } else {
      copy_or_zeros<4>(shared_address(&to), global_address(layer.lse + (wanted ? lse_index(head, row) : 0)), wanted);
    }
  }
  // What was copied, and says that: the entries of a row that is empty are 0.
  DEVICE RowSum known(const RowSum &copied) const {
    if (scores.sums) return copied;
    const float lse = copied.shift;
    return is_empty(lse) ? RowSum{LARGEST, 0.0f} : RowSum{lse * scores.log2_unit, 1.0f};
  }
  // The LSE given for a row, to its base.
  DEVICE float given_lse(u32 head, u32 row) const { return layer.lse[lse_index(head, row)]; }
  DEVICE u64 lse_index(u32 head, u32 row) const {
    return item * layer.lse_batch + head * layer.lse_head + u64(window_start + row) * layer.lse_token;
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
      if (is_empty(given_lse(head, row))) continue;
      mass.expected += share;
      mass.magnitude += fabsf(share);
    }
    return mass;
  }

  // 2 to the power of `x`.
  DEVICE static float power_of_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }

 private:
  static constexpr float LARGEST = 3.402823466e38f;

  DEVICE static u32 distance(u32 row, u32 column) { return row > column ? row - column : column - row; }

  // An LSE that is infinite is that of a row without keys: which sign it has depends on who computed it.
  DEVICE static bool is_empty(float lse) { return fabsf(lse) > LARGEST; }
};

// What a head has of its own.
struct HeadTerms {
  float slope, weight;

  template <class Fusion, class Element>
  DEVICE static HeadTerms of(const ItemScores<Element> &item, u32 head) {
    return {item.heads[head].slope, Fusion::WEIGHTED ? item.scores.head_weights[head] : 1.0f};
  }
};

// The sums of the rows of `ROWS` queries that pass by, for each of `ROOM` slots, as one warp copies them.
template <u32 ROOM, u32 ROWS, class Element>
struct PassingSums {
  const ItemScores<Element> &item;
  RowSum (&sums)[ROOM][ROWS];

  DEVICE void copy(u32 slot, u32 head, u32 first) const {
    for (u32 row = threadIdx.x % WARP; row < ROWS; row += WARP) item.copy_row_sum(sums[slot][row], head, first + row);
  }
  DEVICE void settle(u32 slot, u32) const {
    for (u32 row = threadIdx.x % WARP; row < ROWS; row += WARP) sums[slot][row] = item.known(sums[slot][row]);
  }
};

// Shows `take` the exponentials that follow from the products of a tile, entry by entry, and the factor of each. Where all
// scores are products times the scale, and nothing else, the tile is `plain`; else those of masked entries are 0, and rows
// without a factor are passed over where PASSES_OVER. What is known of its rows begins at `sums`.
template <bool PASSES_OVER, class Element, class Products, class Take>
DEVICE void exponentials(const ItemScores<Element> &item, const ScoreTile &tile, float slope, bool plain, const RowSum *sums,
                         const Products &products, const Take &take) {
  sums += Products::row(0);
  if (plain) {
#pragma unroll
    for (u32 r = 0; r < Products::ROWS; ++r) {
      const RowSum sum = sums[Products::row(r) - Products::row(0)];
#pragma unroll
      for (u32 c = 0; c < Products::COLUMNS; ++c) {
        take(r, c, ItemScores<Element>::power_of_2(item.plain_score(products.at(r, c), sum.shift)), sum.factor);
      }
    }
    return;
  }
#pragma unroll
  for (u32 r = 0; r < Products::ROWS; ++r) {
    const RowSum sum = sums[Products::row(r) - Products::row(0)];
    if (PASSES_OVER && sum.factor == 0.0f) continue;
    // Not once for all heads: it would take registers.
    const u32 row = unknown(tile.query + Products::row(r));
#pragma unroll
    for (u32 c = 0; c < Products::COLUMNS; ++c) {
      const u32 column = tile.key + Products::column(c);
      float value = 0.0f;
      if (!item.masks(row, column)) {
        value = ItemScores<Element>::power_of_2(item.score(products.at(r, c), slope, row, column, sum.shift));
      }
      take(r, c, value, sum.factor);
    }
  }
}

// The fused entries of a lane in a tile: the entries of one head after the other.
template <class Fusion>
struct FusedTile {
  float entry[Products::ROWS][Products::COLUMNS];

  DEVICE FusedTile() { start(); }

  // Before the first head.
  DEVICE void start() {
#pragma unroll
    for (u32 r = 0; r < Products::ROWS; ++r) {
#pragma unroll
      for (u32 c = 0; c < Products::COLUMNS; ++c) entry[r][c] = Fusion::start();
    }
  }

  // Adds the head of a tile, of whose rows that much is known.
  template <class Element>
  DEVICE void add(const ItemScores<Element> &item, const ScoreTile &tile, const HeadTerms &terms, const RowSum *sums,
                  const Products &products) {
    const bool plain = item.is_plain(terms.slope) && item.masks_none(tile.query, tile.key);
    exponentials<false>(item, tile, terms.slope, plain, sums, products, [&](u32 r, u32 c, float value, float factor) {
      entry[r][c] = Fusion::add(entry[r][c], value * factor, terms.weight);
    });
  }

  // The fused entry after the last head.
  DEVICE float finished(u32 row, u32 column, float head_scale) const {
    return Fusion::finish(entry[row][column], head_scale);
  }
};
