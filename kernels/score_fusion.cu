// score_fusion: fused maps of queries and keys, in f32 and in window coordinates, as head_fusion writes them: each row is
// filled with zeros up to a multiple of 4 entries; of causal maps, up to the granule of the diagonal.
//
// A block has a tile of 64 x 64 entries in registers, to which it adds one head after the other.
//
// Grid: x item, y queries, z layer and keys. Macros: ELEMENT, FUSION, BLOCKS, and those of entry.cuh.

#include "entry.cuh"
#include "scores.cuh"

DEVICE void fuse_scores(const ScoreFusionParams &params, const Place &place) {
  __shared__ ScoreStage stages[2];
  const Scores &scores = params.scores;
  const u32 layer = place.z % scores.layers, key = place.z / scores.layers * TILE, query = place.y * TILE;
  const ItemScores<ELEMENT> item(scores, layer, place.x);
  if (query >= item.len || key >= item.len || scores.causal && key >= query + TILE) return;
  FusedTile<FUSION> fused;
  const bool masked = item.masks_all(query, key);
  const auto tile = [&](u32 head) { return ScoreTile{head, query, key}; };
  item.visit(stages, masked ? 0 : scores.heads, tile,
             [&](const ScoreTile &tile) { fused.begin(item, tile); },
             [&](const ScoreTile &tile, const Products &products) { fused.add(item, tile, products); });
  float *map = params.fused + layer * params.stride_layer + place.x * params.stride_batch;
#pragma unroll
  for (u32 r = 0; r < Products::ROWS; ++r) {
    const u32 row = query + lane_row(r);
    const u32 end = (scores.causal ? row + 1 : item.len) + 3 & ~3u;
#pragma unroll
    for (u32 c = 0; c < Products::COLUMNS; c += 2) {
      const u32 column = key + lane_column(c);
      if (row >= item.len || column >= end) continue;
      float2 pair = make_float2(0.0f, 0.0f);
      if (!masked) pair = make_float2(fused.finished(r, c, scores.head_scale), fused.finished(r, c + 1, scores.head_scale));
      *reinterpret_cast<float2 *>(map + row * params.stride_row + column) = pair;
    }
  }
}

ENTRY(ScoreFusionParams, fuse_scores, __launch_bounds__(SCORE_THREADS, BLOCKS))
