// Where the maps of one layer and item lie, and their gradients, where these WEIGH them.
#pragma once

#include "memory.cuh"
#include "params.cuh"

template <class Element, bool WEIGHS>
struct ItemMaps {
  const Maps &maps;
  u64 origin;                   // head 0, first row and column of the window
  u64 stride_head, stride_row;  // in bytes
  u64 to_gradients;             // from an entry of a map to its gradient

  DEVICE ItemMaps(const Maps &maps, u32 layer, u32 item, u32 window_start) : maps(maps) {
    const LayerMaps &map = maps.layer[layer];
    stride_head = u64(map.stride_head) * Element::BYTES;
    stride_row = u64(map.stride_row) * Element::BYTES;
    const u64 base = global_address(map.base);
    to_gradients = WEIGHS ? global_address(map.gradients) - base : 0;
    origin = base + item * u64(map.stride_batch) * Element::BYTES;
    if (!maps.window_local) origin += window_start * (stride_row + Element::BYTES);
  }
};

// What a head is multiplied with before heads are added.
template <class Fusion>
DEVICE float head_weight(const Maps &maps, u32 head) {
  if constexpr (Fusion::WEIGHTED) {
    return __uint_as_float(load_element<4>(global_address(maps.head_weights + head)));
  } else {
    return 0.0f;
  }
}
