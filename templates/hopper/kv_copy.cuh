// TMA loads of K and V tiles by one warp, every lane one piece of a page; a contiguous cache's tiles
// are one piece.
//
// A tensor map of the cache has an axis of 64 columns and one of such blocks, which steps over heads
// too: head h begins at block h * head_blocks. A paged cache's has groups of 8 tokens besides, so that
// one copy places all blocks of a piece as KvTile wants them:
//
//   paged        (columns, tokens of a group, blocks, groups of a page, pages)
//   contiguous   (columns, tokens, blocks, requests)
//
// Heads of a number of columns that 64 does not divide are an axis of their own, and the first axis ends
// with a head: the copy engine writes zeros behind it. Each block of a piece is a copy then:
//
//   either       (columns of a head, tokens, heads, pages or requests)
//
// Pieces that lie wholly beyond the request's keys are not copied, so page-table entries that do not
// exist are never read; rows beyond the last key hold whatever the page or an earlier tile left
// there, and the consumers deal with them.
#pragma once
#include "hopper/kv_tile.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"

template <class Config, class Tile>
struct KvCopy {
  static constexpr int kPageSize = Config::kPageSize;
  static constexpr int kPieceRows = Tile::kPieceRows;
  static constexpr int kPieces = Tile::kRows / kPieceRows;
  static constexpr int kPieceBytes = Tile::kBytes / kPieces;
  static constexpr int kCopies = kPieces * (Tile::kWholeBlocks ? 1 : Tile::kColumnBlocks);
  static_assert(Tile::kRows % kPieceRows == 0 && kPieceRows % 8 == 0 && kCopies <= kWarp, "");

  // What this lane copies of a tile: a page or request, and the token in it to begin with, -1 for
  // nothing. Any page number will do: the copy engine writes zeros for pages that the cache has not.
  struct Piece {
    int page, token;
  };

  static __device__ __forceinline__ Piece find(const PlanHeader& plan, const WorkItem& item,
                                               int first_key, int lane) {
    const int key = first_key + piece_of(lane) * kPieceRows;
    if (lane >= kCopies || key >= item.kv_len) return {0, -1};
    if constexpr (Tile::kPaged)
      return {__ldg(plan.page_table + item.page_begin + key / kPageSize), key % kPageSize};
    else
      return {item.request, key};
  }

  // Lanes copy the first block of all pieces, then the next one.
  static __device__ __forceinline__ int piece_of(int lane) {
    return Tile::kWholeBlocks ? lane : lane % kPieces;
  }

  static __device__ __forceinline__ u32 bytes(int kv_len, int first_key) {
    return max(0, min(kPieces, ceil_div(kv_len - first_key, kPieceRows))) * kPieceBytes;
  }

  // Called by a whole warp once the slot is free; `full` completes when the tile is there.
  static __device__ __forceinline__ void issue(const TensorMap* map, Piece piece, u32 shared,
                                               u32 full, u32 bytes, int head_block, int lane) {
    if (lane == 0) mbarrier_arrive_expect(full, bytes);
    __syncwarp();
    if (piece.token < 0) return;
    if constexpr (!Tile::kWholeBlocks)
      tma_load_4d(shared + lane / kPieces * Tile::kBlockBytes + piece_of(lane) * kPieceRows * 128, map,
                  full, lane / kPieces * 64, piece.token, head_block, piece.page);
    else if constexpr (Tile::kPaged)
      tma_load_5d(shared + lane * kPieceBytes, map, full, 0, 0, head_block, piece.token / 8,
                  piece.page);
    else
      tma_load_4d(shared, map, full, 0, piece.token, head_block, piece.page);
  }
};

// Zeroes rows of a V tile before `begin` and from `end` on: a probability of zero does not cancel a NaN
// there. Called by a whole warpgroup, which must synchronise afterwards.
template <class Tile>
__device__ __forceinline__ void zero_rows(char* tile, int begin, int end, int thread) {
  constexpr int kChunks = 8;
  const int first = begin > 0 ? 0 : max(end, 0);
#pragma unroll 1
  for (int i = first * kChunks + thread; i < Tile::kRows * kChunks; i += 128) {
    if (i / kChunks >= begin && i / kChunks < end) continue;
#pragma unroll
    for (int block = 0; block < Tile::kColumnBlocks; block++)
      *reinterpret_cast<uint4*>(tile + i / (8 * kChunks) * Tile::kGroupBytes +
                                block * Tile::kBlockBytes + i % (8 * kChunks) * 16) =
          make_uint4(0, 0, 0, 0);
  }
  fence_proxy_async();
}
