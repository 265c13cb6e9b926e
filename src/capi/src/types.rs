//! The values that cross the interface.

use std::ffi::c_void;

/// What a device is.
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum ArDeviceKind {
    /// The CPU.
    Cpu,
    /// A GPU.
    Cuda,
}

/// How exactly a GPU multiplies matrices.
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum ArPrecision {
    /// To f32 accuracy.
    F32,
    /// Fused maps rounded to f16.
    Half,
}

/// Where layers and output lie.
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum ArMemory {
    /// In host memory. A GPU is sent them chunk by chunk, and the run waits for the output.
    Host,
    /// In the GPU's memory. The run is submitted to a stream.
    Device,
}

/// Element type of a layer's tensors, but for an LSE, which is f32.
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum ArDtype {
    /// 32-bit IEEE.
    F32,
    /// 16-bit IEEE.
    F16,
    /// bfloat16.
    Bf16,
}

/// How the heads of a layer become one map.
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum ArHeadFusion {
    /// Mean over heads.
    Mean,
    /// Largest entry over heads.
    Max,
    /// Smallest entry over heads.
    Min,
    /// Sum of the heads times `head_weights`.
    Weighted,
}

/// How gradients weigh maps.
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum ArGradients {
    /// There are none.
    None,
    /// `fuse_h relu(G * A)`.
    Heads,
    /// `relu(fuse_h (G * A))`.
    Fused,
}

/// Where the logarithm of the sum comes from by which a row of attention is normalised (the LSE).
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum ArLse {
    /// It is recomputed; layers have none.
    Recomputed,
    /// Every layer has it, natural, as PyTorch and flash-attn return it. Where it is infinite, of either sign, the row is
    /// empty.
    Natural,
    /// Every layer has it, to base 2, as FlashInfer returns it.
    BaseTwo,
}

/// Which entries of a fused map a discard may zero.
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum ArDiscardScope {
    /// All but the first one.
    Map,
    /// Those without the first `special_tokens` rows and columns.
    Patches,
}

/// What comes out, f32.
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum ArOutput {
    /// Relevance, `[batch, tokens]` for one start row, else `[batch, rows, tokens]`.
    Rows,
    /// The rollout, `[batch, tokens, tokens]`.
    Matrix,
    /// The rollout after each layer, `[layers, batch, tokens, tokens]`.
    Cumulative,
}

/// The start rows of `AR_OUTPUT_ROWS`, counted from the start of each item's window.
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum ArRows {
    /// Those of `rows`, the same for each item; row 0 where there are none.
    List,
    /// As many for each item, in `rows`, `[batch]` or `[batch, rows]`.
    PerItem,
    /// The last valid token of each item.
    Last,
    /// The mean over all valid tokens of each item.
    Mean,
    /// `rows_weighted` distributions in `row_weights`, `[rows, tokens]` or `[batch, rows, tokens]`.
    Weights,
}

/// Strides of the maps of one layer, and of their gradients. The last axis has stride 1.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ArStrides {
    /// From one item to the next.
    pub batch: usize,
    /// From one head to the next.
    pub head: usize,
    /// From one query row to the next.
    pub row: usize,
}

/// Strides of what each token of each head has. The elements of a query or a key lie side by side.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ArTokenStrides {
    /// From one item to the next.
    pub batch: usize,
    /// From one head to the next.
    pub head: usize,
    /// From one token to the next.
    pub token: usize,
}

/// Strides of the queries, keys and LSE of one layer.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ArQueriesKeysStrides {
    /// Of the queries, `[batch, heads, tokens, head_dim]`.
    pub queries: ArTokenStrides,
    /// Of the keys, `[batch, key_heads, tokens, head_dim]`.
    pub keys: ArTokenStrides,
    /// Of the LSE, `[batch, heads, tokens]`; 0 where it is recomputed.
    pub lse: ArTokenStrides,
}

/// The valid tokens of one item.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ArWindow {
    /// The first.
    pub start: usize,
    /// How many.
    pub len: usize,
}

/// Weights of `attention * fused + identity * I`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ArResidual {
    /// Of the fused map.
    pub attention: f32,
    /// Of the identity.
    pub identity: f32,
}

/// What to compute on.
#[repr(C)]
pub struct ArDeviceOptions {
    /// `sizeof(ArDeviceOptions)`.
    pub size: usize,
    /// An `ArDeviceKind`.
    pub kind: u32,
    /// The GPU's number.
    pub ordinal: u32,
    /// Threads of the CPU; 0 for one per core.
    pub threads: u32,
    /// An `ArPrecision`.
    pub precision: u32,
}

