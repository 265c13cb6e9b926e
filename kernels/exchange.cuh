// What the blocks of an item tell each other after a layer: each sends every other one its sums of the columns which that
// one will need as rows, and adds up what it is sent, in the order of the senders, so that results repeat to the bit.
//
//   one block:  nothing travels.
//   a cluster:  stores to the shared memory of the other block, which count as bytes on its barrier. sm_90.
//   words:      through L2: 8 bytes hold a value and the number of the exchange, so that whoever reads them knows
//               whether they are the ones it waits for. No fence, no atomic, one way. All blocks of an item must run
//               at the same time.
//
// Two buffers, used in turns, suffice: nobody can send for an exchange before it has all of the one before, and what is
// sent to it for that one is sent by blocks that have read the one before that.
#pragma once

#include "cluster.cuh"
#include "mbarrier.cuh"

// 8 bytes that others see whole.
DEVICE void store_word(u64 to, float value, u32 number) {
  asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(to),
               "l"(u64(number) << 32 | __float_as_uint(value))
               : "memory");
}
DEVICE u64 load_word(u64 from) {
  u64 word;
  asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
  return word;
}

// Words that a lane waits for at a time.
constexpr u32 WORDS_IN_FLIGHT = 5;
constexpr u32 LOG_WARP = 5;
static_assert(1 << LOG_WARP == WARP);

// Adds to `total` the values of the words of exchange `number` at the places `place(0)`, `place(1)`, ..., in their order: as
// many as a lane waits for at a time, of those that it has. Waits until those of all lanes of the warp are there.
template <class Has, class PlaceOf>
DEVICE void add_values(float &total, u32 number, const Has &has, const PlaceOf &place) {
  u64 word[WORDS_IN_FLIGHT];
  bool complete;
  do {
    complete = true;
#pragma unroll
    for (u32 w = 0; w < WORDS_IN_FLIGHT; ++w) word[w] = has(w) ? load_word(place(w)) : u64(number) << 32;
#pragma unroll
    for (u32 w = 0; w < WORDS_IN_FLIGHT; ++w) complete &= u32(word[w] >> 32) == number;
  } while (!__all_sync(FULL_WARP, complete));
#pragma unroll
  for (u32 w = 0; w < WORDS_IN_FLIGHT; ++w) total += __uint_as_float(u32(word[w]));
}

// The sum of `count` floats of shared memory that lie `stride` bytes apart, in their order. Four loads at a time do not wait
// for each other.
DEVICE float ordered_sum(u32 from, u32 stride, u32 count) {
  float total = 0.0f;
#pragma unroll 1
  for (; count >= 4; count -= 4, from += 4 * stride) {
    const float first = load_shared(from), second = load_shared(from + stride);
    const float third = load_shared(from + 2 * stride), fourth = load_shared(from + 3 * stride);
    total = total + first + second + third + fourth;
  }
  float rest[3] = {};
#pragma unroll
  for (u32 i = 0; i < 3; ++i) {
    if (i < count) rest[i] = load_shared(from + i * stride);
  }
#pragma unroll
  for (u32 i = 0; i < 3; ++i) total += rest[i];
  return total;
}

// How the blocks of an item reach each other.
enum class Way : u32 { ALONE, STORES, WORDS };

struct Exchange {
  Way way;
  u32 blocks;           // of the item
  u32 start_rows;
  u32 most_rows;        // of a slice
  u32 number;           // exchanges before the one that is sent for
  u32 turn;             // from the first buffer to the one that is sent to, in bytes: 0, or all of a buffer
  u32 buffer_bytes;
  u32 inbox;            // of a cluster: [2][blocks][start_rows][most_rows], shared
  u64 *received;        // of a cluster: [2]
  u64 words;            // where words are the way: [2][blocks to][start_rows][most_rows][blocks from]
  u32 entries;          // [start_rows][most_rows]
  u32 block;            // this one's number
  u32 log_share;        // lanes that share the words of a row

