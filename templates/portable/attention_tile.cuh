// Attention of one work unit: a tile of packed query rows of one request and one KV head over keys
// [kv_begin, kv_end), FlashAttention-2 style (arXiv 2307.08691). One algorithm, two shapes: prefill
// tiles are shared by all warps of a CTA, a decode tile belongs to one warp.
//
// Packed row r is token r / group and query head kv_head * group + r % group.
//
// Shared memory of a tile: [Q: rows x kRowColumns, prefill only][K/V ring: kSlots x kv_tile x
// kRowColumns], 2-byte elements, swizzled as in common/swizzle.cuh. Behind head_dim columns nothing is
// read, but for the second half of a product's 16 columns, which is filled with zeros; likewise of V
// behind its columns, which may be fewer.
#pragma once
#include "common/item.cuh"
#include "common/kv_stream.cuh"
#include "common/queue.cuh"
#include "common/soft_cap.cuh"
#include "common/softmax.cuh"
#include "common/trace.cuh"
#include "ptx/mma.cuh"

template <int kRows_, int kKvTile_, int kSlots_, int kWarps_, bool kQInRegisters_>
struct TileShape {
  static constexpr int kRows = kRows_;
  static constexpr int kKvTile = kKvTile_;
  static constexpr int kSlots = kSlots_;
  static constexpr int kWarps = kWarps_;
  static constexpr bool kQInRegisters = kQInRegisters_;
  static constexpr int kWarpRows = kRows / kWarps;
  static constexpr int kBlocks = kWarpRows / 16;  // 16-row MMA blocks of one warp
};

// A decode tile, of one warp, is asked for trees.
template <class Config, class Tile>
constexpr bool kTreeOf = Config::kTree && Tile::kWarps == 1;

template <class Config, class Tile>
struct AttentionTile {
  using Element = typename Config::Element;
  using Stream = KvStream<Config, Tile>;
  static constexpr bool kTree = kTreeOf<Config, Tile>;
  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kRowColumns = Config::kRowColumns;
  static constexpr int kSteps = ceil_div(kHeadDim, 16);  // MMA steps over the head dim
  static constexpr int kColumns = Tile::kKvTile / 8;    // 8-key column blocks of the scores
  static constexpr int kOutColumns = Config::kValueDim / 8;  // 8-wide column blocks of the output
  static constexpr int kRowBytes = kRowColumns * 2;
  static constexpr int kQBytes = Tile::kQInRegisters ? 0 : Tile::kRows * kRowBytes;

  const Params& p;
  const PlanHeader& plan;
  const TileItem& item;
  const int kv_head, warp, lane;
  const u32 q_smem, ring;

  u32 q[Tile::kQInRegisters ? Tile::kBlocks : 1][Tile::kQInRegisters ? kSteps : 1][4];
  float o[Tile::kBlocks][kOutColumns][4];
  RowState state[Tile::kBlocks][2];

  __device__ __forceinline__ AttentionTile(const Params& p, const PlanHeader& plan,
                                           const TileItem& item, int kv_head, char* smem, int warp,
                                           int lane)
      : p(p), plan(plan), item(item), kv_head(kv_head), warp(warp), lane(lane),
        q_smem(shared_address(smem)), ring(q_smem + kQBytes) {}

  __device__ __forceinline__ void run() {
    TRACE_BEGIN(Tile::kWarps * kWarp, Tile::kWarps == 1, item, kv_head);
    const int tiles = ceil_div(item.kv_end - item.kv_begin, Tile::kKvTile);
    Stream stream(p, item, kv_head, warp, lane, ring, tiles);
    if constexpr (!Tile::kQInRegisters) copy_q();  // completes with the first K tile
#pragma unroll
    for (int i = 0; i < Tile::kSlots - 1; i++) stream.issue();
    if constexpr (Tile::kQInRegisters) load_q();
    clear();

    int first_key = item.kv_begin + (tiles - 1) * Tile::kKvTile;
    for (; first_key >= item.kv_begin; first_key -= Tile::kKvTile)
      step(stream, first_key,
           first_key + Tile::kKvTile > item.end_full || first_key < item.first_full);

    cp_async_wait<0>();
    finish();
    TRACE_END(Tile::kWarps * kWarp, Tile::kWarps == 1, item, kv_head);
  }

