// score_residual: relevance after a layer of queries and keys: identity r + attention (r fused), from the parts of the
// product that score_rows left, added up in their order. And what the rows sum to, beside what they must.
//
// Grid: x item, y columns, z row. Macros: BLOCK_THREADS, and those of entry.cuh.

#include "entry.cuh"
#include "scores.cuh"

// The sum over all threads of the block, in thread 0.
DEVICE float block_sum(float value) {
  __shared__ float of_warps[BLOCK_THREADS / WARP];
  value = warp_sum(value);
  __syncthreads();  // what was summed before has been read
  if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = value;
  __syncthreads();  // the sums of all warps are there
  float sum = 0.0f;
  for (u32 warp = 0; warp < BLOCK_THREADS / WARP; ++warp) sum += of_warps[warp];
  return sum;
}

DEVICE void add_parts(const ScoreResidualParams &params, const Place &place) {
  const Scores &scores = params.scores;
  // Only the LSE is read, which is of one type.
  const ItemScores<f32> item(scores, 0, place.x);
  const float attention = item.layer.attention, identity = item.layer.identity;
  const u32 index = place.y * BLOCK_THREADS + threadIdx.x;
  // Counted from the window's start; what lies before it is far beyond its end.
  const u32 column = params.out_windowed ? index - item.window_start : index;
  const float *relevance = params.relevance + place.x * params.stride_batch + place.z * params.stride_row;
  Mass mass = {0.0f, 0.0f, 0.0f};
  float after = 0.0f;
  if (column < item.len) {
    const u64 part = u64(scores.batch) * params.rows * scores.sums_len;
    const float *parts = params.partials + (u64(place.x) * params.rows + place.z) * scores.sums_len + column;
    constexpr u32 TOGETHER = 16;  // loads that are on their way at the same time
    for (u32 first = 0; first < params.splits; first += TOGETHER) {
      float of_split[TOGETHER];
#pragma unroll
      for (u32 i = 0; i < TOGETHER; ++i, parts += part) of_split[i] = first + i < params.splits ? *parts : 0.0f;
#pragma unroll
      for (u32 i = 0; i < TOGETHER; ++i) after += of_split[i];
    }
    const float before = relevance[column];
    after *= attention;
    if (before != 0.0f) {
      after += identity * before;
      if (params.masses) {
        const Mass shares = item.shares(column, 0, 1);
        mass.expected = before * (attention * shares.expected + identity);
        mass.magnitude = fabsf(before) * (fabsf(attention) * shares.magnitude + fabsf(identity));
      }
    }
    mass.sum = after;
  }
  if (index < params.out_stride) params.out[(u64(place.x) * params.rows + place.z) * params.out_stride + index] = after;
  if (params.masses) {
    mass = {block_sum(mass.expected), block_sum(mass.magnitude), block_sum(mass.sum)};
    if (threadIdx.x == 0) params.masses[(u64(place.x) * params.rows + place.z) * place.grid_y + place.y] = mass;
  }
}

ENTRY(ScoreResidualParams, add_parts, __launch_bounds__(BLOCK_THREADS))
