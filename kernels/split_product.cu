// split_product: products of two factors of the rollout each, all of a launch independent of each other: a level of a tree.
//
// A factor is attention D + identity I, where D is kept in f16 `hi + lo` of 2^11 D and the identity as a number, so it never
// meets the low precision, and products may be taken in any order:
//   (a2 D2 + b2 I)(a1 D1 + b1 I) = (a2 a1 D2 D1 + a2 b1 D2 + b2 a1 D1) + b2 b1 I
// The sum in brackets is the D of the product, whose `attention` is 1; of a product that is a result all is added up, in f32.
//
// Each block makes a tile of one product of one item. Operands were split when they were written, so a step of k is
// copied as it lies, STAGES - 1 steps ahead, and multiplied: no conversion, no registers on the way. Of causal maps, steps that
// are 0 are left out. What a map does not hold (rows past the window, granules past the end of a row) is 0 and not read.
//
// Grid: x item of a product, y tile row, z tile column. Macros: ROWS, COLUMNS, WARP_ROWS, WARP_COLUMNS (of the tile, of a warp of it),
// STAGES, SHARED_BYTES, BLOCK_THREADS, BLOCKS, GROUPED_BLOCKS, and those of entry.cuh.

#include "entry.cuh"
#include "mma.cuh"

constexpr u32 STEP = 32;    // columns of k in a stage
constexpr u32 ROW_TILES = WARP_ROWS / 16, COLUMN_TILES = WARP_COLUMNS / 8;
constexpr u32 GRANULE = 8;  // entries of 16 bytes
constexpr u32 WARPS_ACROSS = COLUMNS / WARP_COLUMNS;
constexpr u32 HIGH = 0, LOW = 1;

// A tile of WIDE columns in shared memory: where a granule lies in it, in bytes. Granules of a row change places by the row, so
// that those which are written, or read by ldmatrix, at the same time lie in banks of their own.
template <u32 WIDE>
DEVICE u32 granule_at(u32 row, u32 column) {
  constexpr u32 GRANULES = WIDE / GRANULE, ROWS_OF_BANKS = 64 / WIDE;
  return (row * WIDE + (column ^ row / ROWS_OF_BANKS % GRANULES * GRANULE)) * 2;
}

// A stage in shared memory: both halves of either operand, from so many bytes on.
constexpr u32 LEFT_BYTES = ROWS * STEP * 2, RIGHT_BYTES = STEP * COLUMNS * 2;
constexpr u32 RIGHT_AT = 2 * LEFT_BYTES, STAGE_BYTES = RIGHT_AT + 2 * RIGHT_BYTES;
static_assert(STAGES * STAGE_BYTES == SHARED_BYTES, "the host asks for what the stages take");

// The tile of a block in place of the stages. The pitch keeps the stores of fragments free of bank conflicts.
struct Finished {
  float entry[ROWS][COLUMNS + 8];
};
static_assert(sizeof(Finished) <= SHARED_BYTES, "what is finished takes no more than the stages");

extern __shared__ uint4 dynamic[];

// QUAD entries of a map side by side, in units of 2^-11.
constexpr u32 QUAD = 4;
struct Quad {
  Words high, low;

  // Asks for them; zeros where they are not `wanted`.
  DEVICE void load(u64 from, u32 to_low, bool wanted) {
    high = load_words(from, wanted);
    low = load_words(from + to_low, wanted);
  }
  DEVICE float at(u32 e) const {
    const auto half = [&](const Words &words) { return f16::widen(u16(words.word[e / 2] >> (e % 2 * 16))); };
    return half(high) + half(low);
  }
};

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
  // A thread copies granules that far apart, below each other.
  static constexpr u32 LEFT_APART = BLOCK_THREADS / (STEP / GRANULE), RIGHT_APART = BLOCK_THREADS / (COLUMNS / GRANULE);
  static constexpr u32 LEFT = ROWS / LEFT_APART, RIGHT = STEP / RIGHT_APART;
  static_assert(RIGHT == 1 && LEFT_APART % 8 == 0, "a thread's granules have the same place in their rows");

  u32 k, end;
  u64 left_from[LEFT], right_from;
  u32 left_to, right_to;    // from the beginning of a stage
  u32 left_column;
  u32 left_end[LEFT];       // columns of the row that hold anything
  u32 right_row;
  u32 right_begin, right_count;  // rows of the column that hold anything
  u32 left_low, right_low;  // from the high halves to the low ones

  DEVICE Copies(const SplitMap &left, const SplitMap &right, u32 tile_row, u32 tile_column, u32 begin, u32 end)
      : k(begin), end(end), left_low(left.to_low()), right_low(right.to_low()) {
    const u32 row = threadIdx.x / (STEP / GRANULE);
    left_column = threadIdx.x % (STEP / GRANULE) * GRANULE;
    left_to = granule_at<STEP>(row, left_column);
#pragma unroll
    for (u32 n = 0; n < LEFT; ++n) {
      const u32 in_map = tile_row + row + n * LEFT_APART;
      left_from[n] = left.at(in_map, begin + left_column);
      left_end[n] = in_map < left.len ? left.row_end(in_map) : 0;
    }
    left_column += begin;
    const u32 column = threadIdx.x % (COLUMNS / GRANULE) * GRANULE, in_map = tile_column + column;
    right_row = threadIdx.x / (COLUMNS / GRANULE);
    right_to = RIGHT_AT + granule_at<COLUMNS>(right_row, column);
    right_row += begin;
    right_from = right.at(right_row, in_map);
    right_begin = right.causal ? in_map : 0;
    right_count = in_map < right.len ? right.len - right_begin : 0;
  }

  // Starts to copy the next step, if there is one, and closes the group of its copies.
  DEVICE void start(u32 stage) {
    if (k < end) {
#pragma unroll
      for (u32 n = 0; n < LEFT; ++n) {
        const u32 to = stage + left_to + n * LEFT_APART * STEP * 2;
        const bool held = left_column < left_end[n];
        copy_granule_or_zeros(to, left_from[n], held);
        copy_granule_or_zeros(to + LEFT_BYTES, left_from[n] + left_low, held);
        left_from[n] += STEP * 2;
      }
      const bool held = right_row - right_begin < right_count;
      copy_granule_or_zeros(stage + right_to, right_from, held);
      copy_granule_or_zeros(stage + right_to + RIGHT_BYTES, right_from + right_low, held);
      right_from += 2 * STEP * right_low;
      left_column += STEP;
      right_row += STEP;
      k += STEP;
    }
    commit_copies();
  }
};

