"""Decode of KV heads in pairs, and the same plans over heads that lie apart, against float64."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from attention_case import STEP, Case, inside_larger, poisoned, to_gpu
from edge_case import EdgeCase
from edge_case import edge_lengths as all_edge_lengths
from gpu_support import bits, skip_without_hopper

from podrt import HybridAttention, Policy
from podrt.gpu.device import current_device
from podrt.jit import build_many
from podrt.kernels.families import source_of
from podrt.policy.policies import parse_policy
from podrt.policy.schedule import Scheduler

cupy = pytest.importorskip("cupy")

HEAD_DIM = 96
ALLOWED_STEPS = 3
#: Few, as each has kernels of its own.
LAYERS = {
    "bf16, pages": {"dtype": "bfloat16", "page_size": 16},
    "f16, contiguous, capped": {"dtype": "float16", "page_size": None, "logits_soft_cap": 30.0},
    "bf16, pages of 24, trees": {"dtype": "bfloat16", "page_size": 24, "has_trees": True},
}
PAGES = LAYERS["bf16, pages"]
FUSED, APART = "hopper", "hopper-serial"
#: Both forms of decode, in tiles of either size.
POLICIES = [
    Policy(family="hopper", serial=serial, decode_rows=rows)
    for serial in (False, True)
    for rows in (8, 16)
]


@pytest.fixture(scope="module", autouse=True)
def kernels():
    """Side by side: one after the other, when a batch needs them, would take most of the time."""
    skip_without_hopper()
    variants = set()
    for layer in LAYERS.values():
        spec = HybridAttention(**case_of([], [], **layer).layer_arguments).layer
        scheduler = Scheduler(spec, current_device(), parse_policy("hopper"))
        for rows in (8, 16):
            variants.update(scheduler.variants(rows))
    build_many([source_of(variant) for variant in variants])


def case_of(q_lens, kv_lens, **options):
    return Case(list(q_lens), list(kv_lens), head_dim=HEAD_DIM, **options)


def tensors_of(case, *, heads_apart=False):
    """Return q and caches whose tokens, or values' heads, lie between others, which are NaN."""
    q, keys = inside_larger(case.q, 1), inside_larger(case.k_cache, 1)
    return q, keys, inside_larger(case.v_cache, 2 if heads_apart else 1)


def planned(case, policy, **options):
    """Return what has planned a case, with heads in pairs wherever there are kernels for them."""
    attention = HybridAttention(**case.layer_arguments, policy=policy, **options)
    tables = {} if case.page_size is None else {"block_table": cupy.asarray(case.block_table)}
    if case.tree_mask is not None:
        tables["tree_mask"] = cupy.asarray(case.tree_mask)
    attention.plan(*case.lengths, **tables)
    for variant in attention.variants:
        if variant.form != "prefill":
            assert variant.head_pairs == (case.num_kv_heads % 2 == 0 and variant.decode_rows < 32)
    return attention


def results_of(attention, case, tensors):
    """Run into poisoned outputs; return out and lse on the host."""
    out, lse = poisoned(case.out_shape, case.q.dtype), poisoned(case.q.shape[:2], np.float32)
    sinks = None if case.sinks is None else cupy.asarray(case.sinks)
    attention.run(*tensors, out=out, lse=lse, sinks=sinks)
    return out.get(), lse.get()


def check(case, policy=FUSED, **options):
    results = results_of(planned(case, policy), case, tensors_of(case, **options))
    case.check(*results, allowed_steps=ALLOWED_STEPS)


def edge_lengths():
    """Requests whose keys, or those that the first query sees, end at the edge of a step."""
    lengths = {
        (q_len, edge + further)
        for q_len in (1, 2, 4, 70)
        for edge in (64, 112, 128, 192)
        for further in (-q_len, -1, 0, 1, q_len)
    }
    return sorted((q_len, kv_len) for q_len, kv_len in lengths if kv_len >= q_len)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("group", "num_kv_heads"), [(1, 2), (4, 4), (8, 2), (3, 6), (20, 2)])
def test_lengths_at_every_edge(layer, group, num_kv_heads):
    """A group of 20 has several tiles for a token, and rows of either member that are none."""
    q_lens, kv_lens = zip(*edge_lengths(), strict=True)
    heads = {"num_kv_heads": num_kv_heads, "group": group}
    case = case_of(q_lens, kv_lens, **heads, has_sinks=True, seed=group, **LAYERS[layer])
    for policy in POLICIES:
        check(case, policy)


def test_scores_that_grow_at_every_edge():
    """Requests share their keys, so that there are many more lengths."""
    lengths = all_edge_lengths(q_lens=(1, 2, 4), prefill_q_lens=(17,))[::5]
    q_lens, kv_lens = (list(each) for each in zip(*lengths, strict=True))
    case = EdgeCase(q_lens, kv_lens, num_kv_heads=2, group=4, head_dim=HEAD_DIM, seed=1, **PAGES)
    for policy in POLICIES:
        check(case, policy)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("window", [0, 17, 100, 1000])