 private:
  // Rows of the tile that exist.
  __device__ __forceinline__ int num_rows() const {
    return min(Tile::kRows, packed_rows(p, item) - item.row_begin);
  }

  __device__ __forceinline__ int tile_row(int block, int half) const {
    return warp * Tile::kWarpRows + block * 16 + half * 8 + lane / 4;
  }

  __device__ __forceinline__ RowAddress row_address(int row) const {
    // Or the head's first row takes a register that the main loop needs.
    return RowAddress(p, item, computed_here(kv_head), row);
  }

  __device__ __forceinline__ void group_sync() const {
    if constexpr (Tile::kWarps == 1)
      __syncwarp();
    else
      __syncthreads();
  }

  // Copies this warp's own rows of Q to shared memory.
  __device__ __forceinline__ void copy_q() const {
    const int chunk = lane % Stream::kRowLanes;
    if (!Stream::chunk_is_filled(chunk)) return;
#pragma unroll 4
    for (int i = 0; i < Tile::kWarpRows / Stream::kRowsAtOnce; i++) {
      const int row = warp * Tile::kWarpRows + i * Stream::kRowsAtOnce + lane / Stream::kRowLanes;
      const bool valid = row < num_rows() && Stream::chunk_exists(chunk);
      cp_async_16(q_smem + swizzled_offset<kRowColumns>(row, chunk),
                  (valid ? row_address(row).q(p) : p.q) + chunk * kChunkElements, valid);
    }
  }

