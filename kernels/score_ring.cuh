// How queries and keys come to the tiles of a block, chunk by chunk.
//
// Tokens of one kind pass by through a ring, which one warp fills ahead; the others take tiles. Those of the other kind, 32
// for each of these, stay with the block: where all tiles are of one head, its chunks are copied once. Where heads follow one
// another, they come with each tile anew, through a ring of their own.
#pragma once

#include "scores.cuh"

// The tiles of a block one after the other, chunk by chunk: those of one head, or at each place those of `heads` heads.
template <bool ONE_HEAD>
struct ScoreSteps {
  // Chunks that come together, and those that the ring has room for.
  static constexpr u32 TOGETHER = ONE_HEAD ? 2 : 1, ROOM = ONE_HEAD ? 4 : 3;
  // Groups of them that are on their way while one is taken.
  static constexpr u32 AHEAD = ROOM / TOGETHER - 1;

  // A head, the head of its keys, and which it is of those that share that.
  struct Head {
    u32 query, key, sharer;
  };

  u32 sharing, end_head, places;
  u32 chunks;  // of a token
  Head first, head;
  u32 place, chunk;
  u32 slot;    // of the ring

  DEVICE ScoreSteps(const Scores &scores, u32 first_head, u32 heads, u32 places, u32 token_bytes)
      : sharing(scores.sharing),
        end_head(first_head + heads),
        places(places),
        chunks((token_bytes + CHUNK_BYTES - 1) / CHUNK_BYTES),
        first{first_head, first_head / scores.sharing, first_head % scores.sharing},
        head(first),
        place(0),
        chunk(0),
        slot(0) {}

  DEVICE bool more() const { return place < places; }
  // Where the tokens that stay are: those of one head once, the others with every tile.
  static constexpr bool ALL_STAY = ONE_HEAD;
  DEVICE u32 staying_slot() const { return ALL_STAY ? chunk : slot; }

  DEVICE void advance() {
    if (++slot == ROOM) slot = 0;
    if (++chunk < chunks) return;
    chunk = 0;
    if constexpr (!ONE_HEAD) {
      if (++head.sharer == sharing) {
        head.sharer = 0;
        ++head.key;
      }
      if (++head.query < end_head) return;
      head = first;
    }
    ++place;
  }
};

// [ROOM][passing warps] panels of tokens that pass by; and of those that stay [chunks][staying warps] of the one head, or
// [ROOM][staying warps].
extern __shared__ __align__(16) char dynamic[];

// Warps of a block of `threads` threads that take tiles: all but the last one, which brings what passes by.
DEVICE u32 takers(u32 threads) { return threads / WARP - 1; }

// Shows `take` the products of the tiles of `steps`, and `begin` each tile before it is multiplied. Queries pass by, or keys:
// those of a step are `token(place)` and on; those that stay are `stay` and on. What else there is to know of those that pass
// by comes with them: `known.copy(slot, head, token)` starts copying it, and `known.settle(slot, token)`, of the same warp,
// makes of the copy what `take` finds at the slot that it is told. All `threads` threads of the block take part; a warp is
// shown the tiles of its own tokens in which anything is attended to. Returns whether it takes tiles.
//
// Where HOLDS, keys of one head stay, a chunk of each, and the warps have theirs in registers (`HeldKeys`): `take` is shown
// these, and where the queries of a lane begin that they are multiplied by, instead of the products.
template <bool QUERIES_PASS, u32 PASSING_WARPS, bool HOLDS = false, class Element, class Steps, class Token, class Known,
          class Begin, class Take>
