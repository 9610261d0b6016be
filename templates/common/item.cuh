// A work item: which keys its rows see, and where the rows are in the tensors.
#pragma once
#include "common/merge.cuh"

// The work list that follows a plan's header.
__device__ __forceinline__ const WorkItem* items_of(const PlanHeader* plan) {
  return reinterpret_cast<const WorkItem*>(plan + 1);
}

// Copies the header, with which every CTA begins. Called by a whole warp; the caller synchronises.
__device__ __forceinline__ void load_header(PlanHeader& to, const PlanHeader* from, int lane) {
  constexpr int kVectors = sizeof(PlanHeader) / sizeof(int4);
  static_assert(kVectors <= kWarp, "one load each");
  if (lane < kVectors)
    reinterpret_cast<int4*>(&to)[lane] = __ldg(reinterpret_cast<const int4*>(from) + lane);
}

// Fetches to L2 the beginning of the work list, which all CTAs are about to read, while they wait for
// the header: a line each. Memory of a plan is never smaller. Called by a whole warp.
__device__ __forceinline__ void prefetch_items(const PlanHeader* plan, int lane) {
  constexpr int kLine = 128;
  const int line = blockIdx.x + lane * gridDim.x;
  if (line < kPlanBytesAtLeast / kLine)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(reinterpret_cast<const char*>(plan) + line * kLine));
}

// A packed row of a request: one of the query heads that share a KV head, of one of its tokens. The
// product with the reciprocal is the quotient or one less, whatever the row.
struct PackedRow {
  int token, head;
  __device__ __forceinline__ PackedRow(const Params& p, int row)
      : token(__umulhi(row, p.group_reciprocal)), head(row - token * p.group) {
    if (head < p.group) return;
    token++;
    head -= p.group;
  }
};

// Packed rows of an item's request. Of a prefix, all of whose keys its tokens see, `q_len` is negative:
// its tokens then stand behind all keys, which costs the masks nothing.
__device__ __forceinline__ int packed_rows(const Params& p, const WorkItem& item) {
  return abs(item.q_len) * p.group;
}

// What the first key of a tile is a multiple of where a window hides those before it, as of any of
// its splits (podrt/plan/tiles.py): a tile's rows are copied in runs that no page ends within.
template <class Config>
constexpr int kWindowStep = Config::kPageSize > 0 ? gcd(Config::kPageSize, 64) : 64;

// First key that a token of the item's request may see; negative where its window is longer than
// that. Keys before `kv_begin` are those of other items. Trees: common/tree.cuh.
__device__ __forceinline__ int first_visible(const Params& p, const WorkItem& item, int token) {
  return item.kv_len - item.q_len + token - p.window_left;
}

// Copies an item, whose request may have fewer keys than were planned: only the device knows exact
// lengths where there are any. Its window then reaches further to the left, which is the first
// split's to do. Called by a whole warp; the caller synchronises.
template <class Config>
__device__ __forceinline__ void load_item(WorkItem& to, const WorkItem* from, const Params& p,
                                          const PlanHeader& plan, int lane) {
  constexpr int kWords = sizeof(WorkItem) / sizeof(int);
  if (lane < kWords)
    reinterpret_cast<int*>(&to)[lane] = __ldg(reinterpret_cast<const int*>(from) + lane);
  if (!plan.kv_lens) return;
  __syncwarp();
  if (lane > 0) return;
  to.kv_len = max(0, min(to.kv_len, __ldg(plan.kv_lens + to.request)));
  if (to.split == 0) {
    int first = first_visible(p, to, PackedRow(p, to.row_begin).token);
    if (Config::kTree && to.q_len <= Config::kMostTreeTokens)  // decode
      first = min(first, to.kv_len - to.q_len);
    first = max(0, first);
    to.kv_begin = min(to.kv_begin, first / kWindowStep<Config> * kWindowStep<Config>);
  }
  to.kv_end = max(to.kv_begin, min(to.kv_end, to.kv_len));
}

// One past the last key of the item that a token of its request may see.
template <class Config>
__device__ __forceinline__ int visible_keys(const WorkItem& item, int token) {
  return Config::kCausal ? min(item.kv_end, item.kv_len - item.q_len + token + 1) : item.kv_end;
}

// Addresses of one packed row of a tile.
struct RowAddress {
  int token, head;
  __device__ __forceinline__ RowAddress(const Params& p, const WorkItem& item, int kv_head, int row) {
    const PackedRow packed(p, item.row_begin + row);
    token = item.q_begin + packed.token;
    head = kv_head * p.group + packed.head;
  }
  __device__ __forceinline__ const u16* q(const Params& p) const {
    return p.q + i64(token) * p.q_stride_token + i64(head) * p.q_stride_head;
  }
  __device__ __forceinline__ u16* out(const Params& p) const {
    return p.out + i64(token) * p.out_stride_token + i64(head) * p.out_stride_head;
  }
  __device__ __forceinline__ void store_lse(const Params& p, float lse_log2) const {
    if (p.lse)
      p.lse[i64(token) * p.lse_stride_token + i64(head) * p.lse_stride_head] = lse_log2 * kLn2;
  }
};

// The sink of a row's query head, in base 2; -inf where there are none.
__device__ __forceinline__ float sink_log2(const Params& p, const WorkItem& item, int kv_head,
                                           int row) {
  if (!p.sinks) return -infinity();
  const int head = kv_head * p.group + PackedRow(p, item.row_begin + row).head;
  return __ldg(p.sinks + i64(head) * p.sinks_stride) * kLog2E;
}

// Row of the partial buffers for a row of the tile in one of its splits.
__device__ __forceinline__ i64 partial_row(const Params& p, const WorkItem& item, int kv_head,
                                           int tile_rows, int split, int row) {
  return i64(item.partial_row + split * tile_rows) * p.num_kv_heads + kv_head * tile_rows + row;
}

// One warp merges the splits of rows [row, min(row + kRows, end)) of a tile, `kSplits` at a time, and
// writes the results.
template <class Config, int kRows, int kSplits>
__device__ __forceinline__ void merge_rows(const Params& p, const WorkItem& item, int kv_head,
                                           int tile_rows, int row, int end, int lane) {
  lane = computed_here(lane);  // or its offsets take registers of the main loop
  float sinks_log2[kRows];
#pragma unroll
  for (int r = 0; r < kRows; r++)
    sinks_log2[r] = sink_log2(p, item, kv_head, min(row + r, end - 1));
  const i64 first = partial_row(p, item, kv_head, tile_rows, 0, row);
  const MergedRows<Config::kValueDim, kRows, kSplits> merged(
      p.partial_o + first * Config::kValueDim, p.partial_lse + first,
      tile_rows * p.num_kv_heads, item.num_splits, end - row, sinks_log2, lane);
#pragma unroll
  for (int r = 0; r < kRows; r++) {
    if (row + r >= end) break;
    const RowAddress address(p, item, kv_head, row + r);
    merged.template store<typename Config::Element>(r, address.out(p), lane);
    if (lane == 0) address.store_lse(p, merged.lse_log2[r]);
  }
}
