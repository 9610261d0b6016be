// Prefill consumers: two warpgroups of 64 packed query rows each. As in FlashAttention-3
// (arXiv 2407.08608) they take turns on the tensor cores: in its turn a warpgroup issues S = Q K^T of
// a tile and O += P V of the tile before, and does the softmax of the former while the other has its
// turn. So the softmax must be short; see softmax_lagging.
//
// Keys go from the last tile to the first, so that the tiles cut by the causal mask come first and those
// cut by a window last. Both are done in one loop, in which another one does those between them.
#pragma once
#include "common/descriptor.cuh"
#include "common/soft_cap.cuh"
#include "common/softmax.cuh"
#include "common/trace.cuh"
#include "hopper/barriers.cuh"
#include "hopper/producer.cuh"
#include "ptx/warpgroup.cuh"

template <class Config>
struct PrefillConsumer {
  using Smem = SharedMemory<Config>;
  using Tile = typename Smem::PrefillTile;
  using ValueTile = typename Smem::PrefillValueTile;
  static constexpr int kScores = Config::kKvTile / 2;  // accumulators of a thread
  static constexpr int kOut = Config::kValueDim / 2;
  static constexpr int kValueColumns = Config::kValueColumns;
  // Whether a unit's first P V overwrites `out`, which is then neither cleared nor rescaled before. Beside
  // decode and where values are wide, no register is left to tell it from the others.
  static constexpr bool kTellsFirst = !Config::kHasDecode && Config::kValueDim <= 128;

  const Params& p;
  const Smem& smem;
  const int warpgroup, thread, warp, lane;  // warpgroup 0 or 1; thread and warp inside it
  RingPosition<Config::kStages> k, v;
  RingPosition<1> q;

  float scores[kScores], out[kOut];
  u32 probabilities[kScores / 2];
  float row_max[2];  // what the rows' sums refer to: a score near the largest so far
  float row_sum[2];
  int any_out;  // whether `out` holds anything yet

  __device__ __forceinline__ PrefillConsumer(const Params& p, const Smem& smem, int warpgroup,
                                             int thread)
      : p(p), smem(smem), warpgroup(warpgroup), thread(thread), warp(thread / kWarp),
        lane(thread % kWarp) {}

  __device__ __forceinline__ void run() {
    WorkConsumer work{smem.barrier(Smem::kWorkFull), smem.barrier(Smem::kWorkEmpty),
                      smem.base + Smem::kWork};
    if (warpgroup == 1) barrier_arrive(kTurnBarrier, 2 * kWarpgroup);  // warpgroup 0 begins
    for (;;) {
      const WorkSlot& slot = work.next();
      const int kv_head = warp_uniform(slot.kv_head);
      if (kv_head < 0) break;
      TRACE_BEGIN(kWarpgroup, kPrefill, slot.item, slot.kv_head);
      run_unit(slot.item, kv_head);
      TRACE_END(kWarpgroup, kPrefill, slot.item, slot.kv_head);
      work.release();
    }
  }

 private:
  __device__ __forceinline__ int tile_row(int half) const {
    return warpgroup * 64 + warp * 16 + lane / 4 + half * 8;
  }

  // Rows of the tile that exist.
  __device__ __forceinline__ int existing_rows(const WorkItem& item) const {
    return min(p.group * p.tile_tokens, packed_rows(p, item) - item.row_begin);
  }

  __device__ __forceinline__ void run_unit(const WorkItem& item, int kv_head) {
    // Rows of Q behind the request's last are those of other requests, or anything at all. As a warp's
    // rows decide together on how to go on (softmax_lagging), no score of those may count.
#pragma unroll
    for (int half = 0; half < 2; half++)
      row_max[half] = tile_row(half) < existing_rows(item) ? kNothingSeen : -kNothingSeen;
    row_sum[0] = row_sum[1] = 0.f;
    const int tiles = warp_uniform(ceil_div(item.kv_end - item.kv_begin, Config::kKvTile));
    any_out = !kTellsFirst;
    if (any_out || tiles <= 0) clear_registers(out);
    if (tiles > 0) attend(item, tiles);
    finish(item, kv_head);
  }

