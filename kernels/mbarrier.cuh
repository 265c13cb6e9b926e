// Barriers in shared memory, which count the arrivals of threads and, on sm_90, the bytes of copies that complete on them.
// A wait is for the phase with a parity, 0 first; a barrier may be one phase ahead of who waits for it. sm_80.
#pragma once

#include "memory.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool COUNTS_BYTES = true;
#else
constexpr bool COUNTS_BYTES = false;
#endif

// A phase ends with so many arrivals. Other threads may use the barrier after a barrier of the block or the cluster.
DEVICE void barrier_init(u64 *barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// What this thread initialised can be used by copies, and by other blocks of the cluster.
DEVICE void barrier_init_fence() {
  if constexpr (COUNTS_BYTES) asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

DEVICE void barrier_arrive(u64 *barrier) {
  [[maybe_unused]] u64 state;
  asm volatile("mbarrier.arrive.shared.b64 %0, [%1];" : "=l"(state) : "r"(shared_address(barrier)) : "memory");
}

// The phase also waits for so many bytes.
DEVICE void barrier_expect(u64 *barrier, u32 bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Waits for the end of a phase, and sees what came before it in this block.
DEVICE void barrier_wait(u64 *barrier, u32 parity) {
  u32 done = 0;
  while (!done) {
    if constexpr (COUNTS_BYTES) {
      asm volatile(
          "{\n\t"
          ".reg .pred done;\n\t"
          "mbarrier.try_wait.parity.shared.b64 done, [%1], %2;\n\t"
          "selp.u32 %0, 1, 0, done;\n\t"
          "}"
          : "=r"(done)
          : "r"(shared_address(barrier)), "r"(parity)
          : "memory");
    } else {
      asm volatile(
          "{\n\t"
          ".reg .pred done;\n\t"
          "mbarrier.test_wait.parity.shared.b64 done, [%1], %2;\n\t"
          "selp.u32 %0, 1, 0, done;\n\t"
          "}"
          : "=r"(done)
          : "r"(shared_address(barrier)), "r"(parity)
          : "memory");
    }
  }
}

// The same, for what other blocks of the cluster wrote. sm_90.
DEVICE void barrier_wait_cluster(u64 *barrier, u32 parity) {
  u32 done = 0;
  while (!done) {
    asm volatile(
        "{\n\t"
        ".reg .pred done;\n\t"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2;\n\t"
        "selp.u32 %0, 1, 0, done;\n\t"
        "}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  }
}

// Starts a copy to shared memory that completes on `barrier`: a multiple of 16 bytes between multiples of 16. sm_90.
DEVICE void copy_bulk(u32 to, u64 from, u32 bytes, u64 *barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}

// What this thread wrote to shared memory comes before bulk copies that are started after it. sm_90.
DEVICE void bulk_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// An arrival when all copies by granule that this thread has started are complete.
DEVICE void barrier_arrive_copied(u64 *barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}
