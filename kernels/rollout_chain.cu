// rollout_chain: the whole rollout of one item in one block, from the last layer to the first, P <- P Ahat. Maps are
// read once; nothing else touches global memory until P is written.
//
// Warp w owns rows 16 w .. 16 w + 15 of P as f32 accumulators in registers. For each layer the old rows become left
// operands without leaving them: the accumulators of m16n8 tiles are, two tiles side by side, the left fragment of the
// next product. The layer arrives as slabs of 16 rows of P's columns' worth: each warp fuses its rows of a slab and
// writes them, split, to one of two slabs in shared memory, from where all warps read right operands. Rows come through
// a ring of granules per warp that cp.async fills RING units ahead, across slabs and layers: a lane waits only for the
// granules it asked for itself. The residual is the old P, times the identity weight, added in f32.
//
// Grid: x item. Macros: ELEMENT, ARITHMETIC, FUSION, MAX_TOKENS, RING, NORMALIZE, DISCARD, and those of entry.cuh.

#define HEADS_IN_FLIGHT 4

#include "chain_slab.cuh"
#include "discard.cuh"
#include "entry.cuh"
#include "fuse.cuh"

using Rows = FusedRows<ELEMENT, FUSION>;
using Slab = SLAB_OF(ARITHMETIC);

constexpr u32 WARPS = MAX_TOKENS / 16;
constexpr u32 SLAB_ROWS = 16;
constexpr u32 ROWS_PER_WARP = SLAB_ROWS / WARPS;
constexpr u32 TILES = MAX_TOKENS / 8;
// Columns a warp takes at a time: with the granule that a shift needs, they must fit the lanes.
constexpr u32 SEGMENT = Rows::COLUMNS == 8 ? MAX_TOKENS : 64;
constexpr u32 SEGMENTS = MAX_TOKENS / SEGMENT;
constexpr u32 LANES = SEGMENT / Rows::COLUMNS + 1;
constexpr u32 UNIT_GRANULES = HEADS_IN_FLIGHT * LANES;

// Where a warp stands in its sequence of units: layer by layer from the last, slab by slab, row by row, segment by
// segment, HEADS_IN_FLIGHT heads at a time. Rows beyond the window have no units.
struct Position {
  u32 layer, slab, row_of_warp, segment, head;  // layer counts from 1; 0: the end

