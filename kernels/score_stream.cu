// score_stream: one row of relevance times all layers of queries and keys, from the last to the first, in one launch.
//
// The blocks of a set compute an item together, and go on from layer to layer. In each a block has 32 keys for each of its
// warps but one, and some of the heads, one after the other. A warp holds its keys in registers, so the next ones come to
// the place in shared memory that these came through: those of the next head, or of the next layer. Queries pass by, through
// a ring that the last warp fills ahead, across heads and layers. After a layer every block tells all others the sums of its
// columns by words (exchange.cuh), and each adds up the whole row from what it is told, in the order of the senders: results
// repeat to the bit. Meanwhile the first keys and queries of the next layer are on their way.
//
// Which tiles of queries can weigh anything is known a layer ahead: they reach from the first to the last that did in the
// layer above, and as far as these attend. Of these, tiles of which no query weighs anything are passed over.
//
// Blocks wait for each other: all of the launch run at the same time.
//
// Grid: x set, y block of the item. Macros: ELEMENT, FUSION, THREADS, BLOCKS, and those of entry.cuh. sm_80.

#include "entry.cuh"
#include "exchange.cuh"
#include "score_columns.cuh"
#include "score_ring.cuh"

// Panels of queries in shared memory, and those of them that are on their way while one is taken.
constexpr u32 ROOM = 4, AHEAD = ROOM - 1;

// Tiles of queries from `first` on that come before `end`.
struct Tiles {
  u32 first, end;
  DEVICE bool any() const { return first < end; }
};

// Of `tiles`, from the first to the last whose queries attend to any of `keys` keys from `key` on.
DEVICE Tiles attending(const ItemScores<ELEMENT> &item, const Tiles &tiles, u32 key, u32 keys) {
  const u32 window = item.layer.sliding_window, reach = window ? window - 1 : ~0u;
  const u32 last_key = min_u32(key + keys, item.len) - 1, last = last_key + min_u32(reach, item.len - 1 - last_key);
  const u32 first = item.scores.causal ? key : key - min_u32(key, reach);
  return {max_u32(tiles.first, first / TILE), min_u32(tiles.end, last / TILE + 1)};
}

// From the first to the last tile that the queries of `tiles` attend to.
DEVICE Tiles attended(const ItemScores<ELEMENT> &item, const Tiles &tiles) {
  if (!tiles.any()) return tiles;
  u32 first, end, unused;
  item.attended(tiles.first * TILE, first, unused);
  item.attended(min_u32(tiles.end * TILE, item.len) - 1, unused, end);
  return {first / TILE, (min_u32(end, item.len) + TILE - 1) / TILE};
}

// What a block has of an item, in shared memory: registers are few.
struct Part {
  Window window;
  u32 item;
  u32 split;               // which it is of the blocks that share its keys
  u32 key, keys;           // the first of these, and how many they are: some may lie behind the window's end
  u32 first_head, end_head;
  u32 exchanges;           // before those of the item
  Tiles weighing[MAX_SCORE_LAYERS + 1];  // those that may weigh something, when so many layers are left
};

// The same with what the launch says. Layers are counted by those that are left.
struct Share {
  const ScoreStreamParams &params;
  const Part &part;

  DEVICE u32 len() const { return part.window.len; }
  // Blocks of the first keys share what there is to do for the row as a whole.
  DEVICE bool looks_after_rows() const { return part.key == 0; }
  // The layer that comes when so many are left, the block's tiles of its queries, and the relevance before it.
  DEVICE ItemScores<ELEMENT> next(u32 left) const {
    return ItemScores<ELEMENT>(params.scores, left - 1, part.item, part.window);
  }
  DEVICE Tiles tiles(u32 left) const { return attending(next(left), part.weighing[left], part.key, part.keys); }
  // The most layers that are left, of so many, where the block has tiles in the next one.
  DEVICE u32 next_with_tiles(u32 left) const {
    while (left > 0 && !tiles(left).any()) --left;
    return left;
  }
  DEVICE float *row(u32 left) const {
    float *rows = reinterpret_cast<float *>(dynamic + (ROOM + part.keys / WARP) * PANEL_BYTES);
    return rows + (params.scores.layers - left) % 2 * params.scores.sums_len;
  }
};

// A step of a block: a tile of a head of a layer, or a layer in which it has none.
struct Step {
  u32 left;  // layers, with the step's
  u32 head, tile;
  Tiles tiles;

  DEVICE explicit Step(const Share &share) : left(share.params.scores.layers) { begin_layer(share); }
  // To the next one; tells whether it is of the same layer.
  DEVICE bool advance(const Share &share) {
    if (++tile < tiles.end) return true;
    tile = tiles.first;
    if (++head < share.part.end_head && tiles.any()) return true;
    if (--left > 0) begin_layer(share);
    return false;
  }

