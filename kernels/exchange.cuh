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
DEVICE void store_word(u64 *to, float value, u32 number) {
  asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(global_address(to)),
               "l"(u64(number) << 32 | __float_as_uint(value))
               : "memory");
}
DEVICE u64 load_word(const u64 *from) {
  u64 word;
  asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(word) : "l"(global_address(from)) : "memory");
  return word;
}

// Words that a lane waits for at a time.
constexpr u32 WORDS_IN_FLIGHT = 5;
constexpr u32 LOG_WARP = 5;
static_assert(1 << LOG_WARP == WARP);

struct Exchange {
  u32 blocks, block;    // of the item, and this one's number
  u32 start_rows;
  u32 most_rows;        // of a slice
  float *inbox;         // of a cluster: [2][blocks][start_rows][most_rows], shared
  u64 *received;        // of a cluster: [2]
  u64 *words;           // [2][blocks to][blocks from][start_rows][most_rows]; null where words are not the way
  u32 number;           // exchanges before this one

  DEVICE u32 turn() const { return number % 2; }
  DEVICE u32 place(u32 from, u32 m, u32 row) const { return (from * start_rows + m) * most_rows + row; }
  DEVICE u64 *words_to(u32 to) const {
    return words + (u64(turn()) * blocks + to) * blocks * start_rows * most_rows;
  }

  // Sends a sum to the block that needs it as its row `row`. `next` is [start_rows][most_rows], as `receive` fills it.
  DEVICE void send(u32 to, u32 m, u32 row, float sum, float *next) const {
    if (blocks == 1) {
      next[place(0, m, row)] = sum;
    } else if (words) {
      store_word(words_to(to) + place(block, m, row), sum, number + 1);
    } else if constexpr (HAS_CLUSTERS) {
      float *inbox_turn = inbox + turn() * blocks * start_rows * most_rows;
      send_word(peer_address(inbox_turn + place(block, m, row), to), __float_as_uint(sum),
                peer_address(&received[turn()], to));
    }
  }

  // Adds up what all blocks have sent for `rows` rows. By `threads` threads that have all sent; the caller synchronises
  // them afterwards.
  DEVICE void receive(u32 rows, float *next, u32 threads) {
    if (blocks > 1) {
      if (words) {
        add_words(rows, next, threads);
      } else if constexpr (HAS_CLUSTERS) {
        add_inbox(rows, next, threads);
      }
    }
    ++number;
  }

 private:
  DEVICE void add_inbox(u32 rows, float *next, u32 threads) const {
    if (threadIdx.x == 0) {
      barrier_expect(&received[turn()], rows * start_rows * blocks * 4);
      barrier_arrive(&received[turn()]);
    }
    barrier_wait_cluster(&received[turn()], number / 2 % 2);
    const float *inbox_turn = inbox + turn() * blocks * start_rows * most_rows;
    for (u32 m = 0; m < start_rows; ++m) {
      for (u32 row = threadIdx.x; row < rows; row += threads) {
        float total = 0.0f;
        for (u32 from = 0; from < blocks; ++from) total += inbox_turn[place(from, m, row)];
        next[place(0, m, row)] = total;
      }
    }
  }

  // Lanes share the senders of a row, so that one round trip serves all.
  DEVICE void add_words(u32 rows, float *next, u32 threads) const {
    u32 log_share = 0;
    while (log_share < LOG_WARP && WORDS_IN_FLIGHT << log_share < blocks) ++log_share;
    const u32 share = 1 << log_share, at_once = WARP >> log_share;
    const u32 lane = threadIdx.x % WARP, part = lane & (share - 1);
    const u64 *mine = words_to(block);
    const u64 ready = u64(number + 1) << 32;
    for (u32 base = threadIdx.x / WARP * at_once; base < rows * start_rows; base += threads / WARP * at_once) {
      const u32 index = base + (lane >> log_share);
      u32 m = 0;
      if (start_rows > 1) m = index / rows;
      const u32 row = index - m * rows;
      const bool wanted = index < rows * start_rows;
      float total = 0.0f;
      for (u32 first = 0; first < blocks; first += share * WORDS_IN_FLIGHT) {
        u64 word[WORDS_IN_FLIGHT];
        bool complete;
        do {
          complete = true;
#pragma unroll
          for (u32 w = 0; w < WORDS_IN_FLIGHT; ++w) {
            const u32 from = first + w * share + part;
            word[w] = wanted && from < blocks ? load_word(mine + place(from, m, row)) : ready;
          }
#pragma unroll
          for (u32 w = 0; w < WORDS_IN_FLIGHT; ++w) complete &= u32(word[w] >> 32) == number + 1;
        } while (!complete);
#pragma unroll
        for (u32 w = 0; w < WORDS_IN_FLIGHT; ++w) total += __uint_as_float(u32(word[w]));
      }
      __syncwarp();
#pragma unroll 1
      for (u32 d = share / 2; d; d /= 2) total += __shfl_xor_sync(FULL_WARP, total, d);
      if (wanted && part == 0) next[place(0, m, row)] = total;
    }
  }
};
