// split_product: products of two factors of the rollout each, all of a launch independent of each other: a level of a tree.
//
// A factor is attention D + identity I, where D is kept in f16 `hi + lo` of 2^11 D and the identity as a number, so it never
// meets the low precision, and products may be taken in any order:
//   (a2 D2 + b2 I)(a1 D1 + b1 I) = a2 a1 (D2 D1 + b1 / a1 D2 + b2 / a2 D1) + b2 b1 I
// The first term is the D of the product; of a product that is a result all is added up, in f32. Both maps pass by as operands,
// each entry once where it is wanted: it is added when it does, so nothing is read twice.
//
// Each block makes a tile of one product of one item. Operands were split when they were written, so a step of k is
// copied as it lies, STAGES - 1 steps ahead, and multiplied: no conversion, no registers on the way. Of causal maps, steps that
// are 0 are left out. What a map does not hold (rows past the window, granules past the end of a row) is 0 and not read.
//
// Who copies: all warps, between barriers of the block, where others share the multiprocessor; where a block has it almost
// alone, a few that do nothing else, so that those which multiply wait for what they need and not for each other.
//
// Grid: x item of a product, y tile row, z tile column. Macros: ROWS, COLUMNS, WARP_ROWS, WARP_COLUMNS (of the tile, of a warp of it),
// COPYING_WARPS (the last ones of a block), STAGES, SHARED_BYTES, BLOCK_THREADS, BLOCKS, NEWER_BLOCKS (on sm_90), GROUPED_BLOCKS, and
// those of entry.cuh.

#include "entry.cuh"
#include "mbarrier.cuh"
#include "mma.cuh"
#include "split_copies.cuh"

constexpr u32 ROW_TILES = WARP_ROWS / 16, COLUMN_TILES = WARP_COLUMNS / 8, COLUMN_PAIRS = (COLUMN_TILES + 1) / 2;
constexpr u32 WARPS_ACROSS = COLUMNS / WARP_COLUMNS;
constexpr u32 MULTIPLYING_THREADS = ROWS / WARP_ROWS * WARPS_ACROSS * WARP;
static_assert(STEP % WARP_ROWS == 0, "rows of a warp pass by in one step");
enum Part : u32 { HIGH, LOW };

// Keeps a value in a register, and does not find it again from step to step.
DEVICE void keep(u32 &x) { x = unknown(x); }

extern __shared__ uint4 dynamic[];

// A warp's part of the tile, added up in registers.
struct Sums {
  float sum[ROW_TILES][COLUMN_TILES][4] = {};
  u32 left_from, right_from;  // where a lane finds its first fragments in a stage

  DEVICE Sums() : left_from(left_at(0, half() * 8)), right_from(RIGHT_AT + right_at(0, half() * 8)) {
    keep(left_from);
    keep(right_from);
  }

  DEVICE static u32 warp_row() { return threadIdx.x / WARP / WARPS_ACROSS * WARP_ROWS; }
  // Pairs of column tiles go to the warps in turns, so that each lies within a sector of what is written, and a last tile
  // that has no other after all pairs: where a warp's first column lies in the tile, and from that one on its column tile j.
  DEVICE static u32 warp_column() { return threadIdx.x / WARP % WARPS_ACROSS * 16; }
  DEVICE static u32 column_of(u32 j) { return j / 2 * WARPS_ACROSS * 16 + j % 2 * 8 - (alone(j) ? warp_column() / 2 : 0); }
  // Columns from a warp's first one to the end of its last pair.
  static constexpr u32 ACROSS = (COLUMN_PAIRS - 1) * WARPS_ACROSS * 16 + 16;
  DEVICE static constexpr bool alone(u32 j) { return j + 1 == COLUMN_TILES && j % 2 == 0; }

  // Of the stage in shared memory, which holds `columns` of k or is full. A branch costs warps with few products more than it saves.
  DEVICE void multiply(u32 stage, u32 columns) {
    multiply_columns<0>(stage);
    if (COLUMN_TILES < 7 || columns > 16) multiply_columns<16>(stage);
  }

