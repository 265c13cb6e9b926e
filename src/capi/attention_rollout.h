/* Attention rollout from C and C++. Written by cbindgen from src/capi/src: UPDATE_HEADER=1 cargo test -p attention-rollout-c

   Link with -lattention_rollout_c.

   Values. A struct that starts with `size` is set to zero and its size filled in; what is left at zero has its default.
   A pointer that comes with a count may be NULL where the count is 0. Extents and strides count elements. Nothing that a
   call is given is needed after it returns, but for the device memory of a run on a stream.

   Ownership. Devices and plans belong to the caller, who gives each back once, in any order: a plan keeps what it needs of
   its device.

   Threads. A device may be used from many threads at once. A plan may go from thread to thread; of two calls at a time
   one is refused with AR_STATUS_BUSY. Nobody may free what another thread uses.

   Streams. A plan for layers in device memory submits to the stream that a run names, a CUstream (or cudaStream_t) of the
   device's primary context, NULL being the legacy default stream; it does not wait. The output is there when the stream
   has come past the run; until then layers and output must stay as they are. Such a run may be captured into a graph.

   Errors. Every function that can fail returns a status; ar_last_error() tells more. On a failure nothing has been
   computed or submitted, unless the status is AR_STATUS_MACHINE or AR_STATUS_MISMATCH, and a plan is as it was. */


#ifndef ATTENTION_ROLLOUT_H
#define ATTENTION_ROLLOUT_H

#include <stddef.h>
#include <stdint.h>

// What became of a call.
enum ArStatus
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // It is done.
  AR_STATUS_OK = 0,
  // A pointer is NULL that must not be.
  AR_STATUS_NULL_POINTER = 1,
  // A struct is not of the size that this library knows: header and library are of different versions, or `size` was
  // not set.
  AR_STATUS_STRUCT_SIZE = 2,
  // A value is out of its range, or does not fit the others.
  AR_STATUS_INVALID = 3,
  // Another thread is using the plan.
  AR_STATUS_BUSY = 4,
  // The machine cannot: no driver, no such GPU, no compiler, no memory, a failure of the driver.
  AR_STATUS_MACHINE = 5,
  // A fault of the library. The plan it happened in can only be freed.
  AR_STATUS_PANIC = 6,
  // Queries, keys and LSE do not belong together. The run has been computed, and its output is of no use; the message
  // says where, what was expected and what was got.
  AR_STATUS_MISMATCH = 7,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum ArStatus ArStatus;
#else
typedef int32_t ArStatus;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What a device is.
enum ArDeviceKind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // The CPU.
  AR_DEVICE_KIND_CPU,
  // A GPU.
  AR_DEVICE_KIND_CUDA,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum ArDeviceKind ArDeviceKind;
#else
typedef uint32_t ArDeviceKind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// How exactly a GPU multiplies matrices.
enum ArPrecision
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // To f32 accuracy.
  AR_PRECISION_F32,
  // Fused maps rounded to f16.
  AR_PRECISION_HALF,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum ArPrecision ArPrecision;
#else
typedef uint32_t ArPrecision;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Where layers and output lie.
enum ArMemory
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // In host memory. A GPU is sent them chunk by chunk, and the run waits for the output.
  AR_MEMORY_HOST,
  // In the GPU's memory. The run is submitted to a stream.
  AR_MEMORY_DEVICE,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum ArMemory ArMemory;
#else
typedef uint32_t ArMemory;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Element type of a layer's tensors, but for an LSE, which is f32.
enum ArDtype
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // 32-bit IEEE.
  AR_DTYPE_F32,
  // 16-bit IEEE.
  AR_DTYPE_F16,
  // bfloat16.
  AR_DTYPE_BF16,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum ArDtype ArDtype;
#else
typedef uint32_t ArDtype;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// How the heads of a layer become one map.
enum ArHeadFusion
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // Mean over heads.
  AR_HEAD_FUSION_MEAN,
  // Largest entry over heads.
  AR_HEAD_FUSION_MAX,
  // Smallest entry over heads.
  AR_HEAD_FUSION_MIN,
  // Sum of the heads times `head_weights`.
  AR_HEAD_FUSION_WEIGHTED,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum ArHeadFusion ArHeadFusion;
