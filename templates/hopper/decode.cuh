// Decode consumer: the warpgroup of a lane, one tile of up to decode_rows packed query rows at a time.
//
// Operands are swapped, so that the 64 keys of a tile fill the 64 rows that wgmma insists on:
//   scores^T [64 keys x rows] = K Q^T,   out^T [head_dim x rows] += V^T P^T.
// A thread owns, for column block b of 8 rows: rows (of the tile) 8b + 2(t%4) + {0, 1}, and of them
// keys (or head_dim elements) 16 warp + t/4 + {0, 8}.
#pragma once
#include "common/descriptor.cuh"
#include "common/softmax.cuh"
#include "hopper/barriers.cuh"
#include "hopper/producer.cuh"
#include "ptx/warpgroup.cuh"

template <class Config>
struct DecodeConsumer {
  using Smem = SharedMemory<Config>;
  static constexpr int kRows = Config::kDecodeRows;
  static constexpr int kScores = kRows / 2;  // accumulators of a thread
  static constexpr int kColumns = kRows / 4;  // tile rows of a thread: 2 for each block of 8
  static constexpr int kBlocks = Smem::kColumnBlocks;  // 64-wide blocks of head_dim
  static constexpr int kKeys = 64;

  const Params& p;
  const Smem& smem;
  const DecodeLane& at;
  const int thread, warp, lane;
  Ring ring;

  float scores[kScores], out[kBlocks][kScores];
  float row_max[kColumns], row_sum[kColumns];

  __device__ __forceinline__ DecodeConsumer(const Params& p, const Smem& smem, const DecodeLane& at,
                                            int thread)
      : p(p), smem(smem), at(at), thread(thread), warp(thread / kWarp), lane(thread % kWarp),
        ring{at.slots} {}

  __device__ __forceinline__ void run() {
    WorkConsumer work{control() + Smem::kLaneWorkFull, control() + Smem::kLaneWorkEmpty,
                      smem.base + at.control + Smem::kLaneWork};
    for (;;) {
      const WorkSlot& slot = work.next();
      const int kv_head = warp_uniform(slot.kv_head);
      if (kv_head < 0) break;
      run_unit(slot.item, kv_head);
      work.release();
    }
  }

 private:
  __device__ __forceinline__ void sync() const {
    barrier_sync(kDecodeBarrier + at.index, kWarpgroup);
  }

  __device__ __forceinline__ u32 control() const { return smem.address + at.control; }

  // Offset of the tile at the ring's position, and the barrier that tells when it is there.
  __device__ __forceinline__ int ring_tile() const {
    return at.tiles + Smem::kLaneRing + ring.slot * Smem::kDecodeTileBytes;
  }
  __device__ __forceinline__ u32 ring_full() const {
    return control() + Smem::kRingFull + 8 * ring.slot;
  }

  // Tile row of this thread's accumulator column c.
  __device__ __forceinline__ int column_row(int c) const {
    return c / 2 * 8 + 2 * (lane % 4) + c % 2;
  }

  __device__ __forceinline__ int num_rows(const WorkItem& item) const {
    return min(kRows, item.q_len * p.group - item.row_begin);
  }

  __device__ __forceinline__ void run_unit(const WorkItem& item, int kv_head) {
    load_q(item, kv_head);
#pragma unroll
    for (int c = 0; c < kColumns; c++) {
      row_max[c] = -infinity();
      row_sum[c] = 0.f;
    }
#pragma unroll
    for (int block = 0; block < kBlocks; block++)
#pragma unroll
      for (int i = 0; i < kScores; i++) out[block][i] = 0.f;

    const int tiles = warp_uniform(ceil_div(item.kv_end - item.kv_begin, kKeys));
    const int full_limit = visible_keys<Config>(item, item.row_begin / p.group);
    int first_key = item.kv_begin + (tiles - 1) * kKeys;
    const int last_rows = item.kv_len - first_key;
    for (int tile = 0; tile < tiles; tile++, first_key -= kKeys)
      step(item, first_key, first_key + kKeys > full_limit, tile == 0 ? last_rows : kKeys);
    finish(item, kv_head);
  }

