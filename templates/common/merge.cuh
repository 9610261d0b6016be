// Merging the splits of a tile inside the launch (split-KV, FlashDecoding).
//
// Every split writes its normalised output and base-2 log-sum-exp; the last one to arrive reads them
// all and writes the result. The arrival counter wraps to zero by itself, so no launch clears it.
#pragma once
#include "ptx/scalar.cuh"

// Called by one thread after the partial results of its whole group are written and fenced.
__device__ __forceinline__ bool arrive_is_last(u32* counter, int num_splits) {
  return atomicInc(counter, num_splits - 1) == num_splits - 1;
}

// One warp merges one row; lane l gets elements l, l + 32, ... in `out`, and the merged LSE.
// `partial_o` and `partial_lse` point at the row in split 0; strides are in rows.
template <int kHeadDim>
__device__ __forceinline__ float merge_row(const float* partial_o, const float* partial_lse,
                                           i64 split_stride, int num_splits, int lane,
                                           float (&out)[kHeadDim / kWarp]) {
  float max = -infinity(), sum = 0.f;
#pragma unroll
  for (int i = 0; i < kHeadDim / kWarp; i++) out[i] = 0.f;
  for (int split = 0; split < num_splits; split++) {
    // Written by other SMs during this launch: read past L1.
    const float lse = __ldcg(partial_lse + split * split_stride);
    if (lse == -infinity()) continue;
    const float new_max = fmaxf(max, lse);
    const float shrink = exp2_approx(max - new_max), weight = exp2_approx(lse - new_max);
    max = new_max;
    sum = sum * shrink + weight;
    const float* o = partial_o + split * split_stride * kHeadDim + lane;
#pragma unroll
    for (int i = 0; i < kHeadDim / kWarp; i++)
      out[i] = out[i] * shrink + weight * __ldcg(o + i * kWarp);
  }
  const float inverse = sum > 0.f ? 1.f / sum : 0.f;
#pragma unroll
  for (int i = 0; i < kHeadDim / kWarp; i++) out[i] *= inverse;
  return sum > 0.f ? max + log2_approx(sum) : -infinity();
}