DEVICE bool visit(const ItemScores<Element> &item, u32 threads, const Steps &steps, u32 stay, const Token &token,
                  const Known &known, const Begin &begin, const Take &take) {
  const u32 warp = threadIdx.x / WARP, staying_warps = takers(threads) / PASSING_WARPS;
  const u32 passing = unknown(shared_address(dynamic)), staying = passing + Steps::ROOM * PASSING_WARPS * PANEL_BYTES;
  const Tokens of_queries = item.queries(), of_keys = item.keys();
  const Tokens &of_passing = QUERIES_PASS ? of_queries : of_keys, &of_staying = QUERIES_PASS ? of_keys : of_queries;
  const u32 bytes = item.scores.head_dim * Element::BYTES;
  if (warp == takers(threads)) {
    Steps ahead = steps;
    const auto fill = [&] {
#pragma unroll 1
      for (u32 i = 0; i < Steps::TOGETHER && ahead.more(); ++i, ahead.advance()) {
        const u32 passing_head = QUERIES_PASS ? ahead.head.query : ahead.head.key;
        const u32 first = token(ahead.place), at = ahead.chunk * CHUNK_BYTES;
        for (u32 panel = 0; panel < PASSING_WARPS; ++panel) {
          of_passing.template fetch<Element>(passing + (ahead.slot * PASSING_WARPS + panel) * PANEL_BYTES, passing_head,
                                             first + panel * TILE, item.len, at, bytes);
        }
        if constexpr (!Steps::ALL_STAY) {
          const u32 staying_head = QUERIES_PASS ? ahead.head.key : ahead.head.query;
#pragma unroll 1
          for (u32 panel = 0; panel < staying_warps; ++panel) {
            of_staying.template fetch<Element>(staying + (ahead.slot * staying_warps + panel) * PANEL_BYTES, staying_head,
                                               stay + panel * TILE, item.len, at, bytes);
          }
        }
        if (ahead.chunk + 1 == ahead.chunks) known.copy(ahead.slot, ahead.head.query, first);
      }
      commit_copies();
    };
#pragma unroll 1
    for (u32 i = 0; i < Steps::AHEAD; ++i) fill();
    for (Steps now = steps; now.more();) {
      wait_copies<Steps::AHEAD - 1>();
#pragma unroll 1
      for (u32 i = 0; i < Steps::TOGETHER && now.more(); ++i, now.advance()) {
        if (now.chunk + 1 == now.chunks) known.settle(now.slot, token(now.place));
      }
      __syncthreads();  // the chunks are there, and what the next ones replace has been read
      fill();
    }
    wait_copies<0>();
    return false;
  }
  const u32 passing_warp = PASSING_WARPS == 1 ? 0 : warp / staying_warps, staying_warp = warp - passing_warp * staying_warps;
  const u32 stays = stay + staying_warp * TILE;
  if constexpr (Steps::ALL_STAY) {
    if (!steps.more()) return true;  // they are for nothing
    // A warp brings its own.
    const u32 head = QUERIES_PASS ? steps.head.key : steps.head.query;
#pragma unroll 1
    for (u32 chunk = 0; chunk < steps.chunks; ++chunk) {
      of_staying.template fetch<Element>(staying + (chunk * staying_warps + staying_warp) * PANEL_BYTES, head, stays, item.len,
                                         chunk * CHUNK_BYTES, bytes);
    }
    commit_copies();
    wait_copies<0>();  // before the first barrier
  }
  const bool own = stays < item.len;
  const LanePlaces<Element> places;
  if constexpr (HOLDS) {
    __syncwarp();  // the keys are there
    const HeldKeys<Element> keys(staying + staying_warp * PANEL_BYTES + places.queries);
    const u32 queries = passing + HeldKeys<Element>::of_queries();
#pragma unroll 1
    for (u32 place = 0; place < steps.places; ++place) {
      const u32 slot = place % Steps::ROOM;
      if (slot % Steps::TOGETHER == 0) __syncthreads();  // the queries are there
      const ScoreTile tile = {steps.first.query, token(place), stays};
      if (own && !item.masks_all(tile.query, TILE, tile.key, TILE)) take(tile, slot, keys, queries + slot * PANEL_BYTES);
    }
  } else {
    // Where this lane's elements begin in them.
    const u32 passing_panels = passing + passing_warp * PANEL_BYTES + (QUERIES_PASS ? places.queries : places.keys);
    const u32 staying_panels = staying + staying_warp * PANEL_BYTES + (QUERIES_PASS ? places.keys : places.queries);
    for (Steps now = steps; now.more();) {
      const u32 passes = token(now.place) + passing_warp * TILE;
      const ScoreTile tile = {now.head.query, QUERIES_PASS ? passes : stays, QUERIES_PASS ? stays : passes};
      const bool wanted = own && passes < item.len && !item.masks_all(tile.query, TILE, tile.key, TILE);
      begin(tile);
      Products products = {};
      u32 slot;
      for (u32 left = bytes;; left -= CHUNK_BYTES) {
        slot = now.slot;
        if (slot % Steps::TOGETHER == 0) __syncthreads();  // the chunks are there
        if (wanted) {
          const u32 passing_panel = passing_panels + slot * (PASSING_WARPS * PANEL_BYTES);
          const u32 staying_panel = staying_panels + now.staying_slot() * staying_warps * PANEL_BYTES;
          add_products<Element>(products, QUERIES_PASS ? passing_panel : staying_panel,
                                QUERIES_PASS ? staying_panel : passing_panel, min_u32(CHUNK_BYTES, left));
        }
        now.advance();
        if (left <= CHUNK_BYTES) break;
      }
      if (wanted) take(tile, slot, products);
    }
  }
  return true;
}
