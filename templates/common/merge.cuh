// Merging the splits of a tile inside the launch (split-KV, FlashDecoding).
//
// Every split writes its normalised output and base-2 log-sum-exp. The last one to arrive reads them
// all and writes the result, alone or with others that wait for it. Counters go back to zero by
// themselves, so no launch clears them.
#pragma once
#include "common/softmax.cuh"

// Called by one thread after the partial results of its whole group are written and fenced.
__device__ __forceinline__ bool arrive_is_last(u32* counter, int num_splits) {
  return atomicInc(counter, num_splits - 1) == num_splits - 1;
}

// A part of the work of merging a tile: one of `count` equal parts of its rows; none if that is 0.
struct MergeShare {
  int index, count;
};

// The same where all that have nothing else to do (`may_wait`) wait for the last one and merge with
// it. Nobody may wait before every unit is in somebody's hands, or all might wait for one that is in
// nobody's. `counters`: how many have arrived and, in the upper half, gone on to other work; how many
// know their share.
__device__ __forceinline__ MergeShare arrive_for_share(u32* counters, int num_splits,
                                                       bool may_wait) {
  constexpr u32 kArrived = 0xFFFF, kGone = 0x10000;
  const u32 splits = num_splits;
  volatile u32* arrivals = counters;
  u32 before, found = *arrivals;
  bool goes;
  do {
    before = found;
    goes = !may_wait && (before & kArrived) != splits - 1;
    found = atomicCAS(counters, before, before + 1 + (goes ? kGone : 0));
  } while (found != before);
  if (goes) return {0, 0};
  u32 after;
  do after = *arrivals;
  while ((after & kArrived) != splits);
  const u32 sharing = splits - after / kGone;
  if (atomicInc(counters + 1, sharing - 1) == sharing - 1) *arrivals = 0;
  return {int((before & kArrived) - before / kGone), int(sharing)};
}

// One warp merges `kRows` rows at once, of which only the first `num_rows` exist. There is little to do
// but wait for memory, so `kSplits` splits of each are read together.
template <int kHeadDim, int kRows, int kSplits>
struct MergedRows {
  static constexpr int kVector = kHeadDim < 128 ? 2 : 4;  // floats that a lane reads at once
  static constexpr int kVectors = ceil_div(kHeadDim, kWarp * kVector);
  static constexpr int kFloats = kVectors * kVector;

  float out[kRows][kFloats];  // of a row, lane l has elements kVector l + {0, 1, ..} + 32 kVector i
  float lse_log2[kRows];

  // `partial_o` and `partial_lse` point at the first row in split 0. The other rows follow; splits are
  // `split_stride` rows apart. `sinks_log2` are the rows' sinks, -inf where they have none.
  __device__ __forceinline__ MergedRows(const float* partial_o, const float* partial_lse,
                                        int split_stride, int num_splits, int num_rows,
                                        const float (&sinks_log2)[kRows], int lane) {
    float max[kRows], sum[kRows];
#pragma unroll
    for (int row = 0; row < kRows; row++) {
      max[row] = kNothingSeen;
      sum[row] = 0.f;
#pragma unroll
      for (int i = 0; i < kFloats; i++) out[row][i] = 0.f;
    }
    partial_o += lane * kVector;
    for (int left = num_splits; left > 0; left -= kSplits) {
      float lse[kSplits][kRows];
      float partial[kSplits][kRows][kFloats];
#pragma unroll
      for (int split = 0; split < kSplits; split++) {
#pragma unroll
        for (int row = 0; row < kRows; row++) {
          const int from = row == 0 ? 0 : min(row, num_rows - 1);
          lse[split][row] = split < left ? __ldcg(partial_lse + from) : -infinity();
#pragma unroll
          for (int i = 0; i < kVectors; i++)
            load(partial[split][row] + i * kVector,
                 partial_o + from * kHeadDim + i * kVector * kWarp, split < left && exists(i, lane));
        }
        partial_lse += split_stride;
        partial_o += split_stride * kHeadDim;
      }
#pragma unroll
      for (int row = 0; row < kRows; row++) {
        float raised = max[row];
#pragma unroll
        for (int split = 0; split < kSplits; split++) raised = fmaxf(raised, lse[split][row]);
        const float rescale = exp2_approx(max[row] - raised);
        max[row] = raised;
        sum[row] *= rescale;
#pragma unroll
        for (int i = 0; i < kFloats; i++) out[row][i] *= rescale;
#pragma unroll
        for (int split = 0; split < kSplits; split++) {
          const float weight = exp2_approx(lse[split][row] - raised);
          sum[row] += weight;
#pragma unroll
          for (int i = 0; i < kFloats; i++) out[row][i] += weight * partial[split][row][i];
        }
      }
    }
#pragma unroll
    for (int row = 0; row < kRows; row++) {
      const float inverse = inverse_of(sum[row] + sink_term(sinks_log2[row], max[row]));
#pragma unroll
      for (int i = 0; i < kFloats; i++) out[row][i] *= inverse;
      lse_log2[row] = row_lse_log2(max[row], sum[row]);
    }
  }

  // Writes a row, converted, to `destination`.
  template <class Element>
  __device__ __forceinline__ void store(int row, u16* destination, int lane) const {
    destination += lane * kVector;
#pragma unroll
    for (int i = 0; i < kVectors; i++) {
      if (!exists(i, lane)) break;
      const float* from = out[row] + i * kVector;
      u16* to = destination + i * kVector * kWarp;
      const u32 low = Element::pack(from[0], from[1]);
      if constexpr (kVector == 2)
        *reinterpret_cast<u32*>(to) = low;
      else
        *reinterpret_cast<uint2*>(to) = make_uint2(low, Element::pack(from[2], from[3]));
    }
  }

 private:
  // Whether a lane's i-th vector is one of the head's.
  static __device__ __forceinline__ bool exists(int i, int lane) {
    return kHeadDim % (kWarp * kVector) == 0 || (i * kWarp + lane) * kVector < kHeadDim;
  }

  // What other SMs have written during this launch: read past L1. Zeros where nothing is there.
  static __device__ __forceinline__ void load(float* to, const float* from, bool any) {
    if constexpr (kVector == 2) {
      const float2 v = any ? __ldcg(reinterpret_cast<const float2*>(from)) : float2{};
      to[0] = v.x, to[1] = v.y;
    } else {
      const float4 v = any ? __ldcg(reinterpret_cast<const float4*>(from)) : float4{};
      to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    }
  }
};