  __device__ __forceinline__ void attend(const WorkItem& item, int tiles) {
    const int first_token = PackedRow(p, item.row_begin).token;
    const int last_token = min(first_token + p.tile_tokens, item.q_len) - 1;
    // Every row sees the tiles from `window` to before `unmasked` whole. Those from `unmasked` on, which
    // end beyond what the first row sees, come first; those before `window`, last.
    const int unmasked = warp_uniform(
        max(visible_keys<Config>(item, first_token) - item.kv_begin, 0) / Config::kKvTile);
    const int window = warp_uniform(ceil_div(
        max(first_visible(p, item, last_token) - item.kv_begin, 0), Config::kKvTile));
    mbarrier_wait(smem.barrier(Smem::kQFull), q.parity);
    q.advance();
    int tile = tiles - 1;
    multiply_qk(item, tile);
    for (;;) {  // the first tile, and those that a mask cuts
      if constexpr (Config::kSoftCap) soft_cap_scores();
      const int first_key = item.kv_begin + tile * Config::kKvTile;
      if (tile >= unmasked) mask<false>(item, first_token, first_key);
      if (tile < window) {
        mask<true>(item, first_token, first_key);
        clear_values(warp_uniform(first_visible(p, item, first_token) - first_key),
                     Config::kKvTile);
      }
      softmax_exact();
      tile = warp_uniform(tile - 1);  // said again: the compiler loses track of it in this loop
      if (tile < unmasked)
        for (; tile >= window; tile--) {
          multiply(tile);
          if constexpr (Config::kSoftCap) soft_cap_seen_scores();
          softmax_lagging();
        }
      tile = warp_uniform(tile);
      if (tile < 0) break;
      multiply(tile);
    }
    multiply_pv();
  }

  // S = Q K^T of a tile, beside no other product.
  __device__ __forceinline__ void multiply_qk(const WorkItem& item, int tile) {
    Smem::wait_for_tile(smem.barrier(Smem::kKFull + k.slot), k.parity);
    issue_qk();
    wgmma_wait<0>();
    fence_operand(scores);
    release_k(tile == 0);
    clear_values(0, warp_uniform(item.kv_len - item.kv_begin - tile * Config::kKvTile));
  }

  // O += P V of a tile, likewise.
  __device__ __forceinline__ void multiply_pv() {
    Smem::wait_for_tile(smem.barrier(Smem::kVFull + v.slot), v.parity);
    issue_pv();
    wgmma_wait<0>();
    fence_operand(out);
    release_v();
  }

  // S = Q K^T of a tile and O += P V of the one before, in this warpgroup's turn.
  __device__ __forceinline__ void multiply(int tile) {
    Smem::wait_for_tile(smem.barrier(Smem::kKFull + k.slot), k.parity);
    barrier_sync(kTurnBarrier + warpgroup, 2 * kWarpgroup);
    issue_qk();
    Smem::wait_for_tile(smem.barrier(Smem::kVFull + v.slot), v.parity);
    issue_pv();
    barrier_arrive(kTurnBarrier + (warpgroup ^ 1), 2 * kWarpgroup);
    wgmma_wait<1>();
    fence_operand(scores);
    release_k(tile == 0);
    wgmma_wait<0>();
    fence_operand(out);
    release_v();
  }

  __device__ __forceinline__ bool elected() const { return thread == 0; }

  // After the last product of a unit Q is no longer needed either.
  __device__ __forceinline__ void release_k(bool is_last) {
    if (elected()) mbarrier_arrive(smem.barrier(Smem::kKEmpty + k.slot));
    if (elected() && is_last) mbarrier_arrive(smem.barrier(Smem::kQEmpty));
    k.advance();
  }

  __device__ __forceinline__ void release_v() {
    if (elected()) mbarrier_arrive(smem.barrier(Smem::kVEmpty + v.slot));
    v.advance();
  }

  // Prefill alone has uniform registers enough for all its descriptors.
  static __device__ __forceinline__ u64 advance_sparingly(u64 tile, int bytes) {
    return Config::kHasDecode ? advance_here(tile, bytes) : advance(tile, bytes);
  }

  __device__ __forceinline__ void issue_qk() {
    const u64 q_tile = descriptor(smem.address + Smem::kQ + warpgroup * 64 * 128);
    const u64 k_tile = Tile::k_descriptor(smem.address + Smem::kK + k.slot * Tile::kBytes);
    wgmma_fence();
    wgmma_qk_first(scores, q_tile, k_tile);
#pragma unroll
    for (int i = 1; i < Config::kHeadDim / 16; i++)
      wgmma_qk(scores, advance_sparingly(q_tile, i / 4 * Smem::kQBlockBytes + i % 4 * 32),
               advance_sparingly(k_tile, Tile::columns(i)));
    wgmma_commit();
  }

