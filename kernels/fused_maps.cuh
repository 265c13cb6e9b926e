// The fused map of one item, as its consumers read it: discarded entries are 0.
#pragma once

#include "discard.cuh"
#include "memory.cuh"
#include "params.cuh"

struct FusedMap {
  u64 base;          // entry (0, 0)
  u64 stride_row;    // in bytes
  const float *scales;
  Cut cut;
  u32 len;
  bool causal;

  DEVICE FusedMap(const FusedMaps &maps, u32 item)
      : base(global_address(maps.base + item * maps.stride_batch)),
        stride_row(maps.stride_row * 4),
        scales(maps.scales ? maps.scales + u64(item) * maps.tokens : nullptr),
        cut{maps.cuts ? maps.cuts[item] : 0, maps.discard_first, maps.discard_spares_origin, maps.windows[item].len},
        len(maps.windows[item].len),
        causal(maps.causal) {}

  // Columns of `row` that are not 0 by structure.
  DEVICE u32 row_end(u32 row) const { return causal ? row + 1 : len; }

  DEVICE float at(u32 row, u32 column) const {
    const float value = __uint_as_float(load_element<4>(base + row * stride_row + column * 4));
    return cut.last ? cut.apply(value, row, column) : value;
  }

  // What row `row` of `attention * fused + identity * I` is multiplied with.
  DEVICE float scale(u32 row) const { return scales ? scales[row] : 1.0f; }
};