  // Add a map times its weight, where it is in the stage: the warp's columns of the left one, the first of which would be column
  // `first` of the stage, and the warp's rows of the right one, which begin in its row `first`.
  DEVICE void add_left(u32 stage, u32 first, float weight) {
    const auto at = [=](u32 part, u32 i, u32 column) { return stage + part * LEFT_BYTES + left_at(i, first + column); };
    add_map(weight, [=](u32 j) { return COLUMN_PAIRS == 1 || first + column_of(j) < STEP; }, at);
  }
  DEVICE void add_right(u32 stage, u32 first, float weight) {
    const auto at = [=](u32 part, u32 i, u32 column) {
      return stage + RIGHT_AT + part * RIGHT_BYTES + right_at(first + i * 16, column);
    };
    add_map(weight, [](u32) { return true; }, at);
  }

  DEVICE void scale(float factor) {
#pragma unroll
    for (u32 i = 0; i < ROW_TILES * COLUMN_TILES * 4; ++i) sum[i / 4 / COLUMN_TILES][i / 4 % COLUMN_TILES][i % 4] *= factor;
  }

  // Writes both halves of what lies within a row. Lanes side by side change halves of what they hold of two tiles, so that each
  // has four entries of one.
  DEVICE void store(const SplitMap &map, u32 first_row, u32 first_column) const {
    const u32 lane = threadIdx.x % WARP;
    const bool odd = lane % 2;
    const auto paired = [&](u32 first, u32 second) {
      const u32 got = __shfl_xor_sync(FULL_WARP, odd ? first : second, 1);
      return odd ? make_uint2(got, second) : make_uint2(first, got);
    };
#pragma unroll
    for (u32 i = 0; i < ROW_TILES; ++i) {
#pragma unroll
      for (u32 r = 0; r < 2; ++r) {
        const u32 row = first_row + i * 16 + lane / 4 + r * 8;
#pragma unroll
        for (u32 j = 0; j + 1 < COLUMN_TILES; j += 2) {
          u32 high[2], low[2];
#pragma unroll
          for (u32 t = 0; t < 2; ++t) SplitF16::split(sum[i][j + t][r * 2], sum[i][j + t][r * 2 + 1], high[t], low[t]);
          const uint2 highs = paired(high[0], high[1]), lows = paired(low[0], low[1]);
          const u32 granule = first_column + column_of(j) + lane % 2 * 8;
          if (map.holds(row, granule)) {
            const u64 to = map.at(row, granule + lane % 4 / 2 * 4);
            *reinterpret_cast<uint2 *>(to) = highs;
            *reinterpret_cast<uint2 *>(to + map.to_low()) = lows;
          }
        }
        if constexpr (COLUMN_TILES % 2) {
          u32 high, low;
          SplitF16::split(sum[i][COLUMN_TILES - 1][r * 2], sum[i][COLUMN_TILES - 1][r * 2 + 1], high, low);
          const u32 granule = first_column + column_of(COLUMN_TILES - 1);
          if (map.holds(row, granule)) {
            const u64 to = map.at(row, granule + lane % 4 * 2);
            *reinterpret_cast<u32 *>(to) = high;
            *reinterpret_cast<u32 *>(to + map.to_low()) = low;
          }
        }
      }
    }
  }

  // Writes what lies within a window of `len` tokens, with the identity.
  DEVICE void store(float *result, i64 stride_row, u32 len, u32 first_row, u32 first_column, float identity) const {
    const u32 lane = threadIdx.x % WARP;
    first_row += lane / 4;
    first_column += lane % 4 * 2;
    const u32 rows = len - min_u32(len, first_row), columns = len - min_u32(len, first_column);
    float *to = result + first_row * stride_row + first_column;
#pragma unroll
    for (u32 row = 0; row < WARP_ROWS; row += 8, to += 8 * stride_row) {
      if (row >= rows) return;
#pragma unroll
      for (u32 j = 0; j < COLUMN_TILES * 2; ++j) {
        const u32 column = column_of(j / 2) + j % 2;
        const float entry = sum[row / 16][j / 2][row / 8 % 2 * 2 + j % 2];
        if (column < columns) to[column] = entry + (first_row + row == first_column + column ? identity : 0.0f);
      }
    }
  }