// The tile of a block, added up in registers.
struct Sums {
  float sum[ROW_TILES][COLUMN_TILES][4] = {};

  DEVICE static u32 warp_row() { return threadIdx.x / WARP / WARPS_ACROSS * WARP_ROWS; }
  DEVICE static u32 warp_column() { return threadIdx.x / WARP % WARPS_ACROSS * WARP_COLUMNS; }

  // Of the stage in shared memory.
  DEVICE void multiply(u32 stage) {
    const u32 lane = threadIdx.x % WARP, half = lane % 16, other = lane / 16 * 8;
#pragma unroll
    for (u32 k = 0; k < STEP; k += 16) {
      u32 left[2][ROW_TILES][4], right[2][COLUMN_TILES / 2][4];
#pragma unroll
      for (u32 part = HIGH; part <= LOW; ++part) {
#pragma unroll
        for (u32 i = 0; i < ROW_TILES; ++i) {
          const u32 from = granule_at<STEP>(warp_row() + i * 16 + half, k + other);
          load_tiles(left[part][i], stage + from + part * LEFT_BYTES);
        }
#pragma unroll
        for (u32 j = 0; j < COLUMN_TILES / 2; ++j) {
          const u32 from = granule_at<COLUMNS>(k + half, warp_column() + j * 16 + other);
          load_tiles_transposed(right[part][j], stage + from + RIGHT_AT + part * RIGHT_BYTES);
        }
      }
      // Products that add to the same sum wait for each other, so others come between.
      add(left[HIGH], right[HIGH]);
      add(left[LOW], right[HIGH]);
      add(left[HIGH], right[LOW]);
    }
  }

  DEVICE void store(Finished &finished) const {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (u32 i = 0; i < ROW_TILES; ++i) {
#pragma unroll
      for (u32 j = 0; j < COLUMN_TILES; ++j) {
#pragma unroll
        for (u32 e = 0; e < 4; e += 2) {
          float *to = &finished.entry[warp_row() + i * 16 + lane / 4 + e / 2 * 8][warp_column() + j * 8 + lane % 4 * 2];
          *reinterpret_cast<float2 *>(to) = make_float2(sum[i][j][e], sum[i][j][e + 1]);
        }
      }
    }
  }

