// Producers that copy K and V row by row, for pages that are no groups of 8 tokens: a TMA load does not
// place fewer rows in a swizzled tile as wgmma reads it.
//
// A lane looks up the pages of some rows of a tile and tells the others where these lie. A lane copies 16
// bytes at once, a warp those of 4 rows of a block of 64 columns; behind a head's columns are zeros.
// A lane's copies arrive at the slot's barrier once they are done. They are ordinary stores: consumers
// fence before wgmma (SharedMemory::wait_for_tile).
//
// In the place of a cache's tensor map a kernel is given CacheRows. Rows beyond the request's keys, and
// those of pages that the cache has not, are zeros, and nothing is read for them.
#pragma once
#include "common/descriptor.cuh"
#include "hopper/producer.cuh"
#include "ptx/async_copy.cuh"
#include "ptx/scalar.cuh"

template <class Config, class Tile>
struct RowGather {
  static constexpr int kPageSize = Config::kPageSize;
  static constexpr int kRows = Tile::kRows;
  static constexpr int kLaneRows = ceil_div(kRows, kWarp);  // that a lane looks up
  static constexpr int kChunks = 8;                         // of 16 bytes in a row of a block
  static constexpr int kRowsAtOnce = kWarp / kChunks;
  static constexpr int kLastChunks = (Tile::kColumns - 1) % 64 / 8 + 1;  // in the last block
  static constexpr u32 kNowhere = ~0u;
  static_assert(kRows % 8 == 0, "");
  static_assert(sizeof(CacheRows) <= sizeof(TensorMap), "");

  int page[kLaneRows];  // of this lane's rows: lane, lane + 32 and so on; -1 for none

  // Called by a whole warp, well before the copies: it does not wait for the page table.
  __device__ __forceinline__ void find(const PlanHeader& plan, const WorkItem& item,
                                       int first_key) {
    const int lane = lane_id();
#pragma unroll
    for (int i = 0; i < kLaneRows; i++) {
      const int row = i * kWarp + lane, key = first_key + row;
      page[i] = -1;
      if (row < kRows && key < item.kv_len)
        page[i] = __ldg(plan.page_table + item.page_begin + u32(key) / kPageSize);
    }
  }

  // Copies the tile to a free slot; `full` completes when it is there. `part` numbers the slots that
  // share the columns of a tile.
  __device__ __forceinline__ void copy(const TensorMap& given, u32 shared, u32 full, int first_key,
                                       int head_chunk, int part) const {
    const CacheRows& cache = reinterpret_cast<const CacheRows&>(given);
    const int lane = lane_id();
    const int chunk = lane % kChunks, row = lane / kChunks;  // of the first copy
    const char* source = computed_here(reinterpret_cast<const char*>(cache.base) +
                                       i64(head_chunk + part * (Tile::kColumns / 8) + chunk) * 16);
    u32 to = shared + swizzle128(row, chunk);
    u32 steps;  // to this lane's row of the next 32
    // A rolled loop: there are several copies of this in a kernel, and unrolled they compile slowly.
#pragma unroll 1
    for (int first = 0; first < kRows; first += 8, to += Tile::kGroupBytes) {
      if (first % kWarp == 0) steps = steps_to(cache, first_key, first, lane);
#pragma unroll
      for (int j = 0; j < 8; j += kRowsAtOnce) {
        const u32 from = __shfl_sync(~0u, steps, first + j + row);  // modulo 32
        const char* columns = source + u64(from) * u32(cache.step_bytes);
#pragma unroll
        for (int block = 0; block < Tile::kColumnBlocks; block++) {
          const bool exists = block + 1 < Tile::kColumnBlocks || chunk < kLastChunks;
          cp_async_16((to ^ j << 4) + j * 128 + block * Tile::kBlockBytes, columns + block * 128,
                      exists && from != kNowhere);
        }
      }
    }
    cp_async_arrive(full);
  }

 private:
  // Steps from the cache's first row to the one that this lane has looked up, of those from `first` on.
  __device__ __forceinline__ u32 steps_to(const CacheRows& cache, int first_key, int first,
                                          int lane) const {
    u32 number = page[0];
#pragma unroll
    for (int i = 1; i < kLaneRows; i++)
      if (first == i * kWarp) number = page[i];
    const u32 token = u32(first_key + first + lane) % kPageSize;
    return number < cache.num_pages ? number * cache.page_steps + token * cache.token_steps
                                    : kNowhere;
  }
};

template <class Config, bool kIsV>
struct PrefillTiles<Config, kIsV, true> {
  using Smem = SharedMemory<Config>;
  using Tile = typename Smem::template PrefillTileOf<kIsV>;

