"""Pages of any size and caches that lie anyhow, of both families, against float64.

On the Hopper family pages of no groups of 8 tokens are gathered row by row, others come by TMA.
"""

from __future__ import annotations

import numpy as np
import pytest
from attention_case import Case, inside_larger, poisoned, run, to_gpu
from edge_case import EdgeCase, edge_lengths
from gpu_support import bits, skip_without_hopper
from graph_server import SIZES, Server, random_lengths

from podrt import HybridAttention

cupy = pytest.importorskip("cupy")

#: Gathered: one token, powers of two, and sizes that divide no tile.
GATHERED = (1, 2, 4, 3, 12, 100)
#: By TMA in pieces of 8 rows.
IN_GROUPS = (8, 24, 40, 1000)
FORMS = ("hopper", "hopper-serial", "decode-only=40", "prefill-only=40")
LENGTHS = [1, 65, 200, 1, 2, 0, 3, 130], [1000, 65, 777, 17, 129, 5, 700, 2300]
ALLOWED_STEPS = 3


def checked(case, policy, **arguments):
    attention = HybridAttention(**case.layer_arguments, policy=policy)
    case.check(*run(case, attention, **arguments), allowed_steps=ALLOWED_STEPS)
    return attention


def test_auto_serves_pages_of_any_size_by_hopper():
    skip_without_hopper()
    for page_size in (*GATHERED, *IN_GROUPS):
        attention = checked(Case(*LENGTHS, page_size=page_size, seed=page_size), "auto")
        assert {config.family for config in attention.variants} == {"hopper"}


@pytest.mark.parametrize("head_dim", [80, 96, 112, 192])
@pytest.mark.parametrize("page_size", [1, 4, 12, 8])
def test_other_heads(family, head_dim, page_size):
    for policy in (family, f"{family}-serial"):
        checked(Case(*LENGTHS, head_dim=head_dim, page_size=page_size, seed=head_dim), policy)


@pytest.mark.parametrize("page_size", [*GATHERED, *IN_GROUPS])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_ragged_batches(family, dtype, head_dim, page_size):
    for group in (1, 4, 7):
        case = Case(
            *LENGTHS, dtype=dtype, head_dim=head_dim, page_size=page_size, group=group, seed=group
        )
        checked(case, family)


@pytest.mark.parametrize("page_size", [1, 4, 8, 12])
@pytest.mark.parametrize("group", [1, 5, 8])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_every_edge(family, head_dim, group, page_size):
    """Fused and one side after the other, which have kernels of their own."""
    q_lens, kv_lens = zip(*edge_lengths(), strict=True)
    case = EdgeCase(
        list(q_lens),
        list(kv_lens),
        num_kv_heads=2 if group == 1 else 1,
        group=group,
        head_dim=head_dim,
        page_size=page_size,
    )
    for policy in (family, f"{family}-serial"):
        checked(case, policy, strided=False)


@pytest.mark.parametrize("policy", FORMS)
@pytest.mark.parametrize("page_size", [1, 4, 12])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_lanes_change_roles_and_keys_are_split(head_dim, page_size, policy):
    """More decode units than lanes, a long prefill, and keys in splits."""
    skip_without_hopper()
    lengths = [(700, 3000), (9, 9000), *[(1 + i % 4, 300 + 67 * i) for i in range(60)]]
    q_lens, kv_lens = (list(each) for each in zip(*lengths, strict=True))
    case = Case(q_lens, kv_lens, num_kv_heads=4, head_dim=head_dim, page_size=page_size, seed=13)
    checked(case, policy)


@pytest.mark.parametrize("page_size", [1, 4, 8])
def test_long_prefill_alone_has_large_tiles(page_size):
    skip_without_hopper()
    case = Case([300, 150], [5003, 4801], num_kv_heads=8, page_size=page_size, seed=12)
    assert [config.kv_tile for config in checked(case, "auto").variants] == [176]


@pytest.mark.parametrize("group", [9, 20, 71])
@pytest.mark.parametrize("page_size", [1, 12])
def test_wide_heads_of_large_groups(family, page_size, group):
    """Where rows are gathered, decode tiles of head_dim 256 have 8 rows."""
    layer = {"head_dim": 256, "page_size": page_size, "num_kv_heads": 1, "group": group}
    checked(Case([1, 1, 2, 30, 1], [1000, 16, 50, 90, 4000], seed=group, **layer), family)


