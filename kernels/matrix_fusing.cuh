// The slabs of matrix_stream: where they lie, what is waited for, and the warps that fuse rows of maps into them.
//
// Macros: as matrix_stream.cu.
#pragma once

#include "discard.cuh"
#include "matrix_operands.cuh"
#include "mbarrier.cuh"
#include "row_fusion.cuh"

using Operands = OPERANDS_OF(ARITHMETIC);
// Neighbours that a lane holds are one word of a slab where that is of f16.
using Fusion = RowFusion<ELEMENT, ELEMENT::BYTES == 2 && PAIRS_FIT && Operands::PACKS>;

constexpr u32 MULTIPLIERS = BLOCK_GROUPS * COLUMN_PARTS;
// Warps in the order in which others wait for them: those that fuse, the one that fills the ring, and those that multiply.
constexpr u32 FIRST_MULTIPLIER = FUSERS + 1;
constexpr u32 THREADS = (FIRST_MULTIPLIER + MULTIPLIERS) * WARP;
// Rows of a slab that a block fuses.
constexpr u32 SHARE = SLAB_ROWS / CLUSTER;
// Only fused maps are discarded from, which are f32.
constexpr bool DISCARDS = ELEMENT::BYTES == 4;

// Dynamic shared memory: D, slabs, scales, c of the rows of each warp that multiplies, the number of the item that each
// warp is at, and the ring.
constexpr u32 SLABS_AT = Operands::STATE_BYTES, SCALES_AT = SLABS_AT + SLABS * Operands::SLAB_BYTES;
constexpr u32 DIAGONAL_AT = SCALES_AT + SLABS * SLAB_ROWS * 4, NUMBERS_AT = DIAGONAL_AT + MULTIPLIERS * 16 * 4;
constexpr u32 RING_AT = (NUMBERS_AT + THREADS / WARP * 4 + GRANULE_BYTES - 1) / GRANULE_BYTES * GRANULE_BYTES;
static_assert(RING_AT == FIXED_BYTES, "src/cuda/kernel/matrix_stream.rs computes another size");
extern __shared__ __align__(128) char dynamic[];

// Barriers of the block: those of the warps that have the same rows, and of the multiplying and of the fusing ones.
constexpr u32 ROWS_BARRIER = 1, MULTIPLYING = ROWS_BARRIER + BLOCK_GROUPS, FUSING = MULTIPLYING + 1;

// What a slab waits for. `full`: the fusing warps of this block, and the bytes of the others'. `empty`: the multiplying warps
// of this block. `free`: that it is so in the other blocks too.
struct SlabBarriers {
  u64 full[SLABS], empty[SLABS], free[SLABS];
  u32 word[SLABS];  // what others write to say so

  DEVICE void init() {
    for (u32 s = 0; s < SLABS; ++s) {
      barrier_init(&full[s], FUSERS);
      barrier_init(&empty[s], MULTIPLIERS);
      barrier_init(&free[s], 1);
    }
  }
};

// The slabs as one role goes through them.
struct Slabs {
  SlabBarriers &barriers;
  u32 slab, parity;

  DEVICE void wait(u64 *of) const {
    if constexpr (CLUSTER > 1) {
      barrier_wait_cluster(&of[slab], parity);
    } else {
      barrier_wait(&of[slab], parity);
    }
  }
  // The warp is done with the slab; the next one.
  DEVICE void arrive(u64 *of) {
    __syncwarp();
    if (threadIdx.x % WARP == 0) barrier_arrive(&of[slab]);
    if (++slab == SLABS) {
      slab = 0;
      parity ^= 1;
    }
  }
};

DEVICE u32 slabs_of(const Window &window) { return (window.len + SLAB_ROWS - 1) / SLAB_ROWS; }
// The first row of this block's share of a slab, and how many rows of it there are.
DEVICE u32 first_of(u32 slab) { return slab * SLAB_ROWS + cluster_rank() * SHARE; }
DEVICE u32 rows_of(u32 slab, const Window &window) {
  return min_u32(max_u32(window.len, first_of(slab)) - first_of(slab), SHARE);
}

// The warps that fuse.
struct Fusing {
  Slabs slabs;
  const u32 fuser;
  u32 row;     // the warp's next one, from the first of this block's share of a slab
  bool fresh;  // nobody has used the slabs before
  SlabRow place;
  u32 other_scales[CLUSTER];

  DEVICE explicit Fusing(SlabBarriers &barriers)
      : slabs({barriers, 0, 1}), fuser(threadIdx.x / WARP), row(fuser), fresh(true) {
    const char *const lane_at = dynamic + SLABS_AT + Operands::fusing_lane<Fusion>();
    place.here = shared_address(lane_at);
#pragma unroll
    for (u32 peer = 1; peer < CLUSTER; ++peer) {
      const u32 rank = (cluster_rank() + peer) % CLUSTER;
      place.there[peer] = peer_address(lane_at, rank);
      place.full[peer] = peer_address(barriers.full, rank);
      other_scales[peer] = peer_address(dynamic + SCALES_AT, rank);
    }
  }

