// Blocks that run together and reach each other's shared memory (sm_90): CLUSTER of them where a kernel is compiled for
// clusters, as many as the launch says where CLUSTER is 0; 1 is a block alone.
#pragma once

#include "memory.cuh"

#if CLUSTER > 1
#define CLUSTER_BLOCKS __cluster_dims__(1, CLUSTER, 1)
#else
#define CLUSTER_BLOCKS
#endif

#if CLUSTER == 1 || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900)
constexpr bool HAS_CLUSTERS = false;
#else
constexpr bool HAS_CLUSTERS = true;
#endif

// Blocks of this block's cluster, and its number among them.
DEVICE u32 cluster_blocks() {
  u32 blocks = 1;
  if constexpr (HAS_CLUSTERS) asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  return blocks;
}
DEVICE u32 cluster_rank() {
  u32 rank = 0;
  if constexpr (HAS_CLUSTERS) asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of the cluster have come here, and see what the others wrote to shared memory before. In two halves, between
// which a thread need not wait.
DEVICE void cluster_arrive() {
  __syncwarp();  // the barrier is aligned, and the compiler need not bring lanes together before an asm statement
  if constexpr (HAS_CLUSTERS) asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
DEVICE void cluster_wait() {
  __syncwarp();
  if constexpr (HAS_CLUSTERS) {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  } else {
    __syncthreads();
  }
}
DEVICE void cluster_barrier() {
  cluster_arrive();
  cluster_wait();
}

// The shared-memory address of `to` in the block with that rank.
DEVICE u32 peer_address(u32 to, u32 rank) {
  u32 address = to;
  if constexpr (HAS_CLUSTERS) asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(to), "r"(rank));
  return address;
}
DEVICE u32 peer_address(const void *to, u32 rank) { return peer_address(shared_address(to), rank); }

// `from` as the block with that rank has it.
DEVICE float load_peer(const float *from, u32 rank) {
  float value = *from;
  if constexpr (HAS_CLUSTERS) {
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(peer_address(from, rank)) : "memory");
  }
  return value;
}

DEVICE u32 load_peer(const u32 *from, u32 rank) {
  u32 value = *from;
  if constexpr (HAS_CLUSTERS) {
    asm volatile("ld.shared::cluster.b32 %0, [%1];" : "=r"(value) : "r"(peer_address(from, rank)) : "memory");
  }
  return value;
}

DEVICE uint4 load_peer(const uint4 *from, u32 rank) {
  uint4 value = *from;
  if constexpr (HAS_CLUSTERS) {
    asm volatile("ld.shared::cluster.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(peer_address(from, rank))
                 : "memory");
  }
  return value;
}

// Stores 4 bytes in another block of the cluster, which complete on a barrier there. Both are addresses in that block.
template <u32 OFFSET = 0>
DEVICE void send_word(u32 address, u32 word, u32 barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0+%3], %1, [%2];" ::"r"(address), "r"(word),
               "r"(barrier), "n"(OFFSET)
               : "memory");
}
