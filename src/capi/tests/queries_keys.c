/* A host program in C whose model keeps queries and keys. Arguments: `cpu`; `cuda` on a driver, be it the stand-in. */

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "host.h"

enum { LAYERS = 2, BATCH = 2, HEADS = 4, TOKENS = 9, DIM = 8, ROW = BATCH * TOKENS };
enum { QUERIES = BATCH * HEADS * TOKENS * DIM, LSE = BATCH * HEADS * TOKENS };

/* Queries and keys, each as f32 and as bfloat16 of the same value, and the LSE of the problem at hand. */
static struct tensors {
    float queries[LAYERS][QUERIES], keys[LAYERS][QUERIES], lse[LAYERS][LSE];
    uint16_t short_queries[LAYERS][QUERIES], short_keys[LAYERS][QUERIES];
} tensors;

/* Numbers between -2 and 2. */
static void fill(float *values, uint16_t *shorts, unsigned state) {
    for (int i = 0; i < LAYERS * QUERIES; i++) {
        state = state * 1664525u + 1013904223u;
        float value = (float)(state >> 8) / (1 << 22) - 2;
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        bits &= 0xffff0000;
        memcpy(&values[i], &bits, sizeof bits);
        shorts[i] = bits >> 16;
    }
}

static ArProblem problem_of(const ArQueriesKeys *source, ArMemory memory) {
    ArProblem problem = {sizeof problem, LAYERS, BATCH, HEADS, TOKENS};
    problem.memory = memory;
    problem.row_kind = AR_ROWS_LAST;
    problem.queries_keys = source;
    return problem;
}

/* Nothing but what must be said. */
static const ArQueriesKeys plain = {sizeof plain, DIM};

/* An LSE, and a scale of its own. */
static ArQueriesKeys with_lse(void) {
    ArQueriesKeys source = plain;
    source.lse = AR_LSE_NATURAL;
    source.scale = 0.25f;
    return source;
}

/* Everything: pairs of heads that share keys, tokens first, what differs by layer, a base of 2. */
static ArQueriesKeys with_everything(void) {
    enum { SHARED = HEADS / 2 };
    static const ArQueriesKeysStrides strides = {
        {TOKENS * HEADS * DIM, DIM, HEADS * DIM},
        {TOKENS * SHARED * DIM, DIM, SHARED * DIM},
        {TOKENS * HEADS, 1, HEADS},
    };
    static const size_t sliding_windows[LAYERS] = {0, 4};
    static const float soft_cap = 3, alibi_slopes[HEADS] = {0.1f, 0, 0.3f, 0.05f};
    static const float sinks[LAYERS * HEADS] = {0.5f, -1, 1, 0, -0.5f, 0.25f, 0.75f, 2};
    ArQueriesKeys source = plain;
    source.key_heads = SHARED;
    source.strides = &strides, source.strides_count = 1;
    source.sliding_windows = sliding_windows, source.sliding_windows_count = LAYERS;
    source.soft_caps = &soft_cap, source.soft_caps_count = 1;
    source.alibi_slopes = alibi_slopes, source.alibi_slopes_count = HEADS;
    source.sinks = sinks, source.sinks_count = LAYERS * HEADS;
    source.lse = AR_LSE_BASE_TWO;
    return source;
}

static void layers_at(ArLayer layers[LAYERS], const ArProblem *problem, const void *first) {
    const struct tensors *at = first;
    for (int layer = 0; layer < LAYERS; layer++) {
        ArLayer one = {sizeof one};
        int is_short = problem->dtype == AR_DTYPE_BF16;
        one.queries = is_short ? (const void *)at->short_queries[layer] : at->queries[layer];
        one.keys = is_short ? (const void *)at->short_keys[layer] : at->keys[layer];
        one.queries_count = one.keys_count = QUERIES;
        if (problem->queries_keys->lse != AR_LSE_RECOMPUTED) one.lse = at->lse[layer], one.lse_count = LSE;
        layers[layer] = one;
    }
}

static size_t at(ArTokenStrides strides, int item, int head, int token) {
    return item * strides.batch + head * strides.head + token * strides.token;
}

/* The value `place` of a layer, of a list that holds none, those of all layers, or `width` of each. */
static double of_layer(const float *values, size_t count, int width, int layer, int place, double none) {
    return count ? values[(count > (size_t)width ? layer * width : 0) + place] : none;
}

