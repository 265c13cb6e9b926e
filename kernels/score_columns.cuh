// Sums over queries of weighed exponentials, which a lane keeps for its columns.
#pragma once

#include "scores.cuh"

// The sums over the rows of all lanes, of columns that each has a part of: a lane is left with its own one.
template <class P>
DEVICE float sum_of_rows(float (&sum)[P::COLUMNS]) {
#pragma unroll
  for (u32 left = P::COLUMNS / 2, d = P::APART; left; left /= 2, d /= 2) {
    const bool upper = threadIdx.x & d;
#pragma unroll
    for (u32 c = 0; c < left; ++c) {
      const float kept = upper ? sum[c + left] : sum[c], given = upper ? sum[c] : sum[c + left];
      sum[c] = kept + __shfl_xor_sync(FULL_WARP, given, d);
    }
  }
  return sum[0];
}

// The exponentials of a tile in which all is plain, of the keys that a warp holds: 8 queries at a time, beside the products of
// the next ones.
template <class Element, class Take>
struct PlainQueries {
  static constexpr u32 QUERIES = ProductsOfKeys::QUERIES;
  const ItemScores<Element> &item;
  const HeldKeys<Element> &keys;
  u32 queries, sums;  // where a lane's elements begin, and what is known of its queries
  u32 end;            // behind the last of the queries
  const Take &take;

  // Shows `take` those from FIRST on, of which the first ones have these products.
  template <u32 FIRST = 0>
  DEVICE void show(const ProductsOfKeys &products) const {
    if constexpr (FIRST + QUERIES < TILE) {
      if (FIRST + QUERIES < end) {
        const ProductsOfKeys next = keys.template products<(FIRST + QUERIES) * PITCH>(queries);
        show_first<FIRST>(products);
        show<FIRST + QUERIES>(next);
        return;
      }
    }
    show_first<FIRST>(products);
  }

 private:
  template <u32 FIRST>
  DEVICE void show_first(const ProductsOfKeys &products) const {
    static_assert(ProductsOfKeys::ROWS * sizeof(RowSum) == GRANULE_BYTES, "those of a lane come at once");
    float known[4];
    load_shared<FIRST * sizeof(RowSum)>(known, sums);
#pragma unroll
    for (u32 r = 0; r < ProductsOfKeys::ROWS; ++r) {
      const float shift = known[2 * r], factor = known[2 * r + 1];
#pragma unroll
      for (u32 c = 0; c < ProductsOfKeys::COLUMNS; ++c) {
        take(r, c, ItemScores<Element>::power_of_2(item.plain_score(products.at(r, c), shift)), factor);
      }
    }
  }
};

// Shows `take` the exponentials of a tile, as `exponentials` does, of the keys that a warp holds and of queries of which a
// lane's begin at `queries`: 8 at a time. `sums` is a multiple of 16.
template <class Element, class Take>
DEVICE void exponentials_of_held(const ItemScores<Element> &item, ScoreTile tile, float slope, bool plain, const RowSum *sums,
                                 const HeldKeys<Element> &keys, u32 queries, const Take &take) {
  constexpr u32 QUERIES = ProductsOfKeys::QUERIES;
  const u32 count = min_u32(TILE, item.len - tile.query);
  if (plain) {
    const u32 of_lane = shared_address(sums) + ProductsOfKeys::row(0) * sizeof(RowSum);
    PlainQueries<Element, Take>{item, keys, queries, of_lane, count, take}.show(keys.products(queries));
    return;
  }
  const u32 end = queries + count * PITCH;
#pragma unroll 1
  for (; queries < end; queries += QUERIES * PITCH, tile.query += QUERIES, sums += QUERIES) {
    exponentials<true>(item, tile, slope, false, sums, keys.products(queries), take);
  }
}
