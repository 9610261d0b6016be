"""Rows that see no key of a tile or step, and scores that hardly grow, or grow a lot.

A row's softmax refers to the largest score that it has seen for a while, and an update of that
reference may be put off: what goes wrong there depends on where a row's keys end within a step.
"""

import numpy as np
import pytest
from attention_case import Case, poisoned, run
from edge_case import EdgeCase, edge_lengths
from gpu_support import inputs_on_gpu

from podrt import HybridAttention

cupy = pytest.importorskip("cupy")


#: Of the hundred thousand rows of a grid some have values that nearly cancel, beside which the
#: rounding of their weights weighs more.
ALLOWED_STEPS = 3


#: Batches that came out wrong once: lengths of queries and keys, and the layer.
FOUND = {
    "no key of the first step": ([2], [129], {}),
    "long": ([2], [8193], {}),
    "many, head_dim 64": ([2] * 64, [897] * 64, {"head_dim": 64}),
    "scores that hardly grow": ([2], [513], {"score_ramp": (7.9, 10.2)}),
    "far below 0": ([2], [129], {"score_ramp": (-45, -45), "dtype": "float16"}),
    "far below 0, more steps": (
        [2, 1, 40],
        [513, 300, 700],
        {"score_ramp": (-45, -45), "dtype": "float16"},
    ),
    "5/5 heads, pages of 128": (
        [1, 1, 597, 269, 452, 5, 1],
        [2857, 65, 660, 285, 453, 2180, 17],
        {"num_kv_heads": 5, "group": 1, "page_size": 128, "dtype": "float16"},
    ),
    "14/2 heads, contiguous": (
        [0, 4, 336, 650, 1, 1, 1],
        [1, 1667, 352, 665, 17, 66, 66],
        {"group": 7, "page_size": None, "dtype": "float16"},
    ),
}


@pytest.mark.parametrize("found", FOUND)
def test_batches_that_came_out_wrong(family, found):
    q_lens, kv_lens, layer = FOUND[found]
    case = Case(q_lens, kv_lens, **layer)
    attention = HybridAttention(**case.layer_arguments, policy=family)
    case.check(*run(case, attention))


@pytest.mark.parametrize("page_size", [None, 16])
@pytest.mark.parametrize("heads", [(4, 1), (2, 4)])
def test_decodes_whose_first_token_ends_at_a_step(family, heads, page_size):
    """One request alone, so that its keys are split over the GPU."""
    num_kv_heads, group = heads
    for further in range(1, 8):
        for steps in (1, 5):
            case = Case(
                [further + 1],
                [128 * steps + further],
                num_kv_heads=num_kv_heads,
                group=group,
                page_size=page_size,
                seed=further,
            )
            attention = HybridAttention(**case.layer_arguments, policy=family)
            case.check(*run(case, attention))


@pytest.mark.parametrize("page_size", [None, 16, 128])
@pytest.mark.parametrize("group", [1, 4, 5, 7, 8])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_edge(family, dtype, head_dim, group, page_size, record_property):
    """Fused and one side after the other, which have kernels of their own."""
    lengths = edge_lengths()
    if page_size is None:  # which repeats the keys for every request
        lengths = [(q_len, kv_len) for q_len, kv_len in lengths if kv_len < 640][::2]
    case = edge_case(lengths, dtype=dtype, head_dim=head_dim, group=group, page_size=page_size)
    for policy in (family, f"{family}-serial"):
        attention = HybridAttention(**case.layer_arguments, policy=policy)
        results = run(case, attention, strided=False)
        steps, lse_error = case.check(*results, allowed_steps=ALLOWED_STEPS)
        record_property("error_steps", steps)
        record_property("lse_error", lse_error)


@pytest.mark.parametrize("group", [1, 4, 8])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_edge_of_a_request_alone(family, dtype, head_dim, group):
    """A request that has the GPU to itself is split: its units begin elsewhere."""
    case = edge_case(edge_lengths(), dtype=dtype, head_dim=head_dim, group=group, page_size=16)
    attention = HybridAttention(**case.layer_arguments, policy=family)
    q, k, v = inputs_on_gpu(case)
    table = cupy.asarray(case.block_table)
    out, lse = poisoned(q.shape, q.dtype), poisoned(q.shape[:2], np.float32)
    for request, (q_len, kv_len) in enumerate(zip(case.q_lens, case.kv_lens, strict=True)):
        rows = slice(*case.qo_indptr[request : request + 2])
        lengths = np.array([0, q_len], np.int32), np.array([kv_len], np.int32)
        attention.plan(*lengths, block_table=table[request : request + 1])
        attention.run(q[rows], k, v, out=out[rows], lse=lse[rows])
    case.check(out.get(), lse.get(), allowed_steps=ALLOWED_STEPS)


def edge_case(lengths, **layer):
    q_lens, kv_lens = zip(*lengths, strict=True)
    num_kv_heads = 2 if layer["group"] == 1 else 1
    return EdgeCase(list(q_lens), list(kv_lens), num_kv_heads=num_kv_heads, **layer)
