// Shared memory of a Hopper CTA, from its start (1024-byte aligned):
//
//   Q      [head_dim / 64][128 rows][128 bytes]                 one prefill tile
//   K, V   [stages][a KvTile of kv_tile rows]                   prefill ring, each
//   lane 0 of decode
//   the plan's header, barriers, work slots; those of decode and its reduction for every lane
//
// A decode lane is
//
//   Q      [head_dim / 64][decode_rows][128 bytes]              one decode tile
//   P      [decode_tiles][decode_rows][128 bytes]               its probabilities
//   ring   [slots][a KvTile of 64 rows]                         K and V tiles in turn
//
// Lanes 1 and 2 lie over the prefill tiles, which they share in time, or behind lane 0 in a kernel
// without prefill. All tiles are in the 128-byte swizzle of common/descriptor.cuh.
#pragma once
#include "hopper/kv_tile.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"

constexpr int kWorkSlots = 2;  // units handed over ahead of their use

// A unit as a producer hands it to its consumers.
struct alignas(16) WorkSlot {
  WorkItem item;
  int kv_head;  // -1: no more work
};

// A producer warp and a consumer warpgroup that decode one unit at a time, and their shared memory.
struct DecodeLane {
  int index;
  int slots;    // of its ring
  int tiles;    // offset of its tiles
  int control;  // offset of its barriers, work slots and reduction
};

template <class Config>
struct SharedMemory {
  static constexpr int kColumnBlocks = Config::kHeadDim / 64;
  static constexpr int kQBlockBytes = 128 * 128;
  using PrefillTile = KvTile<Config, Config::kKvTile, Config::kPrefillPieceRows>;
  using DecodeTile = KvTile<Config, 64, Config::kDecodePieceRows>;
  static constexpr int kDecodeQBlockBytes = Config::kDecodeRows * 128;

  static constexpr int kQ = 0;
  static constexpr int kK = kQ + (Config::kHasPrefill ? kColumnBlocks * kQBlockBytes : 0);
  static constexpr int kV = kK + (Config::kHasPrefill ? Config::kStages * PrefillTile::kBytes : 0);
  static constexpr int kFirstLane = kV + (Config::kHasPrefill ? Config::kStages * PrefillTile::kBytes : 0);

  // A decode lane, by offset from its start.
  static constexpr int kLaneQ = 0;
  static constexpr int kLaneP = kLaneQ + kColumnBlocks * kDecodeQBlockBytes;
  static constexpr int kLaneRing = kLaneP + Config::kDecodeTiles * Config::kDecodeRows * 128;
  static constexpr int kFirstLaneBytes = kLaneRing + Config::kDecodeSlots * DecodeTile::kBytes;
  static constexpr int kNextLaneBytes = kLaneRing + Config::kNextSlots * DecodeTile::kBytes;
  static constexpr int kNextLanes = Config::kHasPrefill ? kQ : kFirstLane + kFirstLaneBytes;
  static constexpr int kTilesEnd =
      !Config::kHasDecode  ? kFirstLane
      : Config::kHasPrefill ? kFirstLane + kFirstLaneBytes
                            : kNextLanes + (Config::kLanes - 1) * kNextLaneBytes;
  static_assert(!Config::kHasPrefill || !Config::kHasDecode ||
                    (Config::kLanes - 1) * kNextLaneBytes <= kFirstLane, "");

  // Barriers, 8 bytes each, by number.
  static constexpr int kQFull = 0, kQEmpty = 1;
  static constexpr int kKFull = 2, kKEmpty = kKFull + Config::kStages;
  static constexpr int kVFull = kKEmpty + Config::kStages, kVEmpty = kVFull + Config::kStages;
  static constexpr int kWorkFull = kVEmpty + Config::kStages;
  static constexpr int kWorkEmpty = kWorkFull + kWorkSlots;
  static constexpr int kHandOver = kWorkEmpty + kWorkSlots;  // the prefill tiles change hands
  static constexpr int kNumBarriers = kHandOver + 1;
  static constexpr int kHeader = kTilesEnd;
  static constexpr int kBarriers = kHeader + int(sizeof(PlanHeader));

  static constexpr int kWork = (kBarriers + kNumBarriers * 8 + 15) / 16 * 16;
  static constexpr int kFlags = kWork + kWorkSlots * int(sizeof(WorkSlot));  // int[2]: last to arrive
  static constexpr int kLaneControl = kFlags + 16;

  // What a decode lane has besides its tiles, by offset from its start.
  static constexpr int kMaxSlots =
      Config::kDecodeSlots > Config::kNextSlots ? Config::kDecodeSlots : Config::kNextSlots;
  static constexpr int kLaneWork = 0;
  static constexpr int kReduce = kLaneWork + kWorkSlots * int(sizeof(WorkSlot));  // float[5][decode_rows]
  static constexpr int kOutgrown = kReduce + 5 * Config::kDecodeRows * 4;  // int[2], 16 bytes
  static constexpr int kLaneWorkFull = kOutgrown + 16;
  static constexpr int kLaneWorkEmpty = kLaneWorkFull + 8 * kWorkSlots;
  static constexpr int kRingFull = kLaneWorkEmpty + 8 * kWorkSlots;
  static constexpr int kRingEmpty = kRingFull + 8 * kMaxSlots;
  static constexpr int kLaneControlBytes = kRingEmpty + 8 * kMaxSlots;
  static constexpr int kBytes = kLaneControl + Config::kLanes * kLaneControlBytes;

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
    return {index, Config::kNextSlots, kNextLanes + (index - 1) * kNextLaneBytes,
            kLaneControl + index * kLaneControlBytes};
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
    mbarrier_init(barrier(kQFull), 1);
    mbarrier_init(barrier(kQEmpty), kConsumers);
    for (int i = 0; i < Config::kStages; i++) {
      mbarrier_init(barrier(kKFull + i), 1);
      mbarrier_init(barrier(kKEmpty + i), kConsumers);
      mbarrier_init(barrier(kVFull + i), 1);
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
        mbarrier_init(control + kRingFull + 8 * i, 1);
        mbarrier_init(control + kRingEmpty + 8 * i, 1);
      }
    }
    mbarrier_fence_init();
  }
};
