// Soft-capped scores (Gemma 2, arXiv 2408.00118): cap * tanh(score / cap).
//
// tanh(x) = 1 - 2 / (1 + e^2x), by ex2 and rcp, is right to 2^-22 of the cap. tanh.approx, with one
// instruction in place of two, is to 2^-11: 0.02 of a score at a cap of 50, and more than rounding to
// bfloat16 costs a result.
#pragma once
#include "ptx/scalar.cuh"

// tanh of a score, given what makes it the exponent above in base 2 (Params::soft_cap_exponent); the
// factor `scale_log2` that follows has the cap.
__device__ __forceinline__ float soft_capped(float score, float to_exponent) {
  return fmaf(-2.f, reciprocal_approx(1.f + exp2_approx(score * to_exponent)), 1.f);
}

// The same of four scores, with one reciprocal, as that unit is what a prefill loop waits for. All of
// them must be of keys that their row sees: a NaN, which memory behind a mask may hold, makes all four NaN.
__device__ __forceinline__ void soft_cap(float& s0, float& s1, float& s2, float& s3,
                                         float to_exponent) {
  constexpr float kLargest = 30.f;  // tanh is 1, and four powers multiplied are finite
  const auto denominator = [&](float score) {
    return 1.f + exp2_approx(min_or_nan(score * to_exponent, kLargest));
  };
  const float d0 = denominator(s0), d1 = denominator(s1), d2 = denominator(s2),
              d3 = denominator(s3);
  const float d01 = d0 * d1, d23 = d2 * d3;
  const float r = reciprocal_approx(d01 * d23), r01 = r * d23, r23 = r * d01;
  s0 = fmaf(-2.f, r01 * d1, 1.f);
  s1 = fmaf(-2.f, r01 * d0, 1.f);
  s2 = fmaf(-2.f, r23 * d3, 1.f);
  s3 = fmaf(-2.f, r23 * d2, 1.f);
}