/* A row of attention as the header says it; returns its LSE. */
static double attend(const ArProblem *problem, int layer, int item, int head, int i, double row[TOKENS]) {
    const ArQueriesKeys *of = problem->queries_keys;
    int shared = of->key_heads ? (int)of->key_heads : HEADS;
    ArQueriesKeysStrides strides = {{HEADS * TOKENS * DIM, TOKENS * DIM, DIM}, {HEADS * TOKENS * DIM, TOKENS * DIM, DIM}, {0}};
    if (of->strides_count) strides = of->strides[0];
    double scale = of->scale != 0 ? of->scale : 1 / sqrt(DIM), sum = 0;
    double cap = of_layer(of->soft_caps, of->soft_caps_count, 1, layer, 0, 0);
    double slope = of_layer(of->alibi_slopes, of->alibi_slopes_count, HEADS, layer, head, 0);
    size_t sliding = of->sliding_windows_count ? of->sliding_windows[layer] : 0;
    if (of->sinks_count) sum = exp(of_layer(of->sinks, of->sinks_count, HEADS, layer, head, 0));
    for (int j = 0; j < TOKENS; j++) {
        const float *query = &tensors.queries[layer][at(strides.queries, item, head, i)];
        const float *key = &tensors.keys[layer][at(strides.keys, item, head / (HEADS / shared), j)];
        double score = 0;
        for (int e = 0; e < DIM; e++) score += scale * query[e] * key[e];
        if (cap != 0) score = cap * tanh(score / cap);
        row[j] = exp(score - slope * abs(i - j));
        if ((problem->causal && j > i) || (sliding && (size_t)abs(i - j) >= sliding)) row[j] = 0;
        sum += row[j];
    }
    for (int j = 0; j < TOKENS; j++) row[j] /= sum;
    return log(sum);
}

/* The LSE as the model's forward pass would have left it. */
static void fill_lse(const ArProblem *problem) {
    const ArQueriesKeys *of = problem->queries_keys;
    ArTokenStrides strides = {HEADS * TOKENS, TOKENS, 1};
    double row[TOKENS];
    if (of->strides_count) strides = of->strides[0].lse;
    for (int layer = 0; layer < LAYERS; layer++)
        for (int item = 0; item < BATCH; item++)
            for (int head = 0; head < HEADS; head++)
                for (int i = 0; i < TOKENS; i++) {
                    double lse = attend(problem, layer, item, head, i, row);
                    tensors.lse[layer][at(strides, item, head, i)] = of->lse == AR_LSE_BASE_TWO ? lse / log(2) : lse;
                }
}

/* r <- r / 2 + (r A) / 2 from the last layer to the first, A the mean of the heads, from the last token. */
static void check_last_row(const ArProblem *problem, const float *got) {
    for (int item = 0; item < BATCH; item++) {
        double r[TOKENS] = {0};
        r[TOKENS - 1] = 1;
        for (int layer = LAYERS - 1; layer >= 0; layer--) {
            double next[TOKENS], row[TOKENS];
            for (int j = 0; j < TOKENS; j++) next[j] = 0.5 * r[j];
            for (int head = 0; head < HEADS; head++)
                for (int i = 0; i < TOKENS; i++) {
                    attend(problem, layer, item, head, i, row);
                    for (int j = 0; j < TOKENS; j++) next[j] += 0.5 * r[i] * row[j] / HEADS;
                }
            memcpy(r, next, sizeof r);
        }
        for (int j = 0; j < TOKENS; j++) CHECK(fabs(got[item * TOKENS + j] - r[j]) <= 2e-6);
    }
}

/* Where a plan's layers lie, and in device memory the stream that runs it and room for layers and output. */
struct place {
    ArDevice *device;
    ArMemory memory;
    void *stream;
    char *tensors;
};

static ArStatus run(const struct place *place, ArPlan *plan, const ArProblem *problem, float out[ROW]) {
    ArLayer layers[LAYERS];
    if (place->memory == AR_MEMORY_HOST) {
        layers_at(layers, problem, &tensors);
        ArStatus status = ar_plan_run(plan, layers, LAYERS, out, ROW, NULL);
        return status ? status : ar_plan_check(plan, place->stream);
    }
    float *device_out = (float *)(place->tensors + sizeof tensors);
    layers_at(layers, problem, place->tensors);
    CU(cuMemcpyHtoD_v2, place->tensors, &tensors, sizeof tensors);
    CHECK(ar_plan_run(plan, layers, LAYERS, device_out, ROW, place->stream) == AR_STATUS_OK);
    CU(cuStreamSynchronize, place->stream);
    CU(cuMemcpyDtoH_v2, out, device_out, ROW * sizeof *out);
    return ar_plan_check(plan, place->stream);
}

