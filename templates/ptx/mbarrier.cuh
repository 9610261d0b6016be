// mbarrier: arrivals and transferred bytes counted in shared memory, waited for by phase parity.
#pragma once
#include "ptx/types.cuh"

__device__ __forceinline__ void mbarrier_init(u32 barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void mbarrier_fence_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and adds `bytes` that copies still have to deliver before the phase completes.
__device__ __forceinline__ void mbarrier_arrive_expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Waits until the phase of that parity has completed. On a fresh barrier parity 1 passes at once.
__device__ __forceinline__ void mbarrier_wait(u32 barrier, u32 parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "wait:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra wait;\n"
      "finished:\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Position in a ring of slots: a slot and the parity of its current phase.
struct RingSlot {
  int slot = 0;
  u32 parity = 0;

 protected:
  __device__ __forceinline__ void advance_in(int slots) {
    if (++slot == slots) {
      slot = 0;
      parity ^= 1;
    }
  }
};

template <int kSlots>
struct RingPosition : RingSlot {
  __device__ __forceinline__ void advance() { advance_in(kSlots); }
};

// The same for a number of slots that is only known at run time.
struct Ring : RingSlot {
  const int slots;
  __device__ __forceinline__ explicit Ring(int slots) : slots(slots) {}
  __device__ __forceinline__ void advance() { advance_in(slots); }
};
