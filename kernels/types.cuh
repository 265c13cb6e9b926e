// Integer names and the element types of attention maps. No CUDA header is needed anywhere: NVRTC knows the builtin
// variables and intrinsics, the rest is inline PTX.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEVICE __device__ __forceinline__
