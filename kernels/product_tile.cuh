// The product of two tiles in shared memory, left [TILE x STEP] and right [STEP x TILE], added up in registers: one
// struct per arithmetic, all with the same parts. Entries come as f32, four of a row at a time.
#pragma once

#include "mma.cuh"

// f32 multiply-add, 4x4 sums per thread. Stores of left entries meet in a bank two at a time.
struct ARITHMETIC_f32 {
  static constexpr u32 STEP = 16, PITCH = TILE + 4;
  static constexpr u32 BLOCKS = 3;  // of 256 threads, on one multiprocessor
  struct Stage {
    float left[STEP][PITCH];  // transposed
    float right[STEP][PITCH];
  };
  float sum[4][4] = {};

  DEVICE static void store_left(Stage &s, u32 row, u32 k, const float (&x)[4]) {
#pragma unroll
    for (u32 e = 0; e < 4; ++e) s.left[k + e][row] = x[e];
  }
  DEVICE static void store_right(Stage &s, u32 k, u32 column, const float (&x)[4]) {
    *reinterpret_cast<float4 *>(&s.right[k][column]) = make_float4(x[0], x[1], x[2], x[3]);
  }
  DEVICE void multiply(const Stage &s) {
    const u32 row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
#pragma unroll
    for (u32 k = 0; k < STEP; ++k) {
      const float4 a = *reinterpret_cast<const float4 *>(&s.left[k][row]);
      const float4 b = *reinterpret_cast<const float4 *>(&s.right[k][column]);
      const float left[4] = {a.x, a.y, a.z, a.w}, right[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (u32 i = 0; i < 4; ++i) {
#pragma unroll
        for (u32 j = 0; j < 4; ++j) sum[i][j] += left[i] * right[j];
      }
    }
  }
  // Calls write(row, column, value) for every sum of this thread.
  template <class Write>
  DEVICE void finish(Write write) const {
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
#pragma unroll
      for (u32 j = 0; j < 4; ++j) write(threadIdx.x / 16 * 4 + i, threadIdx.x % 16 * 4 + j, sum[i][j]);
    }
  }
};

// What the tensor-core arithmetics share: four warps of 32 x 32 sums, as 2 x 4 tiles of 16 x 8.
struct WarpTiles {
  static constexpr u32 BLOCKS = 4;  // on one multiprocessor
  float sum[2][4][4] = {};
  DEVICE static u32 warp_row() { return threadIdx.x / WARP / 2 * 32; }
  DEVICE static u32 warp_column() { return threadIdx.x / WARP % 2 * 32; }

  template <class Write>
  DEVICE void finish_scaled(float factor, Write write) const {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
#pragma unroll
      for (u32 j = 0; j < 4; ++j) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
          write(warp_row() + i * 16 + lane / 4 + e / 2 * 8, warp_column() + j * 8 + lane % 4 * 2 + e % 2,
                sum[i][j][e] * factor);
        }
      }
    }
  }
};

// Of each operand f16 `hi` alone or with `lo`. The pitches make ldmatrix free of bank conflicts.
template <u32 LEFT_PARTS, u32 RIGHT_PARTS>
struct TilesF16 : WarpTiles {
  static constexpr u32 STEP = 16, LEFT_PITCH = STEP + 8, RIGHT_PITCH = TILE + 8;
  struct Stage {
    __align__(16) u16 left[LEFT_PARTS][TILE][LEFT_PITCH];
    __align__(16) u16 right[RIGHT_PARTS][STEP][RIGHT_PITCH];
  };

