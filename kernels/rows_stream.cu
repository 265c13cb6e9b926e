// rows_stream: start rows times all layers, r <- identity r + attention r fused, as fast as the maps can be read.
//
// The blocks of a set compute an item together, one block per multiprocessor; grouped, an item has one block, and up to
// three share a multiprocessor. In each layer a block owns a slice of the rows: it needs the relevance of these only,
// multiplies them into sums of all columns, and sends each column's sum to the block that owns that row in the layer before
// (exchange.cuh). Slices move on by one block from layer to layer, so that who has a row more has it in turns. One warp
// streams the maps through a ring in shared memory (ring.cuh), across layers and items, whatever the others wait for: a
// layer's end costs nothing as long as it is shorter than the ring.
//
// The other warps are groups of `column_warps`, which share a row; what a lane holds of its warp's part is in row_fusion.cuh.
// Groups take rows in turns, whatever tile they come in, and add their sums up in order: results repeat to the bit. Of
// the last layer only rows with weight are read, and of a causal map none behind the last of these; rows without are never
// looked at.
//
// Rows that are longer than the warps hold are looked at in panels of columns, the slice once for each; row sums then
// take a pass of their own.
//
// Macros: ELEMENT, FUSION, GRADIENTS, START_ROWS, COLUMNS (of a lane), WARPS (besides the producer, at most), and
// those of entry.cuh. sm_80.

// A member of a grouped launch has no clusters: its blocks need not be neighbours.
#if GROUPED
#define CLUSTER 1
#else
#define CLUSTER 0
#endif

#include "discard.cuh"
#include "exchange.cuh"
#include "items.cuh"
#include "row_fusion.cuh"
#include "rows_producer.cuh"

// Threads besides the producer's: where blocks share a multiprocessor, each has a part of the warps.
DEVICE u32 computing_threads() { return blockDim.x - WARP; }
// Only fused maps are discarded from, which are f32.
constexpr bool DISCARDS = ELEMENT::BYTES == 4 && !GRADIENTS;

extern __shared__ __align__(128) char dynamic[];

// Barriers of the block: all warps, all computing warps, and from GROUP_BARRIER on those of a group.
constexpr u32 BEGINNING = 0, COMPUTING = 1, GROUP_BARRIER = 2;

// What the computing warps keep in shared memory, behind the ring.
struct Workspace {
  float *relevance;   // [2][start_rows][most rows], of this slice and the next
  float *row_sums;    // [most rows], of fused entries
  float *sums;        // [groups][panel_columns]
  float *part_sums;   // [2][warps], of the parts of a row
  float *inbox;       // see exchange.cuh

  DEVICE Workspace(const RowsStreamParams &params, u32 most, u32 warps, u32 groups) {
    relevance = reinterpret_cast<float *>(dynamic + params.stages * params.stage_bytes);
    row_sums = relevance + 2 * params.start_rows * most;
    sums = row_sums + most;
    part_sums = sums + groups * params.panel_columns;
    inbox = part_sums + 2 * warps;
  }
};

// Blocks that share an item. Grouped, each has its own.
DEVICE u32 blocks_of(const RowsStreamParams &params) { return GROUPED ? 1 : params.blocks; }

