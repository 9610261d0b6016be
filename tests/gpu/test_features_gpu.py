"""Windows, soft-caps and sinks, alone and together, of both families, against float64."""

from __future__ import annotations

import numpy as np
import pytest
from attention_case import Case, poisoned, run
from gpu_support import bits, inputs_on_gpu, skip_without_hopper

from podrt import HybridAttention
from podrt.gpu.device import current_device
from podrt.jit import build_many
from podrt.kernels.families import source_of
from podrt.kernels.hopper.config import DECODE_ROWS, HOPPER_ARCH
from podrt.policy.policies import parse_policy
from podrt.policy.schedule import Scheduler

cupy = pytest.importorskip("cupy")

from graph_server import (  # noqa: E402
    LIMITS,
    SIZES,
    Server,
    bounded_table,
    random_lengths,
)

#: At, before and after ends of tiles, steps and pages.
WINDOWS = (0, 1, 15, 16, 17, 63, 64, 65, 127, 128, 129)
#: Few, as each has kernels of its own.
LAYERS = {
    "bf16, 128, pages": {"dtype": "bfloat16", "head_dim": 128, "page_size": 16},
    "f16, 64, contiguous, capped": {
        "dtype": "float16",
        "head_dim": 64,
        "page_size": None,
        "logits_soft_cap": 30.0,
    },
}
CAPPED = {"dtype": "bfloat16", "head_dim": 128, "page_size": 16, "logits_soft_cap": 50.0}
RANDOM = (
    *LAYERS.values(),
    CAPPED,
    {"dtype": "float16", "head_dim": 128, "page_size": 16, "causal": False},
)
#: Keys of a tile or step of one family or the other.
STEPS = (64, 112, 128)
#: Rows whose values nearly cancel weigh the rounding of their weights more.
ALLOWED_STEPS = 3


@pytest.fixture(scope="module", autouse=True)
def compiled_side_by_side():
    """One after the other, when a batch needs them, would take most of the time."""
    gpu, variants = current_device(), set()
    for policy in ("portable", "hopper"):
        for layer in RANDOM if policy == "portable" or gpu.arch.name == HOPPER_ARCH else ():
            spec = HybridAttention(**Case([], [], **layer).layer_arguments).layer
            scheduler = Scheduler(spec, gpu, parse_policy(policy))
            for decode_rows in DECODE_ROWS:
                variants.update(scheduler.variants(decode_rows))
    build_many([source_of(variant) for variant in variants])


def checked(case, policy, **arguments):
    attention = HybridAttention(**case.layer_arguments, policy=policy)
    case.check(*run(case, attention, **arguments), allowed_steps=ALLOWED_STEPS)


def edge_lengths(window):
    """Requests whose windows begin, or keys end, at the edge of a step, or one key off it."""
    lengths = set()
    for q_len in (1, 2, 8, 33):
        own = {window + q_len + further for further in (-1, 0, 1, 2)}
        edges = {step + d for step in STEPS for d in (-1, 0, 1)}
        begins = {window + step + q_len + d for step in STEPS for d in (-1, 0, 1)}
        lengths |= {(q_len, kv_len) for kv_len in own | edges | begins if kv_len >= 0}
    lengths |= {(130, 129 + window), (130, 300), (70, 20)}  # the last has tokens that see nothing
    return sorted(lengths)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("window", WINDOWS)
def test_windows_at_every_edge(family, layer, window):
    """Fused and one side after the other, which have kernels of their own."""
    q_lens, kv_lens = zip(*edge_lengths(window), strict=True)
    case = Case(
        list(q_lens),
        list(kv_lens),
        window_left=window,
        has_sinks=window % 2 == 0,
        seed=window,
        **LAYERS[layer],
    )
    for policy in (family, f"{family}-serial"):
        checked(case, policy)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("window", [0, 17, 1000, 4096])
def test_requests_alone_are_split_within_their_window(family, layer, window):
    for seed, (q_len, kv_len) in enumerate([(1, 9000), (3, 4096 + 70), (200, 6000)]):
        case = Case(
            [q_len], [kv_len], window_left=window, has_sinks=True, seed=seed, **LAYERS[layer]
        )
        checked(case, family)


@pytest.mark.parametrize("window", [4096, 1000])
def test_chunks_beside_decodes_with_long_windows(family, window):
    q_lens = [500, *[1] * 12, 2, 64]
    kv_lens = [9000, *range(4090, 4102), 7000, 4160]
    layer = LAYERS["bf16, 128, pages"]
    checked(Case(q_lens, kv_lens, window_left=window, **layer), family)


def test_a_window_longer_than_all_requests_changes_no_bit(family):
    layer = LAYERS["bf16, 128, pages"]
    results = []
    for window in (None, 5000):
        case = Case([1, 130, 1, 5], [900, 700, 17, 300], window_left=window, **layer)
        attention = HybridAttention(**case.layer_arguments, policy=family)
        results.append(run(case, attention))
    assert (bits(results[0][0]) == bits(results[1][0])).all()
    assert (results[0][1] == results[1][1]).all()


@pytest.mark.parametrize("cap", [0.5, 5.0, 50.0])
@pytest.mark.parametrize("sm_scale", [None, 2.0])
def test_caps_of_small_and_large_scores(family, cap, sm_scale):
    q_lens, kv_lens = [1, 2, 130, 40, 1, 9], [3000, 129, 400, 1111, 1, 5]
    layer = CAPPED | {"logits_soft_cap": cap, "sm_scale": sm_scale}
    for policy in (family, f"{family}-serial"):
        checked(Case(q_lens, kv_lens, has_sinks=True, **layer), policy)


