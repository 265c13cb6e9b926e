// What the host hands to each kernel: one struct per kernel, passed by value. src/cuda/kernel mirrors every struct
// here field by field; tests/kernels/abi.rs compares sizes and offsets. Strides are in elements, flags are 0 or 1.
#pragma once

#include "types.cuh"

// Layers one launch can take: the parameters stay below the 4 KB that every driver accepts.
constexpr u32 MAX_LAYERS_PER_LAUNCH = 64;

// The valid tokens of one item: [start, start + len).
struct Window {
  u32 start, len;
};

// The maps [batch, heads, tokens, tokens] of one layer and its residual weights.
struct LayerMaps {
  const void *base;
  const void *gradients;      // of the same type and strides; only `gradients` variants read it
  i64 stride_batch, stride_head, stride_row;
  float attention, identity;
};

// The maps of a launch's layers, first to last, and how they become fused entries.
struct Maps {
  const Window *windows;      // [batch]
  const float *head_weights;  // [heads]; only weighted fusion reads it
  const u64 *cuts;            // [layers, batch]; only `discard` variants read it (see discard.cuh)
  u32 batch, heads, tokens, layers;
  float head_scale;           // f32 nearest to 1 / heads; only mean fusion reads it
  u32 window_local;           // maps hold only the window, at their origin (as head_fusion writes them)
  u32 causal;                 // entries right of the diagonal are 0 and are not read
  u32 discard_first;          // rows and columns of the window before this one take no part in discard
  u32 discard_spares_origin;  // entry (first, first) of the window is never discarded
  u32 rectify_fused;          // weighed by gradients, the fused entries are rectified, and not those of each head
  LayerMaps layer[MAX_LAYERS_PER_LAUNCH];
};

// Layers of queries and keys one launch can take.
constexpr u32 MAX_SCORE_LAYERS = 32;

// The queries [batch, heads, tokens, head_dim] of one layer, its keys [batch, key heads, tokens, head_dim] and, where it is
// given, its LSE [batch, heads, tokens]; and its residual weights.
struct LayerScores {
  const void *queries, *keys;
  const float *lse;           // null: rows are normalised by what score_sums wrote
  i64 queries_batch, queries_head, queries_token;
  i64 keys_batch, keys_head, keys_token;
  i64 lse_batch, lse_head, lse_token;
  float soft_cap;             // 0: none
  u32 sliding_window;         // tokens so far away are masked; 0: none
  float attention, identity;
};

// What a head of a layer has of its own.
struct HeadScores {
  float slope;                // by which scores fall per token of distance
  float sink;                 // score of a key that is no token; -infinity: none
};

// What the scores of a row are lowered by before 2 is taken to their power, and multiplied with after.
struct __align__(8) RowSum {
  float shift, factor;
};

// The LSE of a row, to base e, from its scores and as it is given.
struct Probe {
  float expected, got;
};

// What a row must sum to, the most that it could, where terms cancel, and what it sums to.
struct Mass {
  float expected, magnitude, sum;
};

// The queries and keys of a launch's layers, first to last, and how they become fused entries.
struct Scores {
  const Window *windows;      // [batch]
  const float *head_weights;  // [heads]; only weighted fusion reads it
  const HeadScores *head;     // [layers, heads]
  RowSum *sums;               // [layers, batch, heads, sums_len], counted from the window's start; null where the LSE is given
  u32 batch, heads, layers;
  u32 sharing;                // heads that share a key head
  u32 head_dim;               // a multiple of 8
  u32 sums_len;
  u32 causal;                 // keys later than the query are masked
  float scale;                // of products, and the same in units of which 2 to the power of is taken
  float log2_scale;
  float log2_unit;            // the binary logarithm of the LSE's base
  float head_scale;           // f32 nearest to 1 / heads; only mean fusion reads it
  u32 reserved;
  LayerScores layer[MAX_SCORE_LAYERS];
};

// A grouped launch: see entry.cuh. The table of its members, and the words of their parameters, are written once; the
// addresses of layers and outputs come with every launch.
constexpr u32 MAX_GROUP_ADDRESSES = 509;

struct GroupMember {
  u32 first_block;            // of the launch's blocks; members follow one another
  u32 grid_x, grid_y, grid_z;
  u32 threads;                // of a block
  u32 first_word, words;      // its parameters
  u32 reserved;
};

// 8 bytes of parameters: `value` plus an address of the launch.
struct __align__(16) GroupWord {
  u64 value;
  u32 address, reserved;
};

struct GroupParams {
  const GroupMember *member;  // [members]
  const GroupWord *word;
  u32 members, reserved;
  u64 address[MAX_GROUP_ADDRESSES];  // the first is 0, for words that need none
};

// run_inputs: what a run is given of each item, and all that depends on it.
struct RunInputsParams {
  const int *given_windows;   // [batch, 2]: start and length
  const int *given_rows;      // [batch or 1, rows], counted from the window's start; null: each window's last
  const u64 *counts_of;       // [max_window + 1]: how many entries a window of so many tokens discards
  Window *windows;            // [batch]
  u64 *counts;                // [batch], or null
  float *weights;             // [batch, rows, stride_row] of the start rows, or null
  u32 tokens, max_window;
  u32 mean;                   // the start row is the mean of the window
  u32 rows;                   // start rows of an item
  u32 rows_per_item;          // from one item's given rows to the next's: 0 where all items share them
  u32 stride_row;
};

