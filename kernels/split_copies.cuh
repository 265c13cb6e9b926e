// Operands of a product in f16 `hi + lo`, which lie in memory as they are multiplied: copied to shared memory as they are, a step of k
// at a time. Macros: ROWS, COLUMNS, COPYING_WARPS, STAGES, SHARED_BYTES, BLOCK_THREADS, those of split_product.cu.
#pragma once

#include "memory.cuh"
#include "params.cuh"

constexpr u32 STEP = 32;    // columns of k in a stage
constexpr u32 GRANULE = 8;  // entries of 16 bytes
constexpr u32 COPYING_THREADS = COPYING_WARPS ? COPYING_WARPS * WARP : BLOCK_THREADS;

// A tile of WIDE columns in shared memory: columns from row to row, and where a granule lies, in bytes. Those which are written,
// or read by ldmatrix, at the same time lie in banks of their own: granules of a row change places by the row where there are
// 4, 8 or 16 of them, and else rows are an odd number of granules apart.
template <u32 WIDE>
constexpr bool CHANGE_PLACES = (WIDE & (WIDE - 1)) == 0;
template <u32 WIDE>
constexpr u32 PITCH = CHANGE_PLACES<WIDE> ? WIDE : (WIDE / GRANULE | 1) * GRANULE;
template <u32 WIDE>
DEVICE u32 granule_at(u32 row, u32 column) {
  constexpr u32 CHANGING = (WIDE < 64 ? WIDE : 64) / GRANULE, ROWS_OF_BANKS = 8 / CHANGING;
  if constexpr (CHANGE_PLACES<WIDE>) column ^= row / ROWS_OF_BANKS % CHANGING * GRANULE;
  return (row * PITCH<WIDE> + column) * 2;
}

// A stage in shared memory: both halves of either operand, from so many bytes on.
constexpr u32 LEFT_BYTES = ROWS * STEP * 2, RIGHT_BYTES = STEP * PITCH<COLUMNS> * 2;
constexpr u32 RIGHT_AT = 2 * LEFT_BYTES, STAGE_BYTES = RIGHT_AT + 2 * RIGHT_BYTES;
static_assert(STAGES * STAGE_BYTES == SHARED_BYTES, "the host asks for what the stages take");

// One item's map: of each row the high halves, then the low ones, each filled with zeros to the end of the granule in which the
// row ends.
struct SplitMap {
  u64 base;
  u32 stride_row;  // in bytes
  u32 len, causal;

  DEVICE SplitMap(const void *maps, const SplitProductParams &params, u32 item)
      : base(global_address(maps) + item * params.stride_batch * 4),
        stride_row(u32(params.stride_row) * 4),
        len(maps ? params.windows[item].len : 0),
        causal(params.causal) {}

  DEVICE u32 row_end(u32 row) const { return causal ? row + 1 : len; }
  // Whether the granule that begins at (row, column) holds anything.
  DEVICE bool holds(u32 row, u32 column) const { return (row < len) & (column < row_end(row)); }
  DEVICE u64 at(u32 row, u32 column) const { return base + u64(row) * stride_row + column * 2; }
  DEVICE u32 to_low() const { return stride_row / 2; }
};

// Copies one step of k after the other: columns of the left operand, and rows of the right one. What changes from step to step
// is little, so that a step takes few instructions: addresses, and how many entries there are still.
struct Copies {
  // Threads for a row of the right operand, more than it has granules where these are not a power of two: those that are written
  // at the same time lie side by side.
  static constexpr u32 RIGHT_ROW = CHANGE_PLACES<COLUMNS> ? COLUMNS / GRANULE : 16;
  static_assert(COLUMNS <= RIGHT_ROW * GRANULE, "a thread for each granule of a row");
  // A thread copies granules that far apart, below each other.
  static constexpr u32 LEFT_APART = COPYING_THREADS / (STEP / GRANULE), RIGHT_APART = COPYING_THREADS / RIGHT_ROW;
  static constexpr u32 LEFT = ROWS / LEFT_APART, RIGHT = STEP / RIGHT_APART;
  static_assert(LEFT * LEFT_APART == ROWS && RIGHT * RIGHT_APART == STEP, "threads copy as many granules each");
  static_assert(LEFT_APART % 8 == 0 && (RIGHT_APART % 8 == 0 || !CHANGE_PLACES<COLUMNS>),
                "a thread's granules have the same place in their rows");

  u32 end;
  u64 left_from, right_from;
  u32 left_to, right_to;    // from the beginning of a stage
  u32 left_column;          // in a step
  u32 left_end[LEFT];       // columns of the row that hold anything
  u32 right_row;            // in a step, from the first row of the column on that holds anything
  u32 right_count;          // rows of the column that hold anything
  u32 low;                  // from the high halves to the low ones
  bool takes_right;         // copies of the right operand

  // What thread `thread` of those that copy does of it.
  DEVICE Copies(const SplitMap &left, const SplitMap &right, u32 tile_row, u32 tile_column, u32 begin, u32 end, u32 thread)
      : end(end), low(left.to_low()), takes_right(thread % RIGHT_ROW < COLUMNS / GRANULE) {
    const u32 row = thread / (STEP / GRANULE);
    left_column = thread % (STEP / GRANULE) * GRANULE;
    left_to = granule_at<STEP>(row, left_column);
    left_from = left.at(tile_row + row, begin + left_column);
#pragma unroll
    for (u32 n = 0; n < LEFT; ++n) {
      const u32 in_map = tile_row + row + n * LEFT_APART;
      left_end[n] = in_map < left.len ? left.row_end(in_map) : 0;
    }
    const u32 column = thread % RIGHT_ROW * GRANULE, in_map = tile_column + column;
    right_row = thread / RIGHT_ROW;
    right_to = RIGHT_AT + granule_at<COLUMNS>(right_row, column);
    right_from = right.at(begin + right_row, in_map);
    const u32 right_begin = right.causal ? in_map : 0;
    right_count = in_map < right.len ? right.len - right_begin : 0;
    right_row -= right_begin;
  }

  // Starts to copy the next step, from k on, if there is one.
  DEVICE void start(u32 stage, u32 k) {
    if (k >= end) return;
#pragma unroll
    for (u32 n = 0; n < LEFT; ++n) {
      const u32 to = stage + left_to + n * LEFT_APART * STEP * 2;
      const bool held = k + left_column < left_end[n];
      const u64 from = left_from + n * LEFT_APART * 2 * low;
      copy_granule_or_zeros(to, from, held);
      copy_granule_or_zeros(to + LEFT_BYTES, from + low, held);
    }
    left_from += STEP * 2;
#pragma unroll
    for (u32 n = 0; n < RIGHT && takes_right; ++n) {
      const u32 to = stage + right_to + n * RIGHT_APART * PITCH<COLUMNS> * 2;
      const bool held = k + right_row + n * RIGHT_APART < right_count;
      const u64 from = right_from + n * RIGHT_APART * 2 * low;
      copy_granule_or_zeros(to, from, held);
      copy_granule_or_zeros(to + RIGHT_BYTES, from + low, held);
    }
    right_from += 2 * STEP * low;
  }
};
