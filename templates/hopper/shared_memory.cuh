// Shared memory of a Hopper CTA, from its start (1024-byte aligned):
//
//   Q      [head_dim / 64][128 rows][128 bytes]                 one prefill tile
//   K, V   [stages][head_dim / 64][kv_tile rows][128 bytes]     prefill ring, each
//   ring   [slots][head_dim / 64][64 rows][128 bytes]           decode ring, K and V tiles in turn
//   DQ     [head_dim / 64][decode_rows][128 bytes]              one decode tile
//   DP     [decode_rows][128 bytes]                             its probabilities
//   barriers, work slots, decode reduction
//
// All tiles are in the 128-byte swizzle of common/descriptor.cuh.
#pragma once
#include "ptx/mbarrier.cuh"

constexpr int kWorkSlots = 2;  // units handed over ahead of their use

// A unit as a producer hands it to its consumers.
struct alignas(16) WorkSlot {
  WorkItem item;
  int kv_head;  // -1: no more work
};

template <class Config>
struct SharedMemory {
  static constexpr int kColumnBlocks = Config::kHeadDim / 64;
  static constexpr int kQBlockBytes = 128 * 128;
  static constexpr int kKvBlockBytes = Config::kKvTile * 128;
  static constexpr int kKvTileBytes = kColumnBlocks * kKvBlockBytes;
  static constexpr int kDecodeBlockBytes = 64 * 128;
  static constexpr int kDecodeTileBytes = kColumnBlocks * kDecodeBlockBytes;
  static constexpr int kDecodeQBlockBytes = Config::kDecodeRows * 128;

  static constexpr int kQ = 0;
  static constexpr int kK = kQ + (Config::kHasPrefill ? kColumnBlocks * kQBlockBytes : 0);
  static constexpr int kV = kK + (Config::kHasPrefill ? Config::kStages * kKvTileBytes : 0);
  static constexpr int kRing = kV + (Config::kHasPrefill ? Config::kStages * kKvTileBytes : 0);
  static constexpr int kDecodeQ =
      kRing + (Config::kHasDecode ? Config::kDecodeSlots * kDecodeTileBytes : 0);
  static constexpr int kDecodeP =
      kDecodeQ + (Config::kHasDecode ? kColumnBlocks * kDecodeQBlockBytes : 0);
  static constexpr int kBarriers = kDecodeP + (Config::kHasDecode ? Config::kDecodeRows * 128 : 0);

  // Barriers, 8 bytes each, by number.
  static constexpr int kQFull = 0, kQEmpty = 1;
  static constexpr int kKFull = 2, kKEmpty = kKFull + Config::kStages;
  static constexpr int kVFull = kKEmpty + Config::kStages, kVEmpty = kVFull + Config::kStages;
  static constexpr int kWorkFull = kVEmpty + Config::kStages;
  static constexpr int kWorkEmpty = kWorkFull + kWorkSlots;
  static constexpr int kDecodeWorkFull = kWorkEmpty + kWorkSlots;
  static constexpr int kDecodeWorkEmpty = kDecodeWorkFull + kWorkSlots;
  static constexpr int kRingFull = kDecodeWorkEmpty + kWorkSlots;
  static constexpr int kRingEmpty = kRingFull + Config::kDecodeSlots;
  static constexpr int kNumBarriers = kRingEmpty + Config::kDecodeSlots;

  static constexpr int kWork = (kBarriers + kNumBarriers * 8 + 15) / 16 * 16;
  static constexpr int kDecodeWork = kWork + kWorkSlots * int(sizeof(WorkSlot));
  static constexpr int kReduce = kDecodeWork + kWorkSlots * int(sizeof(WorkSlot));  // float[4][decode_rows]
  static constexpr int kFlags = kReduce + 4 * Config::kDecodeRows * 4;  // int[2]: last to arrive
  static constexpr int kBytes = kFlags + 8;

  char* const base;
  const u32 address;

  __device__ __forceinline__ explicit SharedMemory(char* base)
      : base(base), address(static_cast<u32>(__cvta_generic_to_shared(base))) {}

  __device__ __forceinline__ u32 barrier(int number) const {
    return address + kBarriers + number * 8;
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
    for (int i = 0; i < kWorkSlots; i++) {
      mbarrier_init(barrier(kWorkFull + i), 1);
      mbarrier_init(barrier(kWorkEmpty + i), kConsumers * 128 + kWarp);  // every thread, V's warp too
      mbarrier_init(barrier(kDecodeWorkFull + i), 1);
      mbarrier_init(barrier(kDecodeWorkEmpty + i), 128);
    }
    for (int i = 0; i < Config::kDecodeSlots; i++) {
      mbarrier_init(barrier(kRingFull + i), 1);
      mbarrier_init(barrier(kRingEmpty + i), 1);
    }
    mbarrier_fence_init();
  }
};
