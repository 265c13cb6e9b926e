/* What the C programs of the tests share. */

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention_rollout.h"

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "line %d: %s; %s\n", __LINE__, #condition, ar_last_error()); \
            exit(1); \
        } \
    } while (0)

/* A call that fails with a status and says something. */
#define REFUSED(expected, words, call) \
    do { \
        ArStatus refusal = (call); \
        if (refusal != (expected) || !strstr(ar_last_error(), (words))) { \
            fprintf(stderr, "line %d: %s gave %d: %s\n", __LINE__, #call, (int)refusal, ar_last_error()); \
            exit(1); \
        } \
    } while (0)

static ArDevice *device_of(ArDeviceKind kind) {
    ArDeviceOptions options = {sizeof options};
    ArDevice *device = NULL;
    options.kind = kind;
    CHECK(ar_device_new(&options, &device) == AR_STATUS_OK && device);
    return device;
}

/* The driver as a host program has it: its functions, a stream of its own, memory of its own. */
static void *driver;
static int (*call(const char *name))() {
    void *function = dlsym(driver, name);
    if (!function) fprintf(stderr, "no %s\n", name), exit(1);
    return (int (*)())function;
}
#define CU(name, ...) CHECK(call(#name)(__VA_ARGS__) == 0)

/* How much the stand-in has to tell of launches; 0 on a GPU. */
static size_t launched(void) {
    size_t (*launches)(void *, size_t) = (size_t (*)(void *, size_t))dlsym(driver, "vcuda_launches");
    return launches ? launches(NULL, 0) : 0;
}

/* A stream in the primary context of the first GPU, which becomes this thread's. */
static void *stream_on_device(void) {
    enum { NON_BLOCKING = 1 };
    void *context, *stream;
    driver = dlopen("libcuda.so", RTLD_NOW);
    if (!driver) driver = dlopen("libcuda.so.1", RTLD_NOW);
    CHECK(driver);
    CU(cuInit, 0);
    CU(cuDevicePrimaryCtxRetain, &context, 0);
    CU(cuCtxSetCurrent, context);
    CU(cuStreamCreate, &stream, NON_BLOCKING);
    return stream;
}
