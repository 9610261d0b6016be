// Decode consumer: the warpgroup of a lane, one tile of up to decode_rows packed query rows at a time.
//
// Operands are swapped, so that 64 keys fill the 64 rows that wgmma insists on:
//   scores^T [64 keys x rows] = K Q^T,   out^T [v_head_dim x rows] += V^T P^T.
// A thread owns, for column block b of 8 rows: rows (of the tile) 8b + 2(t%4) + {0, 1}, and of them
// keys (or v_head_dim elements) 16 warp + t/4 + {0, 8}.
//
// A unit may be a pair of KV heads that lie side by side in memory, whose row is whole lines where that of
// one is not. The tile then has the rows of the first member and those of the second behind them, and tiles
// of keys have the columns of both. A member's rows are multiplied with its own columns alone: what a head
// holds, NaN too, shows in no other. The second one's begin in the middle of a block of 64, so that its
// output has columns of the first in front, which are dropped as are those behind the first.
//
// A step takes several such tiles of keys. Each is little work in a long chain (products behind those
// of prefill, softmax across warps, products again), which one step goes through once for all.
#pragma once
#include "common/descriptor.cuh"
#include "common/soft_cap.cuh"
#include "common/softmax.cuh"
#include "common/trace.cuh"
#include "common/tree.cuh"
#include "hopper/barriers.cuh"
#include "hopper/producer.cuh"
#include "ptx/warpgroup.cuh"

template <class Config>
struct DecodeConsumer {
  using Smem = SharedMemory<Config>;
  using Tile = typename Smem::DecodeTile;
  static constexpr bool kTree = Config::kTree;
  static constexpr int kRows = Config::kDecodeRows;
  static constexpr int kMembers = Config::kDecodeHeads;  // KV heads of a unit
  static constexpr int kMemberRows = kRows / kMembers;
  static constexpr int kScores = kRows / 2;  // accumulators of a thread, those of members in turn
  static constexpr int kMemberScores = kMemberRows / 2;
  static constexpr int kColumns = kRows / 4;  // tile rows of a thread: 2 for each block of 8
  static constexpr int kMemberColumns = kMemberRows / 4;
  static constexpr int kBlocks = ceil_div(Config::kValueDim, 64);  // 64-wide blocks of a row's output
  static constexpr int kTileKeys = 64;
  static constexpr int kTiles = Config::kDecodeTiles;
  static constexpr int kKeys = kTiles * kTileKeys;  // of a step
  // Slots of the ring that a tile takes, each with some column blocks.
  static constexpr int kParts = kMembers * Config::kHeadDim / Tile::kColumns;
  static constexpr int kValueParts = kMembers * Config::kValueDim / Tile::kColumns;
  static constexpr int kPartBlocks = Tile::kColumnBlocks;
  static constexpr int kProbabilityBytes = kRows * 128;  // of a tile
  // Column blocks of results, as floats, that find room where Q and the probabilities were.
  static constexpr int kStaged = kBlocks * kRows * 256 <= Smem::kLaneRing ? kBlocks : 1;
  static constexpr int kStagedColumns = kStaged * 64;
  static_assert(kBlocks % kStaged == 0, "");
  static_assert(kStagedColumns * kRows * 4 <= Smem::kLaneRing, "");
  static_assert(kMembers == 1 || kMembers == 2, "");
  static_assert((kMembers - 1) * Config::kValueDim % 64 + Config::kValueDim <= kBlocks * 64, "");

  const Params& p;
  const Smem& smem;
  const DecodeLane& at;
  const int thread, warp, lane;
  Ring ring;

