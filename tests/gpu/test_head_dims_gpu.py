"""Head dims that tiles are padded for in shared memory, of both families, against float64.

Neighbouring heads are NaN, or other heads: what is read or written behind a head shows.
"""

from __future__ import annotations

import numpy as np
import pytest
from attention_case import Case, poisoned, run
from edge_case import EdgeCase
from edge_case import edge_lengths as all_edge_lengths
from gpu_support import check_stays_within_heads, inputs_on_gpu, skip_without_hopper

from podrt import HybridAttention
from podrt.gpu.device import current_device
from podrt.jit import build_many
from podrt.kernels.families import source_of
from podrt.kernels.hopper.config import DECODE_ROWS, HOPPER_ARCH
from podrt.kernels.hopper.config import HEAD_DIMS as HOPPER_HEAD_DIMS
from podrt.policy.policies import parse_policy
from podrt.policy.schedule import Scheduler
from podrt.spec.types import HEAD_DIMS

cupy = pytest.importorskip("cupy")

#: With half a product's columns behind whole ones, and without.
CHOSEN = (32, 40, 72, 80, 96, 112, 120, 136, 192, 248)
#: Keys of a tile or step of one family or the other.
STEPS = (48, 64, 80, 96, 112, 128)
ALLOWED_STEPS = 3
CASES = [("portable", head_dim) for head_dim in CHOSEN] + [
    ("hopper", head_dim) for head_dim in CHOSEN if head_dim in HOPPER_HEAD_DIMS
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}", scope="module")
def family_and_dim(request):
    family, head_dim = request.param
    if family == "hopper":
        skip_without_hopper()
    compile_side_by_side(family, head_dim)
    return request.param


def compile_side_by_side(family, head_dim):
    """One after the other, when a batch needs them, would take most of the time."""
    gpu, variants = current_device(), set()
    for layer in layers(head_dim):
        spec = HybridAttention(**Case([], [], **layer).layer_arguments).layer
        scheduler = Scheduler(spec, gpu, parse_policy(family))
        for decode_rows in DECODE_ROWS if gpu.arch.name == HOPPER_ARCH else (16,):
            variants.update(scheduler.variants(decode_rows))
    build_many([source_of(variant) for variant in variants])


def layers(head_dim):
    """Few, as each has kernels of its own."""
    return (
        {"dtype": "bfloat16", "head_dim": head_dim, "page_size": 16},
        {"dtype": "float16", "head_dim": head_dim, "page_size": None, "logits_soft_cap": 30.0},
    )


def checked(case, policy, record_property=None, **arguments):
    attention = HybridAttention(**case.layer_arguments, policy=policy)
    steps, lse_error = case.check(*run(case, attention, **arguments), allowed_steps=ALLOWED_STEPS)
    if record_property:
        record_property("error_steps", steps)
        record_property("lse_error", lse_error)
    return attention


def edge_lengths():
    """Requests whose keys, or those that the first query sees, end at the edge of a step."""
    lengths = {
        (q_len, edge + further)
        for q_len in (1, 2, 7, 33, 130)
        for step in STEPS
        for edge in (step, 2 * step)
        for further in (-q_len, -1, 0, 1, q_len)
    }
    return sorted((q_len, kv_len) for q_len, kv_len in lengths if kv_len >= q_len)


@pytest.mark.parametrize("group", [1, 4, 8])
@pytest.mark.parametrize("layer", [0, 1])
def test_lengths_at_every_edge(family_and_dim, layer, group, record_property):
    """Fused and one side after the other, which have kernels of their own."""
    family, head_dim = family_and_dim
    lengths = edge_lengths()[:: 1 if layer == 0 else 3]
    q_lens, kv_lens = (list(each) for each in zip(*lengths, strict=True))
    case = Case(
        q_lens,
        kv_lens,
        num_kv_heads=2,
        group=group,
        seed=head_dim + group,
        **layers(head_dim)[layer],
    )
    for policy in (family, f"{family}-serial"):
        attention = checked(case, policy, record_property)
        assert {config.head_dim for config in attention.variants} == {head_dim}


def test_scores_that_grow_at_every_edge(family_and_dim, record_property):
    """Requests share their keys, so that there are many more lengths."""
    family, head_dim = family_and_dim
    q_lens, kv_lens = (list(each) for each in zip(*all_edge_lengths(), strict=True))
    case = EdgeCase(q_lens, kv_lens, num_kv_heads=1, group=4, seed=head_dim, **layers(head_dim)[0])
    for policy in (family, f"{family}-serial"):
        checked(case, policy, record_property, strided=False)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("window", [None, 0, 17, 100, 1000])
