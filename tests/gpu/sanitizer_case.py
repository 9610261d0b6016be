"""Small batches for compute-sanitizer, which is too slow for the tests proper.

export PYTHONPATH=tests
timeout 550 compute-sanitizer --tool memcheck  --error-exitcode 9 python tests/gpu/sanitizer_case.py
timeout 550 compute-sanitizer --tool racecheck --error-exitcode 9 python tests/gpu/sanitizer_case.py

Head dims may be named (``sanitizer_case.py 96 192``); 64, 128 and 256 without. After ``features``
all that follow are tried with windows, sinks, caps, trees and shared prefixes alone.
``bad_pages.py`` is worth a memcheck too.
"""

import sys

import cupy
from attention_case import Case, run
from gpu_support import inputs_on_gpu
from graph_server import Server

from podrt import HybridAttention
from podrt.gpu.device import current_device
from podrt.kernels.hopper.config import HEAD_DIMS, HOPPER_ARCH

PORTABLE = ("1:1", "portable-serial")
HOPPER = ("auto", "serial", "decode-only=1", "prefill-only=1")
#: Decodes of one token and of more, whose first ones see no key of a step, and prefills.
LENGTHS = [1, 40, 1, 0, 2, 20, 2, 3], [1300, 70, 17, 5, 40, 2300, 129, 258]


#: What layers ask of attention besides, and how it is mixed.
FEATURES = (
    {"window_left": 100, "has_sinks": True},
    {"logits_soft_cap": 30.0},
    {"window_left": 17, "logits_soft_cap": 30.0, "has_sinks": True},
    {"has_trees": True, "window_left": 300},
)


def main(head_dims):
    hopper_head_dims = HEAD_DIMS if current_device().arch.name == HOPPER_ARCH else ()
    for head_dim in head_dims:
        for page_size in (None, 16, 4):
            for policy in (*PORTABLE, *(HOPPER if head_dim in hopper_head_dims else ())):
                eager(policy, head_dim, page_size)
        for policy in ("portable", *(("hopper",) if head_dim in hopper_head_dims else ())):
            for page_size in (16, 4):
                replays(policy, head_dim, page_size)


def features(head_dims):
    for head_dim in head_dims:
        for asked in FEATURES:
            for policy in ("auto", "serial", "portable"):
                eager(policy, head_dim, 16, **asked)
        for policy in ("auto", "serial", "portable"):
            shared(policy, head_dim)


def shared(policy, head_dim):
    """Decodes and a prefill that begin with the same keys, beside one that does not."""
    q_lens, kv_lens = [1, 2, 40, 1, 1], [400, 333, 500, 321, 90]
    case = Case(q_lens, kv_lens, num_kv_heads=1, head_dim=head_dim, has_sinks=True, seed=head_dim)
    prefix = 0, 4, 320
    case.block_table[:4, :20] = case.block_table[0, :20]
    attention = HybridAttention(**case.layer_arguments, policy=policy)
    attention.plan(*case.lengths, block_table=case.block_table, shared_prefixes=[prefix])
    q, k, v = inputs_on_gpu(case)
    out, lse = attention.run(q, k, v, sinks=cupy.asarray(case.sinks), return_lse=True)
    steps, lse_error = case.check(out.get(), lse.get())
    print(f"{policy}: {steps:.2f} steps, LSE {lse_error:.1e}: shared prefix", flush=True)


def eager(policy, head_dim, page_size, **asked):
    case = Case(
        *LENGTHS, num_kv_heads=1, head_dim=head_dim, page_size=page_size, seed=head_dim, **asked
    )
    attention = HybridAttention(**case.layer_arguments, policy=policy)
    steps, lse_error = case.check(*run(case, attention))
    names = ", ".join(config.name for config in attention.variants)
    print(f"{policy}: {steps:.2f} steps, LSE {lse_error:.1e}: {names}", flush=True)


def replays(policy, head_dim, page_size):
    layer = {"num_kv_heads": 1, "head_dim": head_dim, "page_size": page_size}
    server = Server(policy, layer)
    server.capture(128)
    server.capture(16, decodes_only=True)
    server.step(server.case(*LENGTHS, seed=1), 128)
    server.step(server.case([], []), 128)
    server.step(server.case([1, 2, 2], [1300, 129, 2], seed=2), 16, decodes_only=True)
    print(f"{policy}: replays, head_dim {head_dim}, pages of {page_size}", flush=True)


if __name__ == "__main__":
    check, names = main, sys.argv[1:]
    if names[:1] == ["features"]:
        check, names = features, names[1:]
    check([int(name) for name in names] or (64, 128, 256))
