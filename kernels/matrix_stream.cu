// matrix_stream: the whole rollout of one item in one block, or in a cluster of blocks, from the last layer to the first,
// P <- P Ahat. Maps are read once, as fast as they can be; nothing else touches global memory until P is written.
//
// P = D + c I: D grows from 0 and c falls from 1 by the identity weight of every layer, so nothing is rounded next to the
// diagonal. A layer arrives as slabs of 16 rows, with which three kinds of warps are busy at the same time:
//
//   one warp streams the maps through a ring in shared memory (ring.cuh), across slabs, layers and items;
//   FUSERS warps take rows of its tiles in turns, fuse the heads, multiply by the attention weight, and write the row, split,
//   to the slab in shared memory, that of every block of the cluster;
//   the others multiply: the 16 columns of P that face the slab by its rows. A warp has the sums of 16 rows of the new D,
//   in the columns that are its part of COLUMN_PARTS. They begin with what the residual adds, the old D times the identity
//   weight, in f32; of normalised rows that is known slab by slab.
//
// Blocks of a cluster have groups of 16 rows of P in turns, and an equal share of every slab's rows, so that each map is
// read by one of them. Slabs go round: who fuses waits until all have multiplied what lies in the place, who multiplies
// until all rows are there, by barriers that count the warps of the block, and bytes from the other one.
//
// Macros: ELEMENT, ARITHMETIC, FUSION, MAX_TOKENS, CLUSTER, COLUMN_PARTS, COLUMNS (of a lane that fuses), FUSERS, BLOCKS (of
// a multiprocessor), SLABS, FIXED_BYTES, and those of entry.cuh. sm_80; clusters: sm_90.

#define GRADIENTS 0

#include "items.cuh"
#include "matrix_fusing.cuh"
#include "tile_source.cuh"

// The warp that fills the ring: one item.
DEVICE void produce(const MatrixStreamParams &params, u32 item, Ring &ring) {
  const Maps &maps = params.maps;
  const Divisor planes(maps.heads);
  const Window window = maps.windows[item];
  for (u32 layer = maps.layers; layer-- > 0;) {
    const Source source(maps, layer, item, window.start);
    const bool dense = !maps.causal && maps.layer[layer].stride_row == window.len;
    const Layout layout(source, dense, window.len, planes, params.stage_bytes);
    const u32 tile_rows = min_u32(params.tile_rows, layout.rows);
    for (u32 slab = 0; slab < slabs_of(window); ++slab) {
      const u32 present = rows_of(slab, window);
      for (u32 row = 0; row < present; row += tile_rows) {
        const u32 rows = min_u32(present - row, tile_rows);
        send_tile(maps, source, layout, planes, ring, first_of(slab) + row, row, rows, 0, window.len, 0);
      }
    }
  }
}

// The number of this warp among those that multiply.
DEVICE u32 multiplier() { return threadIdx.x / WARP - FIRST_MULTIPLIER; }

constexpr u32 MULTIPLY = 0, FUSE = 1, PRODUCE = 2;
DEVICE u32 kind_of(u32 warp) { return warp < FUSERS ? FUSE : warp < FIRST_MULTIPLIER ? PRODUCE : MULTIPLY; }

struct Roles {
  DEVICE static u32 sharing() { return BLOCKS; }
  DEVICE static Role mine() {
    const u32 kind = kind_of(threadIdx.x / WARP);
    if (kind == FUSE) return {threadIdx.x, FUSERS * WARP, FUSING};
    if (kind == PRODUCE) return {threadIdx.x % WARP, WARP, 0};
    return {threadIdx.x - FIRST_MULTIPLIER * WARP, MULTIPLIERS * WARP, MULTIPLYING};
  }
};

using MatrixItems = Items<MatrixStreamParams, Roles>;

