// Merging the splits of a tile inside the launch (split-KV, FlashDecoding).
//
// Every split writes its normalised output and base-2 log-sum-exp; the last one to arrive reads them
// all and writes the result. The arrival counter wraps to zero by itself, so no launch clears it.
#pragma once
#include "common/softmax.cuh"

// Called by one thread after the partial results of its whole group are written and fenced.
__device__ __forceinline__ bool arrive_is_last(u32* counter, int num_splits) {
  return atomicInc(counter, num_splits - 1) == num_splits - 1;
}

// One warp merges `kRows` rows at once, of which only the first `num_rows` exist. There is little to do
// but wait for memory, so `kSplits` splits of each are read together.
template <int kHeadDim, int kRows, int kSplits>
struct MergedRows {
  static constexpr int kPairs = kHeadDim / 64;

  float2 out[kRows][kPairs];  // of a row, lane l has elements 2 l + {0, 1} + 64 i
  float lse_log2[kRows];

  // `partial_o` and `partial_lse` point at the first row in split 0. The other rows follow; splits are
  // `split_stride` rows apart.
  __device__ __forceinline__ MergedRows(const float* partial_o, const float* partial_lse,
                                        int split_stride, int num_splits, int num_rows, int lane) {
    float max[kRows], sum[kRows];
#pragma unroll
    for (int row = 0; row < kRows; row++) {
      max[row] = -infinity();
      sum[row] = 0.f;
#pragma unroll
      for (int i = 0; i < kPairs; i++) out[row][i] = make_float2(0.f, 0.f);
    }
    const float2* pairs = reinterpret_cast<const float2*>(partial_o) + lane;
    for (int left = num_splits; left > 0; left -= kSplits) {
      float lse[kSplits][kRows];
      float2 partial[kSplits][kRows][kPairs];
#pragma unroll
      for (int split = 0; split < kSplits; split++) {
#pragma unroll
        for (int row = 0; row < kRows; row++) {
          const int from = row == 0 ? 0 : min(row, num_rows - 1);
          // Written by other SMs during this launch: read past L1.
          lse[split][row] = split < left ? __ldcg(partial_lse + from) : -infinity();
#pragma unroll
          for (int i = 0; i < kPairs; i++)
            partial[split][row][i] = split < left ? __ldcg(pairs + from * (kHeadDim / 2) + i * kWarp)
                                                  : make_float2(0.f, 0.f);
        }
        partial_lse += split_stride;
        pairs += split_stride * (kHeadDim / 2);
      }
#pragma unroll
      for (int row = 0; row < kRows; row++) {
        float raised = max[row];
#pragma unroll
        for (int split = 0; split < kSplits; split++) raised = fmaxf(raised, lse[split][row]);
        // A row that has seen nothing: any finite reference turns its weights into zeros.
        const float reference = raised == -infinity() ? 0.f : raised;
        const float shrink = exp2_approx(max[row] - reference);
        max[row] = raised;
        sum[row] *= shrink;
        scale(out[row], shrink);
#pragma unroll
        for (int split = 0; split < kSplits; split++) {
          const float weight = exp2_approx(lse[split][row] - reference);
          sum[row] += weight;
#pragma unroll
          for (int i = 0; i < kPairs; i++) {
            out[row][i].x += weight * partial[split][row][i].x;
            out[row][i].y += weight * partial[split][row][i].y;
          }
        }
      }
    }
#pragma unroll
    for (int row = 0; row < kRows; row++) {
      scale(out[row], sum[row] > 0.f ? 1.f / sum[row] : 0.f);
      lse_log2[row] = row_lse_log2(max[row], sum[row]);
    }
  }

  // Writes a row, converted, to `destination`.
  template <class Element>
  __device__ __forceinline__ void store(int row, u16* destination, int lane) const {
#pragma unroll
    for (int i = 0; i < kPairs; i++)
      reinterpret_cast<u32*>(destination)[i * kWarp + lane] =
          Element::pack(out[row][i].x, out[row][i].y);
  }

 private:
  static __device__ __forceinline__ void scale(float2 (&pairs)[kPairs], float factor) {
#pragma unroll
    for (int i = 0; i < kPairs; i++)
      pairs[i] = make_float2(pairs[i].x * factor, pairs[i].y * factor);
  }
};
