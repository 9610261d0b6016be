"""The kernels against the float64 reference."""

import ml_dtypes
import numpy as np
import pytest
from attention_case import Case, inside_larger, poisoned, run, to_gpu

from podrt import HybridAttention, hybrid_attention
from podrt.errors import UnsupportedConfigError
from podrt.gpu.device import current_device

cupy = pytest.importorskip("cupy")

Q_LENS = (1, 2, 17, 512)
KV_LENS = (1, 15, 16, 17, 1000, 4096)
#: Every query length over every key length that can hold it, and requests of zero length.
ALL_LENGTHS = [(q, kv) for kv in KV_LENS for q in Q_LENS if q <= kv] + [(0, 100), (0, 0), (1, 0)]


def ragged(lengths=ALL_LENGTHS, **arguments):
    order = np.random.default_rng(7).permutation(len(lengths))
    q_lens, kv_lens = zip(*(lengths[i] for i in order), strict=True)
    return Case(list(q_lens), list(kv_lens), **arguments)


def skip_without_hopper():
    if current_device().arch.name != "sm_90a":
        pytest.skip("the Hopper family needs an sm_90a GPU")


def checked(case, record_property=None, *, policy="auto", **arguments):
    attention = HybridAttention(**case.layer_arguments, policy=policy)
    steps, lse_error = case.check(*run(case, attention, **arguments))
    if record_property:
        record_property("error_steps", steps)
        record_property("lse_error", lse_error)
    return attention


@pytest.mark.parametrize("page_size", [None, 16])
@pytest.mark.parametrize("group", [1, 3, 4, 7, 8, 16])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_ragged_batch(family, dtype, head_dim, group, page_size, record_property):
    case = ragged(
        dtype=dtype,
        head_dim=head_dim,
        group=group,
        page_size=page_size,
        num_kv_heads=2 if group <= 4 else 1,
        seed=group * head_dim,
    )
    attention = checked(case, record_property, policy=family)
    assert [(config.form, config.family) for config in attention.variants] == [("pod", family)]


POLICIES = [
    "50:50",
    "1:3",
    "8:1",
    "proportional",
    "serial",
    "portable-serial",
    "auto",
    "decode-only=1",
    "decode-only=1000",
    "prefill-only=1",
    "prefill-only=1000",
]


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_agree_with_the_reference(policy, record_property):
    if "-only=" in policy:
        skip_without_hopper()
    checked(ragged(seed=11), record_property, policy=policy)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("causal", [True, False])
def test_many_heads(family, head_dim, causal):
    case = Case([700, 1, 333, 1, 1], [2000, 900, 333, 17, 4100], num_kv_heads=8, group=4,
                head_dim=head_dim, causal=causal, seed=head_dim)  # fmt: skip
    checked(case, policy=family)


