/* A host program in C. Arguments: `cpu`; `machine` where there is no GPU; `cuda` on a driver, be it the stand-in. */

#include <math.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "host.h"

enum { LAYERS = 3, BATCH = 2, HEADS = 2, TOKENS = 9, MAP = TOKENS * TOKENS, MAPS = BATCH * HEADS * MAP, ROW = BATCH * TOKENS };

static float maps[LAYERS][MAPS];

/* Rows that sum to 1, each its own. */
static void fill_maps(void) {
    unsigned state = 1;
    for (int layer = 0; layer < LAYERS; layer++)
        for (int row = 0; row < MAPS / TOKENS; row++) {
            float *entries = &maps[layer][row * TOKENS], sum = 0;
            for (int i = 0; i < TOKENS; i++) {
                state = state * 1664525u + 1013904223u;
                sum += entries[i] = expf((float)(state >> 8) / (1 << 22));
            }
            for (int i = 0; i < TOKENS; i++) entries[i] /= sum;
        }
}

/* r <- r / 2 + (r A) / 2 from the last layer to the first, A the mean of the heads; with the maps as their own gradients
   where there are any, the mean of the squares. */
static void check_row_0(const float *got, ArGradients gradients) {
    for (int item = 0; item < BATCH; item++) {
        double r[TOKENS] = {1.0};
        for (int layer = LAYERS - 1; layer >= 0; layer--) {
            double next[TOKENS];
            for (int j = 0; j < TOKENS; j++) {
                double sum = 0;
                for (int head = 0; head < HEADS; head++)
                    for (int i = 0; i < TOKENS; i++) {
                        double entry = maps[layer][(item * HEADS + head) * MAP + i * TOKENS + j];
                        sum += r[i] * (gradients == AR_GRADIENTS_NONE ? entry : entry * entry);
                    }
                next[j] = 0.5 * r[j] + 0.5 * sum / HEADS;
            }
            memcpy(r, next, sizeof r);
        }
        for (int j = 0; j < TOKENS; j++) CHECK(fabs(got[item * TOKENS + j] - r[j]) <= 1e-6);
    }
}

/* The same of items from `first` on, each with a window of its own and `rows` start rows, counted from its start. */
static void check_in_windows(const float *got, int first, int items, int rows, const ArWindow *windows, const size_t *row) {
    for (int m = 0; m < items * rows; m++) {
        const ArWindow window = windows[m / rows];
        double r[TOKENS] = {0};
        if (window.len) r[window.start + row[m]] = 1.0;
        for (int layer = LAYERS - 1; layer >= 0; layer--) {
            double next[TOKENS] = {0};
            for (size_t j = window.start; j < window.start + window.len; j++) {
                double sum = 0;
                for (int head = 0; head < HEADS; head++)
                    for (size_t i = window.start; i < window.start + window.len; i++)
                        sum += r[i] * maps[layer][((first + m / rows) * HEADS + head) * MAP + i * TOKENS + j];
                next[j] = 0.5 * r[j] + 0.5 * sum / HEADS;
            }
            memcpy(r, next, sizeof r);
        }
        for (int j = 0; j < TOKENS; j++) CHECK(fabs(got[m * TOKENS + j] - r[j]) <= 1e-6);
    }
}

static ArProblem problem_in(ArMemory memory) {
    ArProblem problem = {sizeof problem};
    problem.layers = LAYERS;
    problem.batch = BATCH;
    problem.heads = HEADS;
    problem.tokens = TOKENS;
    problem.memory = memory;
    return problem;
}

static void layers_at(ArLayer layers[LAYERS], const void *first) {
    for (int layer = 0; layer < LAYERS; layer++) {
        ArLayer one = {sizeof one};
        one.maps = (const float *)first + layer * MAPS;
        one.maps_count = MAPS;
        layers[layer] = one;
    }
}

/* The maps as their own gradients. */
static void weigh(ArLayer layers[LAYERS]) {
    for (int layer = 0; layer < LAYERS; layer++) {
        layers[layer].gradients = layers[layer].maps;
        layers[layer].gradients_count = layers[layer].maps_count;
    }
}

