"""Keys that requests share are read once for all of them, and the results are those of each."""

import numpy as np
import pytest
from attention_case import Case, poisoned
from gpu_support import inputs_on_gpu, skip_without_hopper

from podrt import HybridAttention, SharedPrefixAttention

cupy = pytest.importorskip("cupy")

#: Both parts are rounded before they are merged.
ALLOWED_STEPS = 3


@pytest.fixture(params=["portable", "auto"])
def policy(request):
    if request.param == "auto":
        skip_without_hopper()
    return request.param


def sharing_case(groups, q_lens, kv_lens, **layer):
    case = Case(q_lens, kv_lens, **layer)
    for begin, end, keys in groups:
        case.block_table[begin:end, : keys // case.page_size] = case.block_table[
            begin, : keys // case.page_size
        ]
    return case


def attention_of(case, policy):
    arguments = dict(case.layer_arguments)
    for name in ("causal", "window_left", "tree_mask"):
        del arguments[name]
    return SharedPrefixAttention(**arguments, policy=policy)


CASES = {
    "decodes": ([(0, 40, 2048)], [1] * 40, [2048 + 16 * (i % 9) + 1 + i for i in range(40)]),
    "two groups and others": (
        [(2, 12, 4096), (14, 20, 2048)],
        [3, 1] + [1] * 10 + [200, 1] + [1, 2, 1, 1, 5, 1],
        [700, 1]
        + [4096 + 5 * i + 1 for i in range(10)]
        + [900, 50]
        + [2048 + n for n in (16, 300, 1, 1000, 77, 4000)],
    ),
    "prefill chunks": ([(0, 3, 8192)], [130, 65, 1], [8192 + 130, 9000, 8193]),
}


def test_values_may_be_narrower_than_keys(policy):
    groups, q_lens, kv_lens = CASES["two groups and others"]
    case = sharing_case(groups, q_lens, kv_lens, head_dim=192, v_head_dim=128)
    attention = attention_of(case, policy)
    attention.plan(*case.lengths, block_table=case.block_table, shared_prefixes=groups)
    out, lse = attention.run(*inputs_on_gpu(case), return_lse=True)
    case.check(out.get(), lse.get(), allowed_steps=ALLOWED_STEPS)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_shared_keys_are_attended_by_all(policy, name, dtype):
    groups, q_lens, kv_lens = CASES[name]
    case = sharing_case(groups, q_lens, kv_lens, dtype=dtype)
    attention = attention_of(case, policy)
    q, k, v = inputs_on_gpu(case)
    attention.plan(*case.lengths, block_table=case.block_table)
    assert [(begin, end) for begin, end, _ in attention.shared_prefixes] == [
        (begin, end) for begin, end, _ in groups
    ]
    out, lse = poisoned(q.shape, q.dtype), poisoned(q.shape[:2], np.float32)
    attention.run(q, k, v, out=out, lse=lse, return_lse=True)
    case.check(out.get(), lse.get(), allowed_steps=ALLOWED_STEPS)
    attention.plan(
        *case.lengths, block_table=cupy.asarray(case.block_table), shared_prefixes=groups
    )
    again = attention.run(q, k, v)
    case.check(again.get(), allowed_steps=ALLOWED_STEPS)


def test_a_batch_that_shares_nothing_takes_one_launch_and_gives_the_same_bits(policy):
    case = Case([1] * 9 + [70], [300 + i for i in range(9)] + [900])
    attention, plain = (
        attention_of(case, policy),
        HybridAttention(**case.layer_arguments, policy=policy),
    )
    q, k, v = inputs_on_gpu(case)
    results = []
    for each in (attention, plain):
        each.plan(*case.lengths, block_table=case.block_table)
        results.append(each.run(q, k, v).get().view(np.uint16))
    assert attention.shared_prefixes == ()
    np.testing.assert_array_equal(*results)
