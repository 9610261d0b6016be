// Prefill consumers: two warpgroups of 64 packed query rows each, FlashAttention-3's schedule
// (arXiv 2407.08608): while one warpgroup does its softmax the other has the tensor cores
// (ping-pong), and inside a warpgroup S = Q K^T of the next tile runs before O += P V of this one,
// which ends while the new maxima are found.
//
// Keys go from the last tile to the first, so that the tiles cut by the mask come first.
#pragma once
#include "common/descriptor.cuh"
#include "common/softmax.cuh"
#include "hopper/barriers.cuh"
#include "hopper/producer.cuh"
#include "ptx/warpgroup.cuh"

template <class Config>
struct PrefillConsumer {
  using Smem = SharedMemory<Config>;
  static constexpr int kScores = Config::kKvTile / 2;  // accumulators of a thread
  static constexpr int kOut = Config::kHeadDim / 2;

  const Params& p;
  const Smem& smem;
  const int warpgroup, thread, warp, lane;  // warpgroup 0 or 1; thread and warp inside it
  RingPosition<Config::kStages> k, v;
  RingPosition<1> q;

  float scores[kScores], out[kOut];
  u32 probabilities[kScores / 2];
  float row_max[2], row_sum[2], shrink[2];

  __device__ __forceinline__ PrefillConsumer(const Params& p, const Smem& smem, int warpgroup,
                                             int thread)
      : p(p), smem(smem), warpgroup(warpgroup), thread(thread), warp(thread / kWarp),
        lane(thread % kWarp) {}

  __device__ __forceinline__ void run() {
    WorkConsumer<Config> work{smem, Smem::kWorkFull, Smem::kWorkEmpty, Smem::kWork};
    if (warpgroup == 1) barrier_arrive(kTurnBarrier, 2 * kWarpgroup);  // warpgroup 0 begins
    for (;;) {
      const WorkSlot& slot = work.next();
      const int kv_head = warp_uniform(slot.kv_head);
      if (kv_head < 0) break;
      run_unit(slot.item, kv_head);
      work.release();
    }
  }

 private:
  __device__ __forceinline__ int tile_row(int half) const {
    return warpgroup * 64 + warp * 16 + lane / 4 + half * 8;
  }

  __device__ __forceinline__ void run_unit(const WorkItem& item, int kv_head) {
    row_max[0] = row_max[1] = -infinity();
    row_sum[0] = row_sum[1] = 0.f;
    const int tiles = warp_uniform(ceil_div(item.kv_end - item.kv_begin, Config::kKvTile));
    if (tiles > 0) {
      attend(item, tiles);
    } else {
#pragma unroll
      for (int i = 0; i < kOut; i++) out[i] = 0.f;
    }
    finish(item, kv_head);
  }

  __device__ __forceinline__ void attend(const WorkItem& item, int tiles) {
    const int first_token = item.row_begin / p.group;
    const int full_limit = visible_keys<Config>(item, first_token);  // seen by every row
    int first_key = item.kv_begin + (tiles - 1) * Config::kKvTile;
    const int last_rows = item.kv_len - first_key;  // of the last tile; more than a tile is full

    mbarrier_wait(smem.barrier(Smem::kQFull), q.parity);
    q.advance();
    mbarrier_wait(smem.barrier(Smem::kKFull + k.slot), k.parity);
    issue_qk();
    wgmma_wait<0>();
    hold_registers(scores);
    release_k();
    if (first_key + Config::kKvTile > full_limit) mask(item, first_token, first_key);
    softmax();

    bool accumulate = false;
    for (int tile = tiles - 2; tile >= 0; tile--) {
      first_key -= Config::kKvTile;
      mbarrier_wait(smem.barrier(Smem::kKFull + k.slot), k.parity);
      barrier_sync(kTurnBarrier + warpgroup, 2 * kWarpgroup);
      issue_qk();
      mbarrier_wait(smem.barrier(Smem::kVFull + v.slot), v.parity);
      if (!accumulate) clear_beyond(last_rows);
      issue_pv(accumulate);
      accumulate = true;
      barrier_arrive(kTurnBarrier + (warpgroup ^ 1), 2 * kWarpgroup);
      wgmma_wait<1>();
      hold_registers(scores);
      release_k();
      if (first_key + Config::kKvTile > full_limit) mask(item, first_token, first_key);
      softmax();
      release_v();
#pragma unroll
      for (int i = 0; i < kOut; i++) out[i] *= shrink[i / 2 % 2];
    }
    if (elected()) mbarrier_arrive(smem.barrier(Smem::kQEmpty));
    mbarrier_wait(smem.barrier(Smem::kVFull + v.slot), v.parity);
    if (!accumulate) clear_beyond(last_rows);
    issue_pv(accumulate);
    wgmma_wait<0>();
    hold_registers(out);
    release_v();
  }

