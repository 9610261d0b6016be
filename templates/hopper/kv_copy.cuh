// Bulk copies of K and V tiles by one warp, every lane one piece of a page.
//
// A tensor map of the cache has axes (head_dim, KV heads, tokens of a page, pages) and a box of 64
// columns x 1 head x kBoxRows tokens. Pieces that lie wholly beyond the request's keys are not
// copied, so page-table entries that do not exist are never read; rows beyond the last key hold
// whatever the page or an earlier tile left there, and the consumers deal with them.
#pragma once
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"

template <class Config, int kRows>
struct KvCopy {
  static constexpr int kBoxRows = Config::kBoxRows;
  static constexpr int kColumnBlocks = Config::kHeadDim / 64;
  static constexpr int kPieces = kRows / kBoxRows;
  static constexpr int kBoxBytes = kBoxRows * 128;
  static_assert(kRows % kBoxRows == 0 && kPieces * kColumnBlocks <= kWarp, "");

  // What this lane copies of a tile: a page (-1 for nothing) and the token to begin at.
  struct Piece {
    int page, token;
  };

  static __device__ __forceinline__ Piece find(const Params& p, const WorkItem& item, int first_key,
                                               int lane) {
    const int key = first_key + (lane / kColumnBlocks) * kBoxRows;
    if (lane >= kPieces * kColumnBlocks || key >= item.kv_len) return {-1, 0};
    if constexpr (Config::kPageSize > 0)
      return {__ldg(p.page_table + item.page_begin + key / Config::kPageSize), key % Config::kPageSize};
    else
      return {item.request, key};
  }

  static __device__ __forceinline__ u32 bytes(int kv_len, int first_key) {
    return max(0, min(kPieces, ceil_div(kv_len - first_key, kBoxRows))) * kColumnBlocks * kBoxBytes;
  }

  // Called by a whole warp once the slot is free; `full` completes when the tile is there.
  static __device__ __forceinline__ void issue(const TensorMap* map, Piece piece, u32 shared,
                                               u32 full, u32 bytes, int kv_head, int lane) {
    if (lane == 0) mbarrier_arrive_expect(full, bytes);
    __syncwarp();
    if (piece.page >= 0) {
      const int block = lane % kColumnBlocks;
      tma_load_4d(shared + block * kRows * 128 + lane / kColumnBlocks * kBoxBytes, map, full,
                  block * 64, kv_head, piece.token, piece.page);
    }
  }
};

// Zeroes rows [first_row, kRows) of a V tile: a probability of zero does not cancel a NaN there.
// Called by a whole warpgroup, which must synchronise afterwards.
template <int kRows, int kColumnBlocks>
__device__ __forceinline__ void zero_rows(char* tile, int first_row, int thread) {
  constexpr int kChunks = 8;
  for (int i = first_row * kChunks + thread; i < kRows * kChunks; i += 128)
#pragma unroll
    for (int block = 0; block < kColumnBlocks; block++)
      *reinterpret_cast<uint4*>(tile + block * kRows * 128 + i * 16) = make_uint4(0, 0, 0, 0);
  fence_proxy_async();
}
