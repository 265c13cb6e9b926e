//! The one error type of the crate. Every variant carries the numbers that tell what was wrong.

use crate::dtype::DType;
use crate::fusion::HeadFusion;

/// Result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can be wrong with a rollout problem, its inputs, or the machine it runs on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An extent that must be at least 1 is 0.
    #[error("{what} must be at least 1, got 0")]
    ZeroExtent {
        /// Which extent.
        what: &'static str,
    },
    /// A product of extents or strides does not fit the address space.
    #[error("{what} overflows the address space")]
    SizeOverflow {
        /// Which product.
        what: &'static str,
    },
    /// A list does not have one entry per layer, item, head, ... as it must.
    #[error("{what}: expected {expected}, got {got}")]
    Count {
        /// What was counted, with its unit.
        what: &'static str,
        /// How many there must be.
        expected: usize,
        /// How many there are.
        got: usize,
    },
    /// The layer range is empty or leaves the problem.
    #[error("layer range {start}..{end} is empty or leaves the {layers} layers of the problem")]
    LayerRange {
        /// First layer.
        start: usize,
        /// One past the last layer.
        end: usize,
        /// Layers of the problem.
        layers: usize,
    },
    /// A window leaves the tokens of its item.
    #[error("item {item}: window {start}..{start}+{len} leaves the {tokens} tokens")]
    Window {
        /// Item of the batch.
        item: usize,
        /// First valid token.
        start: usize,
        /// Number of valid tokens.
        len: usize,
        /// Tokens of the problem.
        tokens: usize,
    },
    /// A window is longer than the longest for which the problem was made.
    #[error(
        "item {item}: a window of {len} tokens; the problem was made for at most {max}, see ProblemBuilder::max_window"
    )]
    WindowLen {
        /// Item of the batch.
        item: usize,
        /// Number of valid tokens.
        len: usize,
        /// The most there may be.
        max: usize,
    },
    /// A run was given what the plan does not take from a run.
    #[error("the plan takes no {what} of a run: its problem was made without {missing}")]
    FixedInput {
        /// What was given.
        what: &'static str,
        /// What the problem lacks.
        missing: &'static str,
    },
    /// An attention mask is not one contiguous run of valid tokens.
    #[error(
        "item {item}: the attention mask is not contiguous: token {token} is valid again after a gap"
    )]
    MaskGap {
        /// Item of the batch.
        item: usize,
        /// First valid token after the gap.
        token: usize,
    },
    /// A run was to take items that the batch of its plan does not have.
    #[error("items {start}..{end} are not among the {batch} items of the batch")]
    Items {
        /// First item.
        start: usize,
        /// One past the last item.
        end: usize,
        /// Items of the batch.
        batch: usize,
    },
    /// A start row, counted from the start of the item's window, lies outside the window.
    #[error("item {item}: start row {row} lies outside its window of {len} tokens")]
    StartRow {
        /// Item of the batch.
        item: usize,
        /// The row asked for.
        row: usize,
        /// Valid tokens of the item.
        len: usize,
    },
    /// Of the tokens of a problem, more are special than there are.
    #[error("special tokens: expected at most the {tokens} tokens of the problem, got {got}")]
    SpecialTokens {
        /// Tokens of the problem.
        tokens: usize,
        /// Special tokens given.
        got: usize,
    },
    /// A range of columns is empty or leaves the tokens.
    #[error("columns {start}..{end} are empty or leave the {tokens} tokens")]
    Columns {
        /// First column.
        start: usize,
        /// One past the last column.
        end: usize,
        /// Tokens of a row.
        tokens: usize,
    },
    /// A token is not among those of the problem.
    #[error("token {token}, {what}, is not among the {tokens} tokens")]
    Token {
        /// What the token is for.
        what: &'static str,
        /// The token.
        token: usize,
        /// How many there are.
        tokens: usize,
    },
    /// A parameter is not a finite number or leaves its range.
    #[error("{what} must be {expected}, got {got}")]
    Parameter {
        /// Which parameter.
        what: &'static str,
        /// Its range, in words.
        expected: &'static str,
        /// The value given.
        got: f64,
    },
    /// A layer has other tensors than the problem's source of attention.
    #[error("layer {layer}: expected {expected}, got {got}")]
    LayerSource {
        /// The layer.
        layer: usize,
        /// What the problem takes, in words.
        expected: &'static str,
        /// What the layer has.
        got: &'static str,
    },
    /// Queries do not share keys evenly.
    #[error("key heads must divide the {heads} heads of the queries, got {got}")]
    KeyHeads {
        /// Heads of the queries.
        heads: usize,
        /// Heads of the keys.
        got: usize,
    },
    /// Values that may differ by layer are not as many as they must be.
    #[error(
        "{what}: expected none, {width} that all layers share, or {width} for each of {layers} layers, got {got}"
    )]
    PerLayer {
        /// Which values.
        what: &'static str,
        /// Values of a layer.
        width: usize,
        /// Layers of the problem.
        layers: usize,
        /// Values given.
        got: usize,
    },
    /// Two things were asked for that exclude each other.
    #[error("{what} cannot be had together with {with}")]
    Conflict {
        /// The one.
        what: &'static str,
        /// The other.
        with: &'static str,
    },
    /// The sum of a row of relevance is not what it must be where rows of attention sum to 1.
    #[error(
        "layer {layer}, item {item}, row {row}: relevance sums to {got}, must sum to {expected} within {tolerance} of it. \
         Likely the scale, the base of the LSE or the mask is not the model's, the LSE is of another layer, or queries and \
         keys were rounded after the model ran (then let the LSE be recomputed)"
    )]
    Mass {
        /// The layer after which it was seen.
        layer: usize,
        /// The item of the batch.
        item: usize,
        /// The start row; of a whole map, the row of the window.
        row: usize,
        /// What is known of the sum.
        expected: f32,
        /// The sum.
        got: f32,
        /// How far it may be off, relative to what is known.
        tolerance: f32,
    },
    /// A given LSE is not that of the queries and keys.
    #[error(
        "layer {layer}, item {item}, head {head}, row {row}: the natural logarithm of the sum is {expected}, was given as \
         {got}. Likely the scale, the base of the LSE or the mask is not the model's, the LSE is of another layer, or \
         queries and keys were rounded after the model ran (then let the LSE be recomputed)"
    )]
    Lse {
        /// The layer.
        layer: usize,
        /// The item of the batch.
        item: usize,
        /// The head.
        head: usize,
        /// The row, counted from the start of the item's window.
        row: usize,
        /// The LSE of the queries and keys.
        expected: f32,
        /// The LSE given, to base e.
        got: f32,
    },
    /// A layer's elements are of another type than the problem says.
    #[error("layer {layer}, {operand}: expected {expected} elements, got {got}")]
    LayerDType {
        /// The layer.
        layer: usize,
        /// Which of its tensors.
        operand: &'static str,
        /// Element type of the problem; of an LSE, f32.
        expected: DType,
        /// Element type of the layer.
        got: DType,
    },
    /// A layer is too short for the extents and strides of the problem.
    #[error(
        "layer {layer}, {operand}: its extents and strides reach {expected} elements, got {got}"
    )]
    LayerLen {
        /// The layer.
        layer: usize,
        /// Which of its tensors.
        operand: &'static str,
        /// Elements needed.
        expected: usize,
        /// Elements given.
        got: usize,
    },
    /// An output or operand slice does not have the length its shape needs.
    #[error("{what}: expected {expected} elements, got {got}")]
    Len {
        /// Which slice.
        what: &'static str,
        /// Elements needed.
        expected: usize,
        /// Elements given.
        got: usize,
    },
    /// A shape does not fit an operation.
    #[error("{what}: expected {expected}, got {got:?}")]
    Shape {
        /// Which operand.
        what: &'static str,
        /// The shape needed, in words or numbers.
        expected: String,
        /// The shape given.
        got: Vec<usize>,
    },
    /// The elements of an axis do not lie side by side.
    #[error(
        "axis {axis} must be contiguous, of stride 1, got stride {got}: make the tensor contiguous"
    )]
    AxisStride {
        /// The axis, counted from the outermost.
        axis: usize,
        /// Its stride in elements.
        got: usize,
    },
    /// More layers were pushed than the problem has, or fewer when the result was asked for.
    #[error("streaming: expected {expected} layers, got {got}")]
    StreamedLayers {
        /// Layers of the problem's range.
        expected: usize,
        /// Layers pushed.
        got: usize,
    },
    /// One problem of a group cannot be run.
    #[error("problem {member} of the group: {source}")]
    Member {
        /// Which problem, counted in the order given.
        member: usize,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// A model failed while it ran.
    #[error("the model failed: {0}")]
    Model(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A model has no feature with attention.
    #[error("the model hands out no feature with attention layers")]
    NoFeatures,
    /// One feature of a model cannot be explained.
    #[error("feature {feature}: {source}")]
    Feature {
        /// The feature's key.
        feature: String,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// A model did not keep what was asked for.
    #[error("layer {layer}: expected the model to keep the {what}, got none")]
    NotCaptured {
        /// The layer of the feature.
        layer: usize,
        /// What is missing.
        what: &'static str,
    },
    /// A head fusion that is not accepted here.
    #[error("head fusion must be {expected}, got {got:?}")]
    HeadFusion {
        /// Which one is, in words.
        expected: &'static str,
        /// The one asked for.
        got: HeadFusion,
    },
    /// The CPU thread pool could not be started.
    #[error("could not start {threads} CPU threads: {reason}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// What the system said.
        reason: String,
    },
    /// Host memory could not be had.
    #[error("out of host memory: {required} bytes for {what}")]
    HostMemory {
        /// What the memory is for.
        what: &'static str,
        /// Bytes asked for.
        required: usize,
    },
    /// There is no NVIDIA driver.
    #[cfg(feature = "cuda")]
    #[error(
        "no NVIDIA driver: libcuda.so was not found. Install the NVIDIA driver for this GPU (in a container, start it \
         with the NVIDIA Container Toolkit: `--gpus all`), or run on the CPU"
    )]
    NoDriver,
    /// The NVIDIA driver lacks a function that is needed.
    #[cfg(feature = "cuda")]
    #[error(
        "the NVIDIA driver is too old: it lacks {symbol}. Install a driver that supports CUDA 12 or later"
    )]
    DriverTooOld {
        /// The function it lacks.
        symbol: &'static str,
    },
    /// The driver sees no GPU.
    #[cfg(feature = "cuda")]
    #[error("the NVIDIA driver sees no GPU. Check `nvidia-smi` and CUDA_VISIBLE_DEVICES")]
    NoDevice,
    /// There is no device of that number.
    #[cfg(feature = "cuda")]
    #[error("there is no CUDA device {ordinal}; this machine has {available}")]
    DeviceOrdinal {
        /// The device asked for.
        ordinal: usize,
        /// Devices there are.
        available: usize,
    },
    /// A device is too old for the kernels.
    #[cfg(feature = "cuda")]
    #[error("the kernels need a GPU of architecture sm_{required} or later, got sm_{got}")]
    Architecture {
        /// Oldest architecture that is supported.
        required: u32,
        /// Architecture of the device.
        got: u32,
    },
    /// A driver function failed.
    #[cfg(feature = "cuda")]
    #[error("{call} failed with {name} ({code})")]
    Driver {
        /// The function.
        call: &'static str,
        /// Its result, a `CUresult`.
        code: u32,
        /// The result's name.
        name: String,
    },
    /// A kernel could not be launched, or an earlier one of the context failed.
    #[cfg(feature = "cuda")]
    #[error("launching {variant} failed with {name} ({code})")]
    Launch {
        /// Symbol of the kernel.
        variant: String,
        /// The driver's result, a `CUresult`.
        code: u32,
        /// The result's name.
        name: String,
    },
    /// Device memory could not be had. Nothing stays allocated.
    #[cfg(feature = "cuda")]
    #[error("out of device memory: {what} needs {required} bytes, {available} are free")]
    OutOfDeviceMemory {
        /// What the memory is for.
        what: &'static str,
        /// Bytes asked for.
        required: usize,
        /// Bytes that were free.
        available: usize,
    },
    /// NVRTC, the run-time compiler, is missing or failed.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Nvrtc(#[from] crate::cuda::nvrtc::NvrtcError),
    /// No kernel variant of that name serves the problem on the device.
    #[cfg(feature = "cuda")]
    #[error("kernel variant {name:?} {reason}")]
    Variant {
        /// The variant asked for.
        name: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// A stream or buffer belongs to another device, or to another context of the same device.
    #[cfg(feature = "cuda")]
    #[error(
        "{what} belongs to device {got} (or to another context of it), the plan to device {expected}"
    )]
    WrongDevice {
        /// What was given, with its layer.
        what: String,
        /// Device of the plan.
        expected: usize,
        /// Device of what was given.
        got: usize,
    },
    /// A device address is not a multiple of its element's size.
    #[cfg(feature = "cuda")]
    #[error("{what} starts at {address:#x}, which is not a multiple of {required} bytes")]
    Misaligned {
        /// What was given, with its layer.
        what: String,
        /// The alignment needed.
        required: usize,
        /// The address.
        address: u64,
    },
    /// Something that a stream capture cannot record.
    #[cfg(feature = "cuda")]
    #[error("{what} cannot be part of a stream capture: use {instead}")]
    Capturing {
        /// What was to be submitted.
        what: &'static str,
        /// The call that can be captured.
        instead: &'static str,
    },
    /// A workspace was lent to a plan over host memory.
    #[cfg(feature = "cuda")]
    #[error("a plan over host memory works in memory of its own, and borrows none")]
    BorrowedWorkspace,
    /// A borrowed workspace is too small.
    #[cfg(feature = "cuda")]
    #[error("the workspace needs {required} bytes, got {got}")]
    WorkspaceLen {
        /// Bytes needed.
        required: usize,
        /// Bytes given.
        got: usize,
    },
    /// The output overlaps an input.
    #[cfg(feature = "cuda")]
    #[error("the output overlaps layer {layer} by {bytes} bytes")]
    Overlap {
        /// The layer.
        layer: usize,
        /// Bytes in common.
        bytes: usize,
    },
}

impl Error {
    /// The error with its item, where it names one of a part of a batch, counted in the batch: the part begins at item
    /// `first`.
    pub fn in_batch(mut self, first: usize) -> Self {
        if let Error::Mass { item, .. } | Error::Lse { item, .. } = &mut self {
            *item += first;
        }
        self
    }
}