 private:
  // Which of the two pairs of tiles that ldmatrix loads a lane gives addresses of.
  DEVICE static u32 half() { return threadIdx.x % WARP / 16; }

  // Where a lane finds its row of 16, in `column` of the rows of an operand: of the warp's 16 rows `i` of the left one, and of those
  // from `row` on of the right one, whose columns are counted from the warp's first one.
  DEVICE static u32 left_at(u32 i, u32 column) { return granule_at<STEP>(warp_row() + i * 16 + threadIdx.x % 16, column); }
  DEVICE static u32 right_at(u32 row, u32 column) {
    return granule_at<COLUMNS>(row + threadIdx.x % 16, warp_column() + column);
  }

  // Columns [K, K + 16) of the left operand with as many rows of the right one. Where a fragment lies differs from where the
  // first one does by a constant, or by a bit for columns, whose granules change places. Products that add to the same sum wait
  // for each other, so others come between. What is needed last takes the registers of what has been multiplied.
  template <u32 K>
  DEVICE void multiply_columns(u32 stage) {
    const u32 left = stage + (left_from ^ K * 2);
    u32 high[ROW_TILES][4], low[ROW_TILES][4];
    load_left<HIGH>(high, left);
    multiply_pairs<K>(high, low, left, stage);
  }
  // By those from pair J on, two at a time.
  template <u32 K, u32 J = 0>
  DEVICE void multiply_pairs(const u32 (&high)[ROW_TILES][4], u32 (&low)[ROW_TILES][4], u32 left, u32 stage) {
    constexpr u32 END = J + 2 < COLUMN_PAIRS ? J + 2 : COLUMN_PAIRS;
    u32 other[2][4];
    load_right<HIGH, K, J, END>(other, stage);
    if constexpr (J == 0) load_left<LOW>(low, left);
    add<J>(high, other);
    add<J>(low, other);
    load_right<LOW, K, J, END>(other, stage);
    add<J>(high, other);
    if constexpr (END < COLUMN_PAIRS) multiply_pairs<K, END>(high, low, left, stage);
  }
  template <Part PART, u32 I = 0>
  DEVICE static void load_left(u32 (&tiles)[ROW_TILES][4], u32 from) {
    if constexpr (I < ROW_TILES) {
      load_tiles<PART * LEFT_BYTES + I * 16 * STEP * 2>(tiles[I], from);
      load_left<PART, I + 1>(tiles, from);
    }
  }
  template <Part PART, u32 K, u32 J, u32 END>
  DEVICE void load_right(u32 (&pairs)[2][4], u32 stage) const {
    if constexpr (J < END) {
      u32 (&tiles)[4] = pairs[J % 2];
      constexpr u32 FROM = PART * RIGHT_BYTES + K * PITCH<COLUMNS> * 2, PAIR = J * WARPS_ACROSS * 32;
      if constexpr (alone(J * 2)) {
        load_two_tiles_transposed<FROM + PAIR>(tiles[0], tiles[1], stage + right_from - warp_column());
      } else if constexpr (CHANGE_PLACES<COLUMNS>) {
        load_tiles_transposed<FROM>(tiles, stage + (right_from ^ PAIR));
      } else {
        load_tiles_transposed<FROM + PAIR>(tiles, stage + right_from);
      }
      load_right<PART, K, J + 1, END>(pairs, stage);
    }
  }

  // Two pairs from J on.
  template <u32 J>
  DEVICE void add(const u32 (&left)[ROW_TILES][4], const u32 (&right)[2][4]) {
#pragma unroll
    for (u32 i = 0; i < ROW_TILES; ++i) {
#pragma unroll
      for (u32 j = J * 2; j < J * 2 + 4 && j < COLUMN_TILES; ++j) {
        mma_f16(sum[i][j], left[i], right[j / 2 % 2][j % 2 * 2], right[j / 2 % 2][j % 2 * 2 + 1]);
      }
    }
  }

