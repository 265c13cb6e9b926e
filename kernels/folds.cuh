// How the entries of all heads become one: head by head, in order, each step rounded to f32. Every backend does the same,
// so that all of them discard the same entries.
#pragma once

#include "types.cuh"

// The larger of the two; NaN stays.
DEVICE float at_least(float value, float least) {
#if __CUDA_ARCH__ >= 800
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(value), "f"(least));
  return larger;
#else
  return value < least ? least : value;
#endif
}

// An entry of a head weighed by its gradient is their product, rounded once. Either these are rectified, head by head, or
// what they are fused to.
struct Weighing {
  float least_of_heads, least_of_fused;
  DEVICE explicit Weighing(bool rectify_fused) {
    const float any = __int_as_float(0xff800000);
    least_of_heads = rectify_fused ? any : 0.0f;
    least_of_fused = rectify_fused ? 0.0f : any;
  }
  DEVICE float weigh(float entry, float gradient) const { return at_least(__fmul_rn(gradient, entry), least_of_heads); }
  DEVICE float finish(float fused) const { return at_least(fused, least_of_fused); }
};

struct FUSION_mean {
  static constexpr bool WEIGHTED = false;
  DEVICE static float start() { return 0.0f; }
  DEVICE static float add(float fused, float entry, float) { return __fadd_rn(fused, entry); }
  DEVICE static float finish(float fused, float head_scale) { return __fmul_rn(fused, head_scale); }
};

struct FUSION_weighted {
  static constexpr bool WEIGHTED = true;
  DEVICE static float start() { return 0.0f; }
  DEVICE static float add(float fused, float entry, float weight) {
    return __fadd_rn(fused, __fmul_rn(entry, weight));
  }
  DEVICE static float finish(float fused, float) { return fused; }
};

struct FUSION_max {
  static constexpr bool WEIGHTED = false;
  DEVICE static float start() { return __int_as_float(0xff800000); }
  DEVICE static float add(float fused, float entry, float) { return entry > fused || entry != entry ? entry : fused; }
  DEVICE static float finish(float fused, float) { return fused; }
};

struct FUSION_min {
  static constexpr bool WEIGHTED = false;
  DEVICE static float start() { return __int_as_float(0x7f800000); }
  DEVICE static float add(float fused, float entry, float) { return entry < fused || entry != entry ? entry : fused; }
  DEVICE static float finish(float fused, float) { return fused; }
};