static void run_on_host(ArDevice *device) {
    ArProblem problem = problem_in(AR_MEMORY_HOST);
    ArPlan *plan = NULL;
    ArPlanInfo info = {sizeof info};
    ArLayer layers[LAYERS];
    float out[ROW];
    problem.items_per_chunk = 1;
    layers_at(layers, maps);
    CHECK(ar_plan_new(device, &problem, &plan) == AR_STATUS_OK);
    CHECK(ar_plan_info(plan, &info) == AR_STATUS_OK);
    CHECK(info.output_count == ROW && info.output_rank == 2 && info.output_shape[0] == BATCH);
    CHECK(info.output_shape[1] == TOKENS && info.output_shape[2] == 0 && info.items_per_chunk == 1);
    CHECK(info.workspace_bytes > 0);
    for (int again = 0; again < 2; again++) {
        for (int i = 0; i < ROW; i++) out[i] = NAN;
        CHECK(ar_plan_run(plan, layers, LAYERS, out, ROW, NULL) == AR_STATUS_OK);
        check_row_0(out, AR_GRADIENTS_NONE);
    }
    ar_plan_free(plan);
    problem.gradients = AR_GRADIENTS_HEADS;
    weigh(layers);
    CHECK(ar_plan_new(device, &problem, &plan) == AR_STATUS_OK);
    ar_device_free(device);
    CHECK(ar_plan_run(plan, layers, LAYERS, out, ROW, NULL) == AR_STATUS_OK);
    check_row_0(out, AR_GRADIENTS_HEADS);
    ar_plan_free(plan);
}

/* A plan for windows and two start rows per item, of which every run is given others. */
static ArPlan *plan_of_windows(ArDevice *device, ArMemory memory) {
    ArProblem problem = problem_in(memory);
    static const size_t rows[BATCH * 2] = {0};
    ArPlan *plan = NULL;
    problem.row_kind = AR_ROWS_PER_ITEM;
    problem.rows = rows, problem.rows_count = BATCH * 2;
    problem.max_window = TOKENS;
    CHECK(ar_plan_new(device, &problem, &plan) == AR_STATUS_OK);
    return plan;
}