@pytest.mark.parametrize("page_size", [1, 4, 12])
@pytest.mark.parametrize("window", [0, 1, 3, 4, 11, 12, 13, 63, 64, 65, 129])
def test_windows_at_every_edge(family, window, page_size):
    lengths = {
        (q_len, window + q_len + further)
        for q_len in (1, 2, 8, 33)
        for further in (-1, 0, 1, 2, 63, 64, 65, 111, 112, 113, 127, 128, 129)
    }
    q_lens, kv_lens = zip(*sorted(each for each in lengths if each[1] >= 0), strict=True)
    layer = {"page_size": page_size, "window_left": window, "has_sinks": window % 2 == 0}
    for policy in (family, f"{family}-serial"):
        checked(Case(list(q_lens), list(kv_lens), seed=window, **layer), policy)


@pytest.mark.parametrize("page_size", [1, 4, 12])
@pytest.mark.parametrize("cap", [None, 20.0])
def test_trees(family, cap, page_size):
    layer = {"page_size": page_size, "has_trees": True, "logits_soft_cap": cap}
    case = Case([1, 8, 20, 64, 3, 0, 2], [700, 129, 1000, 64, 2300, 9, 257], seed=3, **layer)
    for policy in (family, f"{family}-serial"):
        checked(case, policy)


