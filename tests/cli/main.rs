//! The `attention-rollout` binary as its users meet it: files in, files out, messages and exit statuses.

mod bad_inputs;
mod bench;
#[cfg(feature = "cuda")]
mod gpu;
mod gradients;
mod heatmap;
mod hostile;
mod large;
mod limits;
mod messages;
mod outputs;
mod paths;
#[cfg(feature = "cuda")]
mod plan;
mod queries_keys;
mod real_data;
mod relevance;
mod signals;
mod support;

#[cfg(feature = "cuda")]
#[path = "../common/nvrtc.rs"]
mod nvrtc;
