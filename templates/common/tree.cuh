// Trees of speculative tokens (Medusa, arXiv 2401.10774; EAGLE, arXiv 2401.15077): a new token of a
// request sees those of its new keys that a word of bits says, and older ones as any token does.
//
// `kTree` is true of the decode side of kernels for trees; prefill beside it is causal.
#pragma once
#include "common/item.cuh"

// First of a request's new keys, which words are about; negative where it has fewer than tokens.
__device__ __forceinline__ int first_new_key(const WorkItem& item) {
  return item.kv_len - item.q_len;
}

// First key that a token may see: no window hides new keys of a tree. Of tokens without one words do.
template <bool kTree>
__device__ __forceinline__ int first_seen_key(const Params& p, const WorkItem& item, int token) {
  const int first = first_visible(p, item, token);
  return kTree ? min(first, first_new_key(item)) : first;
}

// One past the last key of the item that a token sees whatever its word is.
template <class Config, bool kTree>
__device__ __forceinline__ int end_of_sure_keys(const WorkItem& item, int token) {
  return kTree ? min(item.kv_end, first_new_key(item)) : visible_keys<Config>(item, token);
}

// One past the last key of the item that it may see.
template <class Config, bool kTree>
__device__ __forceinline__ int end_of_seen_keys(const WorkItem& item, int token) {
  return kTree ? item.kv_end : visible_keys<Config>(item, token);
}

// The word of a token: bit j is whether it sees the j-th new key of its request.
template <bool kTree>
struct TreeRow {
  u64 word = 0;
  int first = 0;  // new key, counted from `origin` as are keys asked for

  __device__ __forceinline__ TreeRow(const Params& p, const PlanHeader& plan, const WorkItem& item,
                                     int token, int origin) {
    if constexpr (kTree) {
      first = first_new_key(item) - origin;
      token = min(token, item.q_len - 1);  // rows behind the last are like it
      if (plan.tree_mask) word = __ldg(plan.tree_mask + item.q_begin + token);
      if (word == 0)  // no tree: keys up to its own, from its window on
        word = (~u64(0) >> (63 - token)) & (~u64(0) << max(0, token - p.window_left));
    }
  }

  // Whether the word hides a key of the request.
  __device__ __forceinline__ bool hides(int key) const {
    return kTree && key >= first && !(word >> (key - first) & 1);
  }
};
