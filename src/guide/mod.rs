//! How to, page by page: each is a text with examples that compile.

/// Reading the command line's input and output, option by option.
#[doc = include_str!("command_line.md")]
pub mod command_line {}

/// From programs that hold their maps themselves: host memory, cudarc, candle, C, ort, burn, tch, layer by layer.
#[doc = include_str!("hosts.md")]
pub mod hosts {}

/// Timing a rollout on your machine, and repeating the comparison with other systems.
#[doc = include_str!("measuring.md")]
pub mod measuring {}

/// From queries and keys, where there are no maps.
#[doc = include_str!("queries_keys.md")]
pub mod queries_keys {}

/// Getting attention maps out of a model and into a file.
#[doc = include_str!("saving_maps.md")]
pub mod saving_maps {}

/// What is trusted and what is not: files, photos, libraries, the cache of kernels.
#[doc = include_str!("trust.md")]
pub mod trust {}