#else
typedef uint32_t ArHeadFusion;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// How gradients weigh maps.
enum ArGradients
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // There are none.
  AR_GRADIENTS_NONE,
  // `fuse_h relu(G * A)`.
  AR_GRADIENTS_HEADS,
  // `relu(fuse_h (G * A))`.
  AR_GRADIENTS_FUSED,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum ArGradients ArGradients;
#else
typedef uint32_t ArGradients;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Where the logarithm of the sum comes from by which a row of attention is normalised (the LSE).
enum ArLse
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // It is recomputed; layers have none.
  AR_LSE_RECOMPUTED,
  // Every layer has it, natural, as PyTorch and flash-attn return it. Where it is infinite, of either sign, the row is
  // empty.
  AR_LSE_NATURAL,
  // Every layer has it, to base 2, as FlashInfer returns it.
  AR_LSE_BASE_TWO,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum ArLse ArLse;
#else
typedef uint32_t ArLse;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Which entries of a fused map a discard may zero.
enum ArDiscardScope
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // All but the first one.
  AR_DISCARD_SCOPE_MAP,
  // Those without the first `special_tokens` rows and columns.
  AR_DISCARD_SCOPE_PATCHES,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum ArDiscardScope ArDiscardScope;
#else
typedef uint32_t ArDiscardScope;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What comes out, f32.
enum ArOutput
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // Relevance, `[batch, tokens]` for one start row, else `[batch, rows, tokens]`.
  AR_OUTPUT_ROWS,
  // The rollout, `[batch, tokens, tokens]`.
  AR_OUTPUT_MATRIX,
  // The rollout after each layer, `[layers, batch, tokens, tokens]`.
  AR_OUTPUT_CUMULATIVE,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum ArOutput ArOutput;
#else
typedef uint32_t ArOutput;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// The start rows of `AR_OUTPUT_ROWS`, counted from the start of each item's window.
enum ArRows
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // Those of `rows`, the same for each item; row 0 where there are none.
  AR_ROWS_LIST,
  // As many for each item, in `rows`, `[batch]` or `[batch, rows]`.
  AR_ROWS_PER_ITEM,
  // The last valid token of each item.
  AR_ROWS_LAST,
  // The mean over all valid tokens of each item.
  AR_ROWS_MEAN,
  // `rows_weighted` distributions in `row_weights`, `[rows, tokens]` or `[batch, rows, tokens]`.
  AR_ROWS_WEIGHTS,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum ArRows ArRows;
#else
typedef uint32_t ArRows;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Something that computes.
typedef struct ArDevice ArDevice;

// A problem made ready to run.
typedef struct ArPlan ArPlan;

// What to compute on.
typedef struct ArDeviceOptions {
  // `sizeof(ArDeviceOptions)`.
  size_t size;
  // An `ArDeviceKind`.
  uint32_t kind;
  // The GPU's number.
  uint32_t ordinal;
  // Threads of the CPU; 0 for one per core.
  uint32_t threads;
  // An `ArPrecision`.
  uint32_t precision;
} ArDeviceOptions;

// Strides of the maps of one layer, and of their gradients. The last axis has stride 1.
typedef struct ArStrides {
  // From one item to the next.
  size_t batch;
  // From one head to the next.
  size_t head;
  // From one query row to the next.
  size_t row;
} ArStrides;

// The valid tokens of one item.
typedef struct ArWindow {
  // The first.
  size_t start;
  // How many.
  size_t len;
} ArWindow;

// Weights of `attention * fused + identity * I`.
typedef struct ArResidual {
  // Of the fused map.
  float attention;
  // Of the identity.
  float identity;
} ArResidual;

// Strides of what each token of each head has. The elements of a query or a key lie side by side.
typedef struct ArTokenStrides {
  // From one item to the next.
  size_t batch;
  // From one head to the next.
  size_t head;
  // From one token to the next.
  size_t token;
} ArTokenStrides;