def test_windows_sinks_caps_and_trees_together(layer, window):
    q_lens = [300, *[1] * 20, 2, 3, 64, 130, 0, 9]
    kv_lens = [900, *range(90, 1000, 46), 700, 130, 64, 129, 50, 2000]
    case = case_of(q_lens, kv_lens, window_left=window, has_sinks=True, **LAYERS[layer])
    for policy in POLICIES:
        check(case, policy)


@pytest.mark.parametrize("decode_rows", [8, 16, 32])
@pytest.mark.parametrize("num_kv_heads", [2, 3, 6])
def test_requests_alone_are_split_and_merged(num_kv_heads, decode_rows):
    """Of one token and several, beside prefill too; tiles of 32 rows have heads one by one."""
    policy = Policy(family="hopper", decode_rows=decode_rows, decode_piece_keys=256)
    lengths = [([1], [4200]), ([2], [1666]), ([1, 300, 2, 1], [2500, 700, 2049, 300])]
    for seed, (q_lens, kv_lens) in enumerate(lengths):
        for group in (1, 4):
            heads = {"num_kv_heads": num_kv_heads, "group": group}
            check(case_of(q_lens, kv_lens, **heads, has_sinks=True, seed=seed, **PAGES), policy)


@pytest.mark.parametrize("policy", [FUSED, APART, "auto"])
@pytest.mark.parametrize("layer", LAYERS)
def test_heads_that_lie_apart_run_the_same_plans(layer, policy):
    q_lens, kv_lens = [1, 70, 2, 1, 300, 1], [3000, 200, 129, 700, 900, 9000]
    case = case_of(q_lens, kv_lens, num_kv_heads=4, has_sinks=True, seed=7, **LAYERS[layer])
    for heads_apart in (False, True):
        check(case, policy, heads_apart=heads_apart)


@pytest.mark.parametrize("policy", [FUSED, APART])
def test_many_units_in_turn_on_every_lane_give_the_same_bits_again(policy):
    """Rings and slots for work go round many times; a second run finds all counters at zero."""
    rng = np.random.default_rng(3)
    q_lens = rng.choice([1, 1, 1, 2, 40], 240).tolist()
    kv_lens = (rng.integers(60, 400, 240) + q_lens).tolist()
    case = case_of(q_lens, kv_lens, num_kv_heads=8, group=1, seed=3, **PAGES)
    attention, tensors = planned(case, policy, deterministic=True), tensors_of(case)
    first, second = (results_of(attention, case, tensors)[0] for _ in range(2))
    case.check(first, allowed_steps=ALLOWED_STEPS)
    assert (bits(first) == bits(second)).all()


@pytest.mark.parametrize("policy", [FUSED, APART])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_a_head_holds_shows_in_no_other(policy, value):
    """Keys and values of every head but one are NaN, or infinite."""
    case = case_of([1, 2, 40, 1], [300, 129, 200, 6000], num_kv_heads=4, group=2, **PAGES)
    attention, filling = planned(case, policy), np.array(value, ml_dtypes.bfloat16)
    for kept in range(4):
        tensors = [to_gpu(each) for each in (case.q, case.k_cache, case.v_cache)]
        others = cupy.asarray([head for head in range(4) if head != kept])
        for cache in tensors[1:]:
            cache.view(np.uint16)[:, :, others] = int(filling.view(np.uint16))
        heads = slice(2 * kept, 2 * kept + 2)
        out, lse = (each[:, heads] for each in results_of(attention, case, tensors))
        expected, expected_lse = (each[:, heads] for each in case.expected)
        allowed = ALLOWED_STEPS * STEP["bfloat16"] * np.abs(expected).max(axis=2, keepdims=True)
        assert (np.abs(out.astype(np.float64) - expected) <= allowed).all()
        np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=1e-5)


def test_other_heads_of_the_output_stay_as_they_are():
    case = case_of([1, 70, 2, 1], [3000, 200, 129, 9000], num_kv_heads=4, group=2, **PAGES)
    rows, heads, width = case.out_shape
    larger = poisoned((rows, 2 * heads, width), case.q.dtype)
    before = bits(larger).copy()
    planned(case, FUSED).run(*tensors_of(case), out=larger[:, ::2])
    case.check(larger[:, ::2].get(), allowed_steps=ALLOWED_STEPS)
    assert (bits(larger)[:, 1::2] == before[:, 1::2]).all()


@pytest.mark.parametrize("heads_apart", [False, True])
def test_a_graph_captured_before_its_batch_is_planned(heads_apart):
    case = case_of([1, 2, 1, 60], [3000, 129, 17, 300], num_kv_heads=4, seed=5, **PAGES)
    limits = {"max_requests": 8, "max_tokens": 64, "max_kv_len": 4096, "max_decode_tokens": 2}
    attention = HybridAttention(**case.layer_arguments, policy=FUSED)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        tensors, table = tensors_of(case, heads_apart=heads_apart), cupy.asarray(case.block_table)
        out = poisoned(case.out_shape, case.q.dtype)
        attention.reserve(**limits, stream=stream)
        stream.synchronize()
        stream.begin_capture()
        attention.run(*tensors, out=out, stream=stream)
        graph = stream.end_capture()
        attention.plan(*case.lengths, block_table=table, stream=stream)
        graph.launch(stream)
        case.check(out.get(), allowed_steps=ALLOWED_STEPS)
