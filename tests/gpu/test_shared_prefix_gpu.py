"""Keys that requests share are read once for all of them, and the results are those of each."""

import numpy as np
import pytest
from attention_case import Case, poisoned
from gpu_support import bits, inputs_on_gpu, skip_without_hopper

from podrt import HybridAttention, SharedPrefixAttention

cupy = pytest.importorskip("cupy")

from graph_server import LIMITS, SIZES, Server  # noqa: E402


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
        [(2, 12, 4096), (14, 20, 4096)],
        [3, 1] + [1] * 10 + [200, 1] + [1, 2, 1, 1, 5, 1],
        [700, 1]
        + [4096 + 5 * i + 1 for i in range(10)]
        + [900, 50]
        + [4096 + n for n in (16, 300, 1, 1000, 77, 4000)],
    ),
    "prefill chunks": ([(0, 3, 8192)], [130, 65, 1], [8192 + 130, 9000, 8193]),
}


def test_values_may_be_narrower_than_keys(policy):
    groups, q_lens, kv_lens = CASES["two groups and others"]
    case = sharing_case(groups, q_lens, kv_lens, head_dim=192, v_head_dim=128)
    attention = attention_of(case, policy)
    attention.plan(*case.lengths, block_table=case.block_table, shared_prefixes=groups)
    out, lse = attention.run(*inputs_on_gpu(case), return_lse=True)
    case.check(out.get(), lse.get())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_shared_keys_are_attended_by_all(policy, name, dtype):
    groups, q_lens, kv_lens = CASES[name]
    case = sharing_case(groups, q_lens, kv_lens, dtype=dtype)
    attention = attention_of(case, policy)
    q, k, v = inputs_on_gpu(case)
    if name == "prefill chunks":  # which share nothing unless they are told to
        attention.plan(*case.lengths, block_table=case.block_table, shared_prefixes=groups)
    else:
        attention.plan(*case.lengths, block_table=case.block_table)
    assert [(begin, end) for begin, end, _ in attention.shared_prefixes] == [
        (begin, end) for begin, end, _ in groups
    ]
    out, lse = poisoned(q.shape, q.dtype), poisoned(q.shape[:2], np.float32)
    attention.run(q, k, v, out=out, lse=lse, return_lse=True)
    case.check(out.get(), lse.get())
    attention.plan(
        *case.lengths, block_table=cupy.asarray(case.block_table), shared_prefixes=groups
    )
    again = attention.run(q, k, v)
    case.check(again.get())


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


LAYERS = {
    "sinks": {"has_sinks": True},
    "sinks and cap": {"has_sinks": True, "logits_soft_cap": 20.0},
    "64, pages of 4": {"head_dim": 64, "page_size": 4},
    "80, 5 to a KV head": {"head_dim": 80, "group": 5},
    "256": {"head_dim": 256, "group": 2},
    "71 to a KV head": {"group": 71, "num_kv_heads": 1},
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("seed", range(4))
def test_random_batches(policy, layer, seed):
    rng = np.random.default_rng(seed)
    groups, lengths = [], []
    for _ in range(rng.integers(1, 4)):
        begin, keys = len(lengths), 16 * int(rng.integers(0, 200))
        for _ in range(rng.integers(1, 12)):
            q_len = int(rng.choice([1, 1, 1, 2, 7, 33, 150]))
            lengths.append((q_len, keys + q_len + int(rng.choice([0, 3, 100, 1500]))))
        groups.append((begin, len(lengths), keys))
    q_lens, kv_lens = (list(each) for each in zip(*lengths, strict=True))
    case = sharing_case(groups, q_lens, kv_lens, seed=seed, **LAYERS[layer])
    for name in (policy, *(["hopper-serial"] if policy == "auto" else ["portable-serial"])):
        attention = attention_of(case, name)
        attention.plan(*case.lengths, block_table=case.block_table, shared_prefixes=groups)
        out, lse = poisoned(case.q.shape, case.q.dtype), poisoned(case.q.shape[:2], np.float32)
        for _ in range(2):  # the second goes the short way, where that is one without lse
            attention.run(*inputs_on_gpu(case), out=out, sinks=sinks_of(case))
            case.check(out.get())
        attention.run(*inputs_on_gpu(case), out=out, lse=lse, return_lse=True, sinks=sinks_of(case))
        case.check(out.get(), lse.get())


def sinks_of(case):
    return None if case.sinks is None else cupy.asarray(case.sinks)


def test_graphs_replay_both_launches(policy):
    groups, q_lens, kv_lens = CASES["two groups and others"]
    case = sharing_case(groups, q_lens, kv_lens)
    attention, inputs = attention_of(case, policy), inputs_on_gpu(case)
    out = poisoned(case.q.shape, case.q.dtype)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        attention.plan(*case.lengths, block_table=case.block_table, shared_prefixes=groups)
        attention.run(*inputs, out=out)
        first = out.get()
        stream.begin_capture()
        attention.run(*inputs, out=out)
        graph = stream.end_capture()
        for _ in range(3):
            out.fill(float("nan"))
            graph.launch()
            stream.synchronize()
            assert (bits(out.get()) == bits(first)).all()
    case.check(first)


def test_plans_with_and_without_prefixes_take_turns(policy):
    """Counters stay zero, and memory of one plan does not show in the next."""
    groups, q_lens, kv_lens = CASES["decodes"]
    case = sharing_case(groups, q_lens, kv_lens)
    attention, inputs = attention_of(case, policy), inputs_on_gpu(case)
    for turn in range(6):
        prefixes = groups if turn % 2 else []
        attention.plan(*case.lengths, block_table=case.block_table, shared_prefixes=prefixes)
        out = poisoned(case.q.shape, case.q.dtype)
        attention.run(*inputs, out=out)
        case.check(out.get())


def test_one_graph_serves_whatever_shares_a_prefix(policy):
    """Batches with and without prefixes take turns in replays of two captured sizes."""
    server = Server(policy, limits={**LIMITS, "max_prefixes": 4})
    for size in SIZES:
        server.capture(size, decodes_only=True)
    for step in range(12):
        rng, size = np.random.default_rng(step), SIZES[step % 2]
        lengths, prefixes, left = [], [], size
        for _ in range(rng.integers(1, 4)):
            begin, keys = len(lengths), 16 * int(rng.integers(0, 100))
            for _ in range(min(int(rng.integers(1, 6)), left // 2)):
                q_len = int(rng.integers(1, 3))
                lengths.append((q_len, keys + q_len + int(rng.integers(0, 300))))
                left -= q_len
            prefixes.append((begin, len(lengths), keys))
        if step % 3 and left > 1:  # prefill beside them
            lengths.append((left, left + int(rng.integers(0, 500))))
        case = server.case(*map(list, zip(*lengths, strict=True)), seed=step)
        for begin, end, keys in prefixes:
            case.block_table[begin:end, : keys // 16] = case.block_table[begin, : keys // 16]
        server.step(case, size, decodes_only=True, shared_prefixes=prefixes if step % 4 else None)
