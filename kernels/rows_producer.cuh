// The producer of rows_stream: the one warp that fills the ring with the rows of a block's slices, layer by layer from the
// last to the first. All lanes take every decision alike, and share the copies.
//
// Macros: ELEMENT, GRADIENTS.
#pragma once

#include "params.cuh"
#include "ring.cuh"

// Tensors of a layer, of the same strides, whose heads a tile holds one after the other.
constexpr u32 OPERANDS = GRADIENTS ? 2 : 1;
// Rows of a slice at most.
constexpr u32 MAX_SLICE_ROWS = 4096;

// Division of any number by one that is looked at once: the quotient by its reciprocal is at most one too large.
struct Divisor {
  u32 by, reciprocal;
  DEVICE explicit Divisor(u32 by) : by(by), reciprocal(0xffffffffu / by + 1) {}
  DEVICE u32 divide(u32 value) const {
    if (by == 1) return value;
    const u32 quotient = __umulhi(value, reciprocal);
    return quotient * by > value ? quotient - 1 : quotient;
  }
};

// The rows of the window that a block owns in some layer.
struct Slice {
  u32 first, rows;
};
// The slices of a window of `len` rows, as even as can be.
struct Slices {
  u32 len, blocks;
  Divisor by_len, by_blocks;

  DEVICE Slices(u32 len, u32 blocks) : len(len), blocks(blocks), by_len(max_u32(len, 1)), by_blocks(blocks) {}
  DEVICE Slice slice(u32 index) const {
    const u32 first = by_blocks.divide(index * len);
    return {first, by_blocks.divide((index + 1) * len) - first};
  }
  // The slice that row `row` belongs to.
  DEVICE u32 of(u32 row) const { return by_len.divide((row + 1) * blocks - 1); }
};
DEVICE u32 most_rows(u32 tokens, u32 blocks) { return (tokens + blocks - 1) / blocks; }

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
    rows = (plane_bytes - (GRANULE_BYTES - 1) - bytes) / row_bytes + 1;
    const u32 first_operand = planes.by / OPERANDS * plane_bytes;
    const u32 apart = u32(source.operand(true) - source.operand(false));
    operand_bytes = first_operand + (apart - first_operand) % GRANULE_BYTES;
  }

 private:
  DEVICE static u32 congruent(u32 multiple, u64 stride) { return multiple + u32(stride) % GRANULE_BYTES; }
};

// The rows of a slice that are read: all, or those with a bit.
struct Wanted {
  const u32 *weighted;  // null: all
  u32 rows;

  // The first wanted row from `row` on; `rows` if there is none.
  DEVICE u32 next(u32 row) const {
    if (!weighted) return row;
    while (row < rows) {
      const u32 rest = weighted[row / WARP] >> row % WARP;
      if (rest) return row + __ffs(rest) - 1;
      row = (row / WARP + 1) * WARP;
    }
    return rows;
  }
  // How many are wanted one after the other from `row` on, at most `most`.
  DEVICE u32 run(u32 row, u32 most) const {
    most = min_u32(most, rows - row);
    u32 count = weighted ? 0 : most;
    while (count < most && (weighted[(row + count) / WARP] >> (row + count) % WARP & 1)) ++count;
    return count;
  }
};

// The warp that fills the ring: all tiles of an item.
DEVICE void produce(const RowsStreamParams &params, u32 item, u32 block, Ring &ring, u32 *weighted) {
  const Maps &maps = params.maps;
  const u32 lane = threadIdx.x % WARP;
  const Divisor planes(OPERANDS * maps.heads);
  const Window window = maps.windows[item];
  const u32 panels = max_u32((window.len + params.panel_columns - 1) / params.panel_columns, 1);
  const u32 passes = params.normalize && panels > 1 ? 2 : 1;
  const Slices slices(window.len, params.blocks);

  u32 index = block;
  for (u32 layer = maps.layers; layer-- > 0; index = index + 1 == params.blocks ? 0 : index + 1) {
    const Slice slice = slices.slice(index);
    Wanted wanted = {nullptr, slice.rows};
    if (layer + 1 == maps.layers) {
      const float *start = params.start + item * params.start_stride_batch + slice.first;
#pragma unroll 4
      for (u32 base = 0; base < slice.rows; base += WARP) {
        bool weighs = false;
        for (u32 m = 0; m < params.start_rows; ++m) {
          weighs |= base + lane < slice.rows && start[m * maps.tokens + base + lane] != 0.0f;
        }
        const u32 bits = __ballot_sync(FULL_WARP, weighs);
        if (lane == 0) weighted[base / WARP] = bits;
      }
      __syncwarp();
      wanted.weighted = weighted;
    }
    const Source source(maps, layer, item, window.start);
    const bool dense = panels == 1 && !maps.causal && maps.layer[layer].stride_row == window.len;
    for (u32 pass = 0; pass < passes; ++pass) {
      for (u32 panel = 0; panel < panels; ++panel) {
        const u32 column = panel * params.panel_columns, columns = min_u32(params.panel_columns, window.len - column);
        const Layout layout(source, dense, columns, planes, params.stage_bytes);
        const bool last_panel = pass + 1 == passes && panel + 1 == panels;
        u32 row = wanted.next(0);
        bool more = true;  // a panel without rows has one tile without any, which ends it
        while (more) {
          const u32 rows = row < slice.rows ? wanted.run(row, layout.rows) : 0;
          const u32 following = wanted.next(row + rows);
          more = following < slice.rows;
          ring.wait_for_room();
          const u32 stage = ring.stage * ring.stage_bytes;
          const u64 first = (slice.first + row) * source.stride_row + column * ELEMENT::BYTES;
          const u32 begin = stage + u32(source.operand(false) + first) % GRANULE_BYTES;
          if (lane == 0) {
            const u32 flags = (pass + 1 < passes ? SUMS_ONLY : 0) | (more ? 0 : ENDS_PANEL) |
                              (last_panel && !more ? ENDS_LAYER : 0);
            ring.shared.tile[ring.stage] = {begin, layout.row_bytes, layout.plane_bytes, layout.operand_bytes,
                                            row,   rows,             column,             columns,
                                            flags};
          }
          const u32 parts = lanes_per_copy(columns * ELEMENT::BYTES * (dense ? rows : 1));
          const u32 to = shared_address(ring.data) + begin;
          const u32 copies_of_plane = dense ? min_u32(rows, 1) : rows;
          for (u32 copy = lane / parts; copy < planes.by * copies_of_plane; copy += WARP / parts) {
            const u32 r = planes.divide(copy), plane = copy - r * planes.by;
            const bool second = OPERANDS == 2 && plane >= maps.heads;
            const u32 head = second ? plane - maps.heads : plane;
            const u32 within = maps.causal ? min_u32(columns, max_u32(slice.first + row + r + 1, column) - column) : columns;
            copy_to_stage<ELEMENT::BYTES>(
                ring, to + (second ? layout.operand_bytes : 0) + head * layout.plane_bytes + r * layout.row_bytes,
                source.operand(second) + first + head * source.stride_head + r * source.stride_row,
                within * ELEMENT::BYTES * (dense ? rows : 1), source.reach(second), lane % parts, parts);
          }
          ring.send();
          row = following;
        }
      }
    }
  }
}