def test_windows_sinks_and_caps_together(family_and_dim, layer, window):
    family, head_dim = family_and_dim
    q_lens = [300, *[1] * 20, 2, 3, 64, 130, 0, 9]
    kv_lens = [900, *range(90, 1000, 46), 700, 130, 64, 129, 50, 2000]
    case = Case(
        q_lens,
        kv_lens,
        group=4,
        window_left=window,
        has_sinks=True,
        seed=head_dim,
        **layers(head_dim)[layer],
    )
    for policy in (family, f"{family}-serial"):
        checked(case, policy)


@pytest.mark.parametrize("num_kv_heads", [1, 3])
def test_requests_alone_are_split_and_merged(family_and_dim, num_kv_heads):
    family, head_dim = family_and_dim
    for seed, (q_len, kv_len) in enumerate([(1, 9000), (3, 4166), (200, 6000)]):
        case = Case(
            [q_len],
            [kv_len],
            num_kv_heads=num_kv_heads,
            has_sinks=True,
            seed=seed,
            **layers(head_dim)[0],
        )
        checked(case, family)


@pytest.mark.parametrize("seed", range(6))
def test_random_batches(family_and_dim, seed):
    family, head_dim = family_and_dim
    rng = np.random.default_rng(seed + head_dim)
    num = int(rng.integers(1, 24))
    q_lens = np.where(rng.random(num) < 0.7, rng.integers(0, 4, num), rng.integers(1, 300, num))
    kv_lens = q_lens + rng.integers(0, rng.choice([40, 700, 3000]), num)
    kv_lens[rng.random(num) < 0.1] = 0
    case = Case(
        q_lens.tolist(),
        kv_lens.tolist(),
        num_kv_heads=int(rng.choice([1, 2, 3])),
        group=int(rng.choice([1, 3, 5, 8, 16])),
        window_left=None if rng.random() < 0.5 else int(rng.choice([0, 5, 64, 100, 511])),
        has_sinks=bool(rng.random() < 0.5),
        seed=seed,
        **layers(head_dim)[seed % 2],
    )
    checked(case, family)


def test_results_stay_within_their_heads(family_and_dim):
    family, head_dim = family_and_dim
    case = Case([1, 70, 2], [3000, 200, 129], **layers(head_dim)[0])
    check_stays_within_heads(case, family, allowed_steps=ALLOWED_STEPS)


def test_keys_and_values_are_views_of_one_tensor(family_and_dim):
    """Heads are any multiple of 16 bytes apart, with NaN between keys and values."""
    family, head_dim = family_and_dim
    if family == "hopper" and head_dim % 64 == 0:
        pytest.skip("the maps of whole blocks step over heads by blocks")
    case = Case([1, 70, 2, 300], [3000, 200, 129, 700], has_sinks=True, **layers(head_dim)[0])
    q, k, v = inputs_on_gpu(case)
    one = poisoned((*k.shape[:3], 2 * (head_dim + 8)), case.k_cache.dtype)
    k_view, v_view = one[..., :head_dim], one[..., head_dim + 8 : 2 * head_dim + 8]
    k_view[:], v_view[:] = k, v
    attention = HybridAttention(**case.layer_arguments, policy=family)
    attention.plan(*case.lengths, block_table=cupy.asarray(case.block_table))
    out, lse = poisoned(q.shape, case.q.dtype), poisoned(q.shape[:2], np.float32)
    attention.run(q, k_view, v_view, out=out, lse=lse, sinks=cupy.asarray(case.sinks))
    case.check(out.get(), lse.get(), allowed_steps=ALLOWED_STEPS)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_every_head_dim(head_dim):
    """Those of the family that `auto` takes."""
    case = Case(
        [1, 2, 70, 130], [1500, 129, 400, 140], has_sinks=True, seed=head_dim, **layers(head_dim)[0]
    )
    checked(case, "auto")
    checked(case, "portable")


def test_pages_of_other_sizes():
    for page_size in (1, 24, 64):
        for head_dim in (40, 96, 192):
            case = Case([1, 65, 200], [1000, 65, 777], head_dim=head_dim, page_size=page_size)
            checked(case, "auto")
