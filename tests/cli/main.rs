//! The `attention-rollout` binary as its users meet it: files in, files out, messages and exit statuses.

mod bad_inputs;
mod bench;
mod heatmap;
mod hostile;
mod large;
mod outputs;
mod real_data;
mod support;