// Strides of the queries, keys and LSE of one layer.
typedef struct ArQueriesKeysStrides {
  // Of the queries, `[batch, heads, tokens, head_dim]`.
  struct ArTokenStrides queries;
  // Of the keys, `[batch, key_heads, tokens, head_dim]`.
  struct ArTokenStrides keys;
  // Of the LSE, `[batch, heads, tokens]`; 0 where it is recomputed.
  struct ArTokenStrides lse;
} ArQueriesKeysStrides;

// How attention follows from queries and keys: from token `i` to token `j`, head `h` has
// `exp(s - lse[h, i])`, where `s = cap(scale * q[h, i] . k[g(h), j]) - slope[h] * |i - j|`,
// `cap(x) = soft_cap * tanh(x / soft_cap)` and `g(h) = h / (heads / key_heads)`; and 0 where `j` lies outside the item's
// window, comes later in a causal problem, or is `sliding_window` tokens or more away. All of it as the model ran: a given
// LSE must have masks, slopes, caps and sinks in it already.
typedef struct ArQueriesKeys {
  // `sizeof(ArQueriesKeys)`.
  size_t size;
  // Elements of a query and of a key: a multiple of 8, at most 256.
  size_t head_dim;
  // Heads of the keys, which divide `heads`: each serves as many heads of queries; 0 for as many as `heads`.
  size_t key_heads;
  // None: contiguous, heads first; one: of every layer; or one per layer.
  const struct ArQueriesKeysStrides *strides;
  // Length of `strides`.
  size_t strides_count;
  // How many tokens away keys are masked, 0 for none. None; one: of every layer; or one per layer.
  const size_t *sliding_windows;
  // Length of `sliding_windows`.
  size_t sliding_windows_count;
  // Largest absolute scores, 0 for any. None; one: of every layer; or one per layer.
  const float *soft_caps;
  // Length of `soft_caps`.
  size_t soft_caps_count;
  // By how much scores fall per token of distance (ALiBi). None; `[heads]`: of every layer; or `[layers, heads]`.
  const float *alibi_slopes;
  // Length of `alibi_slopes`.
  size_t alibi_slopes_count;
  // Scores of a key that every query has and that is no token. None; `[heads]`: of every layer; or `[layers, heads]`.
  const float *sinks;
  // Length of `sinks`.
  size_t sinks_count;
  // An `ArLse`.
  uint32_t lse;
  // What products of queries and keys are multiplied by; 0 for one over the square root of `head_dim`.
  float scale;
  // How far sums of relevance may be from what is known of them, relative to it; 0 for 1e-3. With a given LSE that is
  // looked at where heads are fused to their mean or a weighted sum, and nothing is discarded, excluded, normalised or
  // lost to a sink. Beside it some rows of a given LSE are recomputed, and may be off by 1e-2.
  float mass_tolerance;
  // Not 0: neither is looked at.
  uint32_t unchecked;
} ArQueriesKeys;

// What to compute, and of what.
typedef struct ArProblem {
  // `sizeof(ArProblem)`.
  size_t size;
  // Layers.
  size_t layers;
  // Items of the batch.
  size_t batch;
  // Heads; 1 where they are fused already.
  size_t heads;
  // Tokens.
  size_t tokens;
  // An `ArDtype`.
  uint32_t dtype;
  // An `ArMemory`.
  uint32_t memory;
  // Of maps. None: contiguous; one: of every layer; or one per layer.
  const struct ArStrides *strides;
  // Length of `strides`.
  size_t strides_count;
  // None: all tokens are valid, of every run unless there is a `max_window`; or one per item.
  const struct ArWindow *windows;
  // Length of `windows`.
  size_t windows_count;
  // None: one half each; one: of every layer; or one per layer.
  const struct ArResidual *residuals;
  // Length of `residuals`.
  size_t residuals_count;
  // An `ArHeadFusion`.
  uint32_t head_fusion;
  // An `ArGradients`.
  uint32_t gradients;
  // For `AR_HEAD_FUSION_WEIGHTED`, one per head.
  const float *head_weights;
  // Length of `head_weights`.
  size_t head_weights_count;
  // Not 0: each row of the residual sum is divided by its sum.
  uint32_t normalize_rows;
  // Not 0: of maps, the caller promises 0 where a token attends to a later one, and those entries are never loaded; of
  // queries and keys, later keys are masked.
  uint32_t causal;
  // Share of the smallest entries of a fused map to zero, at least 0 and less than 1.
  double discard_ratio;
  // An `ArDiscardScope`.
  uint32_t discard_scope;
  // An `ArOutput`.
  uint32_t output;
  // Leading tokens that are no patches.
  size_t special_tokens;
  // Tokens that nothing shall attend to.
  const size_t *excluded;
  // Length of `excluded`.
  size_t excluded_count;
  // First layer to multiply.
  size_t first_layer;
  // One past the last layer to multiply; 0 for all from the first on.
  size_t end_layer;
  // For `AR_ROWS_LIST` and `AR_ROWS_PER_ITEM`.
  const size_t *rows;
  // Length of `rows`.
  size_t rows_count;
  // For `AR_ROWS_WEIGHTS`.
  const float *row_weights;
  // Length of `row_weights`.
  size_t row_weights_count;
  // Start rows per item of `row_weights`.
  size_t rows_weighted;
  // An `ArRows`.
  uint32_t row_kind;
  // Items of a chunk of host memory; 0 for as many as fit.
  uint32_t items_per_chunk;
  // Tokens of the longest window that a run may have; 0: of the longest of `windows`.
  size_t max_window;
  // How attention follows from queries and keys, which layers have instead of maps; NULL where they have maps.
  const struct ArQueriesKeys *queries_keys;
} ArProblem;