/// How attention follows from queries and keys: from token `i` to token `j`, head `h` has
/// `exp(s - lse[h, i])`, where `s = cap(scale * q[h, i] . k[g(h), j]) - slope[h] * |i - j|`,
/// `cap(x) = soft_cap * tanh(x / soft_cap)` and `g(h) = h / (heads / key_heads)`; and 0 where `j` lies outside the item's
/// window, comes later in a causal problem, or is `sliding_window` tokens or more away. All of it as the model ran: a given
/// LSE must have masks, slopes, caps and sinks in it already.
#[repr(C)]
pub struct ArQueriesKeys {
    /// `sizeof(ArQueriesKeys)`.
    pub size: usize,
    /// Elements of a query and of a key: a multiple of 8, at most 256.
    pub head_dim: usize,
    /// Heads of the keys, which divide `heads`: each serves as many heads of queries; 0 for as many as `heads`.
    pub key_heads: usize,
    /// None: contiguous, heads first; one: of every layer; or one per layer.
    pub strides: *const ArQueriesKeysStrides,
    /// Length of `strides`.
    pub strides_count: usize,
    /// How many tokens away keys are masked, 0 for none. None; one: of every layer; or one per layer.
    pub sliding_windows: *const usize,
    /// Length of `sliding_windows`.
    pub sliding_windows_count: usize,
    /// Largest absolute scores, 0 for any. None; one: of every layer; or one per layer.
    pub soft_caps: *const f32,
    /// Length of `soft_caps`.
    pub soft_caps_count: usize,
    /// By how much scores fall per token of distance (ALiBi). None; `[heads]`: of every layer; or `[layers, heads]`.
    pub alibi_slopes: *const f32,
    /// Length of `alibi_slopes`.
    pub alibi_slopes_count: usize,
    /// Scores of a key that every query has and that is no token. None; `[heads]`: of every layer; or `[layers, heads]`.
    pub sinks: *const f32,
    /// Length of `sinks`.
    pub sinks_count: usize,
    /// An `ArLse`.
    pub lse: u32,
    /// What products of queries and keys are multiplied by; 0 for one over the square root of `head_dim`.
    pub scale: f32,
    /// How far sums of relevance may be from what is known of them, relative to it; 0 for 1e-3. With a given LSE that is
    /// looked at where heads are fused to their mean or a weighted sum, and nothing is discarded, excluded, normalised or
    /// lost to a sink. Beside it some rows of a given LSE are recomputed, and may be off by 1e-2.
    pub mass_tolerance: f32,
    /// Not 0: neither is looked at.
    pub unchecked: u32,
}

/// What to compute, and of what.
#[repr(C)]
pub struct ArProblem {
    /// `sizeof(ArProblem)`.
    pub size: usize,
    /// Layers.
    pub layers: usize,
    /// Items of the batch.
    pub batch: usize,
    /// Heads; 1 where they are fused already.
    pub heads: usize,
    /// Tokens.
    pub tokens: usize,
    /// An `ArDtype`.
    pub dtype: u32,
    /// An `ArMemory`.
    pub memory: u32,
    /// Of maps. None: contiguous; one: of every layer; or one per layer.
    pub strides: *const ArStrides,
    /// Length of `strides`.
    pub strides_count: usize,
    /// None: all tokens are valid, of every run unless there is a `max_window`; or one per item.
    pub windows: *const ArWindow,
    /// Length of `windows`.
    pub windows_count: usize,
    /// None: one half each; one: of every layer; or one per layer.
    pub residuals: *const ArResidual,
    /// Length of `residuals`.
    pub residuals_count: usize,
    /// An `ArHeadFusion`.
    pub head_fusion: u32,
    /// An `ArGradients`.
    pub gradients: u32,
    /// For `AR_HEAD_FUSION_WEIGHTED`, one per head.
    pub head_weights: *const f32,
    /// Length of `head_weights`.
    pub head_weights_count: usize,
    /// Not 0: each row of the residual sum is divided by its sum.
    pub normalize_rows: u32,
    /// Not 0: of maps, the caller promises 0 where a token attends to a later one, and those entries are never loaded; of
    /// queries and keys, later keys are masked.
    pub causal: u32,
    /// Share of the smallest entries of a fused map to zero, at least 0 and less than 1.
    pub discard_ratio: f64,
    /// An `ArDiscardScope`.
    pub discard_scope: u32,
    /// An `ArOutput`.
    pub output: u32,
    /// Leading tokens that are no patches.
    pub special_tokens: usize,
    /// Tokens that nothing shall attend to.
    pub excluded: *const usize,
    /// Length of `excluded`.
    pub excluded_count: usize,
    /// First layer to multiply.
    pub first_layer: usize,
    /// One past the last layer to multiply; 0 for all from the first on.
    pub end_layer: usize,
    /// For `AR_ROWS_LIST` and `AR_ROWS_PER_ITEM`.
    pub rows: *const usize,
    /// Length of `rows`.
    pub rows_count: usize,
    /// For `AR_ROWS_WEIGHTS`.
    pub row_weights: *const f32,
    /// Length of `row_weights`.
    pub row_weights_count: usize,
    /// Start rows per item of `row_weights`.
    pub rows_weighted: usize,
    /// An `ArRows`.
    pub row_kind: u32,
    /// Items of a chunk of host memory; 0 for as many as fit.
    pub items_per_chunk: u32,
    /// Tokens of the longest window that a run may have; 0: of the longest of `windows`.
    pub max_window: usize,
    /// How attention follows from queries and keys, which layers have instead of maps; NULL where they have maps.
    pub queries_keys: *const ArQueriesKeys,
}

