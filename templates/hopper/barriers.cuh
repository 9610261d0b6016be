// Named barriers of a Hopper CTA; 0 is __syncthreads.
#pragma once

enum NamedBarrier : int {
  kDecodeBarrier = 1,     // +0, +1, +2: the warpgroup of a decode lane
  kPrefillBarrier = 4,    // +0, +1: one prefill warpgroup
  kTurnBarrier = 6,       // +0, +1: a prefill warpgroup's turn on the tensor cores
};
