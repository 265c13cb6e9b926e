// The operands of matrix_stream's products in shared memory, split for one arithmetic: P on the left, rows of it as a warp
// needs them; on the right a slab, 16 rows of a layer. One struct per arithmetic, all with the same parts.
//
// Sums lie as `mma.sync` has its accumulators: lane 4 g + q holds rows g and g + 8, columns 2 q and 2 q + 1 of a 16 x 8
// tile. A 16 x 16 block of P, two tiles side by side, lies so too: what a lane multiplies is what the lane has sums of.
//
// Macros: ARITHMETIC, MAX_TOKENS, CLUSTER, COLUMN_PARTS, COLUMNS (of a lane that fuses).
#pragma once

#include "cluster.cuh"
#include "mma.cuh"

#define OPERANDS_OF_(arithmetic) OPERANDS_##arithmetic
#define OPERANDS_OF(arithmetic) OPERANDS_OF_(arithmetic)

constexpr u32 SLAB_ROWS = 16;
// Groups of 16 rows of P, in turns those of the blocks; a warp has the sums of one.
constexpr u32 BLOCK_GROUPS = (MAX_TOKENS / 16 + CLUSTER - 1) / CLUSTER;
// Pairs of 16 x 8 tiles of which a warp has sums. The warps that share rows take their columns in turns, 16 at a time.
constexpr u32 PAIRS = (MAX_TOKENS / 16 + COLUMN_PARTS - 1) / COLUMN_PARTS;
DEVICE u32 pair_column(u32 pair, u32 part) { return (pair * COLUMN_PARTS + part) * 16; }

// Whether a pair is one of the slab's: the last ones of some warps are not. Their sums are computed like all others, from
// the first pair, and nobody wants them: a branch would cost more registers than there are.
DEVICE bool pair_exists(u32 pair, u32 part) {
  return (pair + 1) * COLUMN_PARTS * 16 <= MAX_TOKENS || pair_column(pair, part) < MAX_TOKENS;
}

using Sums = float[PAIRS][2][4];

// Entry `e` of a tile: its row, and its column.
DEVICE u32 tile_row(u32 e) { return threadIdx.x % WARP / 4 + e / 2 * 8; }
DEVICE u32 tile_column(u32 e) { return threadIdx.x % 4 * 2 + e % 2; }

// A row of a slab on its way to every block of the cluster: words are stored here, and sent to the others, where they count
// as bytes on a barrier. sm_90 where there are others.
struct SlabRow {
  u32 here;                         // shared-memory address of this lane's first word
  u32 there[CLUSTER], full[CLUSTER];  // the same in the others, from the second on, and their barriers

  DEVICE SlabRow from(u32 further) const {
    SlabRow row = *this;
    row.here += further;
#pragma unroll
    for (u32 peer = 1; peer < CLUSTER; ++peer) row.there[peer] += further;
    return row;
  }
  template <u32 OFFSET>
  DEVICE void store(u32 word) const {
    asm volatile("st.shared.b32 [%0+%2], %1;" ::"r"(here), "r"(word), "n"(OFFSET) : "memory");
#pragma unroll
    for (u32 peer = 1; peer < CLUSTER; ++peer) send_word<OFFSET>(there[peer], word, full[peer]);
  }
};

// f16 `hi` alone (PARTS = 1) or with `lo` (PARTS = 2); P always in both. The pitch makes ldmatrix free of bank conflicts.
template <u32 PARTS>
struct OperandsF16 {
  static constexpr bool PACKS = true;
  static constexpr float SCALE = SplitF16::SCALE, FINISH = SplitF16::FINISH;
  static constexpr u32 PITCH = 2 * (MAX_TOKENS + 8);  // bytes
  static constexpr u32 STATE_PART = BLOCK_GROUPS * 16 * PITCH, SLAB_PART = SLAB_ROWS * PITCH;
  static constexpr u32 STATE_BYTES = 2 * STATE_PART, SLAB_BYTES = PARTS * SLAB_PART;
  static constexpr u32 SENT_ROW_BYTES = PARTS * 2 * MAX_TOKENS;

  struct Left {
    u32 part[2][4];

    // Two entries side by side: the pair `i` of four, in the order of the accumulators of both tiles.
    DEVICE float2 get(u32 i) const {
      const float x0 = f16::widen(u16(part[0][i])) + f16::widen(u16(part[1][i]));
      const float x1 = f16::widen(u16(part[0][i] >> 16)) + f16::widen(u16(part[1][i] >> 16));
      return make_float2(x0 * (1.0f / SCALE), x1 * (1.0f / SCALE));
    }
    DEVICE void set(u32 i, float2 x) { SplitF16::split(x.x, x.y, part[0][i], part[1][i]); }
  };

