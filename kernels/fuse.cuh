// One warp reads one row of all heads and fuses them: lane k owns the PER_GRANULE columns from first + k * PER_GRANULE.
//
// Rows start at any element (odd N), and each head has its own alignment. Every head is read as aligned 16-byte
// granules that cover its columns; the warp then shifts them into place, so that lanes hold the same columns of every
// head. The shift is the same for all lanes, and costs about 2.4 operations per element. Where a granule would leave
// the memory of the layer (its very first and last rows), elements are read one by one.
//
// Where the template WEIGHS, an entry of a head is its product with the gradient at the same place, both read once. Gradients have the
// strides of the maps, but lie anywhere, so they are shifted by themselves.
#pragma once

#include "folds.cuh"
#include "item_maps.cuh"
#include "memory.cuh"

// Moves the granules of a warp `bytes` (less than 16, the same in all lanes) towards lower addresses.
DEVICE Granule shift_down(const Granule &g, u32 bytes) {
  if (bytes == 0) return g;
  u32 word[8];
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    word[i] = g.word[i];
    word[i + 4] = __shfl_down_sync(FULL_WARP, g.word[i], 1);
  }
#pragma unroll
  for (u32 i = 0; i < 6; ++i) word[i] = bytes & 8 ? word[i + 2] : word[i];
#pragma unroll
  for (u32 i = 0; i < 5; ++i) word[i] = bytes & 4 ? word[i + 1] : word[i];
  Granule shifted;
#pragma unroll
  for (u32 i = 0; i < 4; ++i) shifted.word[i] = __funnelshift_r(word[i], word[i + 1], 8 * (bytes & 3));
  return shifted;
}

// The maps of one layer and item as a warp reads them. HEADS_IN_FLIGHT granules per lane are on their way at a time.
template <class Element, class Fusion, bool WEIGHS = false>
struct FusedRows : ItemMaps<Element, WEIGHS> {
  static constexpr u32 COLUMNS = Element::PER_GRANULE;  // of one lane
  using Of = ItemMaps<Element, WEIGHS>;
  using Of::maps, Of::origin, Of::stride_head, Of::stride_row, Of::to_gradients;

  u64 memory_begin, memory_end;  // what the strides of the layer reach

  DEVICE FusedRows(const Maps &maps, u32 layer, u32 item, u32 window_start) : Of(maps, layer, item, window_start) {
    const LayerMaps &map = maps.layer[layer];
    memory_begin = global_address(map.base);
    memory_end = memory_begin + (maps.batch - 1) * u64(map.stride_batch) * Element::BYTES + (maps.heads - 1) * stride_head +
                 (maps.tokens - 1) * stride_row + u64(maps.tokens) * Element::BYTES;
  }

  // Columns [first, end) of one row of all heads; at most 31 granules, or 32 where the rows are aligned.
  struct Segment {
    u64 begin;  // of head 0
    u32 columns;
    bool begins_inside, ends_inside;  // whether the first granule, and the last one, lie in the memory of the layer

    DEVICE bool wide() const { return begins_inside && ends_inside; }
  };

  DEVICE Segment segment(u32 row, u32 first, u32 end) const {
    const u64 begin = origin + row * stride_row + first * Element::BYTES;
    const u32 columns = end > first ? end - first : 0;
    const u64 last_end = begin + (maps.heads - 1) * stride_head + columns * Element::BYTES;
    Segment segment = {begin, columns, (begin & ~u64(GRANULE_BYTES - 1)) >= memory_begin,
                       ((last_end + GRANULE_BYTES - 1) & ~u64(GRANULE_BYTES - 1)) <= memory_end};
    if constexpr (WEIGHS) {
      const u64 other_end = last_end + to_gradients;
      segment.begins_inside &= ((begin + to_gradients) & ~u64(GRANULE_BYTES - 1)) >= memory_begin + to_gradients;
      segment.ends_inside &=
          ((other_end + GRANULE_BYTES - 1) & ~u64(GRANULE_BYTES - 1)) <= memory_end + to_gradients;
    }
    return segment;
  }

  // The gradients of a segment's entries.
  DEVICE Segment gradients_of(Segment segment) const {
    segment.begin += to_gradients;
    return segment;
  }

  // Where the first column of a head lies in its granule.
  DEVICE u32 offset(const Segment &segment, u32 head) const {
    return (u32(segment.begin) + head * u32(stride_head)) % GRANULE_BYTES;
  }

  // This lane's granule of a segment, and whether it holds any of its columns.
  DEVICE u64 granule_address(const Segment &segment, u32 head) const {
    return ((segment.begin + head * stride_head) & ~u64(GRANULE_BYTES - 1)) + threadIdx.x % WARP * GRANULE_BYTES;
  }
  DEVICE bool granule_wanted(const Segment &segment, u32 head) const {
    return head < maps.heads &&
           threadIdx.x % WARP * GRANULE_BYTES < offset(segment, head) + segment.columns * Element::BYTES;
  }

