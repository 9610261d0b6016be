// K and V tiles of one work unit as a stream of asynchronous copies into a shared-memory ring.
//
// The stream is K, V, K, V, ... from the last tile to the first: the tiles that a causal mask cuts
// come first, so that the rest of the loop needs no mask. Copy number t goes to slot t % kSlots.
// A cache row is found through the page table, or directly when the cache is contiguous; keys at or
// beyond kv_end are never read: their rows are filled with zeros.
#pragma once
#include "common/swizzle.cuh"
#include "ptx/async_copy.cuh"

template <class Config, class Tile>
struct KvStream {
  static constexpr int kChunks = Config::kHeadDim / kChunkElements;
  static constexpr int kWarpRows = Tile::kKvTile / Tile::kWarps;  // rows that this warp copies
  static constexpr int kRowsAtOnce = kWarp / kChunks;
  static constexpr bool kHeadDim256 = Config::kHeadDim == 256;
  static constexpr int kTileBytes = Tile::kKvTile * Config::kHeadDim * 2;
  static_assert(kChunks <= kWarp && kWarpRows % kRowsAtOnce == 0 && kWarpRows <= kWarp, "");

  const Params& p;
  const WorkItem& item;
  const int kv_head, warp, lane;
  const u32 ring;
  const int copies;  // 2 per tile
  int next = 0;      // number of the next copy
  int next_slot = 0;
  int page;  // lane l: cache row of key l of this warp's share of the tile being copied; -1 = none

  __device__ __forceinline__ KvStream(const Params& p, const WorkItem& item, int kv_head, int warp,
                                      int lane, u32 ring, int tiles)
      : p(p), item(item), kv_head(kv_head), warp(warp), lane(lane), ring(ring), copies(2 * tiles) {
    find_pages(tiles - 1);
  }

  __device__ __forceinline__ int first_key(int tile) const {
    return item.kv_begin + tile * Tile::kKvTile + warp * kWarpRows;
  }

  // Looks up the pages of a tile well before its copies are issued.
  __device__ __forceinline__ void find_pages(int tile) {
    const int key = first_key(tile) + lane;
    page = -1;
    if (tile < 0 || lane >= kWarpRows || key >= item.kv_end) return;
    if constexpr (Config::kPageSize > 0)
      page = __ldg(p.page_table + item.page_begin + key / Config::kPageSize);
    else
      page = item.request;
  }

  // Issues the next copy and closes its group; past the end the group is empty.
  __device__ __forceinline__ void issue() {
    if (next < copies) {
      const int tile = (copies - 1 - next) / 2;
      copy_tile(tile, next & 1);
      if (next & 1) find_pages(tile - 1);
    }
    cp_async_commit();
    next++;
    next_slot = next_slot + 1 == Tile::kSlots ? 0 : next_slot + 1;
  }

 private:
  __device__ __forceinline__ void copy_tile(int tile, bool is_v) const {
    const int stride_page = is_v ? p.v_stride_page : p.k_stride_page;
    const int stride_token = is_v ? p.v_stride_token : p.k_stride_token;
    const int chunk = lane % kChunks;
    const u16* base = (is_v ? p.v : p.k) + kv_head * (is_v ? p.v_stride_head : p.k_stride_head) +
                      chunk * kChunkElements;
    const u32 slot = ring + next_slot * kTileBytes;
#pragma unroll(kHeadDim256 ? 2 : 8)  // at head_dim 256 the accumulators leave few registers
    for (int i = 0; i < kWarpRows / kRowsAtOnce; i++) {
      const int row = i * kRowsAtOnce + lane / kChunks;
      const int row_page = __shfl_sync(~0u, page, row);
      int token = first_key(tile) + row;
      if constexpr (Config::kPageSize > 0) token %= Config::kPageSize;
      const i64 offset = i64(max(row_page, 0)) * stride_page + i64(token) * stride_token;
      cp_async_16(slot + swizzled_offset<Config::kHeadDim>(warp * kWarpRows + row, chunk),
                  base + offset, row_page >= 0);
    }
  }
};