static void computes(const struct place *place) {
    ArQueriesKeys sources[3] = {plain, with_lse(), with_everything()};
    for (int i = 0; i < 3; i++) {
        ArProblem problem = problem_of(&sources[i], place->memory);
        ArPlan *plan = NULL;
        float out[ROW];
        problem.items_per_chunk = 1;
        problem.causal = i == 2;
        problem.dtype = i == 2 ? AR_DTYPE_BF16 : AR_DTYPE_F32;
        fill_lse(&problem);
        for (int j = 0; j < ROW; j++) out[j] = NAN;
        CHECK(ar_plan_new(place->device, &problem, &plan) == AR_STATUS_OK);
        CHECK(ar_plan_check(plan, place->stream) == AR_STATUS_OK);
        CHECK(run(place, plan, &problem, out) == AR_STATUS_OK);
        check_last_row(&problem, out);
        ar_plan_free(plan);
    }
}

/* What does not belong together is noticed, where it is looked at. */
static void notices(const struct place *place) {
    ArQueriesKeys source = with_lse();
    ArProblem problem = problem_of(&source, place->memory);
    ArPlan *plan = NULL;
    float out[ROW], *lse = &tensors.lse[0][(1 * HEADS + 2) * TOKENS + 5];
    problem.items_per_chunk = 1;
    fill_lse(&problem);
    CHECK(ar_plan_new(place->device, &problem, &plan) == AR_STATUS_OK);
    *lse += 1;
    REFUSED(AR_STATUS_MISMATCH, "layer 0, item 1, head 2, row 5: the natural logarithm of the sum is", run(place, plan, &problem, out));
    *lse -= 1;
    CHECK(run(place, plan, &problem, out) == AR_STATUS_OK);
    check_last_row(&problem, out);
    /* Too little for the LSE, too much for the sums. */
    for (int i = 0; i < LSE; i++) tensors.lse[0][i] += 5e-3f;
    REFUSED(AR_STATUS_MISMATCH, "layer 0, item 0, row 0: relevance sums to 0.997", run(place, plan, &problem, out));
    CHECK(strstr(ar_last_error(), "must sum to 1 within 0.001 of it"));
    ar_plan_free(plan);
    source.mass_tolerance = 0.1f;
    CHECK(ar_plan_new(place->device, &problem, &plan) == AR_STATUS_OK);
    CHECK(run(place, plan, &problem, out) == AR_STATUS_OK);
    ar_plan_free(plan);
    source.mass_tolerance = 0, source.unchecked = 1;
    *lse += 1;
    CHECK(ar_plan_new(place->device, &problem, &plan) == AR_STATUS_OK);
    CHECK(run(place, plan, &problem, out) == AR_STATUS_OK);
    ar_plan_free(plan);
}

/* What is refused of a problem. */
static void refused_problems(ArDevice *device) {
    ArQueriesKeys bad = plain;
    ArProblem problem = problem_of(&bad, AR_MEMORY_HOST);
    ArPlan *plan = NULL;
    bad.size--;
    REFUSED(AR_STATUS_STRUCT_SIZE, "ArQueriesKeys: expected size", ar_plan_new(device, &problem, &plan));
    bad = plain, problem.queries_keys = (ArQueriesKeys *)((char *)&bad + 1);
    REFUSED(AR_STATUS_INVALID, "ArQueriesKeys: expected a multiple of 8 bytes", ar_plan_new(device, &problem, &plan));
    problem.queries_keys = &bad;
    bad.head_dim = 12;
    REFUSED(AR_STATUS_INVALID, "the head size must be a multiple of 8, from 8 to 256, got 12", ar_plan_new(device, &problem, &plan));
    bad = plain, bad.key_heads = 3;
    REFUSED(AR_STATUS_INVALID, "key heads must divide the 4 heads of the queries, got 3", ar_plan_new(device, &problem, &plan));
    bad = plain, bad.lse = 3;
    REFUSED(AR_STATUS_INVALID, "lse: expected one of 0 to 2, got 3", ar_plan_new(device, &problem, &plan));
    bad = plain, bad.scale = NAN;
    REFUSED(AR_STATUS_INVALID, "the scale must be finite, got NaN", ar_plan_new(device, &problem, &plan));
    bad = plain, bad.mass_tolerance = -1;
    REFUSED(AR_STATUS_INVALID, "the mass tolerance must be at least 0, got -1", ar_plan_new(device, &problem, &plan));
    bad = plain, bad.soft_caps_count = 1;
    REFUSED(AR_STATUS_NULL_POINTER, "soft_caps", ar_plan_new(device, &problem, &plan));
    bad = with_everything(), bad.sinks_count = 3;
    REFUSED(AR_STATUS_INVALID, "sinks: expected none, 4 that all layers share, or 4 for each of 2 layers, got 3",
            ar_plan_new(device, &problem, &plan));
    bad = plain, problem.gradients = AR_GRADIENTS_HEADS;
    REFUSED(AR_STATUS_INVALID, "gradients cannot be had together with queries and keys", ar_plan_new(device, &problem, &plan));
    CHECK(!plan);
}

