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
};
