// What an instrumented build records: who works on which unit from when to when, and where a queue
// is found dry. Other builds define no PODRT_TRACE, and all of this is nothing.
//
// TraceBuffer and TraceEvent are those of podrt/kernels/tracing.py, which puts them in front. The
// begin of a unit and its end are two events, so that nothing is kept in registers in between.
#pragma once
#include "ptx/scalar.cuh"

#ifdef PODRT_TRACE

extern "C" {
__device__ TraceBuffer* podrt_trace;  // set by the host; null: nothing is recorded
}

enum TraceKind : int { kTraceBegin = 0, kTraceEnd = 1, kTraceDry = 2 };

// Nanoseconds on a clock that all SMs share, unlike their own.
__device__ __forceinline__ u32 global_timer_low() {
  u32 time_ns;
  asm volatile("mov.u32 %0, %%globaltimer_lo;" : "=r"(time_ns)::"memory");
  return time_ns;
}

// Read anew wherever it is asked for, so that no register keeps it meanwhile.
__device__ __forceinline__ u32 thread_of_cta() {
  u32 thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// Called by one thread. Behind the header lie `room` events, and a place that is written by all that
// find no room: two threads write to another at no time, and recording takes as long as ever.
__device__ __forceinline__ void trace_event(int kind, int side, int4 unit) {
  const u32 time_ns = global_timer_low();
  TraceBuffer* const buffer = podrt_trace;
  if (!buffer) return;
  const u32 number = atomicAdd(reinterpret_cast<u32*>(&buffer->count), 1u);
  TraceEvent* const events = reinterpret_cast<TraceEvent*>(buffer + 1);
  events[min(number, u32(buffer->room))] = {int(time_ns), int(sm_id()), int(blockIdx.x),
                                            kind | side << 8 | int(thread_of_cta() / kWarp) << 16,
                                            unit.x, unit.y, unit.z, unit.w};
}

// Called by whole warps, of which the first of every `kThreads` threads of the CTA records.
template <int kThreads, class Item>
__device__ __forceinline__ void trace_unit(int kind, int side, const Item& item, int kv_head) {
  if (thread_of_cta() % kThreads == 0)
    trace_event(kind, side, make_int4(item.request, item.row_begin, item.split, kv_head));
  __syncwarp();
}

#define TRACE_BEGIN(threads, ...) trace_unit<threads>(kTraceBegin, __VA_ARGS__)
#define TRACE_END(threads, ...) trace_unit<threads>(kTraceEnd, __VA_ARGS__)
#define TRACE_DRY(side) trace_event(kTraceDry, side, make_int4(-1, -1, -1, -1))
#else
#define TRACE_BEGIN(...)
#define TRACE_END(...)
#define TRACE_DRY(side)
#endif
