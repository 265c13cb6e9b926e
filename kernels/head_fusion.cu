// head_fusion: fused maps of a launch's layers, in f32 and in window coordinates, for kernels that read a map more than
// once. Each row is filled with zeros up to a multiple of 4 entries, so that it can be read in 16-byte granules; of
// causal maps, up to the granule of the diagonal.
//
// SPLIT: in f16 `hi + lo`, for split_product, filled up to a multiple of 8 entries.
//
// A thread fuses two entries side by side of two rows, and asks for those of HEADS_IN_FLIGHT heads before it adds the
// first. Entries are loaded one by one, wherever they lie: heads and rows of odd length have alignments of their own, and
// to shift wide loads into place takes more instructions than narrow loads do. Lanes are adjacent, so L1 asks for each
// sector once. Little is kept in registers, so that a multiprocessor has all its threads, and most of what they ask for is on
// its way while others add.
//
// Grid: x item, y pairs of a map's rows, z layer. Macros: ELEMENT, FUSION, GRADIENTS, SPLIT, HEADS_IN_FLIGHT, BLOCK_THREADS, and
// those of entry.cuh.

#include "entry.cuh"
#include "folds.cuh"
#include "item_maps.cuh"
#include "mma.cuh"

using LayerItem = ItemMaps<ELEMENT, GRADIENTS>;

constexpr u32 FILLED = SPLIT ? 8 : 4;  // entries of 16 bytes
constexpr u32 ROWS = 2, PAIR = 2;      // of a thread: entries side by side in rows one below the other

// Threads of a multiprocessor: all that it can have, but that gradients, and parameters in shared memory, take registers.
#if GROUPED || __CUDA_ARCH__ == 750
constexpr u32 THREADS = 1024;
#elif !GRADIENTS && (__CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000)
constexpr u32 THREADS = 2048;
#else
constexpr u32 THREADS = 1536;
#endif

// RUNS runs of LEN entries side by side each, while heads are added.
template <u32 RUNS, u32 LEN>
struct Entries {
  const LayerItem &of;
  const Weighing weighing;
  u64 at[RUNS];  // of the next head
  float fused[RUNS][LEN];

  DEVICE explicit Entries(const LayerItem &of) : of(of), weighing(of.maps.rectify_fused) {
#pragma unroll
    for (u32 i = 0; i < RUNS * LEN; ++i) fused[i / LEN][i % LEN] = FUSION::start();
  }

  // Puts a run where it begins.
  DEVICE void begin(u32 run, u32 row, u32 column) { at[run] = of.origin + row * of.stride_row + column * ELEMENT::BYTES; }

  // Adds all heads, so many at a time.
  template <u32 HEADS>
  DEVICE void fuse() {
    u32 head = 0;
#pragma unroll 1
    for (; head + HEADS <= of.maps.heads; head += HEADS) add<HEADS>(head);
    add_rest<HEADS - 1>(head);
#pragma unroll
    for (u32 i = 0; i < RUNS * LEN; ++i) {
      float &x = fused[i / LEN][i % LEN];
      x = FUSION::finish(x, of.maps.head_scale);
      if constexpr (GRADIENTS) x = weighing.finish(x);
    }
  }

 private:
  // Adds heads [head, head + HEADS).
  template <u32 HEADS>
  DEVICE void add(u32 head) {
    constexpr u32 TENSORS = GRADIENTS ? 2 : 1;
    u32 entry[TENSORS][HEADS][RUNS][LEN];
#pragma unroll
    for (u32 k = 0; k < HEADS; ++k) {
#pragma unroll
      for (u32 run = 0; run < RUNS; ++run) {
        load(entry[0][k][run], at[run]);
        if constexpr (GRADIENTS) load(entry[1][k][run], at[run] + of.to_gradients);
        at[run] += of.stride_head;
      }
    }
#pragma unroll
    for (u32 k = 0; k < HEADS; ++k) {
      const float weight = head_weight<FUSION>(of.maps, head + k);
#pragma unroll
      for (u32 run = 0; run < RUNS; ++run) {
#pragma unroll
        for (u32 e = 0; e < LEN; ++e) {
          float value = ELEMENT::from_bits(entry[0][k][run][e]);
          if constexpr (GRADIENTS) value = weighing.weigh(value, ELEMENT::from_bits(entry[1][k][run][e]));
          fused[run][e] = FUSION::add(fused[run][e], value, weight);
        }
      }
    }
  }

