// P, the product of the layers so far, as rollout_chain's left operand and as what the residual adds: one struct for P
// in registers, one for P in shared memory, with the same parts. Sums and entries of P lie as `mma.sync` has its
// accumulators: lane 4 g + q holds rows g and g + 8, columns 2 q and 2 q + 1 of a 16 x 8 tile.
#pragma once

#include "types.cuh"

// A warp owns all columns of its 16 rows: the accumulators of two neighbouring tiles are a left operand as they are.
struct StateInRegisters {
  static constexpr u32 BYTES = 0;
  float tile[TILES][4];

  DEVICE StateInRegisters(float *, u32) {}

  // The sums become P; they start again from 0.
  DEVICE void take(float (&sum)[TILES][4]) {
#pragma unroll
    for (u32 t = 0; t < TILES; ++t) {
#pragma unroll
      for (u32 e = 0; e < 4; ++e) {
        tile[t][e] = sum[t][e];
        sum[t][e] = 0.0f;
      }
    }
  }
  // The two tiles that face slab `k`. Called for every k in turn.
  DEVICE void left(float (&p)[2][4], u32) const {
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
      p[0][e] = tile[0][e];
      p[1][e] = tile[1][e];
    }
  }
  // After slab k: the next slab's columns of P move to the front; after all of them, each is back in its place.
  DEVICE void advance() {
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
      const float first = tile[0][e], second = tile[1][e];
#pragma unroll
      for (u32 t = 0; t + 2 < TILES; ++t) tile[t][e] = tile[t + 2][e];
      tile[TILES - 2][e] = first;
      tile[TILES - 1][e] = second;
    }
  }
  // Tile `t` of this warp.
  DEVICE void entries(float (&p)[4], u32 t) const {
#pragma unroll
    for (u32 e = 0; e < 4; ++e) p[e] = tile[t][e];
  }
};

// Several warps share 16 rows, each has some of the columns: P lies where all of them can read it. The pitch makes
// 8-byte accesses free of bank conflicts.
struct StateInShared {
  static constexpr u32 PITCH = MAX_TOKENS + 8;
  static constexpr u32 BYTES = MAX_TOKENS / CLUSTER * PITCH * 4;
  float *own;  // row g of this warp's rows, column 2 q
  u32 part;

  DEVICE StateInShared(float *shared, u32 part)
      : own(shared + (threadIdx.x / WARP / COLUMN_PARTS * 16 + threadIdx.x % WARP / 4) * PITCH + threadIdx.x % 4 * 2),
        part(part) {}

  DEVICE void take(float (&sum)[TILES][4]) {
    __syncthreads();  // the old P has been multiplied
#pragma unroll
    for (u32 t = 0; t < TILES; ++t) {
#pragma unroll
      for (u32 e = 0; e < 4; e += 2) {
        *reinterpret_cast<float2 *>(own + e / 2 * 8 * PITCH + tile_column(t, part)) =
            make_float2(sum[t][e], sum[t][e + 1]);
        sum[t][e] = sum[t][e + 1] = 0.0f;
      }
    }
  }
  DEVICE void left(float (&p)[2][4], u32 k) const {
    load(p[0], k * 16);
    load(p[1], k * 16 + 8);
  }
  DEVICE void advance() {}
  DEVICE void entries(float (&p)[4], u32 t) const { load(p, tile_column(t, part)); }

 private:
  DEVICE void load(float (&p)[4], u32 column) const {
#pragma unroll
    for (u32 e = 0; e < 4; e += 2) {
      const float2 pair = *reinterpret_cast<const float2 *>(own + e / 2 * 8 * PITCH + column);
      p[e] = pair.x;
      p[e + 1] = pair.y;
    }
  }
};