@pytest.mark.parametrize("sm_scale", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_scores_of_all_sizes(family, dtype, sm_scale):
    """Large ones outgrow what rows refer to, far beyond the range of a float."""
    lengths = [(300, 3000), (40, 2000), (2, 700), (1, 5000)]
    checked(ragged(lengths, dtype=dtype, sm_scale=sm_scale, seed=3), policy=family)


@pytest.mark.parametrize("policy", ["portable", "hopper", "decode-only=40", "prefill-only=40"])
def test_decode_lanes_take_over_from_prefill(policy):
    """More decode units than the lanes that are free while a long prefill runs."""
    if policy != "portable":
        skip_without_hopper()
    lengths = [(700, 3000), *[(1, 600 + 7 * i) for i in range(150)]]
    checked(ragged(lengths, num_kv_heads=4, seed=4), policy=policy)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("group", [1, 16, 32])
def test_prefill_takes_over_from_decode(head_dim, group):
    """More prefill units than SMs, none of which begins with prefill."""
    skip_without_hopper()
    lengths = [(3000, 3300), (700, 3000), *[(1, 600 + 7 * i) for i in range(20)]]
    num_kv_heads = 8 if group == 1 else 1
    case = ragged(lengths, num_kv_heads=num_kv_heads, group=group, head_dim=head_dim, seed=9)
    checked(case, policy="decode-only=1000")


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("page_size", [None, 16, 64, 256])
def test_long_prefill_alone_has_large_tiles(page_size, causal):
    skip_without_hopper()
    lengths = [(300, 5003), (150, 4801)]
    layer = {"num_kv_heads": 8, "group": 4, "page_size": page_size, "causal": causal}
    attention = checked(ragged(lengths, seed=12, **layer))
    assert [config.kv_tile for config in attention.variants] == [176]


@pytest.mark.parametrize("causal", [True, False])
def test_more_queries_than_keys(family, causal):
    lengths = [(40, 7), (3, 2), (20, 20), (1, 300), (600, 130)]
    checked(ragged(lengths, causal=causal, seed=5), policy=family)


@pytest.mark.parametrize("page_size", [32, 64, 128, 256])
def test_other_page_sizes(page_size):
    lengths = [(1, 1000), (65, 65), (200, 777), (1, 17)]
    for policy in ("auto", "portable"):
        checked(ragged(lengths, page_size=page_size, seed=page_size), policy=policy)


@pytest.mark.parametrize("q_len", [2, 3, 4, 8, 9])
@pytest.mark.parametrize("group", [1, 4, 8])
def test_speculative_tokens(family, group, q_len):
    lengths = [(q_len, 900), (q_len, q_len), (q_len, 65), (1, 100), (300, 500)]
    checked(ragged(lengths, group=group, seed=q_len), policy=family)


@pytest.mark.parametrize("head_dim", [128, 256])
@pytest.mark.parametrize("group", [20, 32, 71])
def test_groups_beyond_one_decode_tile(family, group, head_dim):
    lengths = [(1, 1000), (1, 16), (2, 50), (30, 90)]
    case = ragged(lengths, group=group, num_kv_heads=1, head_dim=head_dim, seed=group)
    checked(case, policy=family)


@pytest.mark.parametrize("policy", ["hopper", "hopper-serial", "decode-only=40", "prefill-only=40"])
@pytest.mark.parametrize("page_size", [None, 16, 64, 256])
def test_tiles_in_two_slots_of_a_ring(page_size, policy):
    """At head_dim 256, with more decode units than lanes and keys in splits."""
    skip_without_hopper()
    lengths = [(700, 3000), (9, 9000), *[(1 + i % 4, 300 + 67 * i) for i in range(60)]]
    layer = {"num_kv_heads": 4, "group": 4, "head_dim": 256, "page_size": page_size}
    checked(ragged(lengths, seed=13, **layer), policy=policy)


@pytest.mark.parametrize(
    ("lengths", "forms"),
    [
        ([(100, 400), (17, 17)], ["prefill"]),
        ([(1, 400), (1, 1), (1, 5000)], ["decode"]),
        ([(0, 10), (0, 0)], []),
        ([], []),
    ],
)
def test_one_side_empty(family, lengths, forms):
    case = Case([q for q, _ in lengths], [kv for _, kv in lengths], seed=3)
    attention = checked(case, policy=family)
    assert [config.form for config in attention.variants] == forms


def test_long_keys_split_over_the_gpu(family):
    case = Case([1, 40, 1], [30000, 20000, 9], num_kv_heads=1, group=8, seed=9)
    attention = checked(case, policy=family)
    plan = attention.current_plan
    assert plan.prefill["num_splits"].max() > 1
    assert plan.decode["num_splits"].max() > 1


@pytest.mark.parametrize("policy", ["ctas=2", "ctas=4", "splits=vanilla", "portable-serial"])
@pytest.mark.parametrize(
    "decodes", [0, 1, 40], ids=["alone", "beside one decode", "beside many decodes"]
)
def test_prefill_is_merged_by_those_without_other_work(decodes, policy):
    """Of a tile's CTAs some wait and some go on, differently in every run; bits stay the same."""
    kv_lens = [4096, 9000, 130] + [3000] * decodes
    case = Case([300, 90, 130] + [1] * decodes, kv_lens, num_kv_heads=1, group=8, seed=12)
    attention = checked(case, policy=policy)
    assert attention.current_plan.prefill["num_splits"].max() > 1
    expected, _ = run(case, attention)
    inputs = [to_gpu(x) for x in (case.q, case.k_cache, case.v_cache)]
    for _ in range(30):
        assert (attention.run(*inputs).get().view(np.uint16) == expected.view(np.uint16)).all()


def test_many_runs_of_one_plan_and_of_new_plans(family):
    """Counters must be ready again after every launch, whatever the one before did."""
    attention = HybridAttention(8, 2, 128, page_size=16, policy=family)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        q_lens = [int(q) for q in rng.choice([1, 1, 1, 5, 90], size=rng.integers(1, 20))]
        kv_lens = [q + int(kv) for q, kv in zip(q_lens, rng.integers(0, 3000, 20), strict=False)]
        case = Case(q_lens, kv_lens, seed=seed)
        case.check(*run(case, attention))
        expected, _ = run(case, attention)
        q, k, v = (to_gpu(x) for x in (case.q, case.k_cache, case.v_cache))
        for _ in range(10):
            out = attention.run(q, k, v)
            # Split results merge in order, so equal inputs give equal bits.
            assert (out.get().view(np.uint16) == expected.view(np.uint16)).all()


def test_page_lists_and_hnd_layout():
    case = ragged(seed=4)
    pages = [-(-length // 16) for length in case.kv_lens]
    indices = np.concatenate([row[:n] for row, n in zip(case.block_table, pages, strict=True)])
    indptr = np.concatenate(([0], np.cumsum(pages))).astype(np.int32)
    for on_gpu in (True, False):
        out = hybrid_attention(
            to_gpu(case.q),
            cupy.ascontiguousarray(to_gpu(case.k_cache).view(np.uint16).transpose(0, 2, 1, 3)).view(
                case.q.dtype
            ),
            cupy.ascontiguousarray(to_gpu(case.v_cache).view(np.uint16).transpose(0, 2, 1, 3)).view(
                case.q.dtype
            ),
            *case.lengths,
            kv_indptr=indptr,
            kv_indices=cupy.asarray(indices) if on_gpu else indices,
            kv_layout="HND",
        )
        case.check(out.get())


def test_host_and_strided_block_tables():
    case = ragged(seed=6)
    inputs = [to_gpu(x) for x in (case.q, case.k_cache, case.v_cache)]
    wide = np.full((len(case.kv_lens), case.block_table.shape[1] + 3), -1, np.int32)
    wide[:, : case.block_table.shape[1]] = case.block_table
    for table in (wide, wide[:, :-3], cupy.asarray(wide), cupy.asarray(wide)[:, :-3]):
        out = hybrid_attention(*inputs, *case.lengths, block_table=table)
        case.check(out.get())


def test_strided_outputs_leave_the_gaps_alone():
    case = ragged(seed=8)
    attention = HybridAttention(**case.layer_arguments)
    attention.plan(*case.lengths, block_table=cupy.asarray(case.block_table))
    out = inside_larger(case.q, 1)
    lse = cupy.full((case.num_qo_heads, sum(case.q_lens)), np.nan, np.float32).T
    attention.run(*(to_gpu(x) for x in (case.q, case.k_cache, case.v_cache)), out=out, lse=lse)
    case.check(out.get(), lse.get())
    gaps = out.base.view(np.uint16)[:, 1::2]
    assert (gaps == 0x7FFF).all()


def test_negative_strides_are_served():
    """No tensor map has them, so the choice must fall on the portable family."""
    case = ragged([(1, 700), (50, 90), (3, 130)], seed=13)
    q, k, v = (to_gpu(x) for x in (case.q, case.k_cache[::-1].copy(), case.v_cache[:, ::-1].copy()))
    attention = HybridAttention(**case.layer_arguments)
    attention.plan(*case.lengths, block_table=cupy.asarray(case.block_table))
    case.check(attention.run(q, k[::-1], v[:, ::-1]).get())


def test_heads_at_odd_distances_are_served():
    """Rows of a KV head lie a multiple of 16 bytes apart, as any kernel needs, and no more."""
    case = ragged([(1, 700), (50, 90), (3, 130)], seed=14)
    k, v = (wider(cache, 8) for cache in (case.k_cache, case.v_cache))
    attention = HybridAttention(**case.layer_arguments)
    attention.plan(*case.lengths, block_table=cupy.asarray(case.block_table))
    case.check(attention.run(to_gpu(case.q), k, v).get())


def wider(array, elements):
    """Return a GPU copy whose last axis has so many elements of NaN behind it."""
    larger = poisoned((*array.shape[:-1], array.shape[-1] + elements), array.dtype)
    larger.view(np.uint16)[..., : array.shape[-1]] = cupy.asarray(array.view(np.uint16))
    return larger[..., : array.shape[-1]]


@pytest.mark.parametrize("policy", ["auto", "portable"])
def test_strides_of_axes_of_length_1_do_not_matter(policy):
    case = Case([3], [700], page_size=None, seed=15)
    attention = HybridAttention(**case.layer_arguments, policy=policy)
    attention.plan(*case.lengths)
    q, *caches = (to_gpu(x) for x in (case.q, case.k_cache[:1], case.v_cache[:1]))
    k, v = (
        cupy.lib.stride_tricks.as_strided(cache, cache.shape, (2**33, *cache.strides[1:]))
        for cache in caches
    )
    case.check(attention.run(q, k, v).get())


def test_scale_is_used():
    checked(ragged([(1, 700), (50, 90)], sm_scale=0.01, seed=1))


def test_streams_side_by_side(family):
    cases = [ragged(seed=seed) for seed in (20, 21)]
    attention = HybridAttention(**cases[0].layer_arguments, policy=family)
    attention.plan(*cases[0].lengths, block_table=cupy.asarray(cases[0].block_table))
    inputs = [to_gpu(x) for x in (cases[0].q, cases[0].k_cache, cases[0].v_cache)]
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(3)]
    outs = [[poisoned(cases[0].q.shape, cases[0].q.dtype) for _ in range(8)] for _ in streams]
    cupy.cuda.get_current_stream().synchronize()
    for round_ in range(8):
        for stream, mine in zip(streams, outs, strict=True):
            attention.run(*inputs, out=mine[round_], stream=stream)
    for stream, mine in zip(streams, outs, strict=True):
        stream.synchronize()
        for out in mine:
            cases[0].check(out.get())


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    case = ragged(seed=40)

    def to_torch(array):
        return torch.from_numpy(array.view(np.int16)).cuda().view(torch.bfloat16)

    attention = HybridAttention(**{**case.layer_arguments, "dtype": torch.bfloat16})
    lengths = [torch.from_numpy(np.array(x)).cuda() for x in case.lengths]
    table = torch.from_numpy(case.block_table).cuda()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        inputs = [to_torch(x) for x in (case.q, case.k_cache, case.v_cache)]
        attention.plan(*lengths, block_table=table)
        out, lse = attention.run(*inputs, return_lse=True)
        assert isinstance(out, torch.Tensor)
        assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
        host = out.view(torch.int16).cpu().numpy().view(ml_dtypes.bfloat16)
    side.synchronize()
    case.check(host, lse.cpu().numpy())


def test_jax_arrays():
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip("this JAX has no CUDA")
    case = ragged([(1, 700), (50, 90)], seed=41)
    inputs = [jax.numpy.asarray(x) for x in (case.q, case.k_cache, case.v_cache)]
    out, lse = hybrid_attention(
        *inputs, *case.lengths, block_table=jax.numpy.asarray(case.block_table), return_lse=True
    )
    assert isinstance(out, jax.Array)
    case.check(np.asarray(out), np.asarray(lse))


class TestBadInput:
    def setup_method(self):
        self.case = Case([1, 20], [40, 30], seed=50)
        self.attention = HybridAttention(**self.case.layer_arguments)
        self.attention.plan(*self.case.lengths, block_table=cupy.asarray(self.case.block_table))
        self.inputs = [to_gpu(x) for x in (self.case.q, self.case.k_cache, self.case.v_cache)]

    def test_host_tensors(self):
        with pytest.raises(ValueError, match="q: lies in host memory"):
            self.attention.run(self.case.q, self.case.k_cache, self.case.v_cache)
        with pytest.raises(ValueError, match="k_cache"):
            self.attention.run(self.inputs[0], self.case.k_cache, self.case.v_cache)
        with pytest.raises(ValueError, match="out"):
            self.attention.run(*self.inputs, out=np.empty_like(self.case.q))

    def test_shapes_and_dtypes(self):
        q, k, v = self.inputs
        for name, arguments in (
            ("q", (q[:-1], k, v)),
            ("q", (q[0], k, v)),
            ("q", (q.view(np.float16), k, v)),
            ("k_cache", (q, k[:, :8], v)),
            ("k_cache", (q, k[:, :, :1], v)),
            ("v_cache", (q, k, v[:-1])),
            ("v_cache", (q, k, v.view(np.float16))),
            ("q", (q[:, :, ::-1], k, v)),
        ):
            with pytest.raises((ValueError, TypeError), match=f"^{name}"):
                self.attention.run(*arguments)

    def test_unaligned(self):
        memory = cupy.zeros(self.case.q.size + 8, np.uint16).view(self.case.q.dtype)
        q = memory[1 : 1 + self.case.q.size].reshape(self.case.q.shape)
        with pytest.raises(ValueError, match=r"q: starts at"):
            self.attention.run(q, *self.inputs[1:])

    def test_nothing_is_launched_for_bad_input(self):
        out = poisoned(self.case.q.shape, self.case.q.dtype)
        with pytest.raises(ValueError, match="lse"):
            self.attention.run(*self.inputs, out=out, lse=cupy.empty((1, 1), np.float32))
        assert (out.view(np.uint16) == 0x7FFF).all()

    def test_reference_backend_takes_host_tensors(self):
        with pytest.raises(ValueError, match="reference"):
            hybrid_attention(
                *self.inputs,
                *self.case.lengths,
                block_table=self.case.block_table,
                backend="reference",
            )
        with pytest.raises(UnsupportedConfigError, match="backend"):
            hybrid_attention(*self.inputs, *self.case.lengths, backend="gpu")
