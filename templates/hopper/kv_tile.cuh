// A tile of K or V of kTileRows tokens in shared memory, as TMA loads of kTilePieceRows leave it and
// wgmma reads it: groups of 8 rows, blocks of 64 columns (common/descriptor.cuh). A page's copy brings
// all columns of its rows, so in a paged cache's tile the blocks of a group lie side by side; a
// contiguous cache's tile is one copy, block after block. Where the last block is not a whole one blocks
// are copied one by one, and lie block after block in either; behind the columns there are zeros.
#pragma once
#include "common/descriptor.cuh"

template <class Config, int kTileRows, int kTilePieceRows, int kTileColumns>
struct KvTile {
  static constexpr int kRows = kTileRows, kPieceRows = kTilePieceRows;
  static constexpr int kColumns = kTileColumns, kColumnBlocks = ceil_div(kTileColumns, 64);
  static constexpr bool kWholeBlocks = kTileColumns % 64 == 0;
  static constexpr int kAtomBytes = 1024;
  static constexpr bool kPaged = Config::kPageSize > 0;
  static constexpr bool kBlocksSideBySide = kPaged && kWholeBlocks;
  static constexpr int kBlockBytes = kBlocksSideBySide ? kAtomBytes : kRows * 128;
  static constexpr int kGroupBytes = kBlocksSideBySide ? kColumnBlocks * kAtomBytes : kAtomBytes;
  static constexpr int kBytes = kRows * kColumnBlocks * 128;

  // As an operand whose rows are its M or N (K), or its K (V).
  static __device__ __forceinline__ u64 k_descriptor(u32 address) {
    return descriptor(address, 16, kGroupBytes);
  }
  static __device__ __forceinline__ u64 v_descriptor(u32 address) {
    return descriptor(address, kBlockBytes, kGroupBytes);
  }
  // Bytes from K's columns 0 to 15 to the i-th 16.
  static constexpr __device__ __forceinline__ int columns(int i) {
    return i / 4 * kBlockBytes + i % 4 * 32;
  }
  // Bytes from V's rows 0 to 15 to the i-th 16.
  static constexpr __device__ __forceinline__ int rows(int i) { return i * 2 * kGroupBytes; }
};
