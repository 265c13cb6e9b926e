// discard: the cut of every fused map, exactly: the rank (see discard.cuh) of the `counts[item]`-th smallest entry that
// takes part, 0 where none is to be zeroed.
//
// Radix select from the top of the rank, 11 bits a pass: count the entries that share the digits found so far by their
// next digit, find the bin that holds the wanted one, go on inside it. It ends as soon as a bin is wanted as a whole, or
// holds so few that their ranks are collected and compared: usually before the index is looked at.
//
// A block has a map, or the blocks of a cluster divide it: each counts its own part and then adds up what all have counted,
// so that all find the same bin. What a block has read stays in shared memory, as far as there is room.
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
static_assert(WARPS <= WARP, "a lane for each warp");
constexpr u32 MOST_BLOCKS = CLUSTER == 1 ? 1 : 8;
constexpr u32 GRANULE = 4;   // entries of 16 bytes
// Granules that a thread asks for at a time: parameters in shared memory take registers that constants do not.
constexpr u32 GRANULES = GROUPED ? 2 : 4;
constexpr u32 FEW = 128;     // ranks that are compared

extern __shared__ __align__(16) char dynamic[];

struct __align__(16) Bin {
  u32 digit, count;
  u32 below;   // entries in lower bins
  u32 unused;  // 0: it is read and written with the others
};

struct Rank {
  u32 key, index;
};

struct Shared {
  __align__(16) u32 histogram[2][BINS + 4];  // of this pass, and of the next; behind the bins what is not looked for
  u32 of_warp[WARPS];
  Bin found;
  u32 collected, gathered;
  Rank few[FEW];  // what this block has collected
  u64 rank[FEW];  // and all blocks
};

// What is known of the cut's rank.
struct Known {
  u32 key, key_mask;
  u32 index, index_mask;
};

// Order keys of a granule, less ZERO_KEY: what is not negative has those bits already.
DEVICE void to_keys(u32 (&word)[GRANULE]) {
  if (max_u32(max_u32(word[0], word[1]), max_u32(word[2], word[3])) > INFINITY_BITS) {
    // Negative, or not a number.
#pragma unroll
    for (u32 e = 0; e < GRANULE; ++e) word[e] = order_key(__uint_as_float(word[e])) - ZERO_KEY;
  }
}

// This block's part of a map. A thread has the same columns in all of its rows, a granule in each, and keeps the first of these in
// shared memory, where nobody else looks.
struct Slice {
  u64 map;
  u32 len, first, causal, kept;
  u32 begin, end;       // columns of whole granules
  u32 threads, thread;  // of all blocks
  u64 row_bytes;

  DEVICE Slice(const DiscardParams &params, u64 map, u32 len, u32 blocks)
      : map(map), len(len), first(params.discard_first), causal(params.causal), kept(params.kept),
        begin(min_u32((first + GRANULE - 1) / GRANULE * GRANULE, len)), end(max_u32(len / GRANULE * GRANULE, begin)),
        threads(blocks * BLOCK_THREADS), thread(cluster_rank() * BLOCK_THREADS + threadIdx.x),
        row_bytes(u64(params.stride_row) * 4) {}

  // Calls `visit(keys, index)` for all entries, a granule of them at a time, or one: their keys less ZERO_KEY, and the index of the
  // first. The FIRST time granules are kept: those of the first columns, for where there are more than a granule for each thread
  // there are more rows than room. What is before the first whole granule of a row, or behind the last, goes entry by entry.
  template <bool FIRST, class Visit>
  DEVICE void visit(const Visit &visit) const {
    uint4 *keeps = reinterpret_cast<uint4 *>(dynamic) + threadIdx.x;
    u32 room = kept;
#pragma unroll 1
    for (u32 from = begin; from < end; from += threads * GRANULE) {
      const u32 granules = min_u32((end - from) / GRANULE, threads);
      const u32 rows = threads / granules, below = thread / granules;
      const u32 row = first + below, column = from + (thread - below * granules) * GRANULE;
      const u32 turns = below < rows && row < len ? (len - row + rows - 1) / rows : 0;
      const u32 index = row * len + column, index_step = rows * len;
      u32 turn = 0;
      if (!FIRST) {
        const u32 held = min_u32(turns, room);
#pragma unroll GRANULES
        for (; turn < held; ++turn) {
          const uint4 keys = keeps[turn * BLOCK_THREADS];
          const u32 key[GRANULE] = {keys.x, keys.y, keys.z, keys.w};
          visit(key, index + turn * index_step);
        }
        room -= held;
      }
      const auto take = [&](Granule granule) {
        u32(&key)[GRANULE] = granule.word;
        to_keys(key);
        if (FIRST && room) {
          *keeps = {key[0], key[1], key[2], key[3]};
          keeps += BLOCK_THREADS;
          --room;
        }
        visit(key, index + turn * index_step);
        ++turn;
      };
      // Right of the diagonal a causal map holds nothing but the zeros of its last granules.
      const u32 zeros = causal && column > row ? min_u32((column - row + rows - 1) / rows, turns) : 0;
#pragma unroll 1
      while (turn < zeros) take({});
      const u64 step = rows * row_bytes;
      u64 at = map + (row + turn * rows) * row_bytes + column * 4;
#pragma unroll 1
      while (turn + GRANULES <= turns) {
        Granule granule[GRANULES];
#pragma unroll
        for (u32 g = 0; g < GRANULES; ++g, at += step) granule[g] = load_granule(at);
#pragma unroll
        for (u32 g = 0; g < GRANULES; ++g) take(granule[g]);
      }
      Granule granule[GRANULES - 1];
      const u32 rest = turns - turn;
#pragma unroll
      for (u32 g = 0; g < GRANULES - 1; ++g, at += step) granule[g] = load_granule(at, g < rest);
#pragma unroll
      for (u32 g = 0; g < GRANULES - 1; ++g) {
        if (g < rest) take(granule[g]);
      }
    }
    const u32 before = begin - first, edges = before + len - end, in_rows = edges * (len - first);
#pragma unroll 1
    for (u32 i = thread; i < in_rows; i += threads) {
      const u32 below = i / edges, edge = i - below * edges, row = first + below;
      const u32 column = edge < before ? first + edge : end + edge - before;
      float value = 0.0f;
      if (!causal || column <= row) value = __uint_as_float(load_element<4>(map + row * row_bytes + column * 4));
      const u32 key[1] = {order_key(value) - ZERO_KEY};
      visit(key, row * len + column);
    }
  }
};

