// Shared memory of a Hopper CTA, from its start (1024-byte aligned):
//
//   Q      [blocks of 64 columns][128 rows][128 bytes]          one prefill tile
//   K, V   [stages][a KvTile of kv_tile rows]                   prefill ring, each
//   lane 0 of decode
//   the plan's header, barriers, work slots; those of decode and its reduction for every lane
//
// A decode lane is
//
//   Q      [blocks of 64 columns][rows][128 bytes]              one decode tile, of decode_rows rows for
//                                                               each KV head of a unit
//   P      [decode_tiles][rows][128 bytes]                      its probabilities
//   ring   [slots][a KvTile of 64 rows]                         K and V tiles in turn; of more than 128
//                                                               columns a part in each slot
//
// Lanes 1 and 2 lie over the prefill tiles, which they share in time, or behind lane 0 in a kernel
// without prefill. All tiles are in the 128-byte swizzle of common/descriptor.cuh. Offsets are those of
// podrt/kernels/hopper/shared_memory.py, rendered as the struct Layout.
#pragma once
#include "hopper/kv_tile.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"

constexpr int kWorkSlots = Layout::kWorkSlots;  // units handed over ahead of their use

// A unit as a producer hands it to its consumers.
struct alignas(16) WorkSlot {
  WorkItem item;
  int kv_head;  // the first of the unit's; -1: no more work
};

// A producer warp and a consumer warpgroup that decode one unit at a time, and their shared memory.
struct DecodeLane {
  int index;
  int slots;    // of its ring
  int tiles;    // offset of its tiles
  int control;  // offset of its barriers, work slots and reduction
};

template <class Config>
struct SharedMemory : Layout {
  static constexpr int kColumnBlocks = ceil_div(Config::kHeadDim, 64);
  static constexpr int kQBlockBytes = 128 * 128;
  template <bool kIsV>
  using PrefillTileOf = KvTile<Config, Config::kKvTile, Config::kPrefillPieceRows,
                               kIsV ? Config::kValueDim : Config::kHeadDim>;
  using PrefillTile = PrefillTileOf<false>;
  using PrefillValueTile = PrefillTileOf<true>;
  using DecodeTile = KvTile<Config, 64, Config::kDecodePieceRows, Config::kDecodeColumns>;
  static constexpr int kDecodeQBlockBytes = Config::kDecodeRows * 128;

  static_assert(Layout::kV - Layout::kK == Config::kStages * PrefillTile::kBytes ||
                    !Config::kHasPrefill, "a tile is not as large as on the host");
  static_assert(Layout::kFirstLane - Layout::kV == Config::kStages * PrefillValueTile::kBytes ||
                    !Config::kHasPrefill, "nor is that of V");
  static_assert(Layout::kNextLaneBytes - Layout::kLaneRing ==
                    Layout::kNextSlots * DecodeTile::kBytes, "nor is that of decode");
  static_assert(sizeof(WorkSlot) == Layout::kWorkSlotBytes, "nor a slot for work");

  char* const base;
  const u32 address;

  __device__ __forceinline__ explicit SharedMemory(char* base)
      : base(base), address(static_cast<u32>(__cvta_generic_to_shared(base))) {}

  __device__ __forceinline__ PlanHeader& plan() const {
    return *reinterpret_cast<PlanHeader*>(base + kHeader);
  }

  __device__ __forceinline__ u32 barrier(int number) const {
    return address + kBarriers + number * 8;
  }

  __device__ __forceinline__ DecodeLane first_lane() const {
    return {0, Config::kDecodeSlots, kFirstLane, kLaneControl};
  }
  // Lane 1 or 2; in a kernel without prefill, whose lanes are alike, lane 0 too.
  __device__ __forceinline__ DecodeLane next_lane(int index) const {
    return {index, kNextSlots, kNextLanes + (index - 1) * kNextLaneBytes,
            kLaneControl + index * kLaneControlBytes};
  }

  // Waits for a tile of K or V. Rows that were gathered came by ordinary stores, of which wgmma must be
  // told.
  static __device__ __forceinline__ void wait_for_tile(u32 full, u32 parity) {
    mbarrier_wait(full, parity);
    if constexpr (Config::kGathersRows) fence_proxy_async();
  }

  __device__ __forceinline__ DecodeLane lane(int index) const {
    return Config::kHasPrefill && index == 0 ? first_lane() : next_lane(index);
  }

  // Called by all prefill consumers between two roles: no thread uses the tiles any longer. `parity`
  // is that of the change: 0 the first time.
  __device__ __forceinline__ void hand_over(u32 parity) const {
    fence_proxy_async();
    mbarrier_arrive(barrier(kHandOver));
    mbarrier_wait(barrier(kHandOver), parity);
  }

  __device__ __forceinline__ void init_barriers() const {
    constexpr int kConsumers = 2;  // prefill warpgroups
    constexpr int kFills = Config::kGathersRows ? kWarp : 1;  // arrivals of a warp that fills a tile
    mbarrier_init(barrier(kQFull), 1);
    mbarrier_init(barrier(kQEmpty), kConsumers);
    for (int i = 0; i < Config::kStages; i++) {
      mbarrier_init(barrier(kKFull + i), kFills);
      mbarrier_init(barrier(kKEmpty + i), kConsumers);
      mbarrier_init(barrier(kVFull + i), kFills);
      mbarrier_init(barrier(kVEmpty + i), kConsumers);
    }
    mbarrier_init(barrier(kHandOver), kConsumers * 128);
    for (int i = 0; i < kWorkSlots; i++) {
      mbarrier_init(barrier(kWorkFull + i), kWarp);
      mbarrier_init(barrier(kWorkEmpty + i), kConsumers * 128 + kWarp);  // every thread, V's warp too
    }
    for (int index = 0; index < Config::kLanes; index++) {
      const u32 control = address + kLaneControl + index * kLaneControlBytes;
      int* outgrown =
          reinterpret_cast<int*>(base + kLaneControl + index * kLaneControlBytes + kOutgrown);
      outgrown[0] = outgrown[1] = 0;
      for (int i = 0; i < kWorkSlots; i++) {
        mbarrier_init(control + kLaneWorkFull + 8 * i, kWarp);
        mbarrier_init(control + kLaneWorkEmpty + 8 * i, 128);
      }
      for (int i = 0; i < kMaxSlots; i++) {
        mbarrier_init(control + kRingFull + 8 * i, kFills);
        mbarrier_init(control + kRingEmpty + 8 * i, 1);
      }
    }
    mbarrier_fence_init();
  }
};