// The warps that multiply: one item.
DEVICE void multiply_slabs(const MatrixItems &items, Slabs &slabs) {
  const MatrixStreamParams &params = items.params;
  const Maps &maps = params.maps;
  // The same in all lanes, which the compiler would not know.
  const u32 warp = __shfl_sync(FULL_WARP, multiplier(), 0);
  const u32 part = warp % COLUMN_PARTS, block_group = warp / COLUMN_PARTS;
  const u32 group = block_group * CLUSTER + cluster_rank();
  const u32 rows_barrier = ROWS_BARRIER + block_group;
  const u32 state = shared_address(dynamic);
  const u32 left_lane = Operands::left_lane(state, block_group);
  const u32 slab_count = slabs_of(maps.windows[items.item()]);

  Sums sum = {};
  // Where c of the first of this lane's rows is, and 8 further that of the second.
  const auto diagonal = [&](u32 further) {
    return shared_address(dynamic) + DIAGONAL_AT + (multiplier() * 16 + tile_row(0) + further) * 4;
  };
  __syncwarp();  // all lanes are done with the item before
  if (tile_column(0) == 0) {
    store_shared(diagonal(0), 1.0f);
    store_shared(diagonal(8), 1.0f);
  }
  __syncwarp();  // the lanes of a row see it

#pragma unroll 1
  for (u32 layer = maps.layers; layer-- > 0;) {
    const float identity = maps.layer[layer].identity;
    barrier_of(rows_barrier, COLUMN_PARTS * WARP);  // the old D has been multiplied
#pragma unroll
    for (u32 t = 0; t < PAIRS * 2; ++t) {
      float(&tile)[4] = sum[t / 2][t % 2];
      float entries[4];
#pragma unroll
      for (u32 e = 0; e < 4; ++e) {
        entries[e] = tile[e] * Operands::FINISH;
        // What the residual adds; to normalised rows it is added below.
        tile[e] *= params.normalize ? 0.0f : identity;
      }
      if (pair_exists(t / 2, part)) {
        Operands::store(entries, Operands::state_lane(state, block_group, part), pair_column(t / 2, 0) + t % 2 * 8);
      }
    }
    barrier_of(rows_barrier, COLUMN_PARTS * WARP);  // D is complete

#pragma unroll 1
    for (u32 k = 0; k < slab_count; ++k) {
      slabs.wait(slabs.barriers.full);
      // A causal P and a causal layer are 0 beyond their diagonals.
      if (group < slab_count && !(maps.causal && k > group)) {
        typename Operands::Left left;
        Operands::load(left, left_lane, k * SLAB_ROWS);
        const auto scale_of_row = [&](u32 row) {
          // Computed where it is wanted, or an address takes a register too many.
          return shared_address(dynamic) + SCALES_AT + (unknown(slabs.slab) * SLAB_ROWS + row) * 4;
        };
        if (params.normalize && k % COLUMN_PARTS == part) {
          const u32 facing = unknown(k * SLAB_ROWS);  // else sums would be indexed by k, in memory
#pragma unroll
          for (u32 pair = 0; pair < PAIRS; ++pair) {
            if (pair_column(pair, part) != facing) continue;
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
              const float2 d = left.get(i);
              const u32 row = i / 2 * 8 + tile_column(0);
              const float weight = maps.layer[unknown(layer)].identity * (1.0f / Operands::FINISH);
              sum[pair][i / 2][i % 2 * 2] += weight * load_shared(scale_of_row(row)) * d.x;
              sum[pair][i / 2][i % 2 * 2 + 1] += weight * load_shared(scale_of_row(row + 1)) * d.y;
            }
          }
        }
        if (k == group) {
#pragma unroll
          for (u32 i = 0; i < 4; ++i) {
            const u32 row = tile_row(i % 2 * 2), column = i / 2 * 8 + tile_column(0);
            float2 p = left.get(i);
            const float c = load_shared(diagonal(i % 2 * 8));
            if (row == column) p.x += c;
            if (row == column + 1) p.y += c;
            left.set(i, p);
          }
#pragma unroll
          for (u32 r = 0; r < 16; r += 8) {
            float c = load_shared(diagonal(r)) * maps.layer[unknown(layer)].identity;
            if (params.normalize) c *= load_shared(scale_of_row(tile_row(0) + r));
            __syncwarp();  // all lanes have read it
            if (tile_column(0) == 0) store_shared(diagonal(r), c);
          }
        }
        const u32 slab = state + SLABS_AT + slabs.slab * Operands::SLAB_BYTES;
        Operands::multiply(sum, left, Operands::right_lane(slab, unknown(part)), part);
      }
      slabs.arrive(slabs.barriers.empty);
    }
  }

  const u32 item = items.item(), tokens = maps.tokens;
  const Window window = maps.windows[item];
  float *const out = params.out + u64(item) * tokens * tokens;
  const u32 first_row = group * 16 + tile_row(0), first_column = pair_column(0, part) + tile_column(0);
  float *const first = out + (window.start + first_row) * tokens + window.start + first_column;
  float *const rows[2] = {first, first + 8 * tokens};