// What a plan is.
typedef struct ArPlanInfo {
  // `sizeof(ArPlanInfo)`.
  size_t size;
  // Elements of the output.
  size_t output_count;
  // Axes of the output.
  size_t output_rank;
  // Its shape; 0 beyond the rank.
  size_t output_shape[4];
  // Memory beside inputs and outputs, on the device that computes.
  size_t workspace_bytes;
  // Items that go through the device at a time; the whole batch for maps in device memory.
  size_t items_per_chunk;
} ArPlanInfo;

// One layer's tensors: maps, with gradients where the problem asks for them, or queries and keys. What the problem does not
// ask for is NULL. A tensor's count is its elements from the first to the end of the memory.
typedef struct ArLayer {
  // `sizeof(ArLayer)`.
  size_t size;
  // Post-softmax attention, `[batch, heads, tokens, tokens]` by the strides of the layer.
  const void *maps;
  // Elements of `maps`.
  size_t maps_count;
  // The gradients of the maps, laid out as these are; NULL where there are none.
  const void *gradients;
  // Elements of `gradients`.
  size_t gradients_count;
  // `[batch, heads, tokens, head_dim]`, after all that the model does to them, by the strides of the layer.
  const void *queries;
  // Elements of `queries`.
  size_t queries_count;
  // `[batch, key_heads, tokens, head_dim]`, not repeated where heads share them, as `queries`.
  const void *keys;
  // Elements of `keys`.
  size_t keys_count;
  // `[batch, heads, tokens]`; NULL where it is recomputed.
  const float *lse;
  // Elements of `lse`.
  size_t lse_count;
} ArLayer;

// What one run is given beside its layers.
typedef struct ArRun {
  // `sizeof(ArRun)`.
  size_t size;
  // First item of the plan's batch that the run computes.
  size_t first_item;
  // One past the last; 0 for all from the first on.
  size_t end_item;
  // Of a run in device memory, an address there or NULL: start and length of the window of each item of the run.
  // Windows that leave the tokens are held to them.
  const int32_t *windows;
  // Numbers of `windows`, two per item of the run.
  size_t windows_count;
  // Of a run in device memory, an address there or NULL: the start rows of each item of the run. Rows that leave their
  // window are held to it.
  const int32_t *rows;
  // Numbers of `rows`.
  size_t rows_count;
} ArRun;

// What the runs to come are given beside their layers, in host memory. What is NULL stays as it is.
typedef struct ArInputs {
  // `sizeof(ArInputs)`.
  size_t size;
  // One per item, where the problem was made with windows. An item with an empty one has an output of 0.
  const struct ArWindow *windows;
  // Length of `windows`.
  size_t windows_count;
  // Where the problem was made with `AR_ROWS_PER_ITEM`: as many for each item as it had then.
  const size_t *rows;
  // Length of `rows`.
  size_t rows_count;
} ArInputs;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Opens a device and writes its handle to `device`. A GPU's primary context is retained, as the CUDA runtime does.
//
// # Safety
// `options` is NULL or points to `options->size` bytes, `device` is NULL or may be written.
ArStatus ar_device_new(const struct ArDeviceOptions *options, struct ArDevice **device);

