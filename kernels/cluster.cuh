// CLUSTER blocks that run together and reach each other's shared memory (sm_90), or 1: a block alone.
#pragma once

#include "memory.cuh"

#if CLUSTER > 1
#define CLUSTER_BLOCKS __cluster_dims__(CLUSTER, 1, 1)
#else
#define CLUSTER_BLOCKS
#endif

// This block's number in its cluster.
DEVICE u32 cluster_rank() {
  u32 rank = 0;
  if constexpr (CLUSTER > 1) asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of the cluster have come here, and see what the others wrote to shared memory before.
DEVICE void cluster_barrier() {
  if constexpr (CLUSTER > 1) {
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
  } else {
    __syncthreads();
  }
}

DEVICE void store_peer(u32 address, float value) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}
DEVICE void store_peer(u32 address, uint2 value) {
  asm volatile("st.shared::cluster.v2.b32 [%0], {%1, %2};" ::"r"(address), "r"(value.x), "r"(value.y) : "memory");
}
DEVICE void store_peer(u32 address, uint4 value) {
  asm volatile("st.shared::cluster.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(value.x), "r"(value.y),
               "r"(value.z), "r"(value.w)
               : "memory");
}

// Writes to `to`, a place in shared memory, in every block of the cluster.
template <class Value>
DEVICE void store_everywhere(Value *to, Value value) {
  if constexpr (CLUSTER > 1) {
    const u32 own = shared_address(to);
#pragma unroll
    for (u32 rank = 0; rank < CLUSTER; ++rank) {
      u32 address;
      asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(own), "r"(rank));
      store_peer(address, value);
    }
  } else {
    *to = value;
  }
}
