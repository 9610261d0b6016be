// Who takes which work: SM-aware CTA scheduling (POD-Attention, arXiv 2410.18038, section 4.1).
//
// A CTA draws a ticket from the counter of the SM that it runs on. Of every prefill_share +
// decode_share tickets of an SM the first prefill_share take prefill work and the rest decode work,
// so each SM runs both at once. When one side has run out its CTAs take from the other.
// The last CTA to leave puts all counters back to zero for the next launch.
#pragma once
#include "common/trace.cuh"
#include "ptx/scalar.cuh"

enum Role : int { kPrefill = 0, kDecode = 1, kDone = 2 };

struct Work {
  int role;
  int index;  // of a prefill unit, or of a group of one decode unit per warp
};

struct QueueCounters {
  u32* tickets;   // [Config::kNumTickets]
  u32* taken;     // [2] units handed out, by role
  u32* finished;  // CTAs that have left
};

template <class Config>
__device__ __forceinline__ QueueCounters counters_of(u32* counters) {
  return {counters, counters + Config::kNumTickets, counters + Config::kNumTickets + 2};
}

__device__ __forceinline__ Work take_from(const QueueCounters& counters, int num_prefill,
                                          int num_decode, int role) {
  for (int attempt = 0; attempt < 2; attempt++, role ^= 1) {
    const int count = role == kPrefill ? num_prefill : num_decode;
    if (count == 0) continue;
    const int index = atomicAdd(&counters.taken[role], 1u);
    if (index < count) return {role, index};
    TRACE_DRY(role);
  }
  return {kDone, 0};
}

// Units that CTAs take: of prefill, and groups of a decode unit for each warp.
struct UnitCounts {
  int prefill, decode;
};

template <class Config>
__device__ __forceinline__ UnitCounts units_of(const PlanHeader& plan, int num_kv_heads) {
  return {Config::kHasPrefill ? plan.num_prefill_items * num_kv_heads : 0,
          Config::kHasDecode ? ceil_div(plan.num_decode_items * num_kv_heads, Config::kWarps) : 0};
}

// Called by one thread of a CTA.
template <class Config>
__device__ __forceinline__ Work take_work(const QueueCounters& counters, const PlanHeader& plan,
                                          int num_kv_heads) {
  const UnitCounts units = units_of<Config>(plan, num_kv_heads);
  const u32 share = plan.prefill_share, cycle = max(plan.prefill_share + plan.decode_share, 1);
  const u32 ticket = atomicAdd(&counters.tickets[sm_id() % Config::kNumTickets], 1u);
  return take_from(counters, units.prefill, units.decode,
                   ticket % cycle < share ? kPrefill : kDecode);
}

// Whether a CTA would find no more work.
template <class Config>
__device__ __forceinline__ bool all_taken(const QueueCounters& counters, const PlanHeader& plan,
                                          int num_kv_heads) {
  const volatile u32* taken = counters.taken;
  const UnitCounts units = units_of<Config>(plan, num_kv_heads);
  return taken[kPrefill] >= units.prefill && taken[kDecode] >= units.decode;
}

// Called by all threads of a CTA that will take no more work.
template <class Config>
__device__ __forceinline__ void leave_launch(const QueueCounters& counters) {
  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicInc(counters.finished, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last) return;
  for (int i = threadIdx.x; i < Config::kNumTickets; i += blockDim.x) counters.tickets[i] = 0;
  if (threadIdx.x < 2) counters.taken[threadIdx.x] = 0;
}