static void inputs_on_host(ArDevice *device) {
    ArPlan *plan = plan_of_windows(device, AR_MEMORY_HOST);
    ArLayer layers[LAYERS];
    ArPlanInfo info = {sizeof info};
    float out[2 * ROW];
    ArWindow windows[BATCH] = {{1, 5}, {0, TOKENS}};
    size_t rows[BATCH * 2] = {4, 0, 8, 3};
    ArInputs inputs = {sizeof inputs, windows, BATCH, NULL, 0}, rows_alone = {sizeof inputs, NULL, 0, rows, BATCH * 2}, bad;
    ArRun run = {sizeof run};
    layers_at(layers, maps);
    CHECK(ar_plan_info(plan, &info) == AR_STATUS_OK && info.output_rank == 3 && info.output_shape[1] == 2);
    CHECK(ar_plan_set_inputs(plan, &inputs) == AR_STATUS_OK && ar_plan_set_inputs(plan, &rows_alone) == AR_STATUS_OK);
    CHECK(ar_plan_run(plan, layers, LAYERS, out, 2 * ROW, NULL) == AR_STATUS_OK);
    check_in_windows(out, 0, BATCH, 2, windows, rows);
    /* Both at once, for the second item alone. */
    windows[1].start = 2, windows[1].len = 4, rows[2] = 3, rows[3] = 1;
    inputs.rows = rows, inputs.rows_count = BATCH * 2;
    CHECK(ar_plan_set_inputs(plan, &inputs) == AR_STATUS_OK);
    run.first_item = 1;
    for (int layer = 0; layer < LAYERS; layer++)
        layers[layer].maps = &maps[layer][HEADS * MAP], layers[layer].maps_count = HEADS * MAP;
    CHECK(ar_plan_run_with(plan, layers, LAYERS, out, ROW, NULL, &run) == AR_STATUS_OK);
    check_in_windows(out, 1, 1, 2, windows + 1, rows + 2);

    /* What is refused leaves the plan as it was. */
    REFUSED(AR_STATUS_NULL_POINTER, "ArInputs", ar_plan_set_inputs(plan, NULL));
    bad = inputs, bad.size--;
    REFUSED(AR_STATUS_STRUCT_SIZE, "ArInputs", ar_plan_set_inputs(plan, &bad));
    bad = inputs, bad.windows_count = 1;
    REFUSED(AR_STATUS_INVALID, "windows, one per item: expected 2, got 1", ar_plan_set_inputs(plan, &bad));
    ArWindow others[BATCH] = {{0, 1}, {0, 1}};
    bad = inputs, bad.windows = others, bad.rows_count = 3;
    REFUSED(AR_STATUS_INVALID, "start rows, as many for each item: expected 4, got 3", ar_plan_set_inputs(plan, &bad));
    REFUSED(AR_STATUS_NULL_POINTER, "ArRun", ar_plan_run_with(plan, layers, LAYERS, out, ROW, NULL, NULL));
    run.size++;
    REFUSED(AR_STATUS_STRUCT_SIZE, "ArRun", ar_plan_run_with(plan, layers, LAYERS, out, ROW, NULL, &run));
    run.size--, run.end_item = BATCH + 1;
    REFUSED(AR_STATUS_INVALID, "items 1..3 are not among the 2 items", ar_plan_run_with(plan, layers, LAYERS, out, ROW, NULL, &run));
    run.end_item = BATCH, run.rows = (int32_t *)out, run.rows_count = 2;
    REFUSED(AR_STATUS_INVALID, "rows of a run: expected NULL", ar_plan_run_with(plan, layers, LAYERS, out, ROW, NULL, &run));
    run.rows = NULL;
    CHECK(ar_plan_run_with(plan, layers, LAYERS, out, ROW, NULL, &run) == AR_STATUS_OK);
    check_in_windows(out, 1, 1, 2, windows + 1, rows + 2);
    ar_plan_free(plan);

    /* A plan made without windows takes none. */
    ArProblem fixed = problem_in(AR_MEMORY_HOST);
    CHECK(ar_plan_new(device, &fixed, &plan) == AR_STATUS_OK);
    REFUSED(AR_STATUS_INVALID, "made without windows", ar_plan_set_inputs(plan, &inputs));
    REFUSED(AR_STATUS_INVALID, "made without start rows per item", ar_plan_set_inputs(plan, &rows_alone));
    ar_plan_free(plan);
    ar_device_free(device);
}