// zero_fill: zeros.
struct ZeroFillParams {
  float *out;                 // [len]
  u64 len;
};

// rollout_rows: from last layer to first, r <- identity r + attention r fused.
struct RolloutRowsParams {
  const float *start;         // [batch or 1, start_rows, tokens], counted from the window's start
  i64 start_stride_batch;     // 0 where all items share their start rows
  const float *partials_in;   // [batch, splits_in, start_rows, tokens]; read instead of `start` where splits_in > 0
  float *partials_out;        // [batch, splits, start_rows, tokens]; null: the result goes to `out`
  float *out;                 // [batch, start_rows, tokens], 0 outside the windows
  u32 start_rows, splits_in;
  u32 chunk_columns;          // columns of one warp, a multiple of the elements in 16 bytes
  u32 chunks_per_block;       // warps that share a row
  Maps maps;
};

// rows_stream: from last layer to first, r <- identity r + attention r fused. The ring is that of the launch: the same in
// all members of a grouped one.
struct RowsStreamParams {
  const float *start;         // [batch or 1, start_rows, tokens], counted from the window's start
  i64 start_stride_batch;     // 0 where all items share their start rows
  float *out;                 // [batch, start_rows, tokens], 0 outside the windows; or counted from the window's start
  u64 *words;                 // [sets, 2, blocks, start_rows, rows of a slice, blocks], 0 at first, or null: see exchange.cuh
  u32 *exchanges;             // [sets, blocks], exchanges by words so far, 0 at first
  u32 start_rows;
  u32 blocks;                 // of one item; those that work together are a set
  u32 column_warps;           // warps that share a row
  u32 panel_columns;          // columns that are looked at in one go, at most what these warps hold
  u32 stages, stage_bytes;    // of the ring; all heads of a row of a panel fit a stage
  u32 normalize;              // rows of `Ahat` are divided by their sums
  u32 out_windowed;           // `out` holds all tokens: the window is an offset into it
  Maps maps;
};

// matrix_stream: the whole rollout of an item in one block, or in a cluster of blocks.
struct MatrixStreamParams {
  float *out;                 // [batch, tokens, tokens], 0 outside the windows
  u32 stages, stage_bytes;    // of the ring in shared memory
  u32 tile_rows;              // at most
  u32 normalize;              // rows of `Ahat` are divided by their sums
  Maps maps;
};

// head_fusion: fused maps, in window coordinates.
struct HeadFusionParams {
  float *fused;               // [layers, batch, len, len] with the strides below; `split` variants: as `FactorProduct::map`
  i64 stride_layer, stride_batch, stride_row;
  Maps maps;
};

// attention (left right + left_weight left + right_weight right) + identity I, and where it goes. Maps, one for each item, are
// split into f16: [batch, len, 2, stride_row], of each row what high + low are 2^11 times, each filled with zeros to the end of
// the 16 bytes in which the row ends.
struct FactorProduct {
  const void *left, *right;   // right null: zeros
  void *map;                  // without the identity; null: not written
  float *result;              // [batch, tokens, tokens], with the identity, 0 outside the windows; null: not written
  float left_weight, right_weight, attention, identity;
};

// Products one launch can take.
constexpr u32 MAX_PRODUCTS = 64;

// split_product: products of factors that do not depend on each other.
struct SplitProductParams {
  const Window *windows;      // [items]
  i64 result_stride_batch, result_stride_row;
  i64 stride_batch, stride_row;  // of all maps, in elements of 4 bytes
  u32 items, causal;
  FactorProduct product[MAX_PRODUCTS];
};

// Rows of each window that score_sums probes.
constexpr u32 PROBED_ROWS = 64;

// score_sums: the sums by which rows are normalised, or the LSE of some rows.
struct ScoreSumsParams {
  Probe *probes;              // [layers, batch, heads, 64] of each window's last rows; null: `scores.sums` are written
  i64 probes_layer;           // from one layer's probes to the next's
  Scores scores;
};

// score_masses: sums of the rows of fused maps.
struct ScoreMassesParams {
  const float *fused;         // as score_fusion writes it
  i64 stride_layer, stride_batch, stride_row;
  Mass *masses;               // [layers, batch, scores.sums_len], counted from the window's start, 0 beyond its end
  i64 masses_layer;           // from one layer's masses to the next's
  Scores scores;              // the LSE is given; `scores.head_weights` is null unless heads are weighted
};

// score_fusion: fused maps, in window coordinates, as head_fusion writes them.
struct ScoreFusionParams {
  float *fused;               // [layers, batch, len, len] with the strides below
  i64 stride_layer, stride_batch, stride_row;
  Scores scores;
};

