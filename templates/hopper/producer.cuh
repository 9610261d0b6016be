// The two producer warps: each draws units of its side, hands them to the consumers and keeps their
// rings full.
#pragma once
#include "hopper/item.cuh"
#include "hopper/kv_copy.cuh"
#include "hopper/shared_memory.cuh"

// Draws units from a queue and hands them over through two slots, so that the next unit is known
// before the current one is finished.
template <class Config>
struct WorkProducer {
  const SharedMemory<Config>& smem;
  const int full, empty, slots;  // barrier numbers; offset of the slots
  u32* const taken;
  const WorkItem* const items;
  const int num_items, num_kv_heads;
  RingPosition<kWorkSlots> position;

  // Called by a whole warp. Returns the slot of the unit; its kv_head is -1 when there is none.
  __device__ __forceinline__ const WorkSlot& next(int lane) {
    constexpr int kWords = sizeof(WorkItem) / sizeof(int);
    int unit = 0;
    if (lane == 0) unit = atomicAdd(taken, 1u);
    unit = __shfl_sync(~0u, unit, 0);
    const bool any = unit < num_items * num_kv_heads;
    mbarrier_wait(smem.barrier(empty + position.slot), position.parity ^ 1);
    WorkSlot& slot = reinterpret_cast<WorkSlot*>(smem.base + slots)[position.slot];
    if (any && lane < kWords)
      reinterpret_cast<int*>(&slot.item)[lane] =
          __ldg(reinterpret_cast<const int*>(items + unit / num_kv_heads) + lane);
    if (lane == kWords) slot.kv_head = any ? unit % num_kv_heads : -1;
    __syncwarp();
    if (lane == 0) mbarrier_arrive(smem.barrier(full + position.slot));
    position.advance();
    return slot;
  }
};

// Takes the units that a WorkProducer hands over. Called by all threads of a warpgroup.
template <class Config>
struct WorkConsumer {
  const SharedMemory<Config>& smem;
  const int full, empty, slots;
  RingPosition<kWorkSlots> position;

  __device__ __forceinline__ const WorkSlot& next() {
    mbarrier_wait(smem.barrier(full + position.slot), position.parity);
    return reinterpret_cast<const WorkSlot*>(smem.base + slots)[position.slot];
  }

  // Every thread gives the slot back, so that it is not overwritten before the slowest is done.
  __device__ __forceinline__ void release() {
    mbarrier_arrive(smem.barrier(empty + position.slot));
    position.advance();
  }
};

template <class Config>
__device__ __forceinline__ void produce_prefill(const Params& p, const SharedMemory<Config>& smem,
                                                u32* taken, int lane) {
  using Smem = SharedMemory<Config>;
  using Copy = KvCopy<Config, Config::kKvTile>;
  WorkProducer<Config> work{smem,  Smem::kWorkFull, Smem::kWorkEmpty,    Smem::kWork,
                            taken, p.items,         p.num_prefill_items, p.num_kv_heads};
  RingPosition<Config::kStages> k, v;
  RingPosition<1> q;
  for (;;) {
    const WorkSlot& slot = work.next(lane);
    const int kv_head = slot.kv_head;
    if (kv_head < 0) break;
    const WorkItem& item = slot.item;
    const int kv_begin = item.kv_begin, kv_len = item.kv_len;
    int first_key = kv_begin + (ceil_div(item.kv_end - kv_begin, Config::kKvTile) - 1) *
                                   Config::kKvTile;
    auto load_q = [&] {
      mbarrier_wait(smem.barrier(Smem::kQEmpty), q.parity ^ 1);
      q.advance();
      const u32 box_bytes = p.group * p.tile_tokens * 128;
      if (lane == 0)
        mbarrier_arrive_expect(smem.barrier(Smem::kQFull), Smem::kColumnBlocks * box_bytes);
      __syncwarp();
      if (lane < Smem::kColumnBlocks)
        tma_load_3d(smem.address + Smem::kQ + lane * Smem::kQBlockBytes, &p.q_map,
                    smem.barrier(Smem::kQFull), lane * 64, kv_head * p.group,
                    item.q_begin + item.row_begin / p.group);
    };
    auto load_v = [&](typename Copy::Piece piece, int key) {
      mbarrier_wait(smem.barrier(Smem::kVEmpty + v.slot), v.parity ^ 1);
      Copy::issue(&p.v_map, piece, smem.address + Smem::kV + v.slot * Smem::kKvTileBytes,
                  smem.barrier(Smem::kVFull + v.slot), Copy::bytes(kv_len, key), kv_head, lane);
      v.advance();
    };
    if (first_key < kv_begin) continue;  // no key at all: nothing to copy
    auto piece = Copy::find(p, item, first_key, lane);
    auto v_piece = piece;
    // V runs one tile behind K: the consumers need K of the next tile before V of this one.
    for (bool first = true; first_key >= kv_begin; first = false) {
      mbarrier_wait(smem.barrier(Smem::kKEmpty + k.slot), k.parity ^ 1);
      Copy::issue(&p.k_map, piece, smem.address + Smem::kK + k.slot * Smem::kKvTileBytes,
                  smem.barrier(Smem::kKFull + k.slot), Copy::bytes(kv_len, first_key), kv_head,
                  lane);
      k.advance();
      if (first)
        load_q();
      else
        load_v(v_piece, first_key + Config::kKvTile);
      v_piece = piece;
      first_key -= Config::kKvTile;
      if (first_key >= kv_begin)
        piece = Copy::find(p, item, first_key, lane);
    }
    load_v(v_piece, kv_begin);
  }
}

template <class Config>
__device__ __forceinline__ void produce_decode(const Params& p, const SharedMemory<Config>& smem,
                                               u32* taken, int lane) {
  using Smem = SharedMemory<Config>;
  using Copy = KvCopy<Config, 64>;
  WorkProducer<Config> work{smem,
                            Smem::kDecodeWorkFull,
                            Smem::kDecodeWorkEmpty,
                            Smem::kDecodeWork,
                            taken,
                            p.items + p.num_prefill_items,
                            p.num_decode_items,
                            p.num_kv_heads};
  RingPosition<Config::kDecodeSlots> ring;
  for (;;) {
    const WorkSlot& slot = work.next(lane);
    const int kv_head = slot.kv_head;
    if (kv_head < 0) break;
    const WorkItem& item = slot.item;
    const int kv_begin = item.kv_begin, kv_len = item.kv_len;
    int first_key = kv_begin + (ceil_div(item.kv_end - kv_begin, 64) - 1) * 64;
    if (first_key < kv_begin) continue;
    auto piece = Copy::find(p, item, first_key, lane);
    for (; first_key >= kv_begin; first_key -= 64) {
      const u32 bytes = Copy::bytes(kv_len, first_key);
      // The next tile's pages are looked up while this one's copies wait for room.
      const auto next = first_key > kv_begin
                            ? Copy::find(p, item, first_key - 64, lane)
                            : piece;
#pragma unroll
      for (int is_v = 0; is_v < 2; is_v++) {
        mbarrier_wait(smem.barrier(Smem::kRingEmpty + ring.slot), ring.parity ^ 1);
        Copy::issue(is_v ? &p.v_map : &p.k_map, piece,
                    smem.address + Smem::kRing + ring.slot * Smem::kDecodeTileBytes,
                    smem.barrier(Smem::kRingFull + ring.slot), bytes, kv_head, lane);
        ring.advance();
      }
      piece = next;
    }
  }
}
