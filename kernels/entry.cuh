// How a kernel is entered: from one body, called with its parameters and the place of its block, either of two entry
// points.
//   alone:      the parameters are the launch's, and the place is what the built-in variables say.
//   GROUPED:    a launch of many members, each with parameters and a grid of its own, whose blocks follow one another.
//               A block looks its member up, copies that one's parameters to shared memory, adds the addresses that only
//               the run knows, and goes on as a block of a launch of its own.
//
// Macros: KERNEL, GROUPED.
#pragma once

#include "params.cuh"

// Where a block stands in its launch or member, and how many threads work in it.
struct Place {
  u32 x, y, z;
  u32 grid_y;
  u32 threads;
};

// ENTRY(parameters, body, attributes)
#if GROUPED

// The member of a block: the last one that does not begin after it. A warp looks at 32 members at a time.
DEVICE u32 find_member(const GroupParams &group, u32 block) {
  u32 first = 0, count = group.members;
  while (count > 1) {
    const u32 stride = (count + WARP - 1) / WARP, ahead = threadIdx.x % WARP * stride;
    const bool begun = ahead < count && group.member[first + ahead].first_block <= block;
    const u32 skipped = (__popc(__ballot_sync(FULL_WARP, begun)) - 1) * stride;
    first += skipped;
    count = min_u32(stride, count - skipped);
  }
  return first;
}

// Copies a member's parameters to `params`: what thread `thread` of `threads` does of it.
template <class Params>
DEVICE void copy_params(const GroupParams &group, const GroupMember &member, Params &params, u32 thread, u32 threads) {
  u64 *to = reinterpret_cast<u64 *>(&params);
  for (u32 i = thread; i < member.words; i += threads) {
    const GroupWord word = group.word[member.first_word + i];
    to[i] = word.value + group.address[word.address];
  }
}

// Puts the parameters of this block's member into `params`, and returns the block's place in it.
template <class Params>
DEVICE Place take_member(const GroupParams &group, Params &params) {
  const GroupMember member = group.member[find_member(group, blockIdx.x)];
  copy_params(group, member, params, threadIdx.x, blockDim.x);
  __syncthreads();  // the parameters are complete
  const u32 block = blockIdx.x - member.first_block, plane = member.grid_x * member.grid_y;
  return {block % member.grid_x, block % plane / member.grid_x, block / plane, member.grid_y, member.threads};
}

// Members may have fewer threads than the launch: those that are left over leave.
#define ENTRY(PARAMS, BODY, ...)                                                                \
  extern "C" __global__ void __VA_ARGS__ KERNEL(const __grid_constant__ GroupParams group) {    \
    __shared__ PARAMS params;                                                                   \
    const Place place = take_member(group, params);                                             \
    if (threadIdx.x < place.threads) BODY(params, place);                                       \
  }

#else

#define ENTRY(PARAMS, BODY, ...)                                                                \
  extern "C" __global__ void __VA_ARGS__ KERNEL(const __grid_constant__ PARAMS params) {        \
    BODY(params, Place{blockIdx.x, blockIdx.y, blockIdx.z, gridDim.y, blockDim.x});             \
  }

#endif
