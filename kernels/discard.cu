// discard: the cut of every fused map, exactly: the rank (see discard.cuh) of the `counts[item]`-th smallest entry that
// takes part, 0 where none is to be zeroed.
//
// Radix select from the top of the rank, 11 bits a pass: count the entries that share the digits found so far by their
// next digit, find the bin that holds the wanted one, go on inside it. It ends as soon as a bin is wanted as a whole,
// usually before the index is looked at. One block per (item, layer); the map comes from L2 in all passes but the first.
//
// Grid: x item, y layer. Macros: BLOCK_THREADS, and those of entry.cuh.

#include "discard.cuh"
#include "entry.cuh"
#include "memory.cuh"

constexpr u32 DIGIT_BITS = 11;
constexpr u32 BINS = 1 << DIGIT_BITS;

struct Bin {
  u32 digit, count;
  u64 below;  // entries in lower bins
};

// The bin that holds the `wanted`-th entry, counted from 1. One warp.
DEVICE void find_bin(const u32 *histogram, u64 wanted, Bin *found) {
  constexpr u32 SHARE = BINS / WARP;
  const u32 lane = threadIdx.x;
  u64 mine = 0;
  for (u32 i = 0; i < SHARE; ++i) mine += histogram[lane * SHARE + i];
  u64 upto = mine;  // inclusive prefix sum
#pragma unroll
  for (u32 d = 1; d < WARP; d *= 2) {
    const u64 other = __shfl_up_sync(FULL_WARP, upto, d);
    if (lane >= d) upto += other;
  }
  u64 below = upto - mine;
  if (below < wanted && wanted <= upto) {
    u32 digit = lane * SHARE;
    for (; below + histogram[digit] < wanted; ++digit) below += histogram[digit];
    *found = {digit, histogram[digit], below};
  }
}

DEVICE void find_cut(const DiscardParams &params, const Place &place) {
  __shared__ u32 histogram[BINS];
  __shared__ Bin bin;
  const u32 item = place.x, layer = place.y;
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = BLOCK_THREADS / WARP;
  const u32 len = params.windows[item].len, first = params.discard_first;
  const u64 map = global_address(params.fused + layer * params.stride_layer + item * params.stride_batch);

  u64 wanted = params.counts[item];
  u64 cut = 0;
  u32 shift = wanted ? 64 : 0;  // bits of the rank still unknown
  while (shift) {
    const u32 known = shift;
    shift -= min_u32(DIGIT_BITS, shift);
    for (u32 i = threadIdx.x; i < BINS; i += BLOCK_THREADS) histogram[i] = 0;
    __syncthreads();  // the histogram is empty
    for (u32 row = first + warp; row < len; row += warps) {
      for (u32 column = first + lane; column < len; column += WARP) {
        float value = 0.0f;  // right of the diagonal of a causal map
        if (!params.causal || column <= row) {
          value = __uint_as_float(load_element<4>(map + (row * params.stride_row + column) * 4));
        }
        const u64 rank = rank_of(value, row * len + column);
        if (known == 64 || rank >> known == cut) {
          atomicAdd(&histogram[u32(rank >> shift) & ((1u << (known - shift)) - 1)], 1);
        }
      }
    }
    __syncthreads();  // all are counted
    if (warp == 0) find_bin(histogram, wanted, &bin);
    __syncthreads();  // the bin is found
    wanted -= bin.below;
    cut = cut << (known - shift) | bin.digit;
    if (wanted == bin.count) {
      cut = cut << shift | ((u64(1) << shift) - 1);
      shift = 0;
    }
  }
  if (threadIdx.x == 0) params.cuts[layer * params.batch + item] = cut;
}

ENTRY(DiscardParams, find_cut, __launch_bounds__(BLOCK_THREADS))
