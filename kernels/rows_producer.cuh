// The producer of rows_stream: the one warp that fills the ring with the rows of a block's slices, layer by layer from the
// last to the first. All lanes take every decision alike, and share the copies.
//
// Macros: ELEMENT, GRADIENTS.
#pragma once

#include "tile_source.cuh"

// Rows of a slice at most.
constexpr u32 MAX_SLICE_ROWS = 4096;

// The rows of the window that a block owns in some layer.
struct Slice {
  u32 first, rows;
  u32 left;  // what the division that `first` comes from leaves
};
// The slices of a window of `len` rows, as even as can be.
struct Slices {
  u32 len, blocks;
  Divisor by_len, by_blocks;
  u32 least, left;  // rows of a slice at least, and what that leaves of the window

  DEVICE Slices(u32 len, u32 blocks)
      : len(len), blocks(blocks), by_len(blocks == 1 ? 1 : max_u32(len, 1)), by_blocks(blocks), least(unknown(by_blocks.divide(len))),
        left(unknown(len - least * blocks)) {}
  DEVICE u32 first(u32 index) const { return by_blocks.divide(index * len); }
  DEVICE Slice slice(u32 index) const {
    const u32 begin = first(index);
    return from(begin, index * len - begin * blocks);
  }
  // The one behind a slice; behind the last the first.
  DEVICE Slice after(const Slice &slice) const {
    const u32 begin = slice.first + slice.rows, sum = slice.left + left;
    return begin == len ? from(0, 0) : from(begin, sum >= blocks ? sum - blocks : sum);
  }
  // The slice that row `row` belongs to.
  DEVICE u32 of(u32 row) const { return blocks == 1 ? 0 : by_len.divide((row + 1) * blocks - 1); }

 private:
  DEVICE Slice from(u32 begin, u32 of_division) const {
    return {begin, least + (of_division + left >= blocks), of_division};
  }
};
DEVICE u32 most_rows(u32 tokens, u32 blocks) { return (tokens + blocks - 1) / blocks; }

// The rows of a slice that are read: of the first `rows` all, or those with a bit.
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

// One past the last row of a window of `len` rows that carries weight in any start row; 0: none does. From the end on: the
// last token is what is asked for most.
DEVICE u32 end_of_weight(const RowsStreamParams &params, u32 item, u32 len) {
  const u32 lane = threadIdx.x % WARP;
  const float *start = params.start + item * params.start_stride_batch;
  for (u32 end = len; end > 0; end -= min_u32(end, WARP)) {
    bool weighs = false;
    for (u32 m = 0; m < params.start_rows; ++m) {
      weighs |= lane < end && start[m * params.maps.tokens + end - 1 - lane] != 0.0f;
    }
    const u32 bits = __ballot_sync(FULL_WARP, weighs);
    if (bits) return end - (__ffs(bits) - 1);
  }
  return 0;
}

// The warp that fills the ring: all tiles of an item.
DEVICE void produce(const RowsStreamParams &params, u32 item, u32 block, u32 blocks, Ring &ring, u32 *weighted) {
  const Maps &maps = params.maps;
  const u32 lane = threadIdx.x % WARP;
  const Divisor planes(OPERANDS * maps.heads);
  const Window window = maps.windows[item];
  u32 panels = 1;
  if (window.len > params.panel_columns) panels = (window.len + params.panel_columns - 1) / params.panel_columns;
  const u32 passes = params.normalize && panels > 1 ? 2 : 1;
  const Slices slices(window.len, blocks);

  u32 index = block, end = window.len;
  for (u32 layer = maps.layers; layer-- > 0; index = index + 1 == blocks ? 0 : index + 1) {
    const Slice slice = slices.slice(index);
    // No row of a causal map gives weight to one behind it. Looked for when the copies of the last layer are on their way.
    if (maps.causal && layer + 2 == maps.layers) end = end_of_weight(params, item, window.len);
    Wanted wanted = {nullptr, min_u32(slice.rows, max_u32(end, slice.first) - slice.first)};
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
          const u32 rows = row < wanted.rows ? wanted.run(row, layout.rows) : 0;
          const u32 following = wanted.next(row + rows);
          more = following < wanted.rows;
          const u32 flags = (pass + 1 < passes ? SUMS_ONLY : 0) | (more ? 0 : ENDS_PANEL) |
                            (last_panel && !more ? ENDS_LAYER : 0);
          send_tile(maps, source, layout, planes, ring, slice.first + row, row, rows, column, columns, flags);
          row = following;
        }
      }
    }
  }
}