 private:
  DEVICE void begin_layer(const Share &share) {
    tiles = share.tiles(left);
    tile = tiles.first;
    head = share.part.first_head;
  }
};

// What those who multiply are told of a step: its tile, and what they do before and after it.
enum : u32 { WEIGHS = 1, PLAIN = 2, MASKLESS = 4, HAS_TILE = 8, ENDS_HEAD = 16, ENDS_LAYER = 32 };
struct Told {
  u32 left, head, query, flags;
};

// What is known of the queries that pass by: their sums, with what they and the head weigh in the factors.
struct PassingQueries {
  alignas(GRANULE_BYTES) RowSum sums[ROOM][TILE];
  Told told[ROOM];

  // Of a step whose copies have come; to the next step. `terms` are those of the head.
  DEVICE void settle(const Share &share, Step &step, u32 slot, HeadTerms &terms) {
    const u32 lane = threadIdx.x % WARP, query = step.tile * TILE, row = query + lane;
    Told of_step = {step.left, step.head, query, 0};
    if (step.tiles.any()) {
      const ItemScores<ELEMENT> item = share.next(step.left);
      RowSum sum = item.known(sums[slot][lane]);
      float weight = row < share.len() ? share.row(step.left)[row] : 0.0f;
      if (step.tile == step.tiles.first) terms = HeadTerms::of<FUSION>(item, step.head);
      weight *= terms.weight;
      // Nothing that a query says which weighs nothing matters, be it NaN.
      sum.factor = weight == 0.0f ? 0.0f : sum.factor * weight;
      sums[slot][lane] = sum;
      const u32 some = __ballot_sync(FULL_WARP, sum.factor != 0.0f);
      const u32 all = __ballot_sync(FULL_WARP, row < share.len());
      // All weigh something, and scores are products times the scale.
      const bool plain = some == all && item.is_plain(terms.slope);
      of_step.flags = HAS_TILE | (some ? WEIGHS : 0) | (plain ? PLAIN : 0) | (item.maskless ? MASKLESS : 0);
      if (step.tile + 1 == step.tiles.end) of_step.flags |= ENDS_HEAD;
    }
    if (!step.advance(share)) of_step.flags |= ENDS_LAYER;
    if (lane == 0) told[slot] = of_step;
  }
};

// What this block's columns of the row must sum to after the layer, and what they sum to before it. A warp.
DEVICE void note_masses(const Share &share, u32 left) {
  const ScoreStreamParams &params = share.params;
  const float *row = share.row(left);
  Mass mass = {0.0f, 0.0f, 0.0f};
#pragma unroll 1
  for (u32 first = share.part.split * WARP; first < share.len(); first += params.head_splits * WARP) {
    const u32 column = first + threadIdx.x % WARP;
    const float before = column < share.len() ? row[column] : 0.0f;
    mass.sum += before;
    if (before == 0.0f || left == 0) continue;
    const ItemScores<ELEMENT> item = share.next(left);
    const float attention = item.layer.attention, identity = item.layer.identity;
    const Mass shares = item.shares(column, 0, 1);
    mass.expected += before * (attention * shares.expected + identity);
    mass.magnitude += fabsf(before) * (fabsf(attention) * shares.magnitude + fabsf(identity));
  }
  mass = {warp_sum(mass.expected), warp_sum(mass.magnitude), warp_sum(mass.sum)};
  if (threadIdx.x % WARP != 0) return;
  const u64 index = u64(share.part.item) * params.head_splits + share.part.split;
  Mass *of_layer = params.masses + i64(left) * params.masses_layer + index;
  if (left < params.scores.layers) of_layer->sum = mass.sum;
  if (left == 0) return;
  of_layer -= params.masses_layer;
  of_layer->expected = mass.expected;
  of_layer->magnitude = mass.magnitude;
}

// The last warp: brings queries and what is known of them. `slot` is where the next ones come.
DEVICE void bring_queries(const Share &share, PassingQueries &passing, u32 panels, u32 &slot) {
  const ScoreStreamParams &params = share.params;
  Step ahead(share), now = ahead;
  Tokens queries = share.next(ahead.left).queries();
  HeadTerms terms;
  u32 ahead_slot = slot;
  const bool notes = params.masses && share.looks_after_rows();
  const auto fill = [&] {
    if (ahead.left > 0) {
      const ItemScores<ELEMENT> item = share.next(ahead.left);
      const u32 first = ahead.tiles.any() ? ahead.tile * TILE : share.len();  // none
      queries.fetch<ELEMENT>(panels + ahead_slot * PANEL_BYTES, ahead.head, first, share.len(), 0,
                             params.scores.head_dim * ELEMENT::BYTES);
      item.copy_row_sum(passing.sums[ahead_slot][threadIdx.x % WARP], ahead.head, first + threadIdx.x % WARP);
      if (!ahead.advance(share) && ahead.left > 0) queries = share.next(ahead.left).queries();
      ahead_slot = (ahead_slot + 1) % ROOM;
    }
    commit_copies();
  };
#pragma unroll 1
  for (u32 i = 0; i < AHEAD; ++i) fill();
#pragma unroll 1
  for (u32 left = params.scores.layers; left > 0; --left) {
    while (now.left == left) {
      wait_copies<AHEAD - 1>();
      __syncwarp();
      passing.settle(share, now, slot, terms);
      slot = (slot + 1) % ROOM;
      __syncthreads();  // the queries are there, and what the next ones replace has been read
      fill();
    }
    if (notes) note_masses(share, left);
    __syncthreads();  // the row after the layer is there
  }
  if (notes) note_masses(share, 0);
  wait_copies<0>();
}

