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
// Grid: x item of a product, y tile row, z tile column. Macros: TILE, WARP_ROWS, WARP_COLUMNS (of the tile, of a warp of it),
// STAGES, SHARED_BYTES, BLOCK_THREADS, BLOCKS, GROUPED_BLOCKS, and those of entry.cuh.

#include "entry.cuh"
#include "mma.cuh"

constexpr u32 STEP = 32;    // columns of k in a stage
constexpr u32 ROW_TILES = WARP_ROWS / 16, COLUMN_TILES = WARP_COLUMNS / 8;
constexpr u32 GRANULE = 8;  // entries of 16 bytes
constexpr u32 WARPS_ACROSS = TILE / WARP_COLUMNS;
constexpr u32 HIGH = 0, LOW = 1;

// A tile in shared memory. Granules of a row change places by the row, so that those which are written, or read by ldmatrix, at the
// same time lie in banks of their own.
template <u32 ROWS, u32 COLUMNS>
struct Tile {
  __align__(16) u16 entry[ROWS][COLUMNS];

  DEVICE u32 granule(u32 row, u32 column) const {
    constexpr u32 GRANULES = COLUMNS / GRANULE, ROWS_OF_BANKS = 64 / COLUMNS;
    return shared_address(&entry[row][column ^ row / ROWS_OF_BANKS % GRANULES * GRANULE]);
  }
};

struct Stage {
  Tile<TILE, STEP> left[2];
  Tile<STEP, TILE> right[2];
};
static_assert(STAGES * sizeof(Stage) == SHARED_BYTES, "the host asks for what the stages take");

extern __shared__ uint4 dynamic[];

// Two entries side by side, in units of 2^-11.
struct Pair {
  u32 high, low;
  DEVICE float first() const { return f16::widen(u16(high)) + f16::widen(u16(low)); }
  DEVICE float second() const { return f16::widen(u16(high >> 16)) + f16::widen(u16(low >> 16)); }
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

  // Asks for entries (row, column) and (row, column + 1).
  DEVICE Pair pair(u32 row, u32 column) const {
    const bool held = holds(row, column / GRANULE * GRANULE);
    const u64 from = at(row, column);
    return {load_word(from, held), load_word(from + to_low(), held)};
  }
};

struct Operands {
  SplitMap left, right;
  u32 tile_row, tile_column;

  // Starts to copy columns k ... of the left operand and rows k ... of the right one.
  DEVICE void copy(Stage &stage, u32 k) const {
#pragma unroll
    for (u32 n = 0; n < TILE * STEP / GRANULE / BLOCK_THREADS; ++n) {
      const u32 i = threadIdx.x + n * BLOCK_THREADS, row = i / (STEP / GRANULE), column = i % (STEP / GRANULE) * GRANULE;
      copy_both(left, tile_row + row, k + column, stage.left[HIGH].granule(row, column), stage.left[LOW].granule(row, column));
    }
#pragma unroll
    for (u32 n = 0; n < STEP * TILE / GRANULE / BLOCK_THREADS; ++n) {
      const u32 i = threadIdx.x + n * BLOCK_THREADS, row = i / (TILE / GRANULE);
      const u32 column = i % (TILE / GRANULE) * GRANULE;
      copy_both(right, k + row, tile_column + column, stage.right[HIGH].granule(row, column),
                stage.right[LOW].granule(row, column));
    }
  }

 private:
  DEVICE static void copy_both(const SplitMap &map, u32 row, u32 column, u32 high, u32 low) {
    const bool held = map.holds(row, column);
    const u64 from = map.at(row, column);
    copy_granule_or_zeros(high, from, held);
    copy_granule_or_zeros(low, from + map.to_low(), held);
  }
};

// The tile of a block, added up in registers.
struct Sums {
  float sum[ROW_TILES][COLUMN_TILES][4] = {};

  DEVICE static u32 warp_row() { return threadIdx.x / WARP / WARPS_ACROSS * WARP_ROWS; }
  DEVICE static u32 warp_column() { return threadIdx.x / WARP % WARPS_ACROSS * WARP_COLUMNS; }

  DEVICE void multiply(const Stage &stage) {
    const u32 lane = threadIdx.x % WARP, half = lane % 16, other = lane / 16 * 8;
#pragma unroll
    for (u32 k = 0; k < STEP; k += 16) {
      u32 left[2][ROW_TILES][4], right[2][COLUMN_TILES / 2][4];
#pragma unroll
      for (u32 part = HIGH; part <= LOW; ++part) {
#pragma unroll
        for (u32 i = 0; i < ROW_TILES; ++i) {
          load_tiles(left[part][i], stage.left[part].granule(warp_row() + i * 16 + half, k + other));
        }
#pragma unroll
        for (u32 j = 0; j < COLUMN_TILES / 2; ++j) {
          load_tiles_transposed(right[part][j], stage.right[part].granule(k + half, warp_column() + j * 16 + other));
        }
      }
      // Products that add to the same sum wait for each other, so others come between.
      add(left[HIGH], right[HIGH]);
      add(left[LOW], right[HIGH]);
      add(left[HIGH], right[LOW]);
    }
  }

