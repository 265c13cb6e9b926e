// How the entries of all heads become one: head by head, in order, each step rounded to f32. Every backend does the same,
// so that all of them discard the same entries.
#pragma once

#include "types.cuh"

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