  // What a lane loads of P: a row of a group, and half of 16 columns.
  DEVICE static u32 left_lane(u32 state, u32 group) {
    const u32 lane = threadIdx.x % WARP;
    return state + (group * 16 + lane % 16) * PITCH + lane / 16 * 16;
  }
  DEVICE static void load(Left &left, u32 left_lane, u32 column) {
#pragma unroll
    for (u32 i = 0; i < 2; ++i) load_tiles(left.part[i], left_lane + i * STATE_PART + column * 2);
  }
  // Where a lane's entries of a group's tiles are stored, those of the first pair of the warp.
  DEVICE static u32 state_lane(u32 state, u32 group, u32 column_part) {
    return state + (group * 16 + tile_row(0)) * PITCH + (pair_column(0, column_part) + tile_column(0)) * 2;
  }
  DEVICE static void store(const float (&tile)[4], u32 state_lane, u32 column) {
#pragma unroll
    for (u32 e = 0; e < 4; e += 2) {
      u32 hi, lo;
      SplitF16::split(tile[e], tile[e + 1], hi, lo);
      const u32 to = state_lane + e / 2 * 8 * PITCH + column * 2;
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(hi) : "memory");
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(to + STATE_PART), "r"(lo) : "memory");
    }
  }

  // Where a lane's first word of a row of a slab is. Columns that lie in runs (row_fusion.cuh) are words of their own. Of
  // those that every lane has one of, neighbours make words: lanes of even number have those of the even ones of their
  // columns, the others of the odd ones.
  template <class Fusion>
  DEVICE static u32 fusing_lane() {
    return Fusion::IN_RUNS ? threadIdx.x % WARP * Fusion::RUN * 2 : striped_lane();
  }
  template <class Fusion, u32 K = 0>
  DEVICE static void store(const SlabRow &row, const float (&fused)[COLUMNS]) {
    if constexpr (K < Fusion::IN_RUNS) {
      store_words<(K / Fusion::RUN * WARP * Fusion::RUN + K % Fusion::RUN) * 2>(row, fused[K], fused[K + 1]);
      store<Fusion, K + 2>(row, fused);
    } else if constexpr (K < COLUMNS) {
      store_stripes<K>(row.from(striped_lane() - fusing_lane<Fusion>()), fused);
    }
  }

  // What a lane loads of a slab: a row, and half of 16 columns of the first pair of the warp.
  DEVICE static u32 right_lane(u32 slab, u32 column_part) {
    const u32 lane = threadIdx.x % WARP;
    return slab + lane % 16 * PITCH + (pair_column(0, column_part) + lane / 16 * 8) * 2;
  }
  // sum += left slab, in all pairs of the warp.
  DEVICE static void multiply(Sums &sum, const Left &left, u32 right_lane, u32 column_part) {
#pragma unroll
    for (u32 pair = 0; pair < PAIRS; ++pair) {
      __syncwarp();  // a pair at a time, or fragments take too many registers
      const u32 from = pair_exists(pair, column_part) ? pair * COLUMN_PARTS * 32 : 0;
      u32 right[PARTS][4];
#pragma unroll
      for (u32 i = 0; i < PARTS; ++i) load_tiles_transposed(right[i], right_lane + i * SLAB_PART + from);
      // Products that add to the same sum wait for each other.
#pragma unroll
      for (u32 product = 0; product < PARTS + 1; ++product) {
        const u32 i = product == 2 ? PARTS - 1 : 0;
#pragma unroll
        for (u32 j = 0; j < 2; ++j) {
          mma_f16(sum[pair][j], left.part[product == 1], right[i][2 * j], right[i][2 * j + 1]);
        }
      }
    }
  }

 private:
  template <u32 OFFSET>
  DEVICE static void store_words(const SlabRow &row, float x0, float x1) {
    u32 hi, lo;
    SplitF16::split_scaled(x0, x1, hi, lo);
    row.store<OFFSET>(hi);
    if constexpr (PARTS == 2) row.store<SLAB_PART + OFFSET>(lo);
  }
  DEVICE static u32 striped_lane() {
    const u32 lane = threadIdx.x % WARP, odd = lane % 2;
    return (odd * WARP + lane - odd) * 2;
  }
  template <u32 K>
  DEVICE static void store_stripes(const SlabRow &row, const float (&fused)[COLUMNS]) {
    if constexpr (K < COLUMNS) {
      const u32 lane = threadIdx.x % WARP;
      const bool odd = lane % 2;
      const float second = K + 1 < COLUMNS ? fused[K + 1] : 0.0f;
      const float got = __shfl_xor_sync(FULL_WARP, odd ? fused[K] : second, 1);
      if ((K + 2) * WARP <= MAX_TOKENS || (K + odd) * WARP + lane < MAX_TOKENS + odd) {
        store_words<K * WARP * 2>(row, odd ? got : fused[K], odd ? second : got);
      }
      store_stripes<K + 2>(row, fused);
    }
  }
};

using OPERANDS_ARITHMETIC_f16x2 = OperandsF16<1>;
using OPERANDS_ARITHMETIC_f16x3 = OperandsF16<2>;