  // Copies the rows of Q to shared memory, zeros where the tile has none.
  __device__ __forceinline__ void load_q(const WorkItem& item, int kv_head) const {
    constexpr int kChunks = Config::kHeadDim / 8;
    const int rows = num_rows(item);
    for (int i = thread; i < kRows * kChunks; i += kWarpgroup) {
      const int row = i / kChunks, chunk = i % kChunks;
      uint4 value = make_uint4(0, 0, 0, 0);
      if (row < rows)
        value = __ldg(reinterpret_cast<const uint4*>(RowAddress(p, item, kv_head, row).q(p)) +
                      chunk);
      *reinterpret_cast<uint4*>(smem.base + at.tiles + Smem::kLaneQ +
                                chunk / 8 * Smem::kDecodeQBlockBytes +
                                swizzle128(row, chunk % 8)) = value;
    }
    fence_proxy_async();
    sync();
  }

  __device__ __forceinline__ void step(const WorkItem& item, int first_key, bool masked,
                                       int key_rows) {
    multiply_kq();
    if (masked) mask(item, first_key);
    float shrink[kColumns];
    softmax(shrink);
    mbarrier_wait(ring_full(), ring.parity);
    if (key_rows < kKeys)
      zero_rows<kKeys, kBlocks>(smem.base + ring_tile(), key_rows, thread);
    fence_proxy_async();
    sync();  // probabilities are complete
    multiply_vp(shrink);
  }

  __device__ __forceinline__ void release() {
    if (thread == 0) mbarrier_arrive(control() + Smem::kRingEmpty + 8 * ring.slot);
    ring.advance();
  }

  __device__ __forceinline__ void multiply_kq() {
    mbarrier_wait(ring_full(), ring.parity);
    const u64 k_tile = descriptor(smem.address + ring_tile());
    const u64 q_tile = descriptor(smem.address + at.tiles + Smem::kLaneQ);
    wgmma_fence();
    wgmma_kq_first(scores, k_tile, q_tile);
#pragma unroll
    for (int i = 1; i < Config::kHeadDim / 16; i++)
      wgmma_kq(scores, advance(k_tile, i / 4 * Smem::kDecodeBlockBytes + i % 4 * 32),
               advance(q_tile, i / 4 * Smem::kDecodeQBlockBytes + i % 4 * 32));
    wgmma_commit();
    wgmma_wait<0>();
    hold_registers(scores);
    release();
  }

  __device__ __forceinline__ void mask(const WorkItem& item, int first_key) {
#pragma unroll
    for (int c = 0; c < kColumns; c++) {
      const int token = (item.row_begin + column_row(c)) / p.group;
      const int limit = visible_keys<Config>(item, token) - first_key - warp * 16 - lane / 4;
#pragma unroll
      for (int half = 0; half < 2; half++)
        if (8 * half >= limit) scores[c / 2 * 4 + half * 2 + c % 2] = -infinity();
    }
  }

  // Writes the probabilities to shared memory and gives the factor by which `out` shrinks.
  __device__ __forceinline__ void softmax(float (&shrink)[kColumns]) {
    float* maxima = reinterpret_cast<float*>(smem.base + at.control + Smem::kReduce);
#pragma unroll
    for (int c = 0; c < kColumns; c++) {
      float max = fmaxf(scores[c / 2 * 4 + c % 2], scores[c / 2 * 4 + 2 + c % 2]);
#pragma unroll
      for (int offset = 4; offset < kWarp; offset *= 2)
        max = fmaxf(max, __shfl_xor_sync(~0u, max, offset));
      if (lane < 4) maxima[warp * kRows + column_row(c)] = max;
    }
    sync();
#pragma unroll
    for (int c = 0; c < kColumns; c++) {
      float max = row_max[c];
#pragma unroll
      for (int w = 0; w < 4; w++) max = fmaxf(max, maxima[w * kRows + column_row(c)]);
      const float reference = max == -infinity() ? 0.f : max * p.scale_log2;
      shrink[c] = exp2_approx(row_max[c] * p.scale_log2 - reference);
      row_max[c] = max;
      row_sum[c] *= shrink[c];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float probability =
            exp2_approx(fmaf(scores[c / 2 * 4 + half * 2 + c % 2], p.scale_log2, -reference));
        row_sum[c] += probability;
        store_probability(column_row(c), warp * 16 + lane / 4 + 8 * half, probability);
      }
    }
  }

  __device__ __forceinline__ void store_probability(int row, int key, float probability) const {
    char* chunk = smem.base + at.tiles + Smem::kLaneP + swizzle128(row, key / 8);
    reinterpret_cast<u16*>(chunk)[key % 8] =
        static_cast<u16>(Config::Element::pack(probability, 0.f));
  }

  __device__ __forceinline__ void multiply_vp(const float (&shrink)[kColumns]) {
    const u64 v_tile = descriptor(smem.address + ring_tile());
    const u64 p_tile = descriptor(smem.address + at.tiles + Smem::kLaneP);
#pragma unroll
    for (int block = 0; block < kBlocks; block++)
#pragma unroll
      for (int i = 0; i < kScores; i++) out[block][i] *= shrink[i / 4 * 2 + i % 2];
#pragma unroll
    for (int block = 0; block < kBlocks; block++) hold_registers(out[block]);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kKeys / 16; i++)
