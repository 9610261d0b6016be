"""Values narrower than keys, as of multi-head latent attention, of both families, against float64.

Neighbouring heads are NaN, or other heads: what is read or written behind a head shows.
"""

from __future__ import annotations

import numpy as np
import pytest
from attention_case import Case, run
from gpu_support import bits, check_stays_within_heads, inputs_on_gpu, skip_without_hopper

from podrt import HybridAttention, write_cache
from podrt.gpu.device import current_device
from podrt.jit import build_many
from podrt.kernels.families import source_of
from podrt.kernels.hopper.config import DECODE_ROWS
from podrt.policy.policies import parse_policy
from podrt.policy.schedule import Scheduler

cupy = pytest.importorskip("cupy")

from graph_server import SIZES, Server, random_lengths  # noqa: E402

#: Keys of a tile or step of one family or the other.
STEPS = (64, 96, 112, 128)
ALLOWED_STEPS = 3
#: The portable family also with rows of another length in shared memory, and half a product's
#: columns.
CASES = [("portable", 192, 128), ("portable", 104, 40), ("hopper", 192, 128)]
#: Few, as each has kernels of its own.
LAYERS = {
    "bf16, pages": {"dtype": "bfloat16", "page_size": 16},
    "f16, contiguous, capped": {"dtype": "float16", "page_size": None, "logits_soft_cap": 30.0},
    "bf16, pages of 4": {"dtype": "bfloat16", "page_size": 4},
}
PAGES = LAYERS["bf16, pages"]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)), scope="module")
def family_and_dims(request):
    family, head_dim, v_head_dim = request.param
    if family == "hopper":
        skip_without_hopper()
    dims = {"head_dim": head_dim, "v_head_dim": v_head_dim}
    compile_side_by_side(family, dims)
    return family, dims


def compile_side_by_side(family, dims):
    """One after the other, when a batch needs them, would take most of the time."""
    gpu, variants = current_device(), set()
    for layer in LAYERS.values():
        spec = HybridAttention(**Case([], [], **layer, **dims).layer_arguments).layer
        scheduler = Scheduler(spec, gpu, parse_policy(family))
        for decode_rows in DECODE_ROWS if family == "hopper" else (16,):
            variants.update(scheduler.variants(decode_rows))
    build_many([source_of(variant) for variant in variants])


def checked(case, policy, **options):
    attention = HybridAttention(**case.layer_arguments, policy=policy, **options)
    case.check(*run(case, attention), allowed_steps=ALLOWED_STEPS)
    assert {config.value_dim for config in attention.variants} <= {case.v_head_dim}
    family = policy.partition("-")[0]
    assert family == "auto" or {config.family for config in attention.variants} <= {family}


def edge_lengths():
    """Requests whose keys, or those that the first query sees, end at the edge of a step."""
    lengths = {
        (q_len, edge + further)
        for q_len in (1, 2, 33, 130)
        for step in STEPS
        for edge in (step, 2 * step)
        for further in (-q_len, -1, 0, 1, q_len)
    }
    return sorted((q_len, kv_len) for q_len, kv_len in lengths if kv_len >= q_len)


@pytest.mark.parametrize("group", [1, 4, 16])
@pytest.mark.parametrize("layer", LAYERS)
def test_lengths_at_every_edge(family_and_dims, layer, group):
    """Fused and one side after the other, which have kernels of their own."""
    family, dims = family_and_dims
    q_lens, kv_lens = (list(each) for each in zip(*edge_lengths(), strict=True))
    case = Case(q_lens, kv_lens, group=group, seed=group, **LAYERS[layer], **dims)
    for policy in (family, f"{family}-serial"):
        checked(case, policy)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("window", [None, 0, 17, 100])
def test_windows_sinks_and_caps_together(family_and_dims, layer, window):
    family, dims = family_and_dims
    q_lens = [300, *[1] * 20, 2, 3, 64, 130, 0, 9]
    kv_lens = [900, *range(90, 1000, 46), 700, 130, 64, 129, 50, 2000]
    case = Case(
        q_lens, kv_lens, window_left=window, has_sinks=True, seed=3, **LAYERS[layer], **dims
    )
    for policy in (family, f"{family}-serial"):
        checked(case, policy)


@pytest.mark.parametrize("num_kv_heads", [1, 3])
def test_requests_alone_are_split_and_merged(family_and_dims, num_kv_heads):
    family, dims = family_and_dims
    for seed, (q_len, kv_len) in enumerate([(1, 9000), (3, 4166), (200, 6000)]):
        heads = {"num_kv_heads": num_kv_heads, "has_sinks": True}
        checked(Case([q_len], [kv_len], seed=seed, **heads, **PAGES, **dims), family)