// tf32 `hi + lo`; P in f32, split as it is used. A left fragment wants columns q and q + 4 of a tile where an accumulator
// holds 2 q and 2 q + 1; a sum over columns does not care about their order, so the right operand's rows are taken in the
// accumulator's. The pitches keep loads free of bank conflicts.
struct OPERANDS_ARITHMETIC_tf32x3 {
  static constexpr bool PACKS = false;
  static constexpr float SCALE = 1.0f, FINISH = SplitTf32::FINISH;
  static constexpr u32 STATE_PITCH = 4 * (MAX_TOKENS + 8), SLAB_PITCH = 4 * (MAX_TOKENS + 4);  // bytes
  static constexpr u32 SLAB_PART = SLAB_ROWS * SLAB_PITCH;
  static constexpr u32 STATE_BYTES = BLOCK_GROUPS * 16 * STATE_PITCH, SLAB_BYTES = 2 * SLAB_PART;
  static constexpr u32 SENT_ROW_BYTES = 2 * 4 * MAX_TOKENS;

  struct Left {
    float p[2][4];

    DEVICE float2 get(u32 i) const { return make_float2(p[i / 2][i % 2 * 2], p[i / 2][i % 2 * 2 + 1]); }
    DEVICE void set(u32 i, float2 x) {
      p[i / 2][i % 2 * 2] = x.x;
      p[i / 2][i % 2 * 2 + 1] = x.y;
    }
  };

  DEVICE static u32 left_lane(u32 state, u32 group) {
    return state + (group * 16 + tile_row(0)) * STATE_PITCH + tile_column(0) * 4;
  }
  DEVICE static void load(Left &left, u32 left_lane, u32 column) {
#pragma unroll
    for (u32 i = 0; i < 8; i += 2) {
      const u32 from = left_lane + i % 4 / 2 * 8 * STATE_PITCH + (column + i / 4 * 8) * 4;
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                   : "=f"(left.p[i / 4][i % 4]), "=f"(left.p[i / 4][i % 4 + 1])
                   : "r"(from)
                   : "memory");
    }
  }
  DEVICE static u32 state_lane(u32 state, u32 group, u32 column_part) {
    return left_lane(state, group) + pair_column(0, column_part) * 4;
  }
  DEVICE static void store(const float (&tile)[4], u32 state_lane, u32 column) {
#pragma unroll
    for (u32 e = 0; e < 4; e += 2) {
      const u32 to = state_lane + e / 2 * 8 * STATE_PITCH + column * 4;
      asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(tile[e]), "f"(tile[e + 1]) : "memory");
    }
  }

  template <class Fusion>
  DEVICE static u32 fusing_lane() { return threadIdx.x % WARP * 4; }
  template <class Fusion, u32 K = 0>
  DEVICE static void store(const SlabRow &row, const float (&fused)[COLUMNS]) {
    if constexpr (K < COLUMNS) {
      u32 hi, lo;
      SplitTf32::split(fused[K], hi, lo);
      if ((K + 1) * WARP <= MAX_TOKENS || K * WARP + threadIdx.x % WARP < MAX_TOKENS) {
        row.store<K * WARP * 4>(hi);
        row.store<SLAB_PART + K * WARP * 4>(lo);
      }
      store<Fusion, K + 1>(row, fused);
    }
  }

  DEVICE static u32 right_lane(u32 slab, u32 column_part) {
    const u32 g = threadIdx.x % WARP / 4, q = threadIdx.x % 4;
    return slab + 2 * q * SLAB_PITCH + (pair_column(0, column_part) + g) * 4;
  }
  DEVICE static void multiply(Sums &sum, const Left &left, u32 right_lane, u32 column_part) {
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      u32 fragment[2][4];
#pragma unroll
      for (u32 e = 0; e < 4; ++e) {
        // Accumulator: (g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1). Fragment: rows first.
        const u32 to = e / 2 + e % 2 * 2;
        SplitTf32::split(left.p[half][e], fragment[0][to], fragment[1][to]);
      }
#pragma unroll
      for (u32 tile = 0; tile < 2 * PAIRS; ++tile) {
        const u32 pair_from = pair_exists(tile / 2, column_part) ? tile / 2 * COLUMN_PARTS * 16 : 0;
        u32 right[2][2];
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
          const u32 from = right_lane + i / 2 * SLAB_PART + (half * 8 + i % 2) * SLAB_PITCH + (pair_from + tile % 2 * 8) * 4;
          asm volatile("ld.shared.b32 %0, [%1];" : "=r"(right[i / 2][i % 2]) : "r"(from) : "memory");
        }
#pragma unroll
        for (u32 product = 0; product < 3; ++product) {
          mma_tf32(sum[tile / 2][tile % 2], fragment[product == 1], right[product == 2][0], right[product == 2][1]);
        }
      }
    }
  }
};
