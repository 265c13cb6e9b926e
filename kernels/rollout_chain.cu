// rollout_chain: the whole rollout of one item in one block, or in one cluster of blocks, from the last layer to the
// first, P <- P Ahat. Maps are read once; nothing else touches global memory until P is written.
//
// Warps hold the sums of the new P in registers, 16 rows each. A layer arrives as slabs of 16 rows: each warp fuses rows
// of a slab and writes them, split, to one of two slabs in shared memory (of every block of the cluster), from where all
// warps read right operands. Rows come through a ring of granules per warp that cp.async fills RING units ahead, across
// slabs and layers: a lane waits only for the granules it asked for itself. The residual is the old P, times the
// identity weight, added in f32.
//
// One block, up to 128 tokens: a warp owns all columns of its rows, so the old P never leaves its registers (see
// chain_state.cuh). More: CLUSTER blocks take 16 rows of P in turns and an equal share of every slab's rows, so that each
// map is read by one of them; COLUMN_PARTS warps share 16 rows, and the old P lies in shared memory.
//
// Grid: x item and block of the cluster. Macros: ELEMENT, ARITHMETIC, FUSION, MAX_TOKENS, CLUSTER, COLUMN_PARTS, RING,
// SHARED_BYTES, DISCARD, and those of entry.cuh.

#define HEADS_IN_FLIGHT 4

#include "chain_slab.cuh"
#include "chain_state.cuh"
#include "discard.cuh"
#include "entry.cuh"
#include "fuse.cuh"

template <bool CONDITION, class Yes, class No>
struct Select {
  using Type = Yes;
};
template <class Yes, class No>
struct Select<false, Yes, No> {
  using Type = No;
};

using Rows = FusedRows<ELEMENT, FUSION>;
using Slab = SLAB_OF(ARITHMETIC);
using State = Select<COLUMN_PARTS == 1, StateInRegisters, StateInShared>::Type;

constexpr u32 SLAB_ROWS = 16;
constexpr u32 WARPS = MAX_TOKENS / 16 / CLUSTER * COLUMN_PARTS;
// How the rows of a slab are divided: among the blocks, and among the warps of a block, or the warps among the rows.
constexpr u32 BLOCK_SLAB_ROWS = SLAB_ROWS / CLUSTER;
constexpr u32 WARPS_PER_ROW = WARPS > BLOCK_SLAB_ROWS ? WARPS / BLOCK_SLAB_ROWS : 1;
constexpr u32 ROWS_PER_WARP = BLOCK_SLAB_ROWS * WARPS_PER_ROW / WARPS;
// Columns a warp takes at a time: with the granule that a shift needs, they must fit the lanes.
constexpr u32 SEGMENT = Rows::COLUMNS == 8 && MAX_TOKENS >= 128 ? 128 : 64;
constexpr u32 SEGMENTS = MAX_TOKENS / SEGMENT / WARPS_PER_ROW;  // of one warp, WARPS_PER_ROW apart
constexpr u32 LANES = SEGMENT / Rows::COLUMNS + 1;
constexpr u32 UNIT_GRANULES = HEADS_IN_FLIGHT * LANES;

// Dynamic shared memory: this, the state, and the ring, [warp][RING][HEADS_IN_FLIGHT][LANES] granules.
struct Shared {
  Slab slabs[2];
  float scales[2][MAX_TOKENS];  // 1 / row sum, of two layers
  float sums[WARPS];            // of one row's segments each
};
static_assert(sizeof(Shared) + State::BYTES + WARPS * RING * UNIT_GRANULES * GRANULE_BYTES == SHARED_BYTES,
              "src/cuda/kernel/rollout_chain.rs computes another size");

// The warp's place among those that fuse a slab: its first row, and which of the row's segments it takes.
DEVICE u32 first_slab_row() {
  return cluster_rank() * BLOCK_SLAB_ROWS + threadIdx.x / WARP / WARPS_PER_ROW * ROWS_PER_WARP;
}
DEVICE u32 first_column(u32 segment) {
  return (segment * WARPS_PER_ROW + threadIdx.x / WARP % WARPS_PER_ROW) * SEGMENT;
}

// Where a warp stands in its sequence of units: layer by layer from the last, slab by slab, row by row, segment by
// segment, HEADS_IN_FLIGHT heads at a time. Rows beyond the window have no units.
struct Position {
  u32 layer, slab, row_of_warp, segment, head;  // layer counts from 1; 0: the end

  DEVICE u32 row() const { return slab * SLAB_ROWS + first_slab_row() + row_of_warp; }

  DEVICE void next_row(u32 slabs) {
    if (++row_of_warp < ROWS_PER_WARP) return;
    row_of_warp = 0;
    if (++slab < slabs) return;
    slab = 0;
    --layer;
  }
  DEVICE void skip_absent_rows(u32 len, u32 slabs) {
    while (layer && row() >= len) next_row(slabs);
  }
  DEVICE void next_unit(u32 heads, u32 segments, u32 len, u32 slabs) {
    head += HEADS_IN_FLIGHT;
    if (head < heads) return;
    head = 0;
    if (SEGMENTS > 1 && ++segment < segments) return;
    segment = 0;
    next_row(slabs);
    skip_absent_rows(len, slabs);
  }
};

