// Shared-memory tiles of [rows][kRowColumns] 2-byte elements, read by ldmatrix without bank conflicts.
// kRowColumns is head_dim rounded up to 64.
//
// ldmatrix reads one 16-byte chunk of 8 consecutive rows at a time. Rows are a multiple of 128 bytes
// apart, so equal chunks of 8 rows would share their banks; storing chunk c of row r at c ^ (r % 8)
// spreads them over all 32.
#pragma once
#include "ptx/types.cuh"

constexpr int kChunkElements = 8;  // 16 bytes

// Offset of a chunk from the start of a tile; the start must be aligned to a row.
template <int kRowColumns>
__device__ __forceinline__ u32 swizzled_offset(int row, int chunk) {
  return row * (kRowColumns * 2) + ((chunk ^ (row & 7)) << 4);
}

// The chunk `chunk` further on in the same row, for an address whose chunk has no bit of `chunk` set.
// One XOR with a constant, where the general form would keep one register for each chunk; rows that are
// no power of two long begin at any multiple of 8 chunks, whose multiples are added.
template <int kRowColumns>
__device__ __forceinline__ u32 advance_chunks(u32 address, int chunk) {
  if constexpr ((kRowColumns & (kRowColumns - 1)) == 0) return address ^ (chunk << 4);
  return (address ^ ((chunk & 7) << 4)) + (chunk / 8 << 7);
}

// The same chunk `rows` rows further on, for an address whose row has no bit of `rows` set.
template <int kRowColumns>
__device__ __forceinline__ u32 advance_rows(u32 address, int rows) {
  return advance_chunks<kRowColumns>(address, rows & 7) + rows * (kRowColumns * 2);
}
