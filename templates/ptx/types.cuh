// Integer types by width; kernels include no CUDA or C++ header.
#pragma once

using u16 = unsigned short;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

constexpr int kWarp = 32;

__device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
__device__ constexpr int gcd(int a, int b) { return b == 0 ? a : gcd(b, a % b); }

// A value that all lanes of a warp share, said so that the compiler keeps it, and what follows from
// it, in uniform registers. wgmma takes its descriptors from there.
__device__ __forceinline__ int warp_uniform(int value) { return __shfl_sync(~0u, value, 0); }
