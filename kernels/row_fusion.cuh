// The columns that a lane holds of its warp's part of a row, and how the heads of these become one, from a tile of the ring.
//
// Entries of 32 bits, and maps that are weighed by gradients: every 32nd column. Entries of 16 bits are loaded two at a
// time: runs of neighbouring columns, and what is left.
//
// A row may begin at either half of a word, and each head has its own alignment; what rows have in common is whether that
// changes from head to head. So a run of W words lies in W words or, beginning at the other half, in W + 1, which is known
// of every head before the loop over them. The words of a run are an odd number, so that the lanes' words lie in different
// banks.
//
// Macros: ELEMENT, FUSION, GRADIENTS, COLUMNS (of a lane).
#pragma once

#include "tile_fusion.cuh"

// Before sm_90, 128 registers are too few for seven columns in pairs.
constexpr bool PAIRS_FIT = (COLUMNS > 1) && !GRADIENTS && (COUNTS_BYTES || COLUMNS < 7);

template <class Element, bool IN_PAIRS = Element::BYTES == 2 && PAIRS_FIT>
struct RowFusion {
  static constexpr u32 RUN = 1, IN_RUNS = 0;

  DEVICE static u32 column(u32 lane, u32 k) { return k * WARP + lane; }

  // The fused entries of a row whose first head lies at `at` in a tile, of the columns of the part that exist, the first
  // `within`; 0 in the others.
  DEVICE static void fuse(float (&fused)[COLUMNS], const Maps &maps, const Tile &tile, const char *at, u32 lane, u32 within) {
    ::fuse(fused, maps, at + lane * Element::BYTES, tile, lane, within);
  }
};

template <class Element>
struct RowFusion<Element, true> {
  static constexpr u32 RUN_WORDS = COLUMNS >= 6 ? 3 : 1, RUN = 2 * RUN_WORDS;
  static constexpr u32 RUNS = COLUMNS >= RUN ? COLUMNS / RUN : 1, IN_RUNS = RUNS * RUN;
  static_assert(RUNS <= 2 && COLUMNS <= IN_RUNS + 1);  // a column of a lane may be left, which stands alone

  // Column `k` of lane `lane` in the warp's part.
  DEVICE static u32 column(u32 lane, u32 k) {
    if (k < IN_RUNS) return (k / RUN * WARP + lane) * RUN + k % RUN;
    return k * WARP + lane;
  }

  DEVICE static void fuse(float (&fused)[COLUMNS], const Maps &maps, const Tile &tile, const char *at, u32 lane, u32 within) {
    const RowFusion row(fused, maps, tile.plane_bytes, lane, within);
#pragma unroll
    for (u32 k = 0; k < COLUMNS; ++k) fused[k] = FUSION::start();
    if (within >= IN_RUNS * WARP) {
      row.add_rows<true>(shared_address(at));
    } else {
      row.add_rows<false>(shared_address(at));
    }
#pragma unroll
    for (u32 k = 0; k < COLUMNS; ++k) {
      fused[k] = column(lane, k) < within ? FUSION::finish(fused[k], maps.head_scale) : 0.0f;
    }
  }

 private:
  float (&fused)[COLUMNS];
  const Maps &maps;
  u32 heads, plane_bytes, lane, within;

  DEVICE RowFusion(float (&fused)[COLUMNS], const Maps &maps, u32 plane_bytes, u32 lane, u32 within)
      : fused(fused), maps(maps), heads(maps.heads), plane_bytes(plane_bytes), lane(lane), within(within) {}

  // What a lane loads of a head. ODD: runs begin at the upper half of a word; WHOLE: all columns of runs exist.
  struct Entries {
    u32 word[RUNS][RUN_WORDS + 1], single;

    DEVICE float entry(u32 k, bool odd) const {
      if (k >= IN_RUNS) return Element::of_half(single, false);
      const u32 half = k % RUN + odd;
      return Element::of_half(word[k / RUN][half / 2], half % 2);
    }
  };
  template <bool WHOLE, bool ODD, u32 R, u32 W>
  DEVICE void load_run(Entries &entries, u32 runs_at) const {
    if constexpr (W > 0) load_run<WHOLE, ODD, R, W - 1>(entries, runs_at);
    const u32 first = column(lane, R * RUN) + (W == 0 ? 0 : 2 * W - ODD);
    if constexpr (!WHOLE) entries.word[R][W] = 0;
    if (WHOLE || first < within) entries.word[R][W] = load_shared_word<int((R * WARP * RUN_WORDS + W) * 4) - 2 * ODD>(runs_at);
  }
  template <bool WHOLE, bool ODD>
  DEVICE void load(Entries &entries, u32 runs_at, u32 single_at) const {
    load_run<WHOLE, ODD, 0, RUN_WORDS - !ODD>(entries, runs_at);
    if constexpr (RUNS == 2) load_run<WHOLE, ODD, 1, RUN_WORDS - !ODD>(entries, runs_at);
    entries.single = 0;
    if (COLUMNS > IN_RUNS && column(lane, IN_RUNS) < within) entries.single = load_shared_half<IN_RUNS * WARP * 2>(single_at);
  }

  // Adds HEADS heads, from head `head` on, whose columns of this lane follow one another. ODD is of the first and of every
  // second one, OTHER of the rest.
  template <bool WHOLE, u32 HEADS, bool ODD, bool OTHER>
  DEVICE void add(u32 &runs_at, u32 &single_at, u32 head) const {
    Entries entries[HEADS];
#pragma unroll
    for (u32 h = 0; h < HEADS; ++h) {
      if (h % 2) {
        load<WHOLE, OTHER>(entries[h], runs_at, single_at);
      } else {
        load<WHOLE, ODD>(entries[h], runs_at, single_at);
      }
      runs_at = unknown(runs_at + plane_bytes);
      if (COLUMNS > IN_RUNS) single_at = unknown(single_at + plane_bytes);
    }
#pragma unroll
    for (u32 h = 0; h < HEADS; ++h) {
      float weight = 0.0f;
      if constexpr (FUSION::WEIGHTED) {
        weight = __uint_as_float(load_element<4>(global_address(maps.head_weights + head + h)));
      }
#pragma unroll
      for (u32 k = 0; k < COLUMNS; ++k) fused[k] = FUSION::add(fused[k], entries[h].entry(k, h % 2 ? OTHER : ODD), weight);
    }
  }

  template <bool WHOLE, bool ODD, bool OTHER>
  DEVICE void add_heads(u32 at) const {
    u32 runs_at = unknown(at + lane * RUN * 2), single_at = unknown(at + lane * 2), head = 0;
#pragma unroll 1
    for (; head + 4 <= heads; head += 4) add<WHOLE, 4, ODD, OTHER>(runs_at, single_at, head);
    if (heads & 2) {
      add<WHOLE, 2, ODD, OTHER>(runs_at, single_at, head);
      head += 2;
    }
    if (heads & 1) add<WHOLE, 1, ODD, OTHER>(runs_at, single_at, head);
  }
  template <bool WHOLE>
  DEVICE void add_rows(u32 at) const {
    if (plane_bytes & 2) {
      if (at & 2) {
        add_heads<WHOLE, true, false>(at);
      } else {
        add_heads<WHOLE, false, true>(at);
      }
    } else if (at & 2) {
      add_heads<WHOLE, true, true>(at);
    } else {
      add_heads<WHOLE, false, false>(at);
    }
  }
};
