// run_inputs: what a run is given of each item, its window and its start rows, as the other kernels find it: held to what
// there is, with the number of entries to discard and the weights of the start rows.
//
// Grid: x item, y start rows in turn. Macros: BLOCK_THREADS, and those of entry.cuh.

#include "entry.cuh"

DEVICE int clamp(int value, int least, int most) { return value < least ? least : value > most ? most : value; }

DEVICE void take_inputs(const RunInputsParams &params, const Place &place) {
  const u32 item = place.x;
  const int tokens = int(params.tokens), longest = int(params.max_window);
  const int start = clamp(params.given_windows[2 * item], 0, tokens);
  const int room = tokens - start;
  const int len = clamp(params.given_windows[2 * item + 1], 0, room < longest ? room : longest);
  if (place.y == 0 && threadIdx.x == 0) {
    params.windows[item] = {u32(start), u32(len)};
    if (params.counts) params.counts[item] = params.counts_of[len];
  }
  if (params.weights == nullptr) return;
  const float share = params.mean ? 1.0f / float(len) : 0.0f;
  for (u32 m = place.y; m < params.rows; m += place.grid_y) {
    // An empty window has no row, and no weights.
    int row = len - 1;
    if (params.given_rows) {
      const int given = params.given_rows[u64(item) * params.rows_per_item + m];
      row = clamp(given, len ? 0 : -1, len - 1);
    }
    float *weights = params.weights + (u64(item) * params.rows + m) * params.stride_row;
    for (u32 i = threadIdx.x; i < params.stride_row; i += BLOCK_THREADS) {
      const bool carries = params.mean ? int(i) < len : int(i) == row;
      weights[i] = !carries ? 0.0f : params.mean ? share : 1.0f;
    }
  }
}

ENTRY(RunInputsParams, take_inputs, __launch_bounds__(BLOCK_THREADS))
