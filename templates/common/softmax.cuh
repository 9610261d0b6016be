// Online softmax of one warp's score fragments (Milakov & Gimelshein, arXiv 1805.02867), base 2.
//
// What a row's sum and output refer to need only be near the largest score so far, as sums of floats
// are as exact at any scale: it is raised once a score exceeds it by a factor of 2^kSlack, and not
// with every new maximum. After the first tiles that is rare.
//
// A thread owns two rows of every 16-row block: t/4 (half 0) and t/4 + 8 (half 1).
#pragma once
#include "ptx/scalar.cuh"

constexpr float kSlack = 8.f;  // probabilities up to 2^8 are as exact in bfloat16 and float16
// Where no maxima are looked for, a thread's share of a sum of powers tells that a row has outgrown
// its reference. float16 holds powers up to 2^15.
constexpr float kOutgrownSum = 1024.f;
// The reference of a row that has seen no key yet. Finite, so that the powers of masked scores are
// zeros and not NaN, and so low that those of any other score are infinite: any test for outgrown
// references then finds the row's first key. A power of two, as its product with the scale must be
// exact: x * scale - round(x * scale), fused, would leave the rounding error of 1e30.
constexpr float kNothingSeen = -0x1p100f;

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

struct RowState {
  float reference = kNothingSeen;  // log2 of what the row's sum and output refer to
  float sum = 0.f;                // this thread's share of sum(2^(scale * score - reference))

  __device__ __forceinline__ bool is_outgrown_by(float score, float scale_log2) const {
    return fmaf(score, scale_log2, -reference) > kSlack;
  }

  // Raises the reference to a score if it is below; everything accumulated shrinks by the result.
  __device__ __forceinline__ float raise_to(float score, float scale_log2) {
    const float raised = fmaxf(reference, score * scale_log2);
    const float rescale = exp2_approx(reference - raised);
    reference = raised;
    sum *= rescale;
    return rescale;
  }

  // Turns the row's scores into probabilities and adds them up.
  template <int kColumns>
  __device__ __forceinline__ void exponentiate(float (&scores)[kColumns][4], int half,
                                               float scale_log2) {
#pragma unroll
    for (int n = 0; n < kColumns; n++)
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; i++) {
        scores[n][i] = exp2_approx(fmaf(scores[n][i], scale_log2, -reference));
        sum += scores[n][i];
      }
  }
};

// The largest of this thread's scores of a row.
template <int kColumns>
__device__ __forceinline__ float thread_max(const float (&scores)[kColumns][4], int half) {
  float max = -infinity();
#pragma unroll
  for (int n = 0; n < kColumns; n++)
    max = fmaxf(max, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
  return max;
}

// What a row's sink, a logit without a value, adds to the sum that divides its output. The sum's terms
// are relative to 2^reference, and the log-sum-exp does not have it.
__device__ __forceinline__ float sink_term(float sink_log2, float reference) {
  constexpr float kMostSink = 120.f;  // or the term of a row that has seen no key would be infinite
  return exp2_approx(fminf(sink_log2 - reference, kMostSink));
}

// What a finished row is multiplied by: zeros stay zeros where it has seen no key.
__device__ __forceinline__ float inverse_of(float sum) { return sum > 0.f ? reciprocal_approx(sum) : 0.f; }

// Base-2 log-sum-exp of a finished row; -inf when it has seen no key. `sum` is over all lanes.
__device__ __forceinline__ float row_lse_log2(float reference, float sum) {
  return sum > 0.f ? reference + log2_approx(sum) : -infinity();
}