/* What is refused of a run; the output stays as it was. */
static void refused_layers(ArDevice *device) {
    ArQueriesKeys source = with_lse();
    ArProblem problem = problem_of(&source, AR_MEMORY_HOST), of_maps = problem;
    ArPlan *plan = NULL;
    ArLayer layers[LAYERS];
    float out[ROW];
    for (int i = 0; i < ROW; i++) out[i] = -1;
    CHECK(ar_plan_new(device, &problem, &plan) == AR_STATUS_OK);
#define RUN_REFUSED(status, words, change) \
    layers_at(layers, &problem, &tensors), change; \
    REFUSED(status, words, ar_plan_run(plan, layers, LAYERS, out, ROW, NULL))
    RUN_REFUSED(AR_STATUS_NULL_POINTER, "queries: expected a pointer, got NULL", layers[1].queries = NULL);
    RUN_REFUSED(AR_STATUS_NULL_POINTER, "keys: expected a pointer, got NULL", layers[1].keys = NULL);
    RUN_REFUSED(AR_STATUS_NULL_POINTER, "queries: expected a pointer", (layers[1].queries = layers[1].keys = layers[1].lse = NULL));
    RUN_REFUSED(AR_STATUS_INVALID, "layer 1: expected queries, keys and LSE, got queries and keys", layers[1].lse = NULL);
    RUN_REFUSED(AR_STATUS_INVALID, "layer 1: expected maps or queries and keys, got both", layers[1].maps = &tensors);
    RUN_REFUSED(AR_STATUS_INVALID, "layer 0, LSE: its extents and strides reach 72 elements, got 71", layers[0].lse_count--);
    RUN_REFUSED(AR_STATUS_INVALID, "layer 1, keys: its extents and strides reach 576 elements, got 575", layers[1].keys_count--);
    RUN_REFUSED(AR_STATUS_INVALID, "lse: expected a multiple of 4 bytes",
                layers[0].lse = (const float *)((const char *)layers[0].lse + 2));
    layers_at(layers, &problem, &tensors), layers[0].queries = layers[0].keys = layers[0].lse = NULL;
    layers[0].maps = &tensors, layers[0].maps_count = QUERIES;
    REFUSED(AR_STATUS_INVALID, "layer 0: expected queries, keys and LSE, got maps", ar_plan_run(plan, layers, LAYERS, out, ROW, NULL));
    layers_at(layers, &problem, &tensors);
    REFUSED(AR_STATUS_INVALID, "the output overlaps layer 1", ar_plan_run(plan, layers, LAYERS, tensors.lse[1], ROW, NULL));
    REFUSED(AR_STATUS_NULL_POINTER, "plan", ar_plan_check(NULL, NULL));
    REFUSED(AR_STATUS_INVALID, "stream: expected NULL for layers in host memory", ar_plan_check(plan, out));
    ar_plan_free(plan);
    of_maps.queries_keys = NULL;
    CHECK(ar_plan_new(device, &of_maps, &plan) == AR_STATUS_OK);
    RUN_REFUSED(AR_STATUS_INVALID, "layer 0: expected maps, got queries, keys and LSE", (void)0);
    ar_plan_free(plan);
    for (int i = 0; i < ROW; i++) CHECK(out[i] == -1);
}

int main(int count, char **arguments) {
    const char *what = count > 1 ? arguments[1] : "";
    struct place place = {NULL, AR_MEMORY_HOST, NULL, NULL};
    void *stream = NULL;
    fill(tensors.queries[0], tensors.short_queries[0], 1);
    fill(tensors.keys[0], tensors.short_keys[0], 2);
    if (strcmp(what, "cpu") == 0) {
        place.device = device_of(AR_DEVICE_KIND_CPU);
        refused_problems(place.device);
        refused_layers(place.device);
    } else if (strcmp(what, "cuda") == 0) {
        stream = stream_on_device();
        place.device = device_of(AR_DEVICE_KIND_CUDA);
        CU(cuMemAlloc_v2, &place.tensors, sizeof tensors + ROW * sizeof(float));
    } else {
        fprintf(stderr, "cpu or cuda\n");
        return 2;
    }
    computes(&place);
    notices(&place);
    if (place.tensors) {
        place.memory = AR_MEMORY_DEVICE, place.stream = stream;
        size_t before = launched();
        computes(&place);
        CHECK(!before || launched() > before);
        notices(&place);
        CU(cuMemFree_v2, place.tensors);
        CU(cuStreamDestroy_v2, stream);
    }
    ar_device_free(place.device);
    puts("done");
    return 0;
}
