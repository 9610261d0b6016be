"""Tree masks of speculative decoding, alone and with everything else, against float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from attention_case import Case, poisoned, run
from gpu_support import bits, inputs_on_gpu, skip_without_hopper
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tree_support import packed, random_words

from podrt import HybridAttention
from podrt.gpu.device import current_device
from podrt.jit import build_many
from podrt.kernels.families import source_of
from podrt.kernels.hopper.config import DECODE_ROWS, HOPPER_ARCH
from podrt.policy.policies import parse_policy
from podrt.policy.schedule import Scheduler

cupy = pytest.importorskip("cupy")

from graph_server import LIMITS, SIZES, Server, bounded_table, random_lengths  # noqa: E402

#: Few, as each has kernels of its own.
LAYERS = {
    "bf16, 128, pages": {"dtype": "bfloat16", "head_dim": 128, "page_size": 16},
    "f16, 64, contiguous": {"dtype": "float16", "head_dim": 64, "page_size": None},
    "bf16, 128, capped": {
        "dtype": "bfloat16",
        "head_dim": 128,
        "page_size": 16,
        "logits_soft_cap": 30.0,
    },
}
PAGES = LAYERS["bf16, 128, pages"]
#: Keys of a tile or step of one family or the other, and pages.
STEPS = (16, 32, 64, 128)
#: Rows whose values nearly cancel weigh the rounding of their weights more.
ALLOWED_STEPS = 3


@pytest.fixture(scope="module", autouse=True)
def compiled_side_by_side():
    """One after the other, when a batch needs them, would take most of the time."""
    gpu, variants = current_device(), set()
    for policy in ("portable", "hopper"):
        for layer in (
            LAYERS.values() if policy == "portable" or gpu.arch.name == HOPPER_ARCH else ()
        ):
            spec = HybridAttention(**Case([], [], has_trees=True, **layer).layer_arguments).layer
            scheduler = Scheduler(spec, gpu, parse_policy(policy))
            for decode_rows in DECODE_ROWS:
                variants.update(scheduler.variants(decode_rows))
    build_many([source_of(variant) for variant in variants])


def checked(case, policy, **options):
    attention = HybridAttention(**case.layer_arguments, policy=policy, **options)
    case.check(*run(case, attention), allowed_steps=ALLOWED_STEPS)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("q_len", [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64])
def test_new_keys_at_every_edge(family, layer, q_len):
    """New keys begin, or end, at the edge of a step, or one key off it."""
    edges = {step + d for step in STEPS for d in (-1, 0, 1)}
    kv_lens = sorted({q_len, q_len - 1, *edges, *(edge + q_len for edge in edges)})
    q_lens = [q_len] * len(kv_lens)
    for seed, group in enumerate((1, 4, 5)):
        case = Case(q_lens, kv_lens, group=group, has_trees=True, seed=seed, **LAYERS[layer])
        checked(case, family)


@pytest.mark.parametrize("window", [0, 1, 15, 16, 63, 64, 65, 200])
def test_windows_hide_older_keys_alone(family, window):
    q_lens = [1, 5, 16, 33, 64, 64, 8, 70]
    kv_lens = [500, 64, window + 16, window + 97, 64, 300, 4, 400]
    case = Case(q_lens, kv_lens, window_left=window, has_trees=True, has_sinks=True, **PAGES)
    checked(case, family)


@pytest.mark.parametrize("layer", LAYERS)
def test_trees_beside_prefills_and_plain_decodes(family, layer):
    """Fused and one side after the other, which have kernels of their own."""
    q_lens = [500, 1, 25, 64, 65, 1, 60, 9, 0, 130]
    kv_lens = [900, 3000, 2000, 1000, 65, 17, 60, 4096, 9, 700]
    case = Case(q_lens, kv_lens, has_trees=True, has_sinks=True, **LAYERS[layer])
    for policy in (family, f"{family}-serial"):
        checked(case, policy)


@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 9000), (16, 9000), (64, 8192), (64, 8255)])
def test_requests_alone_are_split(family, q_len, kv_len):
    for window in (None, 5000):
        case = Case([q_len], [kv_len], window_left=window, has_trees=True, **PAGES)
        checked(case, family)
        checked(case, family, deterministic=True)


def test_large_heads_and_groups(family):
    for layer in (PAGES | {"head_dim": 256}, PAGES | {"group": 71, "num_kv_heads": 1}):
        case = Case([1, 20, 64, 100], [700, 129, 400, 300], has_trees=True, **layer)
        checked(case, family)


def test_a_chain_has_the_bits_of_no_tree(family):
    q_lens, kv_lens = [1, 30, 64, 9], [400, 333, 64, 1000]
    case = Case(q_lens, kv_lens, has_trees=True, **PAGES)
    chains = np.concatenate([packed(np.tri(q_len, dtype=bool)) for q_len in q_lens])
    results = []
    for words in (np.zeros_like(chains), chains, None):
        case.tree_mask = words
        attention = HybridAttention(**case.layer_arguments, policy=family)
        results.append(run(case, attention))
    for out, lse in results[1:]:
        assert (bits(out) == bits(results[0][0])).all()
        assert (lse == results[0][1]).all()
    plain = replace(case, has_trees=False)
    plain.check(*results[0])


@pytest.mark.parametrize("window", [0, 1, 15, 40, 63])
def test_windows_of_tokens_without_a_word(family, window):
    """Are those of a layer without trees, beside requests that have one."""
    case = Case([1, 30, 64, 9, 64], [400, 333, 64, 5, 500], window_left=window, **PAGES)
    with_trees = replace(case, has_trees=True)
    with_trees.tree_mask[: sum(case.q_lens[:-1])] = 0
    checked(with_trees, family)
    for words in (np.zeros_like(with_trees.tree_mask), None):
        with_trees.tree_mask = words
        attention = HybridAttention(**with_trees.layer_arguments, policy=family)
        case.check(*run(with_trees, attention), allowed_steps=ALLOWED_STEPS)


def test_words_are_read_where_they_are_at_every_run(family):
    """On the GPU in place, in the order of the stream; those in host memory are copied."""
    case = Case([40, 1, 64], [600, 90, 64], has_trees=True, **PAGES)
    attention = HybridAttention(**case.layer_arguments, policy=family)
    inputs, table = inputs_on_gpu(case), cupy.asarray(case.block_table)
    words = cupy.zeros(len(case.q) + 3, np.int64)
    attention.plan(*case.lengths, block_table=table, tree_mask=words)
    attention.run(*inputs, out=poisoned(case.q.shape, case.q.dtype))
    for seed in range(3):
        fresh = Case(case.q_lens, case.kv_lens, has_trees=True, **PAGES)
        fresh.tree_mask = random_words(np.random.default_rng(seed), case.q_lens)
        words[: len(case.q)] = cupy.asarray(fresh.tree_mask.view(np.int64))
        out = poisoned(case.q.shape, case.q.dtype)
        attention.run(*inputs, out=out)
        fresh.check(out.get(), allowed_steps=ALLOWED_STEPS)
    host = case.tree_mask.copy()
    attention.plan(*case.lengths, block_table=table, tree_mask=host)
    host[:] = 0
    out = poisoned(case.q.shape, case.q.dtype)
    attention.run(*inputs, out=out)
    case.check(out.get(), allowed_steps=ALLOWED_STEPS)


@pytest.mark.parametrize("name", ["portable", "hopper"])
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_random_combinations(name, data):
    if name == "hopper":
        skip_without_hopper()
    q_len = st.one_of(st.sampled_from([0, 1, 63, 64, 65]), st.integers(1, 64), st.integers(65, 200))
    more = st.one_of(st.integers(-3, 40), st.integers(0, 1500))
    lengths = data.draw(st.lists(st.tuples(q_len, more), min_size=1, max_size=8))
    case = Case(
        [q for q, _ in lengths],
        [max(q + further, 0) for q, further in lengths],
        num_kv_heads=data.draw(st.sampled_from([1, 2, 3])),
        group=data.draw(st.sampled_from([1, 2, 4, 5, 8])),
        window_left=data.draw(st.sampled_from([None, None, 0, 5, 64, 100, 511])),
        has_sinks=data.draw(st.booleans()),
        has_trees=True,
        seed=data.draw(st.integers(0, 2**16)),
        **LAYERS[data.draw(st.sampled_from(sorted(LAYERS)))],
    )
    serial = "-serial" if data.draw(st.booleans()) else ""
    checked(case, name + serial, deterministic=data.draw(st.booleans()) and not serial)


@pytest.fixture(scope="module", params=["portable", "hopper"])
def server(request):
    if request.param == "hopper":
        skip_without_hopper()
    return Server(request.param, layer={"window_left": 300, "has_sinks": True, "has_trees": True})


@pytest.mark.parametrize("words_on", ["gpu", "host"])
def test_graphs_read_the_words_of_each_plan(server, words_on):
    rng = np.random.default_rng(5)
    for size in SIZES:
        server.capture(size)
    for step in range(12):
        size = SIZES[step % 2]
        q_lens, kv_lens = random_lengths(rng, ("mixed", "prefill")[step % 3 == 2], size)
        case = server.case(q_lens, kv_lens, seed=step)
        with server.stream:
            words = cupy.asarray(case.tree_mask) if words_on == "gpu" else case.tree_mask
        server.step(case, size, tree_mask=words)
    case = server.case([40, 1, 9], [700, 50, 9], seed=50)
    server.step(replace(case, has_trees=False), SIZES[0])


def test_new_keys_of_requests_shorter_than_planned(server):
    """They are the last ones that are there, however many fewer those are than planned."""
    rng, size = np.random.default_rng(7), SIZES[1]
    server.capture(size)
    for further in (1, 17, 63, 64, 200, 1500):
        q_lens = [int(n) for n in rng.integers(1, 65, 6)]
        kv_lens = [q + int(rng.integers(0, 1000)) for q in q_lens]
        while sum(q_lens) > size:
            q_lens.pop(), kv_lens.pop()
        case = server.case(q_lens, kv_lens, seed=further)
        more = rng.integers(0, further + 1, len(kv_lens))
        planned = np.minimum(np.array(kv_lens) + more, LIMITS["max_kv_len"]).astype(np.int32)
        with server.stream:
            server.load(case)
            server.attention.plan(
                case.qo_indptr,
                planned,
                block_table=bounded_table(case, planned),
                device_kv_lens=cupy.asarray(case.lengths[1]),
                tree_mask=cupy.asarray(case.tree_mask),
                stream=server.stream,
            )
        server.check(case, *server.replay(size))
