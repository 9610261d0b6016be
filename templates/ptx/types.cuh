// Integer types by width; kernels include no CUDA or C++ header.
#pragma once

using u16 = unsigned short;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

constexpr int kWarp = 32;

__device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