// The words that the blocks of a set tell each other after a layer: [2][head_splits][sums_len], in turns.
struct RowWords {
  const Share &share;
  u64 words;
  u32 number;  // of the exchange

  DEVICE RowWords(const Share &share, u32 set, u32 left)
      : share(share), number(share.part.exchanges + (share.params.scores.layers - left) + 1) {
    const u32 turn_words = share.params.scores.sums_len * share.params.head_splits;
    words = global_address(share.params.words) + u64(2 * set + number % 2) * turn_words * 8;
  }
  DEVICE u64 place(u32 column, u32 split) const { return words + (split * share.params.scores.sums_len + column) * 8; }

  // Adds up what all blocks tell: the row after the layer. All warps but the last.
  DEVICE void receive(u32 left) const {
    const u32 splits = share.params.head_splits;
    const float attention = share.next(left).layer.attention, identity = share.next(left).layer.identity;
#pragma unroll 1
    for (u32 first = threadIdx.x / WARP * WARP; first < share.len(); first += share.part.keys) {
      const u32 column = first + threadIdx.x % WARP;
      const bool wanted = column < share.len();
      float total = 0.0f;
#pragma unroll 1
      for (u32 split = 0; split < splits; split += WORDS_IN_FLIGHT) {
        const auto has = [&](u32 w) { return wanted && split + w < splits; };
        add_values(total, number, has, [&](u32 w) { return place(column, split + w); });
      }
      if (!wanted) continue;
      const float before = share.row(left)[column];
      total *= attention;
      if (before != 0.0f) total += identity * before;
      share.row(left - 1)[column] = total;
    }
  }
};

// The other warps: each multiplies queries by its keys, and tells. What they have to know of a tile they are told: it is not
// in registers while the products are.
DEVICE void take_queries(const Share &share, const PassingQueries &passing, u32 panels, u32 &slot, u32 set) {
  const ScoreStreamParams &params = share.params;
  const u32 warp = threadIdx.x / WARP, stays = share.part.key + warp * TILE;
  const u32 own_panel = panels + (ROOM + warp) * PANEL_BYTES;
  // Those of a head, of the next layer in which the block has tiles.
  const auto bring = [&](u32 left, u32 head) {
    left = share.next_with_tiles(left);
    if (left == 0) return;
    const ItemScores<ELEMENT> item = share.next(left);
    item.keys().fetch<ELEMENT>(own_panel, head / params.scores.sharing, stays, share.len(), 0,
                               params.scores.head_dim * ELEMENT::BYTES);
    commit_copies();
  };
  bring(params.scores.layers, share.part.first_head);
  float of_column[ProductsOfKeys::COLUMNS] = {};
  const auto take = [&](u32, u32 c, float value, float factor) { of_column[c] = fmaf(value, factor, of_column[c]); };
  for (bool ends = false; !ends;) {
    __syncthreads();  // the queries are there
    u32 flags = passing.told[slot].flags;
    if (flags & HAS_TILE) {
      wait_copies<0>();
      __syncwarp();  // the keys are there
      const HeldKeys<ELEMENT> keys(own_panel + LanePlaces<ELEMENT>().queries);
      __syncwarp();  // and have been read
      const u32 left = passing.told[slot].left, next_head = passing.told[slot].head + 1;
      const bool more = next_head < share.part.end_head;
      bring(more ? left : left - 1, more ? next_head : share.part.first_head);
#pragma unroll 1
      for (;;) {
        const Told &told = passing.told[slot];
        const ItemScores<ELEMENT> item = share.next(told.left);
        const ScoreTile tile = {told.head, told.query, stays};
        if (flags & WEIGHS && stays < item.len && (flags & MASKLESS || !item.masks_all(tile.query, TILE, tile.key, TILE))) {
          const bool plain = flags & PLAIN && (flags & MASKLESS || item.masks_none(tile.query, tile.key));
          const float slope = plain ? 0.0f : HeadTerms::of<FUSION>(item, tile.head).slope;
          exponentials_of_held(item, tile, slope, plain, passing.sums[slot], keys,
                               panels + slot * PANEL_BYTES + HeldKeys<ELEMENT>::of_queries(), take);
        }
        if (flags & ENDS_HEAD) break;
        slot = (slot + 1) % ROOM;
        __syncthreads();  // the queries are there
        flags = passing.told[slot].flags;
      }
    }
    if (flags & ENDS_LAYER) {
      const u32 left = passing.told[slot].left;
      const RowWords words(share, set, left);
      const float sum = FUSION::finish(sum_of_rows<ProductsOfKeys>(of_column), params.scores.head_scale);
      const u32 column = stays + ProductsOfKeys::own_column();
      if (column < share.len()) store_word(words.place(column, share.part.split), sum, words.number);
#pragma unroll
      for (u32 c = 0; c < ProductsOfKeys::COLUMNS; ++c) of_column[c] = 0.0f;
      words.receive(left);
      __syncthreads();  // the row after the layer is there
      ends = left == 1;
    }
    slot = (slot + 1) % ROOM;
  }
}