  // Reads Q straight into A fragments; for the few rows of a decode tile this beats shared memory.
  __device__ __forceinline__ void load_q() {
#pragma unroll
    for (int block = 0; block < Tile::kBlocks; block++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int row = tile_row(block, half);
        const bool valid = row < num_rows();
        const u32* source =
            reinterpret_cast<const u32*>(valid ? row_address(row).q(p) : p.q) + lane % 4;
#pragma unroll
        for (int k = 0; k < kSteps; k++) {
          q[block][k][half] = valid ? __ldg(source + k * 8) : 0;
          q[block][k][half + 2] = valid && 2 * k + 1 < kHeadDim / 8 ? __ldg(source + k * 8 + 4) : 0;
        }
      }
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int block = 0; block < Tile::kBlocks; block++)
#pragma unroll
      for (int n = 0; n < kOutColumns; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) o[block][n][i] = 0.f;
  }

  // Waits for the next copy of the stream, refills the slot freed before it, returns its address.
  __device__ __forceinline__ u32 next_tile(Stream& stream) {
    cp_async_wait<Tile::kSlots - 2>();
    group_sync();
    stream.issue();
    // The stream is kSlots - 1 copies ahead, now that it has issued one more: where it goes on.
    return ring + stream.next_slot * Stream::kTileBytes;
  }

  __device__ __forceinline__ void step(Stream& stream, int first_key, bool masked) {
    float scores[Tile::kBlocks][kColumns][4];
    multiply_qk(next_tile(stream), scores);
    if constexpr (Config::kSoftCap) cap(scores);
    if (masked) mask(scores, first_key);
    softmax(scores);
    multiply_pv(next_tile(stream), scores);
  }

  // Scores to probabilities. Most steps find no row outgrown and need not touch the output.
  __device__ __forceinline__ void softmax(float (&scores)[Tile::kBlocks][kColumns][4]) {
    float max[Tile::kBlocks][2];
    bool outgrown = false;
#pragma unroll
    for (int block = 0; block < Tile::kBlocks; block++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        max[block][half] = thread_max(scores[block], half);
        outgrown |= state[block][half].is_outgrown_by(max[block][half], p.scale_log2);
      }
    if (__any_sync(~0u, outgrown)) raise_references(max);
#pragma unroll
    for (int block = 0; block < Tile::kBlocks; block++)
#pragma unroll
      for (int half = 0; half < 2; half++)
        state[block][half].exponentiate(scores[block], half, p.scale_log2);
  }

  __device__ __forceinline__ void raise_references(const float (&max)[Tile::kBlocks][2]) {
#pragma unroll
    for (int block = 0; block < Tile::kBlocks; block++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float rescale =
            state[block][half].raise_to(quad_max(max[block][half]), p.scale_log2);
#pragma unroll
        for (int n = 0; n < kOutColumns; n++)
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; i++) o[block][n][i] *= rescale;
      }
  }

  __device__ __forceinline__ void multiply_qk(u32 k_tile,
                                              float (&scores)[Tile::kBlocks][kColumns][4]) {
#pragma unroll
    for (int block = 0; block < Tile::kBlocks; block++)
#pragma unroll
      for (int n = 0; n < kColumns; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) scores[block][n][i] = 0.f;
    const u32 q_address =
        q_smem + swizzled_offset<kRowColumns>(warp * Tile::kWarpRows + lane % 16, lane / 16);
    const u32 k_address = k_tile + swizzled_offset<kRowColumns>((lane & 7) + ((lane & 16) >> 1),
                                                                (lane >> 3) & 1);
#pragma unroll
    for (int k = 0; k < kSteps; k++) {
      u32 a[Tile::kBlocks][4];
#pragma unroll
      for (int block = 0; block < Tile::kBlocks; block++) {
        if constexpr (Tile::kQInRegisters) {
#pragma unroll
          for (int i = 0; i < 4; i++) a[block][i] = q[block][k][i];
        } else {
          ldmatrix_x4(a[block],
                      advance_chunks<kRowColumns>(q_address, 2 * k) + block * 16 * kRowBytes);
        }
      }
#pragma unroll
      for (int n = 0; n < kColumns; n += 2) {
        u32 b[4];  // keys 8n..8n+7 in b[0], b[1]; keys 8n+8.. in b[2], b[3]
        ldmatrix_x4(b, advance_chunks<kRowColumns>(k_address, 2 * k) + n * 8 * kRowBytes);
#pragma unroll
        for (int block = 0; block < Tile::kBlocks; block++) {
          Element::mma(scores[block][n], a[block], b[0], b[1]);
          Element::mma(scores[block][n + 1], a[block], b[2], b[3]);
        }
      }
    }
  }

  __device__ __forceinline__ void cap(float (&scores)[Tile::kBlocks][kColumns][4]) const {
#pragma unroll
    for (int block = 0; block < Tile::kBlocks; block++)
#pragma unroll
      for (int n = 0; n < kColumns; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
          scores[block][n][i] = soft_capped(scores[block][n][i], p.soft_cap_exponent);
  }

  __device__ __forceinline__ void mask(float (&scores)[Tile::kBlocks][kColumns][4],
                                       int first_key) const {
    const int first_column = first_key + 2 * (lane % 4);
#pragma unroll
    for (int block = 0; block < Tile::kBlocks; block++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int token = PackedRow(p, item.row_begin + tile_row(block, half)).token;
        const int limit = end_of_seen_keys<Config, kTree>(item, token) - first_column;
        const int begin = first_seen_key<kTree>(p, item, token) - first_column;
        const TreeRow<kTree> tree(p, plan, item, token, first_column);
#pragma unroll
        for (int n = 0; n < kColumns; n++)
#pragma unroll
          for (int i = 0; i < 2; i++)
            if (n * 8 + i >= limit || n * 8 + i < begin || tree.hides(n * 8 + i))
              scores[block][n][2 * half + i] = -infinity();
      }
  }

  // Score fragments of two column blocks are the A fragment of one MMA step over the keys.
  __device__ __forceinline__ void multiply_pv(u32 v_tile,
                                              float (&p_)[Tile::kBlocks][kColumns][4]) {
    const u32 v_address = v_tile + swizzled_offset<kRowColumns>(lane % 16, lane / 16);
#pragma unroll
    for (int k = 0; k < kColumns / 2; k++) {
      u32 a[Tile::kBlocks][4];
#pragma unroll
      for (int block = 0; block < Tile::kBlocks; block++)
#pragma unroll
        for (int i = 0; i < 4; i++)
          a[block][i] = Element::pack(p_[block][2 * k + i / 2][2 * (i & 1)],
                                      p_[block][2 * k + i / 2][2 * (i & 1) + 1]);
#pragma unroll
      for (int n = 0; n < kOutColumns; n += 2) {
        u32 b[4];
        ldmatrix_x4_trans(b, advance_chunks<kRowColumns>(v_address, n) + k * 16 * kRowBytes);
#pragma unroll
        for (int block = 0; block < Tile::kBlocks; block++) {
          Element::mma(o[block][n], a[block], b[0], b[1]);
          if (n + 1 < kOutColumns) Element::mma(o[block][n + 1], a[block], b[2], b[3]);
        }
      }
    }
  }

  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int block = 0; block < Tile::kBlocks; block++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float sum = quad_sum(state[block][half].sum);
        const float reference = state[block][half].reference;
        const float lse = row_lse_log2(reference, sum);
        const int row = tile_row(block, half);
        if (row >= num_rows()) continue;
        if (item.num_splits == 1) {
          const float sink = sink_term(sink_log2(p, item, kv_head, row), reference);
          store_row(block, half, row, inverse_of(sum + sink), lse);
        } else {
          store_partial_row(block, half, row, inverse_of(sum), lse);
        }
      }
    if (item.num_splits > 1) merge();
  }

  __device__ __forceinline__ void store_row(int block, int half, int row, float inverse,
                                            float lse) const {
    const RowAddress address = row_address(row);
    u32* out = reinterpret_cast<u32*>(address.out(p)) + lane % 4;
#pragma unroll
    for (int n = 0; n < kOutColumns; n++)
      out[n * 4] = Element::pack(o[block][n][2 * half] * inverse,
                                 o[block][n][2 * half + 1] * inverse);
    if (lane % 4 == 0) address.store_lse(p, lse);
  }

  __device__ __forceinline__ void store_partial_row(int block, int half, int row, float inverse,
                                                    float lse) const {
    const i64 partial = partial_row(p, item, kv_head, Tile::kRows, item.split, row);
    float2* out = reinterpret_cast<float2*>(p.partial_o + partial * Config::kValueDim) + lane % 4;
#pragma unroll
    for (int n = 0; n < kOutColumns; n++)
      out[n * 4] = make_float2(o[block][n][2 * half] * inverse,
                               o[block][n][2 * half + 1] * inverse);
    if (lane % 4 == 0) p.partial_lse[partial] = lse;
  }

  __device__ __forceinline__ void merge() const {
    const MergeShare share = merge_share();
    if (share.count == 0) return;
    // At once, as many as registers allow. Few splits share the many rows of a prefill tile; with
    // decode it is the other way round.
    constexpr bool kDecode = Tile::kWarps == 1;
    constexpr int kRows = !kDecode ? 4 : Config::kHasPrefill ? 2 : 4;
    constexpr int kSplits = (kDecode ? 1024 : 512) /
                            (Config::kValueDim > 128 ? 256 : ceil_div(Config::kValueDim, 64) * 64);
    const int step = share.count * Tile::kWarps * kRows;
    for (int row = (share.index * Tile::kWarps + warp) * kRows; row < num_rows(); row += step)
      merge_rows<Config, kRows, kSplits>(p, item, kv_head, Tile::kRows, row, num_rows(), lane);
  }

  // Publishes this split and returns which share of the tile's rows to merge. A warp that decodes
  // merges all of them if it is the last to arrive.
  __device__ __forceinline__ MergeShare merge_share() const {
    u32* counters = p.merge_counters + 2 * (item.merge * p.num_kv_heads + kv_head);
    __threadfence();
    group_sync();
    MergeShare share;
    if constexpr (Tile::kWarps == 1) {
      bool last = false;
      if (lane == 0) last = arrive_is_last(counters, item.num_splits);
      share = {0, __shfl_sync(~0u, last, 0)};
    } else {
      __shared__ MergeShare shared_share;
      if (threadIdx.x == 0)
        shared_share = arrive_for_share(
            counters, item.num_splits,
            all_taken<Config>(counters_of<Config>(p.counters), plan, p.num_kv_heads));
      __syncthreads();
      share = shared_share;
    }
    if (share.count > 0) __threadfence();
    return share;
  }
};
