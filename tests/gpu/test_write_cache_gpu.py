"""`write_cache` on a GPU, and attention over caches as vLLM lays them out."""

import numpy as np
import pytest
from attention_case import Case
from gpu_support import bits, from_torch, skip_without_hopper, to_torch

import podrt

cupy = pytest.importorskip("cupy")

PAGES, PAGE_SIZE, HEADS = 40, 16, 4
TOKENS = 300


def new_tokens(head_dim):
    """Keys, values and something else as parts of one projection, on the host."""
    rng = np.random.default_rng(head_dim)
    return rng.standard_normal((TOKENS, 3 * HEADS, head_dim)).astype(np.float16)


def slots():
    """Different places of the cache, with padding among them."""
    rng = np.random.default_rng(1)
    chosen = rng.permutation(PAGES * PAGE_SIZE)[:TOKENS].astype(np.int64)
    chosen[rng.random(TOKENS) < 0.1] = -1
    chosen[-1] = PAGES * PAGE_SIZE  # the first that there is not
    return chosen


def vllm_caches(torch, layout, pages, page_size, heads, head_dim, dtype):
    """Keys and values [pages, page_size, heads, D] in one memory, full of ones."""
    shape = {
        "NHD": (pages, page_size, heads, 2 * head_dim),
        "HND": (pages, heads, page_size, 2 * head_dim),
    }[layout]
    memory = torch.ones(shape, dtype=dtype, device="cuda")
    axes = memory if layout == "NHD" else memory.transpose(1, 2)
    return axes.split(head_dim, dim=-1)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("head_dim", [40, 64, 96, 128, 192, 256])
def test_tensors_of_torch(head_dim, dtype, layout):
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    both = torch.from_numpy(new_tokens(head_dim)).cuda().to(kind)
    k, v = both[:, :HEADS], both[:, HEADS : 2 * HEADS]
    k_cache, v_cache = vllm_caches(torch, layout, PAGES, PAGE_SIZE, HEADS, head_dim, kind)
    wanted = [cache.clone() for cache in (k_cache, v_cache)]
    for new, cache in zip((k, v), wanted, strict=True):
        for token, slot in enumerate(slots().tolist()):
            if 0 <= slot < PAGES * PAGE_SIZE:
                cache[slot // PAGE_SIZE, slot % PAGE_SIZE] = new[token]
    where = torch.from_numpy(slots()).cuda()
    for count in (1, TOKENS, 7, TOKENS):  # the long way, then the short one
        podrt.write_cache(k, v, k_cache, v_cache, where[:count])
    assert torch.equal(k_cache, wanted[0])
    assert torch.equal(v_cache, wanted[1])


def test_arrays_of_cupy():
    both = cupy.asarray(new_tokens(64))
    k, v = both[:, :HEADS], both[:, HEADS : 2 * HEADS]
    caches = [cupy.ones((PAGES, PAGE_SIZE, HEADS, 64), np.float16) for _ in range(2)]
    on_host = [cupy.asnumpy(cache) for cache in caches]
    for _ in range(2):
        podrt.write_cache(k, v, *caches, cupy.asarray(slots()))
    podrt.write_cache(cupy.asnumpy(k), cupy.asnumpy(v), *on_host, slots())
    for cache, wanted in zip(caches, on_host, strict=True):
        np.testing.assert_array_equal(bits(cache), bits(wanted))


def test_a_captured_write_reads_its_tensors_at_every_replay():
    torch = pytest.importorskip("torch")
    both = torch.from_numpy(new_tokens(128)).cuda()
    k, v = both[:, :HEADS], both[:, HEADS : 2 * HEADS]
    k_cache, v_cache = vllm_caches(torch, "NHD", PAGES, PAGE_SIZE, HEADS, 128, torch.float16)
    where = torch.full((TOKENS,), -1, dtype=torch.int64, device="cuda")
    podrt.write_cache(k, v, k_cache, v_cache, where)  # compiled and loaded
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        podrt.write_cache(k, v, k_cache, v_cache, where)
    assert (k_cache == 1).all()
    where[0] = 35
    both.mul_(2)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(k_cache[2, 3], k[0])
    assert torch.equal(v_cache[2, 3], v[0])
    k_cache[2, 3] = v_cache[2, 3] = 1
    assert (k_cache == 1).all() and (v_cache == 1).all()


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("policy", ["hopper", "portable"])
def test_attention_over_vllms_cache(policy, page_size, layout):
    """Bit for bit what it is over caches of their own."""
    torch = pytest.importorskip("torch")
    if policy == "hopper":
        skip_without_hopper()
    case = Case([1, 70, 1, 200], [900, 300, 33, 200], page_size=page_size, seed=3)
    q, k, v = (to_torch(array) for array in (case.q, case.k_cache, case.v_cache))
    pages, _, heads, head_dim = k.shape
    k_cache, v_cache = vllm_caches(torch, layout, pages, page_size, heads, head_dim, torch.bfloat16)
    every = torch.arange(pages * page_size, device="cuda")
    rows = [x.reshape(-1, heads, head_dim) for x in (k, v)]
    podrt.write_cache(*rows, k_cache, v_cache, every)
    attention = podrt.HybridAttention(**case.layer_arguments, policy=policy)
    table = torch.from_numpy(case.block_table).cuda()
    attention.plan(*case.lengths, block_table=table)
    out = attention.run(q, k_cache, v_cache)
    assert {variant.family for variant in attention.variants} == {policy}
    wanted = attention.run(q, *(to_torch(x) for x in (case.k_cache, case.v_cache)))
    dtype = case.q.dtype
    np.testing.assert_array_equal(bits(from_torch(out, dtype)), bits(from_torch(wanted, dtype)))
    case.check(from_torch(out, dtype))