  DEVICE Exchange(u32 blocks, u32 block, u32 start_rows, u32 most_rows, float *inbox, u64 *received, u64 *words, u32 number)
      : way(words ? Way::WORDS : blocks > 1 ? Way::STORES : Way::ALONE), blocks(blocks), start_rows(start_rows),
        most_rows(most_rows), number(number), inbox(shared_address(inbox)), received(received),
        words(words ? global_address(words) : 0), block(block), log_share(0) {
    entries = start_rows * most_rows;
    buffer_bytes = entries * blocks * (way == Way::WORDS ? blocks * 8 : 4);
    turn = number % 2 ? buffer_bytes : 0;
    while (log_share < LOG_WARP && WORDS_IN_FLIGHT << log_share < blocks) ++log_share;
  }

  // To the next exchange.
  DEVICE void advance() {
    ++number;
    turn = buffer_bytes - turn;
  }

  // Where the first start row's sum goes which block `to` needs as its row `row`: an index where one block has the item,
  // a word, or an entry of the inbox there with the barrier that counts it.
  DEVICE u64 place(u32 to, u32 row) const {
    if (way == Way::ALONE) return row;
    if (way == Way::WORDS) return words + (turn + ((to * entries + row) * blocks + block) * 8);
    const u32 entry = inbox + turn + (block * entries + row) * 4;
    return u64(peer_address(&received[number % 2], to)) << 32 | peer_address(entry, to);
  }

  // Sends the sum of start row `m` to a place. `next` is [start_rows][most_rows], as `receive` fills it.
  DEVICE void send(u64 place, u32 m, float sum, float *next) const {
    if (way == Way::ALONE) {
      next[m * most_rows + u32(place)] = sum;
    } else if (way == Way::WORDS) {
      store_word(place + m * most_rows * blocks * 8, sum, number + 1);
    } else if constexpr (HAS_CLUSTERS) {
      send_word(u32(place) + m * most_rows * 4, __float_as_uint(sum), u32(place >> 32));
    }
  }

  // Adds up what all blocks have sent for `rows` rows in the exchange before the one that is sent for. This is what warp
  // `warp` of `warps` does of it, of which the first `busy` come last. The caller synchronises them afterwards.
  DEVICE void receive(u32 rows, float *next, u32 warp, u32 warps, u32 busy) const {
    warp += warps - busy;
    if (warp >= warps) warp -= warps;
    if (way == Way::WORDS) {
      add_words(rows, next, warps, warp);
    } else if constexpr (HAS_CLUSTERS) {
      if (way == Way::STORES) add_inbox(rows, next, warps, warp);
    }
  }

 private:
  DEVICE void add_inbox(u32 rows, float *next, u32 warps, u32 warp) const {
    const u32 thread = warp * WARP + threadIdx.x % WARP, before = number - 1;
    u64 *const barrier = &received[before % 2];
    if (thread == 0) {
      barrier_expect(barrier, rows * start_rows * blocks * 4);
      barrier_arrive(barrier);
    }
    if (thread >= rows) return;
    barrier_wait_cluster(barrier, before / 2 % 2);
    for (u32 row = thread; row < rows; row += warps * WARP) {
      for (u32 m = 0; m < start_rows; ++m) {
        const u32 entry = m * most_rows + row;
        next[entry] = ordered_sum(inbox + (buffer_bytes - turn) + entry * 4, entries * 4, blocks);
      }
    }
  }

  // Lanes share the senders of a row, so that one round trip serves all.
  DEVICE void add_words(u32 rows, float *next, u32 warps, u32 warp) const {
    const u32 share = 1 << log_share, at_once = WARP >> log_share;
    for (u32 base = warp * at_once; base < entries; base += warps * at_once) {
      const u32 lane = unknown(threadIdx.x % WARP), part = lane & (share - 1), entry = base + (lane >> log_share);
      u32 row = entry;
      if (start_rows > 1) row = entry % most_rows;
      const bool wanted = entry < entries && row < rows;
      const u64 mine = words + ((buffer_bytes - turn) + ((block * entries + entry) * blocks + part) * 8);
      float total = 0.0f;
      for (u32 first = 0; first < blocks; first += share * WORDS_IN_FLIGHT) {
        const auto has = [&](u32 w) { return wanted && first + w * share + part < blocks; };
        add_values(total, number, has, [&](u32 w) { return mine + (first + w * share) * 8; });
      }
#pragma unroll
      for (u32 d = 1; d < WARP; d *= 2) {
        if (d == share) break;
        total += __shfl_xor_sync(FULL_WARP, total, d);
      }
      if (wanted && part == 0) next[entry] = total;
    }
  }
};
