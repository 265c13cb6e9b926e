// run_inputs: what a run is given of each item, its window and its start row, as the other kernels find it: held to what
// there is, with the number of entries to discard and the weights of the start row.
//
// Grid: x item. Macros: BLOCK_THREADS, and those of entry.cuh.

#include "entry.cuh"

DEVICE int clamp(int value, int least, int most) { return value < least ? least : value > most ? most : value; }

DEVICE void take_inputs(const RunInputsParams &params, const Place &place) {
  const u32 item = place.x;
  const int tokens = int(params.tokens), longest = int(params.max_window);
  const int start = clamp(params.given_windows[2 * item], 0, tokens);
  const int room = tokens - start;
  const int len = clamp(params.given_windows[2 * item + 1], 0, room < longest ? room : longest);
  if (threadIdx.x == 0) {
    params.windows[item] = {u32(start), u32(len)};
    if (params.counts) params.counts[item] = params.counts_of[len];
  }
  if (params.weights == nullptr) return;
  // An empty window has no row, and no weights.
  int row = len - 1;
  if (params.given_rows) row = clamp(params.given_rows[item], len ? 0 : -1, len - 1);
  const float share = params.mean ? 1.0f / float(len) : 0.0f;
  float *weights = params.weights + u64(item) * params.stride_item;
  for (u32 i = threadIdx.x; i < params.stride_item; i += BLOCK_THREADS) {
    const bool carries = params.mean ? int(i) < len : int(i) == row;
    weights[i] = !carries ? 0.0f : params.mean ? share : 1.0f;
  }
}

ENTRY(RunInputsParams, take_inputs, __launch_bounds__(BLOCK_THREADS))
