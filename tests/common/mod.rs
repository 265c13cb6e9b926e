//! What the test binaries share: inputs that mean something, comparison that does not overlook anything, and the NVRTC
//! libraries to compile with.
#![allow(dead_code, reason = "each test binary uses a part")]

#[cfg(feature = "cpu")]
pub mod compare;
pub mod generate;
#[cfg(feature = "cuda")]
pub mod nvrtc;
#[cfg(feature = "cpu")]
pub mod queries_keys;
pub mod scores_data;
pub mod tensors;