  __device__ __forceinline__ bool elected() const { return thread == 0; }

  __device__ __forceinline__ void release_k() {
    if (elected()) mbarrier_arrive(smem.barrier(Smem::kKEmpty + k.slot));
    k.advance();
  }

  __device__ __forceinline__ void release_v() {
    if (elected()) mbarrier_arrive(smem.barrier(Smem::kVEmpty + v.slot));
    v.advance();
  }

  __device__ __forceinline__ void issue_qk() {
    const u64 q_tile = descriptor(smem.address + Smem::kQ + warpgroup * 64 * 128);
    const u64 k_tile = descriptor(smem.address + Smem::kK + k.slot * Smem::kKvTileBytes);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < Config::kHeadDim / 16; i++)
      wgmma_qk(scores, advance(q_tile, i / 4 * Smem::kQBlockBytes + i % 4 * 32),
               advance(k_tile, i / 4 * Smem::kKvBlockBytes + i % 4 * 32), i > 0);
    wgmma_commit();
  }

  __device__ __forceinline__ void issue_pv(bool accumulate) {
    const u64 v_tile = descriptor(smem.address + Smem::kV + v.slot * Smem::kKvTileBytes,
                                  Smem::kKvBlockBytes);
    hold_registers(out);
    hold_registers(probabilities);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < Config::kKvTile / 16; i++)
      wgmma_pv(out, probabilities + 4 * i, advance(v_tile, i * 2048),
               i > 0 || accumulate);
    wgmma_commit();
  }

  // In the last tile of a request, rows beyond its keys hold anything; see zero_rows.
  __device__ __forceinline__ void clear_beyond(int rows) {
    if (rows >= Config::kKvTile) return;
    zero_rows<Config::kKvTile, Smem::kColumnBlocks>(
        smem.base + Smem::kV + v.slot * Smem::kKvTileBytes, rows, thread);
    barrier_sync(kPrefillBarrier + warpgroup, kWarpgroup);
  }

  __device__ __forceinline__ void mask(const WorkItem& item, int first_token, int first_key) {
    const int first_column = first_key + 2 * (lane % 4);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int token = first_token + tile_row(half) / p.group;
      const int limit = visible_keys<Config>(item, token) - first_column;
#pragma unroll
      for (int n = 0; n < kScores / 4; n++)
#pragma unroll
        for (int i = 0; i < 2; i++)
          if (n * 8 + i >= limit) scores[n * 4 + 2 * half + i] = -infinity();
    }
  }

  // Turns scores into probabilities, as softmax_step of common/softmax.cuh but for both rows of the
  // thread at once and with several short dependency chains in place of one long one: only two warps
  // share a scheduler here. Accumulators of two column blocks are the A operand of one step over
  // the keys. Waits for O += P V of the tile before, which reads the old probabilities.
  __device__ __forceinline__ void softmax() {
    float max[2][2] = {{row_max[0], scores[1]}, {row_max[1], scores[3]}};
#pragma unroll
    for (int i = 0; i < kScores; i++)
      max[i / 2 % 2][i % 2] = fmaxf(max[i / 2 % 2][i % 2], scores[i]);
    wgmma_wait<0>();
    hold_registers(out);
    float sum[2][2] = {}, reference[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float new_max = quad_max(fmaxf(max[half][0], max[half][1]));
      // A row that has seen nothing: any finite reference turns its scores into zeros.
      reference[half] = new_max == -infinity() ? 0.f : new_max * p.scale_log2;
      shrink[half] = exp2_approx(row_max[half] * p.scale_log2 - reference[half]);
      row_max[half] = new_max;
    }
#pragma unroll
    for (int i = 0; i < kScores; i += 2) {
      const int half = i / 2 % 2;
      const float low = exp2_approx(fmaf(scores[i], p.scale_log2, -reference[half]));
      const float high = exp2_approx(fmaf(scores[i + 1], p.scale_log2, -reference[half]));
      sum[half][0] += low;
      sum[half][1] += high;
      probabilities[i / 2] = Config::Element::pack(low, high);
    }
#pragma unroll
    for (int half = 0; half < 2; half++)
      row_sum[half] = row_sum[half] * shrink[half] + (sum[half][0] + sum[half][1]);
  }

  __device__ __forceinline__ void finish(const WorkItem& item, int kv_head) {
    const int tile_rows = p.group * p.tile_tokens;
    const int num_rows = min(tile_rows, item.q_len * p.group - item.row_begin);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float sum = quad_sum(row_sum[half]);
      const float inverse = sum > 0.f ? 1.f / sum : 0.f;
      const float lse = row_lse_log2(row_max[half], sum, p.scale_log2);
      const int row = tile_row(half);
      if (item.num_splits > 1)
        store_partial(item, kv_head, tile_rows, row, num_rows, half, inverse, lse);
      else
        store(item, kv_head, row, num_rows, half, inverse, lse);
    }
    if (item.num_splits > 1) merge(item, kv_head, tile_rows, num_rows);
  }

  // The four lanes of a row trade their 4-byte pieces so that each stores 16 bytes at a time.
  __device__ __forceinline__ void store(const WorkItem& item, int kv_head, int row, int num_rows,
                                        int half, float inverse, float lse) {
    const RowAddress address(p, item, kv_head, min(row, num_rows - 1));
    uint4* destination = reinterpret_cast<uint4*>(address.out(p)) + lane % 4;
#pragma unroll
    for (int n = 0; n < kOut / 4; n += 4) {
      u32 mine[4], traded[4];
#pragma unroll
      for (int i = 0; i < 4; i++)
        mine[i] = Config::Element::pack(out[(n + i) * 4 + 2 * half] * inverse,
                                        out[(n + i) * 4 + 2 * half + 1] * inverse);
      transpose_quad(mine, traded, lane % 4);
      if (row < num_rows)
        destination[n] = make_uint4(traded[0], traded[1], traded[2], traded[3]);
    }
    if (row < num_rows && lane % 4 == 0) address.store_lse(p, lse);
  }

  // Lane j of a quad gives piece i of block i; it gets the pieces of all lanes of block j.
  static __device__ __forceinline__ void transpose_quad(const u32 (&in)[4], u32 (&out)[4], int j) {
    u32 rows[4];
#pragma unroll
    for (int step = 0; step < 4; step++) {
      // In this step lane j sends the block that lane j ^ step wants, and gets from that lane.
      const int wanted = j ^ step;
      const u32 sent = wanted == 0 ? in[0] : wanted == 1 ? in[1] : wanted == 2 ? in[2] : in[3];
      rows[step] = __shfl_xor_sync(~0u, sent, step);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int step = i ^ j;  // the piece of lane i came in that step
      out[i] = step == 0 ? rows[0] : step == 1 ? rows[1] : step == 2 ? rows[2] : rows[3];
    }
  }

  __device__ __forceinline__ void store_partial(const WorkItem& item, int kv_head, int tile_rows,
                                                int row, int num_rows, int half, float inverse,
                                                float lse) const {
    if (row >= num_rows) return;
    const i64 partial = partial_row(p, item, kv_head, tile_rows, item.split, row);
    float2* destination =
        reinterpret_cast<float2*>(p.partial_o + partial * Config::kHeadDim) + lane % 4;
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
    for (int row = warpgroup * 64 + warp; row < end; row += 4)
      merge_into_row<Config>(p, item, kv_head, tile_rows, row, lane);
  }
};
