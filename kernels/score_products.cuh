// The products of queries and keys that lie in shared memory.
//
// A warp computes those of 32 queries and 32 keys of one head with `mma.sync`. Products of f16 and bf16 are exact and take one;
// f32 is split into tf32 `hi + lo` and takes three. Queries and keys are in panels, 128 bytes of each of 32 tokens, so any head
// size is the same code.
#pragma once

#include "mma.cuh"
#include "types.cuh"

constexpr u32 TILE = 32;                 // queries, and keys, of a warp
constexpr u32 CHUNK_BYTES = 128;         // of a query or key, at a time
constexpr u32 PITCH = CHUNK_BYTES + 16;  // no bank conflicts, in `ldmatrix` or word by word

// A chunk of 32 queries or keys in shared memory.
constexpr u32 PANEL_BYTES = TILE * PITCH;

// Sums of products of a lane 4 g + q: queries 16 m + g and 16 m + g + 8, keys 8 n + 2 q and 8 n + 2 q + 1.
struct Products {
  static constexpr u32 ROWS = 4, COLUMNS = 8;  // of a lane
  float sum[2][4][4];
  // The sum in a lane's row and column, and where these are in the tile.
  DEVICE float at(u32 row, u32 column) const { return sum[row / 2][column / 2][row % 2 * 2 + column % 2]; }
  DEVICE static u32 row(u32 row) { return row * 8 + threadIdx.x % WARP / 4; }
  DEVICE static u32 column(u32 column) { return column / 2 * 8 + threadIdx.x % 4 * 2 + column % 2; }
  // How far apart lanes of the same columns are at most, and the column of a lane when they have shared these.
  static constexpr u32 APART = WARP / 2;
  DEVICE static u32 own_column() { return column(threadIdx.x % WARP / 4); }
};

// The same of 8 queries, where keys are the rows of the products: keys 16 m + g and 16 m + g + 8, queries 2 q and 2 q + 1.
struct ProductsOfKeys {
  static constexpr u32 QUERIES = 8;  // of a warp
  static constexpr u32 ROWS = 2, COLUMNS = 4;
  float sum[2][4];
  DEVICE float at(u32 row, u32 column) const { return sum[column / 2][column % 2 * 2 + row]; }
  DEVICE static u32 row(u32 row) { return threadIdx.x % 4 * 2 + row; }
  DEVICE static u32 column(u32 column) { return column * 8 + threadIdx.x % WARP / 4; }
  static constexpr u32 APART = 2;
  DEVICE static u32 own_column() { return column(threadIdx.x % 4); }
};

DEVICE void multiply_16_bit(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1, f16) { mma_f16(sum, a, b0, b1); }
DEVICE void multiply_16_bit(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1, bf16) { mma_bf16(sum, a, b0, b1); }

// Where the elements of a lane begin in a panel of queries, and of keys.
template <class Element>
struct LanePlaces {
  u32 queries, keys;

  DEVICE LanePlaces() {
    const u32 lane = threadIdx.x % WARP;
    // Computed once, not for every tile.
    if (Element::BYTES == 2) {
      queries = unknown(lane % 16 * PITCH + lane / 16 * 16);
      keys = unknown((lane / 16 * 8 + lane % 8) * PITCH + lane / 8 % 2 * 16);
    } else {
      queries = keys = unknown(lane / 4 * PITCH + lane % 4 * 4);
    }
  }
};