 private:
  DEVICE void add(const u32 (&left)[ROW_TILES][4], const u32 (&right)[COLUMN_TILES / 2][4]) {
#pragma unroll
    for (u32 i = 0; i < ROW_TILES; ++i) {
#pragma unroll
      for (u32 j = 0; j < COLUMN_TILES; ++j) {
        mma_f16(sum[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
};

// Adds to the sums what the identities make of the two maps, and writes what is wanted of the product. The tile goes through shared
// memory, so that a thread has entries side by side; what is added to them is asked for two turns ahead.
DEVICE void finish(const SplitProductParams &params, const FactorProduct &product, u32 item, u32 tile_row, u32 tile_column,
                   const SplitMap &left_map, const SplitMap &right_map, const Sums &sums) {
  constexpr u32 ACROSS = COLUMNS / QUAD, APART = BLOCK_THREADS / ACROSS, QUADS = ROWS / APART, TOGETHER = 2;
  const Window window = params.windows[item];
  const u32 first_row = threadIdx.x / ACROSS, first_column = threadIdx.x % ACROSS * QUAD;
  const u32 column = tile_column + first_column, granule = column / GRANULE * GRANULE;
  const u64 first_entry = u64(tile_row + first_row) * left_map.stride_row + column * 2;
  const u64 apart = APART * left_map.stride_row;
  Quad old_left[TOGETHER], old_right[TOGETHER];
  const auto ask = [&](u32 t, u32 n) {
    const u32 row = tile_row + first_row + n * APART;
    const u64 entry = first_entry + n * apart;
    old_left[t].load(left_map.base + entry, left_map.to_low(), left_map.holds(row, granule));
    old_right[t].load(right_map.base + entry, left_map.to_low(), right_map.holds(row, granule));
  };
#pragma unroll
  for (u32 t = 0; t < TOGETHER; ++t) ask(t, t);

  Finished &finished = *reinterpret_cast<Finished *>(dynamic);
  __syncthreads();  // the last stage has been multiplied
  sums.store(finished);
  __syncthreads();  // the sums of all warps are there
  const Factor left = product.left, right = product.right;
  const float of_both = left.attention * right.attention * SplitF16::FINISH;
  const float of_left = left.attention * right.identity / SplitF16::SCALE;
  const float of_right = left.identity * right.attention / SplitF16::SCALE;
  char *const map = static_cast<char *>(product.map) + item * params.stride_batch * 4 + first_entry;
#pragma unroll 1
  for (u32 turn = 0; turn < QUADS; turn += TOGETHER) {
#pragma unroll
    for (u32 t = 0; t < TOGETHER; ++t) {
      const u32 n = turn + t, row = tile_row + first_row + n * APART;
      float4 &entries = *reinterpret_cast<float4 *>(&finished.entry[first_row + n * APART][first_column]);
      float x[QUAD] = {entries.x, entries.y, entries.z, entries.w};
#pragma unroll
      for (u32 e = 0; e < QUAD; ++e) x[e] = of_both * x[e] + of_left * old_left[t].at(e) + of_right * old_right[t].at(e);
      if (product.map && left_map.holds(row, granule)) {
        uint2 high, low;
        SplitF16::split(x, high, low);
        *reinterpret_cast<uint2 *>(map + n * apart) = high;
        *reinterpret_cast<uint2 *>(map + n * apart + left_map.to_low()) = low;
      }
      if (product.result) entries = make_float4(x[0], x[1], x[2], x[3]);
      if (n + TOGETHER < QUADS) ask(t, n + TOGETHER);
    }
  }
  if (product.result == nullptr) return;

  __syncthreads();  // all entries are finished
  const float identity = left.identity * right.identity;
  float *const result =
      product.result + item * params.result_stride_batch + window.start * params.result_stride_row + window.start;
  const u32 rows = min_u32(ROWS, window.len - tile_row);
  for (u32 i = threadIdx.x; i < rows * COLUMNS; i += BLOCK_THREADS) {
    const u32 r = i / COLUMNS, c = i % COLUMNS, in_row = tile_row + r, in_column = tile_column + c;
    if (in_column < window.len) {
      result[in_row * params.result_stride_row + in_column] = finished.entry[r][c] + (in_row == in_column ? identity : 0.0f);
    }
  }
}

DEVICE void split_product(const SplitProductParams &params, const Place &place) {
  const u32 item = place.x % params.items;
  const FactorProduct &product = params.product[place.x / params.items];
  const Window window = params.windows[item];
  const u32 tile_row = place.y * ROWS, tile_column = place.z * COLUMNS;
  if (tile_row >= window.len || tile_column >= window.len) return;
  const SplitMap left_map(product.left.map, params, item), right_map(product.right.map, params, item);

  // Of causal maps the left one is 0 beyond its diagonal, and the right one above it.
  const u32 begin = params.causal ? tile_column : 0;
  const u32 last = params.causal ? min_u32(window.len, tile_row + ROWS) : window.len;
  const u32 end = product.right.map ? last : begin;
  Copies copies(left_map, right_map, tile_row, tile_column, begin, end);
  const u32 stages = shared_address(dynamic);
#pragma unroll
  for (u32 s = 0; s + 1 < STAGES; ++s) copies.start(stages + s * STAGE_BYTES);
  Sums sums;
  const u32 first_row = tile_row + Sums::warp_row(), first_column = tile_column + Sums::warp_column();
  // Whether this warp's part of the tile is within the window and, of causal maps, not above the diagonal.
  const u32 last_row = min_u32(first_row + WARP_ROWS, window.len) - 1;
  const bool holds_any = first_row < window.len && first_column < left_map.row_end(last_row);
  u32 stage = stages, next = stages + (STAGES - 1) * STAGE_BYTES;
  for (u32 k = begin; k < end; k += STEP) {
    wait_copies<STAGES - 2>();
    __syncthreads();  // this stage is full, and the one before has been multiplied
    copies.start(next);
    if (holds_any) sums.multiply(stage);
    next = stage;
    stage = stage + STAGE_BYTES < stages + SHARED_BYTES ? stage + STAGE_BYTES : stages;
  }

  finish(params, product, item, tile_row, tile_column, left_map, right_map, sums);
}

// Parameters in shared memory take registers that constants do not.
ENTRY(SplitProductParams, split_product, __launch_bounds__(BLOCK_THREADS, GROUPED ? GROUPED_BLOCKS : BLOCKS))
