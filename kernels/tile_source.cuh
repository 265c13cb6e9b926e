// Where the warp that fills a ring finds tiles of a layer, how they lie in a stage, and how one is sent.
//
// Macros: ELEMENT, GRADIENTS.
#pragma once

#include "params.cuh"
#include "ring.cuh"

// Tensors of a layer, of the same strides, whose heads a tile holds one after the other.
constexpr u32 OPERANDS = GRADIENTS ? 2 : 1;
// The quotient of numbers below 2^20: of `value` and a half nothing is as near to a whole number as this rounds.
DEVICE u32 quotient_of_small(u32 value, u32 by) { return u32(__fdividef(float(value) + 0.5f, float(by))); }

// Division of any number by one that is looked at once: the quotient by its reciprocal is at most one too large.
struct Divisor {
  u32 by, reciprocal;
  DEVICE explicit Divisor(u32 by) : by(by), reciprocal(0) {
    if (by > 1) reciprocal = 0xffffffffu / by + 1;
  }
  DEVICE u32 divide(u32 value) const {
    if (by == 1) return value;
    const u32 quotient = __umulhi(value, reciprocal);
    return quotient * by > value ? quotient - 1 : quotient;
  }
};

// One layer of one item, as the producer reads it.
struct Source {
  u64 stride_head, stride_row;  // in bytes

  // Head 0, first row and column of the window.
  DEVICE u64 operand(bool second) const { return base(second) + to_window; }
  // What the strides of the layer reach.
  DEVICE Reach reach(bool second) const { return {base(second), base(second) + span}; }

  DEVICE Source(const Maps &maps, u32 layer, u32 item, u32 window_start) {
    const LayerMaps &map = maps.layer[layer];
    stride_head = u64(map.stride_head) * ELEMENT::BYTES;
    stride_row = u64(map.stride_row) * ELEMENT::BYTES;
    const u64 stride_batch = u64(map.stride_batch) * ELEMENT::BYTES;
    first_base = global_address(map.base);
    if constexpr (OPERANDS == 2) second_base = global_address(map.gradients);
    span = (maps.batch - 1) * stride_batch + (maps.heads - 1) * stride_head + (maps.tokens - 1) * stride_row +
           u64(maps.tokens) * ELEMENT::BYTES;
    to_window = item * stride_batch;
    if (!maps.window_local) to_window += window_start * (stride_row + ELEMENT::BYTES);
  }

 private:
  u64 first_base, second_base, span, to_window;

  DEVICE u64 base(bool second) const { return OPERANDS == 2 && second ? second_base : first_base; }
};

// How rows of `columns` columns lie in a stage: at distances that leave room for the granules at both ends of what is
// copied in one go, and equal those in memory modulo 16. Dense rows follow one another there and here. Operands have an
// alignment each.
struct Layout {
  bool dense;
  u32 row_bytes, plane_bytes, operand_bytes;
  u32 rows;  // most in a tile

  DEVICE Layout(const Source &source, bool dense, u32 columns, const Divisor &planes, u32 stage_bytes) : dense(dense) {
    const u32 bytes = columns * ELEMENT::BYTES;
    row_bytes = dense ? bytes : congruent((bytes + 2 * GRANULE_BYTES - 2) & ~(GRANULE_BYTES - 1), source.stride_row);
    const u32 room = planes.divide(stage_bytes - OPERANDS * GRANULE_BYTES);
    plane_bytes = congruent((room - u32(source.stride_head) % GRANULE_BYTES) & ~(GRANULE_BYTES - 1), source.stride_head);
    rows = quotient_of_small(plane_bytes - (GRANULE_BYTES - 1) - bytes, row_bytes) + 1;
    const u32 first_operand = planes.by / OPERANDS * plane_bytes;
    const u32 apart = u32(source.operand(true) - source.operand(false));
    operand_bytes = first_operand + (apart - first_operand) % GRANULE_BYTES;
  }

 private:
  DEVICE static u32 congruent(u32 multiple, u64 stride) { return multiple + u32(stride) % GRANULE_BYTES; }
};

// Fills the next stage: `rows` rows of the window from `first_row` on, `columns` columns from `column` on. `row` and `flags`
// are told to those who take the tile.
DEVICE void send_tile(const Maps &maps, const Source &source, const Layout &layout, const Divisor &planes, Ring &ring,
                      u32 first_row, u32 row, u32 rows, u32 column, u32 columns, u32 flags) {
  const u32 lane = threadIdx.x % WARP;
  ring.wait_for_room();
  const u32 stage = ring.stage * ring.stage_bytes;
  const u64 first = first_row * source.stride_row + column * ELEMENT::BYTES;
  const u32 begin = stage + u32(source.operand(false) + first) % GRANULE_BYTES;
  if (lane == 0) {
    ring.shared.tile[ring.stage] = {begin, layout.row_bytes, layout.plane_bytes, layout.operand_bytes,
                                    row,   rows,             column,             columns,
                                    flags};
  }
  const u32 parts = lanes_per_copy(columns * ELEMENT::BYTES * (layout.dense ? rows : 1));
  const u32 to = shared_address(ring.data) + begin;
  const u32 copies_of_plane = layout.dense ? min_u32(rows, 1) : rows;
  for (u32 copy = lane / parts; copy < planes.by * copies_of_plane; copy += WARP / parts) {
    const u32 r = planes.divide(copy), plane = copy - r * planes.by;
    const bool second = OPERANDS == 2 && plane >= maps.heads;
    const u32 head = second ? plane - maps.heads : plane;
    const u32 within = maps.causal ? min_u32(columns, max_u32(first_row + r + 1, column) - column) : columns;
    copy_to_stage<ELEMENT::BYTES>(
        ring, to + (second ? layout.operand_bytes : 0) + head * layout.plane_bytes + r * layout.row_bytes,
        source.operand(second) + first + head * source.stride_head + r * source.stride_row,
        within * ELEMENT::BYTES * (layout.dense ? rows : 1), source.reach(second), lane % parts, parts);
  }
  ring.send();
}
