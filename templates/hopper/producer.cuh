// The producer warps: they draw units of work, hand them to the consumers and keep their rings full.
#pragma once
#include "common/queue.cuh"
#include "common/trace.cuh"
#include "common/unit.cuh"
#include "hopper/kv_copy.cuh"
#include "hopper/shared_memory.cuh"

// The units of a side as one producer draws them. At launch, where an atomic is a wait for memory,
// each has a unit of its own to begin with.
struct UnitQueue {
  u32* const taken;     // drawn so far by anyone
  int first;            // unit to begin with; -1 once begun
  const int num_first;  // units that somebody begins with

  // Called by a whole warp.
  __device__ __forceinline__ int draw(int lane) {
    int unit = first;
    first = -1;
    if (unit >= 0) return unit;
    if (lane == 0) unit = num_first + atomicAdd(taken, 1u);
    return __shfl_sync(~0u, unit, 0);
  }
};

// Called by every producer warp of one side's grid, when those that draw units have seen their queue run
// out: the last of these puts the counters back to zero for the next launch. At this time consumers are
// still at work, so that nobody waits for these atomics.
template <class Config>
__device__ __forceinline__ void stop_drawing(u32* counters) {
  const int thread = computed_here(threadIdx.x);  // or its number would be kept for so long
  if (thread >= Config::kDrawingWarps * kWarp || thread % kWarp > 0) return;
  const QueueCounters c = counters_of<Config>(counters);
  const u32 others = gridDim.x * Config::kDrawingWarps - 1;
  __threadfence();
  if (atomicInc(c.finished, others) == others) c.taken[kPrefill] = c.taken[kDecode] = 0;
}

// Draws units from a queue and hands them over through two slots, so that the next unit is known
// before the current one is finished.
template <class Config, Role kSide>
struct WorkProducer {
  const Params& p;
  const PlanHeader& plan;
  const u32 full, empty;  // addresses of the slots' barriers
  char* const slots;
  UnitQueue queue;
  RingPosition<kWorkSlots> position;

  // Called by a whole warp. Returns the slot of the unit; its kv_head is -1 when there is none.
  __device__ __forceinline__ const WorkSlot& next(int lane) {
    if constexpr (Config::kGathersRows) lane = lane_id();  // the given one would take registers
    const int unit = queue.draw(lane);
    // Read again for every unit: a producer has few registers.
    constexpr int kHeads = kSide == kPrefill ? 1 : Config::kDecodeHeads;  // of a unit
    const int num_items = kSide == kPrefill ? plan.num_prefill_items : plan.num_decode_items;
    const WorkItem* items = items_of(p.plan) + (kSide == kPrefill ? 0 : plan.num_prefill_items);
    const bool any = unit < num_items * (p.num_kv_heads / kHeads);
    mbarrier_wait(empty + 8 * position.slot, position.parity ^ 1);
    WorkSlot& slot = reinterpret_cast<WorkSlot*>(slots)[position.slot];
    if (any) {
      const Unit drawn = kSide == kPrefill ? prefill_unit_of(plan, unit, p.num_kv_heads, lane)
                                           : unit_of(unit, p.num_kv_heads / kHeads);
      load_item<Config>(slot.item, items + drawn.item, p, plan, lane);
      if (lane == 0) slot.kv_head = drawn.kv_head * kHeads;
    } else if (lane == 0) {
      slot.kv_head = -1;
      TRACE_DRY(kSide);
    }
    mbarrier_arrive(full + 8 * position.slot);
    __syncwarp();
    position.advance();
    return slot;
  }
};

// Takes the units that a WorkProducer hands over. Called by whole warps.
struct WorkConsumer {
  const u32 full, empty;
  const char* const slots;
  RingPosition<kWorkSlots> position;

  __device__ __forceinline__ const WorkSlot& next() {
    mbarrier_wait(full + 8 * position.slot, position.parity);
    return reinterpret_cast<const WorkSlot*>(slots)[position.slot];
  }

  // Every thread gives the slot back, so that it is not overwritten before the slowest is done.
  __device__ __forceinline__ void release() {
    mbarrier_arrive(empty + 8 * position.slot);
    position.advance();
  }
};

