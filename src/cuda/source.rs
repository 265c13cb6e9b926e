//! The kernel sources, embedded in the binary.

/// Headers that kernel sources include by name.
pub const HEADERS: &[(&str, &str)] = &[
    ("types.cuh", include_str!("../../kernels/types.cuh")),
    ("params.cuh", include_str!("../../kernels/params.cuh")),
];