#pragma unroll
  for (u32 t = 0; t < PAIRS * 8; ++t) {
    const u32 e = t % 4, column = pair_column(t / 8, 0) + t / 4 % 2 * 8 + e % 2;
    if (t % 8 == 0) __syncwarp();  // a pair at a time, or there are not enough registers
    if (first_row + e / 2 * 8 < window.len && first_column + column < window.len) {
      const bool on_diagonal = first_row + e / 2 * 8 == first_column + column;
      rows[e / 2][column] = sum[t / 8][t / 4 % 2][e] * Operands::FINISH + (on_diagonal ? load_shared(diagonal(e / 2 * 8)) : 0.0f);
    }
  }
  for (u32 row = cluster_rank() * MULTIPLIERS + multiplier(); row < tokens; row += CLUSTER * MULTIPLIERS) {
    for (u32 column = threadIdx.x % WARP; column < tokens; column += WARP) {
      const bool inside = row - window.start < window.len && column - window.start < window.len;
      if (!inside) out[row * tokens + column] = 0.0f;
    }
  }
}

extern "C" __global__ void CLUSTER_BLOCKS __launch_bounds__(THREADS, BLOCKS)
    KERNEL(const __grid_constant__ Launched<MatrixStreamParams> launch) {
  __shared__ Stages stages;
  __shared__ SlabBarriers barriers;
#if GROUPED
  __shared__ MatrixStreamParams copies[3];
#else
  const MatrixStreamParams *copies = &launch;
#endif
  const u32 warp = threadIdx.x / WARP, kind = kind_of(warp);
  MatrixItems items(launch, copies[GROUPED * kind], shared_address(dynamic) + NUMBERS_AT + warp * 4);
  const MatrixStreamParams &params = items.params;
  Ring ring(stages, dynamic + RING_AT, params.stages, params.stage_bytes, kind == PRODUCE);
  if (kind == PRODUCE) ring.init(FUSERS);
  if (threadIdx.x == 0) {
    barriers.init();
    barrier_init_fence();
  }
  // The barriers can be used, and all blocks run. There is none in the end: whatever a block is sent, one of its roles waits
  // for.
  cluster_barrier();

  if (kind == PRODUCE) {
    for (; items.more(); items.advance()) {
      produce(params, items.item(), ring);
      Roles::mine().sync();  // the parameters have been read
    }
    if constexpr (!COUNTS_BYTES) {
      commit_copies();
      wait_copies<0>();  // no thread leaves with copies on their way
    }
  } else if (kind == FUSE) {
    Fusing fusing(barriers);
    for (; items.more(); items.advance()) {
      fusing.fuse_slabs(params, items.item(), ring);
      if (GROUPED) Roles::mine().sync();  // the parameters have been read
    }
  } else {
    Slabs slabs = {barriers, 0, 0};
    for (; items.more(); items.advance()) {
      multiply_slabs(items, slabs);
      if (GROUPED) Roles::mine().sync();  // the parameters have been read
    }
  }
}
