// Online softmax of one warp's score fragments (Milakov & Gimelshein, arXiv 1805.02867), base 2.
//
// A thread owns two rows of every 16-row block: t/4 (half 0) and t/4 + 8 (half 1).
#pragma once
#include "ptx/scalar.cuh"

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

struct RowState {
  float max = -infinity();  // of the unscaled scores seen so far
  float sum = 0.f;          // this thread's share of sum(2^(scale * (score - max)))
};

// Turns scores into probabilities relative to the new row maximum and returns the factor by which
// everything accumulated so far shrinks.
template <int kColumns>
__device__ __forceinline__ float softmax_step(RowState& row, float (&scores)[kColumns][4], int half,
                                              float scale_log2) {
  float max = row.max;
#pragma unroll
  for (int n = 0; n < kColumns; n++)
    max = fmaxf(max, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
  max = quad_max(max);
  // A row that has seen nothing has max = -inf; any finite reference turns its scores into zeros.
  const float reference = max == -infinity() ? 0.f : max * scale_log2;
  const float shrink = exp2_approx(row.max * scale_log2 - reference);
  row.max = max;
  row.sum *= shrink;
#pragma unroll
  for (int n = 0; n < kColumns; n++) {
#pragma unroll
    for (int i = 2 * half; i < 2 * half + 2; i++) {
      scores[n][i] = exp2_approx(fmaf(scores[n][i], scale_log2, -reference));
      row.sum += scores[n][i];
    }
  }
  return shrink;
}

// Base-2 log-sum-exp of a finished row; -inf when it has seen no key. `sum` is over all lanes.
__device__ __forceinline__ float row_lse_log2(float max, float sum, float scale_log2) {
  return sum > 0.f ? fmaf(max, scale_log2, log2_approx(sum)) : -infinity();
}