// Gives a device back; NULL is none. Its plans stay usable.
//
// # Safety
// `device` is NULL or was given by `ar_device_new` and not given back; no other thread uses it.
void ar_device_free(struct ArDevice *device);

// Makes `problem` ready on `device` and writes the plan's handle to `plan`: checks, chooses, compiles, allocates.
//
// # Safety
// `device` is NULL or alive. `problem` is NULL or points to `problem->size` bytes, whose pointers are NULL or point to as
// many elements as the counts beside them say, as do those of its queries and keys. `plan` is NULL or may be written.
ArStatus ar_plan_new(const struct ArDevice *device,
                     const struct ArProblem *problem,
                     struct ArPlan **plan);

// Fills `info`, whose size is set, with what the plan is.
//
// # Safety
// `plan` is NULL or alive, `info` is NULL or points to `info->size` bytes that may be written.
ArStatus ar_plan_info(const struct ArPlan *plan, struct ArPlanInfo *info);

// Computes the rollout of `layers`, every layer of the problem from the first to the last, into the `out_count` floats at
// `out`. In host memory `stream` is NULL and the output is there when the call returns. In device memory the call
// submits to `stream` and returns: it allocates nothing on the device, compiles nothing and waits for nothing.
//
// # Safety
// `plan` is NULL or alive. `layers` is NULL or points to `layers_count` structs, whose tensors are as long as they say, in
// the memory that the problem names, as is `out`. `stream` is NULL or a stream of the device's primary context. Device
// memory: nothing writes the layers, and nothing uses the output, from the run's place in the stream until it is done.
ArStatus ar_plan_run(const struct ArPlan *plan,
                     const struct ArLayer *layers,
                     size_t layers_count,
                     float *out,
                     size_t out_count,
                     void *stream);

// As `ar_plan_run`, with what `run` says beside the layers: of which items, whose layers and output are then those of these
// items alone; and, in device memory, their windows and start rows for this run alone.
//
// # Safety
// As `ar_plan_run`; `run` is NULL or points to `run->size` bytes, whose addresses are NULL or hold as many numbers in the
// device's memory as it says, which nothing writes from the run's place in the stream until it is done.
ArStatus ar_plan_run_with(const struct ArPlan *plan,
                          const struct ArLayer *layers,
                          size_t layers_count,
                          float *out,
                          size_t out_count,
                          void *stream,
                          const struct ArRun *run);

// Waits for the last run in device memory, and fails with AR_STATUS_MISMATCH where its queries, keys and LSE do not belong
// together, as far as that is looked at (`ArQueriesKeys`). Of other sources it checks nothing and waits for nothing; nor does
// it in host memory, where `stream` is NULL and a run fails so itself. A stream that is being captured is refused.
//
// # Safety
// `plan` is NULL or alive. `stream` is NULL or a stream of the device's primary context.
ArStatus ar_plan_check(const struct ArPlan *plan,
                       void *stream);

// Gives the runs to come other windows and start rows, which are copied. In device memory the next run sends them to the
// device on its stream, without a wait.
//
// # Safety
// `plan` is NULL or alive. `inputs` is NULL or points to `inputs->size` bytes, whose pointers are NULL or point to as many
// elements as the counts beside them say.
ArStatus ar_plan_set_inputs(const struct ArPlan *plan,
                            const struct ArInputs *inputs);

// Gives a plan back; NULL is none. Runs that were submitted are waited for.
//
// # Safety
// `plan` is NULL or was given by `ar_plan_new` and not given back; no other thread uses it.
void ar_plan_free(struct ArPlan *plan);

// What the last call of this thread that failed has to say, in UTF-8; empty where none has. Valid until the next one
// fails or the thread ends.
const char *ar_last_error(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* ATTENTION_ROLLOUT_H */
