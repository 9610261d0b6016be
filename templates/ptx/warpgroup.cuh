// Warpgroups: register budgets, named barriers, and the ordering of wgmma.
#pragma once
#include "ptx/types.cuh"

constexpr int kWarpgroup = 128;

// Every warp of a warpgroup must execute the same one; the value is a multiple of 8.
template <int kRegisters>
__device__ __forceinline__ void dealloc_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void alloc_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Barrier 0 is __syncthreads. `threads` counts those that sync and those that only arrive.
__device__ __forceinline__ void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Before the first wgmma, and after registers that a wgmma reads or accumulates into were written.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving uses and changes of wgmma's registers across a wait or fence, which
// name no registers.
template <int kSize>
__device__ __forceinline__ void fence_operand(float (&registers)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; i++) asm volatile("" : "+f"(registers[i])::"memory");
}

template <int kSize>
__device__ __forceinline__ void fence_operand(u32 (&registers)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; i++) asm volatile("" : "+r"(registers[i])::"memory");
}

// Zeroes registers here and not earlier: hoisted out of a role they would take room in another one.
template <int kSize>
__device__ __forceinline__ void clear_registers(float (&registers)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; i++) asm volatile("mov.b32 %0, 0;" : "=f"(registers[i]));
}