def test_caps_of_large_heads(family):
    """As of Gemma 2."""
    layer = CAPPED | {"head_dim": 256}
    for window in (None, 200):
        case = Case(
            [1, 2, 70, 300], [3000, 129, 400, 900], window_left=window, has_sinks=True, **layer
        )
        for policy in (family, f"{family}-serial"):
            checked(case, policy)


def test_without_causal_mask(family):
    """Windows hide the first keys alone, and tokens of long requests see more than their own."""
    layer = {"dtype": "float16", "head_dim": 128, "page_size": 16, "causal": False}
    for window in (None, 0, 100):
        q_lens, kv_lens = [1, 8, 130, 40, 9], [3000, 129, 400, 1111, 5]
        case = Case(q_lens, kv_lens, window_left=window, has_sinks=True, **layer)
        checked(case, family)


@pytest.mark.parametrize("lengths", [([1], [5000]), ([1, 60, 3], [900, 700, 2])])
def test_sinks_that_take_nothing_or_all(family, lengths):
    """Split keys, whole ones, and tokens that see nothing."""
    case = Case(*lengths, **LAYERS["bf16, 128, pages"])
    attention = HybridAttention(**case.layer_arguments, policy=family)
    heads = case.num_qo_heads
    nothing = cupy.full(heads, -np.inf, np.float32)
    without = run(case, attention)
    out, lse = run(case, attention, sinks=nothing)
    assert (bits(out) == bits(without[0])).all()
    for large in (300.0, 1e30, np.inf):
        sinks = cupy.full(2 * heads, -np.inf, np.float32)[::2]
        sinks[0] = large
        out, lse = run(case, attention, sinks=sinks)
        assert (np.abs(out[:, 0].astype(np.float64)) < 1e-20).all()
        assert (bits(out[:, 1:]) == bits(without[0][:, 1:])).all()
        assert np.array_equal(lse, without[1]), "sinks are no part of log-sum-exps"


def test_sinks_are_read_where_they_are_at_every_run(family):
    """The second run goes the short way."""
    case = Case([1, 50], [600, 90], has_sinks=True, **LAYERS["bf16, 128, pages"])
    attention = HybridAttention(**case.layer_arguments, policy=family)
    attention.plan(*case.lengths, block_table=cupy.asarray(case.block_table))
    inputs, sinks = inputs_on_gpu(case), cupy.asarray(case.sinks)
    outs = [poisoned(case.q.shape, case.q.dtype) for _ in range(4)]
    attention.run(*inputs, out=outs[0], sinks=cupy.zeros_like(sinks))
    attention.run(*inputs, out=outs[1], sinks=sinks)
    attention.run(*inputs, out=outs[2])
    sinks_elsewhere = sinks.copy()
    attention.run(*inputs, out=outs[3], sinks=sinks_elsewhere)
    case.check(outs[1].get())
    assert (bits(outs[3]) == bits(outs[1])).all()
    assert (bits(outs[2]) != bits(outs[1])).any()


@pytest.mark.parametrize("seed", range(16))
def test_random_batches(family, seed):
    rng = np.random.default_rng(seed)
    layer = dict(RANDOM[seed % len(RANDOM)])
    if "logits_soft_cap" in layer:
        layer["logits_soft_cap"] = float(rng.choice([3.0, 20.0, 50.0]))
    num = int(rng.integers(1, 20))
    q_lens = np.where(rng.random(num) < 0.7, rng.integers(0, 4, num), rng.integers(1, 300, num))
    kv_lens = q_lens + rng.integers(0, rng.choice([40, 700, 1500]), num)
    kv_lens[rng.random(num) < 0.1] = 0
    case = Case(
        q_lens.tolist(),
        kv_lens.tolist(),
        num_kv_heads=int(rng.choice([1, 2, 3])),
        group=int(rng.choice([1, 4, 5, 8])),
        window_left=None if seed % 5 == 4 else int(rng.choice([0, 5, 64, 100, 511, 2000])),
        has_sinks=bool(rng.random() < 0.6),
        sm_scale=float(rng.choice([0.05, 0.3])),
        seed=seed,
        **layer,
    )
    checked(case, family)


@pytest.fixture(scope="module", params=["portable", "hopper"])
def server(request):
    if request.param == "hopper":
        skip_without_hopper()
    return Server(request.param, layer={"window_left": 100, "has_sinks": True})


def test_graphs_of_windows_and_sinks(server):
    rng = np.random.default_rng(3)
    for size in SIZES:
        server.capture(size)
    server.capture(SIZES[0], decodes_only=True)
    for step in range(18):
        kind = ("mixed", "decode", "prefill")[step % 3]
        size = SIZES[step % 2]
        q_lens, kv_lens = random_lengths(rng, kind, size)
        server.step(server.case(q_lens, kv_lens, seed=step), size)
    q_lens, kv_lens = random_lengths(rng, "decode", SIZES[0])
    server.step(server.case(q_lens, kv_lens, seed=99), SIZES[0], decodes_only=True)


def test_windows_of_requests_shorter_than_planned(server):
    """They begin further to the left than planned, however much shorter a request is."""
    rng, size = np.random.default_rng(7), SIZES[0]
    server.capture(size)
    for further in (1, 17, 200, 1500):
        q_lens, kv_lens = random_lengths(rng, "mixed", size)
        kv_lens = [min(n, LIMITS["max_kv_len"] - further) for n in kv_lens]
        case = server.case(q_lens, kv_lens, seed=further)
        planned = (np.array(kv_lens) + rng.integers(0, further + 1, len(kv_lens))).astype(np.int32)
        with server.stream:
            server.load(case)
            server.attention.plan(
                case.qo_indptr,
                planned,
                block_table=bounded_table(case, planned),
                device_kv_lens=cupy.asarray(case.lengths[1]),
                stream=server.stream,
            )
        server.check(case, *server.replay(size))