// The start row, and the tiles that may weigh something. All warps.
DEVICE void begin_row(const Share &share, Part &part) {
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = part.keys / WARP + 1;
  const u32 layers = share.params.scores.layers;
  const float *start = share.params.start + part.item * share.params.start_stride_batch;
  float *row = share.row(layers);
  Tiles weighing = {~0u, 0};
#pragma unroll 4
  for (u32 tile = 0; tile * TILE < share.len(); ++tile) {
    const u32 column = tile * TILE + lane;
    const float weight = column < share.len() ? start[column] : 0.0f;
    if (tile % warps == warp && column < share.len()) row[column] = weight;
    if (!__any_sync(FULL_WARP, weight != 0.0f)) continue;
    weighing.first = min_u32(weighing.first, tile);
    weighing.end = tile + 1;
  }
  if (threadIdx.x == 0) {
    part.weighing[layers] = weighing;
#pragma unroll 1
    for (u32 left = layers; left > 1; --left) {
      weighing = attended(share.next(left), weighing);
      part.weighing[left - 1] = weighing;
    }
  }
  __syncthreads();  // both are there
}

// Where the row goes.
DEVICE void end_row(const Share &share, u32 threads) {
  const ScoreStreamParams &params = share.params;
  const u32 before = params.out_windowed ? share.part.window.start : 0;
  const float *row = share.row(0);
  float *out = params.out + u64(share.part.item) * params.out_stride;
  for (u32 j = share.part.split * threads + threadIdx.x; j < params.out_stride; j += params.head_splits * threads) {
    // What lies before the window is far beyond its end.
    out[j] = j - before < share.len() ? row[j - before] : 0.0f;
  }
}

DEVICE void multiply_layers(const ScoreStreamParams &params, const Place &place) {
  __shared__ PassingQueries passing;
  __shared__ u32 exchanges_before;
  __shared__ Part part;
  const u32 panels = unknown(shared_address(dynamic));
  const bool brings = threadIdx.x / WARP == takers(place.threads);
  if (threadIdx.x == 0) {
    // Counted at once: nothing of a run that was cut off is taken for a later one's.
    u32 &count = params.exchanges[place.x * place.grid_y + place.y];
    exchanges_before = count;
    count += (params.scores.batch - place.x + params.sets - 1) / params.sets * params.scores.layers;
    const u32 heads = params.scores.heads;
    part.split = place.y / params.key_blocks;
    part.keys = takers(place.threads) * WARP;
    part.key = place.y % params.key_blocks * part.keys;
    part.first_head = part.split * heads / params.head_splits;
    part.end_head = (part.split + 1) * heads / params.head_splits;
  }
  const Share share = {params, part};
  u32 slot = 0;
#pragma unroll 1
  for (u32 item = place.x; item < params.scores.batch;) {
    if (threadIdx.x == 0) {
      part.window = params.scores.windows[item];
      part.item = item;
      part.exchanges = exchanges_before + (item - place.x) / params.sets * params.scores.layers;
    }
    __syncthreads();  // the item is known
    if (part.key < part.window.len || share.looks_after_rows()) {
      begin_row(share, part);
      if (brings) {
        bring_queries(share, passing, panels, slot);
      } else {
        take_queries(share, passing, panels, slot, place.x);
      }
    }
    if (share.looks_after_rows()) end_row(share, place.threads);
    item = part.item + params.sets;  // not kept in a register
    __syncthreads();  // the row and the item have been read
  }
}

ENTRY(ScoreStreamParams, multiply_layers, __launch_bounds__(THREADS, BLOCKS - GROUPED))
