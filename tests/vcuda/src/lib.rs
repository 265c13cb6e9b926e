//! A stand-in `libcuda.so` on top of `ptxemu`.