// First key of the last tile of an item; before kv_begin when the item has no key.
template <int kTile>
__device__ __forceinline__ int last_tile(const WorkItem& item) {
  return item.kv_begin + (ceil_div(item.kv_end - item.kv_begin, kTile) - 1) * kTile;
}

// Copies the tiles of K, or of V, of one unit into the prefill ring, from the last to the first. Where
// rows are gathered, hopper/row_gather.cuh does.
template <class Config, bool kIsV, bool kGathersRows = Config::kGathersRows>
struct PrefillTiles {
  using Smem = SharedMemory<Config>;
  using Tile = typename Smem::template PrefillTileOf<kIsV>;
  using Copy = KvCopy<Config, Tile>;

  const Params& p;
  const Smem& smem;
  const int lane;
  RingPosition<Config::kStages> ring;

  // `after_first` is called once the first tile is on its way.
  template <class Function>
  __device__ __forceinline__ void copy(const WorkItem& item, int kv_head, Function after_first) {
    constexpr int kFull = kIsV ? Smem::kVFull : Smem::kKFull;
    constexpr int kEmpty = kIsV ? Smem::kVEmpty : Smem::kKEmpty;
    constexpr int kTiles = kIsV ? Smem::kV : Smem::kK;
    const int head_block = kv_head * (kIsV ? p.v_head_blocks : p.k_head_blocks);
    int first_key = last_tile<Config::kKvTile>(item);
    if (first_key < item.kv_begin) return;
    auto piece = Copy::find(smem.plan(), item, first_key, lane);
    for (bool first = true; first_key >= item.kv_begin; first_key -= Config::kKvTile) {
      // The next tile's pages are looked up while this one's copies wait for room.
      const auto next =
          Copy::find(smem.plan(), item, max(first_key - Config::kKvTile, 0), lane);
      mbarrier_wait(smem.barrier(kEmpty + ring.slot), ring.parity ^ 1);
      Copy::issue(kIsV ? &p.prefill_v_map : &p.prefill_k_map, piece,
                  smem.address + kTiles + ring.slot * Tile::kBytes,
                  smem.barrier(kFull + ring.slot), Copy::bytes(item.kv_len, first_key), head_block,
                  lane);
      ring.advance();
      piece = next;
      if (first) after_first();
      first = false;
    }
  }
};

// Draws prefill units; copies Q and K.
template <class Config>
__device__ __forceinline__ void produce_prefill_qk(const Params& p,
                                                   const SharedMemory<Config>& smem,
                                                   const UnitQueue& queue, int lane) {
  using Smem = SharedMemory<Config>;
  WorkProducer<Config, kPrefill> work{p,
                                      smem.plan(),
                                      smem.barrier(Smem::kWorkFull),
                                      smem.barrier(Smem::kWorkEmpty),
                                      smem.base + Smem::kWork,
                                      queue};
  PrefillTiles<Config, false> k{p, smem, lane};
  RingPosition<1> q;
  const auto copy_q = [&](const WorkSlot& slot) {
    mbarrier_wait(smem.barrier(Smem::kQEmpty), q.parity ^ 1);
    q.advance();
    if (lane == 0)
      mbarrier_arrive_expect(smem.barrier(Smem::kQFull),
                             Smem::kColumnBlocks * p.group * p.tile_tokens * 128);
    __syncwarp();
    if (lane < Smem::kColumnBlocks)
      tma_load_3d(smem.address + Smem::kQ + lane * Smem::kQBlockBytes, &p.q_map,
                  smem.barrier(Smem::kQFull), lane * 64, slot.kv_head * p.group,
                  slot.item.q_begin + PackedRow(p, slot.item.row_begin).token);
  };
  // Units find Q still in use and begin with K, but for the first one: for Q no page is looked up.
  // Beside decode that is not worth the registers.
  for (bool q_first = !Config::kHasDecode;; q_first = false) {
    const WorkSlot& slot = work.next(lane);
    if (slot.kv_head < 0) break;
    if (q_first && slot.item.kv_end > slot.item.kv_begin) copy_q(slot);
    k.copy(slot.item, slot.kv_head, [&] { if (!q_first) copy_q(slot); });
  }
}

