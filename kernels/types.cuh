// Integer names and the element types of attention maps. No CUDA header is needed anywhere: NVRTC knows the builtin
// variables and intrinsics, the rest is inline PTX.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEVICE __device__ __forceinline__

constexpr u32 WARP = 32;
constexpr u32 FULL_WARP = 0xffffffff;

DEVICE u32 min_u32(u32 a, u32 b) { return a < b ? a : b; }
DEVICE u32 max_u32(u32 a, u32 b) { return a > b ? a : b; }

// The value, of which the compiler knows nothing: what follows from it, or is read there, is computed or read where it is
// needed, and not kept in registers until then.
DEVICE u32 unknown(u32 value) {
  asm volatile("" : "+r"(value));
  return value;
}

// The sum over all lanes, the same bits in each.
DEVICE float warp_sum(float value) {
#pragma unroll
  for (u32 d = WARP / 2; d; d /= 2) value += __shfl_xor_sync(FULL_WARP, value, d);
  return value;
}

// 16 bytes, the widest load. An element type says how many it packs and turns them into f32, exactly.
struct Granule {
  u32 word[4];
};
constexpr u32 GRANULE_BYTES = 16;

struct f32 {
  static constexpr u32 BYTES = 4, PER_GRANULE = 4;
  DEVICE static float from_bits(u32 bits) { return __uint_as_float(bits); }
  DEVICE static float load(const char *from) { return *reinterpret_cast<const float *>(from); }
  DEVICE static void widen(const Granule &g, float (&value)[PER_GRANULE]) {
#pragma unroll
    for (u32 e = 0; e < PER_GRANULE; ++e) value[e] = __uint_as_float(g.word[e]);
  }
};

struct f16 {
  static constexpr u32 BYTES = 2, PER_GRANULE = 8;
  DEVICE static float widen(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
  }
  DEVICE static float from_bits(u32 bits) { return widen(u16(bits)); }
  // The lower or the upper half of a word.
  DEVICE static float of_half(u32 word, bool upper) {
    u16 lower_half, upper_half;
    asm("mov.b32 {%0, %1}, %2;" : "=h"(lower_half), "=h"(upper_half) : "r"(word));
    return widen(upper ? upper_half : lower_half);
  }
  DEVICE static float load(const char *from) { return widen(*reinterpret_cast<const u16 *>(from)); }
  DEVICE static void widen(const Granule &g, float (&value)[PER_GRANULE]) {
#pragma unroll
    for (u32 e = 0; e < PER_GRANULE; ++e) value[e] = widen(u16(g.word[e / 2] >> (16 * (e % 2))));
  }
};

struct bf16 {
  static constexpr u32 BYTES = 2, PER_GRANULE = 8;
  DEVICE static float from_bits(u32 bits) { return __uint_as_float(bits << 16); }
  DEVICE static float of_half(u32 word, bool upper) { return __uint_as_float(upper ? word & 0xffff0000u : word << 16); }
  DEVICE static float load(const char *from) { return from_bits(*reinterpret_cast<const u16 *>(from)); }
  DEVICE static void widen(const Granule &g, float (&value)[PER_GRANULE]) {
#pragma unroll
    for (u32 e = 0; e < PER_GRANULE; ++e) {
      const u32 word = g.word[e / 2];
      value[e] = __uint_as_float(e % 2 ? word & 0xffff0000u : word << 16);
    }
  }
};