  float scores[kTiles][kScores], out[kBlocks][kScores];
  float reference[kColumns];  // log2 of what a row's sum and output refer to; see common/softmax.cuh
  float row_sum[kColumns];
  int flag_number = 0;  // steps take turns with two flags: a warp may set the next one before all have read

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
      TRACE_BEGIN(kWarpgroup, kDecode, slot.item, slot.kv_head);
      run_unit(slot.item, kv_head);
      TRACE_END(kWarpgroup, kDecode, slot.item, slot.kv_head);
      work.release();
    }
  }

 private:
  __device__ __forceinline__ void sync() const {
    barrier_sync(kDecodeBarrier + at.index, kWarpgroup);
  }

  __device__ __forceinline__ u32 control() const { return smem.address + at.control; }

  // Offset of the tile at a position of the ring.
  __device__ __forceinline__ int ring_tile(const Ring& position) const {
    return at.tiles + Smem::kLaneRing + position.slot * Tile::kBytes;
  }
  __device__ __forceinline__ void wait_for(const Ring& position) const {
    Smem::wait_for_tile(control() + Smem::kRingFull + 8 * position.slot, position.parity);
  }
  __device__ __forceinline__ void release(const Ring& position) const {
    if (thread == 0) mbarrier_arrive(control() + Smem::kRingEmpty + 8 * position.slot);
  }

  __device__ __forceinline__ volatile int& outgrown() const {
    return reinterpret_cast<volatile int*>(smem.base + at.control + Smem::kOutgrown)[flag_number];
  }

  // Tile row of accumulator column c of a lane.
  static __device__ __forceinline__ int column_row(int c, int lane) {
    return c / 2 * 8 + 2 * (lane % 4) + c % 2;
  }

  // What belongs to a member of an array in which members' accumulators follow each other.
  static __device__ __forceinline__ auto of_member(float (&all)[kScores], int member)
      -> float (&)[kMemberScores] {
    return reinterpret_cast<float(&)[kMemberScores]>(all[member * kMemberScores]);
  }

  // Block of V's columns, and column in it, with which a member begins.
  static constexpr __device__ __forceinline__ int block_of(int member) {
    return member * Config::kValueDim / 64;
  }
  static constexpr __device__ __forceinline__ int column_of(int member) {
    return member * Config::kValueDim % 64;
  }

  // Rows of the item, in a tile that has so many of each member.
  __device__ __forceinline__ int num_rows(const WorkItem& item) const {
    return min(kMemberRows, packed_rows(p, item) - item.row_begin);
  }

  __device__ __forceinline__ void run_unit(const WorkItem& item, int kv_head) {
    load_q(item, kv_head);
#pragma unroll
    for (int c = 0; c < kColumns; c++) {
      reference[c] = kNothingSeen;
      row_sum[c] = 0.f;
    }
#pragma unroll
    for (int block = 0; block < kBlocks; block++)
#pragma unroll
      for (int i = 0; i < kScores; i++) out[block][i] = 0.f;

    const int steps = warp_uniform(ceil_div(item.kv_end - item.kv_begin, kKeys));
    // Keys that every row sees: from what the last one begins with to what the first one ends with.
    const int seen_begin =
        first_seen_key<kTree>(p, item, PackedRow(p, item.row_begin + num_rows(item) - 1).token);
    const int seen_end = end_of_sure_keys<Config, kTree>(item, PackedRow(p, item.row_begin).token);
    int first_key = item.kv_begin + (steps - 1) * kKeys;
    for (int step = 0; step < steps; step++, first_key -= kKeys) {
      multiply_kq();
      if constexpr (Config::kSoftCap) soft_cap_scores();
      const bool masked = first_key < seen_begin || first_key + kKeys > seen_end;
      if (masked) {
        mask(item, first_key);
        clear_values(first_seen_key<kTree>(p, item, PackedRow(p, item.row_begin).token) - first_key,
                     item.kv_len - first_key);
      }
      softmax(masked || step == 0);
      multiply_vp();
      flag_number ^= 1;
    }
    finish(item, kv_head);
  }

  // Copies the rows of Q to shared memory, zeros where the tile has none.
  __device__ __forceinline__ void load_q(const WorkItem& item, int kv_head) const {
    constexpr int kChunks = Config::kHeadDim / 8;  // a row's own columns, whichever member it is of
    const int rows = num_rows(item);
    // At head_dim 256 registers do not suffice to keep addresses from one unit to the next.
    const int first = Config::kHeadDim > 128 ? computed_here(thread) : thread;
    for (int i = first; i < kRows * kChunks; i += kWarpgroup) {
      const int row = i / kChunks, chunk = i % kChunks;
      const int member = kMembers > 1 && row >= kMemberRows, own_row = row - member * kMemberRows;
      uint4 value = make_uint4(0, 0, 0, 0);
      if (own_row < rows)
        value = __ldg(reinterpret_cast<const uint4*>(
                          RowAddress(p, item, kv_head + member, own_row).q(p)) +
                      chunk);
      *reinterpret_cast<uint4*>(smem.base + at.tiles + Smem::kLaneQ +
                                chunk / 8 * Smem::kDecodeQBlockBytes +
                                swizzle128(row, chunk % 8)) = value;
    }
    fence_proxy_async();
    sync();
  }

  // A product for every part of the tiles of the step: `issue` is given the numbers of tile and part, and
  // the address in the ring. Waits for a part to arrive, then for the tensor cores, one part behind.
  template <int kParts, class Issue>
  __device__ __forceinline__ void multiply(Issue issue) {
    Ring done = ring;
#pragma unroll
    for (int i = 0; i < kTiles * kParts; i++) {
      wait_for(ring);
      const u32 tile = smem.address + ring_tile(ring);
      wgmma_fence();
      issue(i / kParts, i % kParts, tile);
      wgmma_commit();
      ring.advance();
      if (i > 0) {
        wgmma_wait<1>();
        release(done);
        done.advance();
      }
    }
    wgmma_wait<0>();
    release(done);
  }

  __device__ __forceinline__ void multiply_kq() {
    const u64 q_tile = descriptor(smem.address + at.tiles + Smem::kLaneQ);
    multiply<kParts>([&](int t, int part, u32 address) {
      const u64 k_tile = Tile::k_descriptor(address);
#pragma unroll
      for (int i = 0; i < Tile::kColumns / 16; i++) {
        const int column = part * Tile::kColumns + i * 16, member = column / Config::kHeadDim;
        const int own = column % Config::kHeadDim;
        const int q = own / 64 * Smem::kDecodeQBlockBytes + own % 64 * 2 +
                      member * kMemberRows * 128;
        auto& to = of_member(scores[t], member);
        const u64 k_columns = i == 0 ? k_tile : advance_here(k_tile, Tile::columns(i));
        const u64 q_columns = q == 0 ? q_tile : advance_here(q_tile, q);
        if (own == 0)
          wgmma_kq_first(to, k_columns, q_columns);
        else
          wgmma_kq(to, k_columns, q_columns);
      }
    });
#pragma unroll
    for (int t = 0; t < kTiles; t++) fence_operand(scores[t]);
  }

  __device__ __forceinline__ void multiply_vp() {
    const u64 p_tile = descriptor(smem.address + at.tiles + Smem::kLaneP);
    hold_out();
    multiply<kValueParts>([&](int t, int part, u32 address) {
      const u64 v_tile = Tile::v_descriptor(address);
#pragma unroll
      for (int i = 0; i < kTileKeys / 16; i++)
#pragma unroll
        for (int block = 0; block < kPartBlocks; block++)
#pragma unroll
          for (int member = 0; member < kMembers; member++) {
            const int own = part * kPartBlocks + block - block_of(member);
            if (own < 0 || own >= kBlocks) continue;
            wgmma_vp(of_member(out[own], member),
                     advance(v_tile, block * Tile::kBlockBytes + Tile::rows(i)),
                     advance(p_tile, t * kProbabilityBytes + member * kMemberRows * 128 + i * 32));
          }
    });
    hold_out();
  }

  __device__ __forceinline__ void hold_out() {
#pragma unroll
    for (int block = 0; block < kBlocks; block++) fence_operand(out[block]);
  }

  // In the first and last step of what a tile sees, rows of V before `begin` or from `end` on may hold
  // anything; see zero_rows. The caller synchronises before V is used.
  __device__ __forceinline__ void clear_values(int begin, int end) const {
    if (begin <= 0 && end >= kKeys) return;
    Ring position = ring;
#pragma unroll
    for (int i = 0; i < kTiles * kValueParts; i++) {
      const int first = i / kValueParts * kTileKeys;
      wait_for(position);
      zero_rows<Tile>(smem.base + ring_tile(position), begin - first, end - first, thread);
      position.advance();
    }
  }

  // Before masks, as what they hide may be NaN.
  __device__ __forceinline__ void soft_cap_scores() {
    const float to_exponent = p.soft_cap_exponent;
#pragma unroll
    for (int t = 0; t < kTiles; t++)
#pragma unroll
      for (int i = 0; i < kScores; i++) scores[t][i] = soft_capped(scores[t][i], to_exponent);
  }

  __device__ __forceinline__ void mask(const WorkItem& item, int first_key) {
#pragma unroll
    for (int c = 0; c < kColumns; c++) {
      const int member_column = kMembers > 1 ? c % kMemberColumns : c;  // they have the same tokens
      const int token = PackedRow(p, item.row_begin + column_row(member_column, lane)).token;
      const int first = first_key + warp * 16 + lane / 4;
      const int begin = first_seen_key<kTree>(p, item, token) - first;
      const int end = end_of_seen_keys<Config, kTree>(item, token) - first;
      const TreeRow<kTree> tree(p, smem.plan(), item, token, first);
#pragma unroll
      for (int t = 0; t < kTiles; t++)
#pragma unroll
        for (int half = 0; half < 2; half++)
          if (t * kTileKeys + 8 * half < begin || t * kTileKeys + 8 * half >= end ||
              tree.hides(t * kTileKeys + 8 * half))
            scores[t][c / 2 * 4 + half * 2 + c % 2] = -infinity();
    }
  }

  // Probabilities and sums, relative to the references as they are, which need only be near the
  // maxima. A sum tells when a score has outgrown one; then all warps, which must agree, do the step
  // again after raising the references. An exact softmax raises them at once.
  __device__ __forceinline__ void softmax(bool exact) {
    float sum[kColumns];
    for (;; exact = true) {
      if (exact) raise_references();
      exponentiate(sum);
      if (!exact) {
        float largest = sum[0];
#pragma unroll
        for (int c = 1; c < kColumns; c++) largest = fmaxf(largest, sum[c]);
        if (largest > kOutgrownSum) outgrown() = 1;
      }
      fence_proxy_async();
      sync();  // probabilities are complete, and maxima have been read
      if (exact || !outgrown()) break;
      sync();  // all have read the flag
      if (thread == 0) outgrown() = 0;
    }
#pragma unroll
    for (int c = 0; c < kColumns; c++) row_sum[c] += sum[c];
  }

  // Raises the references to the maxima of the step; what was accumulated shrinks accordingly.
  __device__ __forceinline__ void raise_references() {
    float* maxima = reduction();
#pragma unroll
    for (int c = 0; c < kColumns; c++) {
      float max = -infinity();
#pragma unroll
      for (int t = 0; t < kTiles; t++)
        max = fmaxf(max, fmaxf(scores[t][c / 2 * 4 + c % 2], scores[t][c / 2 * 4 + 2 + c % 2]));
#pragma unroll
      for (int offset = 4; offset < kWarp; offset *= 2)
        max = fmaxf(max, __shfl_xor_sync(~0u, max, offset));
      if (lane < 4) maxima[warp * kRows + column_row(c, lane)] = max;
    }
    sync();
    float rescale[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; c++) {
      float max = -infinity();
#pragma unroll
      for (int w = 0; w < 4; w++) max = fmaxf(max, maxima[w * kRows + column_row(c, lane)]);
      const float raised = fmaxf(reference[c], max * p.scale_log2);
      rescale[c] = exp2_approx(reference[c] - raised);
      reference[c] = raised;
      row_sum[c] *= rescale[c];
    }
#pragma unroll
    for (int block = 0; block < kBlocks; block++)
#pragma unroll
      for (int i = 0; i < kScores; i++) out[block][i] *= rescale[i / 4 * 2 + i % 2];
  }

  // Writes the probabilities to shared memory and adds up this thread's share of them.
  __device__ __forceinline__ void exponentiate(float (&sum)[kColumns]) const {
    // Lanes 8i..8i+7 give the rows of matrix i, which are keys 16 warp + 8 (i % 2) of a tile.
    const u32 rows = smem.address + at.tiles + Smem::kLaneP +
                     swizzle128(lane % 8, warp * 2 + lane / 8 % 2);
#pragma unroll
    for (int c = 0; c < kColumns; c++) sum[c] = 0.f;
#pragma unroll
    for (int b = 0; b < kRows / 8; b++) {
      u32 packed[kTiles][2];
#pragma unroll
      for (int t = 0; t < kTiles; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          float power[2];
#pragma unroll
          for (int i = 0; i < 2; i++) {
            power[i] = exp2_approx(fmaf(scores[t][b * 4 + half * 2 + i], p.scale_log2,
                                        -reference[2 * b + i]));
            sum[2 * b + i] += power[i];
          }
          packed[t][half] = Config::Element::pack(power[0], power[1]);
        }
#pragma unroll
      for (int t = 0; t < kTiles; t++)
        stmatrix_x2_trans(packed[t], rows + t * kProbabilityBytes + b * 1024);
    }
  }

  // Results go out through shared memory, where a warp finds a row's elements side by side. They take
  // the place of Q and the probabilities, as many column blocks at once as find room.
  __device__ __forceinline__ void finish(const WorkItem& item, int kv_head) {
    publish_sums();
    const int rows = num_rows(item);
#pragma unroll
    for (int block = 0; block < kBlocks; block += kStaged) {
      sync();  // no warp uses Q and the probabilities any longer, or the blocks before
      stage(block);
      sync();
      for (int member = 0; member < kMembers; member++)
        for (int row = warp ^ 2 * member; row < rows; row += 4)
          store_row(item, kv_head, block, member, row);
    }
    sync();  // all has been read
    if (item.num_splits > 1) merge(item, kv_head, rows);
  }

  __device__ __forceinline__ float* reduction() const {
    return reinterpret_cast<float*>(smem.base + at.control + Smem::kReduce);
  }

  // Each warp's sums of the rows, then the references.
  __device__ __forceinline__ void publish_sums() const {
#pragma unroll
    for (int c = 0; c < kColumns; c++) {
      float sum = row_sum[c];
#pragma unroll
      for (int offset = 4; offset < kWarp; offset *= 2) sum += __shfl_xor_sync(~0u, sum, offset);
      if (lane < 4) reduction()[warp * kRows + column_row(c, lane)] = sum;
      if (thread < 4) reduction()[4 * kRows + column_row(c, lane)] = reference[c];
    }
  }

  // Staged are float[rows][kStagedColumns]. Columns change places by row / 2 % 4, or the threads of a
  // warp, whose rows are 2 apart, would all write to the same banks.
  __device__ __forceinline__ float* staged_row(int row) const {
    return reinterpret_cast<float*>(smem.base + at.tiles) + row * kStagedColumns;
  }
  static __device__ __forceinline__ int staged_column(int row, int column) {
    return column ^ row / 2 % 4 * 8;
  }

  __device__ __forceinline__ void stage(int first_block) const {
    const int lane = computed_here(this->lane);
    const int row = lane % 4 * 2, column = staged_column(row, warp * 16 + lane / 4);
    float* to = staged_row(row);
#pragma unroll
    for (int block = 0; block < kStaged; block++)
#pragma unroll
      for (int c = 0; c < kColumns; c++)
#pragma unroll
        for (int half = 0; half < 2; half++)
          to[column_row(c, 0) * kStagedColumns + block * 64 + (column ^ half * 8)] =
              out[first_block + block][c / 2 * 4 + half * 2 + c % 2];
  }

  // Whether a lane's columns of a block are some of the head's.
  __device__ __forceinline__ bool column_exists(int block, int member) const {
    const int column = block * 64 + 2 * lane - column_of(member);
    if constexpr (kMembers > 1) return column >= 0 && column < Config::kValueDim;
    return Tile::kWholeBlocks || column < Config::kValueDim;
  }

  // Called by a warp: normalises what is staged of a member's row and writes it.
  __device__ __forceinline__ void store_row(const WorkItem& item, int kv_head, int first_block,
                                            int member, int row) const {
    const int tile_row = member * kMemberRows + row;
    kv_head += member;
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < 4; w++) sum += reduction()[w * kRows + tile_row];
    const float reference = reduction()[4 * kRows + tile_row];
    const float lse = row_lse_log2(reference, sum);
    // Splits are merged without sinks, and the merged row has one.
    if (item.num_splits == 1) sum += sink_term(sink_log2(p, item, kv_head, row), reference);
    const float inverse = inverse_of(sum);
    const bool stores_lse = first_block == 0 && lane == 0;
    const int begin = first_block * 64 - column_of(member);  // of lane 0's columns in the head
    float2 value[kStaged];
