// Matrix products of f32 operands on tensor cores: how an operand is split, and the fragments of `mma.sync`.
//
// f16x3: 2^11 x = hi + lo in f16 (22 bits of mantissa); hi hi + lo hi + hi lo. |x| < 31.9, since f16 ends at 65504.
// f16x2: the same without the last product, so that fused maps are rounded to f16 and the state is not. tf32x3: x = hi +
// lo in tf32, any range. Sums are f32; FINISH undoes the scales.
#pragma once

#include "memory.cuh"

// The f16 nearest to `low` and `high`, packed.
DEVICE u32 pack_f16(float low, float high) {
  u32 packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// Four (transposed) 8x8 tiles of 16-bit entries; lane l gives the address of row l % 8 of tile l / 8, OFFSET bytes before.
template <u32 OFFSET = 0>
DEVICE void load_tiles(u32 (&tile)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4+%5];"
               : "=r"(tile[0]), "=r"(tile[1]), "=r"(tile[2]), "=r"(tile[3])
               : "r"(address), "n"(OFFSET)
               : "memory");
}
template <u32 OFFSET = 0>
DEVICE void load_tiles_transposed(u32 (&tile)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4+%5];"
               : "=r"(tile[0]), "=r"(tile[1]), "=r"(tile[2]), "=r"(tile[3])
               : "r"(address), "n"(OFFSET)
               : "memory");
}
// Two of them; the first 16 lanes give addresses.
template <u32 OFFSET = 0>
DEVICE void load_two_tiles_transposed(u32 &first, u32 &second, u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2+%3];"
               : "=r"(first), "=r"(second)
               : "r"(address), "n"(OFFSET)
               : "memory");
}

// sum[16 x 8] += a[16 x 16] b[16 x 8]. Lane 4 g + q holds rows g and g + 8, columns 2 q and 2 q + 1 of the sum.
DEVICE void mma_f16(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE void mma_bf16(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// sum[16 x 8] += a[16 x 8] b[8 x 8].
DEVICE void mma_tf32(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Splits into f16 `hi + lo`, two entries at a time.
struct SplitF16 {
  static constexpr float SCALE = 2048.0f;
  static constexpr float FINISH = 1.0f / (SCALE * SCALE);
  DEVICE static void split(float x0, float x1, u32 &hi, u32 &lo) { split_scaled(x0 * SCALE, x1 * SCALE, hi, lo); }
  DEVICE static void split_scaled(float x0, float x1, u32 &hi, u32 &lo) {
    hi = pack_f16(x0, x1);
    lo = pack_f16(x0 - f16::widen(u16(hi)), x1 - f16::widen(u16(hi >> 16)));
  }
  DEVICE static void split(const float (&x)[4], uint2 &hi, uint2 &lo) {
    split(x[0], x[1], hi.x, lo.x);
    split(x[2], x[3], hi.y, lo.y);
  }
};

// The tf32 nearest to `x`.
DEVICE u32 round_tf32(float x) {
  u32 bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// Splits into tf32 `hi + lo`.
struct SplitTf32 {
  static constexpr float FINISH = 1.0f;
  DEVICE static void split(float x, u32 &hi, u32 &lo) {
    hi = round_tf32(x);
    lo = round_tf32(x - __uint_as_float(hi));
  }
};
