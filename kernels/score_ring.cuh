// How queries and keys come to the tiles of a block, chunk by chunk.
//
// Tokens of one kind pass by through a ring, which copies fill ahead. Those of the other kind, 32 for each warp, stay with
// the block: where all tiles are of one head, its chunks are copied once. Where heads follow one another, they come with each
// tile anew, through a ring of their own.
#pragma once

#include "scores.cuh"

// The tiles of a block one after the other, chunk by chunk: those of one head, or at each place those of `heads` heads.
template <bool ONE_HEAD>
struct ScoreSteps {
  // Chunks that come together, and those that the ring has room for.
  static constexpr u32 TOGETHER = ONE_HEAD ? 2 : 1, ROOM = ONE_HEAD ? 4 : 3;

  u32 first_head, heads, places;
  u32 chunks;  // of a token
  u32 head, place, chunk;
  u32 slot;    // of the ring

  DEVICE ScoreSteps(u32 first_head, u32 heads, u32 places, u32 token_bytes)
      : first_head(first_head),
        heads(heads),
        places(places),
        chunks((token_bytes + CHUNK_BYTES - 1) / CHUNK_BYTES),
        head(first_head),
        place(0),
        chunk(0),
        slot(0) {}

  DEVICE bool more() const { return place < places; }
  // Whether tokens that stay come with the chunk, and where they are.
  DEVICE bool all_come() const { return !ONE_HEAD || place == 0; }
  DEVICE u32 staying_slot() const { return ONE_HEAD ? chunk : slot; }

  DEVICE void advance() {
    if (++slot == ROOM) slot = 0;
    if (++chunk < chunks) return;
    chunk = 0;
    if (!ONE_HEAD && ++head < first_head + heads) return;
    head = first_head;
    ++place;
  }
};

// [ROOM][passing warps] panels of tokens that pass by; and of those that stay [chunks][staying warps] of the one head, or
// [ROOM][staying warps].
extern __shared__ __align__(16) char dynamic[];

// Shows `take` the products of the tiles of `steps`, and `begin` each tile before it is multiplied. Queries pass by, or keys:
// those of a step are `token(place)` and on; those that stay are `stay` and on. `copy(slot, head, token)` starts copying
// what else there is to know of those that pass by, to the slot that `take` is told. All `threads` threads of the block take
// part; a warp is shown the tiles of its own tokens in which anything is attended to.
template <bool QUERIES_PASS, u32 PASSING_WARPS, class Element, class Steps, class Token, class Copy, class Begin, class Take>
DEVICE void visit(const ItemScores<Element> &item, u32 threads, const Steps &steps, u32 stay, const Token &token,
                  const Copy &copy, const Begin &begin, const Take &take) {
  constexpr u32 AHEAD = Steps::ROOM / Steps::TOGETHER - 1;
  const u32 warp = threadIdx.x / WARP, staying_warps = threads / WARP / PASSING_WARPS;
  const u32 passing_warp = PASSING_WARPS == 1 ? 0 : warp / staying_warps, staying_warp = warp - passing_warp * staying_warps;
  const u32 passing = unknown(shared_address(dynamic)), staying = passing + Steps::ROOM * PASSING_WARPS * PANEL_BYTES;
  const Tokens &of_passing = QUERIES_PASS ? item.queries : item.keys, &of_staying = QUERIES_PASS ? item.keys : item.queries;
  const u32 bytes = item.scores.head_dim * Element::BYTES, stays = stay + staying_warp * TILE;
  const LanePlaces<Element> places;
  Steps ahead = steps;
  const auto fill = [&] {
#pragma unroll 1
    for (u32 i = 0; i < Steps::TOGETHER && ahead.more(); ++i) {
      const u32 head = ahead.head, key_head = head / item.scores.sharing;
      const u32 passing_head = QUERIES_PASS ? head : key_head, staying_head = QUERIES_PASS ? key_head : head;
      const u32 first = token(ahead.place), at = ahead.chunk * CHUNK_BYTES;
      of_passing.template fetch<Element>(passing + ahead.slot * (PASSING_WARPS * PANEL_BYTES), PASSING_WARPS, threads,
                                         passing_head, first, item.len, at, bytes);
      if (ahead.all_come()) {
        of_staying.template fetch<Element>(staying + ahead.staying_slot() * staying_warps * PANEL_BYTES, staying_warps,
                                           threads, staying_head, stay, item.len, at, bytes);
      }
      if (ahead.chunk + 1 == ahead.chunks) copy(ahead.slot, head, first);
      ahead.advance();
    }
    commit_copies();
  };
#pragma unroll 1
  for (u32 i = 0; i < AHEAD; ++i) fill();
  for (Steps now = steps; now.more();) {
    const u32 passes = token(now.place) + passing_warp * TILE;
    const ScoreTile tile = {now.head, QUERIES_PASS ? passes : stays, QUERIES_PASS ? stays : passes};
    const bool wanted = passes < item.len && stays < item.len && !item.masks_all(tile.query, TILE, tile.key, TILE);
    begin(tile);
    Products products = {};
    u32 slot;
    for (u32 left = bytes;; left -= CHUNK_BYTES) {
      slot = now.slot;
      if (slot % Steps::TOGETHER == 0) {
        wait_copies<AHEAD - 1>();
        __syncthreads();  // the chunks are there, and what the next ones replace has been read
        fill();
      }
      if (wanted) {
        const u32 passing_panel = passing + (slot * PASSING_WARPS + passing_warp) * PANEL_BYTES;
        const u32 staying_panel = staying + (now.staying_slot() * staying_warps + staying_warp) * PANEL_BYTES;
        add_products<Element>(products, QUERIES_PASS ? passing_panel : staying_panel,
                              QUERIES_PASS ? staying_panel : passing_panel, places, min_u32(CHUNK_BYTES, left));
      }
      now.advance();
      if (left <= CHUNK_BYTES) break;
    }
    if (wanted) take(tile, slot, products);
  }
  wait_copies<0>();
}