/* Everything that is refused before it matters which device it is for, or that the CPU refuses. */
static void refusals(void) {
    ArDeviceOptions options = {sizeof options};
    ArDevice *device = NULL;
    ArPlan *plan = NULL;
    ArPlanInfo info = {sizeof info};
    ArLayer layers[LAYERS];
    float out[ROW];
    ArProblem good = problem_in(AR_MEMORY_HOST), bad;

    CHECK(strcmp(ar_last_error(), "") == 0);
    REFUSED(AR_STATUS_NULL_POINTER, "device: expected a pointer, got NULL", ar_device_new(&options, NULL));
    REFUSED(AR_STATUS_NULL_POINTER, "ArDeviceOptions", ar_device_new(NULL, &device));
    options.size--;
    REFUSED(AR_STATUS_STRUCT_SIZE, "ArDeviceOptions: expected size 24, got 23", ar_device_new(&options, &device));
    options.size++;
    options.kind = 2;
    REFUSED(AR_STATUS_INVALID, "kind: expected one of 0 to 1, got 2", ar_device_new(&options, &device));
    options.kind = AR_DEVICE_KIND_CPU;
    options.precision = 9;
    REFUSED(AR_STATUS_INVALID, "precision", ar_device_new(&options, &device));
    CHECK(!device);

    device = device_of(AR_DEVICE_KIND_CPU);
    REFUSED(AR_STATUS_NULL_POINTER, "plan", ar_plan_new(device, &good, NULL));
    REFUSED(AR_STATUS_NULL_POINTER, "device", ar_plan_new(NULL, &good, &plan));
    REFUSED(AR_STATUS_NULL_POINTER, "ArProblem", ar_plan_new(device, NULL, &plan));
    REFUSED(AR_STATUS_INVALID, "multiple of 8", ar_plan_new(device, (ArProblem *)((char *)&good + 1), &plan));
    bad = good, bad.size = 8;
    REFUSED(AR_STATUS_STRUCT_SIZE, "got 8", ar_plan_new(device, &bad, &plan));
    bad = good, bad.memory = AR_MEMORY_DEVICE;
    REFUSED(AR_STATUS_INVALID, "AR_MEMORY_HOST on the CPU", ar_plan_new(device, &bad, &plan));
    bad = good, bad.dtype = 3;
    REFUSED(AR_STATUS_INVALID, "dtype", ar_plan_new(device, &bad, &plan));
    bad = good, bad.layers = 0;
    REFUSED(AR_STATUS_INVALID, "layers must be at least 1", ar_plan_new(device, &bad, &plan));
    bad = good, bad.tokens = (size_t)1 << 40;
    REFUSED(AR_STATUS_INVALID, "overflows", ar_plan_new(device, &bad, &plan));
    bad = good, bad.windows_count = BATCH;
    REFUSED(AR_STATUS_NULL_POINTER, "windows", ar_plan_new(device, &bad, &plan));
    ArWindow windows[BATCH] = {{0, TOKENS}, {1, TOKENS}};
    bad.windows = windows;
    REFUSED(AR_STATUS_INVALID, "item 1: window 1..1+9 leaves the 9 tokens", ar_plan_new(device, &bad, &plan));
    bad.windows_count = 1;
    REFUSED(AR_STATUS_INVALID, "windows, one per item: expected 2, got 1", ar_plan_new(device, &bad, &plan));
    bad.windows_count = (size_t)-1;
    REFUSED(AR_STATUS_INVALID, "overflow the address space", ar_plan_new(device, &bad, &plan));
    bad = good, bad.discard_ratio = NAN;
    REFUSED(AR_STATUS_INVALID, "discard ratio", ar_plan_new(device, &bad, &plan));
    CHECK(!plan);

    CHECK(ar_plan_new(device, &good, &plan) == AR_STATUS_OK);
    ar_device_free(device);
    REFUSED(AR_STATUS_NULL_POINTER, "plan", ar_plan_info(NULL, &info));
    REFUSED(AR_STATUS_NULL_POINTER, "ArPlanInfo", ar_plan_info(plan, NULL));
    info.size = 0;
    REFUSED(AR_STATUS_STRUCT_SIZE, "got 0", ar_plan_info(plan, &info));
    CHECK(info.output_count == 0);

    layers_at(layers, maps);
    for (int i = 0; i < ROW; i++) out[i] = -1;
    REFUSED(AR_STATUS_NULL_POINTER, "plan", ar_plan_run(NULL, layers, LAYERS, out, ROW, NULL));
    REFUSED(AR_STATUS_NULL_POINTER, "layers", ar_plan_run(plan, NULL, LAYERS, out, ROW, NULL));
    REFUSED(AR_STATUS_NULL_POINTER, "out", ar_plan_run(plan, layers, LAYERS, NULL, ROW, NULL));
    REFUSED(AR_STATUS_INVALID, "expected 3, got 2", ar_plan_run(plan, layers, LAYERS - 1, out, ROW, NULL));
    REFUSED(AR_STATUS_INVALID, "expected 18 elements, got 17", ar_plan_run(plan, layers, LAYERS, out, ROW - 1, NULL));
    REFUSED(AR_STATUS_INVALID, "multiple of 4", ar_plan_run(plan, layers, LAYERS, (float *)((char *)out + 1), ROW, NULL));
    REFUSED(AR_STATUS_INVALID, "the output overlaps layer 1", ar_plan_run(plan, layers, LAYERS, maps[1], ROW, NULL));
    REFUSED(AR_STATUS_INVALID, "stream: expected NULL", ar_plan_run(plan, layers, LAYERS, out, ROW, out));
    layers[2].size = 0;
    REFUSED(AR_STATUS_STRUCT_SIZE, "ArLayer", ar_plan_run(plan, layers, LAYERS, out, ROW, NULL));
    layers_at(layers, maps), layers[2].maps = NULL;
    REFUSED(AR_STATUS_NULL_POINTER, "maps", ar_plan_run(plan, layers, LAYERS, out, ROW, NULL));
    layers_at(layers, maps), layers[2].maps = (char *)maps + 2;
    REFUSED(AR_STATUS_INVALID, "multiple of 4", ar_plan_run(plan, layers, LAYERS, out, ROW, NULL));
    layers_at(layers, maps), layers[2].maps_count = (size_t)-1;
    REFUSED(AR_STATUS_INVALID, "overflow", ar_plan_run(plan, layers, LAYERS, out, ROW, NULL));
    layers_at(layers, maps), layers[1].maps_count--;
    REFUSED(AR_STATUS_INVALID, "layer 1, maps: its extents and strides reach 324 elements, got 323",
            ar_plan_run(plan, layers, LAYERS, out, ROW, NULL));
    layers_at(layers, maps), layers[0].gradients = maps[1], layers[0].gradients_count = MAPS;
    REFUSED(AR_STATUS_INVALID, "layer 0: expected maps, got maps and gradients", ar_plan_run(plan, layers, LAYERS, out, ROW, NULL));
    for (int i = 0; i < ROW; i++) CHECK(out[i] == -1);

    layers_at(layers, maps);
    CHECK(ar_plan_run(plan, layers, LAYERS, out, ROW, NULL) == AR_STATUS_OK);
    check_row_0(out, AR_GRADIENTS_NONE);
    ar_plan_free(plan);
    ar_plan_free(NULL);
    ar_device_free(NULL);
}