// The granules of a warp on their way.
struct Ring {
  const Maps &maps;
  const Window window;
  const u32 item;
  u32 slabs, segments;
  u32 storage;          // shared-memory address of this lane's first granule
  u32 filled, drained;  // units modulo RING
  Position ahead;

  DEVICE Rows::Segment segment(const Rows &rows, u32 row, u32 number) const {
    const u32 row_end = maps.causal ? row + 1 : window.len;
    const u32 first = first_column(number);
    return rows.segment(row, first, min_u32(first + SEGMENT, row_end));
  }

  DEVICE u32 slot(u32 unit, u32 k) const { return storage + (unit * UNIT_GRANULES + k * LANES) * GRANULE_BYTES; }

  // Asks for the next unit. A group is committed even at the end, so that they can be counted.
  DEVICE void fill() {
    if (ahead.layer) {
      const Rows rows(maps, ahead.layer - 1, item, window.start);
      const Rows::Segment s = segment(rows, ahead.row(), ahead.segment);
      if (s.begins_inside && s.columns) {
#pragma unroll
        for (u32 k = 0; k < HEADS_IN_FLIGHT; ++k) {
          copy_granule_async(slot(filled, k), rows.granule_address(s, ahead.head + k),
                             rows.granule_bytes(s, ahead.head + k));
        }
      }
      ahead.next_unit(maps.heads, segments, window.len, slabs);
    }
    commit_copies();
    filled = filled + 1 == RING ? 0 : filled + 1;
  }

  // Fused entries of a segment, from its units; keeps the ring full.
  DEVICE void fuse(float (&fused)[Rows::COLUMNS], const Rows &rows, const Rows::Segment &s) {
    Rows::start(fused);
#pragma unroll 1
    for (u32 head = 0; head < maps.heads; head += HEADS_IN_FLIGHT) {
      wait_copies<RING - 2>();
      if (s.begins_inside && s.columns) {
#pragma unroll
        for (u32 k = 0; k < HEADS_IN_FLIGHT; ++k) {
          if (head + k < maps.heads) {
            const Granule granule = load_shared_granule(slot(drained, k), rows.granule_wanted(s, head + k));
            rows.add(fused, s, head + k, granule);
          }
        }
      }
      drained = drained + 1 == RING ? 0 : drained + 1;
      fill();
    }
    if (!s.begins_inside) rows.add_narrow(fused, s);
    rows.finish(fused, s);
  }
};