  template <u32 PARTS>
  DEVICE static void store(u16 *hi, u16 *lo, const float (&x)[4]) {
    uint2 high, low;
    SplitF16::split(x, high, low);
    *reinterpret_cast<uint2 *>(hi) = high;
    if constexpr (PARTS == 2) *reinterpret_cast<uint2 *>(lo) = low;
  }
  DEVICE static void store_left(Stage &s, u32 row, u32 k, const float (&x)[4]) {
    store<LEFT_PARTS>(&s.left[0][row][k], &s.left[LEFT_PARTS - 1][row][k], x);
  }
  DEVICE static void store_right(Stage &s, u32 k, u32 column, const float (&x)[4]) {
    store<RIGHT_PARTS>(&s.right[0][k][column], &s.right[RIGHT_PARTS - 1][k][column], x);
  }
  DEVICE void multiply(const Stage &s) {
    const u32 lane = threadIdx.x % WARP, half = lane % 16, other = lane / 16 * 8;
    u32 left[LEFT_PARTS][2][4], right[RIGHT_PARTS][2][4];
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
#pragma unroll
      for (u32 p = 0; p < LEFT_PARTS; ++p) {
        load_tiles(left[p][i], shared_address(&s.left[p][warp_row() + i * 16 + half][other]));
      }
#pragma unroll
      for (u32 p = 0; p < RIGHT_PARTS; ++p) {
        load_tiles_transposed(right[p][i], shared_address(&s.right[p][half][warp_column() + i * 16 + other]));
      }
    }
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
#pragma unroll
      for (u32 j = 0; j < 4; ++j) {
        const u32 pair = j / 2, first = j % 2 * 2;
        mma_f16(sum[i][j], left[0][i], right[0][pair][first], right[0][pair][first + 1]);
        if constexpr (LEFT_PARTS == 2) {
          mma_f16(sum[i][j], left[1][i], right[0][pair][first], right[0][pair][first + 1]);
        }
        if constexpr (RIGHT_PARTS == 2) {
          mma_f16(sum[i][j], left[0][i], right[1][pair][first], right[1][pair][first + 1]);
        }
      }
    }
  }
  template <class Write>
  DEVICE void finish(Write write) const {
    finish_scaled(SplitF16::FINISH, write);
  }
};

// Two products: the state in both parts.
using ARITHMETIC_f16x2 = TilesF16<MAP_IS_LEFT ? 1 : 2, MAP_IS_LEFT ? 2 : 1>;
using ARITHMETIC_f16x3 = TilesF16<2, 2>;

// tf32 `hi + lo`, split when stored. Fragments are single words; the pitches keep their loads free of bank conflicts.
struct ARITHMETIC_tf32x3 : WarpTiles {
  static constexpr u32 STEP = 16, LEFT_PITCH = STEP + 4, RIGHT_PITCH = TILE + 8;
  struct Stage {
    __align__(16) u32 left[2][TILE][LEFT_PITCH];
    __align__(16) u32 right[2][STEP][RIGHT_PITCH];
  };

  DEVICE static void store(u32 *hi, u32 *lo, const float (&x)[4]) {
    uint4 high, low;
    SplitTf32::split(x[0], high.x, low.x);
    SplitTf32::split(x[1], high.y, low.y);
    SplitTf32::split(x[2], high.z, low.z);
    SplitTf32::split(x[3], high.w, low.w);
    *reinterpret_cast<uint4 *>(hi) = high;
    *reinterpret_cast<uint4 *>(lo) = low;
  }
  DEVICE static void store_left(Stage &s, u32 row, u32 k, const float (&x)[4]) {
    store(&s.left[0][row][k], &s.left[1][row][k], x);
  }
  DEVICE static void store_right(Stage &s, u32 k, u32 column, const float (&x)[4]) {
    store(&s.right[0][k][column], &s.right[1][k][column], x);
  }
  DEVICE void multiply(const Stage &s) {
    const u32 g = threadIdx.x % WARP / 4, q = threadIdx.x % 4;
#pragma unroll
    for (u32 k = 0; k < STEP; k += 8) {
      u32 left[2][2][4], right[2][4][2];
#pragma unroll
      for (u32 p = 0; p < 2; ++p) {
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
#pragma unroll
          for (u32 e = 0; e < 4; ++e) left[p][i][e] = s.left[p][warp_row() + i * 16 + g + e % 2 * 8][k + q + e / 2 * 4];
        }
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
#pragma unroll
          for (u32 e = 0; e < 2; ++e) right[p][j][e] = s.right[p][k + q + e * 4][warp_column() + j * 8 + g];
        }
      }
#pragma unroll
      for (u32 i = 0; i < 2; ++i) {
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
          mma_tf32(sum[i][j], left[0][i], right[0][j][0], right[0][j][1]);
          mma_tf32(sum[i][j], left[1][i], right[0][j][0], right[0][j][1]);
          mma_tf32(sum[i][j], left[0][i], right[1][j][0], right[1][j][1]);
        }
      }
    }
  }
  template <class Write>
  DEVICE void finish(Write write) const {
    finish_scaled(SplitTf32::FINISH, write);
  }
};