@pytest.mark.parametrize("seed", range(24))
def test_random_layers(family, seed):
    """Windows, caps, sinks, masks, heads and pages together."""
    rng = np.random.default_rng(seed)
    num = int(rng.integers(1, 20))
    q_lens = np.where(rng.random(num) < 0.7, rng.integers(0, 4, num), rng.integers(1, 300, num))
    kv_lens = q_lens + rng.integers(0, rng.choice([40, 700, 1500]), num)
    kv_lens[rng.random(num) < 0.1] = 0
    case = Case(
        q_lens.tolist(),
        kv_lens.tolist(),
        num_kv_heads=int(rng.choice([1, 2, 3])),
        group=int(rng.choice([1, 4, 5, 8])),
        head_dim=(64, 128, 256)[seed % 3],
        dtype=("bfloat16", "float16")[seed // 3 % 2],
        page_size=(1, 4, 12, 8)[seed // 6],
        causal=seed % 4 != 3,
        window_left=None if seed % 5 == 4 else int(rng.choice([0, 5, 64, 100, 511, 2000])),
        logits_soft_cap=(None, 20.0)[seed % 2],
        has_sinks=bool(rng.random() < 0.6),
        sm_scale=float(rng.choice([0.05, 0.3])),
        seed=seed,
    )
    checked(case, family)


def split_tokens(case):
    """[pages, 2, page_size, heads, head_dim]: keys before values in every page."""
    both = np.stack([case.k_cache, case.v_cache], axis=1)
    return [to_gpu(both)[:, part] for part in range(2)]


def beside_each_other(case):
    """[pages, heads, page_size, 2 * head_dim], as tensors in the order of "NHD"."""
    both = np.concatenate([case.k_cache, case.v_cache], axis=3).transpose(0, 2, 1, 3)
    on_gpu = to_gpu(np.ascontiguousarray(both)).transpose(0, 2, 1, 3)
    return on_gpu[..., : case.head_dim], on_gpu[..., case.head_dim :]


def heads_outside(case):
    """[heads, pages, page_size, head_dim]."""
    caches = (case.k_cache, case.v_cache)
    return [
        to_gpu(np.ascontiguousarray(cache.transpose(2, 0, 1, 3))).transpose(1, 2, 0, 3)
        for cache in caches
    ]


def unlike_each_other(case):
    """Keys with gaps between heads, values with gaps between pages."""
    return inside_larger(case.k_cache, 2), inside_larger(case.v_cache, 0)


def rows_at_odd_distances(case):
    """Each a multiple of 16 bytes from the next, and no more."""
    return [_wider(cache, 8) for cache in (case.k_cache, case.v_cache)]


def _wider(array, elements):
    larger = poisoned((*array.shape[:-1], array.shape[-1] + elements), array.dtype)
    larger.view(np.uint16)[..., : array.shape[-1]] = cupy.asarray(array.view(np.uint16))
    return larger[..., : array.shape[-1]]


LAYOUTS = [
    split_tokens,
    beside_each_other,
    heads_outside,
    unlike_each_other,
    rows_at_odd_distances,
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("page_size", [1, 4, 12, 8, 16])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_caches_are_read_where_they_lie(family, head_dim, page_size, layout):
    case = Case(*LENGTHS, head_dim=head_dim, page_size=page_size, seed=page_size)
    policy = family
    if layout is rows_at_odd_distances and page_size % 8 == 0:
        policy = "auto"  # no tensor map of the Hopper family has such heads
    attention = HybridAttention(**case.layer_arguments, policy=policy)
    attention.plan(*case.lengths, block_table=cupy.asarray(case.block_table))
    out = poisoned(case.q.shape, case.q.dtype)
    attention.run(to_gpu(case.q), *layout(case), out=out)
    case.check(out.get(), allowed_steps=ALLOWED_STEPS)


@pytest.mark.usefixtures("much_memory")
@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_caches_beyond_32_bits(family, page_size):
    """Keys and values in one tensor of more than 2^32 elements, and pages all over it."""
    case = Case(*LENGTHS, num_kv_heads=8, group=1, page_size=page_size, seed=page_size)
    page = (page_size, 8, case.head_dim)
    num_pages = 2**32 // (2 * int(np.prod(page))) + 1000
    nbytes = 4 * num_pages * int(np.prod(page))
    if cupy.cuda.runtime.memGetInfo()[0] < nbytes + 2**30:
        pytest.skip("the GPU has not enough memory left")
    both = poisoned((num_pages, 2, *page), case.q.dtype)
    rng = np.random.default_rng(page_size)
    far = rng.choice(num_pages - 5, len(case.k_cache), replace=False)
    far[rng.permutation(len(far))[:5]] = np.arange(num_pages - 5, num_pages)
    for part, cache in enumerate((case.k_cache, case.v_cache)):
        for number, keys in zip(far, cupy.asarray(cache.view(np.uint16)), strict=True):
            both.view(np.uint16)[number, part] = keys
    known = case.block_table < len(far)
    table = np.where(known, far[np.where(known, case.block_table, 0)], case.block_table)
    attention = HybridAttention(**case.layer_arguments, policy=family)
    attention.plan(*case.lengths, block_table=cupy.asarray(table.astype(np.int32)))
    out = poisoned(case.q.shape, case.q.dtype)
    attention.run(to_gpu(case.q), both[:, 0], both[:, 1], out=out)
    case.check(out.get(), allowed_steps=ALLOWED_STEPS)
    del both, out
    cupy.get_default_memory_pool().free_all_blocks()


@pytest.mark.parametrize("page_size", [1, 4])
def test_runs_give_the_same_bits(page_size):
    """Again and again: a slot that is read before its rows are there would differ now and then."""
    skip_without_hopper()
    lengths = [(500, 3000), *[(1, 600 + 7 * i) for i in range(150)]]
    q_lens, kv_lens = (list(each) for each in zip(*lengths, strict=True))
    case = Case(q_lens, kv_lens, num_kv_heads=4, page_size=page_size, seed=4)
    for policy in FORMS:
        attention = HybridAttention(**case.layer_arguments, policy=policy)
        expected, lse = run(case, attention)
        case.check(expected, lse, allowed_steps=ALLOWED_STEPS)
        inputs = [to_gpu(array) for array in (case.q, case.k_cache, case.v_cache)]
        for _ in range(50):
            assert (bits(attention.run(*inputs)) == bits(expected)).all()


@pytest.mark.parametrize("page_size", [1, 4, 12])
def test_graphs(family, page_size):
    layer = {"page_size": page_size, "window_left": 100, "has_sinks": True}
    server, rng = Server(family, layer), np.random.default_rng(page_size)
    for size in SIZES:
        server.capture(size)
    for step in range(9):
        kind, size = ("mixed", "decode", "prefill")[step % 3], SIZES[step % 2]
        server.step(server.case(*random_lengths(rng, kind, size), seed=step), size)
