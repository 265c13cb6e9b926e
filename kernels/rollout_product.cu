// rollout_product: one step of the product of layers, from a fused map and the state so far.
//   MAP_IS_LEFT: out = Ahat state          (the matrix, first layer to last)
//   otherwise:   out = state Ahat          (start rows or the matrix, last layer to first)
// Ahat = scale (attention fused + identity I), row by row. The identity is a multiple of the state, added in f32 at the
// end; scales of rows multiply the rows of the result, or the columns of the state as it is loaded.
//
// Each block makes a TILE x TILE tile of the output. Entries go from global memory through registers, where discard and
// the scales apply and operands are split, to shared memory, two stages of it: the next stage is on its way while this
// one is multiplied. Of causal maps, steps that are 0 are left out.
//
// Grid: x item, y tile row, z tile column. Macros: ARITHMETIC, TILE, BLOCK_THREADS, MAP_IS_LEFT, DISCARD, and
// those of entry.cuh.

#include "entry.cuh"
#include "fused_maps.cuh"
#include "product_tile.cuh"

using Tile = ARITHMETIC;

constexpr u32 GRANULES = TILE * Tile::STEP / 4;         // of each operand and step
constexpr u32 LOADS = GRANULES / BLOCK_THREADS;         // of each thread
constexpr u32 LEFT_WIDTH = Tile::STEP / 4, RIGHT_WIDTH = TILE / 4;  // granules of a row

struct State {
  u64 base, stride_row;  // in bytes
  u32 rows, len;
};

struct Block {
  const FusedMap &map;
  const State &state;

  // Entries (row, column .. column + 3) of the map, 0 outside.
  DEVICE void load_map(float (&x)[4], u32 row, u32 column) const {
    const bool inside = row < map.len && column < min_u32(map.len, map.row_end(row));
    f32::widen(load_granule(map.base + row * map.stride_row + column * 4, inside), x);
    if constexpr (DISCARD) {
      if (inside) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) x[e] = map.cut.apply(x[e], row, column + e);
      }
    }
  }

  // Entries (row, column .. column + 3) of the state, 0 outside; where the state is left, times the scales.
  DEVICE void load_state(float (&x)[4], u32 row, u32 column) const {
    f32::widen(load_granule(state.base + row * state.stride_row + column * 4, row < state.rows && column < state.len), x);
    if (!MAP_IS_LEFT && map.scales) {
#pragma unroll
      for (u32 e = 0; e < 4; ++e) {
        if (column + e < map.len) x[e] *= map.scale(column + e);
      }
    }
  }

  DEVICE void load(float (&left)[LOADS][4], float (&right)[LOADS][4], u32 tile_row, u32 tile_column, u32 k) const {
#pragma unroll
    for (u32 i = 0; i < LOADS; ++i) {
      const u32 t = threadIdx.x + i * BLOCK_THREADS;
      const u32 row = tile_row + t / LEFT_WIDTH, left_k = k + t % LEFT_WIDTH * 4;
      const u32 right_k = k + t / RIGHT_WIDTH, column = tile_column + t % RIGHT_WIDTH * 4;
      if constexpr (MAP_IS_LEFT) {
        load_map(left[i], row, left_k);
        load_state(right[i], right_k, column);
      } else {
        load_state(left[i], row, left_k);
        load_map(right[i], right_k, column);
      }
    }
  }

  DEVICE static void store(Tile::Stage &stage, const float (&left)[LOADS][4], const float (&right)[LOADS][4]) {
#pragma unroll
    for (u32 i = 0; i < LOADS; ++i) {
      const u32 t = threadIdx.x + i * BLOCK_THREADS;
      Tile::store_left(stage, t / LEFT_WIDTH, t % LEFT_WIDTH * 4, left[i]);
      Tile::store_right(stage, t / RIGHT_WIDTH, t % RIGHT_WIDTH * 4, right[i]);
    }
  }
};

DEVICE void rollout_product(const RolloutProductParams &params, const Place &place) {
  __shared__ Tile::Stage stage[2];
  const u32 item = place.x, tile_row = place.y * TILE, tile_column = place.z * TILE;
  const FusedMap map(params.maps, item);
  const State state = {global_address(params.state.base + item * params.state.stride_batch),
                       u64(params.state.stride_row) * 4, params.rows ? params.rows : map.len, map.len};
  if (tile_row >= state.rows || tile_column >= state.len) return;

  // A causal map is 0 beyond its diagonal.
  const u32 begin = map.causal && !MAP_IS_LEFT ? tile_column : 0;
  const u32 end = map.causal && MAP_IS_LEFT ? min_u32(map.len, tile_row + TILE) : map.len;

  const Block block = {map, state};
  Tile sums;
  float left[LOADS][4], right[LOADS][4];
  block.load(left, right, tile_row, tile_column, begin);
  u32 turn = 0;
  for (u32 k = begin; k < end; k += Tile::STEP) {
    Block::store(stage[turn], left, right);
    __syncthreads();  // this stage is full, and the other one has been multiplied
    if (k + Tile::STEP < end) block.load(left, right, tile_row, tile_column, k + Tile::STEP);
    sums.multiply(stage[turn]);
    turn ^= 1;
  }

  const u32 start = params.out_windowed ? params.maps.windows[item].start : 0;
  const u32 first_row = params.rows ? 0 : start;  // start rows have no window of their own
  const u32 columns = params.out_windowed ? map.len : (map.len + 3) / 4 * 4;  // the filling of a row is 0
  float *out = params.out.base + item * params.out.stride_batch + first_row * params.out.stride_row + start;
  sums.finish([&](u32 r, u32 c, float sum) {
    const u32 row = tile_row + r, column = tile_column + c;
    if (row >= state.rows || column >= columns) return;
    const float old = __uint_as_float(load_element<4>(state.base + row * state.stride_row + column * 4));
    const u32 scaled = MAP_IS_LEFT ? row : min_u32(column, map.len - 1);
    const float value = MAP_IS_LEFT
                            ? map.scale(row) * (params.maps.attention * sum + params.maps.identity * old)
                            : params.maps.attention * sum + params.maps.identity * (old * map.scale(scaled));
    out[row * params.out.stride_row + column] = value;
  });
}

ENTRY(RolloutProductParams, rollout_product, __launch_bounds__(BLOCK_THREADS, Tile::BLOCKS))
