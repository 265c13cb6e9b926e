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

// Shows `take` the exponentials of a tile, as `exponentials` does, of the keys that a warp holds and of queries of which a
// lane's begin at `queries`: 8 at a time.
template <class Element, class Take>
DEVICE void exponentials_of_held(const ItemScores<Element> &item, ScoreTile tile, float slope, bool plain, const RowSum *sums,
                                 const HeldKeys<Element> &keys, u32 queries, const Take &take) {
  constexpr u32 QUERIES = ProductsOfKeys::QUERIES, STEP = QUERIES * PITCH;
  const u32 end = queries + min_u32(TILE, item.len - tile.query) * PITCH;
  if (plain) {
    // The exponentials of some queries while the next ones are multiplied.
    ProductsOfKeys products = keys.products(queries);
#pragma unroll 1
    while ((queries += STEP) < end) {
      const ProductsOfKeys next = keys.products(queries);
      exponentials<true>(item, tile, slope, true, sums, products, take);
      products = next;
      sums += QUERIES;
    }
    exponentials<true>(item, tile, slope, true, sums, products, take);
    return;
  }
#pragma unroll 1
  for (; queries < end; queries += STEP, tile.query += QUERIES, sums += QUERIES) {
    exponentials<true>(item, tile, slope, false, sums, keys.products(queries), take);
  }
}
