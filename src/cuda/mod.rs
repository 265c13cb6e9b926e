//! The CUDA backend.
//!
//! Building it needs no CUDA toolkit: the driver and NVRTC are opened at run time, and a machine that lacks either gets
//! a typed error that says what to install.

pub mod geometry;
pub mod nvrtc;
pub mod params;
pub mod variant;
