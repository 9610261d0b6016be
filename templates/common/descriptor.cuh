// Shared-memory matrix descriptors of wgmma for 2-byte elements in the 128-byte swizzle.
//
// 8 rows of 64 columns, 128 bytes each, are one swizzle atom (1024 bytes, aligned to them), in which
// the 16-byte chunk c of row r lies at c ^ r. TMA writes this layout and wgmma undoes it, so only
// ordinary stores need to know. A tile is atoms in one of two orders: blocks of 64 columns, each with
// all groups of 8 rows, or groups of 8 rows, each with all blocks.
//
// K-major operand (Q, K, P): 16 columns further on is +32 bytes, inside the atom; the next 64
// columns are the next block. MN-major operand (V): 16 rows further on is two groups; `block_bytes`
// leads to the next 64 columns.
#pragma once
#include "ptx/types.cuh"

// `group_bytes` leads to the next 8 rows.
__device__ __forceinline__ u64 descriptor(u32 address, u32 block_bytes = 16,
                                          u32 group_bytes = 1024) {
  constexpr u64 kSwizzle128 = u64(1) << 62;
  return u64((address & 0x3FFFF) >> 4) | u64(block_bytes >> 4) << 16 |
         u64(group_bytes >> 4) << 32 | kSwizzle128;
}

// The descriptor `bytes` further on; a constant offset costs one addition.
__device__ __forceinline__ u64 advance(u64 descriptor, int bytes) {
  // The address lies in the low half, and a tile never reaches the end of its 14 bits.
  return (descriptor & 0xFFFFFFFF00000000) | u32(descriptor) + u32(bytes >> 4);
}

// The same, but not earlier than here. The compiler likes to prepare all descriptors of a loop, four
// uniform registers for a product, and a kernel with several such loops does not have as many.
__device__ __forceinline__ u64 advance_here(u64 descriptor, int bytes) {
  u32 low;
  asm volatile("add.u32 %0, %1, %2;" : "=r"(low) : "r"(u32(descriptor)), "r"(bytes >> 4));
  return (descriptor & 0xFFFFFFFF00000000) | low;
}

// Byte offset of a 16-byte chunk in a block of rows of 128 bytes.
__device__ __forceinline__ u32 swizzle128(int row, int chunk) {
  return row * 128 + ((chunk ^ (row & 7)) << 4);
}