/// One layer's tensors: maps, with gradients where the problem asks for them, or queries and keys. What the problem does not
/// ask for is NULL. A tensor's count is its elements from the first to the end of the memory.
#[repr(C)]
pub struct ArLayer {
    /// `sizeof(ArLayer)`.
    pub size: usize,
    /// Post-softmax attention, `[batch, heads, tokens, tokens]` by the strides of the layer.
    pub maps: *const c_void,
    /// Elements of `maps`.
    pub maps_count: usize,
    /// The gradients of the maps, laid out as these are; NULL where there are none.
    pub gradients: *const c_void,
    /// Elements of `gradients`.
    pub gradients_count: usize,
    /// `[batch, heads, tokens, head_dim]`, after all that the model does to them, by the strides of the layer.
    pub queries: *const c_void,
    /// Elements of `queries`.
    pub queries_count: usize,
    /// `[batch, key_heads, tokens, head_dim]`, not repeated where heads share them, as `queries`.
    pub keys: *const c_void,
    /// Elements of `keys`.
    pub keys_count: usize,
    /// `[batch, heads, tokens]`; NULL where it is recomputed.
    pub lse: *const f32,
    /// Elements of `lse`.
    pub lse_count: usize,
}

/// What the runs to come are given beside their layers, in host memory. What is NULL stays as it is.
#[repr(C)]
pub struct ArInputs {
    /// `sizeof(ArInputs)`.
    pub size: usize,
    /// One per item, where the problem was made with windows. An item with an empty one has an output of 0.
    pub windows: *const ArWindow,
    /// Length of `windows`.
    pub windows_count: usize,
    /// Where the problem was made with `AR_ROWS_PER_ITEM`: as many for each item as it had then.
    pub rows: *const usize,
    /// Length of `rows`.
    pub rows_count: usize,
}

/// What one run is given beside its layers.
#[repr(C)]
pub struct ArRun {
    /// `sizeof(ArRun)`.
    pub size: usize,
    /// First item of the plan's batch that the run computes.
    pub first_item: usize,
    /// One past the last; 0 for all from the first on.
    pub end_item: usize,
    /// Of a run in device memory, an address there or NULL: start and length of the window of each item of the run.
    /// Windows that leave the tokens are held to them.
    pub windows: *const i32,
    /// Numbers of `windows`, two per item of the run.
    pub windows_count: usize,
    /// Of a run in device memory, an address there or NULL: the start rows of each item of the run. Rows that leave their
    /// window are held to it.
    pub rows: *const i32,
    /// Numbers of `rows`.
    pub rows_count: usize,
}

/// What a plan is.
#[repr(C)]
pub struct ArPlanInfo {
    /// `sizeof(ArPlanInfo)`.
    pub size: usize,
    /// Elements of the output.
    pub output_count: usize,
    /// Axes of the output.
    pub output_rank: usize,
    /// Its shape; 0 beyond the rank.
    pub output_shape: [usize; 4],
    /// Memory beside inputs and outputs, on the device that computes.
    pub workspace_bytes: usize,
    /// Items that go through the device at a time; the whole batch for maps in device memory.
    pub items_per_chunk: usize,
}