  // Waits until the slab can be written in all blocks. What is free here is told to the others.
  DEVICE void wait_for_room() const {
    SlabBarriers &barriers = slabs.barriers;
    slabs.wait(barriers.empty);
    if constexpr (CLUSTER > 1) {
      u64 *const free = &barriers.free[slabs.slab];
      if (!fresh && fuser == 0 && threadIdx.x % WARP == 0) {
#pragma unroll
        for (u32 peer = 1; peer < CLUSTER; ++peer) {
          const u32 rank = (cluster_rank() + peer) % CLUSTER;
          send_word(peer_address(&barriers.word[slabs.slab], rank), 0, peer_address(free, rank));
        }
        barrier_expect(free, 4 * (CLUSTER - 1));
        barrier_arrive(free);
      }
      slabs.wait(barriers.free);
    }
  }

  // Writes a row of the slab, multiplied by `weight`, and what it was divided by where rows are normalised.
  DEVICE void write(u32 slab_row, float (&fused)[COLUMNS], float weight, bool normalize, float scale) const {
    // Split as they are.
    weight *= Operands::SCALE;
#pragma unroll
    for (u32 c = 0; c < COLUMNS; ++c) fused[c] *= weight;
    const u32 at = slabs.slab * Operands::SLAB_BYTES + slab_row * (Operands::SLAB_PART / SLAB_ROWS);
    SlabRow to = place;
    to.here += at;
#pragma unroll
    for (u32 peer = 1; peer < CLUSTER; ++peer) {
      to.there[peer] += at;
      to.full[peer] += slabs.slab * sizeof(u64);
    }
    Operands::store<Fusion>(to, fused);
    if (normalize && threadIdx.x % WARP == 0) {
      const u32 number = slabs.slab * SLAB_ROWS + slab_row;
      store_shared(shared_address(dynamic) + SCALES_AT + number * 4, scale);
#pragma unroll
      for (u32 peer = 1; peer < CLUSTER; ++peer) {
        send_word(other_scales[peer] + number * 4, __float_as_uint(scale), to.full[peer]);
      }
    }
  }

  // The warp's rows of the slab are written.
  DEVICE void finish(bool normalize) {
    u64 *const full = slabs.barriers.full;
    if (CLUSTER > 1 && fuser == 0 && threadIdx.x % WARP == 0) {
      const u32 row_bytes = Operands::SENT_ROW_BYTES + (normalize ? 4 : 0);
      barrier_expect(&full[slabs.slab], (CLUSTER - 1) * SHARE * row_bytes);
    }
    slabs.arrive(full);
    if (slabs.slab == 0) fresh = false;
  }

  // One item.
  DEVICE void fuse_slabs(const MatrixStreamParams &params, u32 item, Ring &ring) {
    const Maps &maps = params.maps;
    const u32 lane = threadIdx.x % WARP, slab_row = cluster_rank() * SHARE;
    const Window window = maps.windows[item];
    for (u32 layer = maps.layers; layer-- > 0;) {
      const LayerMaps &map = maps.layer[layer];
      Cut cut = {0, maps.discard_first, maps.discard_spares_origin, window.len};
      if (DISCARDS && maps.cuts) cut.last = maps.cuts[layer * maps.batch + item];
      for (u32 k = 0; k < slabs_of(window); ++k) {
        const u32 rows = rows_of(k, window);
        wait_for_room();
        for (u32 taken = 0; taken < rows;) {
          const Tile tile = ring.take();
          taken += tile.rows;
#pragma unroll 1
          for (; row < taken; row += FUSERS) {
            const u32 in_window = first_of(k) + row;
            const u32 within = maps.causal ? in_window + 1 : window.len;
            const char *const at = ring.data + tile.begin + (row - tile.row) * tile.row_bytes;
            float fused[COLUMNS];
            Fusion::fuse(fused, maps, tile, at, lane, within);
            if constexpr (DISCARDS) {
              if (cut.last) {
#pragma unroll
                for (u32 c = 0; c < COLUMNS; ++c) fused[c] = cut.apply(fused[c], in_window, lane + c * WARP);
              }
            }
            float scale = 1.0f;
            if (params.normalize) {
              float total = 0.0f;
#pragma unroll
              for (u32 c = 0; c < COLUMNS; ++c) total += fused[c];
              scale = scale_of(map, warp_sum(total));
            }
            write(slab_row + row, fused, map.attention * scale, params.normalize, scale);
          }
          ring.release();
        }
#pragma unroll 1
        for (; row < SHARE; row += FUSERS) {  // beyond the window
          float nothing[COLUMNS] = {};
          write(slab_row + row, nothing, 0.0f, params.normalize, 0.0f);
        }
        row -= SHARE;
        finish(params.normalize);
      }
    }
  }
};