// Rows of relevance that score_rows takes at a time, and tiles of queries that an item may have.
constexpr u32 MAX_SCORE_ROWS = 8, MAX_QUERY_TILES = 2048;

// score_rows: relevance times the fused map of one layer, in parts.
struct ScoreRowsParams {
  const float *relevance;     // [batch or 1, rows, len], counted from the window's start
  i64 stride_batch, stride_row;
  float *partials;            // [head splits, query splits, batch, rows, scores.sums_len]
  u32 rows;                   // at most MAX_SCORE_ROWS
  u32 query_splits;           // blocks that share the queries of a tile of keys; others share the heads
  Scores scores;              // of one layer
};

// score_stream: one row of relevance times all layers.
struct ScoreStreamParams {
  const float *start;         // [batch or 1, len], counted from the window's start
  i64 start_stride_batch;
  float *out;                 // [batch, out_stride]
  u64 *words;                 // [sets, 2, head splits, scores.sums_len], 0 at first
  u32 *exchanges;             // [sets, blocks], exchanges so far, 0 at first
  Mass *masses;               // [layers, batch, head splits]; null: nothing is known of sums
  i64 masses_layer;           // from one layer's masses to the next's
  u32 sets;                   // each of the blocks that compute an item
  u32 head_splits;            // blocks of a set that share keys: each has some of the heads
  u32 key_blocks;             // blocks that share the keys of an item
  u32 out_stride;
  u32 out_windowed;           // `out` holds all tokens: the window is an offset into it, and what lies outside is 0
  u32 reserved;
  Scores scores;              // for masses `scores.head_weights` is null unless heads are weighted
};

// score_short: one row of relevance times the fused map of one layer, in parts.
struct ScoreShortParams {
  const float *relevance;     // [batch or 1, len], counted from the window's start
  i64 stride_batch;
  float *partials;            // [heads, query splits, batch, scores.sums_len]
  u32 query_splits;           // blocks that share the queries of a head
  u32 reserved;
  Scores scores;              // of one layer
};

// score_residual: the relevance after a layer from the parts of its product.
struct ScoreResidualParams {
  const float *relevance;     // before the layer, as for score_rows
  i64 stride_batch, stride_row;
  const float *partials;      // [splits, batch, rows, scores.sums_len]
  float *out;                 // [batch, rows, out_stride]
  Mass *masses;               // [batch, rows, blocks of columns]; null: nothing is known of sums
  u32 rows, splits;
  u32 out_stride;
  u32 out_windowed;           // `out` holds all tokens: the window is an offset into it, and what lies outside is 0
  Scores scores;              // of one layer; for masses `scores.head_weights` is null unless heads are weighted
};

// discard: the cut of every (layer, item).
struct DiscardParams {
  const float *fused;         // as head_fusion writes it
  i64 stride_layer, stride_batch, stride_row;
  const Window *windows;      // [batch]
  const u64 *counts;          // [batch]: how many of the smallest entries to take
  u64 *cuts;                  // [layers, batch]
  u32 batch, causal, discard_first;
  u32 kept;                   // granules of each thread that stay in shared memory
};

// exclusion: fused maps without the tokens that nothing attends to, in place.
struct ExclusionParams {
  float *fused;               // as head_fusion writes it
  i64 stride_layer, stride_batch, stride_row;
  const Window *windows;      // [batch]
  const u64 *cuts;            // [layers, batch]; null: nothing is discarded
  const u32 *excluded;        // [tokens], a bit each, counted from the window's start
  u32 batch, causal, discard_first, discard_spares_origin;
};

// One layer of fused maps in window coordinates, with all that turns them into `Ahat`. Rows start at multiples of 16
// bytes and are filled with zeros up to a multiple of 4 entries (causal: up to the granule of the diagonal).
struct FusedMaps {
  const float *base;
  i64 stride_batch, stride_row;
  const Window *windows;      // [batch]
  const u64 *cuts;            // [batch]; null: nothing is discarded
  const float *scales;        // [batch, tokens], as row_scales writes them; null: rows are not normalised
  float attention, identity;
  u32 tokens, causal, discard_first, discard_spares_origin;
};

// row_scales: 1 / (sum of a row of attention * fused + identity * I), or 0.
struct RowScalesParams {
  FusedMaps maps;             // `maps.scales` is not read
  float *scales;              // [batch, tokens], counted from the window's start
};

// One f32 matrix per item.
struct Matrices {
  float *base;
  i64 stride_batch, stride_row;
};

// rollout_first: Ahat of one layer, the first step of a product.
struct RolloutFirstParams {
  FusedMaps maps;
  Matrices out;
  u32 out_windowed;           // `out` holds all tokens: the window is an offset into it
  u32 reserved;
};

// rollout_product: one step of the product, out = Ahat state or out = state Ahat.
struct RolloutProductParams {
  FusedMaps maps;
  Matrices state;             // window coordinates; alignment and filling as of the maps
  Matrices out;               // as the state, unless `out_windowed`
  u32 rows;                   // rows of the state; 0: as many as the window has tokens
  u32 out_windowed;           // `out` holds all tokens: the window is an offset into it
};