// The other warps: one item, from the tiles of the ring.
DEVICE void compute(const RowsStreamParams &params, u32 item, u32 block, Ring &ring, u64 *received, u32 &exchanges) {
  const Maps &maps = params.maps;
  const u32 thread = unknown(threadIdx.x - WARP), warp = unknown(thread / WARP), lane = unknown(threadIdx.x % WARP);
  const u32 threads = computing_threads(), warps = threads / WARP;
  const u32 column_warps = params.column_warps, groups = quotient_of_small(warps, column_warps);
  const u32 group = quotient_of_small(warp, column_warps), place_in_group = warp - group * column_warps;
  const u32 part = unknown(place_in_group * COLUMNS * WARP);  // the first column of this warp's part of a row
  using Fusion = RowFusion<ELEMENT>;
  const auto column_of = [&](u32 k) { return part + Fusion::column(lane, k); };
  const u32 start_rows = params.start_rows, blocks = blocks_of(params), most = most_rows(maps.tokens, blocks);
  const u32 panel_columns = params.panel_columns;
  const bool normalize = unknown(params.normalize);
  const Window window = maps.windows[item];
  const Slices slices(window.len, blocks);
  const Workspace space(params, most, warps, groups);
  u64 *words = GROUPED ? nullptr : params.words;
  if (words) words += u64(blockIdx.x) * 2 * blocks * blocks * start_rows * most;
  const u32 sums = shared_address(space.sums);
  Exchange exchange(blocks, block, start_rows, most, space.inbox, received, words, exchanges);

  u32 part_turn = 0;
  Slice slice = slices.slice(block);
  float *old = space.relevance, *next = old + start_rows * most;
  // Where the sum of a column goes: to the block that owns that row in the layer before, when slices have moved on.
  u32 moved = blocks == 1 ? 0 : 1;
  const auto place_of = [&](u32 owned, u32 row) {
    return exchange.place(owned < moved ? owned + blocks - moved : owned - moved, row);
  };
  const u32 owned = slices.of(thread), owned_row = thread - slices.first(owned);  // of this thread's first column
  {
    for (u32 m = 0; m < start_rows; ++m) {
      for (u32 row = thread; row < slice.rows; row += threads) {
        old[m * most + row] = params.start[item * params.start_stride_batch + m * maps.tokens + slice.first + row];
      }
    }
  }

  const u32 layers = unknown(maps.layers);
  for (u32 layer = layers; layer-- > 0;) {
    const LayerMaps &map = maps.layer[layer];
    const u32 working = min_u32(groups, slice.rows);  // groups that have a row
    Cut cut = {0, maps.discard_first, maps.discard_spares_origin, window.len};
    if (DISCARDS && maps.cuts) cut.last = maps.cuts[layer * maps.batch + item];
    float sum[START_ROWS][COLUMNS] = {};
    u32 turn = group;  // rows until this group's next one
    u32 flags;
    bool awaits = true;  // the relevance is on its way
    u32 ahead = (ring.stages - 1) / 2;  // tiles to look for a first row in: the others run ahead of it
    u64 place = 0;
    do {
      const Tile tile = ring.take();
      flags = tile.flags;
      float fused[COLUMNS];
      const auto fuse_row = [&] {
        const u32 in_window = slice.first + tile.row + turn;
        const u32 within = maps.causal ? min_u32(tile.columns, max_u32(in_window + 1, tile.column) - tile.column) : tile.columns;
        Fusion::fuse(fused, maps, tile, ring.data + tile.begin + turn * tile.row_bytes + part * ELEMENT::BYTES, lane,
                     max_u32(within, part) - part);
        if constexpr (DISCARDS) {
          if (cut.last) cut.apply_row(fused, in_window, tile.column + column_of(0));
        }
      };
      bool is_fused = false;
      const bool has_row = group < groups && turn < tile.rows;
      if (awaits && (has_row || group >= working || ahead == 0 || flags & ENDS_PANEL)) {
        // A group's first row can be fused before it is known what it weighs.
        if (has_row) fuse_row();
        is_fused = has_row;
        if (thread < tile.columns) place = place_of(unknown(owned), owned_row);
        if (layer + 1 < layers) exchange.receive(slice.rows, old, warp, warps, working * column_warps);
        barrier_of(COMPUTING, threads);  // the relevance is complete
        awaits = false;
      }
#pragma unroll 1
      for (; group < groups && turn < tile.rows; turn += groups) {
        const u32 row = tile.row + turn;
        float weight[START_ROWS];
        bool weighs = false;
#pragma unroll
        for (u32 m = 0; m < START_ROWS; ++m) {
          weight[m] = m < start_rows ? old[m * most + row] : 0.0f;
          weighs |= weight[m] != 0.0f;
        }
        if (weighs && !is_fused) fuse_row();
        is_fused = false;
        if (!weighs) continue;
        if (normalize) {
          float total = 0.0f;
          if (flags & SUMS_ONLY || tile.columns == window.len) {
#pragma unroll
            for (u32 k = 0; k < COLUMNS; ++k) total += fused[k];
            total = warp_sum(total);
            if (column_warps > 1) {
              float *parts = space.part_sums + part_turn * warps;
              part_turn ^= 1;
              if (lane == 0) parts[warp] = total;
              barrier_of(GROUP_BARRIER + group, column_warps * WARP);  // the sums of all parts are there
              total = 0.0f;
              for (u32 c = 0; c < column_warps; ++c) total += parts[group * column_warps + c];
            }
            if (lane == 0 && part == 0) {
              space.row_sums[row] = tile.column == 0 ? total : space.row_sums[row] + total;
            }
          } else {
            total = space.row_sums[row];
          }
          const float scale = scale_of(map, total);
#pragma unroll
          for (u32 m = 0; m < START_ROWS; ++m) weight[m] *= scale;
        }
        if (!(flags & SUMS_ONLY)) {
#pragma unroll
          for (u32 m = 0; m < START_ROWS; ++m) {
#pragma unroll
            for (u32 k = 0; k < COLUMNS; ++k) sum[m][k] += weight[m] * fused[k];
          }
        }
      }
      turn -= tile.rows;
      ring.release();
      --ahead;
      if (flags & ENDS_PANEL) turn = group;
      if (flags & ENDS_PANEL && flags & SUMS_ONLY) barrier_of(COMPUTING, threads);  // the row sums are complete
      if (flags & ENDS_PANEL && !(flags & SUMS_ONLY)) {
        // The groups' sums, and this block's part of the next relevance to those who own its rows then.
        for (u32 m = 0; m < start_rows; ++m) {
#pragma unroll
          for (u32 mm = 0; mm < START_ROWS && group < working; ++mm) {
            if (mm != m) continue;
#pragma unroll
            for (u32 k = 0; k < COLUMNS; ++k) {
              const u32 column = column_of(k);
              if (column < tile.columns) {
                space.sums[group * panel_columns + column] = sum[mm][k];
              }
            }
          }
          barrier_of(COMPUTING, threads);  // the sums of all groups are there
          for (u32 j = thread; j < tile.columns; j += threads) {
            const u32 own = tile.column + j - slice.first;
            float kept = 0.0f;
            if (own < slice.rows) kept = old[m * most + own];
            float total = map.attention * ordered_sum(sums + j * 4, panel_columns * 4, working);
            if (normalize && kept != 0.0f) kept *= scale_of(map, space.row_sums[own]);
            total += map.identity * kept;
            if (tile.column + j != thread) {
              const u32 other = slices.of(tile.column + j);
              place = place_of(other, tile.column + j - slices.first(other));
            } else if (m > 0) {
              place = place_of(owned, owned_row);
            }
            exchange.send(place, m, total, next);
          }
          if (m + 1 < start_rows || !(flags & ENDS_LAYER)) barrier_of(COMPUTING, threads);  // the sums have been read
        }
#pragma unroll
        for (u32 m = 0; m < START_ROWS; ++m) {
#pragma unroll
          for (u32 k = 0; k < COLUMNS; ++k) sum[m][k] = 0.0f;
        }
      }
    } while (!(flags & ENDS_LAYER));

    moved = moved + 1 >= blocks ? 0 : moved + 1;
    slice = slices.after(slice);
    exchange.advance();
    float *const swapped = old;
    old = next;
    next = swapped;
  }

  exchange.receive(slice.rows, old, warp, warps, 0);
  barrier_of(COMPUTING, threads);  // the result is complete
  const u32 before = params.out_windowed ? window.start : 0;
  for (u32 m = 0; m < start_rows; ++m) {
    float *out = params.out + (u64(item) * start_rows + m) * maps.tokens;
    for (u32 row = thread; row < slice.rows; row += threads) {
      out[before + slice.first + row] = old[m * most + row];
    }
    for (u32 j = block * threads + thread; j < maps.tokens && params.out_windowed; j += blocks * threads) {
      if (j - window.start >= window.len) out[j] = 0.0f;
    }
  }
  barrier_of(COMPUTING, threads);  // the relevance and the parameters have been read
  exchanges = exchange.number;
}

