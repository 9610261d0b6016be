// Who takes which work: SM-aware CTA scheduling (POD-Attention, arXiv 2410.18038, section 4.1).
//
// A CTA draws a ticket from the counter of the SM that it runs on. Of every prefill_share +
// decode_share tickets of an SM the first prefill_share take prefill work and the rest decode work,
// so each SM runs both at once. When one side has run out its CTAs take from the other.
// The last CTA to leave puts all counters back to zero for the next launch.
#pragma once
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
  }
  return {kDone, 0};
}

// Called by one thread of a CTA. `draw` counts the CTA's calls.
template <class Config>
__device__ __forceinline__ Work take_work(const QueueCounters& counters, int num_prefill,
                                          int num_decode, int draw) {
  constexpr u32 kCycle = Config::kPrefillShare + Config::kDecodeShare;
  const u32 ticket = Config::kSmAware
                         ? atomicAdd(&counters.tickets[sm_id() % Config::kNumTickets], 1u)
                         : blockIdx.x + draw * gridDim.x;
  return take_from(counters, num_prefill, num_decode,
                   ticket % kCycle < Config::kPrefillShare ? kPrefill : kDecode);
}

// Whether a CTA would find no more work.
template <class Config>
__device__ __forceinline__ bool all_taken(const Params& p) {
  const volatile u32* taken = counters_of<Config>(p.counters).taken;
  const int prefill = Config::kHasPrefill ? p.num_prefill_items * p.num_kv_heads : 0;
  const int decode =
      Config::kHasDecode ? ceil_div(p.num_decode_items * p.num_kv_heads, Config::kWarps) : 0;
  return taken[kPrefill] >= prefill && taken[kDecode] >= decode;
}

// Called by all threads of a CTA that will take no more work.
template <class Config>
__device__ __forceinline__ void leave(const QueueCounters& counters) {
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
