// The items that a block takes, one after the other, as the warps of one role go through them: each role on its own, for
// those who copy are ahead of those who compute.
//
// Macros: GROUPED.
#pragma once

#include "entry.cuh"
#include "memory.cuh"

DEVICE void barrier_of(u32 id, u32 threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
// The same for those who need not wait.
DEVICE void barrier_arrive_of(u32 id, u32 threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// Warps of a block that do the same, and a barrier that they alone use.
struct Role {
  u32 thread, threads;  // the number of this one, and how many there are
  u32 barrier;

  DEVICE void sync() const {
    if (threads == WARP) {
      __syncwarp();
    } else {
      barrier_of(barrier, threads);
    }
  }
};

// The number of the item that a warp is at, in shared memory: between items nobody needs it, and registers are few.
struct Position {
  u32 address;

  DEVICE u32 get() const { return __float_as_uint(load_shared(address)); }
  DEVICE void set(u32 to) const {
    __syncwarp();  // all lanes have read it
    if (threadIdx.x % WARP == 0) store_shared(address, __uint_as_float(to));
    __syncwarp();  // and see it now
  }
};

#if GROUPED

// All items of all members are one queue. Of the blocks that share a multiprocessor, Roles::sharing(), every second one goes
// through its own from the end: while it has many small ones, which wait for one thing after the other, its neighbours have
// large ones, which memory has to bring. Parameters are copied to shared memory, for each role, of which Roles::mine() is
// this thread's.
template <class Params, class Roles>
struct Items {
  const GroupParams &group;
  Params &params;
  const Position position;

  DEVICE Items(const GroupParams &group, Params &params, u32 address) : group(group), params(params), position({address}) {
    u32 first = blockIdx.x;
    if (backward()) first += (items() - 1 - first) / gridDim.x * gridDim.x;
    position.set(first);
    load();
  }
  DEVICE bool more() const { return position.get() < items(); }  // before the first, too, for it wraps around
  DEVICE void advance() {
    position.set(position.get() + (backward() ? 0 - gridDim.x : gridDim.x));
    if (more()) load();
  }
  DEVICE u32 item() const { return position.get() - group.member[find_member(group, position.get())].first_block; }
  DEVICE u32 block() const { return 0; }

 private:
  DEVICE static bool backward() { return blockIdx.x * Roles::sharing() / gridDim.x % 2; }
  DEVICE u32 items() const {
    const GroupMember &last = group.member[group.members - 1];
    return last.first_block + last.grid_x;
  }
  DEVICE void load() {
    const Role role = Roles::mine();
    copy_params(group, group.member[find_member(group, position.get())], params, role.thread, role.threads);
    role.sync();  // the parameters are complete
  }
};
template <class Params>
using Launched = GroupParams;

#else

// A set of blocks takes every item that is as far from its own number as there are sets.
template <class Params, class Roles>
struct Items {
  const Params &params;
  const Position position;

  DEVICE Items(const Params &params, const Params &, u32 address) : params(params), position({address}) {
    position.set(blockIdx.x);
  }
  DEVICE bool more() const { return position.get() < params.maps.batch; }
  DEVICE void advance() { position.set(position.get() + gridDim.x); }
  DEVICE u32 item() const { return position.get(); }
  DEVICE u32 block() const { return blockIdx.y; }
};
template <class Params>
using Launched = Params;

#endif
