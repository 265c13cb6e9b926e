//! Tier 0: what the library says of problems, maps and relevance, and maps whose rollouts can be written down.

#[cfg(feature = "cpu")]
mod closed_forms;
#[cfg(feature = "cpu")]
#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "cpu")]
mod errors;
mod extents;
#[cfg(feature = "cpu")]
mod model;
mod post;
#[cfg(feature = "cpu")]
mod validate;
