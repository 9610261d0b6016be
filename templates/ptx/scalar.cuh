// Single scalar instructions that C++ has no name for.
#pragma once
#include "ptx/types.cuh"

constexpr float kLn2 = 0.693147180559945309f, kLog2E = 1.442695040888963407f;

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Unlike fminf, which takes the number of the two.
__device__ __forceinline__ float min_or_nan(float a, float b) {
  float y;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

// Keeps the compiler from computing what depends on `x` earlier, in registers that others need.
__device__ __forceinline__ int computed_here(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

template <class T>
__device__ __forceinline__ T* computed_here(T* x) {
  asm volatile("" : "+l"(x));
  return x;
}

// A value from a special register, which the compiler would rather read again than keep: slow, in a loop.
__device__ __forceinline__ int keep_in_register(int x) {
  return __shfl_sync(~0u, x, threadIdx.x);  // from its own lane
}

// Read where it is used: what follows from a lane that is known is kept in registers.
__device__ __forceinline__ int lane_id() {
  int id;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(id));
  return id;
}

// The SM that this CTA landed on.
__device__ __forceinline__ u32 sm_id() {
  u32 id;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(id));
  return id;
}
