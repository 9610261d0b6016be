// Which item and KV head a unit is: the order in which units are handed out.
#pragma once
#include "common/item.cuh"

struct Unit {
  int item, kv_head;
};

// Item by item.
__device__ __forceinline__ Unit unit_of(int unit, int num_kv_heads) {
  return {unit / num_kv_heads, unit % num_kv_heads};
}

// Of prefill: head by head in each run of items, so that tiles that run at once share keys, and item
// by item behind the last run (podrt/plan/order.py). Called by a whole warp, each lane of which
// compares with where one run begins or the last one ends; runs that there are not are empty ones in
// front.
__device__ __forceinline__ Unit prefill_unit_of(const PlanHeader& plan, int unit, int num_kv_heads,
                                                int lane) {
  constexpr int kRuns = sizeof(plan.prefill_runs) / sizeof(int);
  static_assert(kRuns == kWarp, "a lane for each");
  const Unit found = unit_of(unit, num_kv_heads);
  const int passed = __popc(__ballot_sync(~0u, plan.prefill_runs[lane] <= found.item));
  if (passed == kRuns) return found;
  const int begin = plan.prefill_runs[passed - 1];
  const Unit in_run =
      unit_of(unit - begin * num_kv_heads, plan.prefill_runs[passed] - begin);
  return {begin + in_run.kv_head, in_run.item};
}
