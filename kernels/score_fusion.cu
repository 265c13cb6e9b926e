// score_fusion: fused maps of queries and keys, in f32 and in window coordinates, as head_fusion writes them: each row is
// filled with zeros up to a multiple of 4 entries; of causal maps, up to the granule of the diagonal.
//
// A block has a tile of 64 x 64 entries in registers, 32 x 32 in each warp, to which it adds one head after the other.
//
// Grid: x item, y queries, z layer and keys. Macros: ELEMENT, FUSION, THREADS, BLOCKS, and those of entry.cuh.

#include "entry.cuh"
#include "score_ring.cuh"

// Warps along the queries, and along the keys.
constexpr u32 QUERY_WARPS = 2, KEY_WARPS = (THREADS / WARP - 1) / QUERY_WARPS;

DEVICE void fuse_scores(const ScoreFusionParams &params, const Place &place) {
  __shared__ RowSum sums[ScoreSteps<false>::ROOM][QUERY_WARPS * TILE];
  const Scores &scores = params.scores;
  const u32 layer = place.z % scores.layers, key = place.z / scores.layers * (KEY_WARPS * TILE);
  const u32 query = place.y * (QUERY_WARPS * TILE);
  const ItemScores<ELEMENT> item(scores, layer, place.x);
  if (query >= item.len || key >= item.len || scores.causal && key >= query + QUERY_WARPS * TILE) return;
  const u32 warp_row = threadIdx.x / WARP / KEY_WARPS * TILE, warp_column = threadIdx.x / WARP % KEY_WARPS * TILE;
  const u32 first_row = query + warp_row, first_column = key + warp_column;
  const bool masked = item.masks_all(query, QUERY_WARPS * TILE, key, KEY_WARPS * TILE);
  const bool warp_masked = item.masks_all(first_row, TILE, first_column, TILE);
  const ScoreSteps<false> steps(scores, 0, scores.heads, masked ? 0 : 1, scores.head_dim * ELEMENT::BYTES);
  const auto token = [&](u32) { return query; };
  const PassingSums<ScoreSteps<false>::ROOM, QUERY_WARPS * TILE, ELEMENT> known = {item, sums};
  HeadTerms terms;
  const auto begin = [&](const ScoreTile &tile) { terms = HeadTerms::of<FUSION>(item, tile.head); };
  FusedTile<FUSION> fused;
  const auto add = [&](const ScoreTile &tile, u32 slot, const Products &products) {
    fused.add(item, tile, terms, &sums[slot][warp_row], products);
  };
  if (!visit<true, QUERY_WARPS>(item, place.threads, steps, key, token, known, begin, add)) return;
  float *map = params.fused + layer * params.stride_layer + place.x * params.stride_batch;
#pragma unroll
  for (u32 r = 0; r < Products::ROWS; ++r) {
    const u32 row = first_row + Products::row(r);
    const u32 end = (scores.causal ? row + 1 : item.len) + 3 & ~3u;
#pragma unroll
    for (u32 c = 0; c < Products::COLUMNS; c += 2) {
      const u32 column = first_column + Products::column(c);
      if (row >= item.len || column >= end) continue;
      const auto entry = [&](u32 e) {
        return warp_masked || column + e >= item.len ? 0.0f : fused.finished(r, c + e, scores.head_scale);
      };
      *reinterpret_cast<float2 *>(map + row * params.stride_row + column) = make_float2(entry(0), entry(1));
    }
  }
}

ENTRY(ScoreFusionParams, fuse_scores, __launch_bounds__(THREADS, BLOCKS - GROUPED))