  DEVICE u32 row() const { return slab * SLAB_ROWS + threadIdx.x / WARP * ROWS_PER_WARP + row_of_warp; }

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
    if (++segment < segments) return;
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
    return rows.segment(row, number * SEGMENT, min_u32((number + 1) * SEGMENT, row_end));
  }

  DEVICE u32 slot(u32 unit, u32 k) const { return storage + (unit * UNIT_GRANULES + k * LANES) * GRANULE_BYTES; }

  // Asks for the next unit. A group is committed even at the end, so that they can be counted.
  DEVICE void fill() {
    if (ahead.layer) {
      const Rows rows(maps, ahead.layer - 1, item, window.start);
      const Rows::Segment s = segment(rows, ahead.row(), ahead.segment);
      if (s.wide && s.columns) {
#pragma unroll
        for (u32 k = 0; k < HEADS_IN_FLIGHT; ++k) {
          copy_granule_async(slot(filled, k), rows.granule_address(s, ahead.head + k),
                             rows.granule_wanted(s, ahead.head + k));
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
      if (s.wide && s.columns) {
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
    if (!s.wide) rows.add_narrow(fused, s);
    rows.finish(fused, s);
  }
};

DEVICE void rollout_chain(const RolloutChainParams &params, const Place &place) {
  __shared__ Slab slabs[2];
  __shared__ float scales[2][MAX_TOKENS];
  extern __shared__ uint4 ring_storage[];  // [warp][RING][HEADS_IN_FLIGHT][LANES]
  const Maps &maps = params.maps;
  const u32 item = place.x, tokens = maps.tokens;
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const u32 tile_row = lane / 4, tile_column = lane % 4 * 2;
  const Window window = maps.windows[item];
  const u32 slab_count = (window.len + SLAB_ROWS - 1) / SLAB_ROWS;

  Ring ring = {maps, window, item, slab_count, (window.len + SEGMENT - 1) / SEGMENT,
               shared_address(ring_storage + warp * RING * UNIT_GRANULES + lane), 0, 0, {maps.layers, 0, 0, 0, 0}};
  if (window.len == 0) ring.ahead.layer = 0;
  ring.ahead.skip_absent_rows(window.len, slab_count);
#pragma unroll 1
  for (u32 unit = 0; unit + 1 < RING; ++unit) ring.fill();

  // P: the identity, or the product of later layers.
  float sum[TILES][4];
#pragma unroll
  for (u32 t = 0; t < TILES; ++t) {
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
      const u32 row = warp * 16 + tile_row + e / 2 * 8, column = t * 8 + tile_column + e % 2;
      sum[t][e] = row == column ? 1.0f : 0.0f;
      if (params.state) {
        const bool inside = row < window.len && column < window.len;
        const u64 from = (u64(item) * tokens + window.start + row) * tokens + window.start + column;
        sum[t][e] = inside ? params.state[from] : 0.0f;
      }
    }
  }

  // Fuses this warp's rows of slab `k` of `layer` into slabs[turn].
  const auto produce = [&](u32 layer, u32 k, u32 turn) {
    const Rows rows(maps, layer, item, window.start);
    Cut cut = {0, maps.discard_first, maps.discard_spares_origin, window.len};
    if constexpr (DISCARD) cut.last = maps.cuts[layer * maps.batch + item];
#pragma unroll 1
    for (u32 r = 0; r < ROWS_PER_WARP; ++r) {
      const u32 slab_row = warp * ROWS_PER_WARP + r, row = k * SLAB_ROWS + slab_row;
      float fused[SEGMENTS][Rows::COLUMNS] = {};
      float total = 0.0f;
#pragma unroll
      for (u32 s = 0; s < SEGMENTS; ++s) {
        if (row < window.len && s < ring.segments) {
          ring.fuse(fused[s], rows, ring.segment(rows, row, s));
#pragma unroll
          for (u32 c = 0; c < Rows::COLUMNS; ++c) {
            if constexpr (DISCARD) fused[s][c] = cut.apply(fused[s][c], row, s * SEGMENT + lane * Rows::COLUMNS + c);
            total += fused[s][c];
          }
        }
      }
      float scale = 1.0f;
      if constexpr (NORMALIZE) {
        total = maps.layer[layer].attention * warp_sum(total) + maps.layer[layer].identity;
        scale = total == 0.0f ? 0.0f : 1.0f / total;
        if (lane == 0) scales[layer % 2][row] = scale;
      }
#pragma unroll
      for (u32 s = 0; s < SEGMENTS; ++s) {
#pragma unroll
        for (u32 c = 0; c < Rows::COLUMNS; ++c) fused[s][c] *= scale;
        if (lane * Rows::COLUMNS < SEGMENT) slabs[turn].store(slab_row, s * SEGMENT + lane * Rows::COLUMNS, fused[s]);
      }
    }
  };

  u32 turn = 0;
  if (maps.layers && slab_count) produce(maps.layers - 1, 0, 0);
#pragma unroll 1
  for (u32 layer = maps.layers; layer-- > 0;) {
    float old[TILES][4];
#pragma unroll
    for (u32 t = 0; t < TILES; ++t) {
#pragma unroll
      for (u32 e = 0; e < 4; ++e) {
        old[t][e] = sum[t][e];
        sum[t][e] = 0.0f;
      }
    }
#pragma unroll 1
    for (u32 k = 0; k < MAX_TOKENS / SLAB_ROWS; ++k) {
      if (k < slab_count) {
        __syncthreads();  // this slab is full, and the other one has been multiplied
        const bool last = k + 1 == slab_count;
        if (!last || layer > 0) produce(last ? layer - 1 : layer, last ? 0 : k + 1, turn ^ 1);
        // A causal P and a causal layer are 0 beyond their diagonals.
        const u32 columns = maps.causal ? min_u32(window.len, (k + 1) * SLAB_ROWS) : window.len;
        if (warp * 16 < window.len && !(maps.causal && k > warp)) {
          slabs[turn].multiply(sum, old[0], old[1], columns);
        }
        turn ^= 1;
      }
      // The next slab's columns of P move to the front: after all of them, each is back in its place.
#pragma unroll
      for (u32 e = 0; e < 4; ++e) {
        const float first = old[0][e], second = old[1][e];
#pragma unroll
        for (u32 t = 0; t + 2 < TILES; ++t) old[t][e] = old[t + 2][e];
        old[TILES - 2][e] = first;
        old[TILES - 1][e] = second;
      }
    }
    const float attention = maps.layer[layer].attention * Slab::FINISH, identity = maps.layer[layer].identity;
#pragma unroll
    for (u32 t = 0; t < TILES; ++t) {
#pragma unroll
      for (u32 e = 0; e < 4; ++e) {
        const u32 column = t * 8 + tile_column + e % 2;
        float weight = identity;
        if constexpr (NORMALIZE) weight *= column < window.len ? scales[layer % 2][column] : 0.0f;
        sum[t][e] = attention * sum[t][e] + weight * old[t][e];
      }
    }
  }

  wait_copies<0>();  // only empty groups are left
  float *out = params.out + u64(item) * tokens * tokens;
#pragma unroll
  for (u32 t = 0; t < TILES; ++t) {
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
      const u32 row = warp * 16 + tile_row + e / 2 * 8, column = t * 8 + tile_column + e % 2;
      if (row < window.len && column < window.len) {
        out[(window.start + row) * tokens + window.start + column] = sum[t][e];
      }
    }
  }
  for (u32 row = warp; row < tokens; row += WARPS) {
    for (u32 column = lane; column < tokens; column += WARP) {
      const bool inside = row - window.start < window.len && column - window.start < window.len;
      if (!inside) out[row * tokens + column] = 0.0f;
    }
  }
}

ENTRY(RolloutChainParams, rollout_chain, WARPS *WARP, 1)
