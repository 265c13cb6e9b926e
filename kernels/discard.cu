// discard: the cut of every fused map, exactly: the rank (see discard.cuh) of the `counts[item]`-th smallest entry that
// takes part, 0 where none is to be zeroed.
//
// Radix select from the top of the rank, 11 bits a pass: count the entries that share the digits found so far by their
// next digit, find the bin that holds the wanted one, go on inside it. It ends as soon as a bin is wanted as a whole,
// usually before the index is looked at. The map comes from L2 in all passes but the first.
//
// A block, or the blocks of a cluster, which take granules in turn: each counts its own and then adds up what all have counted, so
// that all find the same bin.
//
// Grid: x item, y block of the cluster, z layer. Macros: BLOCK_THREADS, and those of entry.cuh.

// A member of a grouped launch has no clusters: its blocks need not be neighbours.
#if GROUPED
#define CLUSTER 1
#else
#define CLUSTER 0
#endif

#include "cluster.cuh"
#include "discard.cuh"
#include "entry.cuh"

constexpr u32 DIGIT_BITS = 11;
constexpr u32 BINS = 1 << DIGIT_BITS;
constexpr u32 WARPS = BLOCK_THREADS / WARP;
constexpr u32 SHARE = BINS / BLOCK_THREADS;  // bins of a thread, side by side
static_assert(SHARE == 4, "16 bytes");
constexpr u32 GRANULE = 4;  // entries of 16 bytes
// Granules that a thread asks for at a time: parameters in shared memory take registers that constants do not.
constexpr u32 GRANULES = GROUPED ? 2 : 4;

struct Bin {
  u32 digit, count;
  u64 below;  // entries in lower bins
};

struct Shared {
  __align__(16) u32 histogram[BINS];
  u64 of_warp[WARPS];
  Bin found;
};

// Finds the bin that holds the `wanted`-th entry of those that all blocks have counted, counted from 1.
DEVICE void find_bin(Shared &shared, u64 wanted, u32 blocks) {
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, digit = threadIdx.x * SHARE;
  u32 count[SHARE] = {};
  for (u32 rank = 0; rank < blocks; ++rank) {
    const uint4 counts = load_peer(reinterpret_cast<const uint4 *>(&shared.histogram[digit]), rank);
    count[0] += counts.x;
    count[1] += counts.y;
    count[2] += counts.z;
    count[3] += counts.w;
  }
  const u64 mine = u64(count[0]) + count[1] + count[2] + count[3];
  u64 upto = mine;  // inclusive prefix sum, of the warp's
#pragma unroll
  for (u32 d = 1; d < WARP; d *= 2) {
    const u64 other = __shfl_up_sync(FULL_WARP, upto, d);
    if (lane >= d) upto += other;
  }
  if (lane == WARP - 1) shared.of_warp[warp] = upto;
  __syncthreads();  // the sums of all warps are there
  u64 below = upto - mine;
  for (u32 w = 0; w < warp; ++w) below += shared.of_warp[w];
#pragma unroll
  for (u32 i = 0; i < SHARE; ++i) {
    if (below < wanted && wanted <= below + count[i]) shared.found = {digit + i, count[i], below};
    below += count[i];
  }
}

// Bits of what is being found, and how far one is.
struct Digits {
  u32 found;
  u32 known_mask;  // those that are known, which all that is counted has in common
  u32 shift, mask;  // the next digit
};

// Counts this block's granules of a map, by the next digit of their entries' values or, of entries whose key is `key`, of their
// index. Threads of all blocks take granules in turn, row after row, so that none has less to do where rows are short.
template <bool OF_VALUE>
DEVICE void count(Shared &shared, const DiscardParams &params, u64 map, u32 len, u32 blocks, u32 key, const Digits &digits) {
  const u32 first = params.discard_first, in_row = (len + GRANULE - 1) / GRANULE;
  const u32 threads = blocks * BLOCK_THREADS, rows = threads / in_row, across = threads - rows * in_row;
  const u32 thread = cluster_rank() * BLOCK_THREADS + threadIdx.x;
  const u32 histogram = shared_address(shared.histogram);
  u32 row = first + thread / in_row, granule_of_row = thread % in_row;
#pragma unroll 1
  while (row < len) {
    Granule granule[GRANULES];
    u32 column[GRANULES], row_of[GRANULES];
#pragma unroll
    for (u32 g = 0; g < GRANULES; ++g) {
      row_of[g] = row;
      column[g] = row < len ? granule_of_row * GRANULE : len;
      // Zeros right of the diagonal of a causal map, which holds none but those of its last granule.
      const u32 held = params.causal ? min_u32(row + 1, len) : len;
      granule[g] = load_granule(map + (row * params.stride_row + column[g]) * 4, column[g] < held);
      row += rows;
      granule_of_row += across;
      if (granule_of_row >= in_row) {
        granule_of_row -= in_row;
        ++row;
      }
    }
#pragma unroll
    for (u32 e = 0; e < GRANULES * GRANULE; ++e) {
      const u32 g = e / GRANULE, at = column[g] + e % GRANULE;
      const u32 of_entry = order_key(__uint_as_float(granule[g].word[e % GRANULE]));
      const u32 bits = OF_VALUE ? of_entry : row_of[g] * len + at;
      bool counts = at - first < len - first && ((bits ^ digits.found) & digits.known_mask) == 0;
      if constexpr (!OF_VALUE) counts &= of_entry == key;
      count_shared(histogram + (bits >> digits.shift & digits.mask) * 4, counts);
    }
  }
}

DEVICE void find_cut(const DiscardParams &params, const Place &place) {
  __shared__ Shared shared;
  const u32 item = place.x, layer = place.z, blocks = cluster_blocks();
  const u32 len = params.windows[item].len;
  const u64 map = global_address(params.fused + layer * params.stride_layer + item * params.stride_batch);

  u64 wanted = params.counts[item];
  u32 key = 0, index = 0;         // of the cut, as far as they are known
  u32 unknown = wanted ? 64 : 0;  // bits of both
  while (unknown) {
    const bool of_value = unknown > 32;
    const u32 known = (unknown - 1) % 32 + 1, shift = known - min_u32(DIGIT_BITS, known);
    const Digits digits = {of_value ? key : index, known < 32 ? 0xffffffff << known : 0, shift, (1u << (known - shift)) - 1};
    for (u32 i = threadIdx.x; i < BINS; i += BLOCK_THREADS) shared.histogram[i] = 0;
    __syncthreads();  // nothing is counted yet
    if (of_value) {
      count<true>(shared, params, map, len, blocks, key, digits);
    } else {
      count<false>(shared, params, map, len, blocks, key, digits);
    }
    cluster_barrier();  // all are counted
    find_bin(shared, wanted, blocks);
    cluster_barrier();  // the bin is found, and nobody reads what others have counted any more
    const Bin bin = shared.found;
    wanted -= bin.below;
    (of_value ? key : index) |= bin.digit << shift;
    unknown -= known - shift;
    if (wanted == bin.count) {
      // All of the bin: whatever bits are unknown.
      if (of_value) key |= (1u << shift) - 1;
      index = of_value ? 0xffffffff : index | ((1u << shift) - 1);
      unknown = 0;
    }
  }
  if (cluster_rank() == 0 && threadIdx.x == 0) params.cuts[layer * params.batch + item] = u64(key) << 32 | index;
}

ENTRY(DiscardParams, find_cut, __launch_bounds__(BLOCK_THREADS))
