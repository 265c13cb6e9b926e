// The order of fused entries for discard, and the cut between what is zeroed and what is kept.
//
// Entries are ordered by value, then by row-major index within the window. -0 equals 0 and NaN is above everything. A
// cut is the rank of the last entry to zero, key above index; 0 is below every rank.
#pragma once

#include "types.cuh"

// Unsigned integers in the order of the values; at least 0x007fffff, which is -infinity.
DEVICE u32 order_key(float value) {
  const u32 bits = __float_as_uint(value + 0.0f);  // of -0 those of 0
  const u32 key = bits ^ (u32(int(bits) >> 31) | 0x80000000);
  return value != value ? 0xffffffff : key;
}

constexpr u32 ZERO_KEY = 0x80000000;       // of 0; that of any value from 0 on is as far above it as its bits say
constexpr u32 INFINITY_BITS = 0x7f800000;  // above all other values

constexpr u32 INFINITY_KEY = ZERO_KEY + INFINITY_BITS;

// The value with that order key, which is none of a number that is none.
DEVICE float value_of(u32 key) { return __uint_as_float(key & ZERO_KEY ? key ^ ZERO_KEY : ~key); }

struct Cut {
  u64 last;
  u32 first;          // rows and columns before this one take no part
  u32 spares_origin;  // entry (0, 0) is kept
  u32 len;            // tokens of the window

  DEVICE float apply(float value, u32 row, u32 column) const {
    const bool takes_part = row >= first && column >= first && !(spares_origin && row == 0 && column == 0);
    const u32 key = order_key(value), last_key = last >> 32;
    const bool is_last = key == last_key && row * len + column <= u32(last);
    return takes_part && (key < last_key || is_last) ? 0.0f : value;
  }

  // A lane's columns of a row of f32, every 32nd from `column` on. In rows before that of the last entry all that are equal to it are
  // zeroed, in those behind it none, so one comparison of values tells.
  template <u32 LEN>
  DEVICE void apply_row(float (&value)[LEN], u32 row, u32 column) const {
    const u32 key = last >> 32, index = last, begin = row * len;
    const bool all = begin + len - 1 <= index;
    if ((all || begin > index) && key < INFINITY_KEY && first <= WARP) {
      const float none = __uint_as_float(0x7fffffff);
      const float least = row < first ? none : value_of(key + all);
      const bool spared = column < first || (spares_origin && row == 0 && column == 0);
#pragma unroll
      for (u32 k = 0; k < LEN; ++k) {
        if (value[k] < (k == 0 && spared ? none : least)) value[k] = 0.0f;
      }
    } else {
#pragma unroll
      for (u32 k = 0; k < LEN; ++k) value[k] = apply(value[k], row, column + k * WARP);
    }
  }
};