  // Entries of a map that lie where the sums do, 16 x 16 at a time, of the pairs of column tiles that are `held`; they are in units
  // of 2^-11, sums in units of 2^-22. Of a tile alone both halves are loaded at once.
  template <typename Held, typename At>
  DEVICE void add_map(float weight, const Held &held, const At &at) {
    weight *= SplitF16::SCALE;
    u32 high[4], low[4];
    const auto entry = [&](u32 word_high, u32 word_low, u32 e) {
      const auto half = [&](u32 word) { return f16::widen(u16(word >> (e % 2 * 16))); };
      return weight * (half(word_high) + half(word_low));
    };
#pragma unroll
    for (u32 j = 0; j < COLUMN_TILES; j += 2) {
      if (!held(j)) continue;
#pragma unroll
      for (u32 i = 0; i < ROW_TILES; ++i) {
        if (alone(j)) {
          load_tiles(high, at(half(), i, column_of(j)));
#pragma unroll
          for (u32 e = 0; e < 4; ++e) sum[i][j][e] += entry(high[e / 2], high[2 + e / 2], e);
        } else {
          load_tiles(high, at(HIGH, i, column_of(j) + half() * 8));
          load_tiles(low, at(LOW, i, column_of(j) + half() * 8));
#pragma unroll
          for (u32 e = 0; e < 8; ++e) sum[i][j + e / 4][e % 4] += entry(high[e / 2], low[e / 2], e);
        }
      }
    }
  }
};

// Writes what is wanted of the product: what the sums come to.
DEVICE void finish(const SplitProductParams &params, u32 number, const Place &place, Sums &sums) {
  const FactorProduct &product = params.product[number];
  const u32 item = place.x - number * params.items;
  const Window window = params.windows[item];
  const u32 first_row = place.y * ROWS + Sums::warp_row(), first_column = place.z * COLUMNS + Sums::warp_column();
  sums.scale(product.attention * SplitF16::FINISH);
  if (product.map) sums.store(SplitMap(product.map, params, item), first_row, first_column);
  if (product.result) {
    float *const result =
        product.result + item * params.result_stride_batch + window.start * params.result_stride_row + window.start;
    sums.store(result, params.result_stride_row, window.len, first_row, first_column, product.identity);
  }
}

// Who copies and who multiplies, where these are different warps: a stage is full when all copies to it are complete, and empty
// when all who multiply have read it.
struct Barriers {
  u64 full[STAGES], empty[STAGES];

  DEVICE void init() {
    if (threadIdx.x == 0) {
      for (u32 s = 0; s < STAGES; ++s) {
        barrier_init(&full[s], COPYING_THREADS);
        barrier_init(&empty[s], MULTIPLYING_THREADS / WARP);
      }
    }
    __syncthreads();
  }
};

// Copies steps of k in [begin, end) by the last warps of the block, and shows `take` each in the others: k, and where its stage is.
// `copies(thread)` are those of a thread. Returns whether this warp is one of the others.
template <typename Make, typename Take>
DEVICE bool take_apart(u32 begin, u32 end, const Make &copies, const Take &take) {
  __shared__ Barriers barriers;
  barriers.init();
  const u32 stages = shared_address(dynamic);
  u32 s = 0, parity = 0;
  const auto advance = [&] {
    if (++s == STAGES) {
      s = 0;
      parity ^= 1;
    }
  };
  if (threadIdx.x >= MULTIPLYING_THREADS) {
    Copies mine = copies(threadIdx.x - MULTIPLYING_THREADS);
    for (u32 k = begin; k < end; k += STEP, advance()) {
      barrier_wait(&barriers.empty[s], parity ^ 1);  // all are at first
      mine.start(stages + s * STAGE_BYTES, k);
      barrier_arrive_copied(&barriers.full[s]);
    }
    commit_copies();
    wait_copies<0>();
    return false;
  }
  for (u32 k = begin; k < end; k += STEP, advance()) {
    barrier_wait(&barriers.full[s], parity);
    take(k, stages + s * STAGE_BYTES);
    __syncwarp();
    if (threadIdx.x % WARP == 0) barrier_arrive(&barriers.empty[s]);
  }
  return true;
}

