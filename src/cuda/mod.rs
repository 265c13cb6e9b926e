//! The CUDA backend.

pub mod geometry;
pub mod params;
pub mod source;
pub mod variant;