DEVICE void rollout_chain(const RolloutChainParams &params, const Place &place) {
  extern __shared__ uint4 dynamic[];
  Shared &shared = *reinterpret_cast<Shared *>(dynamic);
  uint4 *state_storage = dynamic + sizeof(Shared) / GRANULE_BYTES;
  uint4 *ring_storage = state_storage + State::BYTES / GRANULE_BYTES;
  const Maps &maps = params.maps;
  const u32 item = place.x / CLUSTER, tokens = maps.tokens;
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const u32 group = cluster_rank() + CLUSTER * (warp / COLUMN_PARTS), part = warp % COLUMN_PARTS;
  const u32 first_row = group * 16 + lane / 4, first_tile_column = lane % 4 * 2;  // of this lane's sums
  const Window window = maps.windows[item];
  const u32 slab_count = (window.len + SLAB_ROWS - 1) / SLAB_ROWS;

  u32 segments = 0;
  while (segments < SEGMENTS && first_column(segments) < window.len) ++segments;
  Ring ring = {maps, window, item, slab_count, segments,
               shared_address(ring_storage + warp * RING * UNIT_GRANULES + lane), 0, 0, {maps.layers, 0, 0, 0, 0}};
  if (segments == 0) ring.ahead.layer = 0;
  ring.ahead.skip_absent_rows(window.len, slab_count);
#pragma unroll 1
  for (u32 unit = 0; unit + 1 < RING; ++unit) ring.fill();

  // P: the identity, or the product of later layers.
  float sum[TILES][4];
#pragma unroll
  for (u32 t = 0; t < TILES; ++t) {
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
      const u32 row = first_row + e / 2 * 8, column = tile_column(t, part) + first_tile_column + e % 2;
      sum[t][e] = row == column ? 1.0f : 0.0f;
      if (params.state) {
        const bool inside = row < window.len && column < window.len;
        const u64 from = (u64(item) * tokens + window.start + row) * tokens + window.start + column;
        sum[t][e] = inside ? params.state[from] : 0.0f;
      }
    }
  }
  State state(reinterpret_cast<float *>(state_storage), part);

  // Fuses this warp's rows of slab `k` of `layer` into slabs[turn].
  const auto produce = [&](u32 layer, u32 k, u32 turn) {
    Cut cut = {0, maps.discard_first, maps.discard_spares_origin, window.len};
    if constexpr (DISCARD) cut.last = maps.cuts[layer * maps.batch + item];
#pragma unroll 1
    for (u32 r = 0; r < ROWS_PER_WARP; ++r) {
      const u32 slab_row = first_slab_row() + r, row = k * SLAB_ROWS + slab_row;
      const Rows rows(maps, layer, item, window.start);
      float fused[SEGMENTS][Rows::COLUMNS] = {};
      float total = 0.0f;
#pragma unroll
      for (u32 s = 0; s < SEGMENTS; ++s) {
        if (row < window.len && s < ring.segments) {
          ring.fuse(fused[s], rows, ring.segment(rows, row, s));
#pragma unroll
          for (u32 c = 0; c < Rows::COLUMNS; ++c) {
            if constexpr (DISCARD) fused[s][c] = cut.apply(fused[s][c], row, first_column(s) + lane * Rows::COLUMNS + c);
            total += fused[s][c];
          }
        }
      }
      float scale = 1.0f;
      if (params.normalize) {
        total = warp_sum(total);
        if constexpr (WARPS_PER_ROW > 1) {
          if (lane == 0) shared.sums[warp] = total;
          __syncthreads();  // the sums of all segments are there; the next slab's come after a barrier
          total = 0.0f;
#pragma unroll
          for (u32 w = 0; w < WARPS_PER_ROW; ++w) total += shared.sums[warp / WARPS_PER_ROW * WARPS_PER_ROW + w];
        }
        total = maps.layer[layer].attention * total + maps.layer[layer].identity;
        scale = total == 0.0f ? 0.0f : 1.0f / total;
        if (lane == 0 && warp % WARPS_PER_ROW == 0) store_everywhere(&shared.scales[layer % 2][row], scale);
      }
#pragma unroll
      for (u32 s = 0; s < SEGMENTS; ++s) {
#pragma unroll
        for (u32 c = 0; c < Rows::COLUMNS; ++c) fused[s][c] *= scale;
        const u32 column = first_column(s) + lane * Rows::COLUMNS;
        if (lane * Rows::COLUMNS < SEGMENT) shared.slabs[turn].store(slab_row, column, fused[s]);
      }
    }
  };

  u32 turn = 0;
  if constexpr (CLUSTER > 1) cluster_barrier();  // all blocks run: their shared memory may be written
  if (maps.layers && slab_count) produce(maps.layers - 1, 0, 0);
#pragma unroll 1
  for (u32 layer = maps.layers; layer-- > 0;) {
    state.take(sum);
#pragma unroll 1
    for (u32 k = 0; k < MAX_TOKENS / SLAB_ROWS; ++k) {
      if (k < slab_count) {
        cluster_barrier();  // this slab is full, and the other one has been multiplied
        const bool last = k + 1 == slab_count;
        if (!last || layer > 0) produce(last ? layer - 1 : layer, last ? 0 : k + 1, turn ^ 1);
        // A causal P and a causal layer are 0 beyond their diagonals.
        const u32 columns = maps.causal ? min_u32(window.len, (k + 1) * SLAB_ROWS) : window.len;
        if (group * 16 < window.len && !(maps.causal && k > group)) {
          float left[2][4];
          state.left(left, k);
          shared.slabs[turn].multiply(sum, left, columns, part);
        }
        turn ^= 1;
      }
      state.advance();
    }
    const float attention = maps.layer[layer].attention * Slab::FINISH, identity = maps.layer[layer].identity;
#pragma unroll
    for (u32 t = 0; t < TILES; ++t) {
      float old[4], weight[2] = {identity, identity};
      state.entries(old, t);
      if (params.normalize) {
        const u32 column = tile_column(t, part) + first_tile_column;
        if (column < window.len) {  // beyond, the old P is 0
          const float2 scale = *reinterpret_cast<const float2 *>(&shared.scales[layer % 2][column]);
          weight[0] *= scale.x;
          weight[1] *= scale.y;
        }
      }
#pragma unroll
      for (u32 e = 0; e < 4; ++e) sum[t][e] = attention * sum[t][e] + weight[e % 2] * old[e];
    }
  }

  wait_copies<0>();  // only empty groups are left
  float *out = params.out + u64(item) * tokens * tokens;
#pragma unroll
  for (u32 t = 0; t < TILES; ++t) {
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
      const u32 row = first_row + e / 2 * 8, column = tile_column(t, part) + first_tile_column + e % 2;
      if (row < window.len && column < window.len) {
        out[(window.start + row) * tokens + window.start + column] = sum[t][e];
      }
    }
  }
  for (u32 row = cluster_rank() * WARPS + warp; row < tokens; row += CLUSTER * WARPS) {
    for (u32 column = lane; column < tokens; column += WARP) {
      const bool inside = row - window.start < window.len && column - window.start < window.len;
      if (!inside) out[row * tokens + column] = 0.0f;
    }
  }
}

ENTRY(RolloutChainParams, rollout_chain, CLUSTER_BLOCKS __launch_bounds__(WARPS *WARP, 1))