// Adds the products of 32 bytes of the tokens of two panels, of which a lane's begin AT bytes behind there: 16 elements of 2
// bytes, or 8 of 4.
constexpr u32 STEP_BYTES = 32;
template <class Element, u32 AT>
DEVICE void add_step(Products &products, u32 queries, u32 keys) {
  if constexpr (Element::BYTES == 2) {
    u32 a[2][4], b[2][4];
    load_tiles<AT>(a[0], queries);
    load_tiles<AT + 16 * PITCH>(a[1], queries);
    load_tiles<AT>(b[0], keys);
    load_tiles<AT + 16 * PITCH>(b[1], keys);
#pragma unroll
    for (u32 n = 0; n < 4; ++n) {
#pragma unroll
      for (u32 m = 0; m < 2; ++m) {
        multiply_16_bit(products.sum[m][n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1], Element());
      }
    }
  } else {
    static_assert(AT == 0, "steps of f32 would take more registers side by side");
    const auto split = [](u32 from, u32 &hi, u32 &lo) { SplitTf32::split(load_shared(from), hi, lo); };
    u32 hi[2][4], lo[2][4];
#pragma unroll
    for (u32 m = 0; m < 2; ++m) {
#pragma unroll
      for (u32 e = 0; e < 4; ++e) split(queries + (m * 16 + e % 2 * 8) * PITCH + e / 2 * 16, hi[m][e], lo[m][e]);
    }
#pragma unroll
    for (u32 n = 0; n < 4; ++n) {
      u32 right_hi[2], right_lo[2];
#pragma unroll
      for (u32 e = 0; e < 2; ++e) split(keys + n * 8 * PITCH + e * 16, right_hi[e], right_lo[e]);
#pragma unroll
      for (u32 m = 0; m < 2; ++m) {
        mma_tf32(products.sum[m][n], hi[m], right_lo[0], right_lo[1]);
        mma_tf32(products.sum[m][n], lo[m], right_hi[0], right_hi[1]);
        mma_tf32(products.sum[m][n], hi[m], right_hi[0], right_hi[1]);
      }
    }
  }
}

// Adds the products of the first `bytes` bytes of two panels in shared memory, of which a lane's begin at `queries` and `keys`.
template <class Element>
DEVICE void add_products(Products &products, u32 queries, u32 keys, u32 bytes) {
  if constexpr (Element::BYTES == 2) {
    if (bytes == CHUNK_BYTES) {
      add_step<Element, 0>(products, queries, keys);
      add_step<Element, STEP_BYTES>(products, queries, keys);
      add_step<Element, 2 * STEP_BYTES>(products, queries, keys);
      add_step<Element, 3 * STEP_BYTES>(products, queries, keys);
      return;
    }
  }
#pragma unroll 1
  for (u32 at = 0; at < bytes; at += STEP_BYTES) add_step<Element, 0>(products, queries + at, keys + at);
}
static_assert(CHUNK_BYTES == 4 * STEP_BYTES);

// The keys of a tile in registers: of elements of 2 bytes, and of a chunk at most.
template <class Element>
struct HeldKeys {
  u32 a[CHUNK_BYTES / STEP_BYTES][2][4];

  // From a panel, of which a lane's begin at `keys` as those of queries do.
  DEVICE explicit HeldKeys(u32 keys) { load<0>(keys); }

  // Where a lane's elements of 8 queries begin in a panel.
  DEVICE static u32 of_queries() { return threadIdx.x % 8 * PITCH + threadIdx.x % WARP / 8 * 16; }

  // The products of 8 queries, of which a lane's begin AT bytes behind `queries`.
  template <u32 AT = 0>
  DEVICE ProductsOfKeys products(u32 queries) const {
    ProductsOfKeys products = {};
    u32 b[4];
    load_tiles<AT>(b, queries);
    add<0>(products, b[0], b[1]);
    add<1>(products, b[2], b[3]);
    load_tiles<AT + 2 * STEP_BYTES>(b, queries);
    add<2>(products, b[0], b[1]);
    add<3>(products, b[2], b[3]);
    return products;
  }

 private:
  template <u32 S>
  DEVICE void load(u32 keys) {
    if constexpr (S < CHUNK_BYTES / STEP_BYTES) {
      load_tiles<S * STEP_BYTES>(a[S][0], keys);
      load_tiles<S * STEP_BYTES + 16 * PITCH>(a[S][1], keys);
      load<S + 1>(keys);
    }
  }
  template <u32 S>
  DEVICE void add(ProductsOfKeys &products, u32 b0, u32 b1) const {
    multiply_16_bit(products.sum[0], a[S][0], b0, b1, Element());
    multiply_16_bit(products.sum[1], a[S][1], b0, b1, Element());
  }
};