#pragma unroll
      for (int block = 0; block < kBlocks; block++)
        wgmma_vp(out[block], advance(v_tile, block * Smem::kDecodeBlockBytes + i * 2048),
                 advance(p_tile, i * 32));
    wgmma_commit();
    wgmma_wait<0>();
#pragma unroll
    for (int block = 0; block < kBlocks; block++) hold_registers(out[block]);
    release();
  }

  __device__ __forceinline__ void finish(const WorkItem& item, int kv_head) {
    float* sums = reinterpret_cast<float*>(smem.base + at.control + Smem::kReduce);
    sync();  // the maxima have been read
#pragma unroll
    for (int c = 0; c < kColumns; c++) {
      float sum = row_sum[c];
#pragma unroll
      for (int offset = 4; offset < kWarp; offset *= 2) sum += __shfl_xor_sync(~0u, sum, offset);
      if (lane < 4) sums[warp * kRows + column_row(c)] = sum;
    }
    sync();
    const int rows = num_rows(item);
#pragma unroll
    for (int c = 0; c < kColumns; c++) {
      const int row = column_row(c);
      float sum = 0.f;
#pragma unroll
      for (int w = 0; w < 4; w++) sum += sums[w * kRows + row];
      if (row < rows) store_row(item, kv_head, c, row, sum);
    }
    sync();  // the sums have been read
    if (item.num_splits > 1) merge(item, kv_head, rows);
  }

  __device__ __forceinline__ void store_row(const WorkItem& item, int kv_head, int c, int row,
                                            float sum) const {
    const float inverse = sum > 0.f ? 1.f / sum : 0.f;
    const float lse = row_lse_log2(row_max[c] * p.scale_log2, sum);
    const bool is_first = thread < 4;  // one thread for each row
    const int column = warp * 16 + lane / 4;
    if (item.num_splits == 1) {
      const RowAddress address(p, item, kv_head, row);
      u16* destination = address.out(p) + column;
#pragma unroll
      for (int block = 0; block < kBlocks; block++)
#pragma unroll
        for (int half = 0; half < 2; half++)
          destination[block * 64 + half * 8] = static_cast<u16>(
              Config::Element::pack(out[block][c / 2 * 4 + half * 2 + c % 2] * inverse, 0.f));
      if (is_first) address.store_lse(p, lse);
    } else {
      const i64 partial = partial_row(p, item, kv_head, kRows, item.split, row);
      float* destination = p.partial_o + partial * Config::kHeadDim + column;
#pragma unroll
      for (int block = 0; block < kBlocks; block++)
#pragma unroll
        for (int half = 0; half < 2; half++)
          destination[block * 64 + half * 8] =
              out[block][c / 2 * 4 + half * 2 + c % 2] * inverse;
      if (is_first) p.partial_lse[partial] = lse;
    }
  }

  __device__ __forceinline__ void merge(const WorkItem& item, int kv_head, int rows) const {
    volatile int* flag = reinterpret_cast<volatile int*>(smem.base + at.control + Smem::kReduce);
    __threadfence();
    sync();
    if (thread == 0)
      *flag = arrive_is_last(p.merge_counters + 2 * (item.merge * p.num_kv_heads + kv_head),
                             item.num_splits);
    sync();
    if (*flag) {
      __threadfence();
      for (int row = warp; row < rows; row += 4)
        merge_into_row<Config>(p, item, kv_head, kRows, row, lane);
    }
    sync();  // the flag has been read
  }
};
