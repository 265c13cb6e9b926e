// A ring of stages in shared memory: one warp, the producer, fills it with tiles of maps by copies that run by
// themselves, far ahead; the others take tile after tile. On sm_90 and later each lane starts bulk copies, before that
// the lanes copy granule by granule.
//
// A tile is a few rows of all planes of a layer: the heads of its operands, one after the other. Copies take whole
// granules, so whatever lies in shared memory lies there modulo 16 bytes as in global memory, and the distances from row
// to row and from plane to plane are chosen so: then an entry is found by two additions, whatever the alignment.
#pragma once

#include "mbarrier.cuh"

constexpr u32 MAX_STAGES = 16;
static_assert(MAX_STAGES <= WARP);

// What is read together: `rows` rows from `row` of the slice, `columns` columns from `column` of the window.
struct __align__(16) Tile {
  u32 begin, row_bytes, plane_bytes;  // the first entry, from the begin of the ring; distances to the next row and plane
  u32 operand_bytes;                  // distance from a plane of the first operand to the same of the second
  u32 row;
  u32 rows, column, columns;
  u32 flags;
};
constexpr u32 SUMS_ONLY = 1;    // of rows, for those that are too long to be looked at in one go
constexpr u32 ENDS_PANEL = 2;   // no further rows in these columns
constexpr u32 ENDS_LAYER = 4;

struct Stages {
  u64 full[MAX_STAGES], empty[MAX_STAGES];
  Tile tile[MAX_STAGES];
};

// The place of a warp in the ring.
struct Ring {
  Stages &shared;
  char *data;                // [stages][stage_bytes], a multiple of 16
  u32 stages, stage_bytes;
  u32 stage, parity;

  // `parity` is 0 for those who wait for tiles, 1 for the one who waits for room: all is empty at first.
  DEVICE Ring(Stages &shared, char *data, u32 stages, u32 stage_bytes, u32 parity)
      : shared(shared), data(data), stages(stages), stage_bytes(stage_bytes), stage(0), parity(parity) {}

  // By one warp, before anybody uses the ring.
  DEVICE void init(u32 consumers) const {
    const u32 mine = threadIdx.x % WARP;
    if (mine < stages) {
      barrier_init(&shared.full[mine], COUNTS_BYTES ? WARP : 2 * WARP);
      barrier_init(&shared.empty[mine], consumers);
    }
    barrier_init_fence();
    __syncwarp();
  }

  DEVICE void advance() {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }

  // The next tile, when it is there; and one lane's word that a warp is done with it.
  DEVICE const Tile &take() const {
    barrier_wait(&shared.full[stage], parity);
    return shared.tile[stage];
  }
  DEVICE void release() {
    __syncwarp();
    if (threadIdx.x % WARP == 0) barrier_arrive(&shared.empty[stage]);
    advance();
  }

  // Room for the next tile, when there is; and, when all its copies are started, the end of it.
  DEVICE void wait_for_room() const { barrier_wait(&shared.empty[stage], parity); }
  DEVICE void send() {
    if constexpr (!COUNTS_BYTES) barrier_arrive_copied(&shared.full[stage]);
    barrier_arrive(&shared.full[stage]);
    advance();
  }
};

// Memory that may be touched.
struct Reach {
  u64 begin, end;
};

// Lanes that share the copy of `bytes` bytes, a power of two: one starts a bulk copy, each copies granules.
DEVICE u32 lanes_per_copy(u32 bytes) {
  u32 lanes = 1;
  if constexpr (!COUNTS_BYTES) {
    while (lanes < WARP && lanes * GRANULE_BYTES < bytes) lanes *= 2;
  }
  return lanes;
}

// Copies bytes [first, stop) of a granule, element by element, and zeros in place of the others: no word is left half
// written.
template <u32 BYTES>
DEVICE void copy_elements(u32 to, u64 granule, u32 first, u32 stop) {
#pragma unroll 1
  for (u32 at = 0; at < GRANULE_BYTES; at += BYTES) {
    u32 bits = 0;
    if (at >= first && at < stop) bits = load_element<BYTES>(granule + at);
    if constexpr (BYTES == 2) {
      asm volatile("st.shared.b16 [%0], %1;" ::"r"(to + at), "h"(u16(bits)) : "memory");
    } else {
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(to + at), "r"(bits) : "memory");
    }
  }
}

// Starts the copy of `bytes` bytes, elements of BYTES, by whole granules; `to` equals `from` modulo 16. This is what lane
// `part` of `parts` does of it. Where a granule would leave what may be touched, elements are copied instead, at once.
template <u32 BYTES>
DEVICE void copy_to_stage(const Ring &ring, u32 to, u64 from, u32 bytes, const Reach &reach, u32 part, u32 parts) {
  if (bytes == 0) return;
  const u64 stop = from + bytes, aligned = from & ~u64(GRANULE_BYTES - 1);
  const u32 granules_to = to & ~(GRANULE_BYTES - 1);
  u64 begin = aligned, end = (stop + GRANULE_BYTES - 1) & ~u64(GRANULE_BYTES - 1);
  bool by_element = false;
  if (begin < reach.begin) {
    begin += GRANULE_BYTES;
    by_element = true;
    if (part == 0) copy_elements<BYTES>(granules_to, aligned, to - granules_to, to - granules_to + bytes);
  }
  if (end > reach.end && end > begin) {
    end -= GRANULE_BYTES;
    by_element = true;
    if (part == 0) {
      const u32 before = from < end ? 0 : u32(from - end);
      copy_elements<BYTES>(granules_to + u32(end - aligned), end, before, u32(stop - end));
    }
  }
  if constexpr (COUNTS_BYTES) {
    if (by_element) bulk_fence();  // some time a bulk copy writes to the same place
    if (end > begin) {
      barrier_expect(&ring.shared.full[ring.stage], u32(end - begin));
      copy_bulk(granules_to + u32(begin - aligned), begin, u32(end - begin), &ring.shared.full[ring.stage]);
    }
  } else {
    for (u64 at = begin + part * GRANULE_BYTES; at < end; at += parts * GRANULE_BYTES) {
      copy_granule_async(granules_to + u32(at - aligned), at);
    }
  }
}