  __device__ __forceinline__ void issue_pv() {
    const u64 v_tile =
        ValueTile::v_descriptor(smem.address + Smem::kV + v.slot * ValueTile::kBytes);
    fence_operand(out);
    fence_operand(probabilities);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < Config::kKvTile / 16; i++)
#pragma unroll
      for (int column = 0; column < Config::kValueDim; column += kValueColumns) {
        auto& to = reinterpret_cast<float(&)[kValueColumns / 2]>(out[column / 2]);
        const u64 from = advance(v_tile, ValueTile::rows(i) + column / 64 * ValueTile::kBlockBytes);
        if (i == 0)
          wgmma_pv_if_any(to, probabilities, from, any_out);
        else
          wgmma_pv(to, probabilities + 4 * i, from);
      }
    any_out = 1;
    wgmma_commit();
  }

  // In the first and last tile of what a unit sees, rows of V before `begin` or from `end` on may hold
  // anything; see zero_rows.
  __device__ __forceinline__ void clear_values(int begin, int end) {
    if (begin <= 0 && end >= Config::kKvTile) return;
    Smem::wait_for_tile(smem.barrier(Smem::kVFull + v.slot), v.parity);
    zero_rows<ValueTile>(smem.base + Smem::kV + v.slot * ValueTile::kBytes, begin, end, thread);
    barrier_sync(kPrefillBarrier + warpgroup, kWarpgroup);
  }

  // Hides the keys before the rows' windows, or those behind what they see.
  template <bool kBefore>
  __device__ __forceinline__ void mask(const WorkItem& item, int first_token, int first_key) {
    const int first_column = first_key + 2 * (lane % 4);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int token = first_token + PackedRow(p, tile_row(half)).token;
      const int edge = (kBefore ? first_visible(p, item, token) : visible_keys<Config>(item, token)) -
                       first_column;
#pragma unroll
      for (int n = 0; n < kScores / 4; n++)
#pragma unroll
        for (int i = 0; i < 2; i++)
          if (kBefore ? n * 8 + i < edge : n * 8 + i >= edge)
            scores[n * 4 + 2 * half + i] = -infinity();
    }
  }

  // Before masks, as what they hide may be NaN.
  __device__ __forceinline__ void soft_cap_scores() {
    const float to_exponent = p.soft_cap_exponent;
#pragma unroll
    for (int i = 0; i < kScores; i++) scores[i] = soft_capped(scores[i], to_exponent);
  }

  // The same of a tile that every row sees whole, four scores of a row at once.
  __device__ __forceinline__ void soft_cap_seen_scores() {
    const float to_exponent = p.soft_cap_exponent;
#pragma unroll
    for (int i = 0; i < kScores; i += 8)
#pragma unroll
      for (int j = i; j < i + 4; j += 2)
        soft_cap(scores[j], scores[j + 1], scores[j + 4], scores[j + 5], to_exponent);
  }

  // Softmax of a tile that the mask cuts, or of the first: raises row_max to the tile's maxima, then
  // takes the exponentials. Several short dependency chains in place of a long one: only two warps
  // share a scheduler here.
  __device__ __forceinline__ void softmax_exact() {
    float max[2][2] = {{row_max[0], scores[1]}, {row_max[1], scores[3]}};
#pragma unroll
    for (int i = 0; i < kScores; i++)
      max[i / 2 % 2][i % 2] = fmaxf(max[i / 2 % 2][i % 2], scores[i]);
    float rescale[2], reference[2], sum[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float new_max = quad_max(fmaxf(max[half][0], max[half][1]));
      reference[half] = new_max * p.scale_log2;
      rescale[half] = exp2_approx(row_max[half] * p.scale_log2 - reference[half]);
      row_max[half] = new_max;
    }
    exponentiate(reference, sum);
#pragma unroll
    for (int half = 0; half < 2; half++) row_sum[half] = row_sum[half] * rescale[half] + sum[half];
    if (!any_out) return;
#pragma unroll
    for (int i = 0; i < kOut; i++) out[i] *= rescale[i / 2 % 2];
  }

  // Softmax of a tile that every row sees whole, relative to row_max as it is. What a sum of powers
  // refers to need only be near the largest of them, so maxima are looked for only once a sum tells
  // that a score has outgrown row_max: rarely, after the first tiles.
  __device__ __forceinline__ void softmax_lagging() {
    const float reference[2] = {row_max[0] * p.scale_log2, row_max[1] * p.scale_log2};
    float sum[2];
    exponentiate(reference, sum);
    if (__any_sync(~0u, fmaxf(sum[0], sum[1]) > kOutgrownSum)) {
      softmax_exact();
    } else {
      row_sum[0] += sum[0];
      row_sum[1] += sum[1];
    }
  }

  // Probabilities of a tile, and this thread's share of the rows' sums. Accumulators of two column
  // blocks are the A operand of one step over the keys.
  __device__ __forceinline__ void exponentiate(const float (&reference)[2], float (&row_sums)[2]) {
    float sum[2][2] = {};
#pragma unroll
    for (int i = 0; i < kScores; i += 2) {
      const int half = i / 2 % 2;
      const float low = exp2_approx(fmaf(scores[i], p.scale_log2, -reference[half]));
      const float high = exp2_approx(fmaf(scores[i + 1], p.scale_log2, -reference[half]));
      sum[half][0] += low;
      sum[half][1] += high;
      probabilities[i / 2] = Config::Element::pack(low, high);
    }
    row_sums[0] = sum[0][0] + sum[0][1];
    row_sums[1] = sum[1][0] + sum[1][1];
  }

  __device__ __forceinline__ void finish(const WorkItem& item, int kv_head) {
    const int tile_rows = p.group * p.tile_tokens;
    const int num_rows = existing_rows(item);
    // Both rows of a thread side by side: whatever is done for one waits for what it needs.
    float sum[2], reference[2], lse[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      sum[half] = quad_sum(row_sum[half]);
      reference[half] = row_max[half] * p.scale_log2;
      lse[half] = row_lse_log2(reference[half], sum[half]);
    }
    if (item.num_splits == 1) {
      if (p.sinks) {  // splits are merged without, and the merged row has one
#pragma unroll
        for (int half = 0; half < 2; half++)
          sum[half] += sink_term(sink_log2(p, item, kv_head, tile_row(half)), reference[half]);
      }
      const float inverse[2] = {inverse_of(sum[0]), inverse_of(sum[1])};
      store(item, kv_head, num_rows, inverse, lse);
    } else {
#pragma unroll
      for (int half = 0; half < 2; half++)
        store_partial(item, kv_head, tile_rows, tile_row(half), num_rows, half, inverse_of(sum[half]),
                      lse[half]);
      if (item.num_splits > 1) merge(item, kv_head, tile_rows, num_rows);
    }
  }

  // Two neighbouring lanes trade halves of two neighbouring column blocks, so that each stores 8
  // bytes and the four lanes of a row whole sectors of 32.
  __device__ __forceinline__ void store(const WorkItem& item, int kv_head, int num_rows,
                                        const float (&inverse)[2], const float (&lse)[2]) {
    const bool odd = lane % 2;
    u16* destination[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const RowAddress address(p, item, kv_head, min(tile_row(half), num_rows - 1));
      destination[half] = address.out(p) + odd * 8 + lane / 2 % 2 * 4;
      if (tile_row(half) < num_rows && lane % 4 == 0) address.store_lse(p, lse[half]);
    }
#pragma unroll
    for (int n = 0; n < kOut / 4; n += 2)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const u32 first = packed_out(n, half, inverse[half]);
        const u32 second = packed_out(n + 1, half, inverse[half]);
        const u32 traded = __shfl_xor_sync(~0u, odd ? first : second, 1);
        if (tile_row(half) < num_rows)
          *reinterpret_cast<uint2*>(destination[half] + n * 8) =
              odd ? make_uint2(traded, second) : make_uint2(first, traded);
      }
  }

  // This thread's two results of column block n.
  __device__ __forceinline__ u32 packed_out(int n, int half, float inverse) const {
    return Config::Element::pack(out[n * 4 + 2 * half] * inverse,
                                 out[n * 4 + 2 * half + 1] * inverse);
  }

  __device__ __forceinline__ void store_partial(const WorkItem& item, int kv_head, int tile_rows,
                                                int row, int num_rows, int half, float inverse,
                                                float lse) const {
    if (row >= num_rows) return;
    const i64 partial = partial_row(p, item, kv_head, tile_rows, item.split, row);
    float2* destination =
        reinterpret_cast<float2*>(p.partial_o + partial * Config::kValueDim) + lane % 4;
#pragma unroll
    for (int n = 0; n < kOut / 4; n++)
      destination[n * 4] = make_float2(out[n * 4 + 2 * half] * inverse,
                                       out[n * 4 + 2 * half + 1] * inverse);
    if (lane % 4 == 0) p.partial_lse[partial] = lse;
  }

  // Both warpgroups publish their rows; the last of all splits' warpgroups to arrive merges. Each
  // warpgroup counts for itself, as they do not wait for each other.
  __device__ __forceinline__ void merge(const WorkItem& item, int kv_head, int tile_rows,
                                        int num_rows) {
    volatile int* flag = reinterpret_cast<volatile int*>(smem.base + Smem::kFlags) + warpgroup;
    u32* counter = p.merge_counters +
                   2 * (item.merge * p.num_kv_heads + kv_head) + warpgroup;
    __threadfence();
    barrier_sync(kPrefillBarrier + warpgroup, kWarpgroup);
    if (elected()) *flag = arrive_is_last(counter, item.num_splits);
    barrier_sync(kPrefillBarrier + warpgroup, kWarpgroup);
    const bool last = *flag;
    if (!last) return;
    __threadfence();
    const int end = min(num_rows, (warpgroup + 1) * 64);
    constexpr int kRows = 4;  // at once
    for (int row = warpgroup * 64 + warp * kRows; row < end; row += 4 * kRows)
      merge_rows<Config, kRows, 2>(p, item, kv_head, tile_rows, row, end, lane);
  }
};