// Finds the bin that holds the `wanted`-th entry of those that all blocks have counted, counted from 1. Sums may be as large as 2^32,
// and 0 then.
DEVICE void find_bin(Shared &shared, const u32 *histogram, u32 wanted, u32 blocks) {
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, digit = threadIdx.x * SHARE;
  uint4 counts[MOST_BLOCKS];
#pragma unroll
  for (u32 rank = 0; rank < MOST_BLOCKS; ++rank) {
    counts[rank] = {0, 0, 0, 0};
    if (rank < blocks) counts[rank] = load_peer(reinterpret_cast<const uint4 *>(histogram + digit), rank);
  }
  u32 count[SHARE] = {};
#pragma unroll
  for (u32 rank = 0; rank < MOST_BLOCKS; ++rank) {
    count[0] += counts[rank].x;
    count[1] += counts[rank].y;
    count[2] += counts[rank].z;
    count[3] += counts[rank].w;
  }
  const u32 mine = count[0] + count[1] + count[2] + count[3];
  u32 upto = mine;  // inclusive prefix sum, of the warp's
#pragma unroll
  for (u32 d = 1; d < WARP; d *= 2) {
    const u32 other = __shfl_up_sync(FULL_WARP, upto, d);
    if (lane >= d) upto += other;
  }
  if (lane == WARP - 1) shared.of_warp[warp] = upto;
  __syncthreads();  // the sums of all warps are there
  u32 of_warps = lane < warp ? shared.of_warp[lane] : 0;
#pragma unroll
  for (u32 d = WARP / 2; d; d /= 2) of_warps += __shfl_xor_sync(FULL_WARP, of_warps, d);
  u32 below = of_warps + upto - mine;
#pragma unroll
  for (u32 i = 0; i < SHARE; ++i) {
    if (wanted - 1 - below < count[i]) shared.found = {digit + i, count[i], below, 0};
    below += count[i];
  }
}

// What entries are visited by. The first digit of values, which all have.
struct CountFirst {
  u32 histogram;

  template <u32 KEYS>
  DEVICE void operator()(const u32 (&key)[KEYS], u32) const {
#pragma unroll
    for (u32 e = 0; e < KEYS; ++e) count_shared(histogram, (key[e] + ZERO_KEY) >> (32 - DIGIT_BITS));
  }
};

// The next digit of those that begin with what is known; behind the bins all others.
struct CountNext {
  u32 histogram, base, shift, bins;

  template <u32 KEYS>
  DEVICE void operator()(const u32 (&key)[KEYS], u32) const {
#pragma unroll
    for (u32 e = 0; e < KEYS; ++e) count_shared(histogram, min_u32((key[e] - base) >> shift, bins));
  }
};

// The next digit of the index, of those whose key is known.
struct CountIndex {
  u32 histogram, key_of_all, base, shift, bins;

  template <u32 KEYS>
  DEVICE void operator()(const u32 (&key)[KEYS], u32 index) const {
#pragma unroll
    for (u32 e = 0; e < KEYS; ++e) {
      const u32 digit = min_u32((index + e - base) >> shift, bins);
      count_shared(histogram, key[e] == key_of_all ? digit : bins);
    }
  }
};