  // Adds one head, from the granules of a segment, to the fused entries.
  DEVICE void add(float (&fused)[COLUMNS], const Segment &segment, u32 head, const Granule &granule) const {
    float value[COLUMNS];
    Element::widen(shift_down(granule, offset(segment, head)), value);
    add_entries(fused, head, value);
  }
  DEVICE void add(float (&fused)[COLUMNS], const Segment &segment, u32 head, const Granule &granule,
                  const Granule &gradients) const {
    float value[COLUMNS], gradient[COLUMNS];
    Element::widen(shift_down(granule, offset(segment, head)), value);
    Element::widen(shift_down(gradients, offset(gradients_of(segment), head)), gradient);
    weigh_entries(value, gradient);
    add_entries(fused, head, value);
  }

  // Before the first head, and after the last: 0 in the lanes' other columns.
  DEVICE static void start(float (&fused)[COLUMNS]) {
#pragma unroll
    for (u32 c = 0; c < COLUMNS; ++c) fused[c] = Fusion::start();
  }
  DEVICE void finish(float (&fused)[COLUMNS], const Segment &segment) const {
#pragma unroll
    for (u32 c = 0; c < COLUMNS; ++c) {
      const bool inside = threadIdx.x % WARP * COLUMNS + c < segment.columns;
      fused[c] = inside ? Fusion::finish(fused[c], maps.head_scale) : 0.0f;
      if constexpr (WEIGHS) fused[c] = Weighing(maps.rectify_fused).finish(fused[c]);
    }
  }

  // The fused entries of a segment. All lanes take part.
  DEVICE void fuse(float (&fused)[COLUMNS], const Segment &segment) const {
    start(fused);
    if (segment.wide()) {
#pragma unroll 1
      for (u32 head = 0; head < maps.heads && segment.columns; head += HEADS_IN_FLIGHT) {
        Granule granule[HEADS_IN_FLIGHT], gradients[WEIGHS ? HEADS_IN_FLIGHT : 1];
#pragma unroll
        for (u32 k = 0; k < HEADS_IN_FLIGHT; ++k) {
          granule[k] = load_granule(granule_address(segment, head + k), granule_wanted(segment, head + k));
          if constexpr (WEIGHS) {
            const Segment other = gradients_of(segment);
            gradients[k] = load_granule(granule_address(other, head + k), granule_wanted(other, head + k));
          }
        }
#pragma unroll
        for (u32 k = 0; k < HEADS_IN_FLIGHT; ++k) {
          if (head + k < maps.heads) {
            if constexpr (WEIGHS) {
              add(fused, segment, head + k, granule[k], gradients[k]);
            } else {
              add(fused, segment, head + k, granule[k]);
            }
          }
        }
      }
    } else {
      add_narrow(fused, segment);
    }
    finish(fused, segment);
  }

  // Adds all heads of any segment, element by element.
  DEVICE void add_narrow(float (&fused)[COLUMNS], const Segment &segment) const {
#pragma unroll 1
    for (u32 head = 0; head < maps.heads; ++head) {
      float value[COLUMNS];
      Element::widen(narrow_granule(segment, head), value);
      if constexpr (WEIGHS) {
        float gradient[COLUMNS];
        Element::widen(narrow_granule(gradients_of(segment), head), gradient);
        weigh_entries(value, gradient);
      }
      add_entries(fused, head, value);
    }
  }

 private:
  // This lane's columns of one head, element by element.
  DEVICE Granule narrow_granule(const Segment &segment, u32 head) const {
    const u32 lane = threadIdx.x % WARP;
    const u64 from = segment.begin + head * stride_head + lane * GRANULE_BYTES;
    Granule granule = {};
#pragma unroll
    for (u32 c = 0; c < COLUMNS; ++c) {
      if (lane * COLUMNS + c < segment.columns) {
        const u32 bits = load_element<Element::BYTES>(from + c * Element::BYTES);
        granule.word[c * Element::BYTES / 4] |= bits << (8 * (c * Element::BYTES % 4));
      }
    }
    return granule;
  }

  DEVICE void weigh_entries(float (&value)[COLUMNS], const float (&gradient)[COLUMNS]) const {
    const Weighing weighing(maps.rectify_fused);
#pragma unroll
    for (u32 c = 0; c < COLUMNS; ++c) value[c] = weighing.weigh(value[c], gradient[c]);
  }

  DEVICE void add_entries(float (&fused)[COLUMNS], u32 head, const float (&value)[COLUMNS]) const {
    const float weight = head_weight<Fusion>(maps, head);
#pragma unroll
    for (u32 c = 0; c < COLUMNS; ++c) fused[c] = Fusion::add(fused[c], value[c], weight);
  }
};