  // Adds the heads from `head` on, at most HEADS.
  template <u32 HEADS>
  DEVICE void add_rest(u32 head) {
    if constexpr (HEADS > 0) {
      if (of.maps.heads - head == HEADS) {
        add<HEADS>(head);
      } else {
        add_rest<HEADS - 1>(head);
      }
    }
  }

  template <u32 FIRST = 0>
  DEVICE static void load(u32 (&bits)[LEN], u64 from) {
    if constexpr (FIRST < LEN) {
      bits[FIRST] = load_element<ELEMENT::BYTES, FIRST * ELEMENT::BYTES>(from);
      load<FIRST + 1>(bits, from);
    }
  }
};

// Two entries of a row, which takes `stride_row` times 4 bytes.
DEVICE void store(float *row, u32 column, i64 stride_row, const float (&x)[PAIR]) {
  if constexpr (SPLIT) {
    u32 high, low;
    SplitF16::split(x[0], x[1], high, low);
    u16 *to = reinterpret_cast<u16 *>(row) + column;
    *reinterpret_cast<u32 *>(to) = high;
    *reinterpret_cast<u32 *>(to + stride_row) = low;
  } else {
    *reinterpret_cast<float2 *>(row + column) = {x[0], x[1]};
  }
}

DEVICE void fuse_heads(const HeadFusionParams &params, const Place &place) {
  const Maps &maps = params.maps;
  const u32 item = place.x, layer = place.z;
  const Window window = maps.windows[item];
  if (window.len == 0) return;
  const LayerItem of(maps, layer, item, window.start);
  float *fused_map = params.fused + layer * params.stride_layer + item * params.stride_batch;

  const u32 pairs = (window.len + FILLED - 1) / FILLED * (FILLED / PAIR);  // of a row
  const u32 stride = place.grid_y * BLOCK_THREADS;                         // at most 2^24
  u32 turn = place.y * BLOCK_THREADS + threadIdx.x, rows = turn / pairs, pair = turn - rows * pairs;
  while (rows * ROWS < window.len) {
    const u32 first_row = rows * ROWS, column = pair * PAIR;
    const auto row_end = [&](u32 row) { return maps.causal ? row + 1 : window.len; };
    // What lies beyond the end of a row, or is a row too many, is not loaded: what is there is loaded again instead.
    const auto row_of = [&](u32 r) { return min_u32(first_row + r, window.len - 1); };
    float fused[ROWS][PAIR];
    if (row_end(first_row) >= PAIR) {
      Entries<ROWS, PAIR> entries(of);
      u32 before[ROWS];
#pragma unroll
      for (u32 r = 0; r < ROWS; ++r) {
        const u32 from = min_u32(column, row_end(row_of(r)) - PAIR);
        before[r] = column - from;
        entries.begin(r, row_of(r), from);
      }
      entries.fuse<HEADS_IN_FLIGHT>();
#pragma unroll
      for (u32 r = 0; r < ROWS; ++r) {
        const float x = entries.fused[r][0], y = entries.fused[r][1];
        fused[r][0] = before[r] == 0 ? x : before[r] == 1 ? y : 0.0f;
        fused[r][1] = before[r] == 0 ? y : 0.0f;
      }
    } else {
      Entries<ROWS * PAIR, 1> entries(of);
#pragma unroll
      for (u32 i = 0; i < ROWS * PAIR; ++i) {
        const u32 row = row_of(i / PAIR);
        entries.begin(i, row, min_u32(column + i % PAIR, row_end(row) - 1));
      }
      entries.fuse<1>();
#pragma unroll
      for (u32 i = 0; i < ROWS * PAIR; ++i) {
        fused[i / PAIR][i % PAIR] = column + i % PAIR < row_end(row_of(i / PAIR)) ? entries.fused[i][0] : 0.0f;
      }
    }
    float *out = fused_map + first_row * params.stride_row;
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r) {
      const u32 row = first_row + r;
      const u32 filled = (row_end(row) + FILLED - 1) / FILLED * FILLED;
      if (row < window.len && column < filled) store(out + r * params.stride_row, column, params.stride_row, fused[r]);
    }
    if (u64((window.len + ROWS - 1) / ROWS) * pairs <= stride) break;  // one turn for each thread
    turn = pair + stride;
    const u32 below = turn / pairs;
    rows += below;
    pair = turn - below * pairs;
  }
}

ENTRY(HeadFusionParams, fuse_heads, __launch_bounds__(BLOCK_THREADS, THREADS / BLOCK_THREADS))