// The ranks of the few that begin with what is known.
struct Collect {
  Shared &shared;
  u32 base, bits, index, index_mask;

  template <u32 KEYS>
  DEVICE void operator()(const u32 (&key)[KEYS], u32 first) const {
    u32 least = 0xffffffff;
#pragma unroll
    for (u32 e = 0; e < KEYS; ++e) least = min_u32(least, key[e] - base);
    if (least > bits) return;  // as nearly always
#pragma unroll
    for (u32 e = 0; e < KEYS; ++e) {
      if (key[e] - base <= bits && (((first + e) ^ index) & index_mask) == 0) {
        shared.few[atomicAdd(&shared.collected, 1u)] = {key[e] + ZERO_KEY, first + e};
      }
    }
  }
};

// The `wanted`-th smallest of the `count` ranks that all blocks have collected, in one thread of the first block; 0 in all others.
DEVICE u64 compare(Shared &shared, u32 blocks, u32 wanted, u32 count) {
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (cluster_rank() > 0) return 0;
  // A warp takes what one block has collected.
  if (warp < blocks) {
    const u32 theirs = load_peer(&shared.collected, warp);
    for (u32 i = lane; i < theirs; i += WARP) {
      const u32 index = load_peer(&shared.few[i].index, warp), key = load_peer(&shared.few[i].key, warp);
      shared.rank[atomicAdd(&shared.gathered, 1u)] = u64(key) << 32 | index;
    }
  }
  __syncthreads();  // all ranks are here
  if (threadIdx.x >= count) return 0;
  const u64 mine = shared.rank[threadIdx.x];
  u32 upto = 0;
#pragma unroll 4
  for (u32 i = 0; i < count; ++i) upto += shared.rank[i] <= mine;
  return upto == wanted ? mine : 0;
}

DEVICE void find_cut(const DiscardParams &params, const Place &place) {
  __shared__ Shared shared;
  const u32 item = place.x, layer = place.z, blocks = cluster_blocks();
  const u32 len = params.windows[item].len;
  const bool is_first = cluster_rank() == 0 && threadIdx.x == 0;
  u64 *const cut = params.cuts + (layer * params.batch + item);

  u32 wanted = params.counts[item];
  if (wanted == 0) {
    if (is_first) *cut = 0;
    return;
  }
  for (u32 i = threadIdx.x; i <= BINS; i += BLOCK_THREADS) shared.histogram[0][i] = 0;
  if (threadIdx.x == 0) shared.collected = shared.gathered = 0;
  const u64 map = global_address(params.fused + layer * params.stride_layer + item * params.stride_batch);
  const Slice slice(params, map, len, blocks);
  Known known = {0, 0, 0, 0};
  bool of_value = true;
  u32 unknown = 32;  // bits of the key, and then of the index
  u32 turn = 0;
  __syncthreads();  // nothing is counted yet
#pragma unroll 1
  for (;;) {
    const u32 shift = unknown - min_u32(DIGIT_BITS, unknown), bins = 1 << (unknown - shift);
    const u32 histogram = shared_address(shared.histogram[turn]);
    const u32 base = known.key - ZERO_KEY;
    if (known.key_mask == 0) {
      slice.visit<true>(CountFirst{histogram});
    } else if (of_value) {
      slice.visit<false>(CountNext{histogram, base, shift, bins});
    } else {
      slice.visit<false>(CountIndex{histogram, base, known.index, shift, bins});
    }
    cluster_barrier();  // all are counted, and nobody reads the histogram before this one any more
    for (u32 i = threadIdx.x; i <= BINS; i += BLOCK_THREADS) shared.histogram[turn ^ 1][i] = 0;
    find_bin(shared, shared.histogram[turn], wanted, blocks);
    __syncthreads();  // the bin is found, and the next histogram is empty
    const Bin bin = shared.found;
    turn ^= 1;
    wanted -= bin.below;
    unknown = shift;
    (of_value ? known.key : known.index) |= bin.digit << shift;
    (of_value ? known.key_mask : known.index_mask) = 0xffffffff << shift;
    if (wanted == bin.count) {
      // All of the bin: whatever bits are unknown.
      if (is_first) *cut = u64(known.key | ~known.key_mask) << 32 | (known.index | ~known.index_mask);
      break;
    }
    if (bin.count <= FEW) {
      slice.visit<false>(Collect{shared, known.key - ZERO_KEY, ~known.key_mask, known.index, known.index_mask});
      cluster_barrier();  // all are collected
      const u64 found = compare(shared, blocks, wanted, bin.count);
      if (found) *cut = found;
      break;
    }
    if (unknown == 0) {
      of_value = false;
      unknown = 32 - __clz(len * len - 1);
    }
  }
  cluster_barrier();  // nobody reads what others have counted or collected any more
}

ENTRY(DiscardParams, find_cut, __launch_bounds__(BLOCK_THREADS, 2))