  // Where sums e and e + 1 of a tile lie in the block's, e being even.
  DEVICE static u32 row_of(u32 i, u32 e) { return warp_row() + i * 16 + threadIdx.x % WARP / 4 + e / 2 * 8; }
  DEVICE static u32 column_of(u32 j) { return warp_column() + j * 8 + threadIdx.x % 4 * 2; }

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

DEVICE void split_product(const SplitProductParams &params, const Place &place) {
  Stage *stage = reinterpret_cast<Stage *>(dynamic);
  const u32 item = place.x % params.items;
  const FactorProduct &product = params.product[place.x / params.items];
  const Window window = params.windows[item];
  const u32 tile_row = place.y * TILE, tile_column = place.z * TILE;
  if (tile_row >= window.len || tile_column >= window.len) return;
  const Operands operands = {SplitMap(product.left.map, params, item), SplitMap(product.right.map, params, item), tile_row,
                             tile_column};

  // Of causal maps the left one is 0 beyond its diagonal, and the right one above it.
  const u32 begin = params.causal ? tile_column : 0;
  const u32 last = params.causal ? min_u32(window.len, tile_row + TILE) : window.len;
  const u32 end = product.right.map ? last : begin;
#pragma unroll
  for (u32 s = 0; s + 1 < STAGES; ++s) {
    if (begin + s * STEP < end) operands.copy(stage[s], begin + s * STEP);
    commit_copies();
  }
  Sums sums;
  u32 turn = 0;
  for (u32 k = begin; k < end; k += STEP) {
    wait_copies<STAGES - 2>();
    __syncthreads();  // this stage is full, and the one before has been multiplied
    const u32 ahead = k + (STAGES - 1) * STEP;
    if (ahead < end) operands.copy(stage[turn ? turn - 1 : STAGES - 1], ahead);
    commit_copies();
    sums.multiply(stage[turn]);
    turn = turn + 1 < STAGES ? turn + 1 : 0;
  }

  const Factor left = product.left, right = product.right;
  const float of_both = left.attention * right.attention * SplitF16::FINISH;
  const float of_left = left.attention * right.identity / SplitF16::SCALE;
  const float of_right = left.identity * right.attention / SplitF16::SCALE;
  const float identity = left.identity * right.identity;
  u16 *const map = static_cast<u16 *>(product.map) + 2 * item * params.stride_batch;
  float *const result =
      product.result + item * params.result_stride_batch + window.start * params.result_stride_row + window.start;
#pragma unroll
  for (u32 tile = 0; tile < ROW_TILES * COLUMN_TILES; tile += 2) {
    // All that is added to two tiles is on its way before the first of it is waited for.
    const u32 i = tile / COLUMN_TILES;
    Pair old_left[2][2], old_right[2][2];
#pragma unroll
    for (u32 n = 0; n < 2; ++n) {
#pragma unroll
      for (u32 e = 0; e < 4; e += 2) {
        const u32 row = tile_row + Sums::row_of(i, e), column = tile_column + Sums::column_of(tile % COLUMN_TILES + n);
        old_left[n][e / 2] = operands.left.pair(row, column);
        old_right[n][e / 2] = operands.right.pair(row, column);
      }
    }
#pragma unroll
    for (u32 n = 0; n < 2; ++n) {
#pragma unroll
      for (u32 e = 0; e < 4; e += 2) {
        const u32 j = tile % COLUMN_TILES + n;
        const u32 row = tile_row + Sums::row_of(i, e), column = tile_column + Sums::column_of(j);
        const Pair l = old_left[n][e / 2], r = old_right[n][e / 2];
        const float x0 = of_both * sums.sum[i][j][e] + of_left * l.first() + of_right * r.first();
        const float x1 = of_both * sums.sum[i][j][e + 1] + of_left * l.second() + of_right * r.second();
        if (product.map && operands.left.holds(row, column / GRANULE * GRANULE)) {
          u32 high, low;
          SplitF16::split(x0, x1, high, low);
          u16 *to = map + 2 * row * params.stride_row + column;
          *reinterpret_cast<u32 *>(to) = high;
          *reinterpret_cast<u32 *>(to + params.stride_row) = low;
        }
        if (product.result && row < window.len) {
          float *to = result + row * params.result_stride_row + column;
          if (column < window.len) to[0] = x0 + (row == column ? identity : 0.0f);
          if (column + 1 < window.len) to[1] = x1 + (row == column + 1 ? identity : 0.0f);
        }
      }
    }
  }
}

// Parameters in shared memory take registers that constants do not.
ENTRY(SplitProductParams, split_product, __launch_bounds__(BLOCK_THREADS, GROUPED ? GROUPED_BLOCKS : BLOCKS))