struct work {
    ArPlan *plan;
    ArLayer *layers;
    float *out;
    void *stream;
    volatile int stop;
};

static void *work_until_stopped(void *given) {
    struct work *work = given;
    CHECK(strcmp(ar_last_error(), "") == 0);
    do {
        ArStatus status = ar_plan_run(work->plan, work->layers, LAYERS, work->out, ROW, work->stream);
        CHECK(status == AR_STATUS_OK || status == AR_STATUS_BUSY);
    } while (!work->stop);
    return NULL;
}

/* A plan goes to another thread; while that one uses it, this one is refused. */
static void threads(void) {
    ArDevice *device = device_of(AR_DEVICE_KIND_CPU);
    ArProblem problem = problem_in(AR_MEMORY_HOST);
    ArPlanInfo info = {sizeof info};
    ArLayer layers[LAYERS];
    float out[ROW];
    struct work work = {NULL, layers, out, NULL, 0};
    pthread_t thread;
    ArStatus status = AR_STATUS_OK;
    time_t start = time(NULL);
    layers_at(layers, maps);
    CHECK(ar_plan_new(device, &problem, &work.plan) == AR_STATUS_OK);
    CHECK(pthread_create(&thread, NULL, work_until_stopped, &work) == 0);
    while (status == AR_STATUS_OK && time(NULL) < start + 60) status = ar_plan_info(work.plan, &info);
    REFUSED(AR_STATUS_BUSY, "in use by another thread", status);
    work.stop = 1;
    CHECK(pthread_join(thread, NULL) == 0);
    check_row_0(out, AR_GRADIENTS_NONE);
    ar_plan_free(work.plan);
    ar_device_free(device);
}

