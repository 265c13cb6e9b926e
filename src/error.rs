//! The one error type of the crate. Every variant carries the numbers that tell what was wrong.

use crate::dtype::DType;

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
    /// A layer's elements are of another type than the problem says.
    #[error("layer {layer}: expected {expected} elements, got {got}")]
    LayerDType {
        /// The layer.
        layer: usize,
        /// Element type of the problem.
        expected: DType,
        /// Element type of the layer.
        got: DType,
    },
    /// A layer is too short for the extents and strides of the problem.
    #[error("layer {layer}: its extents and strides reach {expected} elements, got {got}")]
    LayerLen {
        /// The layer.
        layer: usize,
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
}