// The same by all warps: each copies, and takes.
template <typename Make, typename Take>
DEVICE bool take_together(u32 begin, u32 end, const Make &copies, const Take &take) {
  Copies mine = copies(threadIdx.x);
  const u32 stages = shared_address(dynamic);
#pragma unroll
  for (u32 s = 0; s + 1 < STAGES; ++s) {
    mine.start(stages + s * STAGE_BYTES, begin + s * STEP);
    commit_copies();
  }
  u32 stage = stages, next = stages + (STAGES - 1) * STAGE_BYTES;
  for (u32 k = begin; k < end; k += STEP) {
    wait_copies<STAGES - 2>();
    __syncthreads();  // this stage is full, and the one before has been multiplied
    mine.start(next, k + (STAGES - 1) * STEP);
    commit_copies();
    take(k, stage);
    next = stage;
    stage = stage + STAGE_BYTES < stages + SHARED_BYTES ? stage + STAGE_BYTES : stages;
  }
  return true;
}

DEVICE void split_product(const SplitProductParams &params, const Place &place) {
  u32 number = place.x / params.items;
  keep(number);
  const u32 item = place.x - number * params.items;
  // What a product holds is loaded when it is asked for: the steps need their registers.
  const auto product = [&]() -> const FactorProduct & { return params.product[unknown(number)]; };
  const Window window = params.windows[item];
  const u32 tile_row = place.y * ROWS, tile_column = place.z * COLUMNS;
  if (tile_row >= window.len || tile_column >= window.len) return;
  const SplitMap left_map(product().left, params, item), right_map(product().right, params, item);

  // Of causal maps the left one is 0 beyond its diagonal, and the right one above it. Of a map alone its own columns are wanted.
  const bool alone = product().right == nullptr;
  const u32 begin = params.causal || alone ? tile_column : 0;
  const u32 last = params.causal ? min_u32(window.len, tile_row + ROWS) : window.len;
  const u32 end = alone ? min_u32(last, tile_column + COLUMNS) : last;
  const auto copies = [&](u32 thread) { return Copies(left_map, right_map, tile_row, tile_column, begin, end, thread); };
  Sums sums;
  const u32 first_row = tile_row + Sums::warp_row(), first_column = tile_column + Sums::warp_column();
  // Whether this warp's part of the tile is within the window and, of causal maps, not above the diagonal.
  const u32 last_row = min_u32(first_row + WARP_ROWS, window.len) - 1;
  const bool holds_any = first_row < window.len && first_column < left_map.row_end(last_row);
  const auto passes = [](u32 k, u32 first, u32 count) { return k < first + count && first < k + STEP; };
  const auto take = [&](u32 k, u32 stage) {
    if (holds_any) {
      if (passes(k, first_column, Sums::ACROSS)) sums.add_left(stage, first_column - k, product().left_weight);
      if (!alone) {
        if (passes(k, first_row, WARP_ROWS)) sums.add_right(stage, first_row - k, product().right_weight);
        sums.multiply(stage, end - k);
      }
    }
  };
  bool takes;
  if constexpr (COPYING_WARPS) {
    takes = take_apart(begin, end, copies, take);
  } else {
    takes = take_together(begin, end, copies, take);
  }
  if (takes) finish(params, number, place, sums);
}

// Parameters in shared memory take registers that constants do not. sm_90 may have room for more blocks: before, there is less
// shared memory, and later compilers take more registers for the same code.
#if GROUPED
constexpr u32 TOGETHER = GROUPED_BLOCKS;
#elif __CUDA_ARCH__ == 900
constexpr u32 TOGETHER = NEWER_BLOCKS;
#else
constexpr u32 TOGETHER = BLOCKS;
#endif
ENTRY(SplitProductParams, split_product, __launch_bounds__(BLOCK_THREADS, TOGETHER))