struct Roles {
  // Blocks of this size on a multiprocessor.
  DEVICE static u32 sharing() { return (WARPS + 1) * WARP / blockDim.x; }
  DEVICE static Role mine() {
    if (threadIdx.x < WARP) return {threadIdx.x, WARP, 0};
    return {threadIdx.x - WARP, computing_threads(), COMPUTING};
  }
};

extern "C" __global__ void __launch_bounds__(WARPS * WARP + WARP, 1) KERNEL(const __grid_constant__ Launched<RowsStreamParams> launch) {
  __shared__ Stages stages;
  __shared__ u64 received[2];
  __shared__ u32 weighted[MAX_SLICE_ROWS / WARP];
  __shared__ u32 exchanges_before;
  __shared__ u32 numbers[WARPS + 1];
#if GROUPED
  __shared__ RowsStreamParams copies[2];
#else
  const RowsStreamParams *copies = &launch;
#endif
  const bool produces = threadIdx.x < WARP;  // the first warp, for schedulers may prefer it
  Items<RowsStreamParams, Roles> items(launch, copies[GROUPED && produces], shared_address(numbers + threadIdx.x / WARP));
  const RowsStreamParams &params = items.params;
  Ring ring(stages, dynamic, params.stages, params.stage_bytes, produces);
  if (produces) ring.init(computing_threads() / WARP);
  if (threadIdx.x == WARP) {
    for (u32 turn = 0; turn < 2; ++turn) barrier_init(&received[turn], 1);
    barrier_init_fence();
    exchanges_before = 0;
    if (params.words) {
      // Counted at once: nothing of a run that was cut off is taken for a later one's.
      u32 &count = params.exchanges[blockIdx.x * params.blocks + items.block()];
      exchanges_before = count;
      count += (params.maps.batch - blockIdx.x + gridDim.x - 1) / gridDim.x * params.maps.layers;
    }
  }
  // The barriers can be used, and all blocks run. The producer waits for nobody.
  const bool clustered = cluster_blocks() > 1;
  if (clustered) {
    cluster_arrive();
  } else if (produces) {
    barrier_arrive_of(BEGINNING, blockDim.x);
  } else {
    barrier_of(BEGINNING, blockDim.x);
  }
  if (clustered && !produces) cluster_wait();

  if (produces) {
    for (; items.more(); items.advance()) {
      produce(params, items.item(), items.block(), blocks_of(params), ring, weighted);
      __syncwarp();  // the parameters, and the rows with weight, have been read
    }
    if constexpr (!COUNTS_BYTES) {
      commit_copies();
      wait_copies<0>();  // no thread leaves with copies on their way
    }
    if (clustered) cluster_wait();
  } else {
    u32 exchanges = exchanges_before;
    for (; items.more(); items.advance()) compute(params, items.item(), items.block(), ring, received, exchanges);
  }
}
