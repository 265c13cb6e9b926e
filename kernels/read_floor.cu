// read_floor: reads memory once and does nothing else, the least that any kernel over the same bytes can take. Not part
// of any rollout: `attention-rollout bench` and the benchmarks compare with it.
//
// Grid: x any number of blocks, which take tiles in turn. Macros: none; blocks have at most 256 threads.

#include "memory.cuh"

// 16-byte loads of one thread that are on their way together.
constexpr u32 IN_FLIGHT = 8;

// Reads `granules` granules from `first`, a multiple of 16. Writes nothing: only where a thread's bits happen to fold to
// `unlikely`, which the compiler cannot know, they go to `out`, so that every load has to be done.
extern "C" __global__ void __launch_bounds__(256) read_floor(u64 first, u64 granules, u32 unlikely, u32 *out) {
  const u64 tile = u64(blockDim.x) * IN_FLIGHT;
  u32 folded = 0;
  for (u64 start = blockIdx.x * tile + threadIdx.x; start < granules; start += gridDim.x * tile) {
    Granule g[IN_FLIGHT];
#pragma unroll
    for (u32 i = 0; i < IN_FLIGHT; ++i) {
      const u64 index = start + i * blockDim.x;
      g[i] = load_granule(first + index * GRANULE_BYTES, index < granules);
    }
#pragma unroll
    for (u32 i = 0; i < IN_FLIGHT; ++i) folded ^= g[i].word[0] ^ g[i].word[1] ^ g[i].word[2] ^ g[i].word[3];
  }
  if (folded == unlikely) *out = folded;
}
