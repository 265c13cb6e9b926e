// Loads and stores by address space. Maps are read-only while a kernel runs, so they come through the non-coherent
// path; a pointer found in a parameter struct would otherwise compile to a generic load.
#pragma once

#include "types.cuh"

DEVICE u64 global_address(const void *pointer) { return __cvta_generic_to_global(pointer); }

// 16 bytes from a multiple of 16.
DEVICE Granule load_granule(u64 address) {
  Granule g;
  asm("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];"
      : "=r"(g.word[0]), "=r"(g.word[1]), "=r"(g.word[2]), "=r"(g.word[3])
      : "l"(address));
  return g;
}

// 16 bytes from a multiple of 16; zeros where not `wanted`. Predicated inside the asm: without a branch, several loads
// stay in flight.
DEVICE Granule load_granule(u64 address, bool wanted) {
  Granule g;
  asm("{\n\t"
      ".reg .pred wanted;\n\t"
      "setp.ne.u32 wanted, %5, 0;\n\t"
      "mov.b32 %0, 0;\n\t"
      "mov.b32 %1, 0;\n\t"
      "mov.b32 %2, 0;\n\t"
      "mov.b32 %3, 0;\n\t"
      "@wanted ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];\n\t"
      "}"
      : "=&r"(g.word[0]), "=&r"(g.word[1]), "=&r"(g.word[2]), "=&r"(g.word[3])
      : "l"(address), "r"(u32(wanted)));
  return g;
}

// 8 bytes from a multiple of 8; zeros where not `wanted`, without a branch as before.
struct Words {
  u32 word[2];
};
DEVICE Words load_words(u64 address, bool wanted) {
  Words words;
  asm("{\n\t"
      ".reg .pred wanted;\n\t"
      "setp.ne.u32 wanted, %3, 0;\n\t"
      "mov.b32 %0, 0;\n\t"
      "mov.b32 %1, 0;\n\t"
      "@wanted ld.global.nc.v2.b32 {%0, %1}, [%2];\n\t"
      "}"
      : "=&r"(words.word[0]), "=&r"(words.word[1])
      : "l"(address), "r"(u32(wanted)));
  return words;
}

// The bits of one element of `BYTES` bytes, `OFFSET` bytes from an address.
template <u32 BYTES, u32 OFFSET = 0>
DEVICE u32 load_element(u64 address) {
  u32 bits;
  if constexpr (BYTES == 2) {
    u16 half;
    asm("ld.global.nc.b16 %0, [%1+%2];" : "=h"(half) : "l"(address), "n"(OFFSET));
    bits = half;
  } else {
    asm("ld.global.nc.b32 %0, [%1+%2];" : "=r"(bits) : "l"(address), "n"(OFFSET));
  }
  return bits;
}

DEVICE u32 shared_address(const void *pointer) { return u32(__cvta_generic_to_shared(pointer)); }

// Starts a copy of a granule to shared memory. Both addresses are multiples of 16. sm_80.
DEVICE void copy_granule_async(u32 to, u64 from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// The same; zeros where it is not `wanted`, and nothing is read then.
DEVICE void copy_granule_or_zeros(u32 to, u64 from, bool wanted) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(wanted ? GRANULE_BYTES : 0)
               : "memory");
}

// The same of 4 or 8 bytes, both addresses multiples of that.
template <u32 BYTES>
DEVICE void copy_or_zeros(u32 to, u64 from, bool wanted) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(BYTES), "r"(wanted ? BYTES : 0)
               : "memory");
}

// 4 bytes of shared memory, at an address that is no pointer: the compiler keeps those in registers.
DEVICE float load_shared(u32 from) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(from) : "memory");
  return value;
}
// The same, a word or a half of one as it lies, OFFSET bytes from an address.
template <int OFFSET>
DEVICE u32 load_shared_word(u32 from) {
  u32 word;
  asm volatile("ld.shared.b32 %0, [%1+%2];" : "=r"(word) : "r"(from), "n"(OFFSET) : "memory");
  return word;
}
template <int OFFSET>
DEVICE u32 load_shared_half(u32 from) {
  u16 half;
  asm volatile("ld.shared.b16 %0, [%1+%2];" : "=h"(half) : "r"(from), "n"(OFFSET) : "memory");
  return half;
}
// 16 bytes, OFFSET bytes from an address, both multiples of 16.
template <u32 OFFSET>
DEVICE void load_shared(float (&value)[4], u32 from) {
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4+%5];"
               : "=f"(value[0]), "=f"(value[1]), "=f"(value[2]), "=f"(value[3])
               : "r"(from), "n"(OFFSET)
               : "memory");
}
DEVICE void store_shared(u32 to, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(value) : "memory");
}

// 16 bytes to shared memory.
DEVICE void store_shared_granule(u32 to, const Granule &g) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(g.word[0]), "r"(g.word[1]), "r"(g.word[2]),
               "r"(g.word[3])
               : "memory");
}

// Closes a group of this thread's copies; waits until at most PENDING groups are on their way.
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <u32 PENDING>
DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Adds 1 to a word of an array in shared memory.
DEVICE void count_shared(u32 array, u32 index) {
  asm volatile(
      "{\n\t"
      ".reg .b32 at;\n\t"
      "mad.lo.u32 at, %1, 4, %0;\n\t"
      "red.shared.add.u32 [at], 1;\n\t"
      "}" ::"r"(array),
      "r"(index)
      : "memory");
}