// Copies V of the same units. A warp of its own: with small pages issuing copies takes its time.
template <class Config>
__device__ __forceinline__ void produce_prefill_v(const Params& p, const SharedMemory<Config>& smem,
                                                  int lane) {
  using Smem = SharedMemory<Config>;
  WorkConsumer work{smem.barrier(Smem::kWorkFull), smem.barrier(Smem::kWorkEmpty),
                    smem.base + Smem::kWork};
  PrefillTiles<Config, true> v{p, smem, lane};
  for (;;) {
    const WorkSlot& slot = work.next();
    if (slot.kv_head < 0) break;
    v.copy(slot.item, slot.kv_head, [] {});
    work.release();
  }
}

// Called by all producer warps: the first two copy what the prefill consumers need.
template <class Config>
__device__ __forceinline__ void produce_prefill(const Params& p, const SharedMemory<Config>& smem,
                                                const UnitQueue& queue, int warp, int lane) {
  if (warp == 0) produce_prefill_qk<Config>(p, smem, queue, lane);
  if (warp == 1) produce_prefill_v<Config>(p, smem, lane);
}

// Draws decode units for a lane; copies their K and V in turn, from the last step to the first.
template <class Config>
__device__ __forceinline__ void produce_decode(const Params& p, const SharedMemory<Config>& smem,
                                               const DecodeLane& to, const UnitQueue& queue,
                                               int lane) {
  using Smem = SharedMemory<Config>;
  using Tile = typename Smem::DecodeTile;
  using Copy = KvCopy<Config, Tile>;
  constexpr int kTiles = Config::kDecodeTiles, kKeys = kTiles * 64;
  constexpr int kParts = Config::kDecodeHeads * Config::kHeadDim / Tile::kColumns;
  constexpr int kValueParts = Config::kDecodeHeads * Config::kValueDim / Tile::kColumns;
  // Block of columns with which a unit's first head begins; heads of pairs lie side by side.
  const auto head_block = [&](int kv_head, int is_v) {
    return Config::kDecodeHeads > 1 ? kv_head * Config::kHeadDim / 64
                                    : kv_head * (is_v ? p.v_head_blocks : p.k_head_blocks);
  };
  const u32 control = smem.address + to.control;
  WorkProducer<Config, kDecode> work{p,
                                     smem.plan(),
                                     control + Smem::kLaneWorkFull,
                                     control + Smem::kLaneWorkEmpty,
                                     smem.base + to.control + Smem::kLaneWork,
                                     queue};
  Ring ring{to.slots};
  for (;;) {
    const WorkSlot& slot = work.next(lane);
    const int kv_head = slot.kv_head;
    if (kv_head < 0) break;
    const WorkItem& item = slot.item;
    int first_key = last_tile<kKeys>(item);
    if (first_key < item.kv_begin) continue;
    typename Copy::Piece pieces[kTiles], next[kTiles];
#pragma unroll
    for (int t = 0; t < kTiles; t++)
      pieces[t] = Copy::find(smem.plan(), item, first_key + t * 64, lane);
    for (; first_key >= item.kv_begin; first_key -= kKeys) {
#pragma unroll
      for (int t = 0; t < kTiles; t++)
        next[t] = Copy::find(smem.plan(), item, max(first_key - kKeys, 0) + t * 64, lane);
#pragma unroll
      for (int is_v = 0; is_v < 2; is_v++) {
        const int parts = is_v ? kValueParts : kParts;
#pragma unroll
        for (int i = 0; i < kTiles * parts; i++) {
          const int t = i / parts, part = i % parts;
          mbarrier_wait(control + Smem::kRingEmpty + 8 * ring.slot, ring.parity ^ 1);
          Copy::issue(is_v ? &p.decode_v_map : &p.decode_k_map, pieces[t],
                      smem.address + to.tiles + Smem::kLaneRing + ring.slot * Tile::kBytes,
                      control + Smem::kRingFull + 8 * ring.slot,
                      Copy::bytes(item.kv_len, first_key + t * 64),
                      head_block(kv_head, is_v) + part * Tile::kColumnBlocks, lane);
          ring.advance();
        }
      }
#pragma unroll
      for (int t = 0; t < kTiles; t++) pieces[t] = next[t];
    }
  }
}