static void inputs_on_device(ArDevice *device, char *device_maps, void *stream) {
    ArPlan *plan = plan_of_windows(device, AR_MEMORY_DEVICE);
    ArLayer layers[LAYERS];
    ArWindow windows[BATCH] = {{1, 5}, {0, TOKENS}}, held = {TOKENS - 2, 2};
    size_t rows[BATCH * 2] = {4, 0, 8, 3}, held_rows[2] = {0, 1};
    ArInputs inputs = {sizeof inputs, windows, BATCH, rows, BATCH * 2};
    int32_t given[4] = {TOKENS - 2, 7, -1, 9};
    ArRun run = {sizeof run};
    float out[2 * ROW];
    char *memory;
    CU(cuMemAlloc_v2, &memory, sizeof out + sizeof given);
    float *device_out = (float *)memory;
    run.windows = (int32_t *)(memory + sizeof out), run.windows_count = 2;
    run.rows = run.windows + 2, run.rows_count = 2;
    CU(cuMemcpyHtoD_v2, memory + sizeof out, given, sizeof given);
    layers_at(layers, device_maps);
    CHECK(ar_plan_set_inputs(plan, &inputs) == AR_STATUS_OK);
    CHECK(ar_plan_run(plan, layers, LAYERS, device_out, 2 * ROW, stream) == AR_STATUS_OK);
    CU(cuStreamSynchronize, stream);
    CU(cuMemcpyDtoH_v2, out, device_out, sizeof out);
    check_in_windows(out, 0, BATCH, 2, windows, rows);
    /* The first item alone, with a window and rows that the device holds to what there is. */
    run.end_item = 1;
    size_t before = launched();
    REFUSED(AR_STATUS_INVALID, "expected 18 elements, got 36", ar_plan_run_with(plan, layers, LAYERS, device_out, 2 * ROW, stream, &run));
    run.windows_count = 4;
    REFUSED(AR_STATUS_INVALID, "a start and a length per item: expected 2 elements, got 4",
            ar_plan_run_with(plan, layers, LAYERS, device_out, ROW, stream, &run));
    CHECK(launched() == before);
    run.windows_count = 2;
    CHECK(ar_plan_run_with(plan, layers, LAYERS, device_out, ROW, stream, &run) == AR_STATUS_OK);
    CU(cuStreamSynchronize, stream);
    CU(cuMemcpyDtoH_v2, out, device_out, sizeof out / 2);
    check_in_windows(out, 0, 1, 2, &held, held_rows);
    ar_plan_free(plan);
    CU(cuMemFree_v2, memory);
}

