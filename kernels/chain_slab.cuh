// A slab of rollout_chain in shared memory, 16 rows of a layer split for one arithmetic, and its product with the
// columns of P that face it: one struct per arithmetic, all with the same parts.
#pragma once

#include "cluster.cuh"
#include "mma.cuh"

#define SLAB_OF_(arithmetic) SLAB_##arithmetic
#define SLAB_OF(arithmetic) SLAB_OF_(arithmetic)

// Tiles of 16 x 8 sums that a warp holds. The warps that share 16 rows take their columns in turns, 16 at a time.
constexpr u32 TILES = MAX_TOKENS / 8 / COLUMN_PARTS;
DEVICE u32 tile_column(u32 t, u32 part) { return (t / 2 * COLUMN_PARTS + part) * 16 + t % 2 * 8; }

// f16 `hi` alone (PARTS = 1) or with `lo` (PARTS = 2); P always in both. The pitch makes ldmatrix free of bank conflicts.
template <u32 PARTS>
struct SlabF16 {
  static constexpr float FINISH = SplitF16::FINISH;
  __align__(16) u16 part[PARTS][16][MAX_TOKENS + 8];

  // Writes to this slab of every block of the cluster. COLUMNS is 4 or 8.
  template <u32 COLUMNS>
  DEVICE void store(u32 row, u32 column, const float (&x)[COLUMNS]) {
    u32 hi[COLUMNS / 2], lo[COLUMNS / 2];
#pragma unroll
    for (u32 c = 0; c < COLUMNS / 2; ++c) SplitF16::split(x[2 * c], x[2 * c + 1], hi[c], lo[c]);
    store_words(&part[0][row][column], hi);
    if constexpr (PARTS == 2) store_words(&part[1][row][column], lo);
  }
  // In one piece, so that the lanes of a warp write one run.
  DEVICE static void store_words(u16 *to, const u32 (&word)[2]) {
    store_everywhere(reinterpret_cast<uint2 *>(to), make_uint2(word[0], word[1]));
  }
  DEVICE static void store_words(u16 *to, const u32 (&word)[4]) {
    store_everywhere(reinterpret_cast<uint4 *>(to), make_uint4(word[0], word[1], word[2], word[3]));
  }

  // sum += [p[0] p[1]] slab, in those of the first `columns` columns that are the warp's. p[0] and p[1] are neighbouring
  // 16 x 8 tiles of P.
  DEVICE void multiply(float (&sum)[TILES][4], const float (&p)[2][4], u32 columns, u32 column_part) const {
    u32 left[2][4];
#pragma unroll
    for (u32 e = 0; e < 4; ++e) SplitF16::split(p[e / 2][e % 2 * 2], p[e / 2][e % 2 * 2 + 1], left[0][e], left[1][e]);
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (u32 t = 0; t < TILES; t += 2) {
      const u32 column = tile_column(t, column_part);
      if (column < columns) {
        u32 right[PARTS][4];
#pragma unroll
        for (u32 i = 0; i < PARTS; ++i) {
          load_tiles_transposed(right[i], shared_address(&part[i][lane % 16][column + lane / 16 * 8]));
        }
#pragma unroll
        for (u32 j = 0; j < 2; ++j) {
          mma_f16(sum[t + j], left[0], right[0][2 * j], right[0][2 * j + 1]);
          mma_f16(sum[t + j], left[1], right[0][2 * j], right[0][2 * j + 1]);
          if constexpr (PARTS == 2) mma_f16(sum[t + j], left[0], right[1][2 * j], right[1][2 * j + 1]);
        }
      }
    }
  }
};

using SLAB_ARITHMETIC_f16x2 = SlabF16<1>;
using SLAB_ARITHMETIC_f16x3 = SlabF16<2>;

// tf32 `hi + lo`. A left fragment wants columns q and q + 4 of a tile where an accumulator holds 2 q and 2 q + 1; a sum
// over columns does not care about their order, so the right operand's rows are taken in the accumulator's. The pitch
// keeps its loads free of bank conflicts.
struct SLAB_ARITHMETIC_tf32x3 {
  static constexpr float FINISH = SplitTf32::FINISH;
  __align__(16) u32 part[2][16][MAX_TOKENS + 4];

  template <u32 COLUMNS>
  DEVICE void store(u32 row, u32 column, const float (&x)[COLUMNS]) {
#pragma unroll
    for (u32 c = 0; c < COLUMNS; c += 4) {
      // Of 8 columns, every other four lanes write the second half first: no two lanes meet in a bank.
      const bool swap = COLUMNS == 8 && threadIdx.x / 4 % 2;
      u32 hi[4], lo[4];
#pragma unroll
      for (u32 e = 0; e < 4; ++e) SplitTf32::split(swap ? x[(c + 4) % COLUMNS + e] : x[c + e], hi[e], lo[e]);
      const u32 to = column + (swap ? (c + 4) % COLUMNS : c);
      store_everywhere(reinterpret_cast<uint4 *>(&part[0][row][to]), make_uint4(hi[0], hi[1], hi[2], hi[3]));
      store_everywhere(reinterpret_cast<uint4 *>(&part[1][row][to]), make_uint4(lo[0], lo[1], lo[2], lo[3]));
    }
  }

  DEVICE void multiply(float (&sum)[TILES][4], const float (&p)[2][4], u32 columns, u32 column_part) const {
    const u32 g = threadIdx.x % WARP / 4, q = threadIdx.x % 4;
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      u32 left[2][4];
#pragma unroll
      for (u32 e = 0; e < 4; ++e) {
        // Accumulator: (g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1). Fragment: rows first.
        SplitTf32::split(half ? p[1][e] : p[0][e], left[0][e / 2 + e % 2 * 2], left[1][e / 2 + e % 2 * 2]);
      }
#pragma unroll
      for (u32 t = 0; t < TILES; ++t) {
        const u32 column = tile_column(t, column_part);
        if (column < columns) {
          u32 right[2][2];
#pragma unroll
          for (u32 i = 0; i < 2; ++i) {
#pragma unroll
            for (u32 e = 0; e < 2; ++e) right[i][e] = part[i][half * 8 + 2 * q + e][column + g];
          }
          mma_tf32(sum[t], left[0], right[0][0], right[0][1]);
          mma_tf32(sum[t], left[1], right[0][0], right[0][1]);
          mma_tf32(sum[t], left[0], right[1][0], right[1][1]);
        }
      }
    }
  }
};