  const Params& p;
  const Smem& smem;
  const int lane;
  RingPosition<Config::kStages> ring;

  // `after_first` is called once the first tile is on its way. `item` lies in a WorkSlot, where its KV
  // head is read again for every tile.
  template <class Function>
  __device__ __forceinline__ void copy(const WorkItem& item, int, Function after_first) {
    constexpr int kFull = kIsV ? Smem::kVFull : Smem::kKFull;
    constexpr int kEmpty = kIsV ? Smem::kVEmpty : Smem::kKEmpty;
    constexpr int kTiles = kIsV ? Smem::kV : Smem::kK;
    int first_key = last_tile<Config::kKvTile>(item);
    if (first_key < item.kv_begin) return;
    RowGather<Config, Tile> rows;
    rows.find(smem.plan(), item, first_key);
    for (; first_key >= item.kv_begin; first_key -= Config::kKvTile) {
      mbarrier_wait(smem.barrier(kEmpty + ring.slot), ring.parity ^ 1);
      rows.copy(kIsV ? p.prefill_v_map : p.prefill_k_map,
                smem.address + kTiles + ring.slot * Tile::kBytes, smem.barrier(kFull + ring.slot),
                first_key, kv_head_of(item) * (kIsV ? p.v_head_blocks : p.k_head_blocks), 0);
      ring.advance();
      // The next tile's pages are looked up while it waits for room.
      rows.find(smem.plan(), item, max(first_key - Config::kKvTile, 0));
      if (first_key == last_tile<Config::kKvTile>(item)) after_first();
    }
  }

 private:
  static __device__ __forceinline__ int kv_head_of(const WorkItem& item) {
    return reinterpret_cast<const WorkSlot&>(item).kv_head;
  }
};

// Position in a lane's ring, whose number of slots is known where the lane is.
struct LaneRing : RingSlot {
  __device__ __forceinline__ void advance(int slots) { advance_in(slots); }
};

// Draws decode units for a lane; copies their K and V in turn, from the last step to the first.
template <class Config>
__device__ __forceinline__ void gather_decode(const Params& p, const SharedMemory<Config>& smem,
                                              const DecodeLane& to, const UnitQueue& queue,
                                              int lane) {
  using Smem = SharedMemory<Config>;
  using Tile = typename Smem::DecodeTile;
  constexpr int kTiles = Config::kDecodeTiles, kKeys = kTiles * 64;
  constexpr int kParts = Config::kHeadDim / Tile::kColumns;
  constexpr int kValueParts = Config::kValueDim / Tile::kColumns;
  // Addresses of the lane are found again each time, or all of them take registers.
  const auto lane_here = [&] { return smem.lane(computed_here(to.index)); };
  UnitQueue units = queue;
  RingPosition<kWorkSlots> position;
  LaneRing ring;
  for (;;) {
    const DecodeLane at = lane_here();
    const u32 control = smem.address + at.control;
    WorkProducer<Config, kDecode> work{p,
                                       smem.plan(),
                                       control + Smem::kLaneWorkFull,
                                       control + Smem::kLaneWorkEmpty,
                                       smem.base + at.control + Smem::kLaneWork,
                                       units,
                                       position};
    const WorkSlot& slot = work.next(lane);
    units.first = -1;
    position = work.position;
    if (slot.kv_head < 0) break;
    const WorkItem& item = slot.item;
    int first_key = last_tile<kKeys>(item);
    if (first_key < item.kv_begin) continue;
    RowGather<Config, Tile> rows[kTiles];
    const auto find = [&] {
#pragma unroll
      for (int t = 0; t < kTiles; t++)
        rows[t].find(smem.plan(), item, max(first_key, 0) + t * 64);
    };
    find();
    while (first_key >= item.kv_begin) {
#pragma unroll
      for (int is_v = 0; is_v < 2; is_v++) {
        const int parts = is_v ? kValueParts : kParts;
#pragma unroll
        for (int i = 0; i < kTiles * parts; i++) {
          const int t = i / parts, part = i % parts;
          const DecodeLane at = lane_here();
          const u32 ring_control = smem.address + at.control;
          mbarrier_wait(ring_control + Smem::kRingEmpty + 8 * ring.slot, ring.parity ^ 1);
          rows[t].copy(is_v ? p.decode_v_map : p.decode_k_map,
                       smem.address + at.tiles + Smem::kLaneRing + ring.slot * Tile::kBytes,
                       ring_control + Smem::kRingFull + 8 * ring.slot, first_key + t * 64,
                       slot.kv_head * (is_v ? p.v_head_blocks : p.k_head_blocks), part);
          ring.advance(at.slots);
        }
      }
      first_key -= kKeys;
      find();  // while the next tiles wait for room
    }
  }
}
