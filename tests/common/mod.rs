//! What the test binaries share: inputs that mean something, and comparison that does not overlook anything.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod compare;
pub mod generate;
pub mod tensors;