#pragma unroll
    for (int i = 0; i < kStaged; i++) {
      const float2 staged = *reinterpret_cast<const float2*>(
          staged_row(tile_row) + i * 64 + staged_column(tile_row, 2 * lane));
      value[i] = make_float2(staged.x * inverse, staged.y * inverse);
    }
    if (item.num_splits == 1) {
      const RowAddress address(p, item, kv_head, row);
      u32* destination = reinterpret_cast<u32*>(address.out(p) + begin) + lane;
#pragma unroll
      for (int i = 0; i < kStaged; i++)
        if (column_exists(first_block + i, member))
          destination[i * 32] = Config::Element::pack(value[i].x, value[i].y);
      if (stores_lse) address.store_lse(p, lse);
    } else {
      const i64 partial = partial_row(p, item, kv_head, kMemberRows, item.split, row);
      float2* destination =
          reinterpret_cast<float2*>(p.partial_o + partial * Config::kValueDim + begin) + lane;
#pragma unroll
      for (int i = 0; i < kStaged; i++)
        if (column_exists(first_block + i, member)) destination[i * 32] = value[i];
      if (stores_lse) p.partial_lse[partial] = lse;
    }
  }

  // Members are split alike, so that the first one's counter serves all.
  __device__ __forceinline__ void merge(const WorkItem& item, int kv_head, int rows) const {
    volatile int* flag = reinterpret_cast<volatile int*>(reduction());
    __threadfence();
    sync();
    if (thread == 0)
      *flag = arrive_is_last(p.merge_counters + 2 * (item.merge * p.num_kv_heads + kv_head),
                             item.num_splits);
    sync();
    if (*flag) {
      __threadfence();
      // At once, as many as registers allow beside prefill.
      constexpr int kTogether = Config::kHasPrefill ? 1 : 2, kSplits = Config::kHasPrefill ? 3 : 8;
#pragma unroll 1
      for (int member = 0; member < kMembers; member++)
        for (int row = (warp ^ 2 * member) * kTogether; row < rows; row += 4 * kTogether)
          merge_rows<Config, kTogether, kSplits>(p, item, kv_head + member, kMemberRows, row, rows,
                                                 lane);
    }
    sync();  // the flag has been read
  }
};
