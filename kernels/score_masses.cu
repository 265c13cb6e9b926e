// score_masses: what each row of a fused map of queries, keys and a given LSE sums to, and what it must: the shares of the
// heads in which it is not empty. A warp takes a row.
//
// Grid: x item, y rows, z layer. Macros: BLOCK_THREADS, and those of entry.cuh.

#include "entry.cuh"
#include "scores.cuh"

DEVICE void sum_rows(const ScoreMassesParams &params, const Place &place) {
  const Scores &scores = params.scores;
  // Only the LSE is read, which is of one type.
  const ItemScores<f32> item(scores, place.z, place.x);
  const u32 row = place.y * (BLOCK_THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (row >= scores.sums_len) return;
  Mass mass = {0.0f, 0.0f, 0.0f};
  if (row < item.len) {
    mass = item.shares(row, lane, WARP);
    const float *map = params.fused + place.z * params.stride_layer + place.x * params.stride_batch;
    const u32 end = scores.causal ? row + 1 : item.len;
    for (u32 column = lane; column < end; column += WARP) mass.sum += map[row * params.stride_row + column];
  }
  mass = {warp_sum(mass.expected), warp_sum(mass.magnitude), warp_sum(mass.sum)};
  if (lane == 0) params.masses[place.z * params.masses_layer + u64(place.x) * scores.sums_len + row] = mass;
}

ENTRY(ScoreMassesParams, sum_rows, __launch_bounds__(BLOCK_THREADS))