@pytest.mark.parametrize("seed", range(4))
def test_random_batches(family_and_dims, seed):
    family, dims = family_and_dims
    rng = np.random.default_rng(seed)
    num = int(rng.integers(1, 24))
    q_lens = np.where(rng.random(num) < 0.7, rng.integers(0, 4, num), rng.integers(1, 300, num))
    kv_lens = q_lens + rng.integers(0, rng.choice([40, 700, 3000]), num)
    case = Case(
        q_lens.tolist(),
        kv_lens.tolist(),
        num_kv_heads=int(rng.choice([1, 2, 3])),
        group=int(rng.choice([1, 3, 8])),
        has_sinks=bool(seed % 2),
        seed=seed,
        **list(LAYERS.values())[seed % 3],
        **dims,
    )
    checked(case, family, deterministic=seed == 3)


def test_trees_and_full_masks(family_and_dims):
    family, dims = family_and_dims
    for more in ({"has_trees": True}, {"causal": False}):
        checked(Case([5, 1, 90, 17], [400, 65, 90, 700], **more, **PAGES, **dims), family)


def test_results_stay_within_their_heads(family_and_dims):
    family, dims = family_and_dims
    case = Case([1, 70, 2], [3000, 200, 129], **PAGES, **dims)
    check_stays_within_heads(case, family, allowed_steps=ALLOWED_STEPS)


def test_keys_and_values_are_views_of_one_tensor(family_and_dims):
    """As `[..., head_dim + v_head_dim]`, in both layouts; the second run goes the short way."""
    family, dims = family_and_dims
    head_dim = dims["head_dim"]
    case = Case([1, 70, 2, 300], [3000, 200, 129, 700], **PAGES, **dims)
    q, k, v = inputs_on_gpu(case)
    one = cupy.concatenate((k.view(np.uint16), v.view(np.uint16)), axis=-1).view(k.dtype)
    for kv_layout in ("NHD", "HND"):
        caches = one[..., :head_dim], one[..., head_dim:]
        if kv_layout == "HND":
            caches = tuple(cache.transpose(0, 2, 1, 3) for cache in caches)
        attention = HybridAttention(**case.layer_arguments, kv_layout=kv_layout, policy=family)
        attention.plan(*case.lengths, block_table=cupy.asarray(case.block_table))
        for _ in range(2):
            out = attention.run(q, *caches)
            case.check(out.get(), allowed_steps=ALLOWED_STEPS)


def test_replays_compute_the_planned_batch(family_and_dims):
    family, dims = family_and_dims
    server = Server(family, {**dims, "has_sinks": True})
    for size in SIZES:
        server.capture(size)
    server.capture(SIZES[0], decodes_only=True)
    rng = np.random.default_rng(1)
    for step, kind in enumerate(("mixed", "decode", "prefill", "empty", "mixed", "decode")):
        size = SIZES[step % 2]
        case = server.case(*random_lengths(rng, kind, size), seed=step)
        server.step(case, size, decodes_only=kind == "decode" and size == SIZES[0])


def test_new_keys_and_values_go_to_their_pages():
    """As a layer with both in one projection has them; the second write goes the short way."""
    tokens, heads, pages, page_size = 300, 3, 30, 16
    rng = np.random.default_rng(0)
    new = cupy.asarray(rng.integers(0, 1 << 14, (tokens, heads, 320)).astype(np.uint16))
    k, v = (part.view(np.float16) for part in (new[..., :192], new[..., 192:]))
    slots = cupy.asarray(rng.permutation(pages * page_size)[:tokens])
    for _ in range(2):
        k_cache, v_cache = (
            cupy.zeros((pages, page_size, heads, width), np.float16) for width in (192, 128)
        )
        write_cache(k, v, k_cache, v_cache, slots)
        for part, cache in ((k, k_cache), (v, v_cache)):
            rows = cache.reshape(pages * page_size, heads, -1)
            assert (bits(rows[slots]) == bits(part)).all()
            assert int(cupy.count_nonzero(rows)) == int(cupy.count_nonzero(part))


def test_what_auto_takes():
    for head_dim, v_head_dim in ((192, 128), (128, 64), (256, 248), (40, 32)):
        case = Case([1, 2, 130], [1500, 129, 140], head_dim=head_dim, v_head_dim=v_head_dim)
        checked(case, "auto")