static void cuda(void) {
    void *stream, *memory;
    ArDevice *device;
    ArPlan *plan = NULL, *weighted = NULL;
    ArProblem problem = problem_in(AR_MEMORY_DEVICE), bad;
    ArLayer layers[LAYERS];
    float out[ROW];
    pthread_t thread;
    stream = stream_on_device();
    CU(cuMemAlloc_v2, &memory, sizeof maps + sizeof out);
    CU(cuMemcpyHtoD_v2, memory, maps, sizeof maps);
    float *device_out = (float *)((char *)memory + sizeof maps);

    device = device_of(AR_DEVICE_KIND_CUDA);
    run_on_host(device_of(AR_DEVICE_KIND_CUDA));
    inputs_on_host(device_of(AR_DEVICE_KIND_CUDA));
    inputs_on_device(device, (char *)memory, stream);

    bad = problem, bad.end_layer = LAYERS + 1;
    REFUSED(AR_STATUS_INVALID, "layer range 0..4", ar_plan_new(device, &bad, &plan));
    ArDeviceOptions options = {sizeof options, AR_DEVICE_KIND_CUDA, 7};
    ArDevice *none = NULL;
    REFUSED(AR_STATUS_MACHINE, "there is no CUDA device 7", ar_device_new(&options, &none));
    CHECK(!plan && !none);

    CHECK(ar_plan_new(device, &problem, &plan) == AR_STATUS_OK);
    problem.gradients = AR_GRADIENTS_FUSED;
    CHECK(ar_plan_new(device, &problem, &weighted) == AR_STATUS_OK);
    ar_device_free(device);
    layers_at(layers, memory);
    CU(cuMemsetD8_v2, device_out, 0xff, sizeof out);
    size_t before = launched();
    REFUSED(AR_STATUS_NULL_POINTER, "out", ar_plan_run(plan, layers, LAYERS, NULL, ROW, stream));
    REFUSED(AR_STATUS_INVALID, "multiple of 4", ar_plan_run(plan, layers, LAYERS, (float *)((char *)device_out + 2), ROW, stream));
    REFUSED(AR_STATUS_INVALID, "overlaps layer 0", ar_plan_run(plan, layers, LAYERS, memory, ROW, stream));
    REFUSED(AR_STATUS_INVALID, "got 17", ar_plan_run(plan, layers, LAYERS, device_out, ROW - 1, stream));
    REFUSED(AR_STATUS_INVALID, "got 2", ar_plan_run(plan, layers, LAYERS - 1, device_out, ROW, stream));
    layers[1].maps = NULL;
    REFUSED(AR_STATUS_NULL_POINTER, "maps", ar_plan_run(plan, layers, LAYERS, device_out, ROW, stream));
    layers_at(layers, memory), layers[1].gradients = memory;
    REFUSED(AR_STATUS_INVALID, "layer 1: expected maps, got maps and gradients", ar_plan_run(plan, layers, LAYERS, device_out, ROW, stream));
    layers_at(layers, memory), layers[1].size--;
    REFUSED(AR_STATUS_STRUCT_SIZE, "ArLayer", ar_plan_run(plan, layers, LAYERS, device_out, ROW, stream));
    CHECK(launched() == before);

    /* On this thread, then on one that has no context yet. */
    layers_at(layers, memory);
    CHECK(ar_plan_run(plan, layers, LAYERS, device_out, ROW, stream) == AR_STATUS_OK);
    CHECK(!before || launched() > before);
    CU(cuStreamSynchronize, stream);
    CU(cuMemcpyDtoH_v2, out, device_out, sizeof out);
    check_row_0(out, AR_GRADIENTS_NONE);
    CU(cuMemsetD8_v2, device_out, 0xff, sizeof out);
    struct work work = {plan, layers, device_out, stream, 1};
    CHECK(pthread_create(&thread, NULL, work_until_stopped, &work) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CU(cuStreamSynchronize, stream);
    CU(cuMemcpyDtoH_v2, out, device_out, sizeof out);
    check_row_0(out, AR_GRADIENTS_NONE);
    ar_plan_free(plan);

    weigh(layers);
    CHECK(ar_plan_run(weighted, layers, LAYERS, device_out, ROW, stream) == AR_STATUS_OK);
    CU(cuStreamSynchronize, stream);
    CU(cuMemcpyDtoH_v2, out, device_out, sizeof out);
    check_row_0(out, AR_GRADIENTS_FUSED);
    ar_plan_free(weighted);
    CU(cuMemFree_v2, memory);
    CU(cuStreamDestroy_v2, stream);
}

int main(int count, char **arguments) {
    const char *what = count > 1 ? arguments[1] : "";
    fill_maps();
    if (strcmp(what, "cpu") == 0) {
        refusals();
        run_on_host(device_of(AR_DEVICE_KIND_CPU));
        inputs_on_host(device_of(AR_DEVICE_KIND_CPU));
        threads();
    } else if (strcmp(what, "machine") == 0) {
        ArDeviceOptions options = {sizeof options, AR_DEVICE_KIND_CUDA};
        ArDevice *device = NULL;
        REFUSED(AR_STATUS_MACHINE, "no NVIDIA driver", ar_device_new(&options, &device));
        CHECK(!device);
    } else if (strcmp(what, "cuda") == 0) {
        cuda();
    } else {
        fprintf(stderr, "cpu, machine or cuda\n");
        return 2;
    }
    puts("done");
    return 0;
}
