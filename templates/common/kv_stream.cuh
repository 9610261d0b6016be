// K and V tiles of one work unit as a stream of asynchronous copies into a shared-memory ring.
//
// The stream is K, V, K, V, ... from the last tile to the first: the tiles that a causal mask cuts
// come first, so that the rest of the loop needs no mask. Copy number t goes to slot t % kSlots.
// A cache row is found through the page table, or directly when the cache is contiguous; keys at or
// beyond kv_end, and before any window, are never read: their rows are filled with zeros.
#pragma once
#include "common/item.cuh"
#include "common/swizzle.cuh"
#include "common/tree.cuh"
#include "ptx/async_copy.cuh"
#include "ptx/scalar.cuh"

// An item as it lies in shared memory, with what else the loop over its keys needs: registers are few.
struct TileItem : WorkItem {
  const int* pages;          // of the request
  int first_seen;            // first key that a row sees, of this split or another
  int first_full, end_full;  // keys that every row sees

  // Called by one thread once the item is there, for a tile of so many rows.
  template <class Config, bool kTree>
  __device__ __forceinline__ void prepare(const Params& p, const PlanHeader& plan, int tile_rows) {
    const int last_row = min(row_begin + tile_rows, packed_rows(p, *this)) - 1;
    pages = plan.page_table + page_begin;
    first_seen = first_seen_key<kTree>(p, *this, PackedRow(p, row_begin).token);
    first_full = first_seen_key<kTree>(p, *this, PackedRow(p, last_row).token);
    end_full = end_of_sure_keys<Config, kTree>(*this, PackedRow(p, row_begin).token);
  }
};

template <class Config, class Tile>
struct KvStream {
  static constexpr int kWarpRows = Tile::kKvTile / Tile::kWarps;  // rows that this warp copies
  static constexpr int kChunks = Config::kHeadDim / kChunkElements;
  static constexpr int kValueChunks = Config::kValueDim / kChunkElements;
  // Lanes of a row: a power of two. Those behind the last chunk fill the other half of a product's 16
  // columns with zeros, and copy nothing else.
  static constexpr int kRowLanes = Config::kRowColumns > 128 ? 32 : Config::kRowColumns / kChunkElements;
  static constexpr int kRowsAtOnce = kWarp / kRowLanes;
  // Rows known to share a page: items begin at whole tiles.
  static constexpr int kRunRows =
      Config::kPageSize > 0 ? gcd(Config::kPageSize, kWarpRows) : kWarpRows;
  static constexpr bool kFewRegisters = Config::kValueDim > 128;  // the accumulators leave few
  static constexpr int kTileBytes = Tile::kKvTile * Config::kRowColumns * 2;
  static_assert(kChunks <= kRowLanes && kWarpRows % kRowsAtOnce == 0 && kWarpRows <= kWarp, "");

  const Params& p;
  const TileItem& item;
  const int kv_head, warp, lane;
  const u32 ring;
  int left;  // copies to issue, two for each tile: K when even, then V
  int next_slot = 0;
  int page;  // lane l: cache row of key l of this warp's share of the next tile, as it was read

  __device__ __forceinline__ KvStream(const Params& p, const TileItem& item, int kv_head, int warp,
                                      int lane, u32 ring, int tiles)
      : p(p), item(item), kv_head(kv_head), warp(warp), lane(lane), ring(ring), left(2 * tiles) {
    find_pages(tiles - 1);
  }

  __device__ __forceinline__ int first_key(int tile) const {
    return item.kv_begin + tile * Tile::kKvTile + warp * kWarpRows;
  }

  // Whether a lane's chunk is one of the head's, and whether it is written at all.
  static __device__ __forceinline__ bool chunk_exists(int chunk, bool is_v = false) {
    return kValueChunks < kChunks && is_v ? exists<kValueChunks>(chunk) : exists<kChunks>(chunk);
  }
  static __device__ __forceinline__ bool chunk_is_filled(int chunk, bool is_v = false) {
    return kValueChunks < kChunks && is_v ? is_filled<kValueChunks>(chunk)
                                          : is_filled<kChunks>(chunk);
  }

  // Looks up the pages of a tile well before its copies are issued.
  __device__ __forceinline__ void find_pages(int tile) {
    const int key = first_key(tile) + lane;
    page = 0;
    if (tile < 0 || lane >= kWarpRows || key >= item.kv_end) return;
    if constexpr (Config::kPageSize > 0)
      page = __ldg(item.pages + u32(key) / Config::kPageSize);
    else
      page = item.request;
  }

  // Issues the next copy and closes its group; past the end the group is empty.
  __device__ __forceinline__ void issue() {
    if (left > 0) {
      left--;
      const bool is_v = left % 2 == 0;
      copy_tile(left / 2, is_v);
      if (is_v) find_pages(left / 2 - 1);
    }
    cp_async_commit();
    next_slot = next_slot + 1 == Tile::kSlots ? 0 : next_slot + 1;
  }

 private:
  // The same of rows of so many chunks.
  template <int kRowChunks>
  static __device__ __forceinline__ bool exists(int chunk) {
    return kRowChunks % 2 == 0 || chunk < kRowChunks;
  }
  template <int kRowChunks>
  static __device__ __forceinline__ bool is_filled(int chunk) {
    return kRowChunks + kRowChunks % 2 == kRowLanes || chunk < kRowChunks + kRowChunks % 2;
  }

  __device__ __forceinline__ void copy_tile(int tile, bool is_v) const {
    const int stride_page = is_v ? p.v_stride_page : p.k_stride_page;
    const int stride_token = is_v ? p.v_stride_token : p.k_stride_token;
    // Nothing outside the cache is read: for a page number that it has not the last page's keys are
    // taken. Where pages are looked up this would wait for them: 4 to 5 % of the launch.
    const int row_in_cache = min(u32(page), u32(p.num_pages - 1));
    const int lane = computed_here(this->lane);  // or addresses take registers of the main loop
    const int chunk = lane % kRowLanes, row = lane / kRowLanes;  // of the first copy
    const u16* base = (is_v ? p.v : p.k) + chunk * kChunkElements +
                      i64(kv_head) * (is_v ? p.v_stride_head : p.k_stride_head);
    const u32 destination = ring + next_slot * kTileBytes +
                            swizzled_offset<Config::kRowColumns>(warp * kWarpRows + row, chunk);
    const int key = first_key(tile) + row;
    const int keys_left = chunk_exists(chunk, is_v) ? item.kv_end - key : 0;
    const int hidden = item.first_seen - key;
    const u16* source = base;
#pragma unroll(kFewRegisters ? 2 : 8)
    for (int i = 0; i < kWarpRows; i += kRowsAtOnce) {
      if (i % kRunRows == 0) {
        const int token = Config::kPageSize > 0 ? u32(key + i) % Config::kPageSize : key + i;
        source = base + i64(__shfl_sync(~0u, row_in_cache, row + i)) * stride_page +
                 i64(token) * stride_token;
      } else {
        source += i64(stride_token) * kRowsAtOnce;
      }
      if (chunk_is_filled(chunk, is_v))
        cp_async_16(advance_rows<Config::kRowColumns>(destination, i), source, i >= hidden && i < keys_left);
    }
  }
};
