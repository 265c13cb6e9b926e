//! The CUDA backend through its public interface: on a GPU where there is one, else on the stand-in driver.

mod choice;
#[path = "../common/mod.rs"]
mod common;
mod contract;
mod every_call;
mod failures;
mod forced;
mod given;
mod gradients;
mod group;
mod host;
mod inputs;
mod layers;
mod machine;
#[cfg(feature = "measure")]
mod measure;
mod modes;
mod problems;
mod queries_keys;
mod real_data;
mod sharing;
mod streaming;
mod tune;
mod workspace;

use common::{compare, generate, nvrtc};
