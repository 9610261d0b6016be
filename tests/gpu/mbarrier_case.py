"""What racecheck says of a ring that is right; what it reports here it cannot know of kernels.

export PYTHONPATH=tests
compute-sanitizer --tool racecheck python tests/gpu/mbarrier_case.py stores
compute-sanitizer --tool racecheck python tests/gpu/mbarrier_case.py copies

A warp fills slots of shared memory, by plain stores or by cp.async, and arrives at a slot's
barrier; four other warps wait for it, clear some rows, read all, and give the slot back by another.
Every access is ordered by these, as in `hopper/row_gather.cuh`, and the sums are checked.
"""

import sys

import cupy
import numpy as np

SOURCE = r"""
using u32 = unsigned;
using u64 = unsigned long long;
constexpr int kSlots = 2, kRows = 32, kCleared = 12;

__device__ u32 address(const void* p) { return u32(__cvta_generic_to_shared(p)); }
__device__ void init(u64* b, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(b)), "r"(arrivals));
}
__device__ void arrive(u64* b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address(b)) : "memory");
}
__device__ void wait(u64* b, u32 parity) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "again:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra again;\n}"
      ::"r"(address(b)), "r"(parity) : "memory");
}

extern "C" __global__ void ring(const float4* in, float* out, int turns, int copies) {
  __shared__ __align__(128) float4 tile[kSlots][kRows];
  __shared__ u64 full[kSlots], empty[kSlots];
  const int thread = threadIdx.x, row = thread % kRows;
  if (thread == 0)
    for (int i = 0; i < kSlots; i++) init(full + i, kRows), init(empty + i, 1);
  __syncthreads();
  float sum = 0;
  for (int n = 0; n < turns; n++) {
    const int slot = n % kSlots, turn = n / kSlots;
    if (thread < kRows) {
      if (turn > 0) wait(empty + slot, (turn - 1) % 2);
      if (copies) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                     ::"r"(address(&tile[slot][row])), "l"(in + row) : "memory");
        asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];"
                     ::"r"(address(full + slot)) : "memory");
      } else {
        tile[slot][row] = in[row];
        arrive(full + slot);
      }
    } else {
      wait(full + slot, turn % 2);
      if (thread < 2 * kRows && row < kCleared) tile[slot][row] = float4{};
      asm volatile("bar.sync 1, 128;" ::: "memory");
      sum += tile[slot][(row + n) % kRows].x;
      asm volatile("bar.sync 1, 128;" ::: "memory");
      if (thread == kRows) arrive(empty + slot);
    }
  }
  if (thread >= kRows) out[thread - kRows] = sum;
}
"""


def main(how):
    kernel = cupy.RawModule(code=SOURCE, options=("-arch=sm_90a",)).get_function("ring")
    rows, out = cupy.ones((32, 4), cupy.float32), cupy.full(128, np.nan, np.float32)
    kernel((1,), (160,), (rows, out, np.int32(32), np.int32(how == "copies")))
    assert (out.get() == 32 - 12).all()  # each thread reads every row once


if __name__ == "__main__":
    if sys.argv[1:] not in (["stores"], ["copies"]):
        sys.exit(__doc__)
    main(sys.argv[1])
