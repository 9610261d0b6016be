// Named barriers of a Hopper CTA; 0 is __syncthreads.
#pragma once

enum NamedBarrier : int {
  kDecodeBarrier = 1,     // the decode warpgroup
  kPrefillBarrier = 2,    // +0, +1: one prefill warpgroup
  kTurnBarrier = 4,       // +0, +1: a prefill warpgroup's turn on the tensor cores
};
